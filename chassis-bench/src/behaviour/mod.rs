//! `chassis-bench behaviour`: experiments on what callers see when something is wrong, each with services
//! in processes of their own on this machine and the caller in this one.
mod failing;
mod fleet;
mod kill;
mod metastable;
mod overload;
mod slow;

use std::{collections::BTreeMap, fmt, time::Duration};

use lexopt::prelude::*;
use serde::Serialize;

use crate::{Result, drive::Slot};

/// What one run of an experiment showed.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// The experiment.
    pub experiment: &'static str,
    /// What is different from its other runs.
    pub case: String,
    /// By name; the unit stands in the name.
    pub figures: BTreeMap<&'static str, f64>,
}

/// How long experiments take.
#[derive(Clone, Copy, Debug)]
pub struct Pace(u32);

const USAGE: &str = "\
chassis-bench behaviour [EXPERIMENT]... [options]; default all, about nine minutes

  kill         one of three instances is killed under 64 callers
  slow         one of eleven instances takes 2 s, at 1000 calls a second with 1 s each, by balancer
  failing      a backend fails everything, at 500 calls a second: attempts by call in the worst 10 s
  chain        the same at the leaf of a chain of three services
  overload     0.8, 2 and 10 times the capacity of a service with `concurrency`
  metastable   0.7 of the capacity, 3 attempts, the backend at 30 % of its speed for 10 s, then restored

  --quick      everything lasts a fifth: to see that it works, not to be quoted
  --json       one document, for machines
";

/// Runs it.
pub fn run(mut args: lexopt::Parser) -> Result {
    const ALL: [&str; 6] = ["kill", "slow", "failing", "chain", "overload", "metastable"];
    let (mut chosen, mut pace, mut json) = (Vec::new(), Pace(1), false);
    while let Some(arg) = args.next()? {
        match arg {
            Long("quick") => pace = Pace(5),
            Long("json") => json = true,
            Long("help") | Short('h') => {
                print!("{USAGE}");
                return Ok(());
            }
            Value(name) => match ALL.into_iter().find(|known| name == *known) {
                Some(known) => chosen.push(known),
                None => return Err(format!("there is no `{}`\n\n{USAGE}", name.display()).into()),
            },
            other => return Err(other.unexpected().into()),
        }
    }
    if chosen.is_empty() {
        chosen = ALL.to_vec();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut all = Vec::new();
        for name in chosen {
            let figures = match name {
                "kill" => kill::run(pace).await,
                "slow" => slow::run(pace).await,
                "failing" => failing::run(pace, failing::Depth::One).await,
                "chain" => failing::run(pace, failing::Depth::Three).await,
                "overload" => overload::run(pace).await,
                _ => metastable::run(pace).await,
            };
            let figures = figures.map_err(|error| format!("{name}: {error}"))?;
            if !json {
                figures.iter().for_each(|figures| println!("{figures}"));
            }
            all.extend(figures);
        }
        if json {
            println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "figures": all }))?);
        }
        Ok(())
    })
}

/// `amount` by each of `slots` together, from and to a time.
fn sum(slots: &[Slot], from: Duration, to: Duration, amount: impl Fn(&Slot) -> u64) -> u64 {
    let at = |time: Duration| ((time.as_secs_f64() * 10.0).round() as usize).min(slots.len());
    slots[at(from)..at(to).max(at(from))].iter().map(amount).sum()
}

// === impl Pace ===

impl Pace {
    /// So many seconds, or fewer.
    fn seconds(self, seconds: u32) -> Duration {
        Duration::from_secs(seconds.into()) / self.0
    }
}

// === impl Figures ===

impl Figures {
    fn new(
        experiment: &'static str,
        case: impl Into<String>,
        figures: impl IntoIterator<Item = (&'static str, f64)>,
    ) -> Self {
        Figures { experiment, case: case.into(), figures: figures.into_iter().collect() }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.experiment, self.case)?;
        self.figures.iter().try_for_each(|(name, value)| match value.fract() == 0.0 {
            true => writeln!(f, "  {name:36} {value}"),
            false => writeln!(f, "  {name:36} {value:.3}"),
        })
    }
}
