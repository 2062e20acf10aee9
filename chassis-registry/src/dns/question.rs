//! One question to DNS: its known answer, and the time of the next query. A plain value.
use std::{net::IpAddr, time::Duration};

use chassis_core::Random;
use tokio::time::Instant;

/// A record of an answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Record {
    Address(IpAddr),
    Srv(Srv),
}

/// An SRV record: the host and port of a listener.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Srv {
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) port: u16,
    /// The host, without the final dot.
    pub(super) target: String,
}

/// The reply to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Records, valid for the time.
    Found(Vec<Record>, Duration),
    /// There are none: NXDOMAIN, or the name `exists` without such records.
    Nothing {
        exists: bool,
        /// The time for which that is valid, if it is stated.
        ttl: Option<Duration>,
    },
    /// No answer, or an unusable one: SERVFAIL, a timeout.
    Failed(String),
}

/// The state of a question.
#[derive(Debug)]
pub(super) struct Question {
    /// The last accepted answer. `None`: there is none yet.
    known: Option<Known>,
    /// The number of replies in a row that deny records which are still accepted.
    denied: u32,
    failures: u32,
    due: Instant,
}

#[derive(Debug, PartialEq, Eq)]
struct Known {
    records: Vec<Record>,
    exists: bool,
}

/// The bounds of the time between two queries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ttl {
    pub(super) least: Duration,
    pub(super) most: Duration,
    pub(super) jitter: Duration,
}

/// The number of answers in a row that must state that there are no records any more: a single one may be a
/// mistake.
const CONFIRMATIONS: u32 = 2;
/// The time until such an answer is checked by another query.
const CONFIRM: Duration = Duration::from_millis(250);
/// The longest time for which a negative answer is accepted: a service may start at any time.
const MOST_NOTHING: Duration = Duration::from_secs(5);
/// The first pause after a failure. It doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause: the records are known 5 s after DNS is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

// === impl Question ===

impl Question {
    /// A question that is due at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Question { known: None, denied: 0, failures: 0, due: now }
    }

    /// Processes a reply at `now`. Returns whether the known records have changed.
    pub(super) fn accept(&mut self, reply: Reply, now: Instant, ttl: &Ttl, random: &Random) -> bool {
        if let Reply::Failed(_) = reply {
            let pause = (FIRST_PAUSE * (1 << self.failures.min(4))).min(LONGEST_PAUSE);
            self.failures = self.failures.saturating_add(1);
            self.due = now + random.between(pause / 2, pause);
            return false;
        }
        self.failures = 0;
        let (records, exists, span) = match reply {
            Reply::Found(mut records, span) => {
                records.sort_unstable();
                records.dedup();
                (records, true, span.clamp(ttl.least, ttl.most))
            }
            Reply::Nothing { exists, ttl: span } => {
                if !self.records().is_empty() && self.denied + 1 < CONFIRMATIONS {
                    self.denied += 1;
                    self.due = now + CONFIRM;
                    return false;
                }
                let most = MOST_NOTHING.clamp(ttl.least, ttl.most);
                (Vec::new(), exists, span.unwrap_or(most).clamp(ttl.least, most))
            }
            Reply::Failed(_) => return false,
        };
        self.denied = 0;
        self.due = now + span + random.between(Duration::ZERO, ttl.jitter);
        let known = Some(Known { records, exists });
        let has_changed = self.known != known;
        self.known = known;
        has_changed
    }

    /// The accepted records.
    pub(super) fn records(&self) -> &[Record] {
        self.known.as_ref().map_or(&[], |known| &known.records)
    }

    /// Whether it was ever answered.
    pub(super) fn is_answered(&self) -> bool {
        self.known.is_some()
    }

    /// Whether it was asked: answered, or failed.
    pub(super) fn is_asked(&self) -> bool {
        self.is_answered() || self.is_failing()
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Whether its name exists, as far as is known.
    pub(super) fn exists(&self) -> bool {
        self.known.as_ref().is_some_and(|known| known.exists)
    }

    /// The time of the next query.
    pub(super) fn due(&self) -> Instant {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Ttl =
        Ttl { least: Duration::from_secs(1), most: Duration::from_secs(60), jitter: Duration::ZERO };

    /// A letter for each reply: `F` records, `N` nothing, `x` a failure. After each, how many records are known, and
    /// after how many milliseconds it is asked again: after a failure at most, and no sooner than half of it.
    #[track_caller]
    fn check(replies: &str, expected: &[(usize, u64)]) {
        let (random, now) = (Random::seeded(7), Instant::now());
        let mut question = Question::new(now);
        for (at, (reply, expected)) in replies.chars().zip(expected).enumerate() {
            let reply = match reply {
                'F' => Reply::Found(vec![Record::Address([10, 0, 0, 5].into())], Duration::from_secs(30)),
                'N' => Reply::Nothing { exists: false, ttl: None },
                _ => Reply::Failed("SERVFAIL".into()),
            };
            let is_failure = matches!(reply, Reply::Failed(_));
            question.accept(reply, now, &TTL, &random);
            let pause = (question.due() - now).as_millis() as u64;
            let is_expected =
                if is_failure { pause <= expected.1 && 2 * pause >= expected.1 } else { pause == expected.1 };
            assert!(
                is_expected,
                "{replies}, reply {at}: it is asked again after {pause} ms, not {}",
                expected.1
            );
            assert_eq!(question.records().len(), expected.0, "{replies}, reply {at}");
        }
    }

    #[test]
    fn records_are_asked_for_again_after_their_ttl() {
        check("FF", &[(1, 30_000), (1, 30_000)]);
    }

    #[test]
    fn what_is_gone_is_asked_for_once_more() {
        check("FNF", &[(1, 30_000), (1, 250), (1, 30_000)]);
        check("FNNN", &[(1, 30_000), (1, 250), (0, 5_000), (0, 5_000)]);
        check("FNxN", &[(1, 30_000), (1, 250), (1, 500), (0, 5_000)]);
    }

    #[test]
    fn a_failure_takes_nothing_away() {
        check("Fxxxxx", &[(1, 30_000), (1, 500), (1, 1_000), (1, 2_000), (1, 2_000), (1, 2_000)]);
        check("xN", &[(0, 500), (0, 5_000)]);
    }

    #[test]
    fn a_ttl_has_a_floor_and_a_cap_and_a_jitter() {
        let (random, now) = (Random::seeded(7), Instant::now());
        let ttl = Ttl { jitter: Duration::from_millis(500), ..TTL };
        for (stated, least) in [(0, 1), (1, 1), (30, 30), (60, 60), (86_400, 60), (u64::from(u32::MAX), 60)] {
            let mut pauses: Vec<_> = (0..100)
                .map(|_| {
                    let mut question = Question::new(now);
                    let found = vec![Record::Address([10, 0, 0, 5].into())];
                    question.accept(Reply::Found(found, Duration::from_secs(stated)), now, &ttl, &random);
                    question.due() - now
                })
                .collect();
            pauses.sort();
            let least = Duration::from_secs(least);
            assert!(pauses[0] >= least && pauses[99] <= least + ttl.jitter, "{stated}: {pauses:?}");
            assert!(pauses[99] - pauses[0] > ttl.jitter / 2, "{stated}: they are spread");
        }
    }
}
