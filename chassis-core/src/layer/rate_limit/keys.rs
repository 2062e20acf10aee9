//! One bucket for each of many keys: callers, peers, values of a header.
use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use super::gcra::{Gcra, Wait};
use crate::{clock::Instant, units::Rate};

/// Buckets by key, of a bounded number: keys come from the network, and nobody may fill our memory.
///
/// A new key takes the place of one whose bucket is full again, which loses nothing: a new bucket is full
/// as well. While all of them are in use, new keys share one bucket with each other; that is counted.
///
/// Of a key only a 64-bit hash is kept, keyed by a random number, so that its length costs nothing and
/// nobody can make two of them meet. A call locks one of 16 parts for as long as it takes to look a key up.
///
/// ```
/// use chassis_core::{layer::rate_limit::Keyed, units::Rate};
/// use chassis_core::clock::Instant;
///
/// let (now, rate) = (Instant::now(), Rate::per_second(1));
/// let callers = Keyed::new(now, Keyed::MOST_KEYS);
/// assert!(callers.take("orders", now, rate, 1, 1).is_ok());
/// assert!(callers.take("orders", now, rate, 1, 1).is_err());
/// assert!(callers.take("billing", now, rate, 1, 1).is_ok());
/// ```
#[derive(Debug)]
pub struct Keyed {
    hasher: RandomState,
    most: AtomicUsize,
    shards: [Mutex<Shard>; SHARDS],
    shared: Gcra,
    overflows: AtomicU64,
}

#[derive(Debug, Default)]
struct Shard {
    places: HashMap<u64, usize>,
    buckets: Vec<(u64, Gcra)>,
    /// Where the search for a full bucket goes on.
    hand: usize,
}

const SHARDS: usize = 16;

/// How many buckets a new key looks at to find a full one: bounds the time that others wait for it.
const LOOKS: usize = 256;

// === impl Keyed ===

impl Keyed {
    /// The bound that limits have unless told otherwise.
    pub const MOST_KEYS: usize = 10_000;

    /// No keys yet, and at most about `most` of them, rounded up to a multiple of 16.
    pub fn new(now: Instant, most: usize) -> Self {
        Keyed {
            hasher: RandomState::new(),
            most: AtomicUsize::new(most),
            shards: Default::default(),
            shared: Gcra::new(now),
            overflows: AtomicU64::new(0),
        }
    }

    /// Another bound from now on. Lowered, it holds for new keys; those there are stay.
    pub fn set_most(&self, most: usize) {
        self.most.store(most, Relaxed);
    }

    /// [`Gcra::take`] from the bucket of `key`.
    pub fn take(&self, key: &str, now: Instant, rate: Rate, burst: u32, n: u32) -> Result<(), Wait> {
        self.bucket(key, now, |bucket| bucket.take(now, rate, burst, n))
    }

    /// [`Gcra::reserve`] in the bucket of `key`.
    pub fn reserve(
        &self,
        key: &str,
        now: Instant,
        rate: Rate,
        burst: u32,
        n: u32,
        most: Duration,
    ) -> Result<Duration, Wait> {
        self.bucket(key, now, |bucket| bucket.reserve(now, rate, burst, n, most))
    }

    /// [`Gcra::give_back`] to the bucket of `key`.
    pub fn give_back(&self, key: &str, now: Instant, burst: u32, n: u32, left: Duration) {
        self.bucket(key, now, |bucket| bucket.give_back(now, burst, n, left));
    }

    /// [`Gcra::retune`] for every key.
    pub fn retune(&self, now: Instant, rate: Rate) {
        self.shared.retune(now, rate);
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.buckets.iter().for_each(|(_, bucket)| bucket.retune(now, rate));
        }
    }

    /// How many keys have a bucket.
    pub fn len(&self) -> usize {
        let count = |shard: &Mutex<Shard>| shard.lock().unwrap_or_else(PoisonError::into_inner).buckets.len();
        self.shards.iter().map(count).sum()
    }

    /// Has no key a bucket?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many calls found all buckets in use and went to the shared one.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Relaxed)
    }

    fn bucket<T>(&self, key: &str, now: Instant, act: impl FnOnce(&Gcra) -> T) -> T {
        let hash = self.hasher.hash_one(key);
        let most = self.most.load(Relaxed).div_ceil(SHARDS);
        // Nothing in here can leave a shard half changed, so one that a panic poisoned is as good.
        let mut shard = self.shards[hash as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner);
        match shard.place(hash, now, most) {
            Some(place) => act(&shard.buckets[place].1),
            None => {
                drop(shard);
                self.overflows.fetch_add(1, Relaxed);
                act(&self.shared)
            }
        }
    }
}

// === impl Shard ===

impl Shard {
    /// Where the bucket of `key` is, or is now; `None` if there is no room.
    fn place(&mut self, key: u64, now: Instant, most: usize) -> Option<usize> {
        if let Some(&place) = self.places.get(&key) {
            return Some(place);
        }
        let bucket = (key, Gcra::new(now));
        let place = if self.buckets.len() < most {
            self.buckets.push(bucket);
            self.buckets.len() - 1
        } else {
            let place = self.full_bucket(now)?;
            let (old, _) = std::mem::replace(&mut self.buckets[place], bucket);
            self.places.remove(&old);
            place
        };
        self.places.insert(key, place);
        Some(place)
    }

    fn full_bucket(&mut self, now: Instant) -> Option<usize> {
        let count = self.buckets.len();
        let mut around = (0..count.min(LOOKS)).map(|i| (self.hand + i) % count);
        let found = around.find(|&place| self.buckets[place].1.is_full(now));
        self.hand = found.map_or(self.hand + LOOKS, |place| place + 1) % count.max(1);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn every_key_has_its_own() {
        let (now, rate) = (Instant::now(), Rate::per_second(1));
        let keyed = Keyed::new(now, 100);
        for key in ["a", "b", ""] {
            assert_eq!((0..5).filter(|_| keyed.take(key, now, rate, 2, 1).is_ok()).count(), 2, "{key}");
        }
        assert_eq!((keyed.len(), keyed.overflows()), (3, 0));
    }

    #[test]
    fn full_buckets_make_room() {
        let (mut now, rate) = (Instant::now(), Rate::per_second(1));
        let keyed = Keyed::new(now, 160);
        for i in 0..10_000 {
            now += S / 10;
            assert!(keyed.take(&i.to_string(), now, rate, 1, 1).is_ok(), "{i}");
        }
        assert!(keyed.len() <= 160);
        assert_eq!(keyed.overflows(), 0);
    }

    #[test]
    fn buckets_in_use_stay() {
        let (now, rate) = (Instant::now(), Rate::per_second(1));
        let keyed = Keyed::new(now, 16);
        (0..1_000).for_each(|i| _ = keyed.take(&i.to_string(), now, rate, 1, 1));
        let again = (0..1_000).filter(|i| keyed.take(&i.to_string(), now, rate, 1, 1).is_ok()).count();
        assert_eq!(again, 0, "an old key in a new bucket would get through");
        assert!(keyed.len() <= 16 && keyed.overflows() >= 2 * (1_000 - 16));
    }

    #[test]
    fn new_keys_share_what_is_left() {
        let (now, rate) = (Instant::now(), Rate::per_second(1));
        let keyed = Keyed::new(now, 0);
        let through = (0..1_000).filter(|i| keyed.take(&i.to_string(), now, rate, 5, 1).is_ok()).count();
        assert_eq!((through, keyed.len()), (5, 0));
        keyed.set_most(1_000);
        assert!(keyed.take("a", now, rate, 5, 1).is_ok());
    }

    #[test]
    fn reservations_and_changes_reach_the_bucket() {
        let (now, slow) = (Instant::now(), Rate::per_second(1));
        let keyed = Keyed::new(now, 16);
        assert_eq!(keyed.reserve("a", now, slow, 1, 1, S), Ok(Duration::ZERO));
        assert_eq!(keyed.reserve("a", now, slow, 1, 1, S), Ok(S));
        keyed.give_back("a", now, 1, 1, S);
        assert_eq!(keyed.reserve("a", now, slow, 1, 1, S), Ok(S));
        keyed.retune(now, Rate::per_second(10));
        let wait = keyed.take("a", now, Rate::per_second(10), 1, 1).unwrap_err().retry_after;
        assert_eq!(wait, Some(S / 5));
    }

    #[test]
    fn is_small() {
        // A place is a key, an index and a byte of control; maps and lists are at most half empty.
        let place = 2 * (size_of::<(u64, usize)>() + 1) + 2 * size_of::<(u64, Gcra)>();
        assert!(place <= 200, "{place}");
    }
}
