//! The task that maintains the connections to one endpoint.
use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering::*},
    time::Duration,
};

use chassis_core::Connection as State;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    connection::{Connection, open},
    endpoint::Endpoint,
};
use crate::net::backoff::Backoff;

/// How the last connection ended.
enum Loss {
    /// It closed in good order, or was replaced: the next may be opened at once.
    Went,
    /// Any other end.
    Broke {
        /// A connection that never served a call counts as a failed one.
        served: bool,
    },
}

/// Runs until the endpoint is removed.
///
/// After a failure the endpoint stays in `TransientFailure` until a connection is open again, also during
/// another attempt: calls are refused at once and do not wait for another timeout.
pub(super) async fn drive(endpoint: Arc<Endpoint>) {
    let mut backoff = Backoff::new(endpoint.config.max_backoff.get());
    let idle = endpoint.config.idle_timeout.get();
    let mut check = Instant::now() + idle;
    while !endpoint.is_closed() {
        if let Some(loss) = endpoint.reap(&mut backoff) {
            endpoint.settle_loss(&loss, backoff.is_fresh());
            if matches!(loss, Loss::Broke { .. }) && endpoint.wanted.load(Acquire) {
                endpoint.pause(backoff.next(endpoint.link.random())).await;
            }
            continue;
        }
        let (count, usable) = endpoint.count();
        if usable > 0 {
            endpoint.link.set(State::Ready);
        }
        if count >= endpoint.target(count) {
            tokio::select! {
                () = endpoint.poke.notified() => {}
                () = sleep_until(check) => {
                    endpoint.close_unused();
                    check = Instant::now() + idle;
                }
            }
            continue;
        }
        if count == 0 && endpoint.link.connection() != State::TransientFailure {
            endpoint.link.set(State::Connecting);
        }
        match open(&endpoint).await {
            Ok(connection) => endpoint.add(connection),
            Err(error) => {
                let (service, address) = (endpoint.link.service(), endpoint.link.address());
                tracing::debug!(service, address, error, "cannot connect");
                endpoint.set_failure(Some(error.to_string()));
                if endpoint.count().1 == 0 {
                    endpoint.link.set(State::TransientFailure);
                }
                endpoint.pause(backoff.next(endpoint.link.random())).await;
            }
        }
    }
    endpoint.open.set(Vec::new());
    endpoint.link.set(State::Idle);
    endpoint.wake_waiting();
}

// === impl Endpoint ===

impl Endpoint {
    /// Removes the closed connections. Returns `Some` if none is left.
    fn reap(&self, backoff: &mut Backoff) -> Option<Loss> {
        let open = self.open.get();
        let (left, over): (Vec<_>, Vec<_>) = open.iter().cloned().partition(|one| !one.is_over());
        if over.is_empty() {
            return None;
        }
        let empty = left.is_empty();
        self.open.set(left);
        let served = over.iter().any(|one| one.has_served());
        if served {
            backoff.reset();
        }
        let orderly = over.iter().all(|one| one.was_orderly());
        // A connection that closed in good order and had no call needs no replacement: the next call opens the
        // next one.
        let is_needed = match orderly {
            true => over.iter().any(|one| one.streams() > 0),
            false => over.iter().any(|one| one.is_used()),
        };
        if empty && !is_needed && self.waiting() == 0 {
            self.wanted.store(false, Release);
        }
        let went = orderly || over.iter().all(|one| one.is_doubted());
        empty.then_some(if went { Loss::Went } else { Loss::Broke { served } })
    }

    /// Calls wait for the next connection, unless an earlier connection in a row also served no call.
    fn settle_loss(&self, loss: &Loss, is_first: bool) {
        let state = match loss {
            _ if !self.wanted.load(Acquire) => State::Idle,
            Loss::Broke { served: false } if !is_first => State::TransientFailure,
            Loss::Broke { .. } | Loss::Went => State::Connecting,
        };
        if let Loss::Broke { .. } = loss {
            self.set_failure(Some(String::from("the connection broke")));
        }
        self.link.set(state);
        self.wake_waiting();
    }

    /// Closes connections that were not used since the previous check: those beyond the configured number, or
    /// all.
    fn close_unused(&self) {
        let open = self.open.get();
        let used: Vec<bool> = open.iter().map(|one| one.take_used()).collect();
        if used.contains(&true) {
            let mut spare = open.len().saturating_sub(self.config.connections.get());
            let mut kept = Vec::clone(&open);
            let mut used = used.into_iter();
            kept.retain(|_| {
                let close = used.next() == Some(false) && spare > 0;
                spare -= usize::from(close);
                !close
            });
            self.open.set(kept);
        } else if !open.is_empty() {
            self.wanted.store(false, Release);
            self.open.set(Vec::new());
            self.link.set(State::Idle);
        }
    }

    /// The number of connections, and of those that accept calls.
    fn count(&self) -> (usize, usize) {
        self.open.with(|open| (open.len(), open.iter().filter(|one| one.is_usable()).count()))
    }

    /// The number of connections to have, if `open` are open.
    fn target(&self, open: usize) -> usize {
        if !self.wanted.load(Acquire) {
            return 0;
        }
        // A connection that was just opened has room for waiting calls that have not noticed it yet.
        let room = self.open.with(|open| open.iter().map(|one| one.free_streams()).sum());
        let more = usize::from(open > 0 && self.waiting() > room);
        self.config.connections.get().max((open + more).min(self.config.max_connections.get()))
    }

    fn add(&self, connection: Connection) {
        let mut open = Vec::clone(&self.open.get());
        open.push(Arc::new(connection));
        self.open.set(open);
        self.set_failure(None);
        self.link.set(State::Ready);
        self.wake_waiting();
    }

    /// Waits, but ends early if the endpoint is removed or another connection is lost.
    async fn pause(&self, span: Duration) {
        let mut over = pin!(sleep(span));
        loop {
            tokio::select! {
                () = &mut over => return,
                () = self.poke.notified() => {
                    if self.is_closed() || self.open.get().iter().any(|one| one.is_over()) {
                        return;
                    }
                }
            }
        }
    }
}
