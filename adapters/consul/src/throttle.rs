//! How often one thing is asked for at most: a plain value.
use std::time::Duration;

use chassis_core::clock::Instant;

/// Spaces the blocking queries of one follower.
///
/// A blocking query returns with each change, and Consul's documentation asks clients to limit that: a service whose
/// checks flap would have every process read its list all the time. A burst passes at once, so that what changes now
/// and then is seen without delay; under constant change each query waits for its turn, and reads the newest state.
///
/// After GCRA, the limiter of ATM: `next` is when a queue that lets one through each [`PERIOD`] would be empty.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    next: Option<Instant>,
}

/// So many queries pass without a pause.
const BURST: u32 = 200;
/// Under constant change there is one query in this time.
const PERIOD: Duration = Duration::from_millis(200);

// === impl Throttle ===

impl Throttle {
    /// How long a query that is to be sent at `now` has to wait.
    pub(crate) fn pause(&mut self, now: Instant) -> Duration {
        let empty = self.next.map_or(now, |next| next.max(now)) + PERIOD;
        self.next = Some(empty);
        empty.saturating_duration_since(now).saturating_sub(PERIOD * BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_change_is_read_at_a_bounded_pace() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        let (mut now, mut queries) = (start, 0);
        while now < start + Duration::from_secs(60) {
            now += throttle.pause(now) + Duration::from_millis(10);
            queries += 1;
        }
        assert!((BURST..=BURST + 60 * 5 + 1).contains(&queries), "{queries}");
        // Once it is quiet, the next burst passes again.
        now += PERIOD * BURST;
        assert_eq!((0..BURST).map(|_| throttle.pause(now)).max(), Some(Duration::ZERO));
    }
}
