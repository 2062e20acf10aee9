//! How an HTTP/2 connection whose peer fell silent is found out: it is asked, by pings.
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

/// When a connection was heard of last.
#[derive(Debug)]
pub(crate) struct Silence {
    begun: Instant,
    /// In milliseconds since it was begun.
    heard: AtomicU64,
    /// Somebody wants to know now.
    asked: Notify,
}

// === impl Silence ===

impl Silence {
    pub(crate) fn new() -> Self {
        Silence { begun: Instant::now(), heard: AtomicU64::new(0), asked: Notify::new() }
    }

    /// Something came in.
    pub(crate) fn break_now(&self) {
        self.heard.store(self.begun.elapsed().as_millis() as u64, Relaxed);
    }

    /// When something came in last, to the millisecond.
    pub(crate) fn heard(&self) -> chassis_core::clock::Instant {
        self.last().into()
    }

    /// The same on tokio's clock.
    pub(crate) fn last(&self) -> Instant {
        self.begun + Duration::from_millis(self.heard.load(Relaxed))
    }

    /// Has a ping sent now, unless one is on its way.
    pub(crate) fn ask(&self) {
        self.asked.notify_one();
    }

    /// Resolves once a ping is not answered within `bound`, and nothing else came either. Pings go out
    /// whenever nothing came in for `interval`, also without calls: a dead connection is to be found out
    /// before it is needed. An interval of zero: never.
    pub(crate) async fn lasts(&self, ping: Option<PingPong>, interval: Duration, bound: Duration) {
        let Some(mut ping) = ping.filter(|_| !interval.is_zero()) else { return pending().await };
        let mut is_asked = false;
        loop {
            let heard = self.heard.load(Relaxed);
            let due = self.begun + Duration::from_millis(heard) + interval;
            if Instant::now() < due {
                tokio::select! {
                    () = sleep_until(due) => continue,
                    () = self.asked.notified(), if !is_asked => {}
                }
            }
            if !std::mem::replace(&mut is_asked, true) && ping.send_ping(Ping::opaque()).is_err() {
                return pending().await; // the connection is over, which itself will tell
            }
            match timeout(bound, poll_fn(|cx| ping.poll_pong(cx))).await {
                Ok(Ok(_)) => is_asked = false,
                Ok(Err(_)) => return pending().await,
                // The answer may stand behind much else.
                Err(_) if self.heard.load(Relaxed) != heard => {}
                Err(_) => return,
            }
        }
    }
}
