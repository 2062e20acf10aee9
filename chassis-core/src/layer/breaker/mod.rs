//! Stops calling what keeps failing, and finds out with a few probes when it works again.
//!
//! A circuit guards a service, or each operation of it, here; at the scope `endpoint` every node has
//! one, and a node with an open circuit is not picked (see `balance`). What is refused locally or
//! cancelled counts for nothing, and gives a probe's place back. So does what failed at a node that fails
//! while most others of the service don't: picks pass over that node, the service goes on without it.
mod rule;
mod service;

pub(crate) use self::rule::BreakerRule;
pub use self::{
    rule::{Cell, CircuitView, Guard},
    service::{Breaker, BreakerLayer},
};
pub use crate::{
    algorithm::circuit::{
        Admission, BreakerConfig, BreakerPatch, Circuit, CircuitFigures, Force, Refused, Scope, State, Token,
        Transition,
    },
    types::{Ended, FailureSet},
};
