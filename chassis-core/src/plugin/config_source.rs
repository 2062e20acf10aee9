//! Where settings come from: a port to be implemented.
use async_trait::async_trait;

use crate::BoxError;

/// One text of settings, as it stands at its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The settings, unparsed.
    pub content: String,
    /// The language they are written in.
    pub format: Format,
    /// What error messages call it: a path, or a key in a config center.
    pub origin: String,
    /// The source's own version of it, if it has one: shown, never compared.
    pub revision: Option<String>,
}

/// The languages settings are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// YAML 1.2, without anchors that span documents.
    Yaml,
    /// TOML 1.
    Toml,
    /// JSON.
    Json,
}

/// A place that settings come from and may change at: a file, a config center.
///
/// It hands out texts; parsing, merging, validating and keeping the last good version are the
/// caller's work. Every implementation passes
/// `testing::contract::config_source` (feature `testing`).
///
/// ```
/// use chassis_core::config::{ConfigSource, ConfigWatcher, Format, SourceError, Text};
///
/// struct Pushed(tokio::sync::watch::Receiver<String>);
/// struct Watch(tokio::sync::watch::Receiver<String>);
///
/// #[async_trait::async_trait]
/// impl ConfigSource for Pushed {
///     fn name(&self) -> String {
///         "pushed".into()
///     }
///     async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
///         let mut from = self.0.clone();
///         from.mark_changed(); // the first answer is what is there now
///         Ok(Box::new(Watch(from)))
///     }
/// }
///
/// #[async_trait::async_trait]
/// impl ConfigWatcher for Watch {
///     async fn next(&mut self) -> Result<Text, SourceError> {
///         self.0.changed().await.map_err(|e| SourceError::new("the sender is gone").with_source(e))?;
///         let content = self.0.borrow_and_update().clone();
///         Ok(Text { content, format: Format::Yaml, origin: "pushed".into(), revision: None })
///     }
/// }
/// ```
#[async_trait]
pub trait ConfigSource: Send + Sync + 'static {
    /// What logs and messages call it: a path, a URL without secrets.
    fn name(&self) -> String;

    /// Follows it. An error here says that it can't be followed at all.
    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError>;

    /// Do its functions, and those of its watchers, return to the runtime at once wherever they have to wait? Then
    /// they are polled by the threads of calls. Default `false`: by [threads of its own](crate::contain), so that one
    /// that blocks its thread holds up no call.
    fn never_blocks(&self) -> bool {
        false
    }
}

/// Follows one source.
#[async_trait]
pub trait ConfigWatcher: Send + 'static {
    /// The first call answers with what is there now; every later one when it changed.
    ///
    /// An error means that it can't be read now (gone, unreadable, no connection): the caller says so,
    /// keeps the version it has, and asks again with a backoff. When it can be read again, that is told
    /// even if nothing changed. Dropping the future between two answers loses nothing.
    async fn next(&mut self) -> Result<Text, SourceError>;
}

/// Why a source can't be read.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    message: String,
    #[source]
    source: Option<BoxError>,
}

impl SourceError {
    /// With a message that names the place.
    pub fn new(message: impl Into<String>) -> Self {
        SourceError { message: message.into(), source: None }
    }

    /// The same, with what lies beneath.
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }
}
