//! The read pace of a connection whose peer resets most of its streams right after it has begun them.
//!
//! Such a stream costs about as much as a call, and several hundred arrive before the connection is closed for
//! them. A connection that has more to read after each turn is always ready, and while tasks are ready tokio
//! polls I/O only after 61 of them: with ten such peers the callers of all other connections waited for
//! hundreds of milliseconds. So a pause follows a turn that consisted mostly of such streams. During the pause
//! threads run out of ready tasks, and poll I/O.
use std::time::Duration;

/// Counts how the streams of a connection have ended so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StreamCounts {
    pub(super) begun: usize,
    /// Reset within 10 ms, before their answer began.
    pub(super) hasty: usize,
    /// Reset before this side has handled them, after the deadline of their callers.
    pub(super) expired: usize,
}

/// Decides after each turn whether reading pauses, by the growth of the counts since the last turn.
#[derive(Debug, Default)]
pub(super) struct ReadPace {
    last: StreamCounts,
    is_slow: bool,
}

/// Up to this number of resets in one turn, the client may have cancelled several calls; h2's own bound on
/// pending ones is the same.
const FEW: usize = 20;
/// The length of a pause relative to its turn: the connection gets a tenth of one thread.
const TIMES: u32 = 9;
/// The resolution of tokio's timer.
const SHORTEST: Duration = Duration::from_millis(1);
/// Short enough that a peer that resets all streams is cut off within 100 ms.
const LONGEST: Duration = Duration::from_millis(10);

// === impl ReadPace ===

impl ReadPace {
    /// Ends a turn of length `took`; returns the length of the pause, between 1 ms and 10 ms. Without resets it
    /// costs one comparison.
    pub(super) fn turn_over(
        &mut self,
        counts: StreamCounts,
        took: impl FnOnce() -> Duration,
    ) -> Option<Duration> {
        let last = std::mem::replace(&mut self.last, counts);
        let (hasty, expired) = (counts.hasty - last.hasty, counts.expired - last.expired);
        if hasty + expired == 0 && !self.is_slow {
            return None;
        }
        let begun = counts.begun - last.begun;
        // Reads are small while the connection is slow, and may contain few streams.
        let few = if self.is_slow { 1 } else { FEW };
        let is_most = |reset: usize| reset >= few && 2 * reset > begun;
        self.is_slow = is_most(hasty);
        match self.is_slow {
            true => Some((took() * TIMES).clamp(SHORTEST, LONGEST)),
            // A stall of this process makes many calls expire at once, and ends once they are read.
            false => is_most(hasty + expired).then_some(SHORTEST),
        }
    }

    /// Whether each read must be small.
    pub(super) fn is_slow(&self) -> bool {
        self.is_slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pauses after turns of `took` microseconds with (streams, hasty resets, expired), in microseconds.
    #[track_caller]
    fn check(took: u64, turns: &[(usize, usize, usize)], expected: &[u128]) {
        let (mut pace, mut counts) = (ReadPace::default(), StreamCounts::default());
        let pauses = turns.iter().map(|(begun, hasty, expired)| {
            counts.begun += begun;
            counts.hasty += hasty;
            counts.expired += expired;
            pace.turn_over(counts, || Duration::from_micros(took)).map_or(0, |pause| pause.as_micros())
        });
        assert_eq!(pauses.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_pause_is_in_proportion_to_its_turn() {
        check(500, &[(100, 100, 0); 3], &[4_500; 3]);
        check(0, &[(100, 100, 0); 3], &[1_000; 3]);
        check(50_000, &[(100, 100, 0); 3], &[10_000; 3]);
    }

    #[test]
    fn few_resets_and_the_lesser_half_do_not_matter() {
        check(500, &[(19, 19, 0), (0, 0, 0), (19, 19, 0)], &[0; 3]);
        check(500, &[(64, 32, 0), (64, 0, 0), (200, 100, 0)], &[0; 3]);
        check(500, &[(64, 33, 0), (64, 0, 0), (64, 0, 0)], &[4_500, 0, 0]);
    }

    /// Earlier successful streams do not prevent a pause.
    #[test]
    fn each_turn_is_looked_at_alone() {
        check(500, &[(1_000_000, 0, 0), (100, 100, 0)], &[0, 4_500]);
        // They are reset in the turn after the one in which they began.
        check(500, &[(100, 0, 0), (0, 100, 0), (100, 0, 0)], &[0, 4_500, 0]);
    }

    #[test]
    fn once_it_is_slow_few_are_enough() {
        check(500, &[(100, 100, 0), (3, 2, 0), (3, 1, 0), (3, 3, 0)], &[4_500, 4_500, 0, 0]);
    }

    #[test]
    fn callers_that_said_how_long_they_wait_are_read_on_soon() {
        check(500, &[(300, 0, 300), (300, 100, 200), (300, 200, 100)], &[1_000, 1_000, 4_500]);
        check(500, &[(19, 0, 19)], &[0]);
    }
}
