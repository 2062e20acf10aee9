//! `chassis-bench drive`: calls a service through chassis, from a number of callers (closed loop) or at a
//! rate (open loop), and reports the outcome of every call.
//!
//! In the open loop calls are due at fixed times, regardless of earlier ones, and latencies count from the
//! time when a call was due: a stall is visible in all calls that it delayed (no coordinated omission).
mod call;
mod load;
mod outcome;
mod report;

use std::{path::PathBuf, time::Duration};

use chassis::{
    Chassis,
    units::{Rate, Span},
};
use lexopt::prelude::*;

#[cfg(feature = "registries")]
pub(crate) use self::call::Caller;
pub use self::{
    call::{Operation, Protocol},
    load::{Drive, Load},
    outcome::{Class, Outcome},
    report::{Latencies, Report, Slot},
};
use crate::{Result, echo};

/// The calls to make, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The called service.
    pub to: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The operation.
    pub operation: Operation,
    /// At a rate or from a number of callers.
    pub load: Load,
    /// Period in which calls are started.
    pub time: Duration,
    /// Timeout up to the end of the answer, sent with the call. Default none: only the settings apply.
    pub timeout: Option<Duration>,
    /// Calls may be executed twice without harm.
    pub idempotent: bool,
    /// Headers of every call.
    pub headers: Vec<(String, String)>,
    /// Bytes of a message.
    pub payload: usize,
    /// Messages of a stream.
    pub repeat: u32,
}

const USAGE: &str = "\
chassis-bench drive --to N --config FILE --protocol grpc|http (--rate R | --concurrency C) [options]

  --to N              the service to call
  --config FILE       the caller's settings: chassis.yaml, TOML or JSON
  --protocol P        grpc or http
  --operation O       Call, Download, Upload or Chat; over http also Get; default Call
  --rate R            calls are due at this rate, as in 500/s, whatever became of earlier ones
  --concurrency C     so many callers, each calling again once it was answered
  --seconds S         how long calls are begun; default 10
  --timeout T         of a call to the end of its answer, sent along; default as the settings say
  --idempotent        calls may be executed twice without harm
  --header K=V        put on every call; any number of them
  --payload BYTES     in a message; default 128
  --repeat N          messages of a stream; default 10
  --timeline          report every 100 ms separately
  --json              one document, for machines
";

/// Runs the subcommand.
pub fn run(mut args: lexopt::Parser) -> Result {
    let mut options = Options::default();
    let (mut config, mut load, mut json, mut timeline) = (PathBuf::new(), None, false, false);
    while let Some(arg) = args.next()? {
        match arg {
            Long("to") => options.to = args.value()?.string()?,
            Long("config") => config = args.value()?.into(),
            Long("protocol") => options.protocol = args.value()?.parse()?,
            Long("operation") => options.operation = args.value()?.parse()?,
            Long("rate") => load = Some(Load::Open { rate: rate(&args.value()?.string()?)? }),
            Long("concurrency") => load = Some(Load::Closed { callers: args.value()?.parse()? }),
            Long("seconds") => options.time = Duration::try_from_secs_f64(args.value()?.parse()?)?,
            Long("timeout") => options.timeout = Some(args.value()?.parse::<Span>()?.0),
            Long("idempotent") => options.idempotent = true,
            Long("header") => options.headers.push(header(&args.value()?.string()?)?),
            Long("payload") => options.payload = args.value()?.parse()?,
            Long("repeat") => options.repeat = args.value()?.parse()?,
            Long("timeline") => timeline = true,
            Long("json") => json = true,
            Long("help") | Short('h') => {
                print!("{USAGE}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if options.to.is_empty() || config.as_os_str().is_empty() {
        return Err(format!("--to and --config are needed\n\n{USAGE}").into());
    }
    options.load = load.ok_or_else(|| format!("either --rate or --concurrency is needed\n\n{USAGE}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let builder = Chassis::builder("drive").config_file(config).descriptors(echo::FILE_DESCRIPTOR_SET);
        let app = builder.build().await?;
        let mut report = Drive::new(&app, options)?.run().await;
        if !timeline {
            report.timeline.clear();
        }
        match json {
            true => println!("{}", serde_json::to_string_pretty(&report)?),
            false => print!("{report}"),
        }
        Ok(())
    })
}

fn rate(text: &str) -> Result<f64> {
    match text.parse::<f64>() {
        Ok(hertz) if hertz > 0.0 && hertz.is_finite() => Ok(hertz),
        _ => Ok(text.parse::<Rate>()?.hertz()),
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or_else(|| format!("`{text}` is no header; write x-tenant=a"))?;
    Ok((pair.0.to_ascii_lowercase(), pair.1.to_owned()))
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Options {
            to: String::new(),
            protocol: Protocol::Grpc,
            operation: Operation::Call,
            load: Load::Closed { callers: 1 },
            time: Duration::from_secs(10),
            timeout: None,
            idempotent: false,
            headers: Vec::new(),
            payload: 128,
            repeat: 10,
        }
    }
}
