//! Keep-alive of an HTTP/2 connection: pings detect that its peer no longer answers.
use std::{
    future::{pending, poll_fn},
    sync::atomic::{AtomicU64, Ordering::*},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};

/// Records when the last bytes arrived, and sends pings if none do.
#[derive(Debug)]
pub(crate) struct KeepAlive {
    begun: Instant,
    /// The time at which the last bytes arrived, in milliseconds since `begun`.
    received: AtomicU64,
    /// Requests a ping at once.
    ping_wanted: Notify,
}

// === impl KeepAlive ===

impl KeepAlive {
    pub(crate) fn new() -> Self {
        KeepAlive { begun: Instant::now(), received: AtomicU64::new(0), ping_wanted: Notify::new() }
    }

    /// Records that bytes arrived now.
    pub(crate) fn received(&self) {
        self.received.store(self.begun.elapsed().as_millis() as u64, Relaxed);
    }

    /// The time at which the last bytes arrived, to the millisecond.
    pub(crate) fn last_received(&self) -> chassis_core::clock::Instant {
        self.last_received_tokio().into()
    }

    /// The same on tokio's clock.
    pub(crate) fn last_received_tokio(&self) -> Instant {
        self.begun + Duration::from_millis(self.received.load(Relaxed))
    }

    /// Sends a ping now, unless one is in flight.
    pub(crate) fn ping_now(&self) {
        self.ping_wanted.notify_one();
    }

    /// Resolves when a ping is not answered within `bound` and no other bytes arrived either. A ping is sent
    /// whenever no bytes arrived for `interval`, also without calls, so that a dead connection is found before
    /// it is needed. An interval of zero disables pings.
    pub(crate) async fn timed_out(&self, ping: Option<PingPong>, interval: Duration, bound: Duration) {
        let Some(mut ping) = ping.filter(|_| !interval.is_zero()) else { return pending().await };
        let mut is_sent = false;
        loop {
            let received = self.received.load(Relaxed);
            let due = self.begun + Duration::from_millis(received) + interval;
            if Instant::now() < due {
                tokio::select! {
                    () = sleep_until(due) => continue,
                    () = self.ping_wanted.notified(), if !is_sent => {}
                }
            }
            if !std::mem::replace(&mut is_sent, true) && ping.send_ping(Ping::opaque()).is_err() {
                return pending().await; // the connection has ended, and its own future reports that
            }
            match timeout(bound, poll_fn(|cx| ping.poll_pong(cx))).await {
                Ok(Ok(_)) => is_sent = false,
                Ok(Err(_)) => return pending().await,
                // The pong may be queued after many other frames.
                Err(_) if self.received.load(Relaxed) != received => {}
                Err(_) => return,
            }
        }
    }
}
