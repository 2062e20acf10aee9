//! The port for sources of settings.
use async_trait::async_trait;

use crate::BoxError;

/// One text of settings of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The settings, unparsed.
    pub content: String,
    /// The language they are written in.
    pub format: Format,
    /// Its name in error messages: a path, or a key in a config center.
    pub origin: String,
    /// The source's own version of the text, if it has one: shown, never compared.
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

/// A source of settings that may change: a file, a config center.
///
/// It only provides texts; the caller parses, merges, validates and keeps the last good version. Every
/// implementation passes `testing::contract::config_source` (feature `testing`).
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
///         from.mark_changed(); // the first answer is the current text
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
    /// Its name in logs and messages: a path, a URL without secrets.
    fn name(&self) -> String;

    /// Starts to watch the source. An error means that it can't be watched at all.
    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError>;

    /// Whether its functions, and those of its watchers, never block their thread when they wait. If so, the
    /// threads of calls poll them. Default `false`: [threads of its own](crate::contain) poll them, so that a
    /// blocked thread delays no call.
    fn never_blocks(&self) -> bool {
        false
    }
}

/// Watches one source.
#[async_trait]
pub trait ConfigWatcher: Send + 'static {
    /// The first call returns the current text; each later one returns when the text has changed.
    ///
    /// An error means that the text can't be read now (missing, unreadable, no connection): the caller reports
    /// it, keeps its version, and calls again with a backoff. When the text can be read again, the watcher
    /// returns it even if it did not change. Dropping the future between two answers loses nothing.
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
    /// An error with a message that names the source.
    pub fn new(message: impl Into<String>) -> Self {
        SourceError { message: message.into(), source: None }
    }

    /// Adds the error that caused this one.
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }
}
