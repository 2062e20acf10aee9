//! `chassis-bench behaviour`: experiments on the results that callers get during failures. Each has services
//! in processes of their own on this machine, and the caller in this one.
mod failing;
mod fleet;
mod kill;
mod metastable;
mod overload;
#[cfg_attr(not(feature = "registries"), path = "registries/off.rs")]
mod registries;
mod registry;
mod settings;
mod slow;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write},
    time::Duration,
};

use lexopt::prelude::*;
use serde::Serialize;

use crate::{Result, drive::Slot};

/// The result of one run of an experiment.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// The experiment.
    pub experiment: &'static str,
    /// The difference to its other runs.
    pub case: String,
    /// By name, which includes the unit.
    pub figures: BTreeMap<&'static str, f64>,
}

/// The duration of experiments.
#[derive(Clone, Copy, Debug)]
pub struct Pace(u32);

const USAGE: &str = "\
chassis-bench behaviour [EXPERIMENT]... [options]; default all of the first list, about ten minutes

  kill         one of three instances is killed under 64 callers
  slow         one of eleven instances takes 2 s, at 1000 calls a second with 1 s each, by balancer
  failing      a backend fails everything, at 500 calls a second: attempts by call in the worst 10 s
  chain        the same at the leaf of a chain of three services
  overload     0.8, 2 and 10 times the capacity of a service with `concurrency`
  metastable   0.7 of the capacity, 3 attempts, the backend at 30 % of its speed for 10 s, then restored
  registry     changes of 100,000, 10,000 and 100 instances: how long they hold a thread of calls
  torn         a million calls that read two linked settings while versions are swapped without a pause
  updates      the cost of a thousand updates of the settings a second, through a config center

With the real servers of registries, which scripts/setup installs; the cargo feature `registries`:

  outage       the server is away for 60 s under 64 callers; an instance is killed, another one restarted
  rolling      three instances are restarted in turn under 64 callers
  cold-start   callers start while the server is away, with and without what is on disk
  change       how soon a caller sees a change of the registry
  spread       200 processes come back to a server that was away, and has lost everything
  bad-settings 1,000 texts that must be refused, through a config center

  --over NAME  etcd, consul, ttl or dns; any number of them; default all
  --quick      everything lasts a fifth: to see that it works, not to be quoted
  --json       {\"figures\": [{experiment, case, figures}]}
  --markdown   the tables of docs/benchmarks.md
";

/// Runs the subcommand.
pub fn run(mut args: lexopt::Parser) -> Result {
    const ALL: [&str; 9] =
        ["kill", "slow", "failing", "chain", "overload", "metastable", "registry", "torn", "updates"];
    const WITH_SERVERS: [&str; 6] = ["outage", "rolling", "cold-start", "change", "spread", "bad-settings"];
    let (mut chosen, mut pace, mut json, mut markdown) = (Vec::new(), Pace(1), false, false);
    let mut over = Vec::new();
    while let Some(arg) = args.next()? {
        match arg {
            Long("quick") => pace = Pace(5),
            Long("json") => json = true,
            Long("markdown") => markdown = true,
            Long("help") | Short('h') => {
                print!("{USAGE}");
                return Ok(());
            }
            Long("over") => over.push(args.value()?.parse_with(registries::known)?),
            Value(name) => match ALL.into_iter().chain(WITH_SERVERS).find(|known| name == *known) {
                Some(known) => chosen.push(known),
                None => return Err(format!("there is no `{}`\n\n{USAGE}", name.display()).into()),
            },
            other => return Err(other.unexpected().into()),
        }
    }
    if chosen.is_empty() {
        chosen = ALL.to_vec();
    }
    if over.is_empty() {
        over = registries::ALL.to_vec();
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
                "registry" => registry::run(pace).await,
                "torn" => settings::torn(pace).await,
                "updates" => settings::updates(pace).await,
                "metastable" => metastable::run(pace).await,
                _ => registries::run(name, pace, &over).await,
            };
            let figures = figures.map_err(|error| format!("{name}: {error}"))?;
            if markdown {
                println!("{}", as_markdown(&figures));
            } else if !json {
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

/// The sum of `amount` over those `slots` that lie between two times.
fn sum(slots: &[Slot], from: Duration, to: Duration, amount: impl Fn(&Slot) -> u64) -> u64 {
    let at = |time: Duration| ((time.as_secs_f64() * 10.0).round() as usize).min(slots.len());
    slots[at(from)..at(to).max(at(from))].iter().map(amount).sum()
}

/// The runs of one experiment as a table of Markdown, with a column for each.
fn as_markdown(runs: &[Figures]) -> String {
    let Some(first) = runs.first() else { return String::new() };
    let cases: Vec<_> = runs.iter().map(|run| run.case.as_str()).collect();
    let mut text =
        format!("| {} | {} |\n|---|{}\n", first.experiment, cases.join(" | "), "---:|".repeat(runs.len()));
    let names: BTreeSet<_> = runs.iter().flat_map(|run| run.figures.keys()).collect();
    for name in names {
        let values = runs.iter().map(|run| run.figures.get(*name).copied().map_or_else(String::new, number));
        let _ = writeln!(text, "| {name} | {} |", values.collect::<Vec<_>>().join(" | "));
    }
    text
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { value.to_string() } else { format!("{value:.2}") }
}

// === impl Pace ===

impl Pace {
    /// This many seconds, or fewer in a quick run.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_stand_beside_each_other() {
        let runs = [
            Figures::new("slow", "p2c", [("calls", 100.0), ("good, %", 99.5)]),
            Figures::new("slow", "random", [("calls", 50.0)]),
        ];
        let table =
            "| slow | p2c | random |\n|---|---:|---:|\n| calls | 100 | 50 |\n| good, % | 99.50 |  |\n";
        assert_eq!(as_markdown(&runs), table);
    }

    #[test]
    fn a_sum_is_over_the_slots_of_its_time() {
        let slot = |calls| Slot { calls, ..Slot::default() };
        let slots: Vec<_> = (1..=20).map(slot).collect();
        let of = |from, to| sum(&slots, Duration::from_millis(from), Duration::from_millis(to), |s| s.calls);
        assert_eq!((of(0, 300), of(1_900, 9_000), of(500, 500), of(3_000, 4_000)), (6, 20, 0, 0));
    }
}
