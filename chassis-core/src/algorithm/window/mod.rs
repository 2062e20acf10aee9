//! Counts successes and failures of a recent span of time, without locks.
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::striped::StripedCells;

#[cfg(test)]
mod tests;

/// Calls and failures in a sliding window of ten buckets, so its start moves in tenths.
///
/// Each bucket is one atomic word that contains its start. So the length of the window is an argument: a
/// shorter one reads fewer of the counts, a longer one continues with those that exist.
///
/// Calls that ended count at their end; calls that are still under way count at their start.
///
/// Successes and starts, which are read seldom, are counted by each thread separately; failures, which are read
/// often, are counted in one place.
#[derive(Debug, Default)]
pub(super) struct Window {
    failures: Buckets,
    /// The time of the latest failure, plus one; 0 if there was none.
    failed: AtomicU64,
    calls: StripedCells<Calls>,
}

/// The counts of one thread.
#[derive(Debug, Default)]
struct Calls {
    /// By the time of their end.
    successes: Buckets,
    /// By the time of their start: all calls, and those that are no longer under way.
    started: Buckets,
    over: Buckets,
}

/// The counts of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Calls that ended with an outcome.
    pub(super) calls: u32,
    /// Failed calls among them.
    pub(super) failures: u32,
    /// Calls that started in the window and are under way.
    pub(super) under_way: u32,
}

/// The calls under way that count as calls without a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnderWay {
    /// All of them.
    All,
    /// Those that started no later than this, to the precision of a bucket.
    SinceBefore(u64),
}

/// Counts of one kind.
#[derive(Debug, Default)]
struct Buckets([Count; BUCKETS]);

/// A [`Bucket`] in one atomic word.
#[derive(Debug, Default)]
struct Count(AtomicU64);

/// The content of one word: the start of the bucket in 32 bits, the count in 32.
#[derive(Clone, Copy)]
struct Bucket {
    began: u32,
    count: u32,
}

const BUCKETS: usize = 10;

/// The longest window in milliseconds (24 days): half of the clock's range.
const LONGEST: u64 = 1 << 31;

/// The most that one thread's clock may be behind another's, in milliseconds; a larger difference means that
/// the clock wrapped.
const BEHIND: u32 = 60_000;

/// In milliseconds.
const DAY: u32 = 86_400_000;

// === impl Window ===

impl Window {
    /// Counts a call that starts at `millis` on the caller's clock, in a window of this length.
    pub(super) fn start(&self, millis: u64, length: Duration) {
        self.calls.cell().started.add(millis, width(length));
    }

    /// Counts a call that started at `started` and ended at `millis`.
    pub(super) fn add(&self, failed: bool, started: u64, millis: u64, length: Duration) {
        let (calls, width) = (self.calls.cell(), width(length));
        calls.over.add_in(started, width);
        if !failed {
            return calls.successes.add(millis, width);
        }
        self.failures.add(millis, width);
        // After the bucket; `clear` uses the opposite order. So a failure that is counted is always visible
        // here.
        self.failed.fetch_max(millis.saturating_add(1), Relaxed);
    }

    /// Removes a call that started at `started` from the calls under way; it has no outcome that counts.
    pub(super) fn cancel(&self, started: u64, length: Duration) {
        self.calls.cell().over.add_in(started, width(length));
    }

    /// Whether the window at `millis`, of this length, may contain failures.
    pub(super) fn has_failures(&self, millis: u64, length: Duration) -> bool {
        match self.failed.load(Relaxed) {
            0 => false,
            then => millis.saturating_sub(then - 1) < width(length) * BUCKETS as u64,
        }
    }

    /// The counts at `millis` of a window of this length; `which` selects the calls under way.
    pub(super) fn tally(&self, millis: u64, length: Duration, which: UnderWay) -> Tally {
        let failures = self.failures.sum(millis, length, None);
        let before = match which {
            UnderWay::All => None,
            // If the call took longer than a bucket lasts, the calls of its own bucket don't count: most of
            // them started later.
            UnderWay::SinceBefore(started) if millis.saturating_sub(started) >= width(length) => {
                Some(started / width(length) * width(length))
            }
            UnderWay::SinceBefore(started) => Some(started.saturating_add(1)),
        };
        let (mut calls, mut started, mut over) = (failures, 0u32, 0u32);
        for counted in self.calls.cells() {
            calls = calls.saturating_add(counted.successes.sum(millis, length, None));
            started = started.saturating_add(counted.started.sum(millis, length, before));
            over = over.saturating_add(counted.over.sum(millis, length, before));
        }
        Tally { calls, failures, under_way: started.saturating_sub(over) }
    }

    /// Removes all counts.
    pub(super) fn clear(&self) {
        self.failed.store(0, Relaxed);
        self.failures.clear();
        for calls in self.calls.cells() {
            [&calls.successes, &calls.started, &calls.over].into_iter().for_each(Buckets::clear);
        }
    }
}

// === impl Buckets ===

impl Buckets {
    /// Counts at `millis`, in buckets of this width.
    #[inline]
    fn add(&self, millis: u64, width: u64) {
        let (word, began) = self.bucket(millis, width);
        if !word.has_counted(began) {
            word.add(began);
        }
    }

    /// Counts in the bucket of `millis`, unless a later one has replaced it.
    #[inline]
    fn add_in(&self, millis: u64, width: u64) {
        let (word, began) = self.bucket(millis, width);
        if !word.has_counted(began) {
            word.add_in(began);
        }
    }

    /// The bucket of `millis`, and its start.
    #[inline]
    fn bucket(&self, millis: u64, width: u64) -> (&Count, u32) {
        let nth = millis / width;
        (&self.0[nth as usize % BUCKETS], (nth * width) as u32)
    }

    /// The counts at `millis` of buckets that began no longer than `length` ago, and before `before` if that is
    /// given.
    fn sum(&self, millis: u64, length: Duration, before: Option<u64>) -> u32 {
        let length = width(length) * BUCKETS as u64;
        let buckets = self.0.iter().map(|count| Bucket::unpack(count.0.load(Relaxed)));
        buckets
            .filter(|bucket| u64::from(age(bucket.began, millis as u32)) < length)
            .filter(|bucket| before.is_none_or(|before| is_later(before as u32, bucket.began)))
            .fold(0, |sum, bucket| sum.saturating_add(bucket.count))
    }

    fn clear(&self) {
        self.0.iter().for_each(|count| count.0.store(0, Relaxed));
    }
}

// === impl Count ===

impl Count {
    /// Adds one if this is the bucket that began at `began`, which is the usual case. (If another thread begins
    /// the next bucket in between, the count goes there.)
    #[inline]
    fn has_counted(&self, began: u32) -> bool {
        let Bucket { began: current, count } = Bucket::unpack(self.0.load(Relaxed));
        let counts = current == began && count < u32::MAX / 2;
        if counts {
            self.0.fetch_add(1, Relaxed);
        }
        counts
    }

    /// Adds one. A late caller counts in the later bucket.
    #[cold]
    fn add(&self, began: u32) {
        let _ = self.0.fetch_update(Relaxed, Relaxed, |word| {
            let bucket = Bucket::unpack(word);
            let current = bucket.began.wrapping_sub(began) <= BEHIND;
            let bucket = if current { bucket } else { Bucket { began, count: 0 } };
            Some(Bucket { count: bucket.count.saturating_add(1), ..bucket }.pack())
        });
    }

    /// Adds one, but not in a later bucket.
    #[cold]
    fn add_in(&self, began: u32) {
        let _ = self.0.fetch_update(Relaxed, Relaxed, |word| {
            let bucket = Bucket::unpack(word);
            // A bucket at 0 was never used; after a few weeks it would look later. A difference of more than a
            // day means a wrap.
            if word != 0 && (1..=DAY).contains(&bucket.began.wrapping_sub(began)) {
                return None;
            }
            let count = if bucket.began == began { bucket.count.saturating_add(1) } else { 1 };
            Some(Bucket { began, count }.pack())
        });
    }
}

/// The width of a bucket in milliseconds, at least one.
fn width(length: Duration) -> u64 {
    let millis = length.as_secs().saturating_mul(1_000).saturating_add(length.subsec_millis().into());
    millis.min(LONGEST).div_ceil(BUCKETS as u64).max(1)
}

/// Milliseconds from `began` to `now` on a clock that wraps after 49 days; 0 if `began` is later.
fn age(began: u32, now: u32) -> u32 {
    if began.wrapping_sub(now) <= BEHIND { 0 } else { now.wrapping_sub(began) }
}

/// Whether `one` is later than `other`, on a clock that wraps.
fn is_later(one: u32, other: u32) -> bool {
    one != other && one.wrapping_sub(other) <= u32::MAX / 2
}

// === impl Bucket ===

impl Bucket {
    fn unpack(word: u64) -> Self {
        Bucket { began: (word >> 32) as u32, count: word as u32 }
    }

    fn pack(self) -> u64 {
        u64::from(self.began) << 32 | u64::from(self.count)
    }
}
