//! Carries W3C trace context in and out, and opens a span for each call and each attempt.
//!
//! A trace that came in goes on; a new one is begun only for the sampled share of calls, so that calls
//! nobody traces carry no header.
mod service;

pub(crate) use self::service::attempt_span;
pub use self::service::{Trace, TraceFuture, TraceLayer};
