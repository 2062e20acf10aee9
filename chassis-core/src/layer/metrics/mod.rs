//! Counts calls and attempts and measures how long they took, through handles resolved ahead.
//!
//! It only registers listeners: the duration of a call is that to the end of its body.
mod recorder;
mod rule;
mod service;

pub use self::service::{Metrics, MetricsLayer};
pub(crate) use self::{recorder::CallMetrics, rule::rule};
