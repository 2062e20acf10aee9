//! Picks the less loaded of two nodes.
use crate::cluster::{Candidates, Picker};

/// Picks the less loaded of two nodes that are drawn at random: `p2c`, the default.
///
/// Load is the number of calls in flight, to the end of their bodies. A node that fails quickly must not look
/// idle: a node whose calls mostly fail is skipped for one whose calls do not, and failures add to the cost.
/// Nor must one that refuses quickly: an answer without success counts as in flight for as long as successes
/// take.
///
/// After Mitzenmacher's power of two choices; the order, state before load, is Finagle's.
///
/// If weights differ, the first node is drawn in proportion to them. The other one is taken if it would have
/// less load for its weight even with this call, and with two calls fewer at the first. So the shares follow
/// the weights with one caller and with many, unless a node cannot keep up with its share.
#[derive(Clone, Debug, Default)]
pub struct P2c;

/// The calls that a node of another weight may have above its share. A light node has a fraction of a call at a
/// time on average: without slack each call there would count as too many.
const SLACK: f64 = 2.0;

// === impl P2c ===

impl Picker for P2c {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        let nodes = candidates.nodes();
        if nodes.len() == 1 {
            return 0;
        }
        let (a, b) = candidates.subset.draw_two(candidates.random);
        match (candidates.would_take(&nodes[a]), candidates.would_take(&nodes[b])) {
            (true, false) => a,
            (false, true) => b,
            _ if prefers_second(candidates, a, b) => b,
            _ => a,
        }
    }
}

/// Whether the second of two nodes has less load for its weight than the first.
#[inline]
fn prefers_second(candidates: &Candidates<'_>, a: usize, b: usize) -> bool {
    let nodes = candidates.nodes();
    let (one, other) = (nodes[a].load(), nodes[b].load());
    if !(one.is_plain() && other.is_plain()) {
        return prefers_second_of_failing(candidates, a, b);
    }
    let (of_one, of_other) = (one.in_flight(), other.in_flight());
    match candidates.subset.weights_of(a, b) {
        None => of_other < of_one,
        Some(weights) => is_lighter(f64::from(of_other) + 1.0, f64::from(of_one) + 1.0, weights),
    }
}

/// The same if calls to one of them fail, or end too early. Not inlined: few picks take this path.
#[cold]
fn prefers_second_of_failing(candidates: &Candidates<'_>, a: usize, b: usize) -> bool {
    let (nodes, now) = (candidates.nodes(), candidates.now());
    let (one, other) = (nodes[a].load(), nodes[b].load());
    match (one.is_failing(now), other.is_failing(now)) {
        (true, false) => true,
        (false, true) => false,
        _ => {
            let (of_one, of_other) = (one.cost(now), other.cost(now));
            match candidates.subset.weights_of(a, b) {
                None => of_other < of_one,
                Some(weights) => is_lighter(of_other, of_one, weights),
            }
        }
    }
}

/// Whether `other` has less load for its weight than `one`, even with one more call. Both are costs of one more
/// call.
fn is_lighter(other: f64, one: f64, (of_one, of_other): (f64, f64)) -> bool {
    other * of_one < (one - 1.0 - SLACK) * of_other
}
