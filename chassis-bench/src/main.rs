//! `chassis-bench <what> [options]`.
use std::process::ExitCode;

use chassis_bench::{Result, behaviour, compare, drive, layers, memory, serve};

const USAGE: &str = "\
chassis-bench measures what chassis costs and how it behaves.

  serve      a service whose behaviour can be changed while it runs
  drive      calls to a service, at a rate or from a number of callers
  behaviour  what callers see when something is wrong
  layers     instructions, allocations and nanoseconds a call, by layer
  compare    time and CPU against peers, in interleaved slices
  memory     bytes by endpoint, connection, key and operation
  registry   a registry server of chassis' own, as a process; with the cargo feature `registries`

`chassis-bench <what> --help` lists the options.
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chassis-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result {
    let mut args = lexopt::Parser::from_env();
    match args.next()? {
        Some(lexopt::Arg::Value(what)) => match what.to_str() {
            Some("serve") => serve::run(args),
            Some("drive") => drive::run(args),
            Some("layers") => layers::run(args),
            Some("compare") => compare::run(args),
            Some("behaviour") => behaviour::run(args),
            Some("memory") => memory::run(args),
            #[cfg(feature = "registries")]
            Some("registry") => chassis_bench::registry::run(args),
            _ => Err(format!("there is no `{}`\n\n{USAGE}", what.display()).into()),
        },
        Some(lexopt::Arg::Long("help") | lexopt::Arg::Short('h')) => {
            print!("{USAGE}");
            Ok(())
        }
        Some(other) => Err(other.unexpected().into()),
        None => Err(USAGE.into()),
    }
}
