//! How long to wait before trying again.
use std::time::Duration;

use crate::random::Random;

/// No pause is drawn from more than this many times the first one's bound.
const MOST: u32 = 10;

/// The pause before retry number `retry`, the first being 1: anything from nothing to `base`, then to twice
/// as much each time, up to ten times `base`. A `base` of 0 never waits.
///
/// "Full jitter", since clients that failed together must not come back together: Marc Brooker, *Exponential
/// Backoff And Jitter*, 2015.
pub(super) fn delay(base: Duration, retry: u32, random: &Random) -> Duration {
    let doublings = retry.saturating_sub(1).min(u32::BITS - 1);
    let times = (1u32 << doublings).min(MOST);
    random.between(Duration::ZERO, base.saturating_mul(times))
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
    fn no_base_is_too_long() {
        assert!(delay(Duration::MAX, 9, &Random::seeded(1)) <= Duration::MAX);
    }
}
