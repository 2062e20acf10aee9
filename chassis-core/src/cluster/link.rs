//! The state of a node's connection, which its leaf sets and the cluster reads.
use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use crate::{metrics::Metrics, random::Random, tasks::Tasks, types::Side};

/// The state of the connection to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Connection {
    /// Not needed yet, or closed because it was not used.
    Idle = 0,
    /// An attempt to connect is running.
    Connecting = 1,
    /// It accepts calls.
    Ready = 2,
    /// Failed; another attempt follows after a backoff.
    TransientFailure = 3,
}

/// The leaf's handle of its node: the address to connect to, and the state to report.
///
/// Clones share it.
#[derive(Clone)]
pub struct Link(Arc<Ends>);

/// The parts that a node and its leaf share.
struct Ends {
    connection: AtomicU8,
    instance: Box<str>,
    address: Box<str>,
    common: Arc<Common>,
}

/// The common parts of all nodes of a cluster.
pub(super) struct Common {
    pub(super) service: Arc<str>,
    pub(super) changes: Changes,
    pub(super) tasks: Tasks,
    pub(super) random: Random,
    /// `None` for a link outside a cluster.
    pub(super) metrics: Option<Metrics>,
}

/// Counts the changes of a cluster, and wakes tasks that wait for them.
pub(crate) struct Changes {
    pub(super) epoch: AtomicU64,
    pub(super) notify: Notify,
    /// The numbers of nodes that are connecting and ready. Nodes that have left count until they are dropped.
    connecting: AtomicUsize,
    ready: AtomicUsize,
    /// The number of those that cannot be connected to, in the same way.
    failing: AtomicUsize,
    /// The number of nodes whose circuits are not closed.
    pub(super) guarded: AtomicUsize,
}

// === impl Connection ===

impl Connection {
    fn from_number(number: u8) -> Self {
        match number {
            0 => Connection::Idle,
            1 => Connection::Connecting,
            2 => Connection::Ready,
            _ => Connection::TransientFailure,
        }
    }
}

impl std::fmt::Display for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Connection::Idle => "idle",
            Connection::Connecting => "connecting",
            Connection::Ready => "ready",
            Connection::TransientFailure => "failing",
        })
    }
}

// === impl Link ===

impl Link {
    /// A link outside a cluster: for tests of a transport alone.
    pub fn detached(service: &str, address: &str, tasks: Tasks, random: Random) -> Self {
        let changes = Changes::new();
        let common = Common { service: service.into(), changes, tasks, random, metrics: None };
        Link::new(Arc::new(common), address, address)
    }

    pub(super) fn new(common: Arc<Common>, instance: &str, address: &str) -> Self {
        let connection = AtomicU8::new(Connection::Idle as u8);
        Link(Arc::new(Ends { connection, instance: instance.into(), address: address.into(), common }))
    }

    /// The address to connect to: `host:port`, `unix:/path`, `memory:name`.
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// The logical service, for `:authority` and TLS names.
    pub fn service(&self) -> &str {
        &self.0.common.service
    }

    /// The instance's id, for logs.
    pub fn instance(&self) -> &str {
        &self.0.instance
    }

    /// Sets the state of the connection.
    pub fn set(&self, connection: Connection) {
        let before = Connection::from_number(self.0.connection.swap(connection as u8, Ordering::AcqRel));
        if before != connection {
            let changes = &self.common().changes;
            if let Some(count) = changes.count(connection) {
                count.fetch_add(1, Ordering::AcqRel);
            }
            if let Some(count) = changes.count(before) {
                count.fetch_sub(1, Ordering::AcqRel);
            }
            changes.bump();
        }
    }

    /// Counts a connection that was closed because the endpoint exceeded a limit.
    pub fn closed_for(&self, reason: &str) {
        if let Some(metrics) = &self.common().metrics {
            metrics.connection_closed(Side::Client, reason);
        }
    }

    /// The state that was set last.
    pub fn connection(&self) -> Connection {
        Connection::from_number(self.0.connection.load(Ordering::Acquire))
    }

    /// Whether it accepts calls.
    #[inline]
    pub(super) fn is_ready(&self) -> bool {
        self.0.connection.load(Ordering::Acquire) == Connection::Ready as u8
    }

    /// Resolves after the next change of this connection or of another one of the cluster.
    pub async fn changed(&self) {
        self.0.common.changes.notify.notified().await;
    }

    /// The owner of background tasks, which end with it.
    pub fn tasks(&self) -> &Tasks {
        &self.0.common.tasks
    }

    /// Randomness for jitter.
    pub fn random(&self) -> &Random {
        &self.0.common.random
    }

    pub(super) fn common(&self) -> &Common {
        &self.0.common
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        let connection = Connection::from_number(*self.connection.get_mut());
        if let Some(count) = self.common.changes.count(connection) {
            count.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

// === impl Changes ===

impl Changes {
    pub(super) fn new() -> Self {
        Changes {
            epoch: AtomicU64::new(0),
            notify: Notify::new(),
            connecting: AtomicUsize::new(0),
            ready: AtomicUsize::new(0),
            failing: AtomicUsize::new(0),
            guarded: AtomicUsize::new(0),
        }
    }

    /// The number of nodes that may be connecting.
    pub(crate) fn connecting(&self) -> usize {
        self.connecting.load(Ordering::Acquire)
    }

    /// Whether a node may be ready.
    pub(crate) fn has_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) != 0
    }

    /// Whether each node can be connected to, as far as is known, and has a closed circuit.
    #[inline]
    pub(super) fn is_sound(&self) -> bool {
        self.failing.load(Ordering::Acquire) == 0 && self.guarded.load(Ordering::Acquire) == 0
    }

    fn count(&self, connection: Connection) -> Option<&AtomicUsize> {
        match connection {
            Connection::Connecting => Some(&self.connecting),
            Connection::Ready => Some(&self.ready),
            Connection::TransientFailure => Some(&self.failing),
            Connection::Idle => None,
        }
    }

    pub(super) fn bump(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.notify.notify_waiters();
    }
}
