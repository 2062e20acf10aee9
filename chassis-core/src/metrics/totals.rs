//! Sums over all calls of a process, for decisions about the process as a whole.
use std::{collections::HashMap, time::Duration};

use super::durations::{DURATION_BUCKETS, Durations};
use crate::types::Side;

/// Sums over the calls of one side that have ended since the process began. Two of them, by [`since`](Self::since), are
/// those of the time in between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallTotals {
    /// The number of calls.
    pub calls: u64,
    /// Those that failed: incoming ones by an error of the server or by cancellation, outgoing ones by any code but OK.
    pub errors: u64,
    /// Those that this process refused: by a limit, an open circuit, or because no node or route was there. Most of them
    /// have also failed.
    pub refusals: u64,
    /// By duration; the last one above the last bound.
    durations: [u64; DURATION_BUCKETS.len() + 1],
}

/// All series of durations.
#[derive(Default)]
pub(super) struct Series {
    /// By the address of their counts, which they keep.
    held: HashMap<usize, Counted>,
    /// The sums of series that nothing else holds any more, by side.
    gone: [CallTotals; 2],
    /// At this number of series, those that nothing else holds are removed.
    sweep_at: usize,
}

struct Counted {
    side: Side,
    has_failed: bool,
    durations: Durations,
}

/// The first number of series at which they are swept.
const FIRST_SWEEP: usize = 256;

// === impl CallTotals ===

impl CallTotals {
    /// The calls since `earlier`.
    pub fn since(&self, earlier: &CallTotals) -> CallTotals {
        let mut durations = self.durations;
        for (now, before) in durations.iter_mut().zip(earlier.durations) {
            *now = now.saturating_sub(before);
        }
        CallTotals {
            calls: self.calls.saturating_sub(earlier.calls),
            errors: self.errors.saturating_sub(earlier.errors),
            refusals: self.refusals.saturating_sub(earlier.refusals),
            durations,
        }
    }

    /// The duration below which `part` of the calls are, from 0 to 1: interpolated between the bounds of the histogram, as
    /// Prometheus does it; 10 s for longer ones. `None` without calls.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let (lower, upper, passed) = self.found(part)?;
        let upper = upper.unwrap_or(lower);
        Some(Duration::from_secs_f64(lower + (upper - lower) * passed))
    }

    /// The bounds of the bucket of the histogram in which [`quantile`](Self::quantile) is: the lower one, and the upper one,
    /// which is [`Duration::MAX`] above 10 s. `None` without calls.
    pub fn bucket(&self, part: f64) -> Option<(Duration, Duration)> {
        let (lower, upper, _) = self.found(part)?;
        let upper = upper.map_or(Duration::MAX, Duration::from_secs_f64);
        Some((Duration::from_secs_f64(lower), upper))
    }

    /// The bounds in seconds of the bucket of a quantile, and the part of its calls that are below the quantile.
    fn found(&self, part: f64) -> Option<(f64, Option<f64>, f64)> {
        let all: u64 = self.durations.iter().sum();
        let (rank, mut passed, mut lower) = (part.clamp(0.0, 1.0) * all as f64, 0.0, 0.0);
        for (count, upper) in self.durations.iter().zip(DURATION_BUCKETS) {
            let count = *count as f64;
            if count > 0.0 && passed + count >= rank {
                return Some((lower, Some(upper), ((rank - passed) / count).max(0.0)));
            }
            (passed, lower) = (passed + count, upper);
        }
        (all > 0).then_some((lower, None, 0.0))
    }

    fn add(&mut self, counted: &Counted) {
        let counts = counted.durations.counts();
        let calls: u64 = counts.iter().sum();
        self.calls += calls;
        self.errors += if counted.has_failed { calls } else { 0 };
        for (sum, count) in self.durations.iter_mut().zip(counts) {
            *sum += count;
        }
    }
}

// === impl Series ===

impl Series {
    /// Adds a series, unless it is known.
    pub(super) fn add(&mut self, side: Side, has_failed: bool, durations: &Durations) {
        if self.held.len() >= self.sweep_at {
            self.sweep();
        }
        let make = || Counted { side, has_failed, durations: durations.clone() };
        self.held.entry(durations.address()).or_insert_with(make);
    }

    /// The sums of one side, without refusals.
    pub(super) fn totals(&self, side: Side) -> CallTotals {
        let mut totals = self.gone[side as usize].clone();
        self.held.values().filter(|counted| counted.side == side).for_each(|counted| totals.add(counted));
        totals
    }

    /// Removes series that nothing else holds; their sums stay.
    fn sweep(&mut self) {
        let gone = &mut self.gone;
        self.held.retain(|_, counted| {
            let is_held = !counted.durations.is_alone();
            if !is_held {
                gone[counted.side as usize].add(counted);
            }
            is_held
        });
        self.sweep_at = FIRST_SWEEP.max(2 * self.held.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> u64 {
        millis * 1_000_000
    }

    #[test]
    fn totals_are_those_of_all_series_also_of_gone_ones() {
        let (mut series, mut expected) = (Series::default(), [0, 0]);
        let kept = Durations::detached();
        for n in 0..3 * FIRST_SWEEP {
            let (side, has_failed) = (if n % 3 == 0 { Side::Client } else { Side::Server }, n % 2 == 0);
            let durations = Durations::detached();
            series.add(side, has_failed, &durations);
            series.add(side, !has_failed, &durations);
            durations.observe(millis(7));
            expected[0] += u64::from(side == Side::Client);
            expected[1] += u64::from(side == Side::Client && has_failed);
        }
        series.add(Side::Client, true, &kept);
        kept.observe(millis(1));
        assert!(series.held.len() < FIRST_SWEEP + 2, "{}", series.held.len());
        let totals = series.totals(Side::Client);
        assert_eq!([totals.calls, totals.errors], [expected[0] + 1, expected[1] + 1]);
    }

    #[test]
    fn quantiles_are_interpolated() {
        let mut totals = CallTotals::default();
        assert_eq!(totals.quantile(0.9), None);
        totals.durations[3] = 100; // from 25 to 50 ms
        let of = |totals: &CallTotals, part| totals.quantile(part).unwrap().as_micros();
        assert_eq!((of(&totals, 0.0), of(&totals, 0.5), of(&totals, 1.0)), (25_000, 37_500, 50_000));
        let ms = Duration::from_millis;
        assert_eq!((totals.bucket(0.9), CallTotals::default().bucket(0.9)), (Some((ms(25), ms(50))), None));
        totals.durations[14] = 900;
        assert_eq!(of(&totals, 0.9), 10_000_000);
        assert_eq!(totals.bucket(0.9), Some((ms(10_000), Duration::MAX)));
        let before = CallTotals { durations: [1; 15], calls: 2, errors: 3, refusals: 4 };
        let now = CallTotals { durations: [3; 15], calls: 1, errors: 5, refusals: 4 };
        let expected = CallTotals { durations: [2; 15], calls: 0, errors: 2, refusals: 0 };
        assert_eq!(now.since(&before), expected);
    }
}
