//! The adapter with real agents of Consul, as processes on loopback that each test starts for itself; and with servers
//! that answer as no agent should.
//!
//! `scripts/setup` builds Consul and sets `CHASSIS_PEER_CONSUL`. Without it these tests are ignored, and `scripts/test`
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
mod rude;
mod server;

fn main() -> std::process::ExitCode {
    trials::run([
        access::trials(),
        center::trials(),
        gaps::trials(),
        outages::trials(),
        registry::trials(),
        rude::trials(),
    ])
}
