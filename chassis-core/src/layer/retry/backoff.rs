//! The pause before a retry.
use std::time::Duration;

use crate::random::Random;

/// The limit of a pause, as a multiple of `base`.
const MOST: u32 = 10;

/// The pause before retry number `retry`, counted from 1: random between 0 and `base`, doubled with each retry,
/// up to ten times `base`. With a `base` of 0 there is no pause.
///
/// "Full jitter", so that clients that failed together do not retry together: Marc Brooker, *Exponential
/// Backoff And Jitter*, 2015.
pub(super) fn delay(base: Duration, retry: u32, random: &Random) -> Duration {
    let doublings = retry.saturating_sub(1).min(u32::BITS - 1);
    let times = (1u32 << doublings).min(MOST);
    random.between(Duration::ZERO, base.saturating_mul(times))
}

/// The longest delay requested by a server for which a call waits; with a longer one it is not retried.
/// Otherwise calls without a deadline would wait for an hour.
pub(super) const LONGEST_PUSHBACK: Duration = Duration::from_secs(30);

/// The pause after an answer that requests a delay of `after`: up to a quarter longer, at least up to the first
/// pause of the [backoff](delay), so that calls with the same request are not retried at the same time.
///
/// Within `left`, the remaining time of the call; `None` if that is too short, or `after` too long.
pub(super) fn pushed_back(
    after: Duration,
    base: Duration,
    left: Option<Duration>,
    random: &Random,
) -> Option<Duration> {
    let spare = match left {
        None => Duration::MAX,
        Some(left) => left.checked_sub(after).filter(|spare| !spare.is_zero())?,
    };
    let jitter = (after / 4).max(base).min(spare / 2);
    (after <= LONGEST_PUSHBACK).then(|| random.between(after, after + jitter))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mean and the longest of many pauses, in milliseconds.
    fn pauses(base: u64, retry: u32) -> (f64, f64) {
        let random = Random::seeded(1);
        let draw = |_| delay(Duration::from_millis(base), retry, &random).as_secs_f64() * 1e3;
        let drawn: Vec<f64> = (0..10_000).map(draw).collect();
        (drawn.iter().sum::<f64>() / 10_000.0, drawn.into_iter().fold(0.0, f64::max))
    }

    #[track_caller]
    fn check(base: u64, retry: u32, bound: f64) {
        let (mean, longest) = pauses(base, retry);
        assert!((mean - bound / 2.0).abs() <= bound / 50.0, "mean {mean}");
        assert!(longest <= bound && longest >= bound * 0.99, "longest {longest}");
    }

    #[test]
    fn doubles_up_to_ten_times() {
        check(25, 1, 25.0);
        check(25, 2, 50.0);
        check(25, 3, 100.0);
        check(25, 4, 200.0);
        check(25, 5, 250.0);
        check(25, u32::MAX, 250.0);
        check(25, 0, 25.0);
        check(0, 3, 0.0);
    }

    #[test]
    fn those_who_are_told_the_same_come_back_at_different_times() {
        let ms = Duration::from_millis;
        // The requested delay, the backoff, the remaining time, and the range of expected pauses.
        for (after, base, left, expected) in [
            (1_000, 25, None, Some(1_000..=1_250)),
            (1_000, 25, Some(5_000), Some(1_000..=1_250)),
            (0, 25, None, Some(0..=25)),
            (10, 25, None, Some(10..=35)),
            (1_000, 25, Some(1_100), Some(1_000..=1_050)),
            (1_000, 25, Some(1_000), None),
            (6_000, 25, Some(5_000), None),
            (30_000, 25, None, Some(30_000..=37_500)),
            (30_001, 25, None, None),
            (u64::MAX, 25, None, None),
        ] {
            let random = Random::seeded(1);
            let draw = |_| pushed_back(ms(after), ms(base), left.map(ms), &random);
            let drawn: Vec<_> = (0..1_000).map(draw).collect();
            let Some(expected) = expected else {
                assert!(drawn.iter().all(Option::is_none), "{after} of {left:?}");
                continue;
            };
            let mut drawn: Vec<_> =
                drawn.into_iter().map(|pause| pause.unwrap().as_millis() as u64).collect();
            drawn.sort_unstable();
            assert!(drawn.iter().all(|pause| expected.contains(pause)), "{after} of {left:?}");
            // Distributed over the whole range.
            let (third, width) = (drawn[333], expected.end() - expected.start());
            assert!(third >= expected.start() + width / 4 && third <= expected.start() + width / 2);
        }
    }

    #[test]
    fn no_base_is_too_long() {
        assert!(delay(Duration::MAX, 9, &Random::seeded(1)) <= Duration::MAX);
    }
}
