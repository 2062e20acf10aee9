//! The connections to one endpoint, as calls see them: pick one, take a stream.
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
    /// Calls want connections; otherwise those that end are not replaced.
    pub(super) wanted: AtomicBool,
    /// Wakes the driver.
    pub(super) poke: Notify,
    pub(super) pings: PingPace,
    driven: AtomicBool,
    closed: AtomicBool,
    /// Calls that wait for a stream, and the notification that wakes the first of them.
    waiting: AtomicUsize,
    free: Notify,
    /// Why there is no connection, for the message.
    failure: Mutex<Option<String>>,
}

/// The use of one stream; given back by dropping it.
pub(super) struct Slot {
    connection: Arc<Connection>,
    endpoint: Arc<Endpoint>,
    /// A request was sent then, and neither an answer came nor an error.
    unanswered: Option<Instant>,
}

enum Pick {
    Found(Arc<Connection>),
    Full,
    None,
}

/// Counts a call among those that wait.
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

    /// Starts to connect, unless that is under way.
    pub(super) fn wake(self: &Arc<Self>) {
        if self.is_closed() || self.wanted.swap(true, AcqRel) {
            return;
        }
        if !self.driven.swap(true, AcqRel) {
            self.link.tasks().spawn(drive(self.clone()));
        }
        self.poke.notify_one();
    }

    /// No more calls; those under way finish.
    pub(super) fn close(&self) {
        self.closed.store(true, Release);
        self.poke.notify_one();
    }

    /// A stream of the least used connection; waits while all are full. `None`: there is no connection.
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

    /// Why a call found no connection. It never left.
    pub(super) fn unreachable(&self) -> Error {
        let address = self.link.address();
        match &*self.failure() {
            Some(why) => failure::of_connect(address, why.clone()),
            None => Error::remote(Reason::ConnectFailed, format!("no connection to {address} yet")),
        }
    }

    /// Keeps in mind why there is no connection; `None`: there is one.
    pub(super) fn set_failure(&self, why: Option<String>) {
        *self.failure() = why;
    }

    /// A connection is over, or goes: if it was the last, no call is to come here for now.
    pub(super) fn lost(&self) {
        let usable = self.open.with(|open| open.iter().any(|connection| connection.is_usable()));
        if !usable && self.link.connection() == State::Ready {
            self.link.set(State::Connecting);
        }
        self.poke.notify_one();
        self.wake_waiting();
    }

    /// A connection that was in doubt lives: calls may come again.
    pub(super) fn found(&self) {
        let usable = self.open.with(|open| open.iter().any(|connection| connection.is_usable()));
        if usable && self.link.connection() == State::Connecting {
            self.link.set(State::Ready);
        }
        self.wake_waiting();
    }

    /// Lets a call that waits look again. Each wakes the next, so that none is missed.
    pub(super) fn wake_waiting(&self) {
        if self.waiting() > 0 {
            self.free.notify_one();
        }
    }

    /// How many calls wait for a stream.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Acquire)
    }

    /// Is the endpoint gone for good?
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Acquire)
    }

    fn pick(&self) -> Pick {
        self.open.with(|open| {
            let usable = open.iter().filter(|connection| connection.is_usable());
            match usable.min_by_key(|connection| connection.streams()) {
                Some(least) if least.take_stream() => Pick::Found(least.clone()),
                Some(_) => Pick::Full,
                // It turns out soon whether that one lives, or another takes its place.
                None if open.iter().any(|connection| !connection.is_over()) => Pick::Full,
                None => Pick::None,
            }
        })
    }

    /// Nothing panics while it is held; a poisoned lock would be as good as new.
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

    /// Begins to hand a request over to h2; `None`: the connection takes no more.
    pub(super) fn enter(&self) -> Option<Entered<'_>> {
        self.connection.enter()
    }

    /// How many bytes of headers the endpoint takes.
    pub(super) fn max_header_list(&self) -> u32 {
        self.connection.max_header_list()
    }

    /// Has the head of this stream left?
    pub(super) fn has_sent(&self, stream: u32) -> bool {
        self.connection.has_sent(stream)
    }

    /// The request that was begun at `since` is sent, and now has to be answered.
    pub(super) fn awaits(&mut self, since: Instant) {
        self.unanswered = Some(since);
    }

    /// It was answered, or it is known why not.
    pub(super) fn answered(&mut self) {
        self.unanswered = None;
    }

    /// The answer was read to the end of `stream`.
    pub(super) fn leave(&self, stream: RecvStream) {
        self.connection.leave(stream);
    }

    /// Drops the stream of an earlier call, right after a request was handed over.
    pub(super) fn drop_left(&self) {
        self.connection.drop_left();
    }

    /// Is the connection over because the endpoint no longer answered pings?
    pub(super) fn is_silent(&self) -> bool {
        self.connection.is_silent()
    }

    /// The endpoint has answered: it is well.
    pub(super) fn served(&self) {
        self.connection.set_served();
    }

    /// The connection takes no more calls.
    pub(super) fn retire(&self) {
        self.connection.retire();
        self.endpoint.lost();
    }

    /// Its call was dropped while it waited for the answer.
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

    /// One for each instance of each service, most of them without a connection.
    #[test]
    fn is_small() {
        assert!(size_of::<Endpoint>() <= 272, "{}", size_of::<Endpoint>());
    }
}
