//! Settings from memory: tests, and programs that get them in a way of their own.
use async_trait::async_trait;
use chassis_core::config::{ConfigSource, ConfigWatcher, Format, SourceError, Text};
use tokio::sync::watch;

/// A source that is told what it says. Clones are the same source.
///
/// ```
/// use chassis_config::TextSource;
/// use chassis_core::config::Format;
///
/// let source = TextSource::new("pushed", Format::Yaml, "outbound: { defaults: { timeout: 1s } }");
/// source.set("outbound: { defaults: { timeout: 2s } }"); // whoever watches hears of it
/// ```
#[derive(Clone, Debug)]
pub struct TextSource {
    name: String,
    format: Format,
    said: watch::Sender<Result<String, String>>,
}

struct TextWatcher {
    source: TextSource,
    heard: watch::Receiver<Result<String, String>>,
    last: Option<Result<String, String>>,
}

// === impl TextSource ===

impl TextSource {
    /// Starts with `content`; messages call it `name`.
    pub fn new(name: impl Into<String>, format: Format, content: impl Into<String>) -> Self {
        TextSource { name: name.into(), format, said: watch::Sender::new(Ok(content.into())) }
    }

    /// Says something else from now on.
    pub fn set(&self, content: impl Into<String>) {
        drop(self.said.send_replace(Ok(content.into())));
    }

    /// Can't be read from now on, for this reason, until something is set again.
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
        let mut heard = self.said.subscribe();
        heard.mark_changed(); // the first answer is what is there now
        Ok(Box::new(TextWatcher { source: self.clone(), heard, last: None }))
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
            // The source in our own hands keeps the channel open.
            if self.heard.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let said = self.heard.borrow_and_update().clone();
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
