//! A shop of six processes under load. Meanwhile settings change, one process is killed, one joins, and one
//! stops.
//!
//! ```text
//! cargo run --example quickstart              about 20 s; the exit status says whether all checks passed
//! cargo run --example quickstart -- --serve   keeps the shop running, and prints commands to try
//! ```
//!
//! - `shop`: the two services, `orders` (REST) and `stock` (gRPC), written as in any project;
//! - `settings`: their `chassis.yaml`;
//! - `processes`: starts this program again for each of them, and ends them;
//! - `load`: calls at a steady rate; `watch`: the inspection of `orders`; `table`: shows it;
//! - `story`: the actions and their times; `verdict`: the checks.
mod load;
mod processes;
mod settings;
mod shop;
mod story;
mod table;
mod verdict;
mod watch;

use std::process::ExitCode;

use chassis::Chassis;
use tokio::signal::unix::{SignalKind, signal};

use crate::processes::Processes;

/// Any error ends the quickstart with its message.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ended = match words[..] {
        [] => drive(false).await,
        ["--serve"] => drive(true).await,
        ["orders"] => as_child(shop::orders()).await,
        ["stock", id, manner] => match manner.parse() {
            Ok(manner) => as_child(shop::stock(id, manner)).await,
            Err(error) => Err(error),
        },
        _ => Err("usage: quickstart [--serve]".into()),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("quickstart: {error}");
        ExitCode::FAILURE
    })
}

/// One of the shop's processes.
async fn as_child(service: impl Future<Output = chassis::Result>) -> Result<ExitCode, BoxError> {
    processes::end_with_parent();
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    service.await?;
    Ok(ExitCode::SUCCESS)
}

/// The process that starts the others, calls them and watches them.
async fn drive(serve: bool) -> Result<ExitCode, BoxError> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut processes = Processes::new()?;
    let played = tokio::select! {
        played = play(&mut processes, serve) => played,
        _ = int.recv() => Ok(if serve { ExitCode::SUCCESS } else { ExitCode::from(130) }),
        _ = term.recv() => Ok(ExitCode::from(143)),
    };
    if !matches!(played, Ok(code) if code == ExitCode::SUCCESS) {
        processes.print_logs();
    }
    processes.end().await;
    played
}

async fn play(processes: &mut Processes, serve: bool) -> Result<ExitCode, BoxError> {
    settings::write(processes.dir(), settings::BEFORE)?;
    let app = Chassis::builder("driver").config_file(settings::write_driver(processes.dir())?);
    let app = app.environment(Default::default()).build().await?;
    story::open(processes, &app).await?;
    match serve {
        true => story::keep_open(processes, &app).await,
        false => {
            let record = story::run(processes, &app).await?;
            Ok(verdict::of(&record).print())
        }
    }
}
