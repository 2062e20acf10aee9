//! The adapter with a service center on loopback that each test starts for itself.
//!
//! It is a stand-in, for the real one can't be had everywhere. `scripts/setup` builds a program over go-chassis and its
//! client library, which judges the stand-in and the adapter, and sets `CHASSIS_PEER_GO_CHASSIS`. Without it these tests
//! are ignored, and `scripts/test` counts them as not run.
#![allow(clippy::unwrap_used)]
#[path = "../../../../tests/interop/trials.rs"]
#[macro_use]
mod trials;

mod access;
mod center;
#[path = "../../../../chassis-http/tests/it/certificates.rs"]
mod certificates;
mod contracts;
mod go_chassis;
mod host;
mod kie;
mod kie_client;
mod kie_server;
mod outages;
mod quota;
mod registry;
mod tls;
#[path = "../../../../chassis-http/tests/it/tls_front.rs"]
mod tls_front;

fn main() -> std::process::ExitCode {
    trials::run([
        access::trials(),
        contracts::trials(),
        go_chassis::trials(),
        kie::trials(),
        kie_client::trials(),
        outages::trials(),
        quota::trials(),
        registry::trials(),
        tls::trials(),
    ])
}
