//! The pause before the next attempt to reach a server: a plain value.
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use crate::{clock::Instant, random::Random};

/// The pauses of one client in a row of failures.
///
/// At first the pauses are short, so that a restart of the server causes little delay. After 30 s many
/// clients wait for the same server: from then on each tries once in `jitter`, at a time that it draws once, so that
/// they do not all come at once when it is back.
#[derive(Debug)]
pub struct Pace {
    jitter: Duration,
    failures: u32,
    /// The time of the first failure in the row.
    since: Option<Instant>,
    /// One of the times, `jitter` apart, of the attempts after a long outage.
    slot: Arc<OnceLock<Instant>>,
}

/// An outage of this length is long.
const LONG: Duration = Duration::from_secs(30);
/// The first pause. It doubles with each failure.
const FIRST: Duration = Duration::from_millis(50);
/// The longest pause in a short outage: an entry exists again 2 s after the server is back.
const MOST: Duration = Duration::from_millis(500);

// === impl Pace ===

impl Pace {
    /// Without a failure. After a long outage clients spread their attempts over `jitter`; if it is zero, or half a
    /// second at most, their pauses stay those of a short outage.
    pub fn new(jitter: Duration) -> Self {
        Pace { jitter, failures: 0, since: None, slot: Arc::default() }
    }

    /// The pauses of another task of the same client, without a failure. After a long outage both try at the same
    /// times: with two times of its own each client would come at the earlier one, and so more of them at first.
    pub fn beside(&self) -> Self {
        Pace { slot: self.slot.clone(), ..Pace::new(self.jitter) }
    }

    /// Records a success.
    pub fn reset(&mut self) {
        *self = self.beside();
    }

    /// Records that the server answers, though not with what was asked for: an outage is over, and the next pause is one
    /// of a short outage. The failures in a row go on.
    pub fn answered(&mut self) {
        self.since = None;
    }

    /// Records a failure at `now`; returns the pause.
    pub fn next(&mut self, now: Instant, random: &Random) -> Duration {
        let since = *self.since.get_or_insert(now);
        self.failures = self.failures.saturating_add(1);
        if now < since + LONG || self.jitter <= MOST {
            let pause = (FIRST * (1 << (self.failures - 1).min(8))).min(MOST);
            return random.between(pause / 2, pause);
        }
        let slot = *self.slot.get_or_init(|| now + random.between(Duration::ZERO, self.jitter));
        let period = self.jitter.as_nanos();
        let past = match slot.saturating_duration_since(now) {
            Duration::ZERO => now.saturating_duration_since(slot).as_nanos() % period,
            // Drawn by another task, at a later time.
            ahead => period - 1 - (ahead.as_nanos() - 1) % period,
        };
        Duration::from_nanos(u64::try_from(period - past).unwrap_or(u64::MAX))
    }

    /// The number of failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JITTER: Duration = Duration::from_secs(5);

    /// After how many milliseconds a client tries a server after its return from an outage of this length. It has
    /// tasks whose attempts fail after these times.
    fn asked_after(outage: Duration, tasks: &[u64], random: &Random) -> u128 {
        let (start, first) = (Instant::now(), Pace::new(JITTER));
        let asked = tasks.iter().map(|takes| {
            let (mut pace, mut now) = (first.beside(), start);
            while now < start + outage {
                now += Duration::from_millis(*takes);
                now += pace.next(now, random);
            }
            (now - (start + outage)).as_millis()
        });
        asked.min().unwrap_or_default()
    }

    #[test]
    fn a_server_that_was_away_for_a_moment_is_asked_soon() {
        let random = Random::seeded(7);
        for outage in [1, 50, 1_000, 10_000, 29_000] {
            for _ in 0..100 {
                let after = asked_after(Duration::from_millis(outage), &[0], &random);
                assert!(after <= 500, "{after} ms after {outage} ms");
            }
        }
    }

    #[test]
    fn many_clients_do_not_ask_a_server_at_once_that_was_away_for_long() {
        // Of 200 clients, a second has 40 on average; by chance some have more than 50. Of more clients hardly any.
        const CLIENTS: usize = 2_000;
        let random = Random::seeded(7);
        for outage in [40, 60, 95, 600] {
            // One task; its own entry and two services; attempts that are refused and such that have no answer.
            for tasks in [&[0][..], &[0, 1, 2], &[0, 2_000], &[2_000, 2_000, 1_900]] {
                let mut seconds = [0; 6];
                for _ in 0..CLIENTS {
                    seconds[(asked_after(Duration::from_secs(outage), tasks, &random) / 1_000) as usize] += 1;
                }
                assert!(seconds.iter().all(|one| *one <= CLIENTS / 4), "{tasks:?}, {outage} s: {seconds:?}");
            }
        }
    }

    #[test]
    fn attempts_after_a_long_outage_are_one_period_apart() {
        let (random, start) = (Random::seeded(7), Instant::now());
        let (mut pace, mut now) = (Pace::new(JITTER), start);
        while now < start + LONG + JITTER * 4 {
            now += pace.next(now, &random);
        }
        let slot = now + pace.next(now, &random);
        for before in [0, 1, 2_500, 4_999, 5_000, 12_345] {
            let now = slot - Duration::from_millis(before);
            let next = now + pace.next(now, &random);
            assert!(next > now && next <= now + JITTER, "{before}");
            let apart = next.saturating_duration_since(slot).max(slot.saturating_duration_since(next));
            assert_eq!(apart.as_nanos() % JITTER.as_nanos(), 0, "{before}");
        }
    }

    /// A client that had its turn, and has to ask for something else, does not wait for its next one.
    #[test]
    fn an_answer_ends_an_outage() {
        let (random, start) = (Random::seeded(7), Instant::now());
        let (mut pace, mut now) = (Pace::new(JITTER), start);
        while now < start + LONG * 2 {
            now += pace.next(now, &random);
        }
        let failures = pace.failures();
        pace.answered();
        let pause = pace.next(now, &random);
        assert!(pause >= MOST / 2 && pause <= MOST, "{pause:?}");
        assert_eq!(pace.failures(), failures + 1);
    }

    /// A short time to spread attempts over is no rate of attempts.
    #[test]
    fn a_short_jitter_makes_no_pause_shorter() {
        let (random, start) = (Random::seeded(7), Instant::now());
        for jitter in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(1), MOST] {
            let (mut pace, mut now, mut attempts) = (Pace::new(jitter), start, 0);
            while now < start + LONG * 2 {
                now += pace.next(now, &random);
                attempts += u32::from(now > start + LONG);
            }
            assert!(attempts <= 30 * 4, "{attempts} in 30 s with {jitter:?}");
        }
    }
}
