//! The registry `dns` with a real server, Knot, as a process on loopback that each test starts for itself; and with
//! servers that break the rules.
//!
//! `scripts/setup` unpacks Knot and sets `CHASSIS_PEER_DNS`. Without it the tests with it are ignored, and
//! `scripts/test` counts them as not run.
#![allow(clippy::unwrap_used)]
#[path = "../../../tests/interop/trials.rs"]
#[macro_use]
mod trials;

mod knot;
mod records;
mod rude;

fn main() -> std::process::ExitCode {
    trials::run([records::trials(), rude::trials()])
}
