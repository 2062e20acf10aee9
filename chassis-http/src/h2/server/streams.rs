//! Counts how a peer uses the streams of one HTTP/2 connection, in particular how many it resets before an
//! answer is possible (CVE-2023-44487).
use std::{
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::pace::StreamCounts;
use crate::h2::flood::Abuse;

/// Shared by a connection and the tasks of its streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    begun: AtomicUsize,
    /// The highest HTTP/2 number of a stream whose head has arrived or begun to arrive.
    newest: AtomicU32,
    /// The number of frames that reset a stream, so far.
    resets: AtomicUsize,
    /// As in [`StreamCounts`].
    hasty: AtomicUsize,
    expired: AtomicUsize,
    /// Whether the connection must be read in small pieces.
    is_slow: AtomicBool,
    counts: Mutex<ResetCounts>,
    /// The reason for closing the connection, once there is one.
    abuse: OnceLock<Abuse>,
    abused: Notify,
    /// The number of streams that were reset because their reader was too slow.
    slow: AtomicUsize,
}

/// Counts streams that their peer reset before their answer began, and soon after they began.
#[derive(Debug, Default)]
struct ResetCounts {
    /// In the newest block of streams, and in the previous one.
    in_block: [usize; 2],
    block: usize,
    /// Reset within [`HASTE`], in the newest half second and in the previous one.
    in_half: [usize; 2],
    /// The same for streams whose callers had announced a short timeout.
    in_half_said: [usize; 2],
    half: u64,
    first: Option<Instant>,
}

/// Later resets are not premature: the peer waited.
pub(crate) const PREMATURE: Duration = Duration::from_secs(1);
/// The rate is computed over this many streams, or up to twice as many.
const BLOCK: usize = 500;
/// Up to this many resets over half are chance, or callers in step: with 1,000 streams, four standard
/// deviations.
const CHANCE: usize = 64;
/// This many in a second are too many in any case, if they were reset within [`HASTE`]. Streams that last
/// longer are bounded by the limit of concurrent streams, and many callers have short timeouts.
const IN_A_SECOND: usize = 1_000;
const HASTE: Duration = Duration::from_millis(10);
/// The same for streams whose timeout was announced: a server that stalls for a second then finds many expired
/// calls. No handler is called for them.
const SAID_IN_A_SECOND: usize = 10_000;
const HALF_SECOND: u128 = 500;

// === impl Streams ===

impl Streams {
    /// Counts a stream that begins; returns its number.
    pub(crate) fn begin(&self) -> usize {
        // Only the connection itself counts.
        let number = self.begun.load(Relaxed);
        self.begun.store(number + 1, Relaxed);
        number
    }

    /// Records that a frame with headers of the stream with this HTTP/2 number has arrived.
    pub(crate) fn headers(&self, stream: u32) {
        if stream > self.newest() {
            self.newest.store(stream, Relaxed);
        }
    }

    /// The highest HTTP/2 number of a stream whose head has arrived or begun to arrive; 0 before the first.
    pub(crate) fn newest(&self) -> u32 {
        self.newest.load(Relaxed)
    }

    /// Records a frame that resets a stream.
    pub(crate) fn reset(&self) {
        self.resets.store(self.resets() + 1, Relaxed);
    }

    pub(crate) fn resets(&self) -> usize {
        self.resets.load(Relaxed)
    }

    pub(super) fn so_far(&self) -> StreamCounts {
        StreamCounts {
            begun: self.begun.load(Relaxed),
            hasty: self.hasty.load(Relaxed),
            expired: self.expired.load(Relaxed),
        }
    }

    /// Whether the connection must be read in small pieces.
    pub(super) fn is_slow(&self) -> bool {
        self.is_slow.load(Relaxed)
    }

    pub(super) fn set_slow(&self, is_slow: bool) {
        self.is_slow.store(is_slow, Relaxed);
    }

    /// Records that stream `number` was reset before its answer began, at the age `lived`.
    pub(crate) fn reset_early(&self, number: usize, lived: Duration, now: Instant) {
        if lived > PREMATURE {
            return;
        }
        let in_haste = lived < HASTE;
        self.hasty.fetch_add(usize::from(in_haste), Relaxed);
        let abuse = self.counts().premature(number, self.begun.load(Relaxed), in_haste, now);
        if let Some(abuse) = abuse {
            self.give_up(abuse);
        }
    }

    /// Records that a stream was reset before this side has handled it, and that its caller had announced a
    /// timeout of less than [`PREMATURE`].
    pub(crate) fn over_its_time(&self, now: Instant) {
        self.expired.fetch_add(1, Relaxed);
        let abuse = self.counts().over_its_time(now);
        if let Some(abuse) = abuse {
            self.give_up(abuse);
        }
    }

    /// Records that a stream is reset because its peer reads too slowly.
    pub(crate) fn slow_reader(&self) {
        self.slow.fetch_add(1, Relaxed);
    }

    /// The number of streams that were reset for that since the last call.
    pub(crate) fn take_slow(&self) -> usize {
        if self.slow.load(Relaxed) > 0 { self.slow.swap(0, Relaxed) } else { 0 }
    }

    /// Requests that the connection is closed. The first reason stays.
    pub(crate) fn give_up(&self, abuse: Abuse) {
        if self.abuse.set(abuse).is_ok() {
            self.abused.notify_one();
        }
    }

    pub(crate) fn abuse(&self) -> Option<Abuse> {
        self.abuse.get().copied()
    }

    /// Resolves when the connection must be closed.
    pub(crate) async fn abused(&self) {
        while self.abuse().is_none() {
            self.abused.notified().await;
        }
    }

    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn counts(&self) -> MutexGuard<'_, ResetCounts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl ResetCounts ===

impl ResetCounts {
    /// Counts the stream of this number, of `begun` that have begun; returns whether it is one too many.
    fn premature(&mut self, number: usize, begun: usize, in_haste: bool, now: Instant) -> Option<Abuse> {
        let block = begun / BLOCK;
        shift(&mut self.in_block, block - self.block.min(block));
        self.block = block;
        if let Some(count) = self.in_block.get_mut(block - (number / BLOCK).min(block)) {
            *count += 1;
        }
        self.pass(now);
        self.in_half[0] += usize::from(in_haste);
        let streams = begun % BLOCK + if block > 0 { BLOCK } else { 0 };
        match streams >= BLOCK && sum(&self.in_block) > streams / 2 + CHANCE {
            true => Some(Abuse::PrematureResets),
            false => (sum(&self.in_half) >= IN_A_SECOND).then_some(Abuse::ResetRate),
        }
    }

    /// Counts a stream that was reset after the deadline of its caller.
    fn over_its_time(&mut self, now: Instant) -> Option<Abuse> {
        self.pass(now);
        self.in_half_said[0] += 1;
        (sum(&self.in_half_said) >= SAID_IN_A_SECOND).then_some(Abuse::ResetRate)
    }

    /// Advances the time.
    fn pass(&mut self, now: Instant) {
        let since = now.saturating_duration_since(*self.first.get_or_insert(now));
        let half = u64::try_from(since.as_millis() / HALF_SECOND).unwrap_or(u64::MAX);
        let by = usize::try_from(half - self.half.min(half)).unwrap_or(usize::MAX);
        shift(&mut self.in_half, by);
        shift(&mut self.in_half_said, by);
        self.half = half;
    }
}

/// Moves the newest count to the previous one, `by` times.
fn shift(counts: &mut [usize; 2], by: usize) {
    match by {
        0 => {}
        1 => *counts = [0, counts[0]],
        _ => *counts = [0, 0],
    }
}

fn sum(counts: &[usize; 2]) -> usize {
    counts.iter().sum()
}

#[cfg(test)]
mod tests {
    use chassis_core::Random;

    use super::*;

    /// Returns after how many streams a peer is cut off. `resets` decides for each stream whether it is reset
    /// at once; `rate` streams begin in a second.
    #[track_caller]
    fn check(
        rate: usize,
        streams: usize,
        mut resets: impl FnMut(usize) -> bool,
        expected: Option<(usize, Abuse)>,
    ) {
        let (mut counts, begun) = (ResetCounts::default(), Instant::now());
        let cut = (0..streams).find_map(|number| {
            let now = begun + Duration::from_secs(1) * number as u32 / rate as u32;
            let abuse = resets(number).then(|| counts.premature(number, number + 1, true, now))?;
            abuse.map(|abuse| (number + 1, abuse))
        });
        assert_eq!(cut, expected);
    }

    #[test]
    fn a_peer_that_resets_everything_is_cut_off_after_500_streams() {
        check(100_000, 10_000, |_| true, Some((500, Abuse::PrematureResets)));
        check(10, 10_000, |_| true, Some((500, Abuse::PrematureResets)));
        check(100_000, 499, |_| true, None);
        check(100_000, 10_000, |n| n % 3 > 0, Some((500, Abuse::PrematureResets)));
    }

    /// Earlier successful streams allow no more resets.
    #[test]
    fn a_peer_that_begins_to_reset_everything_is_cut_off_soon() {
        check(900, 10_000_000, |n| n >= 9_999_500, Some((10_000_000, Abuse::PrematureResets)));
        check(900, 10_000, |n| n >= 700, Some((1_029, Abuse::PrematureResets)));
    }

    #[test]
    fn half_of_all_may_be_reset() {
        check(900, 1_000_000, |n| n % 2 > 0, None);
        // Callers in step: 64 are reset, then 64 are not.
        check(900, 1_000_000, |n| n / 64 % 2 > 0, None);
        check(900, 1_000_000, |n| (n / 64).is_multiple_of(2), None);
        let random = Random::seeded(1);
        check(
            900,
            1_000_000,
            |_| random.between(Duration::ZERO, Duration::from_secs(2)) < Duration::from_secs(1),
            None,
        );
    }

    #[test]
    fn a_thousand_in_a_second_are_too_many() {
        let mostly_well = |n: usize| n.is_multiple_of(4);
        check(3_900, 100_000, mostly_well, None);
        check(4_800, 100_000, mostly_well, Some((3_997, Abuse::ResetRate)));
    }

    #[test]
    fn callers_of_little_patience_are_not_in_haste() {
        let (mut counts, begun) = (ResetCounts::default(), Instant::now());
        for number in 0..100_000usize {
            let now = begun + Duration::from_millis(number as u64 / 4);
            let abuse = if number.is_multiple_of(2) {
                counts.premature(number, number + 1, false, now)
            } else {
                None
            };
            assert_eq!(abuse, None);
        }
    }

    #[test]
    fn what_was_reset_late_counts_for_its_own_block() {
        let (mut counts, now) = (ResetCounts::default(), Instant::now());
        // 499 of the first 500, counted once there are 2,000.
        for number in 0..499 {
            assert_eq!(counts.premature(number, 2_000, true, now), None);
        }
        for number in 1_500..1_814 {
            assert_eq!(counts.premature(number, 2_000, true, now), None);
        }
        assert_eq!(counts.premature(1_814, 2_000, true, now), Some(Abuse::PrematureResets));
    }
}
