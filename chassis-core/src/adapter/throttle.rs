//! How often one thing is asked for at most: a plain value.
use std::time::Duration;

use crate::clock::Instant;

/// Spaces the requests of one follower.
///
/// A server answers a follower with each change, and a service whose instances come and go would have every process
/// read its list all the time. 200 requests in a row pass at once, so that a change now and then is seen without delay;
/// under constant change there is one request in 200 ms, which reads the newest state.
///
/// After GCRA, the limiter of ATM: `next` is when a queue that lets one through in each period would be empty.
#[derive(Debug, Default)]
pub struct Throttle {
    next: Option<Instant>,
}

/// So many requests pass without a pause.
const BURST: u32 = 200;
/// Under constant change there is one request in this time.
const PERIOD: Duration = Duration::from_millis(200);

// === impl Throttle ===

impl Throttle {
    /// How long a request that is to be sent at `now` has to wait.
    pub fn pause(&mut self, now: Instant) -> Duration {
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
        let (mut now, mut requests) = (start, 0);
        while now < start + Duration::from_secs(60) {
            now += throttle.pause(now) + Duration::from_millis(10);
            requests += 1;
        }
        assert!((BURST..=BURST + 60 * 5 + 1).contains(&requests), "{requests}");
        // Once it is quiet, the next burst passes again.
        now += PERIOD * BURST;
        assert_eq!((0..BURST).map(|_| throttle.pause(now)).max(), Some(Duration::ZERO));
    }
}
