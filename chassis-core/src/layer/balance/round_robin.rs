//! Each node in turn.
use crate::cluster::{Candidates, Picker};

/// Each in turn, as often as its weight says: `round_robin`. Even over time, blind to load.
///
/// Every subset of a service that routes choose has turns of its own, over each protocol; settings and members
/// that change do not begin them anew. A node that can't take the call loses its turn to the next. Only first
/// attempts take turns: further ones go to any other node, in proportion to the weights.
#[derive(Clone, Debug, Default)]
pub struct RoundRobin;

/// Turns that one pick takes while the nodes whose turns they are can't take the call.
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
