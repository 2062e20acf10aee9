//! The entry of one process. One task owns it, from its registration to its removal.
use std::time::Duration;

use chassis_core::{adapter::Pace, clock};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};
use tonic::Status;

use crate::{
    client::{Claim, Client, Range},
    follow::{Entries, View, follow},
    proto,
};

/// The entry to write.
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
    /// The key, for messages.
    key: String,
}

/// Replaces the value of the entry.
struct Update {
    value: Vec<u8>,
    done: oneshot::Sender<Result<(), Status>>,
}

/// The revision of the deletion, if the entry existed.
pub(crate) type Ended = Result<Option<i64>, Status>;

/// The task that owns the entry.
struct Owner {
    client: Client,
    entry: Entry,
    pace: Pace,
    /// The leases that the entry may have; it is being moved to the last one.
    leases: Vec<i64>,
    /// The time since which the entry exists.
    since: Since,
    updates: mpsc::Receiver<Update>,
}

/// The state of the entry in etcd.
struct Presence {
    seen: watch::Sender<Option<Seen>>,
    life: u64,
}

#[derive(Clone, Copy)]
struct Seen {
    at: Since,
    /// `None` if there is no entry.
    lease: Option<i64>,
}

/// A position in the history of etcd. If etcd loses its data, another history begins, with new revisions.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Since {
    life: u64,
    revision: i64,
}

/// The reason why the entry must be written again.
enum Loss {
    /// Its lease has expired, or it was deleted.
    Gone,
    /// Another process has replaced it.
    Taken,
}

/// The time limit of the removal.
const END: Duration = Duration::from_secs(5);

// === impl Lease ===

impl Lease {
    /// Writes the entry, in a task of its own that then maintains it.
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

    /// Removes the entry.
    pub(crate) async fn end(mut self) -> Ended {
        let (done, ended) = oneshot::channel();
        if let Some(end) = self.end.take() {
            // A task that has ended has no entry to remove.
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
        // This completes even if the caller is gone: a partly written entry is removed below.
        let up = self.put_up().await;
        let is_up = up.is_ok();
        let is_heard = ready.send(up).is_ok();
        if is_up && is_heard {
            let (seen, presence) = watch::channel(None);
            let (client, range) = (self.client.clone(), Range::key(self.entry.key.as_str()));
            let (jitter, every) = (self.entry.jitter, self.entry.ttl);
            let mut view = Presence { seen, life: 0 };
            // Once this task ends, the view gets no more changes of the entry.
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

    /// The first write: replaces the entry of an earlier run of this process.
    async fn put_up(&mut self) -> Result<(), Status> {
        let lease = self.client.grant(self.entry.ttl).await?;
        self.leases.push(lease);
        self.since.revision = self.client.put(self.entry.key.as_bytes(), &self.entry.value, lease).await?;
        Ok(())
    }

    /// Maintains the entry.
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
                    // The task continues when the other entry is removed.
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

    /// Writes the entry again with a new lease, because an expired lease cannot be renewed. Repeats until it
    /// exists, or another process has written one.
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
            // The entry has its own former lease, which is about to expire.
            claim = self.client.claim(key, value, lease, Some(found)).await?;
        }
        let (Claim::Put { revision } | Claim::Taken { revision, .. }) = claim;
        self.since.revision = revision;
        for old in std::mem::replace(&mut self.leases, vec![lease]).into_iter().filter(|old| *old != lease) {
            // No entry has it any more. If it cannot be ended now, it expires.
            let _ = self.client.revoke(old).await;
        }
        Ok(())
    }

    /// Removes the entry, if it belongs to this task.
    async fn take_down(&mut self) -> Ended {
        let mut ended = Ok(None);
        for lease in std::mem::take(&mut self.leases) {
            let deleted = self.client.delete(self.entry.key.as_bytes(), lease).await;
            // The end of the lease removes an entry that could not be deleted.
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

/// Renews `lease` until it has expired.
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

/// Resolves when the entry that was written at `since` no longer exists with this `lease`.
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
