//! Bounds the number of concurrent calls (a bulkhead): further calls are refused, none is queued.
//!
//! A permit is held to the end of the body. The scope `endpoint` is enforced where a node is picked: a full
//! node is not picked, and the call is refused only if all nodes are full.
mod config;
mod gauge;
mod rule;
mod service;

pub use self::{
    config::{ConcurrencyConfig, Scope},
    rule::ConcurrencyView,
};
pub(crate) use self::{
    gauge::Gauge,
    rule::{Bound, ConcurrencyRule},
    service::ConcurrencyLayer,
};
