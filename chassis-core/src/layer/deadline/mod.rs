//! Enforces when a call is over: the deadline to the end of the body, `timeout` to its head.
//!
//! Route works both out; this is the one place that acts on them. Every wait, delay and backoff
//! below is dropped when the time is up, and whoever listens hears that it was. The part behind the
//! head is enforced by [`ReplyBody`](crate::call::ReplyBody), which knows when the body ends.
mod config;
mod rule;
mod service;

pub(crate) use self::rule::{TimeoutRule, TotalTimeoutRule};
pub use self::{
    config::{DEFAULT_INBOUND_TIMEOUT, DEFAULT_TIMEOUT},
    service::{Deadline, DeadlineFuture, DeadlineLayer},
};
