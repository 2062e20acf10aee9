//! Follows the document: by asking for it again and again, or by a stream of events.
use std::{convert::Infallible, time::Duration};

use chassis_core::{
    adapter::{Pace, TextFeed},
    clock,
    config::Text,
};
use chassis_http::sse::{Event, Reader};
use http::{HeaderValue, StatusCode, header::CONTENT_TYPE};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::{
    answer::{self, Document, Failure, MAX_BODY},
    client::{Ask, Client},
    settings::Watch,
};

/// Shows what the servers have.
pub(crate) struct Follower {
    client: Client,
    feed: TextFeed,
    pace: Pace,
    /// The server in use, by its place in the settings.
    at: usize,
    /// The last text that was read of this server.
    position: Position,
    /// The last text, or that it was deleted; `None` until the first one.
    known: Option<Result<Text, String>>,
    /// Why the servers that were asked since the last success have failed.
    failures: Vec<Failure>,
    is_failing: bool,
}

/// The version that a server is known to have.
#[derive(Clone, Debug, Default)]
struct Position {
    etag: Option<HeaderValue>,
    last_event_id: Option<HeaderValue>,
}

/// The end of a stream of events.
enum End {
    /// The server can't be watched.
    Failed(Failure),
    /// The stream has broken off, as when a server restarts.
    Broken(Failure),
}

/// How often a server is asked that answers a long poll at once, although nothing is new.
const UNWAITING: Duration = Duration::from_secs(10);
/// The shortest time between two requests of a long poll: a document that changes all the time is read at this pace.
const APART: Duration = Duration::from_millis(100);
/// How long a server is left alone, at least, that has answered and not with a document.
const ANSWERED: Duration = Duration::from_secs(1);
/// A stream that has lived for so long was a good one.
const LASTING: Duration = Duration::from_secs(1);
/// The most bytes of an event: the longest document, and the names of its lines.
const MAX_EVENT: usize = 2 * MAX_BODY;
/// The event that says that there is no document.
const DELETE: &str = "delete";

// === impl Follower ===

impl Follower {
    pub(crate) fn new(client: Client, feed: TextFeed) -> Self {
        let pace = Pace::new(client.config().jitter.0);
        let (position, known, failures, is_failing) = (Position::default(), None, Vec::new(), false);
        Follower { client, feed, pace, at: 0, position, known, failures, is_failing }
    }

    /// Follows the document until it is dropped.
    pub(crate) async fn run(mut self) -> Infallible {
        loop {
            match self.client.config().watch {
                Watch::Poll(interval) => {
                    let interval = interval.get();
                    match self.ask(None).await {
                        Ok(_) => sleep(self.about(interval)).await,
                        Err(failure) => self.failed(failure, interval).await,
                    }
                }
                Watch::LongPoll(wait) => {
                    // Processes that begin together do not ask together for ever.
                    let wait = self.client.random().between(wait.get() - wait.get() / 10, wait.get());
                    let (begun, has_etag) = (Instant::now(), self.position.etag.is_some());
                    match self.ask(Some(wait)).await {
                        Ok(is_news) => {
                            let was_asked_to_wait = has_etag && !is_news;
                            let does_wait = match was_asked_to_wait {
                                true => begun.elapsed() >= wait / 2,
                                false => self.position.etag.is_some(),
                            };
                            match does_wait {
                                true => sleep_until(begun + APART).await,
                                false => sleep(self.about(UNWAITING)).await,
                            }
                        }
                        Err(failure) => self.failed(failure, ANSWERED).await,
                    }
                }
                Watch::Events(silence) => {
                    let begun = Instant::now();
                    let Err(end) = self.listen(silence.get()).await;
                    // Waiting in vain for an answer, or for a document, is no success.
                    let is_in_vain = matches!(end, End::Failed(Failure { is_answer: false, .. }));
                    if begun.elapsed() >= LASTING && !is_in_vain {
                        self.pace.reset();
                    }
                    match end {
                        End::Failed(failure) => self.failed(failure, ANSWERED).await,
                        End::Broken(failure) => self.broke(failure).await,
                    }
                }
            }
        }
    }

    /// Asks for the document; whether it is another one than before.
    async fn ask(&mut self, wait: Option<Duration>) -> Result<bool, Failure> {
        let etag = self.position.etag.clone().filter(|_| self.known.is_some());
        // Without an etag the server does not know the version to wait for the end of.
        let wait = wait.filter(|_| etag.is_some());
        let ask = Ask { etag, wait, ..Ask::default() };
        let mut answer = self.client.get(self.at, &ask).await?;
        if answer.status == StatusCode::NOT_MODIFIED && ask.etag.is_some() {
            self.is_back();
            return Ok(false);
        }
        let body = answer.read(self.client.config().timeout.get()).await?;
        if answer.status != StatusCode::OK {
            return Err(Failure::status(answer.status, &answer.headers, &body));
        }
        if answer.ends_with_connection {
            let why = "the answer states no length: nothing says that it is whole";
            return Err(Failure::answer(why.to_owned()));
        }
        let Document { text, etag } = Document::read(&self.client.urls()[self.at], &answer.headers, &body)?;
        self.position.etag = etag;
        Ok(self.show(Ok(text)))
    }

    /// Reads a stream of events to its end.
    async fn listen(&mut self, silence: Duration) -> Result<Infallible, End> {
        let last_event_id = self.position.last_event_id.clone().filter(|_| self.known.is_some());
        let has_position = last_event_id.is_some();
        let ask = Ask { is_for_events: true, last_event_id, ..Ask::default() };
        let mut answer = self.client.get(self.at, &ask).await.map_err(End::Failed)?;
        if answer.status != StatusCode::OK {
            let body = answer.read(self.client.config().timeout.get()).await.unwrap_or_default();
            return Err(End::Failed(Failure::status(answer.status, &answer.headers, &body)));
        }
        let kind = answer.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind.split(';').next().is_none_or(|kind| !kind.trim().eq_ignore_ascii_case("text/event-stream")) {
            let why = format!("it sends no events, but `{}`", kind.escape_debug());
            return Err(End::Failed(Failure::answer(why)));
        }
        if has_position {
            self.is_back();
        }
        let mut reader = Reader::new(MAX_EVENT);
        // Until the first document; comments do not replace it.
        let mut first = (!has_position).then(|| Instant::now() + self.client.config().timeout.get());
        loop {
            let until = Instant::now() + silence;
            let piece = timeout_at(first.map_or(until, |first| first.min(until)), answer.piece()).await;
            let piece = piece.map_err(|_| match first {
                Some(_) => End::Failed(Failure::silence("it sends no document in time".to_owned())),
                None => {
                    End::Broken(Failure::silence(format!("the stream of events is silent for {silence:?}")))
                }
            })?;
            let piece = piece.map_err(End::Broken)?;
            let ended = || End::Broken(Failure::silence("the stream of events has ended".to_owned()));
            let piece = piece.ok_or_else(ended)?;
            for event in reader.read(&piece).map_err(|why| End::Failed(Failure::answer(why)))? {
                if self.take_in(event).map_err(End::Failed)? {
                    first = None;
                }
            }
        }
    }

    /// Whether the event says what the server has.
    fn take_in(&mut self, event: Event) -> Result<bool, Failure> {
        let id = event.id.as_deref().filter(|id| !id.is_empty());
        let position = id.and_then(|id| HeaderValue::from_str(id).ok());
        match event.name.as_str() {
            DELETE => {
                let url = &self.client.urls()[self.at].text;
                self.show(Err(format!("{url}: the document was deleted")));
            }
            "" | "message" | "put" if !event.data.is_empty() => {
                let revision = id.map(|id| id.escape_debug().to_string());
                let url = &self.client.urls()[self.at];
                let text = answer::text(url, None, event.data.into_bytes(), revision)?;
                self.show(Ok(text));
            }
            _ => return Ok(false),
        }
        if position.is_some() {
            self.position.last_event_id = position;
        }
        Ok(true)
    }

    /// Shows what the server has; whether it is another text than before.
    fn show(&mut self, known: Result<Text, String>) -> bool {
        let content =
            |known: &Result<Text, String>| known.as_ref().ok().map(|it| (it.content.clone(), it.format));
        let is_news = self.known.as_ref().is_none_or(|before| content(before) != content(&known));
        self.feed.show(known.clone());
        self.known = Some(known);
        self.succeeded();
        is_news
    }

    /// The server answers again, and has nothing new.
    fn is_back(&mut self) {
        if let Some(known) = self.known.clone().filter(|_| self.is_failing) {
            self.feed.show(known);
        }
        self.succeeded();
    }

    fn succeeded(&mut self) {
        self.failures.clear();
        self.is_failing = false;
        if !matches!(self.client.config().watch, Watch::Events(_)) {
            self.pace.reset(); // a stream has to last first
        }
    }

    /// Goes on with the next server; once all have failed, reports it and waits. A server that has answered is left alone
    /// for `answered` at least.
    async fn failed(&mut self, failure: Failure, answered: Duration) {
        let url = &self.client.urls()[self.at].text;
        self.failures.push(Failure { why: format!("{url}: {}", failure.why), ..failure });
        self.at = (self.at + 1) % self.client.urls().len();
        // Another server, or one that was restarted and may count its versions from 1 again.
        self.position = Position::default();
        if self.failures.len() < self.client.urls().len() {
            return;
        }
        let failures = std::mem::take(&mut self.failures);
        let pause = self.pace.next(clock::Instant::now(), self.client.random());
        // A connection breaks when a server restarts, which may be back at once.
        let is_first = self.pace.failures() == 1 && self.known.is_some();
        if !is_first || failures.iter().all(|failure| failure.is_answer) {
            self.is_failing = true;
            let all: Vec<_> = failures.iter().map(|failure| failure.why.as_str()).collect();
            self.feed.fail(all.join("; "));
        }
        let has_answered = failures.iter().any(|failure| failure.is_answer);
        let shortest = if has_answered { self.about(answered) } else { Duration::ZERO };
        let asked = failures.iter().filter_map(|failure| failure.retry_after).max().unwrap_or_default();
        sleep(pause.max(shortest).max(asked)).await;
    }

    /// Begins the stream again at the same server.
    async fn broke(&mut self, failure: Failure) {
        let pause = self.pace.next(clock::Instant::now(), self.client.random());
        if self.pace.failures() > 1 || self.known.is_none() {
            self.is_failing = true;
            self.feed.fail(format!("{}: {}", self.client.urls()[self.at].text, failure.why));
        }
        sleep(pause).await;
    }

    /// This time, give or take a tenth.
    fn about(&self, time: Duration) -> Duration {
        self.client.random().between(time - time / 10, time + time / 10)
    }
}
