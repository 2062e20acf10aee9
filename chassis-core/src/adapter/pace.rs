//! The pause before the next attempt to reach a server: a plain value.
use std::time::Duration;

use crate::{clock::Instant, random::Random};

/// The pauses of one client in a row of failures.
///
/// At first the pauses are short, so that a restart of the server causes little delay. After 30 s many
/// clients wait for the same server: from then on each tries once in `jitter`, at a random time, so that they do not
/// all connect at once when it is back.
#[derive(Debug)]
pub struct Pace {
    jitter: Duration,
    failures: u32,
    /// The time of the first failure in the row.
    since: Option<Instant>,
    /// Whether the random time was drawn.
    is_spread: bool,
}

/// An outage of this length is long.
const LONG: Duration = Duration::from_secs(30);
/// The first pause. It doubles with each failure.
const FIRST: Duration = Duration::from_millis(50);
/// The longest pause in a short outage: an entry exists again 2 s after the server is back.
const MOST: Duration = Duration::from_millis(500);

// === impl Pace ===

impl Pace {
    /// Without a failure. After a long outage clients spread their attempts over `jitter`; zero: they do not.
    pub fn new(jitter: Duration) -> Self {
        Pace { jitter, failures: 0, since: None, is_spread: false }
    }

    /// Records a success.
    pub fn reset(&mut self) {
        *self = Pace::new(self.jitter);
    }

    /// Records a failure at `now`; returns the pause.
    pub fn next(&mut self, now: Instant, random: &Random) -> Duration {
        let since = *self.since.get_or_insert(now);
        self.failures = self.failures.saturating_add(1);
        if now < since + LONG || self.jitter.is_zero() {
            let pause = (FIRST * (1 << (self.failures - 1).min(8))).min(MOST);
            return random.between(pause / 2, pause);
        }
        match std::mem::replace(&mut self.is_spread, true) {
            false => random.between(Duration::ZERO, self.jitter),
            true => random.between(self.jitter * 9 / 10, self.jitter),
        }
    }

    /// The number of failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many milliseconds a server is tried after its return from an outage of this length.
    fn asked_after(outage: Duration, random: &Random) -> u128 {
        let start = Instant::now();
        let (mut pace, mut now) = (Pace::new(Duration::from_secs(5)), start);
        while now < start + outage {
            now += pace.next(now, random);
        }
        (now - (start + outage)).as_millis()
    }

    #[test]
    fn a_server_that_was_away_for_a_moment_is_asked_soon() {
        let random = Random::seeded(7);
        for outage in [1, 50, 1_000, 10_000, 29_000] {
            for _ in 0..100 {
                let after = asked_after(Duration::from_millis(outage), &random);
                assert!(after <= 500, "{after} ms after {outage} ms");
            }
        }
    }

    #[test]
    fn many_clients_do_not_ask_a_server_at_once_that_was_away_for_long() {
        let random = Random::seeded(7);
        for outage in [60, 95, 600] {
            let mut seconds = [0; 6];
            for _ in 0..200 {
                seconds[(asked_after(Duration::from_secs(outage), &random) / 1_000) as usize] += 1;
            }
            assert!(seconds.iter().all(|one| *one <= 50), "in each second after {outage} s: {seconds:?}");
        }
    }
}
