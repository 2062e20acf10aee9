//! Follows a collection: a list by pages, then a watch from its version on.
//!
//! A watch that ends is begun again from the version of its last event; bookmarks keep that one young. If the server no
//! longer has a version, it says so by the status 410, or by an event with that code: then the list is read anew, and what
//! is not in it has gone.
use std::{collections::HashSet, panic::resume_unwind, time::Duration};

use bytes::Bytes;
use chassis_core::{adapter::Pace, clock};
use http::StatusCode;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep, timeout_at};

use crate::client::{Client, Collection, Failure};

/// Builds a view of a collection.
pub(crate) trait View: Send {
    /// The whole collection. What it had before and is not among `all` has gone.
    fn list(&mut self, all: Vec<Object>);

    /// An object is there, or has another content.
    fn put(&mut self, object: Object);

    /// The object `name` has gone.
    fn delete(&mut self, name: &str);

    /// The changes so far are those up to `version`, and can be shown.
    fn show(&mut self, version: &str) -> impl Future<Output = ()> + Send;

    /// The server can't be asked. It is called once in a row of failures.
    fn fail(&mut self, why: &Failure) -> impl Future<Output = ()> + Send;

    /// The shortest pause after a failure. Default: none.
    fn pause_after(&self, why: &Failure) -> Duration {
        let _ = why;
        Duration::ZERO
    }
}

/// An object, of which only its name and version are read.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) text: Box<RawValue>,
}

/// A page of a list.
#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    metadata: Metadata,
    items: Option<Vec<Box<RawValue>>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: String,
    resource_version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
}

/// Something with metadata.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    metadata: Metadata,
}

/// A line of a watch.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Box<RawValue>,
}

/// The object of an event of the type `ERROR`.
#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

/// An event of a watch, as it is read.
enum Change {
    Put(Object),
    Delete(Object),
    /// Only the version is new: a bookmark, or a type that does not exist yet.
    Version(String),
}

/// Why a line of a watch is no change.
enum NoChange {
    /// The server ends the watch.
    End(Status),
    Malformed(String),
}

/// Cuts the bytes of a watch into lines.
#[derive(Default)]
struct Lines(Vec<u8>);

/// The failures in a row.
struct Row {
    pace: Pace,
    /// The view knows of a failure.
    has_failed: bool,
    /// So many versions have gone without an event between them.
    gone: u32,
}

/// The pages of a list.
#[derive(Default)]
struct Pages {
    all: Vec<Object>,
    /// The pages that were named.
    named: HashSet<String>,
}

/// How long a watch lasts: a share of this, so that processes that begin together do not ask together for ever.
const LASTS: Duration = Duration::from_secs(480);
/// How much longer the server may take to end one.
const SLACK: Duration = Duration::from_secs(30);
/// A watch that is open for this long is a success also without an event.
const SETTLES: Duration = Duration::from_secs(1);
/// A longer line is no event.
const MAX_LINE: usize = 16 << 20;
/// More bytes are read on a thread of their own: a thread that serves calls reads this many in some 50 µs.
pub(crate) const LARGE: usize = 16 << 10;
/// The most objects of a list.
const MAX_OBJECTS: usize = 1_000_000;
/// A watch that ends at once is not begun again before this time is over.
const HASTY: Duration = Duration::from_millis(200);
/// The longest pause before a list after versions that have gone.
const MAX_GONE: Duration = Duration::from_secs(2);
/// The view learns of so many versions that have gone in a row.
const REPORTED: u32 = 3;

/// Follows `of` until it is dropped.
pub(crate) async fn follow<V: View>(client: &Client, of: &Collection, jitter: Duration, view: &mut V) {
    let (mut row, mut version) = (Row { pace: Pace::new(jitter), has_failed: false, gone: 0 }, None);
    let mut is_known = false;
    loop {
        let (begun, is_watch) = (clock::Instant::now(), version.is_some());
        let done = match &mut version {
            None => list(client, of, view).await.map(|listed| version = Some(listed)),
            Some(version) => watch(client, of, version, view, &mut row).await,
        };
        match done {
            Ok(()) => {
                (is_known, row.has_failed) = (true, false);
                row.pace.reset();
                if is_watch {
                    sleep(HASTY.saturating_sub(begun.elapsed())).await;
                }
            }
            Err(failure) => {
                let pause = if failure.is_gone() {
                    // The server is there: after a long outage, too, the list need not wait for a time of its own.
                    version = None;
                    row.gone = row.gone.saturating_add(1);
                    HASTY.saturating_mul(row.gone - 1).min(MAX_GONE)
                } else {
                    row.pace.next(clock::Instant::now(), client.random())
                };
                // The first failure of a row may be a restart, or a version that has gone.
                let is_row = row.pace.failures() > 1 || failure.is_gone() && row.gone == REPORTED;
                if (is_row || !is_known) && !row.has_failed {
                    row.has_failed = true;
                    view.fail(&failure).await;
                }
                sleep(pause.max(failure.retry_after).max(view.pause_after(&failure))).await;
            }
        }
    }
}

/// Reads the whole list; returns its version.
async fn list<V: View>(client: &Client, of: &Collection, view: &mut V) -> Result<String, Failure> {
    let (mut pages, mut next) = (Pages::default(), None);
    loop {
        let body = client.list(of, next.as_deref()).await?;
        let malformed = |why: String| client.failure(None, format!("its list is malformed: {why}"));
        let adding = aside(body.len() > LARGE, move || {
            let added = page(&body).and_then(|page| {
                let version = page.metadata.resource_version.clone();
                Ok((version, pages.add(page)?))
            });
            (pages, added)
        });
        let (read, added) = adding.await;
        pages = read;
        let version;
        (version, next) = added.map_err(malformed)?;
        if next.is_none() {
            if version.is_empty() {
                return Err(malformed("it has no version".to_owned()));
            }
            view.list(pages.all);
            view.show(&version).await;
            return Ok(version);
        }
    }
}

fn page(body: &Bytes) -> Result<Page, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// Watches from `version` on, which it keeps up, until the watch ends.
async fn watch<V: View>(
    client: &Client,
    of: &Collection,
    version: &mut String,
    view: &mut V,
    row: &mut Row,
) -> Result<(), Failure> {
    let lasts = client.random().between(LASTS / 2, LASTS);
    let mut body = client.watch(of, version, lasts).await?;
    let (settles, ends) = (Instant::now() + SETTLES, Instant::now() + lasts + SLACK);
    let (mut lines, mut is_settled) = (Lines::default(), false);
    loop {
        // Only the wait for bytes ends by time: a view that is dropped while it shows a change would lose it.
        let until = if is_settled { ends } else { settles };
        let frame = match timeout_at(until, body.frame()).await {
            Err(_) if is_settled => return Ok(()),
            Err(_) => {
                is_settled = true;
                // After an outage the view goes on also where nothing has changed.
                if row.end() {
                    view.show(version).await;
                }
                continue;
            }
            Ok(None) => {
                if std::mem::take(&mut row.has_failed) {
                    view.show(version).await;
                }
                return Ok(());
            }
            Ok(Some(frame)) => frame.map_err(|error| client.failure(None, error))?,
        };
        let Some(bytes) = frame.data_ref() else { continue };
        let all = lines.read(bytes).map_err(|why| client.failure(None, why))?;
        let (mut is_news, mut failed, is_any) = (false, None, !all.is_empty());
        for change in changes(all).await {
            match change {
                Ok(change) => is_news |= take_in(change, version, view),
                Err(why) => {
                    failed = Some(why.failure(client));
                    break;
                }
            }
        }
        if failed.is_none() && is_any {
            is_settled = true;
            is_news |= row.end();
        }
        // Also before a failure: `version` is that of the last event, so that it does not come again.
        if is_news {
            view.show(version).await;
        }
        if let Some(failure) = failed {
            return Err(failure);
        }
    }
}

/// Does `work`, on a thread of its own if it `is_large`. A panic goes on in the caller.
pub(crate) async fn aside<T: Send + 'static>(is_large: bool, work: impl FnOnce() -> T + Send + 'static) -> T {
    if !is_large {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime ends, and the caller with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// The changes that these lines are, up to the first one that is none.
async fn changes(lines: Vec<Vec<u8>>) -> Vec<Result<Change, NoChange>> {
    let bytes: usize = lines.iter().map(Vec::len).sum();
    let read = move || {
        let mut all = Vec::with_capacity(lines.len());
        for line in lines {
            let change = Change::of(&line);
            let is_last = change.is_err();
            all.push(change);
            if is_last {
                break;
            }
        }
        all
    };
    aside(bytes > LARGE, read).await
}

/// Whether the view has changed.
fn take_in<V: View>(change: Change, version: &mut String, view: &mut V) -> bool {
    let new = match &change {
        Change::Put(object) | Change::Delete(object) => &object.version,
        Change::Version(new) => new,
    };
    if !new.is_empty() {
        version.clone_from(new);
    }
    match change {
        Change::Put(object) => view.put(object),
        Change::Delete(object) => view.delete(&object.name),
        Change::Version(_) => return false,
    }
    true
}

// === impl Change ===

impl Change {
    fn of(line: &[u8]) -> Result<Self, NoChange> {
        let malformed = |error: serde_json::Error| NoChange::Malformed(error.to_string());
        let event: Event = serde_json::from_slice(line).map_err(malformed)?;
        if event.kind == "ERROR" {
            return Err(NoChange::End(serde_json::from_str(event.object.get()).map_err(malformed)?));
        }
        let object = Object::of(event.object)
            .ok_or_else(|| NoChange::Malformed("an object without metadata".to_owned()))?;
        Ok(match event.kind.as_str() {
            "ADDED" | "MODIFIED" => Change::Put(object),
            "DELETED" => Change::Delete(object),
            _ => Change::Version(object.version),
        })
    }
}

// === impl NoChange ===

impl NoChange {
    /// An event that can't be read may be a change, so that only a list knows what is there.
    fn failure(self, client: &Client) -> Failure {
        match self {
            NoChange::End(status) => {
                let code = StatusCode::from_u16(status.code).ok();
                client.failure(code, format!("its watch ends: {}", status.message.escape_debug()))
            }
            NoChange::Malformed(why) => {
                client.failure(Some(StatusCode::GONE), format!("a malformed event: {why}"))
            }
        }
    }
}

// === impl Row ===

impl Row {
    /// The server is well; whether the view knows of a failure.
    fn end(&mut self) -> bool {
        self.pace.reset();
        self.gone = 0;
        std::mem::take(&mut self.has_failed)
    }
}

// === impl Pages ===

impl Pages {
    /// Adds a page; returns the name of the next one.
    fn add(&mut self, page: Page) -> Result<Option<String>, String> {
        self.all.extend(page.items.unwrap_or_default().into_iter().filter_map(Object::of));
        // A page counts also without an object, so that the list has an end.
        if self.all.len() + self.named.len() > MAX_OBJECTS {
            return Err(format!("it has more than {MAX_OBJECTS} objects"));
        }
        let next = page.metadata.next.filter(|next| !next.is_empty());
        match next {
            Some(next) if !self.named.insert(next.clone()) => {
                Err("it names the same page by `continue` twice".to_owned())
            }
            next => Ok(next),
        }
    }
}

// === impl Object ===

impl Object {
    fn of(text: Box<RawValue>) -> Option<Self> {
        let head: Head = serde_json::from_str(text.get()).ok()?;
        Some(Object { name: head.metadata.name, version: head.metadata.resource_version, text })
    }
}

// === impl Lines ===

impl Lines {
    /// The lines that are whole with `bytes`.
    fn read(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        let mut all = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.0.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.0);
            if !line.iter().all(u8::is_ascii_whitespace) {
                all.push(line);
            }
        }
        self.0.extend_from_slice(rest);
        if self.0.len() > MAX_LINE {
            return Err(format!("an event has more than {MAX_LINE} bytes"));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_wherever_the_bytes_are_cut() {
        let text = b"{\"a\":1}\n\n{\"b\":2}\r\n{\"c\"";
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            let mut all = lines.read(&text[..cut]).unwrap();
            all.extend(lines.read(&text[cut..]).unwrap());
            let all: Vec<_> =
                all.iter().map(|line| String::from_utf8_lossy(line).trim().to_owned()).collect();
            assert_eq!(all, ["{\"a\":1}", "{\"b\":2}"], "{cut}");
        }
        let mut lines = Lines::default();
        let long = vec![b'x'; MAX_LINE];
        assert!(lines.read(&long).is_ok() && lines.read(b"x").is_err());
    }
    #[test]
    fn a_list_has_an_end() {
        let page = |text: &str| page(&Bytes::from(text.to_owned())).unwrap();
        let object = || Object {
            name: String::new(),
            version: String::new(),
            text: RawValue::from_string("{}".to_owned()).unwrap(),
        };
        let mut pages = Pages { all: (1..MAX_OBJECTS).map(|_| object()).collect(), ..Pages::default() };
        assert_eq!(pages.add(page(r#"{"items":[{}]}"#)), Ok(None));
        assert!(pages.add(page(r#"{"items":[{}]}"#)).is_err());
        let mut pages = Pages::default();
        for name in ["a", "b"] {
            assert_eq!(
                pages.add(page(&format!(r#"{{"metadata":{{"continue":"{name}"}}}}"#))),
                Ok(Some(name.to_owned()))
            );
        }
        assert!(pages.add(page(r#"{"metadata":{"continue":"a"}}"#)).is_err());
    }

    #[tokio::test]
    async fn a_panic_goes_on_in_the_task_that_waits() {
        for is_large in [false, true] {
            assert_eq!(aside(is_large, || 7).await, 7);
            let waits = tokio::spawn(aside(is_large, || panic!("as the test wants")));
            assert!(waits.await.unwrap_err().is_panic(), "{is_large}");
        }
    }
}
