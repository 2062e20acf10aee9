//! Randomness as an argument, so that tests can seed it.
use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rand::TryRngCore;

use crate::{
    striped::{self, CachePadded, STRIPES},
    types::units::Ratio,
};

/// A cheap source of randomness that clones and threads share without locks. Not for secrets.
///
/// With a seed it gives the same sequence every time, as long as one thread uses it. Seeded by the operating
/// system, each thread draws from a stripe of its own, so that threads don't share cache lines.
///
/// The generator is SplitMix64: a counter, and a function that mixes it (Steele, Lea and Flood, *Fast
/// Splittable Pseudorandom Number Generators*, 2014).
///
/// ```
/// use chassis_core::Random;
///
/// let (one, other) = (Random::seeded(7), Random::seeded(7));
/// assert_eq!(one.next_u64(), other.next_u64());
/// assert!(one.below(6) < 6);
/// ```
#[derive(Clone)]
pub struct Random(Arc<[CachePadded<AtomicU64>]>);

/// The step of SplitMix64: odd, and close to 2⁶⁴ divided by the golden ratio.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

// === impl Random ===

impl Random {
    /// Seeded by the operating system.
    pub fn from_os() -> Self {
        Random((0..STRIPES).map(|_| CachePadded(AtomicU64::new(seed()))).collect())
    }

    /// The same sequence for the same `seed`, as long as one thread uses it.
    pub fn seeded(seed: u64) -> Self {
        Random(Arc::new([CachePadded(AtomicU64::new(seed))]))
    }

    /// 64 random bits.
    #[inline]
    pub fn next_u64(&self) -> u64 {
        let stripe = match &*self.0 {
            [only] => only,
            stripes => &stripes[striped::mine()],
        };
        mix(stripe.fetch_add(STEP, Relaxed).wrapping_add(STEP))
    }

    /// A number below `n`; 0 if `n` is 0.
    #[inline]
    pub fn below(&self, n: usize) -> usize {
        self.scaled(n as u64) as usize
    }

    /// Two different numbers below `n`, which must be 2 or more, from one draw.
    #[inline]
    pub(crate) fn two_below(&self, n: usize) -> (usize, usize) {
        let (drawn, n) = (self.next_u64(), n as u64);
        let scaled = |half: u64, n: u64| ((u128::from(half) * u128::from(n)) >> 32) as usize;
        let (a, b) = (scaled(drawn >> 32, n), scaled(drawn & u64::from(u32::MAX), n.saturating_sub(1)));
        (a, b + usize::from(b >= a))
    }

    /// A number from 0 to 1, without 1.
    pub fn unit(&self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True in `share` of all cases: never at 0 %, always at 100 %.
    #[inline]
    pub fn chance(&self, share: Ratio) -> bool {
        self.unit() < share.get()
    }

    /// A length of time from `least` to `most`, both included; `least` if they are in the wrong order.
    pub fn between(&self, least: Duration, most: Duration) -> Duration {
        let room = u64::try_from(most.saturating_sub(least).as_nanos()).unwrap_or(u64::MAX);
        least + Duration::from_nanos(self.scaled(room.saturating_add(1)))
    }

    /// Multiply and shift (Lemire): biased by at most `n` / 2⁶⁴, which is negligible here.
    fn scaled(&self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}

/// Makes it usable with `rand`: `let mut rng = &random; list.shuffle(&mut rng)`.
impl rand::RngCore for &Random {
    fn next_u32(&mut self) -> u32 {
        (Random::next_u64(self) >> 32) as u32
    }

    fn next_u64(&mut self) -> u64 {
        Random::next_u64(self)
    }

    fn fill_bytes(&mut self, to: &mut [u8]) {
        for chunk in to.chunks_mut(8) {
            chunk.copy_from_slice(&Random::next_u64(self).to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Mixes the bits of `counter`: a fixed number for each, without a visible pattern.
pub(crate) fn mix(counter: u64) -> u64 {
    let z = (counter ^ (counter >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The standard library's keys differ even if the operating system has no randomness.
fn seed() -> u64 {
    rand::rngs::OsRng.try_next_u64().unwrap_or_else(|_| RandomState::new().hash_one(STEP))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first values of the reference implementation (prng.di.unimi.it/splitmix64.c) for seed 0.
    #[test]
    fn is_splitmix64() {
        let random = Random::seeded(0);
        let got = [(); 3].map(|()| random.next_u64());
        assert_eq!(got, [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4, 0x06C4_5D18_8009_454F]);
    }

    #[test]
    fn clones_go_on_with_one_sequence() {
        let (random, again) = (Random::seeded(3), Random::seeded(3));
        let clone = random.clone();
        let drawn = [random.next_u64(), clone.next_u64(), random.next_u64()];
        assert_eq!(drawn, [(); 3].map(|()| again.next_u64()));
    }

    #[test]
    fn below_is_even() {
        let random = Random::seeded(1);
        let mut counts = [0u32; 7];
        (0..70_000).for_each(|_| counts[random.below(7)] += 1);
        assert!(counts.iter().all(|&n| (9_700..10_300).contains(&n)), "{counts:?}");
        assert_eq!((random.below(0), random.below(1)), (0, 0));
    }

    #[test]
    fn two_are_different_and_even() {
        let random = Random::seeded(1);
        let mut counts = [0u32; 49];
        (0..42_000).for_each(|_| {
            let (a, b) = random.two_below(7);
            counts[7 * a + b] += 1;
        });
        for (pair, n) in counts.iter().enumerate() {
            let expected = if pair % 8 == 0 { 0..1 } else { 850..1_150 };
            assert!(expected.contains(n), "{n} of {} and {}", pair / 7, pair % 7);
        }
        assert!((0..100).all(|_| matches!(random.two_below(2), (0, 1) | (1, 0))));
    }

    #[test]
    fn chances() {
        let random = Random::seeded(2);
        let count = |share| (0..100_000).filter(|_| random.chance(share)).count();
        assert_eq!(count(Ratio::percent(0)), 0);
        assert_eq!(count(Ratio::percent(100)), 100_000);
        assert!((4_800..5_200).contains(&count(Ratio::percent(5))));
    }

    #[test]
    fn between_stays_between() {
        let random = Random::seeded(4);
        let (least, most) = (Duration::from_nanos(5), Duration::from_nanos(7));
        let mut seen = [false; 3];
        (0..100).for_each(|_| seen[random.between(least, most).as_nanos() as usize - 5] = true);
        assert_eq!(seen, [true; 3]);
        assert_eq!(random.between(most, least), most);
        assert!(random.between(Duration::ZERO, Duration::MAX) < Duration::MAX);
    }

    #[test]
    fn sources_and_threads_differ() {
        let random = Random::from_os();
        assert_ne!(random.next_u64(), Random::from_os().next_u64());
        let drawn: std::collections::HashSet<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..20).map(|_| scope.spawn(|| [(); 500].map(|()| random.next_u64()))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(drawn.len(), 20 * 500);
    }

    #[test]
    fn serves_rand() {
        let (random, mut bytes) = (Random::seeded(5), [0; 11]);
        rand::RngCore::fill_bytes(&mut &random, &mut bytes);
        assert!(bytes[8..].iter().any(|byte| *byte != 0));
    }
}
