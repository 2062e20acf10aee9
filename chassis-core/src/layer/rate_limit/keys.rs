//! Buckets by key: by callers, peers, values of a header.
use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU64,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{Gcra, Wait};
use crate::{clock::Instant, types::units::Rate};

/// Buckets by key, of a bounded number: keys come from the network, and must not fill the memory.
///
/// A new key replaces one whose bucket is full again, which loses nothing, because a new bucket is full as
/// well. While all buckets are in use, new keys share some; that is counted. The peer that sends a new key
/// decides which of these it shares, and each peer has a bound on the number of its keys, so that a peer with
/// invented keys takes no buckets from others.
///
/// Only a 64-bit hash of a key is stored, seeded with a random number, so that long keys cost nothing and
/// collisions can't be constructed. A call locks one of 16 parts while it looks up a key.
///
/// ```
/// use chassis_core::{layer::rate_limit::Keyed, units::Rate};
/// use chassis_core::clock::Instant;
///
/// let (now, rate) = (Instant::now(), Rate::per_second(1));
/// let callers = Keyed::new(now, Default::default());
/// assert!(callers.take("orders", None, now, rate, 1, 1).is_ok());
/// assert!(callers.take("orders", None, now, rate, 1, 1).is_err());
/// assert!(callers.take("billing", None, now, rate, 1, 1).is_ok());
/// ```
#[derive(Debug)]
pub struct Keyed {
    hasher: RandomState,
    most: AtomicUsize,
    most_of_a_peer: AtomicUsize,
    shards: [Mutex<Shard>; SHARDS],
    shared: [Gcra; SHARED],
    overflows: AtomicU64,
}

/// The most keys that have buckets of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MostKeys {
    /// In total. Default 10,000.
    pub all: usize,
    /// For one peer address, or one /64 of IPv6. Default: a quarter of `all`.
    pub of_a_peer: usize,
}

#[derive(Debug, Default)]
struct Shard {
    places: HashMap<u64, u32>,
    buckets: Vec<Bucket>,
    /// The number of buckets for the keys of each peer.
    brought: HashMap<u64, u32>,
    /// Where the next search for a full bucket starts.
    hand: usize,
}

#[derive(Debug)]
struct Bucket {
    key: u64,
    /// The peer that sent the key; `None` if it is not known.
    peer: Option<NonZeroU64>,
    gcra: Gcra,
}

const SHARDS: usize = 16;

/// Shared buckets for keys without one of their own: a peer that floods one shares it with one in 64 of the
/// others.
const SHARED: usize = 64;

/// The most buckets that the search for a full one looks at: bounds the time for which the lock is held.
const LOOKS: usize = 256;

/// The addresses of one machine: an address of IPv4, a /64 of IPv6.
pub(super) fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

// === impl Keyed ===

impl Keyed {
    /// Without keys; at most about `most` of them, rounded up to multiples of 16.
    pub fn new(now: Instant, most: MostKeys) -> Self {
        Keyed {
            hasher: RandomState::new(),
            most: AtomicUsize::new(most.all),
            most_of_a_peer: AtomicUsize::new(most.of_a_peer),
            shards: Default::default(),
            shared: std::array::from_fn(|_| Gcra::new(now)),
            overflows: AtomicU64::new(0),
        }
    }

    /// Sets other bounds. Lower bounds apply to new keys; existing keys stay.
    pub fn set_most(&self, most: MostKeys) {
        self.most.store(most.all, Relaxed);
        self.most_of_a_peer.store(most.of_a_peer, Relaxed);
    }

    /// [`Gcra::take`] for `key` of `peer`.
    pub fn take(
        &self,
        key: &str,
        peer: Option<IpAddr>,
        now: Instant,
        rate: Rate,
        burst: u32,
        n: u32,
    ) -> Result<(), Wait> {
        self.bucket(key, peer, now, |bucket| bucket.take(now, rate, burst, n))
    }

    /// [`Gcra::reserve`] for `key` of `peer`.
    #[expect(clippy::too_many_arguments, reason = "a key of two parts, and what a bucket takes")]
    pub fn reserve(
        &self,
        key: &str,
        peer: Option<IpAddr>,
        now: Instant,
        rate: Rate,
        burst: u32,
        n: u32,
        most: Duration,
    ) -> Result<Duration, Wait> {
        self.bucket(key, peer, now, |bucket| bucket.reserve(now, rate, burst, n, most))
    }

    /// [`Gcra::give_back`] for `key` of `peer`.
    pub fn give_back(
        &self,
        key: &str,
        peer: Option<IpAddr>,
        now: Instant,
        burst: u32,
        n: u32,
        left: Duration,
    ) {
        self.bucket(key, peer, now, |bucket| bucket.give_back(now, burst, n, left));
    }

    /// [`Gcra::retune`] for every key.
    pub fn retune(&self, now: Instant, rate: Rate) {
        self.shared.iter().for_each(|bucket| bucket.retune(now, rate));
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.buckets.iter().for_each(|bucket| bucket.gcra.retune(now, rate));
        }
    }

    /// The number of keys with a bucket.
    pub fn len(&self) -> usize {
        let count = |shard: &Mutex<Shard>| shard.lock().unwrap_or_else(PoisonError::into_inner).buckets.len();
        self.shards.iter().map(count).sum()
    }

    /// Whether no key has a bucket.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many calls used a shared bucket because their key had none.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Relaxed)
    }

    fn bucket<T>(&self, key: &str, peer: Option<IpAddr>, now: Instant, act: impl FnOnce(&Gcra) -> T) -> T {
        let hash = self.hasher.hash_one(key);
        let per_shard = |most: &AtomicUsize| most.load(Relaxed).div_ceil(SHARDS);
        // No operation leaves a part half changed, so a poisoned lock is still valid.
        let mut shard = self.shards[hash as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&place) = shard.places.get(&hash) {
            return act(&shard.buckets[place as usize].gcra);
        }
        // 0 means an unknown peer.
        let peer = peer.and_then(|peer| NonZeroU64::new(self.hasher.hash_one(network(peer)) | 1));
        match shard.place(hash, peer, now, per_shard(&self.most), per_shard(&self.most_of_a_peer)) {
            Some(place) => act(&shard.buckets[place].gcra),
            None => {
                drop(shard);
                self.overflows.fetch_add(1, Relaxed);
                act(&self.shared[peer.map_or(0, |peer| peer.get() as usize >> 1) % SHARED])
            }
        }
    }
}

impl Default for MostKeys {
    fn default() -> Self {
        MostKeys { all: 10_000, of_a_peer: 2_500 }
    }
}

// === impl Shard ===

impl Shard {
    /// The index of the bucket for a new `key`; `None` if there is no room, in general or for `peer`.
    fn place(
        &mut self,
        key: u64,
        peer: Option<NonZeroU64>,
        now: Instant,
        most: usize,
        most_of_a_peer: usize,
    ) -> Option<usize> {
        let brought = peer.map_or(0, |peer| self.brought.get(&peer.get()).copied().unwrap_or(0));
        let bucket = Bucket { key, peer, gcra: Gcra::new(now) };
        let place = if brought as usize >= most_of_a_peer {
            self.full_bucket(now, peer)?
        } else if self.buckets.len() >= most {
            self.full_bucket(now, None)?
        } else {
            self.buckets.len()
        };
        if let Some(peer) = peer {
            *self.brought.entry(peer.get()).or_default() += 1;
        }
        match self.buckets.get_mut(place) {
            None => self.buckets.push(bucket),
            Some(old) => {
                let old = std::mem::replace(old, bucket);
                self.places.remove(&old.key);
                if let Some(peer) = old.peer {
                    self.forget_one(peer.get());
                }
            }
        }
        // More than four billion buckets do not fit into memory.
        self.places.insert(key, place as u32);
        Some(place)
    }

    fn forget_one(&mut self, peer: u64) {
        if let Entry::Occupied(mut count) = self.brought.entry(peer) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// A full bucket; one of `of`, if that is given.
    fn full_bucket(&mut self, now: Instant, of: Option<NonZeroU64>) -> Option<usize> {
        let count = self.buckets.len();
        let mut around = (0..count.min(LOOKS)).map(|i| (self.hand + i) % count);
        let found = around.find(|&place| {
            let bucket = &self.buckets[place];
            (of.is_none() || bucket.peer == of) && bucket.gcra.is_full(now)
        });
        self.hand = found.map_or(self.hand + LOOKS, |place| place + 1) % count.max(1);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn up_to(all: usize) -> Keyed {
        Keyed::new(Instant::now(), MostKeys { all, of_a_peer: all })
    }

    #[test]
    fn a_peer_that_makes_keys_up_shuts_nobody_out() {
        let (now, rate) = (Instant::now(), Rate::per_second(1));
        for (attacker, neighbour, other) in [
            ("10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2"),
            ("2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1"),
        ] {
            let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
            let keyed = Keyed::new(now, MostKeys { all: 1_600, of_a_peer: 160 });
            for i in 0..20_000 {
                let from = if i % 2 == 0 { attacker } else { neighbour };
                let _ = keyed.take(&i.to_string(), ip(from), now, rate, 1, 1);
            }
            assert!(keyed.len() <= 160, "{}", keyed.len());
            let fresh = (0..500).filter(|i| keyed.take(&format!("n{i}"), ip(other), now, rate, 1, 1).is_ok());
            assert!(fresh.count() >= 160, "{other} has room of its own");
            // A peer at its bound gets room from its own full buckets.
            for i in 0..100 {
                let later = now + (i + 2) * S;
                assert!(keyed.take(&format!("l{i}"), ip(attacker), later, rate, 1, 1).is_ok());
            }
            assert!(keyed.len() <= 320 + 16);
        }
    }

    #[test]
    fn every_key_has_its_own() {
        let (now, rate) = (Instant::now(), Rate::per_second(1));
        let keyed = up_to(100);
        for key in ["a", "b", ""] {
            assert_eq!((0..5).filter(|_| keyed.take(key, None, now, rate, 2, 1).is_ok()).count(), 2, "{key}");
        }
        assert_eq!((keyed.len(), keyed.overflows()), (3, 0));
    }

    #[test]
    fn full_buckets_make_room() {
        let (mut now, rate) = (Instant::now(), Rate::per_second(1));
        let keyed = up_to(160);
        for i in 0..10_000 {
            now += S / 10;
            assert!(keyed.take(&i.to_string(), None, now, rate, 1, 1).is_ok(), "{i}");
        }
        assert!(keyed.len() <= 160);
        assert_eq!(keyed.overflows(), 0);
    }

    #[test]
    fn buckets_in_use_stay() {
        let (now, rate) = (Instant::now(), Rate::per_second(1));
        let keyed = up_to(16);
        (0..1_000).for_each(|i| _ = keyed.take(&i.to_string(), None, now, rate, 1, 1));
        let again = (0..1_000).filter(|i| keyed.take(&i.to_string(), None, now, rate, 1, 1).is_ok()).count();
        assert_eq!(again, 0, "an old key in a new bucket would get through");
        assert!(keyed.len() <= 16 && keyed.overflows() >= 2 * (1_000 - 16));
    }

    #[test]
    fn new_keys_share_what_is_left() {
        let (now, rate) = (Instant::now(), Rate::per_second(1));
        let keyed = up_to(0);
        let through =
            (0..1_000).filter(|i| keyed.take(&i.to_string(), None, now, rate, 5, 1).is_ok()).count();
        assert_eq!((through, keyed.len()), (5, 0));
        keyed.set_most(MostKeys { all: 1_000, of_a_peer: 1_000 });
        assert!(keyed.take("a", None, now, rate, 5, 1).is_ok());
    }

    #[test]
    fn reservations_and_changes_reach_the_bucket() {
        let (now, slow) = (Instant::now(), Rate::per_second(1));
        let keyed = up_to(16);
        assert_eq!(keyed.reserve("a", None, now, slow, 1, 1, S), Ok(Duration::ZERO));
        assert_eq!(keyed.reserve("a", None, now, slow, 1, 1, S), Ok(S));
        keyed.give_back("a", None, now, 1, 1, S);
        assert_eq!(keyed.reserve("a", None, now, slow, 1, 1, S), Ok(S));
        keyed.retune(now, Rate::per_second(10));
        let wait = keyed.take("a", None, now, Rate::per_second(10), 1, 1).unwrap_err().retry_after;
        assert_eq!(wait, Some(S / 5));
    }

    #[test]
    fn is_small() {
        // A place is a key, an index and a control byte; maps and lists are at least half full.
        let place = 2 * (size_of::<(u64, u32)>() + 1) + 2 * size_of::<Bucket>();
        assert!(place <= 200, "{place}");
    }
}
