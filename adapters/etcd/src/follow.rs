//! Follows a range of keys for good: a list at one revision, then what changes from there.
//!
//! A watch goes on at the last revision that was seen, so that a lost connection costs no list. Where etcd no longer
//! has that revision, or its history is another one than before, everything is listed anew: so what was deleted
//! meanwhile is found. It is listed anew from time to time in any case.
//!
//! It does not go on at the revision after that: etcd up to 3.5 keeps no deletion of the very revision that it was
//! compacted to, and a watch that begins there is told nothing of it. Begun at the revision before, it is refused.
use std::{collections::BTreeMap, time::Duration};

use chassis_core::{Random, clock};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{Code, Status};

use crate::{
    client::{Client, Range, is_compacted, is_too_large},
    pace::Pace,
    proto::{self, event::EventType},
};

/// Builds a view of the keys of a range.
pub(crate) trait View: Send {
    /// The value that is kept for an entry.
    type Entry: Send;

    /// Reads an entry that is new, or has changed.
    fn read(&mut self, entry: &proto::KeyValue) -> Self::Entry;

    /// All entries as they are at `revision`.
    fn show(&mut self, all: &Entries<Self::Entry>, revision: i64);

    /// The revisions of what is shown from here on begin anew.
    fn begin_anew(&mut self) {}

    /// etcd can't be asked; it is not said again until it can.
    fn fail(&mut self, why: &Status);
}

/// The entries of a range by key, each with the revision that changed it.
pub(crate) type Entries<E> = BTreeMap<Vec<u8>, (i64, E)>;

/// How a watch ended.
enum End {
    /// etcd no longer has the changes after the last revision: everything has to be listed.
    Gap,
    /// The history is another one: its revisions can't be compared with the known ones.
    Replaced,
    /// It is time to list.
    Due,
    Failed(Status),
}

/// Where a watch goes on.
#[derive(Clone, Copy)]
struct Position {
    revision: i64,
    cluster: u64,
    /// It comes from a list a moment ago: the member that is watched may be a little behind. Later that says that etcd
    /// has lost its memory.
    is_listed: bool,
}

struct Follow<'a, V: View> {
    client: &'a Client,
    range: Range,
    view: &'a mut V,
    entries: Entries<V::Entry>,
    position: Option<Position>,
    next_list: Instant,
    has_failed: bool,
}

/// So many entries are asked for at a time; fewer where they are too large for a message.
const PAGE: usize = 500;
/// How long etcd has to begin a watch.
const CREATED: Duration = Duration::from_secs(3);

/// Follows `range` until it is dropped. Everything is listed again after `every`, give or take a fifth.
pub(crate) async fn follow<V: View>(
    client: &Client,
    range: Range,
    jitter: Duration,
    every: Duration,
    view: &mut V,
) {
    let mut pace = Pace::new(jitter);
    let (entries, next_list) = (Entries::new(), Instant::now());
    let mut this = Follow { client, range, view, entries, position: None, next_list, has_failed: false };
    loop {
        let ended = this.round(&mut pace, every).await;
        match ended {
            Ok(never) => match never {},
            Err(End::Due) => this.position = None,
            Err(End::Gap) => {
                this.position = None;
                sleep(pace.next(clock::Instant::now(), client.random())).await;
            }
            Err(End::Replaced) => {
                this.position = None;
                this.entries.clear();
                this.view.begin_anew();
                // With endpoints of two clusters each list is followed by a watch of the other one.
                sleep(pace.next(clock::Instant::now(), client.random())).await;
            }
            Err(End::Failed(status)) => {
                if let Some(position) = &mut this.position {
                    position.is_listed = false;
                }
                client.is_refused(&status).await;
                let pause = pace.next(clock::Instant::now(), client.random());
                // A stream breaks when a member restarts; another one may be there at once.
                if (pace.failures() > 1 || this.entries.is_empty()) && !this.has_failed {
                    this.has_failed = true;
                    this.view.fail(&status);
                }
                sleep(pause).await;
            }
        }
    }
}

// === impl Follow ===

impl<V: View> Follow<'_, V> {
    /// Lists if need be, and watches until that ends.
    async fn round(&mut self, pace: &mut Pace, every: Duration) -> Result<std::convert::Infallible, End> {
        let position = match self.position {
            Some(position) => position,
            None => {
                let position = self.list().await.map_err(End::Failed)?;
                self.next_list = Instant::now() + around(every, self.client.random());
                position
            }
        };
        self.watch(position, pace).await
    }

    /// Takes in the whole range, page by page, as it was at one revision.
    async fn list(&mut self) -> Result<Position, Status> {
        let (mut limit, mut from) = (PAGE, self.range.clone());
        let (mut revision, mut cluster) = (0, 0);
        let mut listed = Entries::new();
        loop {
            let page = match self.client.page(&from, limit, revision, false).await {
                Ok(page) => page,
                Err(status) if is_too_large(&status) && limit > 1 => {
                    limit = (limit / 8).max(1);
                    continue;
                }
                // The revision of the first page went while the others were read.
                Err(status) if is_compacted(&status) && revision > 0 => {
                    (revision, from) = (0, self.range.clone());
                    listed.clear();
                    continue;
                }
                Err(status) => return Err(status),
            };
            if revision == 0 {
                (revision, cluster) = (page.revision, page.cluster);
            }
            if let Some(last) = page.all.last() {
                from = from.after(&last.key);
            }
            let more = page.more && !page.all.is_empty();
            for entry in page.all {
                let changed = entry.mod_revision;
                let kept = match self.entries.remove(&entry.key) {
                    Some((before, kept)) if before == changed => kept,
                    _ => self.view.read(&entry),
                };
                listed.insert(entry.key, (changed, kept));
            }
            if !more {
                break;
            }
            tokio::task::yield_now().await; // a large range is read in turns
        }
        self.entries = listed;
        let position = Position { revision, cluster, is_listed: true };
        self.position = Some(position);
        self.shown();
        Ok(position)
    }

    async fn watch(&mut self, from: Position, pace: &mut Pace) -> Result<std::convert::Infallible, End> {
        let begun = async {
            let mut stream = self.client.watch(&self.range, from.revision).await?;
            let created = stream.message().await?;
            Ok::<_, Status>((stream, created.ok_or_else(ended)?))
        };
        let late =
            |_| Err(Status::deadline_exceeded(format!("etcd has not begun a watch within {CREATED:?}")));
        let (mut stream, created) =
            timeout(CREATED, begun).await.unwrap_or_else(late).map_err(End::Failed)?;
        let header = created.header.unwrap_or_default();
        // Its data were lost, or replaced by a copy of earlier ones: what comes would not go with what is known.
        if header.cluster_id != from.cluster || (header.revision < from.revision && !from.is_listed) {
            return Err(End::Replaced);
        }
        self.position = Some(Position { is_listed: false, ..from });
        let mut is_quiet = self.take_in(created, &mut Vec::new())?;
        pace.reset();
        if std::mem::take(&mut self.has_failed) || !is_quiet {
            self.shown();
        }
        let mut fragments = Vec::new();
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                () = sleep_until(self.next_list) => return Err(End::Due),
            };
            let message = message.map_err(End::Failed)?.ok_or_else(|| End::Failed(ended()))?;
            is_quiet = self.take_in(message, &mut fragments)?;
            if !is_quiet {
                self.shown();
            }
        }
    }

    /// Takes in what changed. Messages that are fragments of one are held until it is whole. `true`: nothing did.
    fn take_in(
        &mut self,
        message: proto::WatchResponse,
        fragments: &mut Vec<proto::Event>,
    ) -> Result<bool, End> {
        if message.canceled || message.compact_revision > 0 {
            return Err(match message.compact_revision {
                0 => End::Failed(Status::new(
                    Code::Unavailable,
                    format!("etcd ended a watch: {}", message.cancel_reason),
                )),
                _ => End::Gap,
            });
        }
        fragments.extend(message.events);
        if message.fragment {
            return Ok(true);
        }
        let (seen, is_empty) = (self.position.map_or(0, |position| position.revision), fragments.is_empty());
        let (mut revision, mut is_quiet) = (0, true);
        for event in fragments.drain(..) {
            let is_deleted = event.r#type() == EventType::Delete;
            let Some(entry) = event.kv.filter(|entry| entry.mod_revision > seen) else { continue };
            is_quiet = false;
            revision = revision.max(entry.mod_revision);
            match is_deleted {
                true => drop(self.entries.remove(&entry.key)),
                false => {
                    let read = self.view.read(&entry);
                    self.entries.insert(entry.key, (entry.mod_revision, read));
                }
            }
        }
        // Word of progress says that there was nothing up to its revision.
        if is_empty && !message.created {
            revision = message.header.unwrap_or_default().revision;
        }
        if let Some(position) = &mut self.position {
            position.revision = position.revision.max(revision);
        }
        Ok(is_quiet)
    }

    fn shown(&mut self) {
        let revision = self.position.map_or(0, |position| position.revision);
        self.view.show(&self.entries, revision);
    }
}

fn ended() -> Status {
    Status::unavailable("etcd ended a watch")
}

fn around(span: Duration, random: &Random) -> Duration {
    random.between(span * 4 / 5, span * 6 / 5)
}
