//! `chassis-bench compare`: time and CPU of a call through chassis, with everything on, relative to its
//! peers.
//!
//! Machines drift: the same program may take one and a half times as long a minute later. So all sides of a
//! setting run in one process, in slices of 150 ms whose order rotates, and only ratios within a round count.
//! The first peer runs twice a round: the spread of its ratio to itself is the resolution of the method, and
//! a smaller effect gets no verdict.
mod place;
mod probe;
mod rounds;
mod side;
pub mod sides;
mod threads;

use std::time::Duration;

use chassis::units::Span;
use lexopt::prelude::*;

pub use self::{
    rounds::{Pair, Row, Spread},
    side::{Case, Gate, MESSAGES, STREAMS, Setup, Side, Worker, grpc_workers, worker},
};
use crate::Result;

/// The settings to compare, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The number of slices of each side.
    pub rounds: usize,
    /// The length of a slice.
    pub slice: Duration,
    /// The settings to measure.
    pub setups: Vec<Setup>,
}

const USAGE: &str = "\
chassis-bench compare [options]

  --case C      only this: grpc_unary_128, grpc_unary_16k, grpc_server_streaming, rest_get, rest_post,
                client_pipeline; any number of them
  --peer P      only with this peer; any number of them
  --callers N   only with so many callers; likewise --connections N and --cores N
  --rounds N    slices of each side; default 40
  --slice T     how long each is; default 150ms
  --quick       few settings and short slices, at most a minute
  --json        {\"rows\": [{case, peer, concurrency, connections, cores, throughput_ratio,
                client_cpu_ratio, total_cpu_ratio, control_spread}]}
  --markdown    the table of docs/benchmarks.md

`client_pipeline` has no wire: two threads call one pipeline, and the peer `share_nothing` is two threads
with a pipeline each.

Ratios are chassis over peer. `control` is the spread of the first peer's ratios to itself: the difference
of their quartiles, the largest of time and CPU. A ratio whose distance from 1 is within the control's own
spread has a `?` behind it, or stands in brackets: that is no verdict.
";

/// Runs the subcommand against the peers of this crate.
pub fn run(args: lexopt::Parser) -> Result {
    run_with(args, sides::peers())
}

/// Runs it against `peers`; the first peer that supports a case is its control.
pub fn run_with(mut args: lexopt::Parser, mut peers: Vec<Box<dyn Side>>) -> Result {
    let (mut cases, mut only, mut rounds, mut slice) = (Vec::new(), Vec::new(), None, None);
    let (mut quick, mut json, mut markdown) = (false, false, false);
    let (mut callers, mut connections, mut cores) = (None, None, None);
    while let Some(arg) = args.next()? {
        match arg {
            Long("case") => cases.push(args.value()?.parse::<Case>()?),
            Long("peer") => only.push(args.value()?.string()?),
            Long("callers") => callers = Some(args.value()?.parse::<usize>()?),
            Long("connections") => connections = Some(args.value()?.parse::<usize>()?),
            Long("cores") => cores = Some(args.value()?.parse::<usize>()?),
            Long("rounds") => rounds = Some(args.value()?.parse()?),
            Long("slice") => slice = Some(args.value()?.parse::<Span>()?.0),
            Long("quick") => quick = true,
            Long("json") => json = true,
            Long("markdown") => markdown = true,
            Long("help") | Short('h') => {
                print!("{USAGE}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let known: Vec<_> = peers.iter().map(|peer| peer.name()).chain([threads::PEER]).collect();
    if let Some(unknown) = only.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(format!("there is no peer `{unknown}`; there are {}", known.join(", ")).into());
    }
    let is_log_on = probe::is_log_on();
    let words = if is_log_on { "on" } else { "off" };
    eprintln!("tracing/log is {words}; all sides are in this one binary");
    if is_log_on {
        return Err("a crate of this build turns on tracing/log, which costs every side a fifth of a gRPC \
                    call: nothing is compared (`cargo tree -e features -i tracing` shows which)"
            .into());
    }
    let is_wanted = |peer: &str| only.is_empty() || only.iter().any(|name| name == peer);
    peers.retain(|peer| is_wanted(peer.name()));
    let mut setups = if quick { Setup::few() } else { Setup::all() };
    setups.retain(|setup| cases.is_empty() || cases.contains(&setup.case));
    setups.retain(|setup| {
        callers.is_none_or(|n| n == setup.concurrency)
            && connections.is_none_or(|n| n == setup.connections)
            && cores.is_none_or(|n| n == setup.cores)
    });
    setups.retain(|setup| setup.case != Case::ClientPipeline || is_wanted(threads::PEER));
    let (least_rounds, short) =
        if quick { (12, Duration::from_millis(80)) } else { (40, Duration::from_millis(150)) };
    let options = Options { rounds: rounds.unwrap_or(least_rounds), slice: slice.unwrap_or(short), setups };
    if markdown {
        println!("{}", Row::MARKDOWN);
    }
    let rows = compare(&options, &peers, |row| match () {
        () if json => {}
        () if markdown => println!("{}", row.as_markdown()),
        () => println!("{row}"),
    })?;
    if json {
        let rows: Vec<_> = rows.iter().map(Row::as_json).collect();
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "rows": rows }))?);
    }
    Ok(())
}

/// Compares chassis with `peers` in every setting, and passes rows to `report` as they are measured.
pub fn compare(options: &Options, peers: &[Box<dyn Side>], mut report: impl FnMut(&Row)) -> Result<Vec<Row>> {
    let cores = place::cores()?;
    let mut all = Vec::new();
    for setup in options.setups.iter().filter(|setup| setup.cores <= cores.len()) {
        if setup.case == Case::ClientPipeline {
            let rows = threads::measure(options, *setup, &cores);
            let rows = rows.map_err(|error| format!("{setup}: {error}"))?;
            rows.iter().for_each(&mut report);
            all.extend(rows);
            continue;
        }
        let fitting: Vec<_> = peers.iter().filter(|peer| peer.fits(*setup)).map(|peer| &**peer).collect();
        if fitting.is_empty() {
            continue;
        }
        let rows = rounds::measure(options, *setup, &sides::Chassis, &fitting, &cores)
            .map_err(|error| format!("{setup}: {error}"))?;
        rows.iter().for_each(&mut report);
        all.extend(rows);
    }
    Ok(all)
}
