//! Picks any node.
use crate::cluster::{Candidates, Picker};

/// Picks any node, in proportion to the weights: `random`.
#[derive(Clone, Debug, Default)]
pub struct RandomPicker;

// === impl RandomPicker ===

impl Picker for RandomPicker {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        candidates.draw()
    }
}
