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

#[cfg(test)]
mod tests;

/// Buckets by key, of a bounded number: keys come from the network, and must not fill the memory.
///
/// A new key replaces one whose bucket is full again, which loses nothing, because a new bucket is full as
/// well. While all buckets are in use, new keys share some; that is counted. The peer that sends a new key
/// decides which of these it shares, and each peer has a bound on the number of its keys, so that a peer with
/// invented keys takes no buckets from others.
///
/// Only a 64-bit hash of a key is stored, seeded with a random number, so that long keys cost nothing and
/// collisions can't be constructed. A call locks one of 16 parts while it looks up a key.
#[derive(Debug)]
pub(crate) struct Keyed {
    hasher: RandomState,
    most: AtomicUsize,
    most_of_a_peer: AtomicUsize,
    shards: [Mutex<Shard>; SHARDS],
    shared: [Gcra; SHARED],
    overflows: AtomicU64,
}

/// The most keys that have buckets of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MostKeys {
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
    pub(crate) fn new(now: Instant, most: MostKeys) -> Self {
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
    pub(crate) fn set_most(&self, most: MostKeys) {
        self.most.store(most.all, Relaxed);
        self.most_of_a_peer.store(most.of_a_peer, Relaxed);
    }

    /// [`Gcra::take`] for `key` of `peer`.
    #[cfg(test)]
    pub(crate) fn take(
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
    pub(crate) fn reserve(
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
    pub(crate) fn give_back(
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
    pub(crate) fn retune(&self, now: Instant, rate: Rate) {
        self.shared.iter().for_each(|bucket| bucket.retune(now, rate));
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.buckets.iter().for_each(|bucket| bucket.gcra.retune(now, rate));
        }
    }

    /// The number of keys with a bucket.
    pub(crate) fn len(&self) -> usize {
        let count = |shard: &Mutex<Shard>| shard.lock().unwrap_or_else(PoisonError::into_inner).buckets.len();
        self.shards.iter().map(count).sum()
    }

    /// How many calls used a shared bucket because their key had none.
    #[cfg(test)]
    pub(crate) fn overflows(&self) -> u64 {
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
