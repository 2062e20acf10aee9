//! One attempt: its time bound, its figures, and the headers that are its own.
//!
//! It stands below retry and balance, so that what it writes - who calls, how often was tried before, what is
//! left of the deadline, the trace - is written once per attempt, after retry has kept the headers.
mod rule;
mod service;

pub(crate) use self::rule::{AttemptMetrics, rule};
pub use self::service::{Attempt, AttemptFuture, AttemptLayer};
