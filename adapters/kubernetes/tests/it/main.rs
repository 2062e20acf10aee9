//! The adapter with a real API server of Kubernetes on a real etcd, on loopback; and with servers that answer as none
//! should.
//!
//! `scripts/setup` builds kube-apiserver and sets `CHASSIS_PEER_KUBE_APISERVER`. Without it these tests are ignored, and
//! `scripts/test` counts them as not run.
#![allow(clippy::unwrap_used)]
#[path = "../../../../tests/interop/trials.rs"]
#[macro_use]
mod trials;

mod access;
mod center;
#[path = "../../../../chassis-http/tests/it/certificates.rs"]
mod certificates;
mod contract;
#[path = "../../../etcd/tests/it/server.rs"]
mod etcd;
mod gaps;
mod held;
mod labels;
mod registry;
mod rude;
mod server;

fn main() -> std::process::ExitCode {
    let ended = trials::run([
        access::trials(),
        center::trials(),
        contract::trials(),
        gaps::trials(),
        held::trials(),
        labels::trials(),
        registry::trials(),
        rude::trials(),
    ]);
    server::stop();
    ended
}
