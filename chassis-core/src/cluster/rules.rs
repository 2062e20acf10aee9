//! The rules that a node needs, of all those that a call lives under.
use crate::{algorithm::circuit::CircuitConfig, types::FailureSet};

/// The rules that a node admits calls by, and that it judges them by.
#[derive(Clone, Copy)]
pub(crate) struct NodeRules<'a> {
    /// The settings of its circuit; `None`: no circuit guards it.
    pub(crate) breaker: Option<&'a CircuitConfig>,
    /// The most calls that may be under way at it; `None`: no bound.
    pub(crate) concurrency: Option<u32>,
    /// The outcomes that count as its failures when it is picked.
    pub(crate) failures: &'a FailureSet,
}
