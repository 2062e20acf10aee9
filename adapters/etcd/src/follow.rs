//! Follows a range of keys permanently: a list at one revision, then the changes after it.
//!
//! A watch continues at the last revision that was seen, so that a lost connection requires no list. If etcd no
//! longer has that revision, or has another history than before, everything is listed again, which also finds
//! keys that were deleted meanwhile. It is listed again from time to time in any case.
//!
//! The watch does not continue at the revision after the last one: if etcd up to 3.5 was compacted to a
//! revision, it does not store that revision's deletions, and a watch that begins there does not get them. A
//! watch that begins at the revision before is refused.
use std::{collections::BTreeMap, time::Duration};

use chassis_core::{Random, adapter::Pace, clock};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{Code, Status};

use crate::{
    client::{Client, Range, is_compacted, is_too_large},
    proto::{self, event::EventType},
};

/// Builds a view of the keys of a range.
pub(crate) trait View: Send {
    /// The stored value of an entry.
    type Entry: Send;

    /// Parses a new or changed entry.
    fn read(&mut self, entry: &proto::KeyValue) -> Self::Entry;

    /// Publishes all entries at `revision`.
    fn show(&mut self, all: &Entries<Self::Entry>, revision: i64);

    /// The following revisions belong to another history.
    fn begin_anew(&mut self) {}

    /// etcd cannot be reached; not reported again until it can be.
    fn fail(&mut self, why: &Status);
}

/// The entries of a range by key, each with the revision that changed it.
pub(crate) type Entries<E> = BTreeMap<Vec<u8>, (i64, E)>;

/// The reason why a watch ended.
enum End {
    /// etcd no longer has the changes after the last revision: everything must be listed.
    Gap,
    /// etcd has another history: its revisions cannot be compared with the known ones.
    Replaced,
    /// It is time to list again.
    Due,
    Failed(Status),
}

/// The position at which a watch continues.
#[derive(Clone, Copy)]
struct Position {
    revision: i64,
    cluster: u64,
    /// The position comes from a recent list: the watched member may be slightly behind. Later a lower revision
    /// means that etcd has lost its data.
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
    /// Since when there is no watch, and no list.
    lost: Option<Instant>,
}

/// The number of entries of a page; fewer if they are too large for a message.
const PAGE: usize = 500;
/// A watch that is interrupted for longer than this begins with a list: etcd may have come back with other data. Their
/// revision shows that only while it is below the old one.
const INTERRUPTED: Duration = Duration::from_secs(1);
/// The time in which etcd must begin a watch.
const CREATED: Duration = Duration::from_secs(3);

/// Follows `range` until it is dropped. Everything is listed again after `every`, plus or minus a fifth.
pub(crate) async fn follow<V: View>(
    client: &Client,
    range: Range,
    mut pace: Pace,
    every: Duration,
    view: &mut V,
) {
    let (entries, next_list) = (Entries::new(), Instant::now());
    let mut this =
        Follow { client, range, view, entries, position: None, next_list, has_failed: false, lost: None };
    loop {
        let ended = this.round(&mut pace, every).await;
        match ended {
            Ok(never) => match never {},
            Err(End::Due) => this.position = None,
            Err(End::Gap) => {
                this.position = None;
                pace.answered();
                sleep(pace.next(clock::Instant::now(), client.random())).await;
            }
            Err(End::Replaced) => {
                this.position = None;
                this.entries.clear();
                this.view.begin_anew();
                pace.answered();
                // With endpoints of two clusters, each list would be followed by a watch of the other cluster.
                sleep(pace.next(clock::Instant::now(), client.random())).await;
            }
            Err(End::Failed(status)) => {
                if let Some(position) = &mut this.position {
                    position.is_listed = false;
                }
                this.lost.get_or_insert_with(Instant::now);
                client.is_refused(&status).await;
                let pause = pace.next(clock::Instant::now(), client.random());
                // A stream breaks when a member restarts; another one may be available at once.
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
    /// Lists if necessary, and watches until the watch ends.
    async fn round(&mut self, pace: &mut Pace, every: Duration) -> Result<std::convert::Infallible, End> {
        let is_old = self.lost.is_some_and(|lost| lost.elapsed() >= INTERRUPTED);
        if is_old {
            self.entries.clear(); // other data may have the same revisions
        }
        let position = match self.position.filter(|_| !is_old) {
            Some(position) => position,
            None => {
                let position = self.list().await.map_err(End::Failed)?;
                self.next_list = Instant::now() + around(every, self.client.random());
                // An etcd that lists, and is too busy to begin a watch, is not asked for everything each time.
                self.lost = None;
                position
            }
        };
        self.watch(position, pace).await
    }

    /// Reads the whole range, page by page, at one revision.
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
                // The revision of the first page was compacted while the others were read.
                Err(status) if is_compacted(&status) && revision > 0 => {
                    (revision, from) = (0, self.range.clone());
                    listed.clear();
                    continue;
                }
                Err(status) => return Err(status),
            };
            if revision == 0 {
                (revision, cluster) = (page.revision, page.cluster);
                if self.position.is_some_and(|at| cluster != at.cluster || revision < at.revision) {
                    self.entries.clear();
                    self.view.begin_anew();
                }
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
            tokio::task::yield_now().await; // yields, because the range may be large
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
        // Its data were lost, or replaced by an older copy: new changes would not fit the known entries.
        if header.cluster_id != from.cluster || (header.revision < from.revision && !from.is_listed) {
            return Err(End::Replaced);
        }
        self.position = Some(Position { is_listed: false, ..from });
        let mut is_quiet = self.take_in(created, &mut Vec::new())?;
        pace.reset();
        self.lost = None;
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

    /// Applies changes. The fragments of a message are kept until it is complete. Returns whether nothing
    /// changed.
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
        // A progress notification: there are no changes up to its revision.
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

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use chassis_core::{Random, tasks::Tasks};
    use chassis_http::{
        ServerConfig,
        connector::Network,
        server::{Answer, Mux, Received, Server, ServerBody},
    };
    use http::{HeaderMap, HeaderValue, Request};
    use http_body_util::{BodyExt, Full};
    use prost::Message;

    use super::*;
    use crate::settings::EtcdConfig;

    struct Nothing;

    impl View for Nothing {
        type Entry = ();

        fn read(&mut self, _: &proto::KeyValue) {}

        fn show(&mut self, _: &Entries<()>, _: i64) {}

        fn fail(&mut self, _: &Status) {}
    }

    /// Counts lists, answers them, and begins no watch.
    fn busy(request: &Request<Received>, lists: &AtomicUsize) -> http::Response<ServerBody> {
        let response = http::Response::builder().header("content-type", "application/grpc");
        if !request.uri().path().ends_with("/Range") {
            return response.header("grpc-status", "14").body(ServerBody::empty()).unwrap();
        }
        lists.fetch_add(1, SeqCst);
        let header = Some(proto::ResponseHeader { cluster_id: 1, revision: 5 });
        let message = proto::RangeResponse { header, ..Default::default() }.encode_to_vec();
        let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
        frame.extend(message);
        let trailers = HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            HeaderValue::from_static("0"),
        )]);
        let body = Full::<bytes::Bytes>::from(frame).with_trailers(async { Some(Ok(trailers)) });
        response.body(ServerBody::new(body)).unwrap()
    }

    #[tokio::test]
    async fn a_server_that_begins_no_watch_is_not_listed_each_time() {
        let (tasks, lists) = (Tasks::new(), Arc::new(AtomicUsize::new(0)));
        let server = Server::new(ServerConfig::default(), &tasks, Random::seeded(1));
        let listener = Network::default().bind("127.0.0.1:0").await.unwrap();
        let config = EtcdConfig::at([listener.address()]);
        let counted = lists.clone();
        let service = move |request: Request<Received>| -> Answer {
            let response = busy(&request, &counted);
            Box::pin(async { response })
        };
        server.serve("etcd", listener, Mux { http: None, grpc: Some(Arc::new(service)) }, None);
        let client = Client::new(config.connection()).unwrap();
        let now = Instant::now();
        let mut follow = Follow {
            client: &client,
            range: Range::prefix("/"),
            view: &mut Nothing,
            entries: Entries::new(),
            position: Some(Position { revision: 5, cluster: 1, is_listed: false }),
            next_list: now,
            has_failed: false,
            lost: now.checked_sub(2 * INTERRUPTED),
        };
        assert!(follow.lost.is_some());
        let mut pace = Pace::new(Duration::ZERO);
        // Only the first one comes after a long interruption.
        for _ in 0..3 {
            let ended = follow.round(&mut pace, Duration::from_secs(60)).await;
            assert!(matches!(&ended, Err(End::Failed(why)) if why.code() == Code::Unavailable));
            assert_eq!(lists.load(SeqCst), 1);
        }
    }
}
