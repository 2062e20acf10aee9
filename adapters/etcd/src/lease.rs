//! The entry of one process: one task owns it, from its registration until it is taken down.
use std::time::Duration;

use chassis_core::clock;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};
use tonic::Status;

use crate::{
    client::{Claim, Client, Range},
    follow::{Entries, View, follow},
    pace::Pace,
    proto,
};

/// The entry to put up.
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    pub(crate) ttl: Duration,
    pub(crate) jitter: Duration,
}

/// Ends the task when it is dropped.
pub(crate) struct Lease {
    end: Option<oneshot::Sender<oneshot::Sender<Ended>>>,
    updates: mpsc::Sender<Update>,
    /// For the message.
    key: String,
}

/// Replaces the value of the entry.
struct Update {
    value: Vec<u8>,
    done: oneshot::Sender<Result<(), Status>>,
}

/// The revision of the deletion, if it was there.
pub(crate) type Ended = Result<Option<i64>, Status>;

/// The task that owns the entry.
struct Owner {
    client: Client,
    entry: Entry,
    pace: Pace,
    /// The leases that may have the entry: the last one is to have it.
    leases: Vec<i64>,
    /// Since when the entry is there.
    since: Since,
    updates: mpsc::Receiver<Update>,
}

/// The entry as etcd has it.
struct Presence {
    seen: watch::Sender<Option<Seen>>,
    life: u64,
}

#[derive(Clone, Copy)]
struct Seen {
    at: Since,
    /// `None`: there is no entry.
    lease: Option<i64>,
}

/// A moment in the history of etcd. One that loses its memory begins another life, in which revisions begin anew.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Since {
    life: u64,
    revision: i64,
}

/// Why the entry is to be put up again.
enum Loss {
    /// Its lease is over, or it was deleted.
    Gone,
    /// Another process has put its own in its place.
    Taken,
}

/// How long taking it down may take.
const END: Duration = Duration::from_secs(5);

// === impl Lease ===

impl Lease {
    /// Puts the entry up, in a task of its own that goes on after that.
    pub(crate) async fn begin(client: &Client, entry: Entry) -> Result<Self, Status> {
        let (end, asked) = oneshot::channel();
        let (ready, is_up) = oneshot::channel();
        let (updates, updated) = mpsc::channel(1);
        let lease = Lease { end: Some(end), updates, key: entry.key.clone() };
        let owner = Owner {
            client: client.clone(),
            pace: Pace::new(entry.jitter),
            entry,
            leases: Vec::new(),
            since: Since::default(),
            updates: updated,
        };
        client.tasks().spawn(owner.own(ready, asked));
        let up = is_up.await;
        up.unwrap_or_else(|_| Err(Status::cancelled("the process ends"))).map(|()| lease)
    }

    /// Replaces the value, under the same lease. While the entry is not there, this waits until it is put up again.
    pub(crate) async fn update(&mut self, value: Vec<u8>) -> Result<(), Status> {
        let (done, updated) = oneshot::channel();
        let ended = || Status::cancelled("the registration has ended");
        self.updates.send(Update { value, done }).await.map_err(|_| ended())?;
        updated.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Takes it down.
    pub(crate) async fn end(mut self) -> Ended {
        let (done, ended) = oneshot::channel();
        if let Some(end) = self.end.take() {
            // A task that is gone has nothing to take down.
            let _ = end.send(done);
        }
        match timeout(END, ended).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(_)) => Ok(None),
            Err(_) => {
                Err(Status::deadline_exceeded(format!("`{}` was not removed within {END:?}", self.key)))
            }
        }
    }
}

// === impl Owner ===

impl Owner {
    async fn own(
        mut self,
        ready: oneshot::Sender<Result<(), Status>>,
        mut asked: oneshot::Receiver<oneshot::Sender<Ended>>,
    ) {
        // To the end also where its asker has gone: what is half up is taken down below.
        let up = self.put_up().await;
        let is_up = up.is_ok();
        let is_heard = ready.send(up).is_ok();
        if is_up && is_heard {
            let (seen, presence) = watch::channel(None);
            let (client, range) = (self.client.clone(), Range::key(self.entry.key.as_str()));
            let (jitter, every) = (self.entry.jitter, self.entry.ttl);
            let mut view = Presence { seen, life: 0 };
            // The view is not told of the entry any more once it ends, which it does with this task.
            let done = tokio::select! {
                done = &mut asked => done.ok(),
                () = follow(&client, range, jitter, every, &mut view) => None,
                () = self.keep(presence) => None,
            };
            let ended = self.take_down().await;
            if let Some(done) = done {
                let _ = done.send(ended);
            }
            return;
        }
        if let Err(status) = self.take_down().await {
            tracing::debug!(key = self.entry.key, %status, "an entry was not removed from etcd");
        }
    }

    /// For the first time: an entry of an earlier life of this process is replaced.
    async fn put_up(&mut self) -> Result<(), Status> {
        let lease = self.client.grant(self.entry.ttl).await?;
        self.leases.push(lease);
        self.since.revision = self.client.put(self.entry.key.as_bytes(), &self.entry.value, lease).await?;
        Ok(())
    }

    /// Keeps the entry there.
    async fn keep(&mut self, mut presence: watch::Receiver<Option<Seen>>) {
        loop {
            let (client, lease, every) =
                (self.client.clone(), self.leases.last().copied(), self.entry.ttl / 3);
            let loss = tokio::select! {
                () = renew(&client, lease, every, &mut self.pace) => Loss::Gone,
                loss = lost(&mut presence, lease, self.since) => loss,
                Some(Update { value, done }) = self.updates.recv() => {
                    // Its error leaves nothing to do here: `renew` and `lost` find out whether the entry is there.
                    let _ = done.send(self.update(lease, value).await);
                    continue;
                }
            };
            match loss {
                Loss::Gone => {
                    tracing::warn!(target: "chassis", key = self.entry.key, "the entry in etcd is gone; it is written again")
                }
                Loss::Taken => {
                    tracing::warn!(target: "chassis", key = self.entry.key, "another process has put its own entry in the place of this one");
                    // It goes on when that one goes.
                    let gone = presence.wait_for(|seen| seen.is_some_and(|seen| seen.lease.is_none()));
                    let _ = gone.await;
                }
            }
            self.put_up_again().await;
            self.since.life = presence.borrow().map_or(0, |seen| seen.at.life);
        }
    }

    /// Replaces the value where the entry still has this lease.
    async fn update(&mut self, lease: Option<i64>, value: Vec<u8>) -> Result<(), Status> {
        let gone = || Status::aborted(format!("`{}` has another lease, or is gone", self.entry.key));
        let lease = lease.ok_or_else(gone)?;
        match self.client.claim(self.entry.key.as_bytes(), &value, lease, Some(lease)).await? {
            Claim::Put { revision } => {
                self.since.revision = revision;
                self.entry.value = value;
                Ok(())
            }
            Claim::Taken { .. } => Err(gone()),
        }
    }

    /// Puts it up with a new lease: one that is over never comes back. Until it is, or another process has done so.
    async fn put_up_again(&mut self) {
        loop {
            match self.claim().await {
                Ok(()) => break self.pace.reset(),
                Err(status) => {
                    tracing::debug!(key = self.entry.key, %status, "not in etcd yet");
                    let pause = self.pace.next(clock::Instant::now(), self.client.random());
                    sleep(pause).await;
                }
            }
        }
    }

    async fn claim(&mut self) -> Result<(), Status> {
        let (key, value) = (self.entry.key.as_bytes(), &self.entry.value);
        let lease = self.client.grant(self.entry.ttl).await?;
        self.leases.push(lease);
        let mut claim = self.client.claim(key, value, lease, None).await?;
        if let Claim::Taken { lease: found, .. } = claim
            && self.leases.contains(&found)
        {
            // Its own of before, which is about to go.
            claim = self.client.claim(key, value, lease, Some(found)).await?;
        }
        let (Claim::Put { revision } | Claim::Taken { revision, .. }) = claim;
        self.since.revision = revision;
        for old in std::mem::replace(&mut self.leases, vec![lease]).into_iter().filter(|old| *old != lease) {
            // Nothing has it any more. If it can't be ended now, it ends by itself.
            let _ = self.client.revoke(old).await;
        }
        Ok(())
    }

    /// Takes it down, if it is this task's.
    async fn take_down(&mut self) -> Ended {
        let mut ended = Ok(None);
        for lease in std::mem::take(&mut self.leases) {
            let deleted = self.client.delete(self.entry.key.as_bytes(), lease).await;
            // With the lease goes what it could not delete.
            let revoked = self.client.revoke(lease).await;
            match (deleted, revoked) {
                (Ok(None), _) | (Err(_), Ok(())) => {}
                (Ok(deleted), _) => ended = Ok(deleted),
                (Err(status), Err(_)) => ended = Err(status),
            }
        }
        ended
    }
}

/// Renews `lease` until it is over.
async fn renew(client: &Client, lease: Option<i64>, every: Duration, pace: &mut Pace) {
    let Some(lease) = lease else { return };
    loop {
        match client.keep_alive(lease).await {
            Ok(true) => {
                pace.reset();
                sleep(every).await;
            }
            Ok(false) => return,
            Err(status) => {
                tracing::debug!(%status, "a lease of etcd is not renewed");
                sleep(pace.next(clock::Instant::now(), client.random()).min(every)).await;
            }
        }
    }
}

/// Resolves when the entry that was put up at `since` is not there any more with this `lease`.
async fn lost(presence: &mut watch::Receiver<Option<Seen>>, lease: Option<i64>, since: Since) -> Loss {
    let is_lost = |seen: &Option<Seen>| seen.is_some_and(|seen| seen.at >= since && seen.lease != lease);
    let seen = presence.wait_for(is_lost).await.map(|seen| *seen);
    match seen {
        Ok(seen) => seen.and_then(|seen| seen.lease).map_or(Loss::Gone, |_| Loss::Taken),
        Err(_) => std::future::pending().await, // the task ends
    }
}

// === impl Presence ===

impl View for Presence {
    type Entry = i64;

    fn read(&mut self, entry: &proto::KeyValue) -> i64 {
        entry.lease
    }

    fn show(&mut self, all: &Entries<i64>, revision: i64) {
        let lease = all.values().next().map(|(_, lease)| *lease);
        self.seen.send_replace(Some(Seen { at: Since { life: self.life, revision }, lease }));
    }

    fn begin_anew(&mut self) {
        self.life += 1;
    }

    fn fail(&mut self, _: &Status) {}
}
