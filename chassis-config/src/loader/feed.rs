//! One source, followed for good: asked again with a backoff when it can't be read.
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use chassis_core::config::{ConfigSource, ConfigWatcher, SourceError, Text};

use crate::{
    parse::parse,
    problem::Problem,
    tree::{Layer, Node},
};

/// A source and what it said last.
pub(super) struct Feed {
    pub(super) name: String,
    pub(super) layer: Layer,
    pub(super) needed: bool,
    answer: Answer,
    /// What its last text says, or why that can't be read.
    tree: Option<Result<Node, Box<Problem>>>,
    /// Why it could not be asked, the last time.
    trouble: Option<String>,
}

/// The question under way; it brings the asker back.
type Answer = Pin<Box<dyn Future<Output = (Asker, Result<Text, SourceError>)> + Send>>;

struct Asker {
    source: Arc<dyn ConfigSource>,
    watcher: Option<Box<dyn ConfigWatcher>>,
    failures: u32,
}

/// Waits before asking again: 100 ms, doubled each time, up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

// === impl Feed ===

impl Feed {
    pub(super) fn new(layer: Layer, source: Arc<dyn ConfigSource>, needed: bool) -> Self {
        let name = source.name();
        let answer = Box::pin(Asker { source, watcher: None, failures: 0 }.ask());
        Feed { name, layer, needed, answer, tree: None, trouble: None }
    }

    /// Its next news: a text, an error that was not told yet, or one that was.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Option<SourceError>>> {
        let Poll::Ready((asker, answer)) = self.answer.as_mut().poll(cx) else { return Poll::Pending };
        self.answer = Box::pin(asker.ask());
        Poll::Ready(match answer {
            Ok(text) => {
                (self.tree, self.trouble) = (Some(parse(&text, self.layer)), None);
                Ok(())
            }
            Err(error) => {
                let told = self.trouble.replace(error.to_string()).is_some_and(|t| t == error.to_string());
                Err((!told).then_some(error))
            }
        })
    }

    /// Need it not be waited for any longer?
    pub(super) fn is_heard(&self) -> bool {
        self.tree.is_some() || (!self.needed && self.trouble.is_some())
    }

    pub(super) fn has_text(&self) -> bool {
        self.tree.is_some()
    }

    pub(super) fn is_well(&self) -> bool {
        self.trouble.is_none() || (self.tree.is_none() && !self.needed)
    }

    pub(super) fn tree(&self) -> Option<&Result<Node, Box<Problem>>> {
        self.tree.as_ref()
    }
}

// === impl Asker ===

impl Asker {
    async fn ask(mut self) -> (Self, Result<Text, SourceError>) {
        if let Some(doublings) = self.failures.checked_sub(1) {
            let wait = Duration::from_millis(100) * 2_u32.pow(doublings.min(10));
            tokio::time::sleep(wait.min(LONGEST_WAIT)).await;
        }
        let answer = self.next().await;
        self.failures = if answer.is_ok() { 0 } else { self.failures.saturating_add(1) };
        (self, answer)
    }

    async fn next(&mut self) -> Result<Text, SourceError> {
        let watcher = match &mut self.watcher {
            Some(watcher) => watcher,
            none => none.insert(self.source.watch().await?),
        };
        watcher.next().await
    }
}
