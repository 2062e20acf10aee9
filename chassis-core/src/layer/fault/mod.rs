//! Injects faults: delays and aborts, for a share of the calls that match, until a time if one is set.
//!
//! At the `call` (the default) a fault is not hidden by retries, as in Envoy and gRPC. At the
//! `attempt` it is judged like the upstream's answer, by retries and by the service's circuit; it
//! blames no node. What is injected into calls that come in is for their caller a failure like any other of
//! this node, which may have been executed.
mod config;
mod rule;
mod service;

pub(crate) use self::rule::rules;
pub use self::{
    config::{Abort, At, Delay, DelayRange, FaultConfig, Until},
    rule::{Fault, Faults},
    service::{FaultLayer, InjectFault},
};
