//! Detects readers that are too slow, so that data is held for them for a limited time.
use std::time::Duration;

use tokio::time::Instant;

/// The rate at which a peer reads waiting data. It begins when data has to wait, and ends when none waits.
#[derive(Debug)]
pub(crate) struct WriteRate {
    since: Instant,
    bytes: u64,
}

/// The result of a check of the rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Check again then.
    Wait(Instant),
    TooSlow,
}

/// The rate is an average over this time, so that a pause alone does not count.
pub(crate) const WINDOW: Duration = Duration::from_secs(30);

// === impl WriteRate ===

impl WriteRate {
    pub(crate) fn new(now: Instant) -> Self {
        WriteRate { since: now, bytes: 0 }
    }

    /// Records that the peer has read `bytes`.
    pub(crate) fn took(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    /// Checks the rate at `now`, with a minimum of `least` bytes a second.
    pub(crate) fn look(&mut self, now: Instant, least: u32) -> Pace {
        if now < self.since + WINDOW {
            return Pace::Wait(self.since + WINDOW);
        }
        if self.bytes < u64::from(least) * WINDOW.as_secs() {
            return Pace::TooSlow;
        }
        *self = WriteRate::new(now);
        Pace::Wait(now + WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares after how many seconds, of 600, a reader that reads `bytes` each second is cut off.
    #[track_caller]
    fn check(bytes: impl Fn(u64) -> usize, expected: Option<u64>) {
        let begun = Instant::now();
        let mut rate = WriteRate::new(begun);
        let cut = (1..=600).find(|second| {
            rate.took(bytes(*second));
            rate.look(begun + Duration::from_secs(*second), 240) == Pace::TooSlow
        });
        assert_eq!(cut, expected);
    }

    #[test]
    fn readers_are_cut_off_below_the_rate() {
        check(|_| 0, Some(30));
        check(|_| 1, Some(30));
        check(|_| 239, Some(30));
        check(|_| 240, None);
        check(|_| 1_000_000, None);
    }

    #[test]
    fn a_pause_is_no_end() {
        check(|second| if second % 30 == 1 { 7_200 } else { 0 }, None);
        check(|second| if second < 100 { 1_000 } else { 0 }, Some(150));
    }
}
