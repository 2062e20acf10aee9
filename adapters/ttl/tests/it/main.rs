//! The registry with real servers on loopback, each on a thread of its own that can be ended or blocked at once.
#![allow(clippy::unwrap_used)]
#[path = "../../../../chassis-http/tests/it/certificates.rs"]
mod certificates;
mod contracts;
mod outages;
mod process;
mod registry;
mod rude;
mod settings;
mod tls;
#[path = "../../../../chassis-http/tests/it/tls_front.rs"]
mod tls_front;
