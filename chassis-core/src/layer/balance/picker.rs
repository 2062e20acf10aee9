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

/// Each in turn, as often as its weight says: `round_robin`. Even over time, blind to load.
///
/// Every subset of a service that routes choose has turns of its own, over each protocol; settings and members
/// that change do not begin them anew. A node that can't take the call loses its turn to the next. Only first
/// attempts take turns: further ones go to any other node, in proportion to the weights.
#[derive(Debug, Default)]
pub struct RoundRobin;

/// Any, in proportion to the weights: `random`.
#[derive(Debug, Default)]
pub struct RandomPicker;

/// The less loaded of two drawn at random: `p2c`, the default.
///
/// Load is what is in flight, to the end of the bodies. A node that fails fast must not look free: a node
/// whose calls mostly fail is passed over for one whose calls don't, and failures weigh. Nor must one that
/// refuses fast: an answer without success counts as in flight for as long as successes take.
///
/// After Mitzenmacher's power of two choices; the order, state before load, is Finagle's.
///
/// Where weights differ, the first is drawn in proportion to them, and the other one is taken if it would have
/// less load for its weight even with the call and with two calls less at the first: so shares are those of
/// the weights with one caller and with many, unless a node can't keep up with its share.
#[derive(Debug, Default)]
pub struct P2c;

/// Turns that one pick takes while the nodes whose turns they are can't take the call.
const MOST_TURNS: usize = 16;

/// Calls that a node of another weight may have above the share that its weight gives it. A light node has a
/// fraction of a call at a time on average: without slack each call there would count as too many.
const SLACK: f64 = 2.0;

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
    fn would_take(&self, node: &Arc<Node>) -> bool {
        if !node.is_ready() && node.connection() == Connection::Idle {
            node.wake();
        }
        node.is_ready() && node.has_room(self.now, &self.rules, self.panicking) && !self.was_tried(node)
    }

    /// Has the second of two nodes less load than the first, for its weight?
    #[inline]
    fn prefers_second(&self, a: usize, b: usize) -> bool {
        let (one, other) = (self.nodes[a].load(), self.nodes[b].load());
        if !(one.is_plain() && other.is_plain()) {
            return self.prefers_second_of_failing(a, b);
        }
        let (of_one, of_other) = (one.in_flight(), other.in_flight());
        match self.subset.weights_of(a, b) {
            None => of_other < of_one,
            Some(weights) => is_lighter(f64::from(of_other) + 1.0, f64::from(of_one) + 1.0, weights),
        }
    }

    /// The same where calls to one of them fail, or end sooner than they should. Not inlined: few picks come here.
    #[cold]
    fn prefers_second_of_failing(&self, a: usize, b: usize) -> bool {
        let (one, other) = (self.nodes[a].load(), self.nodes[b].load());
        match (one.is_failing(self.now), other.is_failing(self.now)) {
            (true, false) => true,
            (false, true) => false,
            _ => {
                let (of_one, of_other) = (one.cost(self.now), other.cost(self.now));
                match self.subset.weights_of(a, b) {
                    None => of_other < of_one,
                    Some(weights) => is_lighter(of_other, of_one, weights),
                }
            }
        }
    }

    pub(super) fn was_tried(&self, node: &Arc<Node>) -> bool {
        self.tried.iter().any(|tried| Arc::ptr_eq(tried, node))
    }
}

/// Has `other` less load for its weight than `one`, even with one more call? Both are costs of one more call.
fn is_lighter(other: f64, one: f64, (of_one, of_other): (f64, f64)) -> bool {
    other * of_one < (one - 1.0 - SLACK) * of_other
}

// === the pickers ===

impl Picker for RoundRobin {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        let is_first = candidates.tried.is_empty();
        let next = || if is_first { candidates.turn() } else { candidates.draw() };
        let mut index = next();
        for _ in 1..MOST_TURNS.min(candidates.nodes.len()) {
            if candidates.would_take(&candidates.nodes[index]) {
                break;
            }
            index = next();
        }
        index
    }
}

impl Picker for RandomPicker {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        candidates.draw()
    }
}

impl Picker for P2c {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        let count = candidates.nodes.len();
        if count == 1 {
            return 0;
        }
        let (a, b) = candidates.subset.draw_two(candidates.random);
        let (one, other) = (&candidates.nodes[a], &candidates.nodes[b]);
        match (candidates.would_take(one), candidates.would_take(other)) {
            (true, false) => a,
            (false, true) => b,
            _ if candidates.prefers_second(a, b) => b,
            _ => a,
        }
    }
}
