//! Counts calls and attempts and measures how long they took, through handles resolved ahead.
//!
//! It only registers listeners: the duration of a call is that to the end of its body.
mod rule;
mod service;

pub(crate) use self::rule::rule;
pub use self::service::{Metrics, MetricsLayer};
