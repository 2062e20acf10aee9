//! The config center: one document, at all servers.
use std::{convert::Infallible, sync::Arc, time::Duration};

use async_trait::async_trait;
use chassis_core::{
    BoxError, Kind,
    adapter::{Pace, TextFeed, format_of, watch_texts},
    clock,
    config::{ConfigSource, ConfigWatcher, SourceError, Text},
    settings::Problem,
};
use chassis_http::sse::{Event, Reader};
use http_body_util::BodyExt;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{client::Client, follow::SILENCE, settings::TtlSourceConfig, wire::DELETE};

/// Settings at registry servers: a document at a key, which `PUT /v1/settings/{key}` replaces.
///
/// Servers do not know each other: put a document at each of them. A process watches all, and uses the version that was put
/// last, by the clocks of the servers. A text is called by its key and its revision, which is that time in milliseconds:
/// `ttl:orders/chassis.yaml@1764416405123`. A key that is not there, or is deleted, is an error and no empty document. When
/// no server can be reached that is an error once, and the source goes on by itself when one is back.
///
/// ```no_run
/// use chassis_ttl::{TtlSource, TtlSourceConfig};
///
/// # fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let source = TtlSource::new(TtlSourceConfig::at(["10.0.0.5:8500"], "orders/chassis.yaml"))?;
/// # let _ = source;
/// # Ok(()) }
/// ```
pub struct TtlSource {
    config: TtlSourceConfig,
    client: Client,
}

/// The version at one server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    /// 0: the key was never there.
    revision: u64,
    /// `None`: there is no document.
    content: Option<String>,
}

/// One server.
#[derive(Clone, Debug, Default)]
struct Server {
    /// The last version that was read of it.
    known: Option<Version>,
    /// Why it can't be watched at the moment.
    lost: Option<String>,
}

/// The news of a server's follower.
enum News {
    Known(Version),
    Lost(String),
}

/// Follows the document at one server.
struct Follower {
    client: Client,
    server: usize,
    key: String,
    known: Option<Version>,
    is_lost: bool,
    to: mpsc::Sender<(usize, News)>,
}

/// The conclusion from all servers.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// Some servers have not answered yet.
    Nothing,
    Text {
        revision: u64,
        content: String,
    },
    /// There is none; 0: there never was.
    Absent(u64),
    Lost(String),
}

struct TtlSourceKind;

/// How long the first answer waits for servers that have not answered yet.
const FIRST: Duration = Duration::from_secs(1);
/// An event has at most so many bytes: a document, and the names of its lines.
const MAX_EVENT: usize = 8 << 20;

// === impl TtlSource ===

impl TtlSource {
    /// The kind that settings choose by `config: { centers: [ { kind: ttl } ] }`.
    pub fn kind() -> impl Kind<Config = TtlSourceConfig, Made = Arc<dyn ConfigSource>> {
        TtlSourceKind
    }

    /// Connects with its first use.
    ///
    /// # Errors
    /// The first problem in `config`.
    pub fn new(config: TtlSourceConfig) -> Result<Self, BoxError> {
        if let [problem, ..] = &config.check()[..] {
            return Err(problem.to_string().into());
        }
        let client = Client::new(config.connection())?;
        Ok(TtlSource { config, client })
    }
}

#[async_trait]
impl ConfigSource for TtlSource {
    fn name(&self) -> String {
        let servers: Vec<_> = (0..self.client.count()).map(|server| self.client.name(server)).collect();
        format!("ttl:{} of {}", self.config.document(), servers.join(", "))
    }

    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
        let (client, config) = (self.client.clone(), self.config.clone());
        Ok(watch_texts(self.client.tasks(), |feed| async move { follow(&client, &config, &feed).await }))
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

/// Follows the document at all servers until it is dropped.
async fn follow(client: &Client, config: &TtlSourceConfig, feed: &TextFeed) {
    let (to, mut news) = mpsc::channel(client.count());
    let mut followers = JoinSet::new(); // end with this
    for server in 0..client.count() {
        let (client, key, to) = (client.clone(), config.document().to_owned(), to.clone());
        let follower = Follower { client, server, key, known: None, is_lost: false, to };
        followers.spawn(follower.run(config.jitter.0));
    }
    let begun = Instant::now();
    let mut servers = vec![Server::default(); client.count()];
    loop {
        let is_first = begun.elapsed() < FIRST;
        show(config.document(), client, feed, conclude(&servers, is_first));
        let some = match is_first {
            true => timeout_at(begun + FIRST, news.recv()).await.unwrap_or(None),
            false => news.recv().await,
        };
        match some {
            Some((server, News::Known(version))) => {
                servers[server] = Server { known: Some(version), lost: None };
            }
            Some((server, News::Lost(why))) => servers[server].lost = Some(why),
            None => {} // the time is over: a sender is held here
        }
    }
}

fn show(key: &str, client: &Client, feed: &TextFeed, seen: Seen) {
    let none = |words: &str| {
        let servers: Vec<_> = (0..client.count()).map(|server| client.name(server)).collect();
        Err(format!("the registry server {} has no document {key}{words}", servers.join(", ")))
    };
    match seen {
        Seen::Nothing => {}
        Seen::Text { revision, content } => feed.show(Ok(Text {
            content,
            format: format_of(key),
            origin: format!("ttl:{key}@{revision}"),
            revision: Some(revision.to_string()),
        })),
        Seen::Absent(0) => feed.show(none("")),
        Seen::Absent(revision) => feed.show(none(&format!(": it was deleted at {revision}"))),
        Seen::Lost(why) => feed.fail(why),
    }
}

/// The version that was put last, of the servers that can be reached, and of those that could.
fn conclude(servers: &[Server], is_first: bool) -> Seen {
    let is_unknown = |server: &Server| server.known.is_none() && server.lost.is_none();
    if is_first && servers.iter().any(is_unknown) {
        return Seen::Nothing;
    }
    let why: Vec<_> = servers.iter().filter_map(|server| server.lost.as_deref()).collect();
    if why.len() == servers.len() {
        return Seen::Lost(why.join("; "));
    }
    match servers.iter().filter_map(|server| server.known.as_ref()).max() {
        None => Seen::Nothing,
        Some(Version { revision, content: Some(content) }) => {
            Seen::Text { revision: *revision, content: content.clone() }
        }
        // It may be at the server that can't be reached.
        Some(Version { revision: 0, .. }) if !why.is_empty() => Seen::Lost(why.join("; ")),
        Some(Version { revision, .. }) => Seen::Absent(*revision),
    }
}

// === impl Follower ===

impl Follower {
    async fn run(mut self, jitter: Duration) {
        let mut pace = Pace::new(jitter);
        loop {
            let Err(why) = self.watch(&mut pace).await;
            let pause = pace.next(clock::Instant::now(), self.client.random());
            // A stream breaks when a server restarts, which may be back at once.
            if (pace.failures() > 1 || self.known.is_none()) && !std::mem::replace(&mut self.is_lost, true) {
                tracing::debug!(key = self.key, why, "a registry server is not reached");
                let _ = self.to.send((self.server, News::Lost(why))).await; // ends with the receiver
            }
            sleep(pause).await;
        }
    }

    async fn watch(&mut self, pace: &mut Pace) -> Result<Infallible, String> {
        let last = self.known.as_ref().map(|known| known.revision);
        let body = self.client.watch_document(self.server, &self.key, last).await;
        let mut body = body.map_err(|failure| failure.why)?;
        let name = self.client.name(self.server).to_owned();
        let failed = |why: &str| format!("the registry server {name}: {why}");
        let mut reader = Reader::new(MAX_EVENT);
        loop {
            let frame = timeout(SILENCE, body.frame()).await.map_err(|_| failed("no event in time"))?;
            let frame = frame.ok_or_else(|| failed("a watch has ended"))?;
            let frame = frame.map_err(|error| failed(&error.to_string()))?;
            let Some(bytes) = frame.data_ref() else {
                continue;
            };
            let mut is_news = false;
            for event in reader.read(bytes).map_err(|why| failed(&why))? {
                let version = version(event).ok_or_else(|| failed("an event is no version of a document"))?;
                is_news = true;
                self.known = Some(version);
            }
            pace.reset();
            // Also without news: it is there again.
            if let Some(known) =
                self.known.clone().filter(|_| is_news | std::mem::replace(&mut self.is_lost, false))
            {
                let _ = self.to.send((self.server, News::Known(known))).await; // ends with the receiver
            }
        }
    }
}

fn version(event: Event) -> Option<Version> {
    let revision = event.id?.parse().ok()?;
    match event.name.as_str() {
        "" => Some(Version { revision, content: Some(event.data) }),
        DELETE => Some(Version { revision, content: None }),
        _ => None,
    }
}

// === impl TtlSourceKind ===

impl Kind for TtlSourceKind {
    type Config = TtlSourceConfig;
    type Made = Arc<dyn ConfigSource>;

    fn name(&self) -> &str {
        "ttl"
    }

    #[cfg(feature = "schema")]
    fn schema(&self) -> chassis_core::schema::Value {
        chassis_core::schema::of::<TtlSourceConfig>()
    }

    fn check(&self, config: &TtlSourceConfig) -> Vec<Problem> {
        config.check()
    }

    fn make(&self, config: &TtlSourceConfig) -> Result<Arc<dyn ConfigSource>, BoxError> {
        Ok(Arc::new(TtlSource::new(config.clone())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Servers by what they say: `5a` has revision 5 with the text `a`, `5` deleted it then, a `!` behind it: was lost since;
    /// `!` was never reached, `?` has not answered.
    #[test]
    fn the_version_that_was_put_last_counts() {
        let check = |servers: &str, is_first: bool, expected: Seen| {
            let server = |text: &str| {
                let lost = text.ends_with('!').then(|| "gone".to_owned());
                let text = text.trim_end_matches(['!', '?']);
                let digits = text.trim_end_matches(char::is_alphabetic);
                let content = Some(&text[digits.len()..]).filter(|it| !it.is_empty()).map(str::to_owned);
                let known = digits.parse().ok().map(|revision| Version { revision, content });
                Server { known, lost }
            };
            let all: Vec<_> = servers.split(' ').map(server).collect();
            assert_eq!(conclude(&all, is_first), expected, "{servers}");
        };
        let text = |revision, content: &str| Seen::Text { revision, content: content.to_owned() };
        check("5a 7b", true, text(7, "b"));
        check("7b 5a", true, text(7, "b"));
        check("5a 7b!", true, text(7, "b"));
        check("5a !", true, text(5, "a"));
        check("5a ?", true, Seen::Nothing);
        check("5a ?", false, text(5, "a"));
        check("5a 7", true, Seen::Absent(7));
        check("7a 5", true, text(7, "a"));
        check("5a 0", true, text(5, "a"));
        check("0 0", true, Seen::Absent(0));
        check("0 !", true, Seen::Lost("gone".to_owned()));
        check("5a! 7b!", true, Seen::Lost("gone; gone".to_owned()));
        check("? ?", false, Seen::Nothing);
    }
}
