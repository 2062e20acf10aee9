//! Bounds how many calls are under way at once (a bulkhead): more are refused, none is queued.
//!
//! A permit is held to the end of the body. The scope `endpoint` is enforced where a node is picked:
//! a full node is not picked, and only when all are full the call is refused.
mod config;
mod gauge;
mod rule;
mod service;

pub(crate) use self::rule::ConcurrencyRule;
pub use self::{
    config::{ConcurrencyConfig, Scope},
    gauge::Gauge,
    rule::{Bound, ConcurrencyView},
    service::{Concurrency, ConcurrencyLayer},
};
