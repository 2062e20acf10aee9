//! The connections to one endpoint from a call's point of view: pick one, reserve a stream.
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering::*},
};

use chassis_core::{Connection as State, Error, Link, Live, Reason, clock::Instant};
use h2::RecvStream;
use tokio::sync::Notify;

use super::{
    connection::{Connection, Entered, Sender},
    driver::drive,
    goaway::PingPace,
};
use crate::{ClientConfig, failure, net::Connector, outgoing::Form};

/// The state of one endpoint that its calls and its driver share.
pub(super) struct Endpoint {
    pub(super) link: Link,
    pub(super) connector: Arc<dyn Connector>,
    pub(super) config: Arc<ClientConfig>,
    pub(super) form: Form,
    pub(super) open: Live<Vec<Arc<Connection>>>,
    /// Calls need connections; otherwise connections that end are not replaced.
    pub(super) wanted: AtomicBool,
    /// Wakes the driver.
    pub(super) poke: Notify,
    pub(super) pings: PingPace,
    driven: AtomicBool,
    closed: AtomicBool,
    /// The number of calls that wait for a stream, and the notification that wakes the first of them.
    waiting: AtomicUsize,
    free: Notify,
    /// The reason why there is no connection, for the error message.
    failure: Mutex<Option<String>>,
}

/// A reserved stream; dropping it releases the stream.
pub(super) struct Slot {
    connection: Arc<Connection>,
    endpoint: Arc<Endpoint>,
    /// The time at which a request was sent that has neither an answer nor an error yet.
    unanswered: Option<Instant>,
}

enum Pick {
    Found(Arc<Connection>),
    Full,
    None,
}

/// Counts a call among the waiting ones.
struct Waiting<'a>(&'a Endpoint);

// === impl Endpoint ===

impl Endpoint {
    pub(super) fn new(
        link: Link,
        connector: Arc<dyn Connector>,
        config: Arc<ClientConfig>,
        form: Form,
    ) -> Self {
        Endpoint {
            link,
            connector,
            config,
            form,
            open: Live::new(Vec::new()),
            wanted: AtomicBool::new(false),
            poke: Notify::new(),
            pings: PingPace::default(),
            driven: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            free: Notify::new(),
            failure: Mutex::new(None),
        }
    }

    /// Starts to connect, unless an attempt is running.
    pub(super) fn wake(self: &Arc<Self>) {
        if self.is_closed() || self.wanted.swap(true, AcqRel) {
            return;
        }
        if !self.driven.swap(true, AcqRel) {
            self.link.tasks().spawn(drive(self.clone()));
        }
        self.poke.notify_one();
    }

    /// Accepts no more calls; calls in flight finish.
    pub(super) fn close(&self) {
        self.closed.store(true, Release);
        self.poke.notify_one();
    }

    /// Reserves a stream of the least used connection; waits while all are full. `None` if there is no
    /// connection.
    pub(super) async fn slot(self: &Arc<Self>) -> Option<Slot> {
        let slot = |connection| Slot { connection, endpoint: self.clone(), unanswered: None };
        match self.pick() {
            Pick::Found(connection) => return Some(slot(connection)),
            Pick::None => return None,
            Pick::Full => {}
        }
        let _waiting = Waiting::new(self);
        loop {
            match self.pick() {
                Pick::Found(connection) => return Some(slot(connection)),
                Pick::None => return None,
                Pick::Full => self.free.notified().await,
            }
        }
    }

    /// The error of a call that found no connection. It was not sent.
    pub(super) fn unreachable(&self) -> Error {
        let address = self.link.address();
        match &*self.failure() {
            Some(why) => failure::of_connect(address, why.clone()),
            None => Error::remote(Reason::ConnectFailed, format!("no connection to {address} yet")),
        }
    }

    /// Stores the reason why there is no connection; `None` if there is one.
    pub(super) fn set_failure(&self, why: Option<String>) {
        *self.failure() = why;
    }

    /// A connection has ended or is closing: if it was the last, the endpoint gets no calls for now.
    pub(super) fn lost(&self) {
        let usable = self.open.with(|open| open.iter().any(|connection| connection.is_usable()));
        if !usable && self.link.connection() == State::Ready {
            self.link.set(State::Connecting);
        }
        self.poke.notify_one();
        self.wake_waiting();
    }

    /// A doubted connection has received data: the endpoint may get calls again.
    pub(super) fn found(&self) {
        let usable = self.open.with(|open| open.iter().any(|connection| connection.is_usable()));
        if usable && self.link.connection() == State::Connecting {
            self.link.set(State::Ready);
        }
        self.wake_waiting();
    }

    /// Wakes a waiting call to check again. Each call wakes the next, so that none is missed.
    pub(super) fn wake_waiting(&self) {
        if self.waiting() > 0 {
            self.free.notify_one();
        }
    }

    /// The number of calls that wait for a stream.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Acquire)
    }

    /// Whether the endpoint was removed.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Acquire)
    }

    fn pick(&self) -> Pick {
        self.open.with(|open| {
            let usable = open.iter().filter(|connection| connection.is_usable());
            match usable.min_by_key(|connection| connection.streams()) {
                Some(least) if least.take_stream() => Pick::Found(least.clone()),
                Some(_) => Pick::Full,
                // It is known soon whether the connection is alive or is replaced.
                None if open.iter().any(|connection| !connection.is_over()) => Pick::Full,
                None => Pick::None,
            }
        })
    }

    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn failure(&self) -> MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Slot ===

impl Slot {
    /// The sender of the connection.
    pub(super) fn sender(&self) -> Sender {
        self.connection.sender()
    }

    /// Begins to pass a request to h2; `None` if the connection accepts no more.
    pub(super) fn enter(&self) -> Option<Entered<'_>> {
        self.connection.enter()
    }

    /// The bytes of headers that the endpoint accepts.
    pub(super) fn max_header_list(&self) -> u32 {
        self.connection.max_header_list()
    }

    /// Whether the head of this stream was sent.
    pub(super) fn has_sent(&self, stream: u32) -> bool {
        self.connection.has_sent(stream)
    }

    /// Records that the request that began at `since` was sent and has no answer yet.
    pub(super) fn awaits(&mut self, since: Instant) {
        self.unanswered = Some(since);
    }

    /// Records that the request was answered, or failed for a known reason.
    pub(super) fn answered(&mut self) {
        self.unanswered = None;
    }

    /// Records that the answer was read to the end of `stream`.
    pub(super) fn leave(&self, stream: RecvStream) {
        self.connection.leave(stream);
    }

    /// Drops the stream of an earlier call; called right after a request was passed to h2.
    pub(super) fn drop_left(&self) {
        self.connection.drop_left();
    }

    /// Whether the connection ended because the endpoint no longer answered pings.
    pub(super) fn is_silent(&self) -> bool {
        self.connection.is_silent()
    }

    /// The endpoint has answered, so it works.
    pub(super) fn served(&self) {
        self.connection.set_served();
    }

    /// The connection accepts no more calls.
    pub(super) fn retire(&self) {
        self.connection.retire();
        self.endpoint.lost();
    }

    /// The call was dropped while it waited for the answer.
    #[cold]
    fn given_up(&self, since: Instant) {
        if self.connection.doubt(since) {
            self.endpoint.lost();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connection.give_stream();
        if let Some(since) = self.unanswered {
            self.given_up(since);
        }
        self.endpoint.wake_waiting();
    }
}

// === impl Waiting ===

impl<'a> Waiting<'a> {
    fn new(endpoint: &'a Endpoint) -> Self {
        endpoint.waiting.fetch_add(1, AcqRel);
        endpoint.poke.notify_one();
        Waiting(endpoint)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, AcqRel);
        self.0.wake_waiting();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There is one for each instance of each service, most of them without a connection.
    #[test]
    fn is_small() {
        assert!(size_of::<Endpoint>() <= 272, "{}", size_of::<Endpoint>());
    }
}
