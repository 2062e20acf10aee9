//! The adapter with real etcd servers, as processes on loopback that each test starts.
//!
//! `scripts/setup` fetches etcd and sets `CHASSIS_PEER_ETCD`. Without it these tests are ignored, and `scripts/test`
//! counts them as not run.
#![allow(clippy::unwrap_used)]
#[path = "../../../../tests/interop/trials.rs"]
#[macro_use]
mod trials;

mod access;
mod center;
#[path = "../../../../chassis-http/tests/it/certificates.rs"]
mod certificates;
mod gaps;
mod outages;
mod registry;
mod server;

fn main() -> std::process::ExitCode {
    trials::run([access::trials(), center::trials(), gaps::trials(), outages::trials(), registry::trials()])
}
