//! The bucket of a rate limit.
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{clock::Instant, types::units::Rate};

/// A bucket that holds `burst` calls and refills at `rate`; both are arguments, so they can change from one
/// call to the next. It starts full, and a call costs one compare-and-swap. Over any time `t` it admits at most
/// `burst` + `rate` · `t`, and a thousandth of a call for rounding.
///
/// GCRA in its form as a continuous-state leaky bucket (ITU-T I.371), which stores how many calls were taken
/// and when. The other form, a theoretical arrival time, measures the level in time: it would jump with every
/// change of the rate.
///
/// ```
/// use chassis_core::{layer::rate_limit::Gcra, units::Rate};
/// use chassis_core::clock::Instant;
///
/// let (now, rate) = (Instant::now(), Rate::per_second(10));
/// let bucket = Gcra::new(now);
/// assert!(bucket.take(now, rate, 1, 1).is_ok());
/// let wait = bucket.take(now, rate, 1, 1).unwrap_err();
/// assert_eq!(wait.retry_after.unwrap().as_millis(), 100);
/// ```
#[derive(Debug)]
pub struct Gcra {
    epoch: Instant,
    /// The level, packed.
    word: AtomicU64,
    /// The rate at which it last refilled, in calls a second, as the bits of an `f64`.
    hertz: AtomicU64,
}

/// The bucket does not hold enough calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The time until it does, if no other caller takes calls meanwhile; `None` if never: at a rate or burst of
    /// 0, and if `n` is more than the bucket holds.
    pub retry_after: Option<Duration>,
}

/// A time: its tick, and the nanoseconds within the tick.
#[derive(Clone, Copy)]
struct Moment {
    tick: u32,
    rest: u64,
}

/// The calls that would be missing from the bucket if nothing had been refilled since the start of a tick.
///
/// Packed: an `f32` above the tick's number. Taking adds to `used` and keeps the tick; another tick is only
/// chosen if the bucket is full, the rate changes or the numbers get large. On the grid of [`GRID`] all of that
/// is exact, so errors do not accumulate however long a bucket is in use.
#[derive(Clone, Copy)]
struct Level {
    used: f32,
    tick: u32,
}

/// A 64th of a second in nanoseconds: the refill of a whole rate in one tick lies on the grid. 32 bits of ticks
/// last two years.
const TICK: u64 = 15_625_000;

/// `used` is a multiple of this. An `f32` holds such numbers up to [`LARGE`] exactly.
const GRID: f64 = 1.0 / 1024.0;

const LARGE: f32 = 16_384.0;

/// The share of a call that may be missing: so that a caller who comes every 1/3 s, rounded to nanoseconds, or
/// after exactly `retry_after`, is admitted.
const SLACK: f64 = 0.001;

/// The age in ticks at which a level moves to a new tick, well before 32 bits wrap: 18 hours.
const OLD: u32 = 1 << 22;

// === impl Gcra ===

impl Gcra {
    /// A full bucket; its clock starts at `now`.
    pub fn new(now: Instant) -> Self {
        Gcra { epoch: now, word: AtomicU64::new(0), hertz: AtomicU64::new(0) }
    }

    /// Takes `n` calls, all or none. A `rate` or `burst` of 0 refuses all.
    pub fn take(&self, now: Instant, rate: Rate, burst: u32, n: u32) -> Result<(), Wait> {
        self.reserve(now, rate, burst, n, Duration::ZERO).map(|_| ())
    }

    /// Takes `n` calls, also before they are refilled: the caller has to wait for the time that is returned, at
    /// most `most`, and [gives back](Gcra::give_back) calls that it then does not make.
    pub fn reserve(
        &self,
        now: Instant,
        rate: Rate,
        burst: u32,
        n: u32,
        most: Duration,
    ) -> Result<Duration, Wait> {
        if rate.count() == 0 || burst == 0 || n > burst {
            return Err(Wait { retry_after: None });
        }
        let hertz = rate.hertz();
        if self.hertz.load(Relaxed) != hertz.to_bits() {
            self.retune(now, rate);
        }
        let now = self.moment(now);
        let mut word = self.word.load(Relaxed);
        loop {
            let level = Level::unpack(word);
            let used = level.at(now, hertz);
            let wait = time_for(used + f64::from(n) - f64::from(burst), hertz);
            if wait > most {
                return Err(Wait { retry_after: Some(wait) });
            }
            let next = match used > 0.0 && !level.is_worn(now) {
                true => Level { used: level.used + n as f32, ..level },
                false => level.moved(now, used + f64::from(n), hertz),
            };
            match self.word.compare_exchange_weak(word, next.pack(), Relaxed, Relaxed) {
                Ok(_) => return Ok(wait),
                Err(newer) => word = newer,
            }
        }
    }

    /// Gives back `n` calls that were reserved and will not be made; `left` is the rest of their wait.
    ///
    /// Nothing is given back if others wait behind them: their turns stay as they are, and a new caller would
    /// go out together with the last of them. After Go's `x/time/rate`.
    pub fn give_back(&self, now: Instant, burst: u32, n: u32, left: Duration) {
        let (hertz, now) = (f64::from_bits(self.hertz.load(Relaxed)), self.moment(now));
        let most = f64::from(burst) + left.as_secs_f64() * hertz + SLACK;
        let _ = self.word.fetch_update(Relaxed, Relaxed, |word| {
            let level = Level::unpack(word);
            let put_back = Level { used: (level.used - n as f32).max(0.0), ..level };
            (level.at(now, hertz) <= most).then(|| put_back.pack())
        });
    }

    /// Refills at `rate` from `now` on; the level stays. Call it when a setting changes: otherwise the next
    /// call does so, and the time until then counts at the old rate.
    pub fn retune(&self, now: Instant, rate: Rate) {
        let now = self.moment(now);
        let old = f64::from_bits(self.hertz.load(Relaxed));
        // The level first, so that a thread that sees the new rate does not apply it to the time before.
        let _ = self.word.fetch_update(Relaxed, Relaxed, |word| {
            let level = Level::unpack(word);
            Some(level.moved(now, level.at(now, old), rate.hertz()).pack())
        });
        self.hertz.store(rate.hertz().to_bits(), Relaxed);
    }

    /// The number of calls that could be taken at `now`.
    pub fn available(&self, now: Instant, burst: u32) -> u32 {
        (f64::from(burst) - self.used(now) + SLACK).max(0.0) as u32
    }

    /// Whether the bucket is full. A full bucket can be dropped, because a new one is equal to it.
    pub fn is_full(&self, now: Instant) -> bool {
        self.used(now) <= SLACK
    }

    fn used(&self, now: Instant) -> f64 {
        let hertz = f64::from_bits(self.hertz.load(Relaxed));
        Level::unpack(self.word.load(Relaxed)).at(self.moment(now), hertz)
    }

    fn moment(&self, now: Instant) -> Moment {
        let nanos = now.nanos_since(self.epoch);
        Moment { tick: (nanos / TICK) as u32, rest: nanos % TICK }
    }
}

// === impl Level ===

impl Level {
    /// The missing calls at `now`.
    fn at(self, now: Moment, hertz: f64) -> f64 {
        (f64::from(self.used) - self.elapsed(now).unwrap_or(0.0) * hertz).max(0.0)
    }

    /// The seconds since the tick began; `None` if `now` is before that, on the clock of a slower thread.
    fn elapsed(self, now: Moment) -> Option<f64> {
        let ticks = now.tick.wrapping_sub(self.tick);
        (ticks <= u32::MAX / 2).then(|| seconds(u64::from(ticks) * TICK + now.rest))
    }

    /// `used` calls at `now`, on the tick of `now`; never on an earlier tick than before.
    fn moved(self, now: Moment, used: f64, hertz: f64) -> Level {
        if self.elapsed(now).is_none() {
            return Level { used: used as f32, ..self };
        }
        let used = used + seconds(now.rest) * hertz;
        // Rounds, because the value is positive; `round` would be a function call.
        Level { used: ((used / GRID + 0.5) as i64 as f64 * GRID) as f32, tick: now.tick }
    }

    fn is_worn(self, now: Moment) -> bool {
        let ticks = now.tick.wrapping_sub(self.tick);
        self.used > LARGE || (OLD..=u32::MAX / 2).contains(&ticks)
    }

    fn pack(self) -> u64 {
        u64::from(self.used.to_bits()) << 32 | u64::from(self.tick)
    }

    fn unpack(word: u64) -> Self {
        Level { used: f32::from_bits((word >> 32) as u32), tick: word as u32 }
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as i64 as f64 / 1e9 // less than 2⁶³, and signed numbers convert in one instruction
}

/// The time it takes to refill `missing` calls.
fn time_for(missing: f64, hertz: f64) -> Duration {
    if missing <= SLACK {
        return Duration::ZERO;
    }
    Duration::try_from_secs_f64(missing / hertz).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use governor::{Quota, RateLimiter, clock::FakeRelativeClock};
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const S: Duration = Duration::from_secs(1);

    /// How many of `calls`, one after the other at `now`, are admitted.
    fn admitted(bucket: &Gcra, now: Instant, rate: Rate, burst: u32, calls: u32) -> u32 {
        (0..calls).filter(|_| bucket.take(now, rate, burst, 1).is_ok()).count() as u32
    }

    #[test]
    fn fills_up_at_its_rate() {
        let (start, rate) = (Instant::now(), Rate::per_second(100));
        let bucket = Gcra::new(start);
        for (at, expected) in [(0, 20), (0, 0), (9, 0), (10, 1), (10, 0), (110, 10), (10_000, 20)] {
            assert_eq!(admitted(&bucket, start + at * MS, rate, 20, 100), expected, "at {at} ms");
        }
    }

    #[test]
    fn nothing_gets_through_at_0() {
        let now = Instant::now();
        let bucket = Gcra::new(now);
        let never = Err(Wait { retry_after: None });
        assert_eq!(bucket.take(now, Rate::per_second(0), 10, 1), never);
        assert_eq!(bucket.take(now, Rate::per_second(10), 0, 1), never);
        assert_eq!(bucket.take(now, Rate::per_second(10), 3, 4), never);
        assert_eq!(bucket.take(now, Rate::per_second(10), 3, 3), Ok(()));
    }

    #[test]
    fn who_waits_as_told_gets_through() {
        for rate in ["7/s", "1/h", "3/m", "999/s", "100000/s"].map(|rate| rate.parse::<Rate>().unwrap()) {
            let mut now = Instant::now();
            let bucket = Gcra::new(now);
            now += Duration::from_nanos(123_456_789);
            assert_eq!(admitted(&bucket, now, rate, 5, 5), 5);
            for _ in 0..100 {
                let wait = bucket.take(now, rate, 5, 1).unwrap_err().retry_after.unwrap();
                assert!(bucket.take(now + wait - wait / 100, rate, 5, 1).is_err(), "{rate}");
                now += wait;
                bucket.take(now, rate, 5, 1).unwrap();
            }
        }
    }

    #[test]
    fn reservations_queue_up_to_a_bound() {
        let (now, rate) = (Instant::now(), Rate::per_second(10));
        let bucket = Gcra::new(now);
        let reserve = || bucket.reserve(now, rate, 2, 1, 250 * MS).map(|wait| wait.as_millis());
        assert_eq!([(); 4].map(|()| reserve()), [Ok(0), Ok(0), Ok(100), Ok(200)]);
        assert_eq!(reserve(), Err(Wait { retry_after: Some(300 * MS) }));
        bucket.give_back(now, 2, 1, 100 * MS);
        assert_eq!(bucket.reserve(now, rate, 2, 1, 250 * MS), Err(Wait { retry_after: Some(300 * MS) }));
        bucket.give_back(now, 2, 1, 200 * MS);
        assert_eq!(bucket.reserve(now, rate, 2, 1, 250 * MS), Ok(200 * MS));
        bucket.give_back(now, 2, 1_000, S);
        assert_eq!(bucket.available(now, 2), 2, "no fuller than full");
    }

    #[test]
    fn a_change_of_rate_keeps_the_level() {
        let mut now = Instant::now();
        let bucket = Gcra::new(now);
        let [slow, fast] = ["1/m", "1000/s"].map(|rate| rate.parse::<Rate>().unwrap());
        assert_eq!(admitted(&bucket, now, slow, 100, 70), 70);
        assert_eq!(admitted(&bucket, now, fast, 100, 100), 30, "slow to fast");
        now += 50 * MS;
        assert_eq!(admitted(&bucket, now, slow, 100, 100), 50, "fast to slow");
        now += S;
        bucket.retune(now, fast);
        assert_eq!(bucket.available(now, 100), 0, "the second before the change counts as slow");
        assert_eq!(bucket.available(now + 10 * MS, 100), 10);
        now += S;
        bucket.retune(now, slow);
        assert_eq!(bucket.available(now, 100), 100, "the second before the change counts as fast");
    }

    #[test]
    fn a_change_of_burst_keeps_what_was_taken() {
        let (now, rate) = (Instant::now(), Rate::per_second(1));
        let bucket = Gcra::new(now);
        assert_eq!(admitted(&bucket, now, rate, 10, 8), 8);
        assert_eq!(admitted(&bucket, now, rate, 5, 8), 0);
        assert_eq!(admitted(&bucket, now, rate, 20, 100), 12);
    }

    #[test]
    fn an_earlier_now_gives_nothing_away() {
        let (now, rate) = (Instant::now() + S, Rate::per_second(100));
        let bucket = Gcra::new(now - S);
        assert_eq!(admitted(&bucket, now, rate, 10, 10), 10);
        assert_eq!(admitted(&bucket, now - 500 * MS, rate, 10, 10), 0);
        assert_eq!(admitted(&bucket, now + 20 * MS, rate, 10, 10), 2);
    }

    #[test]
    fn who_comes_at_the_rate_gets_through_for_ever() {
        for (rate, burst) in [("3/s", 1), ("100/s", 1), ("999/s", 1), ("7/h", 2), ("50000/s", 10_000)] {
            let (start, rate) = (Instant::now(), rate.parse::<Rate>().unwrap());
            let bucket = Gcra::new(start);
            admitted(&bucket, start, rate, burst, burst - 1);
            // In nanoseconds, each rounded down.
            let at = |i: u32| Duration::from_nanos((1e9 / rate.hertz() * f64::from(i)) as u64);
            let refused = (0..200_000).find(|i| bucket.take(start + at(*i), rate, burst, 1).is_err());
            assert_eq!(refused, None, "{rate}");
        }
    }

    #[test]
    fn no_arithmetic_is_too_much() {
        let now = Instant::now();
        let bucket = Gcra::new(now);
        for rate in [Rate::new(1, Duration::MAX), Rate::new(u32::MAX, Duration::ZERO)] {
            for at in [now, now + S, now + 1_000_000_000 * S] {
                let _ = bucket.reserve(at, rate, u32::MAX, u32::MAX, S);
                let _ = bucket.take(at, rate, 1, 1);
                bucket.give_back(at, u32::MAX, u32::MAX, Duration::MAX);
            }
        }
        let _ = bucket.take(now, Rate::per_second(1), 1, 1);
    }

    #[test]
    fn threads_share_one_bucket() {
        let (now, rate) = (Instant::now(), Rate::per_second(1));
        let bucket = Gcra::new(now);
        let total: u32 = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| admitted(&bucket, now, rate, 10_000, 5_000))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(total, 10_000);
    }

    /// Gaps of very different length, some of them exactly one interval.
    fn gaps() -> impl Strategy<Value = Vec<(u8, f64)>> {
        prop::collection::vec((0u8..5, 0.0..1.0f64), 1..400)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// Never differs from `governor` by more than one call, and admits ≤ burst + rate · t over any window.
        #[test]
        fn admits_what_governor_admits(hertz in 1u32..20_000, burst in 1u32..300, gaps in gaps()) {
            let (rate, start) = (Rate::per_second(hertz), Instant::now());
            let bucket = Gcra::new(start);
            let quota = Quota::per_second(hertz.try_into().unwrap()).allow_burst(burst.try_into().unwrap());
            let clock = FakeRelativeClock::default();
            let oracle = RateLimiter::direct_with_clock(quota, clock.clone());

            let interval = rate.interval().unwrap();
            let mut elapsed = Duration::ZERO;
            let (mut ours, mut theirs) = (Vec::new(), 0);
            for (kind, share) in gaps {
                let gap = match kind {
                    0 | 1 => Duration::ZERO,
                    2 => interval,
                    3 => interval.mul_f64(share * 3.0),
                    _ => interval.mul_f64(share * f64::from(burst)),
                };
                elapsed += gap;
                clock.advance(gap);
                if bucket.take(start + elapsed, rate, burst, 1).is_ok() {
                    ours.push(elapsed.as_secs_f64());
                }
                theirs += usize::from(oracle.check().is_ok());
                prop_assert!(ours.len().abs_diff(theirs) <= 1, "{} against {theirs}", ours.len());
            }
            for (i, from) in ours.iter().enumerate() {
                for (j, to) in ours.iter().enumerate().skip(i) {
                    let most = f64::from(burst) + (to - from) * f64::from(hertz) + 2.0 * SLACK;
                    prop_assert!(((j - i + 1) as f64) <= most, "{} in {}", j - i + 1, to - from);
                }
            }
        }

        /// Callers that take all they can get, over minutes, get the rate within a ten-thousandth.
        #[test]
        fn keeps_its_rate(hertz in 1u32..5_000, burst in 2u32..50) {
            let (rate, start) = (Rate::per_second(hertz), Instant::now());
            let bucket = Gcra::new(start);
            let (steps, step) = (2_000, rate.interval().unwrap() / 2);
            let got: u32 = (0..steps).map(|i| admitted(&bucket, start + step * i, rate, burst, 2)).sum();
            let due = f64::from(burst) + (step * steps).as_secs_f64() * f64::from(hertz);
            prop_assert!((f64::from(got) - due).abs() <= due / 10_000.0 + 1.0, "{got} of {due}");
        }
    }
}
