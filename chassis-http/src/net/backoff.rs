//! The time to wait before the next attempt to connect.
use std::time::Duration;

use chassis_core::Random;

/// Waits that grow with each failure in a row.
///
/// The first is short, because most losses are a restart or a connection's age limit; the others follow gRPC's
/// connection backoff (1 s, × 1.6, at most `max_backoff`, ± 20 %).
#[derive(Debug)]
pub(crate) struct Backoff {
    failures: i32,
    most: Duration,
}

const FIRST: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(100));
const BASE: f64 = 1.0;
const FACTOR: f64 = 1.6;
const JITTER: f64 = 0.2;

// === impl Backoff ===

impl Backoff {
    /// No wait is longer than `most`, apart from its jitter.
    pub(crate) fn new(most: Duration) -> Self {
        Backoff { failures: 0, most }
    }

    /// The wait before the next attempt.
    pub(crate) fn next(&mut self, random: &Random) -> Duration {
        let failures = self.failures;
        self.failures = failures.saturating_add(1);
        if failures == 0 {
            return random.between(FIRST.0, FIRST.1);
        }
        let seconds = (BASE * FACTOR.powi(failures - 1)).min(self.most.as_secs_f64());
        Duration::from_secs_f64(seconds * (1.0 + JITTER * (2.0 * random.unit() - 1.0)))
    }

    /// Whether nothing has failed since a connection served a call.
    pub(crate) fn is_fresh(&self) -> bool {
        self.failures == 0
    }

    /// A connection has served a call, so the endpoint works again. An open connection alone does not prove
    /// that.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(wait: Duration, least_ms: u64, most_ms: u64) {
        assert!((least_ms..=most_ms).contains(&(wait.as_millis() as u64)), "{wait:?}");
    }

    #[test]
    fn grows_from_quick_to_two_minutes() {
        let (mut backoff, random) = (Backoff::new(Duration::from_secs(120)), Random::seeded(1));
        check(backoff.next(&random), 50, 100);
        check(backoff.next(&random), 800, 1_200);
        check(backoff.next(&random), 1_280, 1_920);
        check(backoff.next(&random), 2_048, 3_072);
        (0..1_000).for_each(|_| check(backoff.next(&random), 0, 144_000));
        check(backoff.next(&random), 96_000, 144_000);
        backoff.reset();
        check(backoff.next(&random), 50, 100);
    }

    #[test]
    fn grows_no_further_than_its_bound() {
        let (mut backoff, random) = (Backoff::new(Duration::from_millis(500)), Random::seeded(1));
        check(backoff.next(&random), 50, 100);
        (0..1_000).for_each(|_| check(backoff.next(&random), 400, 600));
    }
}
