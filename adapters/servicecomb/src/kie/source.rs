//! The config center: a document at one key, or a setting at each key of a label set.
use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use chassis_core::{
    BoxError, Kind,
    adapter::{TextFeed, watch_texts},
    config::{ConfigSource, ConfigWatcher, Format, SourceError, Text},
    settings::Problem,
};

use super::{
    follow::{View, follow},
    list::{Entry, List},
    settings::KieSourceConfig,
    text,
};
use crate::client::{Client, Failure};

/// Settings in ServiceComb kie.
///
/// Entries of kie have labels, and a source reads those with exactly its labels. One key holds a document. Or each key
/// below a prefix holds a setting: the value of `chassis.outbound.defaults.timeout` is `outbound.defaults.timeout`, and a
/// value of the type `yaml`, `json` or `properties` is what stands below its path. All settings are those of one moment.
/// Entries that are not enabled do not count.
///
/// A text is called by the labels, its key and the revision that changed it: `kie:app=shop/orders.yaml@12`. A key that is
/// not there, is deleted or disabled, is an error and no empty document. When kie can't be reached that is an error once,
/// and the source goes on by itself when it is back.
///
/// ```no_run
/// use chassis_servicecomb::{KieSource, KieSourceConfig};
///
/// # fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let labels = [("app", "shop"), ("service", "orders")];
/// let source = KieSource::new(KieSourceConfig::labels("127.0.0.1:30110", labels))?;
/// # let _ = source;
/// # Ok(()) }
/// ```
pub struct KieSource {
    config: KieSourceConfig,
    client: Client,
}

/// Makes a text of the entries.
struct Texts {
    client: Client,
    config: KieSourceConfig,
    feed: TextFeed,
}

struct KieSourceKind;

// === impl KieSource ===

impl KieSource {
    /// The kind that settings choose by `config: { centers: [ { kind: kie } ] }`.
    pub fn kind() -> impl Kind<Config = KieSourceConfig, Made = Arc<dyn ConfigSource>> {
        KieSourceKind
    }

    /// Connects with its first use.
    ///
    /// # Errors
    /// The first problem in `config`.
    pub fn new(config: KieSourceConfig) -> Result<Self, BoxError> {
        if let [problem, ..] = &config.check()[..] {
            return Err(problem.to_string().into());
        }
        let client = Client::new(config.connection()?)?;
        Ok(KieSource { config, client })
    }
}

#[async_trait]
impl ConfigSource for KieSource {
    fn name(&self) -> String {
        format!("{} of {}", place(&self.config), self.client.name())
    }

    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
        let (client, config) = (self.client.clone(), self.config.clone());
        Ok(watch_texts(self.client.tasks(), |feed| async move {
            let mut view = Texts { client: client.clone(), config: config.clone(), feed };
            follow(&client, &config, &mut view).await;
        }))
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

// === impl Texts ===

impl View for Texts {
    fn show(&mut self, list: List) {
        self.feed.show(match &self.config.key {
            Some(key) => self.document(key, &list.entries),
            None => self.settings(self.config.prefix(), &list),
        });
    }

    fn fail(&mut self, why: &Failure) {
        self.feed.fail(format!("{}: {why}", self.client.name()));
    }
}

impl Texts {
    fn document(&self, key: &str, all: &[Entry]) -> Result<Text, String> {
        let Some(entry) = all.iter().find(|entry| entry.key == key) else {
            return Err(self.none(false));
        };
        if !entry.is_enabled() {
            return Err(self.none(true));
        }
        let (content, format) = text::document(entry, &self.origin(entry))?;
        let revision = entry.update_revision;
        let origin = format!("{}@{revision}", self.origin(entry));
        Ok(Text { content, format, origin, revision: Some(revision.to_string()) })
    }

    fn settings(&self, prefix: &str, list: &List) -> Result<Text, String> {
        let is_of = |entry: &&Entry| entry.key.starts_with(prefix);
        let ours: Vec<_> = list.entries.iter().filter(is_of).collect();
        let enabled: Vec<_> = ours.iter().copied().filter(|entry| entry.is_enabled()).collect();
        if enabled.is_empty() {
            return Err(self.none(!ours.is_empty()));
        }
        let place = place(&self.config);
        let settings = enabled.iter().map(|entry| (&entry.key[prefix.len()..], *entry, self.origin(entry)));
        let content = text::settings(&place, settings)?;
        let (origin, revision) = (format!("{place}@{}", list.revision), Some(list.revision.to_string()));
        Ok(Text { content, format: Format::Yaml, origin, revision })
    }

    fn origin(&self, entry: &Entry) -> String {
        format!("kie:{}/{}", labels(&self.config.labels), entry.key.escape_debug())
    }

    /// The message where there is no entry.
    fn none(&self, is_disabled: bool) -> String {
        let which = if self.config.key.is_some() { "" } else { "that begins with " };
        let why = match is_disabled {
            true => "no enabled key",
            false => "no key",
        };
        format!("{} has {why} {which}{}", self.client.name(), place(&self.config))
    }
}

/// The name of the source in messages.
fn place(config: &KieSourceConfig) -> String {
    let labels = labels(&config.labels);
    match &config.key {
        Some(key) => format!("kie:{labels}/{key}"),
        None => format!("kie:{labels}/{}*", config.prefix()),
    }
}

fn labels(labels: &BTreeMap<String, String>) -> String {
    let all: Vec<_> = labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
    all.join(",")
}

// === impl KieSourceKind ===

impl Kind for KieSourceKind {
    type Config = KieSourceConfig;
    type Made = Arc<dyn ConfigSource>;

    fn name(&self) -> &str {
        "kie"
    }

    #[cfg(feature = "schema")]
    fn schema(&self) -> chassis_core::schema::Value {
        chassis_core::schema::of::<KieSourceConfig>()
    }

    fn check(&self, config: &KieSourceConfig) -> Vec<Problem> {
        config.check()
    }

    fn make(&self, config: &KieSourceConfig) -> Result<Arc<dyn ConfigSource>, BoxError> {
        Ok(Arc::new(KieSource::new(config.clone())?))
    }
}
