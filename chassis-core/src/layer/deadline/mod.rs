//! Enforces the deadline to the end of the body, and `timeout` to the head.
//!
//! Route computes both; only this layer acts on them. When the time is up, every wait, delay and backoff below
//! is dropped, and the listeners are notified. [`ReplyBody`](crate::call::ReplyBody) enforces the deadline of
//! the part after the head, because it knows when the body ends.
mod config;
mod rule;
mod service;

pub(crate) use self::{
    config::{DEFAULT_INBOUND_TIMEOUT, DEFAULT_TIMEOUT},
    rule::{TimeoutRule, TotalTimeoutRule},
    service::DeadlineLayer,
};
