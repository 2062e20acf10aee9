//! `chassis-bench compare` including the heavy peers; the options are the same.
mod reqwest;
mod tower_resilience;
mod volo;

use std::process::ExitCode;

use chassis_bench::compare;

fn main() -> ExitCode {
    let mut peers = compare::sides::peers();
    peers.push(Box::new(volo::Volo));
    peers.push(Box::new(reqwest::Reqwest));
    peers.push(Box::new(tower_resilience::TowerResilience));
    match compare::run_with(lexopt::Parser::from_env(), peers) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chassis-bench-peers: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The return type of the methods of sides.
type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;
