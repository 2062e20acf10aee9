//! Retries calls where that is safe and may help: at another node, after a pause, within a budget.
//!
//! A call that provably was not sent is resent once, outside the budget. Any other call is retried only if its
//! settings allow that for its outcome, and if a second execution is harmless (`when`). The first frame of an
//! answer is read if it is already available; retry does not wait for it.
//!
//! An answer may request a delay (`Retry-After`, `grpc-retry-pushback-ms`). The delay is for the node that
//! requested it: if another one is available, the call goes there after the usual pause. Otherwise it waits for
//! the delay plus some jitter. It is not retried if the delay exceeds 30 seconds or its remaining time.
mod backoff;
mod budget;
mod config;
mod owned;
mod rule;
mod service;

pub(crate) use self::{
    budget::Budget,
    rule::{Idempotent, IdempotentRule, Retries, RetryRule},
    service::RetryLayer,
};
pub use self::{
    config::{BudgetConfig, BudgetPatch, RetryConfig, RetryPatch, When},
    rule::BudgetView,
};
