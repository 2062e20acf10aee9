//! The interface of pickers: how one of several nodes is proposed, and what a proposal may depend on.
use std::sync::Arc;

use super::{Connection, Node, NodeRules, Subset, Tiers};
use crate::{
    algorithm::HashKey,
    clock::Instant,
    random::Random,
    types::{LabelSet, matching::Subject},
};

/// Proposes a node. A node that does not admit the call is skipped, and after four proposals the layer asks
/// every node in turn.
///
/// ```
/// use chassis_core::layer::balance::{Candidates, Picker};
///
/// /// Always picks the first available node.
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

/// Builds pickers that need to prepare something from the nodes: a hash ring, a table, running sums of weights.
///
/// A picker is built for each *subset*: the nodes of one service over one protocol that a call may go to, which are all
/// of them or those with the labels that a route or the caller chose; if instances have several priorities, those of each
/// one. It is built once, by the first call that needs
/// it, and lives until the subset or the settings of the factory change. When nodes join or leave, or an instance
/// changes, the pickers that are in use are built anew before the first call sees the new nodes. Other settings
/// change nothing. So `pick` computes nothing that `build` could.
///
/// The history of a node, such as its latency and its calls in flight, belongs to the [`Node`] and survives.
/// A picker may keep state of its own; state that a new picker has to go on with belongs to the factory.
///
/// At most 256 label sets of a service are kept at a time. A subset beyond has no picker: its nodes are drawn in
/// proportion to their weights. So are those of a subset whose `build` panicked, which is logged.
///
/// ```
/// use std::sync::Arc;
///
/// use chassis_core::{
///     HashKey,
///     layer::balance::{Candidates, Picker, PickerFactory, Subset},
/// };
///
/// /// Sends each value of the header `x-user` to a node of its own. If a node leaves, only its users move.
/// struct ByUser;
///
/// /// The points of the nodes on a circle, in order, each with the index of its node.
/// struct Ring(Vec<(u32, usize)>);
///
/// impl PickerFactory for ByUser {
///     fn build(&self, subset: &Subset) -> Arc<dyn Picker> {
///         let points = subset.nodes().iter().enumerate().flat_map(|(index, node)| {
///             (0..100).map(move |n| (HashKey::of(format!("{}-{n}", node.id())).get(), index))
///         });
///         let mut ring: Vec<_> = points.collect();
///         ring.sort_unstable();
///         Arc::new(Ring(ring))
///     }
/// }
///
/// impl Picker for Ring {
///     fn pick(&self, candidates: &Candidates<'_>) -> usize {
///         let Some(user) = candidates.subject().metadata.get("x-user") else { return candidates.draw() };
///         let key = HashKey::of(user).get();
///         let (before, after) = self.0.split_at(self.0.partition_point(|(point, _)| *point < key));
///         let mut nodes = after.iter().chain(before).map(|(_, index)| *index);
///         nodes.find(|index| candidates.is_available(*index)).unwrap_or_else(|| candidates.draw())
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    note = "a `Picker` is a `PickerFactory` if it implements `Clone`, or in an `Arc`"
)]
pub trait PickerFactory: Send + Sync + 'static {
    /// Builds the picker of `subset`, which has at least one node. The picker sees the same nodes, in the same order.
    fn build(&self, subset: &Subset) -> Arc<dyn Picker>;

    /// The picker of all subsets, if there is nothing to prepare; then [`build`](Self::build) is not called. Default
    /// `None`. Every picker that can be cloned is such a factory: its clones have to share the state that they keep.
    fn shared(&self) -> Option<Arc<dyn Picker>> {
        None
    }
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
    /// The nodes of all priorities, if there are several, and the position of the subset among them.
    pub(crate) tiers: Option<(&'a Tiers, usize)>,
    pub(crate) random: &'a Random,
}

// === impl Candidates ===

impl<'a> Candidates<'a> {
    /// The nodes, in a fixed order. If instances have several priorities, all nodes are of one, which was chosen for this
    /// call.
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

    /// Whether the node is ready and has room for the call, its circuit is not open, and this call did not try
    /// it before.
    pub fn is_available(&self, index: usize) -> bool {
        let node = &self.nodes()[index];
        node.is_available(self.now, &self.rules, self.panicking) && !self.was_tried(node)
    }

    /// The same for a node that was drawn: if it is idle, it starts to connect.
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

// === impl Picker ===

impl<P: Picker + ?Sized> Picker for Arc<P> {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        (**self).pick(candidates)
    }
}

// === impl PickerFactory ===

impl<P: Picker + Clone> PickerFactory for P {
    fn build(&self, _: &Subset) -> Arc<dyn Picker> {
        Arc::new(self.clone())
    }

    fn shared(&self) -> Option<Arc<dyn Picker>> {
        Some(Arc::new(self.clone()))
    }
}
