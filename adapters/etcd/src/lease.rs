//! The entry of one process. One task owns it, from its registration to its removal.
use std::time::Duration;

use async_trait::async_trait;
use chassis_core::{
    adapter::{Entry, Pace, Updates},
    clock,
    registry::RegistryError,
};
use tokio::{sync::watch, time::sleep};
use tonic::Status;

use crate::{
    client::{Claim, Client, Range},
    follow::{Entries, View, follow},
    proto,
};

/// An instance that this process has registered.
pub(crate) struct Own {
    client: Client,
    key: String,
    value: Vec<u8>,
    ttl: Duration,
    pace: Pace,
    /// The leases that the entry may have; it is being moved to the last one.
    leases: Vec<i64>,
    /// The time since which the entry exists.
    since: Since,
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

// === impl Own ===

#[async_trait]
impl Entry for Own {
    type Value = Vec<u8>;
    /// The revision of the deletion, if the entry existed.
    type Ended = Option<i64>;

    async fn put_up(&mut self) -> Result<(), RegistryError> {
        self.put().await.map_err(|status| self.error(&status))
    }

    async fn keep(&mut self, updates: &mut Updates<Vec<u8>>) {
        let (seen, presence) = watch::channel(None);
        let (client, range) = (self.client.clone(), Range::key(self.key.as_str()));
        let (pace, every) = (self.pace.beside(), self.ttl);
        let mut view = Presence { seen, life: 0 };
        tokio::select! {
            () = follow(&client, range, pace, every, &mut view) => {}
            () = self.maintain(presence, updates) => {}
        }
    }

    async fn take_down(&mut self) -> Result<Option<i64>, RegistryError> {
        let mut ended = Ok(None);
        for lease in std::mem::take(&mut self.leases) {
            let deleted = self.client.delete(self.key.as_bytes(), lease).await;
            // The end of the lease removes an entry that could not be deleted.
            let revoked = self.client.revoke(lease).await;
            match (deleted, revoked) {
                (Ok(None), _) | (Err(_), Ok(())) => {}
                (Ok(deleted), _) => ended = Ok(deleted),
                (Err(status), Err(_)) => ended = Err(self.error(&status)),
            }
        }
        ended
    }
}

impl Own {
    pub(crate) fn new(client: Client, key: String, value: Vec<u8>, ttl: Duration, jitter: Duration) -> Self {
        let (pace, leases, since) = (Pace::new(jitter), Vec::new(), Since::default());
        Own { client, key, value, ttl, pace, leases, since }
    }

    fn error(&self, status: &Status) -> RegistryError {
        RegistryError::new(crate::why(&self.client, status))
    }

    /// The first write: replaces the entry of an earlier run of this process.
    async fn put(&mut self) -> Result<(), Status> {
        let lease = self.client.grant(self.ttl).await?;
        self.leases.push(lease);
        self.since.revision = self.client.put(self.key.as_bytes(), &self.value, lease).await?;
        Ok(())
    }

    /// Maintains the entry.
    async fn maintain(
        &mut self,
        mut presence: watch::Receiver<Option<Seen>>,
        updates: &mut Updates<Vec<u8>>,
    ) {
        loop {
            let (client, lease, every) = (self.client.clone(), self.leases.last().copied(), self.ttl / 3);
            let loss = tokio::select! {
                () = renew(&client, lease, every, &mut self.pace) => Loss::Gone,
                loss = lost(&mut presence, lease, self.since) => loss,
                (value, done) = updates.next() => {
                    // Its error leaves nothing to do here: `renew` and `lost` find out whether the entry is there.
                    done(self.update(lease, value).await.map_err(|status| self.error(&status)));
                    continue;
                }
            };
            match loss {
                Loss::Gone => {
                    tracing::warn!(target: "chassis", key = self.key, "the entry in etcd is gone; it is written again")
                }
                Loss::Taken => {
                    tracing::warn!(target: "chassis", key = self.key, "another process has put its own entry in the place of this one");
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
        let gone = || Status::aborted(format!("`{}` has another lease, or is gone", self.key));
        let lease = lease.ok_or_else(gone)?;
        match self.client.claim(self.key.as_bytes(), &value, lease, Some(lease)).await? {
            Claim::Put { revision } => {
                self.since.revision = revision;
                self.value = value;
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
                    tracing::debug!(key = self.key, %status, "not in etcd yet");
                    let pause = self.pace.next(clock::Instant::now(), self.client.random());
                    sleep(pause).await;
                }
            }
        }
    }

    async fn claim(&mut self) -> Result<(), Status> {
        let (key, value) = (self.key.as_bytes(), &self.value);
        let lease = self.client.grant(self.ttl).await?;
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
                sleep(pace.next(clock::Instant::now(), client.random())).await;
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
