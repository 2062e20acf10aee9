//! The config center: a document at one key of a ConfigMap or a Secret, or a section at each of its keys.
use std::{collections::BTreeMap, fmt, sync::Arc};

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
    client::{Client, Collection, Failure},
    follow::{LARGE, Object, View, aside, follow},
    place::Place,
    settings::KubernetesSourceConfig,
};

/// Settings in a ConfigMap or a Secret.
///
/// One key holds a document, in the format that its name ends in. Or each key holds a section: the value of `outbound` is
/// the settings below `outbound`, in YAML or JSON. All keys of one write change together.
///
/// A text is named by its object, its key and the version: `configmap:shop/orders/chassis.yaml@12`. An object or a key
/// that is not there, or is deleted, is an error and no empty document. When the API server can't be reached that is an
/// error once, and the source goes on by itself when it is back.
///
/// ```no_run
/// use chassis_kubernetes::{KubernetesSource, KubernetesSourceConfig};
///
/// # fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let source = KubernetesSource::new(KubernetesSourceConfig::config_map("orders", "chassis.yaml"))?;
/// # let _ = source;
/// # Ok(()) }
/// ```
pub struct KubernetesSource {
    config: KubernetesSourceConfig,
    client: Client,
    object: Named,
}

/// The object, as it is named in messages.
#[derive(Clone)]
struct Named {
    kind: &'static str,
    namespace: String,
    name: String,
}

/// Makes a text of the object.
struct Texts {
    client: Client,
    named: Named,
    key: Option<String>,
    feed: TextFeed,
    object: Option<Arc<Object>>,
}

/// A ConfigMap or a Secret.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Written {
    data: Option<BTreeMap<String, String>>,
    binary_data: Option<BTreeMap<String, String>>,
}

struct KubernetesSourceKind;

const CONFIG_MAP: &str = "configmap";
const SECRET: &str = "secret";

// === impl KubernetesSource ===

impl KubernetesSource {
    /// The kind that settings choose by `config: { centers: [ { kind: kubernetes } ] }`.
    pub fn kind() -> impl Kind<Config = KubernetesSourceConfig, Made = Arc<dyn ConfigSource>> {
        KubernetesSourceKind
    }

    /// Reads the kubeconfig, or finds the service account; connects with its first use.
    ///
    /// # Errors
    /// The first problem in `config`, or in the kubeconfig.
    pub fn new(config: KubernetesSourceConfig) -> Result<Self, BoxError> {
        if let [problem, ..] = &config.check()[..] {
            return Err(problem.to_string().into());
        }
        let client = Client::new(Place::of(&config.connection())?)?;
        let namespace = client.namespace().to_owned();
        let (kind, name) = match (&config.config_map, &config.secret) {
            (Some(name), _) => (CONFIG_MAP, name.clone()),
            (None, name) => (SECRET, name.clone().unwrap_or_default()),
        };
        let object = Named { kind, namespace, name };
        Ok(KubernetesSource { config, client, object })
    }
}

#[async_trait]
impl ConfigSource for KubernetesSource {
    fn name(&self) -> String {
        format!("{} of {}", self.object, self.client.name())
    }

    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
        let (client, named, jitter) = (self.client.clone(), self.object.clone(), self.config.jitter.0);
        let template = match named.kind {
            CONFIG_MAP => "/api/v1/namespaces/{namespace}/configmaps",
            _ => "/api/v1/namespaces/{namespace}/secrets",
        };
        let selector = Some(("fieldSelector", format!("metadata.name={}", named.name)));
        let of = Collection { template, namespace: named.namespace.clone(), selector, is_metadata: false };
        let key = self.config.key.clone();
        Ok(watch_texts(self.client.tasks(), |feed| async move {
            let mut view = Texts { client: client.clone(), named, key, feed, object: None };
            follow(&client, &of, jitter, &mut view).await;
        }))
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

// === impl Texts ===

impl View for Texts {
    fn list(&mut self, all: Vec<Object>) {
        self.object = None;
        for object in all {
            self.put(object);
        }
    }

    fn put(&mut self, object: Object) {
        if object.name == self.named.name {
            self.object = Some(object.into());
        }
    }

    fn delete(&mut self, name: &str) {
        if name == self.named.name {
            self.object = None;
        }
    }

    async fn show(&mut self, _: &str) {
        let server = self.client.name();
        let Some(object) = self.object.clone() else {
            self.feed.show(Err(format!("{server} has no {}", self.named)));
            return;
        };
        let (named, key) = (self.named.clone(), self.key.clone());
        let is_large = object.text.get().len() > LARGE;
        let text = aside(is_large, move || named.text(&object, key.as_deref())).await;
        self.feed.show(text);
    }

    async fn fail(&mut self, why: &Failure) {
        self.feed.fail(why.to_string());
    }
}

// === impl Named ===

impl Named {
    /// The text of `key`, or of all keys.
    fn text(&self, object: &Object, key: Option<&str>) -> Result<Text, String> {
        let version = &object.version;
        let values = self.values(object).map_err(|why| format!("{self}@{version}: {why}"))?;
        let origin = |key: &str| format!("{self}/{key}@{version}");
        let revision = Some(version.clone());
        let Some(key) = key else {
            let parts = values.iter().map(|(key, value)| SectionText {
                origin: origin(key),
                name: key.as_bytes(),
                content: value.as_deref().map_err(String::as_str),
            });
            let content = sections(&self.to_string(), parts)?;
            return Ok(Text { content, format: Format::Yaml, origin: format!("{self}@{version}"), revision });
        };
        match values.get(key) {
            Some(Ok(content)) => {
                Ok(Text { content: content.clone(), format: format_of(key), origin: origin(key), revision })
            }
            Some(Err(why)) => Err(format!("{}: {why}", origin(key))),
            None => Err(format!("{self}@{version} has no key `{}`", key.escape_debug())),
        }
    }

    /// The text of each key, or why it is none.
    fn values(&self, object: &Object) -> Result<BTreeMap<String, Result<String, String>>, String> {
        let written: Written = serde_json::from_str(object.text.get()).map_err(|error| error.to_string())?;
        let (plain, encoded) = match self.kind {
            CONFIG_MAP => (written.data, written.binary_data),
            _ => (None, written.data),
        };
        let plain = plain.unwrap_or_default().into_iter().map(|(key, value)| (key, Ok(value)));
        let encoded = encoded.unwrap_or_default().into_iter().map(|(key, value)| {
            let bytes = BASE64_STANDARD.decode(value).map_err(|_| "its value is no Base64".to_owned());
            let text = bytes
                .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is no text in UTF-8".to_owned()));
            (key, text)
        });
        Ok(plain.chain(encoded).collect())
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.kind, self.namespace, self.name)
    }
}

// === impl KubernetesSourceKind ===

impl Kind for KubernetesSourceKind {
    type Config = KubernetesSourceConfig;
    type Made = Arc<dyn ConfigSource>;

    fn name(&self) -> &str {
        "kubernetes"
    }

    #[cfg(feature = "schema")]
    fn schema(&self) -> chassis_core::schema::Value {
        chassis_core::schema::of::<KubernetesSourceConfig>()
    }

    fn check(&self, config: &KubernetesSourceConfig) -> Vec<Problem> {
        config.check()
    }

    fn make(&self, config: &KubernetesSourceConfig) -> Result<Arc<dyn ConfigSource>, BoxError> {
        Ok(Arc::new(KubernetesSource::new(config.clone())?))
    }
}
