//! The config center: a document at a URL.
use std::sync::Arc;

use async_trait::async_trait;
use chassis_core::{
    BoxError, Kind,
    adapter::watch_texts,
    config::{ConfigSource, ConfigWatcher, SourceError},
    settings::Problem,
};

use crate::{client::Client, follow::Follower, settings::HttpSourceConfig};

/// Settings at a URL.
///
/// A text is called by its URL and its `etag` or the `id` of its event: `http://settings/orders.yaml@12`. An answer that is
/// no document (another status, a web page, an empty or cut off body, too many bytes) is an error and no empty document,
/// and so is a document that is not there or was deleted. A server that can't be reached is an error once, and the source
/// goes on by itself when it is back. Redirects are not followed, for the headers and the token are only for this server.
///
/// ```no_run
/// use chassis_http_center::{HttpSource, HttpSourceConfig};
///
/// # fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let source = HttpSource::new(HttpSourceConfig::at("http://settings:8080/orders/chassis.yaml"))?;
/// # let _ = source;
/// # Ok(()) }
/// ```
pub struct HttpSource(Client);

struct HttpSourceKind;

// === impl HttpSource ===

impl HttpSource {
    /// The kind that settings choose by `config: { centers: [ { kind: http } ] }`.
    pub fn kind() -> impl Kind<Config = HttpSourceConfig, Made = Arc<dyn ConfigSource>> {
        HttpSourceKind
    }

    /// Connects with its first use.
    ///
    /// # Errors
    /// The first problem in `config`.
    pub fn new(config: HttpSourceConfig) -> Result<Self, BoxError> {
        match config.check().first() {
            Some(problem) => Err(problem.to_string().into()),
            None => Ok(HttpSource(Client::new(config)?)),
        }
    }
}

#[async_trait]
impl ConfigSource for HttpSource {
    fn name(&self) -> String {
        let urls: Vec<_> = self.0.urls().iter().map(|url| url.text.as_str()).collect();
        urls.join(", ")
    }

    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
        let client = self.0.clone();
        Ok(watch_texts(
            self.0.tasks(),
            |feed| async move { match Follower::new(client, feed).run().await {} },
        ))
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

// === impl HttpSourceKind ===

impl Kind for HttpSourceKind {
    type Config = HttpSourceConfig;
    type Made = Arc<dyn ConfigSource>;

    fn name(&self) -> &str {
        "http"
    }

    #[cfg(feature = "schema")]
    fn schema(&self) -> chassis_core::schema::Value {
        chassis_core::schema::of::<HttpSourceConfig>()
    }

    fn check(&self, config: &HttpSourceConfig) -> Vec<Problem> {
        config.check()
    }

    fn make(&self, config: &HttpSourceConfig) -> Result<Arc<dyn ConfigSource>, BoxError> {
        Ok(Arc::new(HttpSource::new(config.clone())?))
    }
}
