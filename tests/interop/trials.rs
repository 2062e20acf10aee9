//! Runs the tests of a binary that has `harness = false`. A test of a program that is not installed cannot
//! run, and libtest has no such result: here it is reported as ignored, with the reason, and counted so.
//!
//! A module lists its tests in `trials!`; the compiler reports one that is left out as dead code. The
//! arguments are those of libtest that select tests: names, `--exact`, `--skip`, `--list`, `--test-threads`.
//! Others are ignored.
use std::{
    collections::VecDeque,
    num::NonZero,
    pin::Pin,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
};

use tokio::time::Instant;

/// Why a test could not run.
#[derive(Debug)]
pub(crate) struct NotRun(pub(crate) String);

/// The result of a test that may be unable to run. A test that can always run returns nothing.
pub(crate) type Ran = Result<(), NotRun>;

/// A return type of tests.
pub(crate) trait Outcome {
    fn ran(self) -> Ran;
}

/// A test by its name.
pub(crate) struct Trial {
    name: &'static str,
    run: fn() -> Pin<Box<dyn Future<Output = Ran>>>,
}

/// The selected tests, and options.
#[derive(Default)]
struct Arguments {
    names: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    list: bool,
    only_ignored: bool,
    threads: Option<usize>,
}

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: Vec<&'static str>,
    ignored: usize,
}

/// `trials() -> Vec<Trial>`: these async functions of the module, as tests.
macro_rules! trials {
    ($($test:ident)*) => {
        pub(crate) fn trials() -> Vec<$crate::trials::Trial> {
            vec![$($crate::trials::Trial::new(concat!(module_path!(), "::", stringify!($test)), || {
                Box::pin(async { $crate::trials::Outcome::ran($test().await) })
            })),*]
        }
    };
}

impl Outcome for () {
    fn ran(self) -> Ran {
        Ok(())
    }
}

impl Outcome for Ran {
    fn ran(self) -> Ran {
        self
    }
}

// === impl Trial ===

impl Trial {
    /// `name` begins with the crate's name, which is left out.
    pub(crate) fn new(name: &'static str, run: fn() -> Pin<Box<dyn Future<Output = Ran>>>) -> Self {
        Trial { name: name.split_once("::").map_or(name, |(_, rest)| rest), run }
    }

    /// `Err` is the panic payload, which the thread has printed already.
    fn run(&self) -> thread::Result<Ran> {
        let run = self.run;
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be made").block_on(run())
        };
        thread::Builder::new().name(self.name.to_owned()).spawn(body).expect("a thread can be made").join()
    }
}

/// Runs those of `all` that the arguments of this process select, and prints results like libtest.
pub(crate) fn run(all: impl IntoIterator<Item = Vec<Trial>>) -> ExitCode {
    let arguments = Arguments::read(std::env::args().skip(1));
    let all: Vec<Trial> = all.into_iter().flatten().collect();
    let count = all.len();
    let mut chosen: VecDeque<Trial> = all.into_iter().filter(|trial| arguments.choose(trial.name)).collect();
    if arguments.list {
        for trial in chosen {
            println!("{}: test", trial.name);
        }
        return ExitCode::SUCCESS;
    }
    let filtered = count - chosen.len();
    println!("\nrunning {} tests", chosen.len());
    let (started, tally) = (Instant::now(), Mutex::new(Tally::default()));
    let threads = arguments.threads.unwrap_or_else(default_threads).clamp(1, chosen.len().max(1));
    chosen.make_contiguous().sort_by_key(|trial| trial.name);
    let chosen = Mutex::new(chosen);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let next = || chosen.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                while let Some(trial) = next() {
                    let ended = trial.run();
                    tally.lock().unwrap_or_else(PoisonError::into_inner).add(trial.name, ended);
                }
            });
        }
    });
    tally
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .print(filtered, started.elapsed().as_secs_f64())
}

fn default_threads() -> usize {
    let wanted = std::env::var("RUST_TEST_THREADS").ok().and_then(|threads| threads.parse().ok());
    wanted.unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZero::get))
}

// === impl Arguments ===

impl Arguments {
    fn read(mut given: impl Iterator<Item = String>) -> Self {
        let mut read = Arguments::default();
        while let Some(argument) = given.next() {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
                _ => (argument, None),
            };
            let mut value = || value.clone().or_else(|| given.next()).unwrap_or_default();
            match name.as_str() {
                "--exact" => read.exact = true,
                "--list" => read.list = true,
                "--ignored" => read.only_ignored = true,
                "--skip" => read.skip.push(value()),
                "--test-threads" => read.threads = value().parse().ok(),
                "--color" | "--format" | "--logfile" | "--shuffle-seed" | "-Z" => drop(value()),
                flag if flag.starts_with('-') => {}
                _ => read.names.push(name),
            }
        }
        read
    }

    fn choose(&self, name: &str) -> bool {
        let meets =
            |wanted: &String| if self.exact { name == wanted } else { name.contains(wanted.as_str()) };
        let wanted = self.names.is_empty() || self.names.iter().any(meets);
        wanted && !self.skip.iter().any(meets) && !self.only_ignored
    }
}

// === impl Tally ===

impl Tally {
    fn add(&mut self, name: &'static str, ended: thread::Result<Ran>) {
        match ended {
            Ok(Ok(())) => {
                self.passed += 1;
                println!("test {name} ... ok");
            }
            Ok(Err(NotRun(reason))) => {
                self.ignored += 1;
                println!("test {name} ... ignored, {reason}");
            }
            Err(_) => {
                self.failed.push(name);
                println!("test {name} ... FAILED");
            }
        }
    }

    fn print(mut self, filtered: usize, seconds: f64) -> ExitCode {
        self.failed.sort_unstable();
        if !self.failed.is_empty() {
            println!("\nfailures:\n    {}", self.failed.join("\n    "));
        }
        let Tally { passed, failed, ignored } = self;
        let (failed, word) = (failed.len(), if failed.is_empty() { "ok" } else { "FAILED" });
        println!(
            "\ntest result: {word}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; \
             {filtered} filtered out; finished in {seconds:.2}s\n"
        );
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
    }
}
