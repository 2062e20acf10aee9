//! The config center: a document at one key, or a section at each key of a prefix.
use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use chassis_core::{
    BoxError, Kind,
    config::{ConfigSource, ConfigWatcher, Format, SourceError, Text},
    settings::Problem,
};
use tokio::sync::watch;
use tonic::Status;

use crate::{
    client::{Client, Range},
    follow::{Entries, View, follow},
    proto,
    settings::EtcdSourceConfig,
};

/// Settings in etcd.
///
/// One key contains a document, in the format that its name ends in. Or each key below a prefix contains a
/// section: the value of `/orders/outbound` is the content of `outbound`, in YAML or JSON. All sections have
/// the same revision: the changes of one transaction of etcd are one change here.
///
/// A text is named by its key and the revision that changed it: `etcd:/orders/chassis.yaml@12`. A missing or
/// deleted key is an error and no empty document. If etcd cannot be reached, the source reports that once, as
/// an error, and continues by itself when etcd is back.
///
/// ```no_run
/// use chassis_etcd::{EtcdSource, EtcdSourceConfig};
///
/// # fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let source = EtcdSource::new(EtcdSourceConfig::key(["10.0.0.5:2379"], "/orders/chassis.yaml"))?;
/// # let _ = source;
/// # Ok(()) }
/// ```
pub struct EtcdSource {
    config: EtcdSourceConfig,
    range: Range,
    client: Client,
}

/// Follows the source until it is dropped.
struct SourceWatcher {
    state: watch::Receiver<State>,
    /// The last answer.
    last: Option<Answer>,
    /// The follower's task ends when this is dropped.
    _over: watch::Sender<()>,
}

/// The text, or the reason why there is none.
type Answer = Result<Text, String>;

#[derive(Clone, Default)]
struct State {
    /// `None` if not known yet.
    answer: Option<Answer>,
    trouble: Option<String>,
}

/// Builds a text from the keys.
struct Texts {
    client: Client,
    config: EtcdSourceConfig,
    state: watch::Sender<State>,
}

struct EtcdSourceKind;

/// The interval of complete lists, in case a change was lost.
const LIST_EVERY: Duration = Duration::from_secs(300);
/// The limit of bytes of a document; a section is a part of one.
const MAX_TEXT: usize = 8 << 20;

// === impl EtcdSource ===

impl EtcdSource {
    /// The kind that settings choose by `config: { centers: [ { kind: etcd } ] }`.
    pub fn kind() -> impl Kind<Config = EtcdSourceConfig, Made = Arc<dyn ConfigSource>> {
        EtcdSourceKind
    }

    /// Connects when it is first used.
    ///
    /// # Errors
    /// The first problem in `config`.
    pub fn new(config: EtcdSourceConfig) -> Result<Self, BoxError> {
        if let [problem, ..] = &config.check()[..] {
            return Err(problem.to_string().into());
        }
        let range = match (&config.key, &config.prefix) {
            (Some(key), _) => Range::key(key.as_str()),
            (None, prefix) => Range::prefix(prefix.clone().unwrap_or_default()),
        };
        let client = Client::new(config.connection())?;
        Ok(EtcdSource { config, range, client })
    }
}

#[async_trait]
impl ConfigSource for EtcdSource {
    fn name(&self) -> String {
        format!("{} of {}", self.config.place(), self.client.name())
    }

    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
        let (sender, state) = watch::channel(State::default());
        let (over, mut is_over) = watch::channel(());
        let (client, range, jitter) = (self.client.clone(), self.range.clone(), self.config.jitter.0);
        let mut view = Texts { client: client.clone(), config: self.config.clone(), state: sender };
        self.client.tasks().spawn(async move {
            tokio::select! {
                _ = is_over.changed() => {}
                () = follow(&client, range, jitter, LIST_EVERY, &mut view) => {}
            }
        });
        Ok(Box::new(SourceWatcher { state, last: None, _over: over }))
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

// === impl SourceWatcher ===

#[async_trait]
impl ConfigWatcher for SourceWatcher {
    async fn next(&mut self) -> Result<Text, SourceError> {
        loop {
            let State { answer, trouble } = self.state.borrow_and_update().clone();
            let news = match trouble {
                Some(why) => Some(Err(why)),
                None => answer,
            };
            if let Some(news) = news.filter(|news| !is_known(self.last.as_ref(), news)) {
                self.last = Some(news.clone());
                return news.map_err(SourceError::new);
            }
            if self.state.changed().await.is_err() {
                return Err(SourceError::new("the process ends"));
            }
        }
    }
}

/// A text that was written again without a change is no news.
fn is_known(last: Option<&Answer>, news: &Answer) -> bool {
    match (last, news) {
        (Some(Ok(last)), Ok(news)) => (&last.content, last.format) == (&news.content, news.format),
        (last, news) => last == Some(news),
    }
}

// === impl Texts ===

impl View for Texts {
    type Entry = Result<String, String>;

    fn read(&mut self, entry: &proto::KeyValue) -> Self::Entry {
        if entry.value.len() > MAX_TEXT {
            return Err(format!("it has {} bytes, {MAX_TEXT} are allowed", entry.value.len()));
        }
        String::from_utf8(entry.value.clone()).map_err(|_| "it is no text in UTF-8".to_owned())
    }

    fn show(&mut self, all: &Entries<Self::Entry>, _: i64) {
        let answer = match &self.config.prefix {
            None => self.document(all),
            Some(prefix) => self.sections(prefix, all),
        };
        self.state.send_modify(|state| *state = State { answer: Some(answer), trouble: None });
    }

    fn fail(&mut self, why: &Status) {
        let trouble = Some(crate::why(&self.client, why));
        self.state.send_modify(|state| state.trouble = trouble);
    }
}

impl Texts {
    fn document(&self, all: &Entries<Result<String, String>>) -> Answer {
        let place = self.config.place();
        let Some((revision, content)) = all.values().next() else {
            return Err(format!("{} has no key {place}", self.client.name()));
        };
        let origin = format!("{place}@{revision}");
        let content = content.clone().map_err(|why| format!("{origin}: {why}"))?;
        let format = format_of(self.config.key.as_deref().unwrap_or_default());
        Ok(Text { content, format, origin, revision: Some(revision.to_string()) })
    }

    /// One document of all sections, each with a comment that names its source.
    fn sections(&self, prefix: &str, all: &Entries<Result<String, String>>) -> Answer {
        let place = self.config.place();
        if all.is_empty() {
            return Err(format!("{} has no key that begins with {prefix}", self.client.name()));
        }
        let mut content = String::new();
        let mut newest = 0;
        for (key, (revision, section)) in all {
            let of = format!("etcd:{}@{revision}", String::from_utf8_lossy(key).escape_debug());
            let name = key.strip_prefix(prefix.as_bytes()).unwrap_or(key);
            let name =
                std::str::from_utf8(name).map_err(|_| format!("{of}: the name of a section is no UTF-8"))?;
            let name =
                [".yaml", ".yml", ".json"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            if name.is_empty() || !name.bytes().all(is_word) {
                return Err(format!("{of}: `{}` can't be the name of a section", name.escape_debug()));
            }
            let section = section.as_ref().map_err(|why| format!("{of}: {why}"))?;
            // Otherwise a second document could begin here, or keys of another section.
            if section
                .lines()
                .any(|line| line.starts_with("---") || line.starts_with("...") || line.starts_with('%'))
            {
                return Err(format!("{of}: a section is one document of YAML, without marks"));
            }
            content.push_str(&format!("# {of}\n{name}:\n"));
            for line in section.lines() {
                content.push_str(&format!("  {line}\n"));
            }
            newest = newest.max(*revision);
        }
        if content.len() > MAX_TEXT {
            return Err(format!(
                "{place}: all sections have {} bytes, {MAX_TEXT} are allowed",
                content.len()
            ));
        }
        let (origin, revision) = (format!("{place}@{newest}"), Some(newest.to_string()));
        Ok(Text { content, format: Format::Yaml, origin, revision })
    }
}

fn format_of(key: &str) -> Format {
    match Path::new(key).extension().and_then(|end| end.to_str()) {
        Some("json") => Format::Json,
        Some("toml") => Format::Toml,
        _ => Format::Yaml,
    }
}

impl EtcdSourceConfig {
    /// The name of the source in messages.
    fn place(&self) -> String {
        match (&self.key, &self.prefix) {
            (Some(key), _) => format!("etcd:{key}"),
            (None, prefix) => format!("etcd:{}*", prefix.as_deref().unwrap_or_default()),
        }
    }
}

// === impl EtcdSourceKind ===

impl Kind for EtcdSourceKind {
    type Config = EtcdSourceConfig;
    type Made = Arc<dyn ConfigSource>;

    fn name(&self) -> &str {
        "etcd"
    }

    fn check(&self, config: &EtcdSourceConfig) -> Vec<Problem> {
        config.check()
    }

    fn make(&self, config: &EtcdSourceConfig) -> Result<Arc<dyn ConfigSource>, BoxError> {
        Ok(Arc::new(EtcdSource::new(config.clone())?))
    }
}
