//! The accept loop: which connections are admitted, for which service, and for how long.
//!
//! Slow, silent and hostile peers are bounded by time and number; a drain always ends.
pub(crate) mod activity;
pub(crate) mod body;
pub(crate) mod connection;
pub(crate) mod head;
pub(crate) mod io;
pub(crate) mod received;
mod refusals;
pub(crate) mod service;

use std::{
    io::ErrorKind,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::*},
    },
    time::Duration,
};

use chassis_core::{Metrics, Random, Side, tasks::Tasks};
use http::StatusCode;
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{activity::Activities, refusals::Refusals};
pub use self::{
    body::ServerBody,
    received::Received,
    service::{Answer, Connected, HttpService, Mux},
};
use crate::{
    ServerConfig,
    h2::Abuse,
    net::{Acceptor, Listener, Peer, Stream},
};

/// Serves any number of ports, which share its limits and drain together. A process that serves different callers, such
/// as its own and an operator's, has a server for each: neither uses up the connections of the other, and each ends at
/// its own time.
///
/// ```
/// # use std::time::Duration;
/// # use chassis_core::{Random, tasks::Tasks};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// use chassis_http::{ServerConfig, connector::Network, server::{Mux, Server}};
///
/// let server = Server::new(ServerConfig::default(), &Tasks::new(), Random::from_os());
/// let listener = Network::default().bind("127.0.0.1:0").await?;
/// server.serve("http", listener, Mux::default(), None);
/// assert_eq!(server.drain(Duration::from_secs(5)).await, 0);
/// # Ok(())
/// # }
/// ```
pub struct Server {
    config: Arc<ServerConfig>,
    tasks: Tasks,
    random: Random,
    draining: CancellationToken,
    connections: TaskTracker,
    activities: Arc<Activities>,
    open: Arc<AtomicUsize>,
    metrics: Option<Metrics>,
    evicts_idle: bool,
}

/// One port, from a connection's point of view.
pub(crate) struct Port {
    name: Arc<str>,
    pub(crate) config: Arc<ServerConfig>,
    mux: Mux,
    acceptor: Option<Arc<dyn Acceptor>>,
    random: Random,
    draining: CancellationToken,
    activities: Arc<Activities>,
    /// Connections to all ports.
    open: Arc<AtomicUsize>,
    refusing: AtomicUsize,
    metrics: Option<Metrics>,
    /// The time of the last log line about a closed connection.
    logged: Mutex<Option<Instant>>,
    refusals: Refusals,
    evicts_idle: bool,
}

/// Counts a connection while it is open.
struct Counted(Arc<AtomicUsize>);

/// The pause after an error of accept that would occur again at once (no file descriptors left).
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// Connections that get a 503 at the same time because the server is full; more are closed at once.
const MAX_REFUSING: usize = 64;
/// The least time between two log lines about connections that were closed for abuse.
const LOG_INTERVAL: Duration = Duration::from_secs(1);
/// The time in which a peer can read the last bytes before its connection is closed.
pub(crate) const CLOSE_GRACE: Duration = Duration::from_secs(1);
/// The answer of a full server, for any version: an HTTP/2 client recognises that it is no frame.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    retry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

// === impl Server ===

impl Server {
    /// Creates a server whose tasks end with those of `owner`.
    pub fn new(config: ServerConfig, owner: &Tasks, random: Random) -> Self {
        Server {
            config: Arc::new(config),
            tasks: owner.child(),
            random,
            draining: CancellationToken::new(),
            connections: TaskTracker::new(),
            activities: Arc::default(),
            open: Arc::default(),
            metrics: None,
            evicts_idle: false,
        }
    }

    /// Counts connections that the server closes because their peers exceed a limit. Default: not counted.
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// At the limit of connections, a new one closes the oldest that has no request in flight, also one whose first
    /// request is incomplete. So peers that send slowly or nothing keep no other peer out. Default: the new one is
    /// answered 503.
    pub fn evict_idle(mut self) -> Self {
        self.evicts_idle = true;
        self
    }

    /// Serves `mux` at `listener` from now on; `name` is the port's name in the settings. Streams pass
    /// `acceptor` first, if there is one: TLS is added there.
    pub fn serve(
        &self,
        name: &str,
        listener: Box<dyn Listener>,
        mux: Mux,
        acceptor: Option<Arc<dyn Acceptor>>,
    ) {
        let port = Arc::new(Port {
            name: name.into(),
            config: self.config.clone(),
            mux,
            acceptor,
            random: self.random.clone(),
            draining: self.draining.clone(),
            activities: self.activities.clone(),
            open: self.open.clone(),
            refusing: AtomicUsize::new(0),
            metrics: self.metrics.clone(),
            logged: Mutex::new(None),
            refusals: Refusals::default(),
            evicts_idle: self.evicts_idle,
        });
        let accept = accept(port, listener, self.tasks.clone(), self.connections.clone());
        self.tasks.spawn(self.connections.track_future(accept));
    }

    /// Closes the listeners at once, busy connections after their last answer, and cuts the remaining ones after `bound`.
    /// Idle connections are closed at once over HTTP/2, and after 250 ms over HTTP/1.1, where a request may be on its way;
    /// so are connections that were not used yet.
    /// Returns the number of cut calls.
    pub async fn drain(&self, bound: Duration) -> usize {
        self.draining.cancel();
        self.connections.close();
        if timeout(bound, self.connections.wait()).await.is_ok() {
            return 0;
        }
        let cut = self.activities.in_flight();
        self.tasks.end(CLOSE_GRACE).await;
        cut
    }

    /// The number of open connections.
    pub fn connections(&self) -> usize {
        self.open.load(Acquire)
    }
}

/// Accepts connections until the server drains; then the listener is closed at once, so that no client waits in
/// its backlog.
async fn accept(port: Arc<Port>, mut listener: Box<dyn Listener>, tasks: Tasks, connections: TaskTracker) {
    let mut pause = BACK_OFF.0;
    loop {
        let accepted = tokio::select! {
            biased;
            () = port.draining.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                pause = BACK_OFF.0;
                if let Some(task) = admit(&port, stream) {
                    tasks.spawn(connections.track_future(task));
                }
            }
            Err(error) if is_of_one_connection(error.kind()) => {}
            Err(error) => {
                tracing::error!(port = &*port.name, %error, "cannot accept; next try in {pause:?}");
                tokio::select! { () = port.draining.cancelled() => return, () = sleep(pause) => {} }
                pause = (pause * 2).min(BACK_OFF.1);
            }
        }
    }
}

/// Serves a new connection, or answers it with 503 if there are too many.
fn admit(port: &Arc<Port>, stream: Stream) -> Option<chassis_core::BoxFuture<'static, ()>> {
    let counted = Counted::new(&port.open);
    let is_full = counted.0.load(Acquire) > port.config.max_connections.get();
    if !is_full || port.evicts_idle && port.activities.evict() {
        let (port, activity) = (port.clone(), port.activities.begin(&port.config));
        return Some(Box::pin(async move {
            let _counted = counted;
            connection::serve(port, activity, stream).await;
        }));
    }
    drop(counted);
    let words = format!("`server.max_connections`, {}, are open", port.config.max_connections);
    port.refusals.log(&port.name, StatusCode::SERVICE_UNAVAILABLE, &words);
    if port.refusing.load(Acquire) >= MAX_REFUSING {
        return None;
    }
    port.refusing.fetch_add(1, AcqRel);
    let port = port.clone();
    Some(Box::pin(async move {
        let _ = timeout(CLOSE_GRACE, refuse_full(stream)).await;
        port.refusing.fetch_sub(1, AcqRel);
    }))
}

async fn refuse_full(mut stream: Stream) -> std::io::Result<()> {
    stream.write_all(FULL).await?;
    io::finish(&mut stream, None).await
}

fn is_of_one_connection(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused)
}

// === impl Port ===

impl Port {
    /// Counts streams that are reset because their peer exceeded a limit.
    fn reset_for(&self, abuse: Abuse, streams: usize) {
        if let Some(metrics) = &self.metrics {
            (0..streams).for_each(|_| metrics.stream_reset(Side::Server, abuse.name()));
        }
    }

    /// Counts a connection that is closed for `abuse`, and logs one in a second.
    #[cold]
    fn closed_for(&self, abuse: Abuse, peer: &Peer) {
        let reason = abuse.name();
        if let Some(metrics) = &self.metrics {
            metrics.connection_closed(Side::Server, reason);
        }
        let now = Instant::now();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|at| now >= at + LOG_INTERVAL) {
            *logged = Some(now);
            tracing::warn!(target: "chassis", port = &*self.name, %peer, reason, "connection closed because its peer exceeded a limit");
        }
    }
}

// === impl Counted ===

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, AcqRel);
        Counted(open.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, AcqRel);
    }
}
