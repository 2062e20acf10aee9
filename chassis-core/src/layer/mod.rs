//! The concerns of the pipeline, one module each: the settings, the layer, the service, the algorithm. Their
//! order, with the reasons, is in [`pipeline`](crate::pipeline).
//!
//! Layers read their rules from `call.policy`, which the route layer sets; they hold no settings and no state
//! of their own, are always ready, and decide in `call`.
//!
//! A folder spans two floors: settings and rules are below the policy, services above the call.
pub(crate) mod attempt;
pub mod balance;
pub mod breaker;
pub mod concurrency;
pub(crate) mod context;
pub(crate) mod deadline;
pub mod fallback;
pub mod fault;
pub mod message_limits;
pub(crate) mod metrics;
pub mod own;
pub mod panic;
pub mod rate_limit;
pub mod retry;
pub mod route;
mod service;
pub(crate) mod trace;

pub(crate) use self::service::{MaybeBoxed, forward_ready, plain_layer};
