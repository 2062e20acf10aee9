//! Counts successes and failures of a recent span of time, without locks.
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::shard::Cells;

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
    calls: Cells<Calls>,
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

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: Duration = Duration::from_secs(10);

    /// Counts one success at each of `at`, in seconds, then compares the sum at `now`.
    #[track_caller]
    fn check(at: &[u64], now: u64, length: Duration, expected: u32) {
        let window = Window::default();
        at.iter().for_each(|s| window.add(false, s * 1000, s * 1000, TEN));
        assert_eq!(window.tally(now * 1000, length, UnderWay::All).calls, expected);
    }

    #[test]
    fn slides() {
        check(&[], 5, TEN, 0);
        check(&[0, 1, 1, 9], 9, TEN, 4);
        check(&[0, 1, 1, 9], 10, TEN, 3);
        check(&[0, 1, 1, 9], 11, TEN, 1);
        check(&[0, 1, 1, 9], 19, TEN, 0);
        check(&[0, 10, 20], 20, TEN, 1);
        check(&[50], 1_000_000, TEN, 0);
    }

    #[test]
    fn another_length_looks_at_the_same_counts() {
        check(&[0, 3, 6, 9], 9, Duration::from_secs(4), 2);
        check(&[0, 3, 6, 9], 12, Duration::from_secs(30), 4);
    }

    #[test]
    fn a_longer_length_goes_on_with_what_is_there() {
        let window = Window::default();
        (0..10).for_each(|s| window.add(true, s * 1000, s * 1000, TEN));
        (10..12).for_each(|s| window.add(false, s * 1000, s * 1000, 3 * TEN));
        let tally = window.tally(12_000, 3 * TEN, UnderWay::All);
        assert!(tally.failures >= 9 && tally.calls - tally.failures == 2, "{tally:?}");
    }

    #[test]
    fn counts_failures_apart() {
        let window = Window::default();
        (0..30).for_each(|i| window.add(i % 3 == 0, i, i, TEN));
        assert_eq!(window.tally(30, TEN, UnderWay::All), Tally { calls: 30, failures: 10, under_way: 0 });
        window.clear();
        assert_eq!(window.tally(30, TEN, UnderWay::All), Tally::default());
    }

    #[test]
    fn a_late_call_counts_where_time_is() {
        let window = Window::default();
        window.add(true, 10_500, 10_500, TEN);
        window.add(true, 400, 400, TEN);
        assert_eq!(window.tally(10_500, TEN, UnderWay::All), Tally { calls: 2, failures: 2, under_way: 0 });
    }

    #[test]
    fn all_threads_count_into_one_window() {
        let window = Window::default();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (0..1_000).for_each(|i| window.add(i % 4 == 0, i, i, TEN)));
            }
        });
        assert_eq!(
            window.tally(1_000, TEN, UnderWay::All),
            Tally { calls: 20_000, failures: 5_000, under_way: 0 }
        );
        window.clear();
        assert_eq!(window.tally(1_000, TEN, UnderWay::All), Tally::default());
    }

    #[test]
    fn large_counts_keep_their_ratio() {
        let window = Window::default();
        (0..200_000).for_each(|i| window.add(i % 4 == 0, 5, 5, TEN));
        let Tally { calls, failures, .. } = window.tally(5, TEN, UnderWay::All);
        assert!(calls > 30_000);
        assert!((f64::from(failures) / f64::from(calls) - 0.25).abs() < 0.001);
    }

    /// Starts one call at each of `started`, in milliseconds, and cancels those of `over`; compares the calls
    /// under way at `now`.
    #[track_caller]
    fn check_under_way(started: &[u64], over: &[u64], now: u64, which: UnderWay, expected: u32) {
        let window = Window::default();
        started.iter().for_each(|at| window.start(*at, TEN));
        over.iter().for_each(|at| window.cancel(*at, TEN));
        let tally = window.tally(now, TEN, which);
        assert_eq!(tally, Tally { calls: 0, failures: 0, under_way: expected });
    }

    #[test]
    fn counts_what_is_under_way() {
        use UnderWay::{All, SinceBefore};
        check_under_way(&[0, 1, 1_500, 9_000], &[], 9_000, All, 4);
        check_under_way(&[0, 1, 1_500, 9_000], &[1, 1_500], 9_000, All, 2);
        // They leave the window by their start, and their ends with them.
        check_under_way(&[0, 1, 1_500, 9_000], &[1], 10_500, All, 2);
        check_under_way(&[0, 10_000], &[0], 10_000, All, 1);
        check_under_way(&[10_000], &[0], 10_000, All, 1);
        // Calls that took less time than the failed call.
        check_under_way(&[0, 1, 1_500, 9_000], &[], 9_000, SinceBefore(8_999), 3);
        check_under_way(&[0, 1, 1_500, 9_000], &[], 9_000, SinceBefore(9_000), 4);
        check_under_way(&[0, 1, 1_500, 9_000], &[], 9_000, SinceBefore(1_600), 2);
        check_under_way(&[0, 1, 1_500, 9_000], &[], 9_000, SinceBefore(900), 0);
    }

    #[test]
    fn counts_what_is_under_way_after_weeks() {
        for day in [0, 10, 30, 49, 51, 100] {
            let (window, begin) = (Window::default(), day * u64::from(DAY));
            for day in [0, 26, 27] {
                let at = begin + day * u64::from(DAY);
                (0..100).for_each(|i| window.start(at + i, TEN));
                (0..90).for_each(|i| window.add(false, at + i, at + 100, TEN));
                assert_eq!(window.tally(at + 100, TEN, UnderWay::All).under_way, 10, "{at}");
            }
        }
    }

    #[test]
    fn a_call_that_ended_is_not_under_way() {
        let window = Window::default();
        for i in 0..1_000 {
            window.start(i, TEN);
            window.add(i % 2 == 0, i, i + 3_000, TEN);
        }
        assert_eq!(
            window.tally(4_000, TEN, UnderWay::All),
            Tally { calls: 1_000, failures: 500, under_way: 0 }
        );
    }

    #[test]
    fn clocks_wrap() {
        let (window, near) = (Window::default(), u64::from(u32::MAX) - 2_000);
        window.add(true, near, near, TEN);
        window.add(true, near + 4_000, near + 4_000, TEN);
        assert_eq!(window.tally(near + 4_000, TEN, UnderWay::All).calls, 2);
    }

    #[test]
    fn the_longest_window() {
        let window = Window::default();
        window.add(true, 7, 7, Duration::MAX);
        assert_eq!(window.tally(1 << 30, Duration::MAX, UnderWay::All).failures, 1);
    }

    #[test]
    fn the_shortest_window() {
        let window = Window::default();
        window.add(true, 7, 7, Duration::from_micros(1));
        assert_eq!(window.tally(7, Duration::from_micros(1), UnderWay::All).failures, 1);
        assert_eq!(window.tally(17, Duration::from_micros(1), UnderWay::All).failures, 0);
    }
}
