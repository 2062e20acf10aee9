//! The part of a call's policy that a node needs.
use crate::{algorithm::circuit::CircuitConfig, types::FailureSet};

/// The rules by which a node admits and judges calls.
#[derive(Clone, Copy)]
pub(crate) struct NodeRules<'a> {
    /// The settings of its circuit; `None`: it has no circuit.
    pub(crate) breaker: Option<&'a CircuitConfig>,
    /// The limit of calls in flight at the node; `None`: no limit.
    pub(crate) concurrency: Option<u32>,
    /// The outcomes that count as its failures when it is picked.
    pub(crate) failures: &'a FailureSet,
}
