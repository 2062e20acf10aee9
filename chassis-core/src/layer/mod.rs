//! The concerns of the pipeline, one entry each: what people write, the layer, the service, the
//! algorithm. In which order they stand, and why, is in [`pipeline`](crate::pipeline).
//!
//! All of them take what they need from `call.policy`, which the route layer stamps; they hold no
//! settings and no state of their own, are always ready, and decide in `call`.
//!
//! A folder spans two floors: settings and rules stand below the policy, services above the call.
pub mod attempt;
pub mod balance;
pub mod breaker;
pub mod concurrency;
pub mod context;
pub mod deadline;
pub mod fallback;
pub mod fault;
pub mod message_limits;
pub mod metrics;
pub mod own;
pub mod panic;
pub mod rate_limit;
pub mod retry;
pub mod route;
mod service;
pub mod trace;

pub use self::service::Decided;
pub(crate) use self::service::{forward_ready, plain_layer};
