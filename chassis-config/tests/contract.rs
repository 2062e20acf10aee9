//! The contract of config sources detects sources that break it.
#![allow(clippy::unwrap_used)] // clippy treats helpers of integration tests as library code
use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chassis_config::TextSource;
use chassis_core::{
    config::{ConfigSource, ConfigWatcher, Format, SourceError, Text},
    testing::contract::config_source::{Place, config_source},
};

/// The promise that a source breaks.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    AnswersOnlyChanges,
    LosesWhatIsNotAwaited,
    EmptiesWhatIsGone,
    SaysThingsTwice,
}

struct Broken(TextSource, Fault);
struct BrokenSource(TextSource, Fault);
struct BrokenWatcher {
    watcher: Box<dyn ConfigWatcher>,
    fault: Fault,
    first: bool,
    again: Option<Text>,
}

#[async_trait]
impl Place for Broken {
    fn source(&self) -> Arc<dyn ConfigSource> {
        Arc::new(BrokenSource(self.0.clone(), self.1))
    }

    async fn write(&mut self, content: &str) {
        self.0.set(content);
    }

    async fn spoil(&mut self) -> bool {
        self.0.fail("it is gone");
        true
    }
}

#[async_trait]
impl ConfigSource for BrokenSource {
    fn name(&self) -> String {
        self.0.name()
    }

    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
        let watcher = self.0.watch().await?;
        Ok(Box::new(BrokenWatcher { watcher, fault: self.1, first: true, again: None }))
    }
}

#[async_trait]
impl ConfigWatcher for BrokenWatcher {
    async fn next(&mut self) -> Result<Text, SourceError> {
        if let Some(again) = self.again.take() {
            return Ok(again);
        }
        let mut answer = self.watcher.next().await;
        let first = std::mem::replace(&mut self.first, false);
        match (self.fault, &answer) {
            (Fault::AnswersOnlyChanges, _) if first => answer = self.watcher.next().await,
            (Fault::LosesWhatIsNotAwaited, _) => tokio::time::sleep(Duration::from_millis(50)).await,
            (Fault::SaysThingsTwice, Ok(text)) => self.again = Some(text.clone()),
            (Fault::EmptiesWhatIsGone, Err(_)) => {
                let (content, origin) = (String::new(), "text".to_owned());
                answer = Ok(Text { content, format: Format::Yaml, origin, revision: None });
            }
            _ => {}
        }
        answer
    }
}

/// Runs on virtual time: a timeout of the contract passes at once.
async fn breaks(fault: Fault) {
    config_source(Broken(TextSource::new("text", Format::Yaml, ""), fault)).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a change arrives")]
async fn the_first_answer_must_come() {
    breaks(Fault::AnswersOnlyChanges).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a dropped future loses nothing")]
async fn dropping_a_future_must_lose_nothing() {
    breaks(Fault::LosesWhatIsNotAwaited).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "what can't be read is an error")]
async fn what_is_gone_must_be_an_error() {
    breaks(Fault::EmptiesWhatIsGone).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "nothing changed, but this came")]
async fn nothing_must_be_said_twice() {
    breaks(Fault::SaysThingsTwice).await;
}
