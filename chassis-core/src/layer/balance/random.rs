//! Any node.
use crate::cluster::{Candidates, Picker};

/// Any, in proportion to the weights: `random`.
#[derive(Clone, Debug, Default)]
pub struct RandomPicker;

// === impl RandomPicker ===

impl Picker for RandomPicker {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        candidates.draw()
    }
}
