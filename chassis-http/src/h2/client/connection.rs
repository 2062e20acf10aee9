//! One HTTP/2 connection: how it is opened, its state, and the detection of a dead peer.
//!
//! It uses `h2` directly and not hyper: hyper passes a call to its connection through a channel in each
//! direction and a task for each call, which costs as much as the whole pipeline.
use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::*},
    },
    time::Duration,
};

use bytes::Bytes;
use chassis_core::{
    BoxError,
    clock::Instant,
    tasks::{WakeGated, caught},
};
use h2::{
    RecvStream,
    client::{Builder, SendRequest},
};
use tokio::{
    sync::{Notify, oneshot},
    time::{sleep, timeout},
};

use super::{
    endpoint::Endpoint,
    goaway::GoAway,
    sniffer::{FrameObserver, FrameSniffer},
};
use crate::{
    ClientConfig,
    h2::{
        frames::{FrameEvent, HeaderLimit},
        headers,
        keep_alive::KeepAlive,
        read_budget::ReadBudget,
    },
    net::Stream,
    settings::CLIENT_SEND_BUFFER,
};

pub(super) type Sender = SendRequest<Bytes>;

/// An open connection.
pub(super) struct Connection {
    sender: Sender,
    /// The stream of the most recently finished call. When the last handle of a closed stream is dropped, h2
    /// wakes the connection's task; if it is dropped after the next request, which wakes the task anyway, h2
    /// does not.
    left: Mutex<Option<RecvStream>>,
    health: Arc<Health>,
    streams: AtomicUsize,
    served: AtomicBool,
    begun: AtomicBool,
    used: AtomicBool,
    opened: Instant,
}

/// Marks that a request is being passed to h2: until this is dropped, h2 is not shown the end of the
/// connection.
pub(super) struct Entered<'a>(&'a Health);

/// The state of a connection, derived from its frames.
struct Health {
    over: AtomicBool,
    goaway: GoAway,
    /// A call reached its deadline without a byte from the server: the connection gets more calls only after it
    /// has received data.
    doubted: AtomicBool,
    doubt: Notify,
    /// A ping was not answered in time. It is set before the streams fail.
    silent: AtomicBool,
    /// The number of requests that are being passed to h2.
    entered: AtomicUsize,
    /// The last stream whose head was sent.
    sent: AtomicU32,
    /// The number of streams that the server allows, or this side.
    max_streams: AtomicUsize,
    max_header_list: HeaderLimit,
    keep_alive: KeepAlive,
}

/// Updates [`Health`] from the incoming frames.
struct HealthObserver {
    endpoint: Arc<Endpoint>,
    health: Arc<Health>,
    /// Resolves to whether the first frame was an HTTP/2 frame.
    first_frame: Option<oneshot::Sender<bool>>,
}

/// A call that was abandoned sooner gives no information about its connection.
const MIN_WAIT: Duration = Duration::from_millis(100);
/// The time in which a doubted connection must receive data: most pauses of a garbage collector are shorter.
const DOUBT_TIMEOUT: Duration = Duration::from_millis(250);

/// Opens a connection, within the connect timeout: it is open once the server has sent its settings.
pub(super) async fn open(endpoint: &Arc<Endpoint>) -> Result<Connection, BoxError> {
    let limit = endpoint.config.connect_timeout.get();
    let connecting = async {
        // A connector may be the user's: its panic counts as a failed connection, and is retried.
        let stream =
            caught(async { endpoint.connector.connect_within(endpoint.link.address(), limit).await })
                .await??;
        handshake(endpoint, stream).await
    };
    match timeout(limit, connecting).await {
        Ok(opened) => opened,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("not connected in {limit:?}")).into()),
    }
}

async fn handshake(endpoint: &Arc<Endpoint>, stream: Stream) -> Result<Connection, BoxError> {
    let config = &endpoint.config;
    let health = Arc::new(Health::new(config.max_streams.get()));
    let (first_frame, is_http2) = oneshot::channel();
    let read_budget = ReadBudget::default();
    let observer =
        HealthObserver { endpoint: endpoint.clone(), health: health.clone(), first_frame: Some(first_frame) };
    let most_encoded = headers::most_encoded(config.max_header_list.as_u32());
    let stream = FrameSniffer::new(stream, observer, read_budget.clone(), most_encoded);
    let (sender, mut connection) = builder(config).handshake(stream).await?;
    let interval = endpoint.pings.interval(config.keep_alive_interval.0);
    let bound = config.keep_alive_timeout.get();
    let (ended, watched, ping) = (endpoint.clone(), health.clone(), connection.ping_pong());
    endpoint.link.tasks().spawn(async move {
        // Both rarely have an event.
        let silent = WakeGated::new(watched.keep_alive.timed_out(ping, interval, bound));
        let doubts = WakeGated::new(watched.stays_in_doubt(&ended));
        let mut connection = pin!(connection);
        let driven = poll_fn(|cx| {
            read_budget.refill();
            connection.as_mut().poll(cx)
        });
        tokio::select! {
            biased;
            _ = driven => {}
            () = silent => watched.silent.store(true, Release),
            () = doubts => {}
        }
        watched.over.store(true, Release);
        ended.lost();
    });
    match is_http2.await {
        Ok(true) => Ok(Connection::new(sender, health)),
        Ok(false) => Err("the endpoint does not speak HTTP/2".into()),
        Err(_) => Err("the connection closed before the server sent anything".into()),
    }
}

fn builder(config: &ClientConfig) -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        // This crate enforces the limit itself: h2 would close the connection, or omit fields silently.
        .max_header_list_size(headers::read(config.max_header_list.as_u32()))
        .initial_window_size(config.stream_window.as_u32())
        .initial_connection_window_size(config.connection_window.as_u32())
        .max_send_buffer_size(CLIENT_SEND_BUFFER)
        // Answers may arrive after this side has reset their stream. h2 ignores frames of streams that it
        // remembers to have reset for a second; it counts all others as errors, and closes the connection after
        // 1,024 of these.
        .max_concurrent_reset_streams(config.max_streams.get());
    builder
}

// === impl HealthObserver ===

impl FrameObserver for HealthObserver {
    fn on_event(&mut self, event: FrameEvent) {
        let (endpoint, health) = (&self.endpoint, &self.health);
        match event {
            FrameEvent::Bytes => {
                health.keep_alive.received();
                if health.doubted.load(Acquire) {
                    health.doubted.store(false, Release);
                    endpoint.found();
                }
            }
            FrameEvent::Settings { max_streams, max_header_list, .. } => {
                if let Some(most) = max_streams {
                    let most = usize::try_from(most).unwrap_or(usize::MAX);
                    health.max_streams.store(most.min(endpoint.config.max_streams.get()), Release);
                }
                health.max_header_list.set(max_header_list);
                if let Some(first_frame) = self.first_frame.take() {
                    let _ = first_frame.send(true);
                }
            }
            FrameEvent::GoAway { code } => {
                health.goaway.received(code, endpoint);
                self.on_end();
            }
            FrameEvent::Abuse(abuse) => {
                let (service, address, reason) =
                    (endpoint.link.service(), endpoint.link.address(), abuse.name());
                tracing::warn!(target: "chassis", service, address, reason, "connection closed because the endpoint exceeded a limit");
                endpoint.link.closed_for(reason);
                self.on_end();
            }
            FrameEvent::Frame(_) | FrameEvent::WindowUpdate { .. } => {}
            FrameEvent::NotHttp2 => {
                if let Some(first_frame) = self.first_frame.take() {
                    let _ = first_frame.send(false);
                }
            }
        }
    }

    fn on_head_sent(&mut self, stream: u32) {
        self.health.sent.store(stream, Release);
    }

    fn on_end(&mut self) {
        if !self.health.over.swap(true, SeqCst) {
            self.endpoint.lost();
        }
    }

    fn must_hold(&self) -> bool {
        self.health.over.load(SeqCst) && self.health.entered.load(SeqCst) > 0
    }
}

// === impl Connection ===

impl Connection {
    fn new(sender: Sender, health: Arc<Health>) -> Self {
        Connection {
            sender,
            left: Mutex::new(None),
            health,
            streams: AtomicUsize::new(0),
            served: AtomicBool::new(false),
            begun: AtomicBool::new(false),
            used: AtomicBool::new(true),
            opened: Instant::now(),
        }
    }

    /// Reserves a stream; false if all are in use.
    pub(super) fn take_stream(&self) -> bool {
        let most = self.health.max_streams.load(Acquire);
        let taken = self.streams.fetch_update(AcqRel, Acquire, |n| (n < most).then_some(n + 1)).is_ok();
        set(&self.used);
        taken
    }

    /// Releases a stream.
    pub(super) fn give_stream(&self) {
        self.streams.fetch_sub(1, AcqRel);
    }

    /// Begins to pass a request to h2; `None` if the connection accepts no more.
    pub(super) fn enter(&self) -> Option<Entered<'_>> {
        self.health.entered.fetch_add(1, SeqCst);
        let entered = Entered(&self.health);
        set(&self.begun);
        (!self.health.over.load(SeqCst)).then_some(entered)
    }

    /// Keeps `stream`, which is completely read and sent, until the next request.
    pub(super) fn leave(&self, stream: RecvStream) {
        let before = self.left().replace(stream);
        drop(before);
    }

    /// Drops the kept stream; called right after a request was passed to h2.
    pub(super) fn drop_left(&self) {
        let before = self.left().take();
        drop(before);
    }

    /// Records that the connection has served a call.
    pub(super) fn set_served(&self) {
        set(&self.served);
    }

    /// The connection gets no more calls.
    pub(super) fn retire(&self) {
        self.health.over.store(true, Release);
    }

    /// A call that was sent after `since` was abandoned without an answer. If no data arrived since then, the
    /// connection may be dead, and gets more calls only after it has received data.
    pub(super) fn doubt(&self, since: Instant) -> bool {
        let health = &self.health;
        let doubted =
            self.is_usable() && since.elapsed() >= MIN_WAIT && health.keep_alive.last_received() < since;
        if doubted {
            health.doubted.store(true, Release);
            health.keep_alive.ping_now();
            health.doubt.notify_one();
        }
        doubted
    }

    /// Whether it was used since the previous check, or is in use now.
    pub(super) fn take_used(&self) -> bool {
        self.used.swap(false, AcqRel) || self.streams() > 0
    }

    pub(super) fn sender(&self) -> Sender {
        self.sender.clone()
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.load(Acquire)
    }

    pub(super) fn free_streams(&self) -> usize {
        self.health.max_streams.load(Acquire).saturating_sub(self.streams())
    }

    /// The bytes of headers that the server accepts.
    pub(super) fn max_header_list(&self) -> u32 {
        self.health.max_header_list.get()
    }

    /// Whether the head of this stream was sent.
    pub(super) fn has_sent(&self, stream: u32) -> bool {
        stream <= self.health.sent.load(Acquire)
    }

    pub(super) fn is_over(&self) -> bool {
        self.health.over.load(Acquire)
    }

    pub(super) fn is_doubted(&self) -> bool {
        self.health.doubted.load(Acquire)
    }

    pub(super) fn is_usable(&self) -> bool {
        !self.is_over() && !self.is_doubted()
    }

    pub(super) fn is_used(&self) -> bool {
        self.used.load(Acquire) || self.streams() > 0
    }

    pub(super) fn has_served(&self) -> bool {
        self.served.load(Acquire)
    }

    /// Whether a call was ever sent on it.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Acquire)
    }

    pub(super) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    /// Whether it ended because the server no longer answered pings.
    pub(super) fn is_silent(&self) -> bool {
        self.health.silent.load(Acquire)
    }

    /// Whether it ended without a failure, because the server announced the end.
    pub(super) fn was_orderly(&self) -> bool {
        self.health.goaway.is_orderly(self.has_served(), self.has_begun(), self.age())
    }

    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn left(&self) -> MutexGuard<'_, Option<RecvStream>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sets a flag; writes its cache line only if the flag is not set.
fn set(flag: &AtomicBool) {
    if !flag.load(Relaxed) {
        flag.store(true, Release);
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.entered.fetch_sub(1, SeqCst);
    }
}

// === impl Health ===

impl Health {
    fn new(max_streams: usize) -> Self {
        Health {
            over: AtomicBool::new(false),
            goaway: GoAway::default(),
            doubted: AtomicBool::new(false),
            doubt: Notify::new(),
            silent: AtomicBool::new(false),
            entered: AtomicUsize::new(0),
            sent: AtomicU32::new(0),
            max_streams: AtomicUsize::new(max_streams),
            max_header_list: HeaderLimit::default(),
            keep_alive: KeepAlive::new(),
        }
    }

    /// Replaces the connection if it stays in doubt. Its calls continue as long as it answers pings in time.
    async fn stays_in_doubt(&self, endpoint: &Endpoint) {
        loop {
            self.doubt.notified().await;
            let since = Instant::now();
            sleep(DOUBT_TIMEOUT).await;
            // Data may have arrived meanwhile, and another doubt after it.
            let is_alive = self.keep_alive.last_received() >= since;
            if !is_alive && self.doubted.load(Acquire) && !self.over.swap(true, AcqRel) {
                endpoint.lost();
            }
        }
    }
}
