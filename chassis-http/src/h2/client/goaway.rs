//! A client's reaction to GOAWAY: the calls that it refused, the way its connection ended, and the ping
//! interval from then on.
//!
//! Two related parts are elsewhere: the frame's format (`h2/frames.rs`), and the rule that h2 reads a GOAWAY
//! only when no request is being passed to it (`sniffer.rs`).
use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering::*},
    time::Duration,
};

use super::endpoint::Endpoint;
use crate::h2::frames::{ENHANCE_YOUR_CALM, NO_ERROR};

/// The GOAWAY of one connection. The last frame counts: a server may send several.
#[derive(Debug, Default)]
pub(super) struct GoAway {
    /// The code of the last GOAWAY was NO_ERROR.
    graceful: AtomicBool,
}

/// The ping interval of an endpoint. gRPC servers send ENHANCE_YOUR_CALM to a client that pings too often; each
/// such GOAWAY doubles the interval for the endpoint's next connections (gRPC's proposal A8).
#[derive(Debug)]
pub(super) struct PingPace {
    /// The configured interval is multiplied by this.
    factor: AtomicU32,
}

/// The interval of pings grows at most to this many times the configured one: from 10 s to 10 minutes.
const MAX_PING_FACTOR: u32 = 64;
/// A connection without calls is no failed connection if it has lasted this long.
const MIN_USEFUL_AGE: Duration = Duration::from_secs(1);

// === impl GoAway ===

impl GoAway {
    /// Records a GOAWAY with this error code.
    pub(super) fn received(&self, code: u32, endpoint: &Endpoint) {
        if code == ENHANCE_YOUR_CALM {
            endpoint.pings.slow_down();
        }
        self.graceful.store(code == NO_ERROR, Release);
    }

    /// Whether the connection ended without a failure: the server announced the end without an error, and the
    /// connection had served a call, or had no call for `MIN_USEFUL_AGE`. A server that closes a connection
    /// right after accepting it counts like one that refuses to connect.
    pub(super) fn is_orderly(&self, has_served: bool, has_begun: bool, age: Duration) -> bool {
        self.graceful.load(Acquire) && (has_served || (!has_begun && age >= MIN_USEFUL_AGE))
    }
}

// === impl PingPace ===

impl PingPace {
    /// The interval for an endpoint whose configured interval is `configured`.
    pub(super) fn interval(&self, configured: Duration) -> Duration {
        configured * self.factor.load(Acquire)
    }

    fn slow_down(&self) {
        let double = |n| (n < MAX_PING_FACTOR).then_some(n * 2);
        let _ = self.factor.fetch_update(AcqRel, Acquire, double);
    }
}

impl Default for PingPace {
    fn default() -> Self {
        PingPace { factor: AtomicU32::new(1) }
    }
}

/// Whether this error ended the connection, rather than one stream of it.
pub(crate) fn is_of_connection(error: &h2::Error) -> bool {
    error.is_io() || error.is_go_away()
}

/// Whether the server's GOAWAY refused the stream, because its number was above the last one that the server
/// will process. h2 fails such a stream with that GOAWAY; streams that the server still processes fail with an
/// I/O error if the connection breaks.
pub(crate) fn has_refused(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_remote()
}

/// Whether this side closed the connection with a GOAWAY, because the server violated HTTP/2.
pub(crate) fn is_ours(error: &h2::Error) -> bool {
    error.is_go_away() && !error.is_remote()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[track_caller]
    fn check(graceful: bool, has_served: bool, has_begun: bool, age: Duration, orderly: bool) {
        let goaway = GoAway { graceful: AtomicBool::new(graceful) };
        assert_eq!(goaway.is_orderly(has_served, has_begun, age), orderly);
    }

    #[test]
    fn a_connection_that_was_of_use_may_go() {
        check(true, true, true, Duration::ZERO, true);
        check(true, false, false, SECOND, true);
        check(true, false, false, SECOND / 2, false);
        check(true, false, true, 10 * SECOND, false);
        check(false, true, true, 10 * SECOND, false);
    }

    #[test]
    fn pings_slow_down_to_a_bound() {
        let pings = PingPace::default();
        assert_eq!(pings.interval(SECOND), SECOND);
        pings.slow_down();
        assert_eq!(pings.interval(SECOND), 2 * SECOND);
        (0..100).for_each(|_| pings.slow_down());
        assert_eq!(pings.interval(SECOND), 64 * SECOND);
    }
}
