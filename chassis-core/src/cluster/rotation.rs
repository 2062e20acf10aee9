//! Round robin without locks: selects nodes in proportion to their weights, evenly distributed over time.
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::{
    random::{Random, mix},
    types::LabelSet,
};

/// The position of the round robin over one set of nodes. It continues when the set or a weight changes.
///
/// A round gives each node as many turns as its weight, so shares are exact from round to round. Within a round
/// successive turns are a golden section apart, so the turns of a heavy node are spread out. Every round begins
/// at a random position: two operations that are called alternately must not always get the same nodes.
///
/// After the static stride scheduler of gRPC (A58), with one step per turn for any weights.
#[derive(Debug)]
pub(crate) struct Rotation {
    turns: AtomicU64,
    seed: u64,
}

/// The rotations of a cluster by the labels of its subsets, across all snapshots of its members.
pub(super) struct Rotations {
    by_labels: Mutex<HashMap<Of, Arc<Rotation>>>,
    random: Random,
}

/// The labels of a subset, and the priority if the subset has several.
type Of = (LabelSet, Option<u32>);

/// The number of label sets for which a cluster keeps subsets; others are computed for each call.
pub(super) const MOST_SUBSETS: usize = 256;

/// The inverse of the golden ratio: its multiples never come close to each other.
const GOLDEN: f64 = 0.618_033_988_749_895;

// === impl Rotation ===

impl Rotation {
    fn new(random: &Random) -> Self {
        Rotation { turns: AtomicU64::new(0), seed: random.next_u64() }
    }

    /// The next position below `total`, which is not 0; `stride` must be that of `total`.
    pub(super) fn advance(&self, total: u64, stride: u64) -> u64 {
        let turn = self.turns.fetch_add(1, Relaxed);
        let (round, at) = (turn / total, turn % total);
        let begin = (u128::from(mix(self.seed.wrapping_add(round))) * u128::from(total)) >> 64;
        ((u128::from(at) * u128::from(stride) + begin) % u128::from(total)) as u64
    }
}

/// The distance between successive positions of a round of `total`: about a golden section, and such that every
/// position is visited once before the first one is visited again.
pub(super) fn stride(total: u64) -> u64 {
    let golden = (total as f64 * GOLDEN).round() as u64;
    let near = (0..total).flat_map(|far| [golden.checked_sub(far), golden.checked_add(far)]);
    near.flatten().find(|stride| *stride > 0 && gcd(*stride, total) == 1).unwrap_or(1)
}

/// The greatest common divisor; that of 0 and `a` is `a`.
pub(super) fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

// === impl Rotations ===

impl Rotations {
    pub(super) fn new(random: Random) -> Self {
        Rotations { by_labels: Mutex::default(), random }
    }

    /// The rotation of the subset with `labels`; `None` if too many are in use.
    pub(super) fn of(&self, labels: &LabelSet, priority: Option<u32>) -> Option<Arc<Rotation>> {
        let mut all = self.by_labels.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (labels.clone(), priority);
        if let Some(rotation) = all.get(&key) {
            return Some(rotation.clone());
        }
        if all.len() >= MOST_SUBSETS {
            all.retain(|_, rotation| Arc::strong_count(rotation) > 1);
        }
        if all.len() >= MOST_SUBSETS {
            return None;
        }
        let rotation = Arc::new(Rotation::new(&self.random));
        all.insert(key, rotation.clone());
        Some(rotation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The positions of `turns` successive turns.
    fn turns(rotation: &Rotation, total: u64, turns: usize) -> Vec<u64> {
        (0..turns).map(|_| rotation.advance(total, stride(total))).collect()
    }

    #[test]
    fn every_place_has_one_turn_a_round() {
        for seed in 0..20 {
            for total in (1..40).chain([100, 1_000, 65_535]) {
                let rotation = Rotation::new(&Random::seeded(seed));
                for _ in 0..3 {
                    let mut round = turns(&rotation, total, total as usize);
                    round.sort_unstable();
                    assert!(round.iter().copied().eq(0..total), "{total}");
                }
            }
        }
    }

    #[test]
    fn the_turns_of_a_heavy_node_are_spread_out() {
        // 30 % of all positions: three, plus or minus one, in any ten turns of a round.
        let rotation = Rotation::new(&Random::seeded(1));
        for total in [10, 100, 1_000] {
            let round = turns(&rotation, total, total as usize);
            for window in round.windows(10) {
                let heavy = window.iter().filter(|place| **place < total * 3 / 10).count();
                assert!((2..=4).contains(&heavy), "{heavy} of 10 turns in a round of {total}");
            }
        }
    }

    #[test]
    fn those_who_take_every_other_turn_get_everything() {
        for total in [2, 4, 6, 10] {
            let rotation = Rotation::new(&Random::seeded(3));
            let all = turns(&rotation, total, 2_000 * total as usize);
            for first in 0..2 {
                let mine = all.iter().skip(first).step_by(2);
                let low = mine.filter(|place| **place < total / 2).count() as f64 / (1_000 * total) as f64;
                assert!((0.45..=0.55).contains(&low), "{low} of {total}");
            }
        }
    }

    #[test]
    fn any_total_has_a_stride() {
        for total in (0..2_000).chain([1 << 32, u64::from(u32::MAX) * 100_000, u64::MAX]) {
            let stride = stride(total);
            assert!(stride > 0 && (total < 3 || gcd(stride, total) == 1), "{total}: {stride}");
        }
        let rotation = Rotation::new(&Random::seeded(1));
        assert!(rotation.advance(u64::MAX, stride(u64::MAX)) < u64::MAX);
    }

    #[test]
    fn no_more_than_are_kept_and_none_that_is_in_use_is_lost() {
        let rotations = Rotations::new(Random::seeded(1));
        let labels = |i: usize| LabelSet::from_iter([("i", i.to_string().as_str())]);
        let first = rotations.of(&labels(0), None);
        for i in 0..10 * MOST_SUBSETS {
            assert!(rotations.of(&labels(i), None).is_some(), "unused ones make room");
        }
        assert!(Arc::ptr_eq(&first.unwrap(), &rotations.of(&labels(0), None).unwrap()));
        let held: Vec<_> = (0..2 * MOST_SUBSETS).filter_map(|i| rotations.of(&labels(i), None)).collect();
        assert_eq!(held.len(), MOST_SUBSETS);
    }

    #[test]
    fn threads_share_the_turns() {
        let rotation = Rotation::new(&Random::seeded(1));
        let mut all: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| turns(&rotation, 8, 1_000))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        all.sort_unstable();
        assert!((0..8).all(|place| all.iter().filter(|p| **p == place).count() == 500));
    }
}
