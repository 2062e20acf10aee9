//! The entries of one process: a task for each server owns the one there, from its registration until it is taken down.
use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chassis_core::{adapter::Pace, clock};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

use crate::{
    client::{Client, Failure, Heartbeat},
    wire::Revision,
};

/// The entry to put up.
#[derive(Clone)]
pub(crate) struct Entry {
    /// For messages.
    pub(crate) id: Arc<str>,
    pub(crate) ttl: Duration,
    pub(crate) jitter: Duration,
}

/// Takes the entries down when it is dropped.
pub(crate) struct Lease {
    over: watch::Sender<bool>,
    /// The registration as it is sent, and how often it was replaced.
    body: watch::Sender<(u64, Bytes)>,
    reports: mpsc::Receiver<Report>,
    servers: usize,
}

/// A message of a task to its owner.
enum Report {
    /// The first registration has ended.
    Begun(Result<(), Failure>),
    /// The registration of this number was sent.
    Updated(u64, Result<(), Failure>),
    /// The entry is down, since this revision.
    Ended(usize, Result<Option<Revision>, Failure>),
}

/// The task of one server.
struct Owner {
    client: Client,
    server: usize,
    entry: Entry,
    body: watch::Receiver<(u64, Bytes)>,
    /// The number of the registration that was sent last.
    sent: u64,
    pace: Pace,
    /// Of the entry that is there.
    lease: Option<String>,
    reports: mpsc::Sender<Report>,
    is_begun: bool,
    /// Another process has registered the same id.
    is_replaced: bool,
}

/// The longest time between two heartbeats: an entry that a server has lost is back 2 s later.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// So many reports of each server wait for their owner.
const REPORTS: usize = 8;
/// How long taking them down, or an update, may take.
const END: Duration = Duration::from_secs(5);

// === impl Lease ===

impl Lease {
    /// Registers with all servers; returns when one of them has the entry. The others follow when they can be reached.
    ///
    /// # Errors
    /// None of them took it.
    pub(crate) async fn begin(client: &Client, entry: &Entry, body: Bytes) -> Result<Self, Failure> {
        let servers = client.count();
        let (over, is_over) = watch::channel(false);
        let (body, sent) = watch::channel((0, body));
        let (reports, reported) = mpsc::channel(REPORTS * servers.max(1));
        for server in 0..servers {
            let owner = Owner {
                client: client.clone(),
                server,
                entry: entry.clone(),
                body: sent.clone(),
                sent: 0,
                pace: Pace::new(entry.jitter),
                lease: None,
                reports: reports.clone(),
                is_begun: false,
                is_replaced: false,
            };
            client.tasks().spawn(owner.own(is_over.clone()));
        }
        let mut lease = Lease { over, body, reports: reported, servers };
        let mut failed = None;
        for _ in 0..servers {
            match lease.reports.recv().await {
                Some(Report::Begun(Ok(()))) => return Ok(lease),
                Some(Report::Begun(Err(failure))) => failed = Some(failure),
                Some(Report::Updated(..) | Report::Ended(..)) | None => break,
            }
        }
        Err(failed.unwrap_or_else(|| Failure { status: None, why: "the process ends".to_owned() }))
    }

    /// Replaces the registration at all servers; returns when one of them has the new one.
    ///
    /// # Errors
    /// None of them took it. The former one is in force.
    pub(crate) async fn update(&mut self, body: Bytes) -> Result<(), Failure> {
        let (before, number) = {
            let (number, before) = &*self.body.borrow();
            (before.clone(), number + 1)
        };
        self.body.send_replace((number, body));
        let (mut failed, mut left) = (None, self.servers);
        let all = timeout(END, async {
            while left > 0 {
                match self.reports.recv().await {
                    Some(Report::Updated(of, Ok(()))) if of == number => return true,
                    Some(Report::Updated(of, Err(failure))) if of == number => {
                        failed = Some(failure);
                        left -= 1;
                    }
                    Some(_) => {}
                    None => return false,
                }
            }
            false
        });
        if all.await == Ok(true) {
            return Ok(());
        }
        self.body.send_replace((number + 1, before));
        let late = || Failure { status: None, why: format!("not updated within {END:?}") };
        Err(failed.unwrap_or_else(late))
    }

    /// Takes the entries down. The revision of each server that has done so.
    ///
    /// # Errors
    /// A server may have it still; it goes when its time is over.
    pub(crate) async fn end(mut self) -> Result<Vec<(usize, Revision)>, Failure> {
        self.over.send_replace(true);
        let (mut revisions, mut failed, mut ended) = (Vec::new(), None, 0);
        let all = timeout(END, async {
            while ended < self.servers {
                match self.reports.recv().await {
                    Some(Report::Ended(server, Ok(revision))) => {
                        revisions.extend(revision.map(|revision| (server, revision)));
                        ended += 1;
                    }
                    Some(Report::Ended(_, Err(failure))) => {
                        failed = Some(failure);
                        ended += 1;
                    }
                    Some(Report::Begun(_) | Report::Updated(..)) => {}
                    None => return,
                }
            }
        });
        if all.await.is_err() {
            failed = Some(Failure { status: None, why: format!("not taken down within {END:?}") });
        }
        match failed {
            // With one of several servers away, callers hold to what the others list.
            Some(failure) if revisions.is_empty() => Err(failure),
            _ => Ok(revisions),
        }
    }
}

// === impl Owner ===

impl Owner {
    async fn own(mut self, mut over: watch::Receiver<bool>) {
        loop {
            let is_sent = self.body.borrow().0 == self.sent;
            let ended = match self.lease.clone().filter(|_| is_sent) {
                // Not dropped half-way: a server may have the entry before its answer is here.
                None => self.put_up().await,
                Some(lease) => tokio::select! {
                    biased;
                    () = is_over(&mut over) => break,
                    renewed = self.client.renew(self.server, &lease) => self.renewed(renewed),
                },
            };
            if ended.is_ok() && self.lease.is_none() {
                continue;
            }
            let pause = self.pause(&ended);
            if !std::mem::replace(&mut self.is_begun, true) {
                let _ = self.reports.try_send(Report::Begun(ended));
            }
            tokio::select! {
                biased;
                () = is_over(&mut over) => break,
                () = is_updated(&mut self.body, self.sent) => {}
                () = sleep(pause) => {}
            }
        }
        let ended = match self.lease.take() {
            Some(lease) => self.client.remove(self.server, &lease).await.map(Some),
            None => Ok(None),
        };
        if let Err(failure) = &ended {
            tracing::debug!(
                id = &*self.entry.id,
                why = failure.why,
                "an entry was not taken out of the registry"
            );
        }
        let _ = self.reports.try_send(Report::Ended(self.server, ended));
    }

    /// Takes in the answer to a heartbeat. An entry that is not known any more has no lease afterwards.
    fn renewed(&mut self, renewed: Result<Heartbeat, Failure>) -> Result<(), Failure> {
        let renewed = renewed?;
        let (id, server) = (&*self.entry.id, self.client.name(self.server));
        if renewed == Heartbeat::Unknown {
            tracing::warn!(target: "chassis", id, server, "the entry in the registry went; it is put up again");
            self.lease = None;
        }
        let was_replaced = std::mem::replace(&mut self.is_replaced, renewed == Heartbeat::Replaced);
        if self.is_replaced && !was_replaced {
            // It is put up again when that one goes.
            let what = "another process has put its own entry in the place of this one";
            tracing::warn!(target: "chassis", id, server, "{what}");
        }
        Ok(())
    }

    /// How long to wait for the next heartbeat, or for the next attempt.
    fn pause(&mut self, ended: &Result<(), Failure>) -> Duration {
        let random = self.client.random();
        match ended {
            Ok(()) => {
                self.pace.reset();
                let every = (self.entry.ttl / 3).min(HEARTBEAT);
                random.between(every * 4 / 5, every)
            }
            Err(failure) => {
                let (id, why) = (&*self.entry.id, &failure.why);
                tracing::debug!(id, why, "a registration is not renewed");
                self.pace.next(clock::Instant::now(), random)
            }
        }
    }

    /// Registers, for the first time or anew. An entry of its own that is there is replaced.
    async fn put_up(&mut self) -> Result<(), Failure> {
        let (number, body) = self.body.borrow().clone();
        let registered = self.client.register(self.server, body).await;
        self.sent = number;
        if number > 0 {
            let _ = self
                .reports
                .try_send(Report::Updated(number, registered.as_ref().map(drop).map_err(Failure::clone)));
        }
        self.lease = Some(registered?.lease);
        Ok(())
    }
}

/// Resolves when the entry is to be taken down, also where its owner was dropped.
async fn is_over(over: &mut watch::Receiver<bool>) {
    let _ = over.wait_for(|over| *over).await;
}

/// Resolves when there is another registration than the one of this number.
async fn is_updated(body: &mut watch::Receiver<(u64, Bytes)>, sent: u64) {
    if body.wait_for(|(number, _)| *number != sent).await.is_err() {
        std::future::pending::<()>().await; // its owner was dropped
    }
}
