//! Stops calling a service that keeps failing, and tests it with a few probes before it is called again.
//!
//! Here a circuit guards a service, or each of its operations; at the scope `endpoint` every node has a
//! circuit, and a node with an open circuit is not picked (see `balance`). Calls that are refused locally or
//! cancelled do not count, and free a probe's place. The same holds for failures of a node that fails while
//! most other nodes of the service do not: the picker avoids that node, and the service continues without it.
mod config;
mod rule;
mod service;

pub use self::{
    config::{BreakerConfig, BreakerPatch, Scope},
    rule::CircuitView,
};
pub(crate) use self::{
    rule::{BreakerRule, Cell, Guard},
    service::BreakerLayer,
};
pub(crate) use crate::algorithm::circuit::{
    Admission, Circuit, CircuitConfig, CircuitFigures, Refused, Token, Transition,
};
pub use crate::{
    algorithm::circuit::{Force, State},
    types::FailureSet,
};
