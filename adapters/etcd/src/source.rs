//! The config center: a document at one key, or a section at each key of a prefix.
use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chassis_core::{
    BoxError, Kind,
    adapter::{Pace, SectionText, TextFeed, format_of, sections, watch_texts},
    config::{ConfigSource, ConfigWatcher, Format, SourceError, Text},
    settings::Problem,
};
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

/// Builds a text from the keys.
struct Texts {
    client: Client,
    config: EtcdSourceConfig,
    feed: TextFeed,
}

struct EtcdSourceKind;

/// The interval of complete lists, in case a change was lost.
const LIST_EVERY: Duration = Duration::from_secs(300);
/// The limit of bytes of a document, and of a section.
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
        let (client, range, jitter) = (self.client.clone(), self.range.clone(), self.config.jitter.0);
        let config = self.config.clone();
        Ok(watch_texts(self.client.tasks(), |feed| async move {
            let mut view = Texts { client: client.clone(), config, feed };
            follow(&client, range, Pace::new(jitter), LIST_EVERY, &mut view).await;
        }))
    }

    fn never_blocks(&self) -> bool {
        true
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
        self.feed.show(answer);
    }

    fn fail(&mut self, why: &Status) {
        self.feed.fail(crate::why(&self.client, why));
    }
}

impl Texts {
    fn document(&self, all: &Entries<Result<String, String>>) -> Result<Text, String> {
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
    fn sections(&self, prefix: &str, all: &Entries<Result<String, String>>) -> Result<Text, String> {
        let place = self.config.place();
        if all.is_empty() {
            return Err(format!("{} has no key that begins with {prefix}", self.client.name()));
        }
        let newest = all.values().map(|(revision, _)| *revision).max().unwrap_or(0);
        let parts = all.iter().map(|(key, (revision, section))| SectionText {
            origin: format!("etcd:{}@{revision}", String::from_utf8_lossy(key).escape_debug()),
            name: key.strip_prefix(prefix.as_bytes()).unwrap_or(key),
            content: section.as_deref().map_err(String::as_str),
        });
        let content = sections(&place, parts)?;
        let (origin, revision) = (format!("{place}@{newest}"), Some(newest.to_string()));
        Ok(Text { content, format: Format::Yaml, origin, revision })
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

    #[cfg(feature = "schema")]
    fn schema(&self) -> chassis_core::schema::Value {
        chassis_core::schema::of::<EtcdSourceConfig>()
    }

    fn check(&self, config: &EtcdSourceConfig) -> Vec<Problem> {
        config.check()
    }

    fn make(&self, config: &EtcdSourceConfig) -> Result<Arc<dyn ConfigSource>, BoxError> {
        Ok(Arc::new(EtcdSource::new(config.clone())?))
    }
}
