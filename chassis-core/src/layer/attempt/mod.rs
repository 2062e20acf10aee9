//! One attempt: its time limit, its metrics, and its own headers.
//!
//! The layer is below retry and balance. So the headers of an attempt (the caller, the number of previous
//! attempts, the remaining time, the trace) are written once per attempt, after retry has kept the original
//! headers.
mod rule;
mod service;

pub(crate) use self::{
    rule::{AttemptMetrics, rule},
    service::AttemptLayer,
};
