//! The config center: a document at one key, or a section at each key of a prefix.
use std::sync::Arc;

use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use chassis_core::{
    BoxError, Kind,
    adapter::{SectionText, TextFeed, format_of, sections, watch_texts},
    config::{ConfigSource, ConfigWatcher, Format, SourceError, Text},
    settings::Problem,
};
use serde::Deserialize;

use crate::{
    client::{Answer, Client, Failure, Query},
    follow::{View, follow},
    settings::ConsulSourceConfig,
};

/// Settings in Consul's key-value store.
///
/// One key holds a document, in the format that its name ends in. Or each key below a prefix holds a section: the value
/// of `orders/outbound` is what stands below `outbound`, in YAML or JSON. All sections are those of one moment: what one
/// transaction of Consul changes is one change here.
///
/// A text is called by its key and the index that changed it: `consul:orders/chassis.yaml@12`. A key that is not there,
/// or is deleted, is an error and no empty document. When Consul can't be reached that is an error once, and the
/// source goes on by itself when it is back.
///
/// ```no_run
/// use chassis_consul::{ConsulSource, ConsulSourceConfig};
///
/// # fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let source = ConsulSource::new(ConsulSourceConfig::key("127.0.0.1:8500", "orders/chassis.yaml"))?;
/// # let _ = source;
/// # Ok(()) }
/// ```
pub struct ConsulSource {
    config: ConsulSourceConfig,
    place: Place,
    client: Client,
}

/// The keys to read.
#[derive(Clone)]
enum Place {
    Key(String),
    Prefix(String),
}

/// Makes a text of the keys.
struct Texts {
    client: Client,
    place: Place,
    feed: TextFeed,
}

/// A key, as Consul lists it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    key: String,
    /// In Base64; `null` if it is empty.
    #[serde(default)]
    value: Option<String>,
    modify_index: u64,
}

struct ConsulSourceKind;

// === impl ConsulSource ===

impl ConsulSource {
    /// The kind that settings choose by `config: { centers: [ { kind: consul } ] }`.
    pub fn kind() -> impl Kind<Config = ConsulSourceConfig, Made = Arc<dyn ConfigSource>> {
        ConsulSourceKind
    }

    /// Connects with its first use.
    ///
    /// # Errors
    /// The first problem in `config`.
    pub fn new(config: ConsulSourceConfig) -> Result<Self, BoxError> {
        if let [problem, ..] = &config.check()[..] {
            return Err(problem.to_string().into());
        }
        // As Consul's own tools do; a key that begins with a slash is not what was meant.
        let written = |key: &str| key.trim_start_matches('/').to_owned();
        let place = match (&config.key, &config.prefix) {
            (Some(key), _) => Place::Key(written(key)),
            (None, prefix) => Place::Prefix(written(prefix.as_deref().unwrap_or_default())),
        };
        let client = Client::new(config.connection())?;
        Ok(ConsulSource { config, place, client })
    }
}

#[async_trait]
impl ConfigSource for ConsulSource {
    fn name(&self) -> String {
        format!("{} of {}", self.place.name(), self.client.name())
    }

    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
        let (client, place, jitter) = (self.client.clone(), self.place.clone(), self.config.jitter.0);
        let query = match &place {
            Place::Key(key) => Query::read("/v1/kv/{key}", "key", key.as_str()),
            Place::Prefix(prefix) => {
                Query::read("/v1/kv/{prefix}", "prefix", prefix.as_str()).with("recurse", "true")
            }
        };
        Ok(watch_texts(self.client.tasks(), |feed| async move {
            let mut view = Texts { client: client.clone(), place, feed };
            follow(&client, &query, jitter, &mut view).await;
        }))
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

// === impl Texts ===

impl View for Texts {
    async fn show(&mut self, answer: Answer) -> Result<(), Failure> {
        if answer.is_filtered {
            return Err(Failure::of(format!("it hides keys of {} from the token", self.place.name())));
        }
        let mut all: Vec<Listed> = match answer.is_there {
            true => serde_json::from_slice(&answer.body)
                .map_err(|error| Failure::of(format!("its list is malformed: {error}")))?,
            false => Vec::new(),
        };
        // What a folder of the web page is: a key that ends in a slash, without a value.
        all.retain(|listed| !(listed.key.ends_with('/') && listed.value.is_none()));
        self.feed.show(match &self.place {
            Place::Key(key) => self.document(key, &all, answer.is_guarded && !answer.has_token),
            Place::Prefix(prefix) => self.sections(prefix, &all, answer.is_guarded && !answer.has_token),
        });
        Ok(())
    }

    fn fail(&mut self, why: &Failure) {
        self.feed.fail(format!("{}: {why}", self.client.name()));
    }
}

impl Texts {
    fn document(&self, key: &str, all: &[Listed], is_stranger: bool) -> Result<Text, String> {
        let Some(listed) = all.iter().find(|listed| listed.key == key) else {
            return Err(self.none("", is_stranger));
        };
        let origin = listed.origin();
        let content = listed.text().map_err(|why| format!("{origin}: {why}"))?;
        let revision = Some(listed.modify_index.to_string());
        Ok(Text { content, format: format_of(key), origin, revision })
    }

    /// One document of all sections, each with a line that says where it is from.
    fn sections(&self, prefix: &str, all: &[Listed], is_stranger: bool) -> Result<Text, String> {
        let Some(newest) = all.iter().map(|listed| listed.modify_index).max() else {
            return Err(self.none("that begins with ", is_stranger));
        };
        let texts: Vec<_> = all.iter().map(Listed::text).collect();
        let parts = all.iter().zip(&texts).map(|(listed, text)| SectionText {
            origin: listed.origin(),
            name: listed.key.strip_prefix(prefix).unwrap_or(&listed.key).as_bytes(),
            content: text.as_deref().map_err(String::as_str),
        });
        let place = self.place.name();
        let content = sections(&place, parts)?;
        let (origin, revision) = (format!("{place}@{newest}"), Some(newest.to_string()));
        Ok(Text { content, format: Format::Yaml, origin, revision })
    }

    /// The message where there is no key.
    fn none(&self, which: &str, is_stranger: bool) -> String {
        let may_hide = if is_stranger { ", or hides it: no token is set" } else { "" };
        format!("{} has no key {which}{}{may_hide}", self.client.name(), self.place.name())
    }
}

// === impl Place ===

impl Place {
    /// The name of the source in messages.
    fn name(&self) -> String {
        match self {
            Place::Key(key) => format!("consul:{key}"),
            Place::Prefix(prefix) => format!("consul:{prefix}*"),
        }
    }
}

// === impl Listed ===

impl Listed {
    fn origin(&self) -> String {
        format!("consul:{}@{}", self.key.escape_debug(), self.modify_index)
    }

    fn text(&self) -> Result<String, String> {
        let value = self.value.as_deref().unwrap_or_default();
        let bytes =
            BASE64_STANDARD.decode(value).map_err(|error| format!("its value is no Base64: {error}"))?;
        String::from_utf8(bytes).map_err(|_| "it is no text in UTF-8".to_owned())
    }
}

// === impl ConsulSourceKind ===

impl Kind for ConsulSourceKind {
    type Config = ConsulSourceConfig;
    type Made = Arc<dyn ConfigSource>;

    fn name(&self) -> &str {
        "consul"
    }

    #[cfg(feature = "schema")]
    fn schema(&self) -> chassis_core::schema::Value {
        chassis_core::schema::of::<ConsulSourceConfig>()
    }

    fn check(&self, config: &ConsulSourceConfig) -> Vec<Problem> {
        config.check()
    }

    fn make(&self, config: &ConsulSourceConfig) -> Result<Arc<dyn ConfigSource>, BoxError> {
        Ok(Arc::new(ConsulSource::new(config.clone())?))
    }
}
