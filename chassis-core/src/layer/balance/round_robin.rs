//! Picks the nodes in turn.
use crate::cluster::{Candidates, Picker};

/// Picks the nodes in turn, each as often as its weight: `round_robin`. Even over time, without regard to load.
///
/// Every subset of a service that routes choose has its own rotation, over each protocol, which changes of
/// settings and members do not restart. A node that cannot take the call loses its turn to the next. Only first
/// attempts take turns: further ones go to any other node, in proportion to the weights.
#[derive(Clone, Debug, Default)]
pub struct RoundRobin;

/// Turns that one pick takes while their nodes cannot take the call.
const MOST_TURNS: usize = 16;

// === impl RoundRobin ===

impl Picker for RoundRobin {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        let is_first = candidates.tried().is_empty();
        let next = || if is_first { candidates.turn() } else { candidates.draw() };
        let mut index = next();
        for _ in 1..MOST_TURNS.min(candidates.nodes().len()) {
            if candidates.would_take(&candidates.nodes()[index]) {
                break;
            }
            index = next();
        }
        index
    }
}
