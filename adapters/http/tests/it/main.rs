//! The adapter against an HTTP server that does all that its documentation asks for, and against servers that do not.
#![allow(clippy::unwrap_used)]
mod center;
#[path = "../../../../chassis-http/tests/it/certificates.rs"]
mod certificates;
mod rude;
mod server;
mod tls;
#[path = "../../../../chassis-http/tests/it/tls_front.rs"]
mod tls_front;
