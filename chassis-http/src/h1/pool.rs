//! The idle connections to one endpoint, and the task that maintains them.
use std::{
    io,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::*},
    },
    time::Duration,
};

use chassis_core::{Body, BoxError, Connection as State, Error, Link, clock::Instant, tasks::caught};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

use crate::{
    ClientConfig, failure,
    net::{Connector, backoff::Backoff},
    outgoing::Form,
};

pub(super) type Sender = SendRequest<Body>;

/// The state of one endpoint that its calls and its background task share.
pub(super) struct Pool {
    pub(super) form: Form,
    link: Link,
    connector: Arc<dyn Connector>,
    config: Arc<ClientConfig>,
    /// Ordered by last use; the last one is used next, so that the others may reach their idle limit.
    idle: Mutex<Vec<Idle>>,
    /// One permit for each call. So there are never more connections than permits: a call opens a connection
    /// only if none is idle, or in place of an idle one.
    permits: Arc<Semaphore>,
    open: AtomicUsize,
    served: AtomicBool,
    woken: AtomicBool,
    closed: AtomicBool,
    /// The endpoint closed an idle connection when the last call was sent on one.
    is_hasty: AtomicBool,
    poke: Notify,
}

/// A connection in use by one call.
pub(super) struct Lease {
    pool: Arc<Pool>,
    sender: Sender,
    permit: OwnedSemaphorePermit,
}

/// Decides the consequences if a call on a previously idle connection ends without an answer.
pub(super) struct Unanswered<'a> {
    pool: &'a Pool,
    /// The start of the call; `None` once its end is known.
    since: Option<Instant>,
}

struct Idle {
    sender: Sender,
    since: Instant,
}

/// A request may still be in transmission when its answer is complete. After this time the connection is
/// closed.
const REUSE_TIMEOUT: Duration = Duration::from_secs(1);
/// An endpoint that closes connections after each answer without announcing it has done so by then: its FIN
/// follows the answer immediately.
const FIN_DELAY: Duration = Duration::from_millis(2);
/// A call that was abandoned sooner gives no information about its connection.
const IMPATIENT: Duration = Duration::from_millis(100);

// === impl Pool ===

impl Pool {
    pub(super) fn new(link: Link, connector: Arc<dyn Connector>, config: Arc<ClientConfig>) -> Self {
        Pool {
            form: Form::new(link.service(), true, &config),
            idle: Mutex::new(Vec::new()),
            permits: Arc::new(Semaphore::new(config.pool.get())),
            open: AtomicUsize::new(0),
            served: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            is_hasty: AtomicBool::new(false),
            poke: Notify::new(),
            link,
            connector,
            config,
        }
    }

    /// Opens a first connection, unless this was done before.
    pub(super) fn wake(self: &Arc<Self>) {
        if !self.woken.swap(true, AcqRel) && !self.is_closed() {
            self.link.tasks().spawn(keep(self.clone()));
        }
    }

    /// Closes idle connections; connections in use are closed when their call ends.
    pub(super) fn close(&self) {
        self.closed.store(true, Release);
        self.idle().clear();
        self.poke.notify_one();
    }

    /// Returns a permit to use one connection; waits while all are in use.
    pub(super) async fn permit(&self) -> OwnedSemaphorePermit {
        self.permits.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Returns the most recently used connection if it is still open, for a call that began at `now`.
    pub(super) fn take_idle(&self, now: Instant) -> Option<Sender> {
        let mut idle = self.idle();
        let oldest = self.oldest(now);
        while let Some(Idle { sender, since }) = idle.pop() {
            if oldest.is_none_or(|oldest| since > oldest) && sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    /// Closes the connection that has been idle longest, to open another one although some are idle.
    pub(super) fn make_room(&self) {
        let mut idle = self.idle();
        if !idle.is_empty() {
            idle.remove(0);
        }
    }

    /// A call that began at `since` was abandoned, and no byte had arrived on its previously idle connection:
    /// the connection may be dead. The same cause may have broken all connections that were idle at that time.
    #[cold]
    fn doubt(&self, since: Instant) {
        if since.elapsed() >= IMPATIENT {
            self.idle().retain(|idle| idle.since > since);
        }
    }

    /// Opens a connection, within the connect timeout.
    pub(super) async fn connect(self: &Arc<Self>) -> Result<Sender, Error> {
        let limit = self.config.connect_timeout.get();
        let connecting = async {
            // A connector may be the user's: its panic counts as a failed connection, and is retried.
            let stream =
                caught(async { self.connector.connect_within(self.address(), limit).await }).await??;
            let mut builder = Builder::new();
            builder.max_header_size(self.config.max_header_list.get());
            let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
            self.open.fetch_add(1, AcqRel);
            let pool = self.clone();
            self.link.tasks().spawn(async move {
                let _ = connection.await;
                pool.open.fetch_sub(1, AcqRel);
            });
            Ok::<_, BoxError>(sender)
        };
        let opened = timeout(limit, connecting).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("not connected in {limit:?}")).into())
        });
        opened.map_err(|error| {
            if self.open.load(Acquire) == 0 && !self.is_closed() {
                self.link.set(State::TransientFailure);
                self.poke.notify_one();
            }
            failure::of_connect(self.address(), error)
        })
    }

    async fn connect_idle(self: &Arc<Self>) -> Result<(), Error> {
        let mut sender = self.connect().await?;
        sender.ready().await.map_err(|error| failure::of_connect(self.address(), error))?;
        self.put_idle(sender);
        Ok(())
    }

    pub(super) fn address(&self) -> &str {
        self.link.address()
    }

    fn put_idle(&self, sender: Sender) {
        if !self.is_closed() {
            self.idle().push(Idle { sender, since: Instant::now() });
        }
    }

    /// The limit of idle time at `now`: connections idle since before it are closed.
    fn oldest(&self, now: Instant) -> Option<Instant> {
        now.checked_sub(self.config.idle_timeout.get())
    }

    fn close_unused(&self) {
        if let Some(oldest) = self.oldest(Instant::now()) {
            self.idle().retain(|idle| idle.since > oldest && !idle.sender.is_closed());
        }
    }

    /// Records whether the endpoint closed a previously idle connection without answering the call.
    pub(super) fn set_hasty(&self, is_hasty: bool) {
        if self.is_hasty.load(Relaxed) != is_hasty {
            self.is_hasty.store(is_hasty, Relaxed);
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Acquire)
    }

    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks whether the endpoint can be reached, at first and after each failure; closes idle connections. Runs
/// until the endpoint is removed.
///
/// An endpoint that was reached stays `Ready` without any open connection: a call opens one.
async fn keep(pool: Arc<Pool>) {
    let mut backoff = Backoff::new(pool.config.max_backoff.get());
    pool.link.set(State::Connecting);
    while !pool.is_closed() {
        if pool.served.swap(false, AcqRel) {
            backoff.reset();
        }
        if pool.link.connection() == State::Ready {
            let _ = timeout(pool.config.idle_timeout.get() / 2, pool.poke.notified()).await;
            pool.close_unused();
            continue;
        }
        match pool.connect_idle().await {
            Ok(()) => pool.link.set(State::Ready),
            Err(error) => {
                tracing::debug!(service = pool.link.service(), ?error, "cannot connect");
                pool.link.set(State::TransientFailure);
                pause(&pool, backoff.next(pool.link.random())).await;
            }
        }
    }
    pool.link.set(State::Idle);
}

async fn pause(pool: &Pool, span: Duration) {
    let mut over = pin!(sleep(span));
    while !pool.is_closed() {
        tokio::select! { () = &mut over => return, () = pool.poke.notified() => {} }
    }
}

// === impl Unanswered ===

impl<'a> Unanswered<'a> {
    /// For a call that is sent on a connection of `pool` and began at `since`; `None` if the connection is new.
    pub(super) fn new(pool: &'a Pool, since: Option<Instant>) -> Self {
        Unanswered { pool, since }
    }

    /// Records that the end of the call is known.
    pub(super) fn ended(mut self) {
        self.since = None;
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(since) = self.since {
            self.pool.doubt(since);
        }
    }
}

// === impl Lease ===

impl Lease {
    pub(super) fn new(pool: Arc<Pool>, sender: Sender, permit: OwnedSemaphorePermit) -> Self {
        pool.served.store(true, Release);
        Lease { pool, sender, permit }
    }

    /// Returns the connection to the pool as soon as it is ready for another request; a moment later if the
    /// endpoint may be about to close it.
    pub(super) fn give_back(self) {
        let Lease { pool, mut sender, permit } = self;
        let is_hasty = pool.is_hasty.load(Relaxed);
        if sender.is_ready() && !is_hasty {
            pool.put_idle(sender);
        } else if !sender.is_closed() {
            let tasks = pool.link.tasks().clone();
            tasks.spawn(async move {
                if is_hasty {
                    sleep(FIN_DELAY).await;
                }
                if let Ok(Ok(())) = timeout(REUSE_TIMEOUT, sender.ready()).await {
                    pool.put_idle(sender);
                }
                drop(permit);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There is one for each instance of each service, most of them without a connection.
    #[test]
    fn is_small() {
        assert!(size_of::<Pool>() <= 240, "{}", size_of::<Pool>());
    }
}
