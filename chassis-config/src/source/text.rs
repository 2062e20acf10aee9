//! Settings from memory: for tests, and for programs that receive settings in their own way.
use async_trait::async_trait;
use chassis_core::config::{ConfigSource, ConfigWatcher, Format, SourceError, Text};
use tokio::sync::watch;

/// A source whose text the program sets. Clones are the same source.
///
/// ```
/// use chassis_config::TextSource;
/// use chassis_core::config::Format;
///
/// let source = TextSource::new("pushed", Format::Yaml, "outbound: { defaults: { timeout: 1s } }");
/// source.set("outbound: { defaults: { timeout: 2s } }"); // every watcher receives it
/// ```
#[derive(Clone, Debug)]
pub struct TextSource {
    name: String,
    format: Format,
    said: watch::Sender<Result<String, String>>,
}

struct TextWatcher {
    source: TextSource,
    changes: watch::Receiver<Result<String, String>>,
    last: Option<Result<String, String>>,
}

// === impl TextSource ===

impl TextSource {
    /// Starts with `content`; messages call the source `name`.
    pub fn new(name: impl Into<String>, format: Format, content: impl Into<String>) -> Self {
        TextSource { name: name.into(), format, said: watch::Sender::new(Ok(content.into())) }
    }

    /// Replaces the text.
    pub fn set(&self, content: impl Into<String>) {
        drop(self.said.send_replace(Ok(content.into())));
    }

    /// Makes the source fail with this reason until a text is set again.
    pub fn fail(&self, reason: impl Into<String>) {
        drop(self.said.send_replace(Err(reason.into())));
    }
}

#[async_trait]
impl ConfigSource for TextSource {
    fn name(&self) -> String {
        self.name.clone()
    }

    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
        let mut changes = self.said.subscribe();
        changes.mark_changed(); // the first answer is the current text
        Ok(Box::new(TextWatcher { source: self.clone(), changes, last: None }))
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

// === impl TextWatcher ===

#[async_trait]
impl ConfigWatcher for TextWatcher {
    async fn next(&mut self) -> Result<Text, SourceError> {
        loop {
            // `self.source` holds a sender, so the channel stays open.
            if self.changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let said = self.changes.borrow_and_update().clone();
            if self.last.as_ref() == Some(&said) {
                continue;
            }
            self.last = Some(said.clone());
            let TextSource { name, format, .. } = &self.source;
            return match said {
                Ok(content) => Ok(Text { content, format: *format, origin: name.clone(), revision: None }),
                Err(reason) => Err(SourceError::new(reason)),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use chassis_core::testing::contract::config_source::{Place, config_source};

    #[async_trait]
    impl Place for TextSource {
        fn source(&self) -> Arc<dyn ConfigSource> {
            Arc::new(self.clone())
        }
        async fn write(&mut self, content: &str) {
            self.set(content);
        }
        async fn spoil(&mut self) -> bool {
            self.fail("it is gone");
            true
        }
    }

    #[tokio::test]
    async fn it_keeps_the_contract() {
        config_source(TextSource::new("text", Format::Yaml, "")).await;
    }
}
