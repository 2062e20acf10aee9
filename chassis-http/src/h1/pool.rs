//! The connections to one endpoint that are free, and the task that looks after them.
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
    /// The one used last is at the end, and is used next: the others may grow old and go.
    idle: Mutex<Vec<Idle>>,
    /// One for each call. With that there are never more connections than permits: a call opens one
    /// only when none is idle, or in place of one that is.
    permits: Arc<Semaphore>,
    open: AtomicUsize,
    served: AtomicBool,
    woken: AtomicBool,
    closed: AtomicBool,
    /// The endpoint closed a connection that had been idle under the last call that was sent on one.
    is_hasty: AtomicBool,
    poke: Notify,
}

/// A connection in use by one call.
pub(super) struct Lease {
    pool: Arc<Pool>,
    sender: Sender,
    permit: OwnedSemaphorePermit,
}

/// Sees to what it means that a call on a connection that was idle is given up unanswered.
pub(super) struct Unanswered<'a> {
    pool: &'a Pool,
    /// When the call was begun; `None` once it is known how it ended.
    since: Option<Instant>,
}

struct Idle {
    sender: Sender,
    since: Instant,
}

/// A request may still be on its way out when its answer is whole. After so long the connection goes.
const REUSE_TIMEOUT: Duration = Duration::from_secs(1);
/// An endpoint that closes connections after each answer, and does not say so, has done it by then: its FIN is right
/// behind the answer.
const FIN_DELAY: Duration = Duration::from_millis(2);
/// A call that was given up sooner says nothing of its connection.
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

    /// Opens a first connection, unless that was done before.
    pub(super) fn wake(self: &Arc<Self>) {
        if !self.woken.swap(true, AcqRel) && !self.is_closed() {
            self.link.tasks().spawn(keep(self.clone()));
        }
    }

    /// Closes what is idle; what is in use goes at its end.
    pub(super) fn close(&self) {
        self.closed.store(true, Release);
        self.idle().clear();
        self.poke.notify_one();
    }

    /// Leave to use one connection; waits while all are in use.
    pub(super) async fn permit(&self) -> OwnedSemaphorePermit {
        self.permits.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// The connection that was used last, if it is still open; for a call that began at `now`.
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

    /// For a connection that is opened although others are idle: the one idle for longest goes.
    pub(super) fn make_room(&self) {
        let mut idle = self.idle();
        if !idle.is_empty() {
            idle.remove(0);
        }
    }

    /// Not a byte came on a connection that had been idle, for a call that began at `since` and was given up: it
    /// may have died in silence. The same cause may have killed all connections that have been idle since before.
    #[cold]
    fn doubt(&self, since: Instant) {
        if since.elapsed() >= IMPATIENT {
            self.idle().retain(|idle| idle.since > since);
        }
    }

    /// A new connection, within the connect timeout.
    pub(super) async fn connect(self: &Arc<Self>) -> Result<Sender, Error> {
        let limit = self.config.connect_timeout.get();
        let connecting = async {
            // A connector may be the user's: its panic is a connection that failed, and is tried again.
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

    /// Connections idle since before this are too old at `now`.
    fn oldest(&self, now: Instant) -> Option<Instant> {
        now.checked_sub(self.config.idle_timeout.get())
    }

    fn close_unused(&self) {
        if let Some(oldest) = self.oldest(Instant::now()) {
            self.idle().retain(|idle| idle.since > oldest && !idle.sender.is_closed());
        }
    }

    /// How a call on a connection that had been idle ended: did the endpoint close it without an answer?
    pub(super) fn set_hasty(&self, is_hasty: bool) {
        if self.is_hasty.load(Relaxed) != is_hasty {
            self.is_hasty.store(is_hasty, Relaxed);
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Acquire)
    }

    /// Nothing panics while it is held; a poisoned lock would be as good as new.
    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds out whether the endpoint can be reached, at first and after each failure; closes idle
/// connections. Runs until the endpoint is gone.
///
/// Without any connection open an endpoint that was reached stays `Ready`: a call opens one.
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
    /// For a call that is sent on a connection of `pool` and began at `since`; `None`: the connection is new.
    pub(super) fn new(pool: &'a Pool, since: Option<Instant>) -> Self {
        Unanswered { pool, since }
    }

    /// It is known how it ended.
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

    /// Puts the connection back, as soon as it is ready for another request; a moment later where the endpoint may be
    /// about to close it.
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

    /// One for each instance of each service, most of them without a connection.
    #[test]
    fn is_small() {
        assert!(size_of::<Pool>() <= 240, "{}", size_of::<Pool>());
    }
}
