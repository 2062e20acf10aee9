//! The bucket of a rate limit.
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{clock::Instant, types::units::Rate};

#[cfg(test)]
mod tests;

/// A bucket that holds `burst` calls and refills at `rate`; both are arguments, so they can change from one
/// call to the next. It starts full, and a call costs one compare-and-swap. Over any time `t` it admits at most
/// `burst` + `rate` · `t`, and a thousandth of a call for rounding.
///
/// GCRA in its form as a continuous-state leaky bucket (ITU-T I.371), which stores how many calls were taken
/// and when. The other form, a theoretical arrival time, measures the level in time: it would jump with every
/// change of the rate.
#[derive(Debug)]
pub(crate) struct Gcra {
    epoch: Instant,
    /// The level, packed.
    word: AtomicU64,
    /// The rate at which it last refilled, in calls a second, as the bits of an `f64`.
    hertz: AtomicU64,
}

/// The bucket does not hold enough calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
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
    pub(crate) fn new(now: Instant) -> Self {
        Gcra { epoch: now, word: AtomicU64::new(0), hertz: AtomicU64::new(0) }
    }

    /// Takes `n` calls, all or none. A `rate` or `burst` of 0 refuses all.
    pub(crate) fn take(&self, now: Instant, rate: Rate, burst: u32, n: u32) -> Result<(), Wait> {
        self.reserve(now, rate, burst, n, Duration::ZERO).map(|_| ())
    }

    /// Takes `n` calls, also before they are refilled: the caller has to wait for the time that is returned, at
    /// most `most`, and [gives back](Gcra::give_back) calls that it then does not make.
    pub(crate) fn reserve(
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
    pub(crate) fn give_back(&self, now: Instant, burst: u32, n: u32, left: Duration) {
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
    pub(crate) fn retune(&self, now: Instant, rate: Rate) {
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
    pub(crate) fn available(&self, now: Instant, burst: u32) -> u32 {
        (f64::from(burst) - self.used(now) + SLACK).max(0.0) as u32
    }

    /// Whether the bucket is full. A full bucket can be dropped, because a new one is equal to it.
    pub(crate) fn is_full(&self, now: Instant) -> bool {
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
