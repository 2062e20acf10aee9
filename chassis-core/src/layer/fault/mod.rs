//! Injects faults: delays and aborts, for a share of the matching calls, until an end if one is set.
//!
//! At the `call` (the default) retries do not hide a fault, as in Envoy and gRPC. At the `attempt` retries and
//! the service's circuit judge it like the upstream's answer; it is not blamed on a node. For the caller of an
//! incoming call, an injected fault is an ordinary failure of this node, and the call may have been executed.
mod config;
mod rule;
mod service;

pub use self::{
    config::{Abort, At, Delay, DelayRange, FaultConfig, Until},
    rule::FaultView,
};
pub(crate) use self::{
    rule::{Fault, Faults, rules},
    service::FaultLayer,
};
