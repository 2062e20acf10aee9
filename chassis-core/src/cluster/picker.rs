//! The interface of pickers: how one of several nodes is proposed, and what a proposal may depend on.
use std::sync::Arc;

use super::{Connection, Node, NodeRules, Subset};
use crate::{
    algorithm::HashKey,
    clock::Instant,
    random::Random,
    types::{LabelSet, matching::Subject},
};

/// Proposes a node. A node that does not admit the call is passed over, and after four proposals the layer asks
/// every node in turn.
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
    /// An index into [`Candidates::nodes`], which is never empty. An index beyond the end means the last node.
    fn pick(&self, candidates: &Candidates<'_>) -> usize;
}

/// The nodes that a call may go to, and the parts of the call that a picker may depend on.
///
/// It holds a [`Subject`] and no call, so that pickers can also serve traffic that consists of no calls.
pub struct Candidates<'a> {
    pub(crate) subset: &'a Subset,
    pub(crate) subject: Subject<'a>,
    pub(crate) labels: Option<&'a LabelSet>,
    pub(crate) hash_key: Option<HashKey>,
    pub(crate) tried: &'a [Arc<Node>],
    pub(crate) rules: NodeRules<'a>,
    pub(crate) now: Instant,
    /// Circuits are ignored, because too many are open.
    pub(crate) panicking: bool,
    pub(crate) random: &'a Random,
}

// === impl Candidates ===

impl<'a> Candidates<'a> {
    /// The nodes, in a fixed order.
    pub fn nodes(&self) -> &'a [Arc<Node>] {
        self.subset.nodes()
    }

    /// Target, method, path and headers of the call.
    pub fn subject(&self) -> &Subject<'a> {
        &self.subject
    }

    /// The labels that the call's route or its caller chose; `None` if neither did. If no node has them, the nodes
    /// are those of the rule's fallback.
    pub fn labels(&self) -> Option<&'a LabelSet> {
        self.labels
    }

    /// The caller's key for pickers that hash: [`CallOptions::hash_key`](crate::CallOptions::hash_key).
    pub fn hash_key(&self) -> Option<HashKey> {
        self.hash_key
    }

    /// The nodes that earlier attempts at the same call went to.
    pub fn tried(&self) -> &'a [Arc<Node>] {
        self.tried
    }

    /// The time of this pick.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The runtime's source of randomness.
    pub fn random(&self) -> &'a Random {
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

    /// Is the node ready, with room for the call, its circuit not open, and not tried by this call before?
    pub fn is_available(&self, index: usize) -> bool {
        let node = &self.nodes()[index];
        node.is_available(self.now, &self.rules, self.panicking) && !self.was_tried(node)
    }

    /// The same of a node that was drawn: an idle one also starts to connect.
    #[inline]
    pub(crate) fn would_take(&self, node: &Arc<Node>) -> bool {
        if !node.is_ready() && node.connection() == Connection::Idle {
            node.wake();
        }
        node.is_ready() && node.has_room(self.now, &self.rules, self.panicking) && !self.was_tried(node)
    }

    #[inline]
    pub(crate) fn was_tried(&self, node: &Arc<Node>) -> bool {
        self.tried.iter().any(|tried| Arc::ptr_eq(tried, node))
    }
}
