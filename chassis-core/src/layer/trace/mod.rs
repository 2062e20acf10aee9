//! Passes W3C trace context on, and opens a span for each call and each attempt.
//!
//! An incoming trace is continued; a new one is only begun for the sampled share of calls, so that other calls
//! carry no header.
mod service;

pub(crate) use self::service::{TraceLayer, attempt_span};
