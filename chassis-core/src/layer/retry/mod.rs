//! Tries again where that is safe and may help: at another node, after a pause, within a budget.
//!
//! What provably never left is resent once, free of budget. Everything else is retried only if its
//! settings say so for how it ended, and if executing it twice does no harm (`when`). The first frame
//! of an answer is looked at if it is already there, never waited for.
//!
//! An answer may say when to come back (`Retry-After`, `grpc-retry-pushback-ms`). That holds for the node that
//! says so: where another one is available, the call goes there after a pause of its own. Else it waits as
//! long, and a little longer by chance; for more than 30 seconds, or than it has time, it does not wait.
mod backoff;
mod budget;
mod config;
mod owned;
mod rule;
mod service;

pub(crate) use self::rule::{Idempotent, IdempotentRule, RetryRule};
pub use self::{
    budget::Budget,
    config::{BudgetConfig, BudgetPatch, RetryConfig, RetryPatch, When},
    rule::Retries,
    service::{Retry, RetryFuture, RetryLayer},
};
