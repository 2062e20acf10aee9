//! Readers that are too slow: what we hold for them is held for a while only.
use std::time::Duration;

use tokio::time::Instant;

/// How fast a peer takes what waits for it. It is begun when something has to wait, and over when nothing does.
#[derive(Debug)]
pub(crate) struct WriteRate {
    since: Instant,
    bytes: u64,
}

/// The result of a look at the rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Look again then.
    Wait(Instant),
    TooSlow,
}

/// A rate is that of so long, so that a pause is no end.
pub(crate) const WINDOW: Duration = Duration::from_secs(30);

// === impl WriteRate ===

impl WriteRate {
    pub(crate) fn new(now: Instant) -> Self {
        WriteRate { since: now, bytes: 0 }
    }

    /// The peer has taken so many bytes.
    pub(crate) fn took(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    /// Looks at `now`, with a bound of `least` bytes a second.
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

    /// After how many seconds a reader that takes `bytes` each second is cut off, of 600.
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
