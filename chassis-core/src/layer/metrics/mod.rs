//! Counts calls and attempts and measures their duration, through handles that are resolved beforehand.
//!
//! It only registers listeners: a call's duration includes its body.
mod recorder;
mod rule;
mod service;

pub(crate) use self::{recorder::CallMetrics, rule::rule, service::MetricsLayer};
