//! How one of several nodes is proposed; lock-free all of them.
use std::sync::Arc;

use crate::{
    call::Invocation,
    clock::Instant,
    cluster::{Connection, Node, NodeRules, Subset},
    random::Random,
};

/// Proposes a node. A proposal is not a promise: a node that does not let the call in is passed over,
/// and after a few proposals every node is asked in turn.
///
/// ```
/// use chassis_core::layer::balance::{Candidates, Picker};
///
/// /// Always the first that is available.
/// struct First;
///
/// impl Picker for First {
///     fn pick(&self, candidates: &Candidates<'_>) -> usize {
///         (0..candidates.nodes().len()).find(|i| candidates.is_available(*i)).unwrap_or(0)
///     }
/// }
/// ```
pub trait Picker: Send + Sync + 'static {
    /// An index into [`Candidates::nodes`], which is never empty.
    fn pick(&self, candidates: &Candidates<'_>) -> usize;
}

/// The nodes a call may go to, and what a picker may know of it.
pub struct Candidates<'a> {
    pub(super) nodes: &'a [Arc<Node>],
    pub(super) subset: &'a Subset,
    pub(super) call: &'a Invocation,
    pub(super) rules: NodeRules<'a>,
    pub(super) tried: &'a [Arc<Node>],
    pub(super) now: Instant,
    pub(super) panicking: bool,
    pub(super) random: &'a Random,
}

// === impl Candidates ===

impl Candidates<'_> {
    /// The nodes, in a fixed order.
    pub fn nodes(&self) -> &[Arc<Node>] {
        self.nodes
    }

    /// The call that is to be sent.
    pub fn call(&self) -> &Invocation {
        self.call
    }

    /// The time of this pick.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Randomness, the runtime's own.
    pub fn random(&self) -> &Random {
        self.random
    }

    /// An index drawn in proportion to the weights.
    pub fn draw(&self) -> usize {
        self.subset.draw(self.random)
    }

    /// The index whose turn it is in the round robin over these nodes; takes the turn.
    pub fn turn(&self) -> usize {
        self.subset.turn(self.random)
    }

    /// Ready, with room, its circuit willing, and not tried by this call before?
    pub fn is_available(&self, index: usize) -> bool {
        let node = &self.nodes[index];
        node.is_available(self.now, &self.rules, self.panicking) && !self.was_tried(node)
    }

    /// The same of one that was drawn: where nobody has called yet, a connection is wanted now.
    #[inline]
    pub(super) fn would_take(&self, node: &Arc<Node>) -> bool {
        if !node.is_ready() && node.connection() == Connection::Idle {
            node.wake();
        }
        node.is_ready() && node.has_room(self.now, &self.rules, self.panicking) && !self.was_tried(node)
    }

    pub(super) fn was_tried(&self, node: &Arc<Node>) -> bool {
        self.tried.iter().any(|tried| Arc::ptr_eq(tried, node))
    }
}
