//! Three processes read their settings from a config center. A push moves a split, a bad push is refused, and a rollback
//! puts the first version in force again, all of it under load.
//!
//! ```text
//! cargo run --example config_center --features etcd,ttl              over chassis' own server, which it starts
//! cargo run --example config_center --features etcd,ttl -- --etcd 127.0.0.1:2379     over an etcd that runs there
//! ```
//!
//! It takes a few seconds; the exit status says whether all checks passed.
//!
//! - `center`: where the settings stand, and how they are pushed;
//! - `services`: the processes, `orders` and two of `stock`, written as in any project;
//! - `processes`: starts this program again for each of them, and ends them;
//! - `story`: the pushes, and the checks.
mod center;
mod processes;
mod services;
mod story;

use std::process::ExitCode;

use crate::{center::Center, processes::Processes};

/// Any error ends the example with its message.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The address of etcd where none is given.
const ETCD: &str = "127.0.0.1:2379";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ended = match words[..] {
        [] => play(Center::ttl().await).await,
        ["--etcd"] => play(Center::etcd(ETCD).await).await,
        ["--etcd", address] => play(Center::etcd(address).await).await,
        ["orders", settings] => processes::as_child(services::orders(settings)).await,
        ["stock", track, settings] => processes::as_child(services::stock(track, settings)).await,
        _ => Err("usage: config_center [--etcd [HOST:PORT]]".into()),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("config_center: {error}");
        ExitCode::FAILURE
    })
}

async fn play(center: Result<Center, BoxError>) -> Result<ExitCode, BoxError> {
    let center = center?;
    let mut processes = Processes::new();
    let ended = tokio::select! {
        ended = story::run(&center, &mut processes) => ended,
        _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(130)),
    };
    processes.end().await;
    center.end().await;
    ended
}
