//! `chassis-bench layers`: instructions, allocations and nanoseconds of a call, by layer.
//!
//! Instructions and allocations are exact, and the same on a busy machine: client and server run in one
//! process over streams in memory, under callgrind, and the difference of two laps is the result. Nanoseconds
//! are measured without callgrind, as the fastest of several batches; they only supplement the counts.
pub mod bare;
mod callgrind;
pub mod case;
mod child;
pub mod echo;
mod guard;
mod rows;
pub mod settings;
mod table;
pub mod whole;

use std::{path::PathBuf, time::Duration};

use lexopt::{Arg, ValueExt};

use self::{
    callgrind::Counts,
    case::Laps,
    child::{Child, Job},
    rows::Row,
    table::{Measured, Table},
};
use crate::Result;

const USAGE: &str = "\
chassis-bench layers [--quick] [--json | --markdown] [--only NAME,…] [--profiles DIR]
                     [--guard FILE | --record FILE]

  --quick         most rows, shorter: in at most a minute, good to half a per cent
  --json          {\"rows\": [{name, concurrency, instructions, allocations, ns}]}
  --markdown      the table of docs/benchmarks.md
  --only NAME,…   these rows, and those whose names begin with one that ends in *
  --profiles DIR  leaves callgrind's profiles there, three a row: the third is for callgrind_annotate
  --guard FILE    the rows recorded in FILE; fails where one has become dearer
  --record FILE   the rows to guard; writes their counts to FILE

Rows of calls are whole calls, client and server. `make_call` is what the pipelines' rows have in them beside
the pipeline; it is taken off those of layers and picks already.
";

#[derive(Default)]
struct Options {
    quick: bool,
    json: bool,
    markdown: bool,
    only: Vec<String>,
    profiles: Option<PathBuf>,
    guard: Option<PathBuf>,
    record: Option<PathBuf>,
    child: Option<Child>,
}

/// Runs the subcommand.
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
    let table = Table { rows: measure(&options.rows()?, &options)? };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&table)?);
    } else if options.markdown {
        print!("{}", table.markdown());
    } else {
        print!("{table}");
    }
    if let Some(file) = &options.record {
        guard::record(file, &table.rows)?;
    }
    match &options.guard {
        Some(file) => guard::check(file, &table.rows),
        None => Ok(()),
    }
}

fn measure(rows: &[Row], options: &Options) -> Result<Vec<Measured>> {
    let scratch = tempfile::tempdir()?;
    let profiles = options.profiles.as_deref().unwrap_or(scratch.path());
    std::fs::create_dir_all(profiles)?;
    let mut jobs: Vec<(&Row, Job)> = Vec::new();
    for row in rows {
        let laps = if options.quick { row.laps.shorter() } else { row.laps };
        let job = |&callers| (row, Job { row: row.name.clone(), callers, laps });
        jobs.extend(row.callers.iter().map(job));
    }
    // Other processes do not affect counts, but they affect time: times are measured afterwards, one row at a
    // time.
    let counts: Vec<Counts> = if options.profiles.is_some() {
        count(&jobs, 1, |job| profiles.join(format!("{}-{}", job.row, job.callers)))?
    } else {
        count(&jobs, BATCH, |job| profiles.join(format!("{}-{}", job.row, job.callers)))?
    };
    let time = Duration::from_millis(if options.quick { 100 } else { 600 });
    let mut measured = Vec::new();
    for ((row, job), Counts { instructions, allocations }) in jobs.iter().zip(counts) {
        // The guard compares only counts.
        let base = row.beyond.map(|base| Job { row: base.to_owned(), laps: Laps::PARTS, ..job.clone() });
        let ns = if options.guard.is_some() { f64::NAN } else { job.time(base.as_ref(), time)? };
        let (name, concurrency) = (row.name.clone(), job.callers);
        measured.push(Measured { name, concurrency, instructions, allocations, ns });
    }
    for (at, (row, job)) in jobs.iter().enumerate() {
        let Some(base) = row.beyond else { continue };
        let base = measured.iter().find(|other| other.name == base && other.concurrency == job.callers);
        let base = base.ok_or_else(|| format!("{} needs {:?} measured too", row.name, row.beyond))?.clone();
        measured[at].take_off(&base);
    }
    Ok(measured)
}

/// Maximum of rows per process, run one after the other.
const BATCH: usize = 6;

/// Counts all `jobs`, up to `batch` of them per process, on all cores.
fn count(jobs: &[(&Row, Job)], batch: usize, out: impl Fn(&Job) -> PathBuf + Sync) -> Result<Vec<Counts>> {
    let batches: Vec<Vec<Job>> =
        jobs.chunks(batch).map(|batch| batch.iter().map(|(_, job)| job.clone()).collect()).collect();
    let counted = on_all_cores(&batches, |batch| {
        let counts = callgrind::count(batch, &out(&batch[0]))?;
        for (Job { row, callers, .. }, counts) in batch.iter().zip(&counts) {
            eprintln!("{row:>32} {callers:>3} {:>12.0} {:>8.2}", counts.instructions, counts.allocations);
        }
        Ok(counts)
    })?;
    Ok(counted.into_iter().flatten().collect())
}

/// Runs all `jobs`, as many at a time as there are cores, and keeps their order.
fn on_all_cores<J: Sync, T: Send>(jobs: &[J], work: impl Fn(&J) -> Result<T> + Sync) -> Result<Vec<T>> {
    use std::sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let done: Vec<Mutex<Option<Result<T>>>> = jobs.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..cores {
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

// === impl Options ===

impl Options {
    /// `None`: the help was asked for.
    fn read(mut args: lexopt::Parser) -> Result<Option<Self>> {
        let mut options = Options::default();
        let (mut counted, mut timed, mut beyond, mut time) = (Vec::new(), None, None, Duration::ZERO);
        while let Some(arg) = args.next()? {
            match arg {
                Arg::Long("quick") => options.quick = true,
                Arg::Long("json") => options.json = true,
                Arg::Long("markdown") => options.markdown = true,
                Arg::Long("only") => {
                    options.only.extend(args.value()?.string()?.split(',').map(str::to_owned));
                }
                Arg::Long("profiles") => options.profiles = Some(args.value()?.into()),
                Arg::Long("guard") => options.guard = Some(args.value()?.into()),
                Arg::Long("record") => options.record = Some(args.value()?.into()),
                // Options for its own child processes.
                Arg::Long("child") => counted.push(args.value()?.parse::<Job>()?),
                Arg::Long("time") => timed = Some(args.value()?.parse::<Job>()?),
                Arg::Long("beyond") => beyond = Some(args.value()?.parse::<Job>()?),
                Arg::Long("millis") => time = Duration::from_millis(args.value()?.parse()?),
                Arg::Long("help") | Arg::Short('h') => return Ok(None),
                other => return Err(other.unexpected().into()),
            }
        }
        options.child = match timed {
            Some(job) => Some(Child::Time(job, beyond, time)),
            None if counted.is_empty() => None,
            None => Some(Child::Laps(counted)),
        };
        Ok(Some(options))
    }

    fn rows(&self) -> Result<Vec<Row>> {
        let mut rows = rows::all();
        let recorded = self.guard.as_deref().map(guard::rows).transpose()?;
        if let Some(names) = recorded {
            rows.retain(|row| names.contains(&row.name));
        } else if !self.only.is_empty() {
            rows.retain(|row| is_named(&row.name, &self.only));
        } else if self.record.is_some() {
            rows.retain(|row| row.guarded);
        } else {
            rows.retain(|row| row.quick || !self.quick);
        }
        if rows.is_empty() {
            return Err("there are no such rows".into());
        }
        // The base of a row is measured too.
        let (chosen, bases): (Vec<_>, Vec<_>) = rows.into_iter().map(|row| (row.name, row.beyond)).unzip();
        let mut rows = rows::all();
        rows.retain(|row| chosen.contains(&row.name) || bases.contains(&Some(&*row.name)));
        Ok(rows)
    }
}

fn is_named(row: &str, names: &[String]) -> bool {
    names.iter().any(|name| match name.strip_suffix('*') {
        Some(start) => row.starts_with(start),
        None => row == name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_end() {
        let names = ["bare_tonic".to_owned(), "layer_*".to_owned()];
        assert!(is_named("bare_tonic", &names) && is_named("layer_retry_on", &names));
        assert!(!is_named("bare_tonic_timeout", &names) && !is_named("pick_10", &names));
    }

    #[test]
    fn results_keep_the_order_of_their_jobs() {
        let jobs: Vec<u32> = (0..50).collect();
        assert_eq!(
            on_all_cores(&jobs, |job| Ok(job * 2)).unwrap(),
            jobs.iter().map(|j| j * 2).collect::<Vec<_>>()
        );
        assert!(on_all_cores(&jobs, |job| if *job == 7 { Err("seven".into()) } else { Ok(()) }).is_err());
    }

    #[test]
    fn a_quick_look_has_every_name_that_is_promised() {
        let quick: Vec<String> =
            rows::all().into_iter().filter(|row| row.quick).map(|row| row.name).collect();
        let promised = "bare_tonic bare_tonic_timeout bare_tonic_traceparent chassis_off chassis_on \
            chassis_on_traceparent glued_tower make_call client_pipeline_on server_pipeline_on pick_10 pick_100 \
            pick_1000 pick_10000 tower_pick_100 lookup_10 lookup_10000 empty_stage swap_10000 bare_hyper \
            layer_retry_on layer_retry_off layer_breaker_on layer_breaker_off layer_route_on";
        for name in promised.split_whitespace() {
            assert!(quick.iter().any(|row| row == name), "{name}");
        }
    }
}
