//! `chassis-bench layers`: instructions, allocations and nanoseconds of a call, by layer.
//!
//! Instructions and allocations are exact, and the same on a busy machine: client and server run in one
//! process over streams in memory, under callgrind, and the difference of two laps is what counts.
//! Nanoseconds are measured in a plain run, the quickest of some batches: they are beside the counts.
pub mod bare;
mod callgrind;
pub mod case;
pub mod echo;
mod guard;
mod rows;
pub mod settings;
pub mod whole;

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use lexopt::{Arg, ValueExt};
use serde::Serialize;

use self::{
    callgrind::Counts,
    case::{Case, Laps, chassis_bench_lap},
    rows::Row,
};
use crate::Result;

const USAGE: &str = "\
chassis-bench layers [--quick] [--json] [--only NAME,…] [--profiles DIR] [--guard FILE] [--record FILE]

  --quick         the rows that decide, in at most a minute
  --json          {\"rows\": [{name, concurrency, instructions, allocations, ns}]}
  --only NAME,…   these rows, and those whose names begin with one that ends in *
  --profiles DIR  leaves callgrind's profiles there, one a row, for callgrind_annotate
  --guard FILE    fails where a count is above what is recorded in FILE
  --record FILE   writes what is counted now to FILE
";

/// What was measured of one row, by so many callers at once.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    name: String,
    concurrency: usize,
    instructions: f64,
    allocations: f64,
    ns: f64,
}

#[derive(Serialize)]
struct Table<'a> {
    rows: &'a [Measured],
}

#[derive(Default)]
struct Options {
    quick: bool,
    json: bool,
    only: Vec<String>,
    profiles: Option<PathBuf>,
    guard: Option<PathBuf>,
    record: Option<PathBuf>,
    child: Option<Child>,
}

/// What this program runs itself for.
#[derive(Default)]
struct Child {
    row: String,
    callers: usize,
    /// Under callgrind.
    laps: Option<Laps>,
    /// Plainly, for about so long.
    time: Duration,
}

/// Runs it.
pub fn run(args: lexopt::Parser) -> Result {
    let Some(options) = Options::read(args)? else {
        print!("{USAGE}");
        return Ok(());
    };
    if let Some(child) = &options.child {
        return child.run();
    }
    if !callgrind::is_there() {
        if options.guard.is_some() {
            println!("skipped: valgrind, which counts the instructions, is not installed (scripts/setup)");
            return Ok(());
        }
        return Err("valgrind, which counts the instructions, is not installed: see scripts/setup".into());
    }
    let rows = options.rows()?;
    let measured = measure(&rows, &options)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&Table { rows: &measured })?);
    } else {
        print_table(&measured);
    }
    if let Some(file) = &options.record {
        guard::record(file, &measured)?;
    }
    match &options.guard {
        Some(file) => guard::check(file, &measured),
        None => Ok(()),
    }
}

fn measure(rows: &[Row], options: &Options) -> Result<Vec<Measured>> {
    let scratch = tempfile::tempdir()?;
    let profiles = options.profiles.as_deref().unwrap_or(scratch.path());
    std::fs::create_dir_all(profiles)?;
    let mut jobs: Vec<(&Row, usize)> = Vec::new();
    for row in rows {
        jobs.extend(row.callers.iter().map(|callers| (row, *callers)));
    }
    // Counts do not suffer from neighbours, so two at a time; time does, so one at a time, afterwards.
    let counts = in_pairs(&jobs, |(row, callers)| {
        let out = profiles.join(format!("{}-{callers}", row.name));
        let counts = callgrind::count(&row.name, *callers, row.laps, &out)?;
        eprintln!("{:>32} {callers:>3} {:>12.0} {:>8.2}", row.name, counts.instructions, counts.allocations);
        Ok(counts)
    })?;
    let time = Duration::from_millis(if options.quick { 150 } else { 600 });
    let mut measured = Vec::new();
    for ((row, callers), Counts { instructions, allocations }) in jobs.iter().zip(counts) {
        let ns = Child::time(&row.name, *callers, time)?;
        let (name, concurrency) = (row.name.clone(), *callers);
        measured.push(Measured { name, concurrency, instructions, allocations, ns });
    }
    for (at, (row, callers)) in jobs.iter().enumerate() {
        let Some(base) = row.beyond else { continue };
        let base = measured.iter().find(|other| other.name == base && other.concurrency == *callers);
        let base = base
            .ok_or_else(|| format!("{} needs {} measured too", row.name, row.beyond.unwrap_or("")))?
            .clone();
        measured[at].instructions -= base.instructions;
        measured[at].allocations -= base.allocations;
        measured[at].ns -= base.ns;
    }
    Ok(measured)
}

/// Does all `jobs`, two at a time, and keeps their order.
fn in_pairs<J: Sync, T: Send>(jobs: &[J], work: impl Fn(&J) -> Result<T> + Sync) -> Result<Vec<T>> {
    use std::sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    };
    let next = AtomicUsize::new(0);
    let done: Vec<Mutex<Option<Result<T>>>> = jobs.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(job) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    jobs.get(at).map(|job| (at, job))
                } {
                    let result = work(job.1);
                    *done[job.0].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                }
            });
        }
    });
    let result = |slot: Mutex<Option<Result<T>>>| {
        slot.into_inner().unwrap_or_else(PoisonError::into_inner).expect("every job was done")
    };
    done.into_iter().map(result).collect()
}

fn print_table(measured: &[Measured]) {
    let bare =
        |concurrency| measured.iter().find(|row| row.name == "bare_tonic" && row.concurrency == concurrency);
    println!("{:32} {:>5} {:>12} {:>7} {:>8} {:>9}", "row", "conc", "instructions", "÷ bare", "allocs", "ns");
    for row in measured {
        let ratio = bare(row.concurrency).map(|bare| row.instructions / bare.instructions);
        let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}"));
        println!(
            "{:32} {:>5} {:>12.0} {ratio:>7} {:>8.2} {:>9.0}",
            row.name, row.concurrency, row.instructions, row.allocations, row.ns
        );
    }
}

// === impl Options ===

impl Options {
    /// `None`: only the usage is wanted.
    fn read(mut args: lexopt::Parser) -> Result<Option<Self>> {
        let mut options = Options::default();
        let mut child = Child::default();
        while let Some(arg) = args.next()? {
            match arg {
                Arg::Long("quick") => options.quick = true,
                Arg::Long("json") => options.json = true,
                Arg::Long("only") => {
                    options.only.extend(args.value()?.string()?.split(',').map(str::to_owned));
                }
                Arg::Long("profiles") => options.profiles = Some(args.value()?.into()),
                Arg::Long("guard") => options.guard = Some(args.value()?.into()),
                Arg::Long("record") => options.record = Some(args.value()?.into()),
                Arg::Long("child") => child.row = args.value()?.string()?,
                Arg::Long("callers") => child.callers = args.value()?.parse()?,
                Arg::Long("laps") => {
                    let laps = args.value()?.string()?;
                    let laps: Vec<usize> = laps.split(',').map(str::parse).collect::<Result<_, _>>()?;
                    let [warm, short, long] = laps[..] else { return Err("three laps are needed".into()) };
                    child.laps = Some(Laps { warm, short, long });
                }
                Arg::Long("millis") => child.time = Duration::from_millis(args.value()?.parse()?),
                Arg::Long("help") | Arg::Short('h') => return Ok(None),
                other => return Err(other.unexpected().into()),
            }
        }
        options.child = (!child.row.is_empty()).then_some(child);
        Ok(Some(options))
    }

    fn rows(&self) -> Result<Vec<Row>> {
        let mut rows = rows::all();
        let named = |row: &Row, names: &[String]| {
            names.iter().any(|name| match name.strip_suffix('*') {
                Some(start) => row.name.starts_with(start),
                None => row.name == *name,
            })
        };
        match &self.only[..] {
            [] => rows.retain(|row| row.quick || !self.quick),
            names => rows.retain(|row| named(row, names)),
        }
        match rows.is_empty() {
            true => Err("there are no such rows".into()),
            false => Ok(rows),
        }
    }
}

// === impl Child ===

impl Child {
    /// On one thread, with a clock and no sockets.
    fn run(&self) -> Result {
        let row = rows::all().into_iter().find(|row| row.name == self.row);
        let row = row.ok_or_else(|| format!("there is no row `{}`", self.row))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(async {
            let case = row.make().await;
            match self.laps {
                Some(laps) => self.laps(&*case, laps).await,
                None => println!("{}", self.quickest(&*case, row.laps).await),
            }
        });
        // What is still there is not taken down: that would be counted too.
        std::process::exit(0);
    }

    async fn laps(&self, case: &dyn Case, laps: Laps) {
        for (number, times) in [laps.warm, laps.short, laps.long].into_iter().enumerate() {
            case.run(times, self.callers).await;
            chassis_bench_lap(number);
        }
    }

    /// Nanoseconds of one, in the quickest batch of about ten milliseconds.
    async fn quickest(&self, case: &dyn Case, laps: Laps) -> f64 {
        let mut times = laps.short.max(self.callers);
        case.run(laps.warm, self.callers).await;
        let batch = loop {
            let begun = Instant::now();
            case.run(times, self.callers).await;
            let took = begun.elapsed();
            if took > Duration::from_millis(10) || times > 1 << 24 {
                break took;
            }
            times *= 2;
        };
        let mut best = batch;
        let until = Instant::now() + self.time;
        while Instant::now() < until {
            let begun = Instant::now();
            case.run(times, self.callers).await;
            best = best.min(begun.elapsed());
        }
        best.as_nanos() as f64 / times as f64
    }

    /// Runs this program for the nanoseconds of a row, alone in its process.
    fn time(row: &str, callers: usize, time: Duration) -> Result<f64> {
        let mut child = Command::new(std::env::current_exe()?);
        child.args(["layers", "--child", row, "--callers", &callers.to_string()]);
        let output = child.args(["--millis", &time.as_millis().to_string()]).output()?;
        if !output.status.success() {
            return Err(format!("{row}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
    }
}
