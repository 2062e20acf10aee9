//! Follows one source until it is dropped; asks again with a backoff when the source can't be read.
//!
//! A source is code of another crate: a panic becomes an error, and the source is opened anew; a source that
//! does not answer in time fails; a source that always has news is asked at a bounded pace.
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use chassis_core::{
    Random,
    config::{ConfigSource, ConfigWatcher, SourceError, Text},
    tasks::{backoff, catch, caught},
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::{
    parse::parse,
    problem::Problem,
    tree::{Layer, Node},
};

/// A source and its last answer.
pub(super) struct Feed {
    pub(super) name: String,
    pub(super) layer: Layer,
    pub(super) needed: bool,
    answer: Answer,
    /// The parsed last text, or the parser's problem.
    tree: Option<Result<Node, Box<Problem>>>,
    /// The error of the last question.
    trouble: Option<String>,
}

/// The pending question; it returns the asker with the answer.
type Answer = Pin<Box<dyn Future<Output = (Asker, Result<Text, SourceError>)> + Send>>;

struct Asker {
    source: Arc<dyn ConfigSource>,
    watcher: Option<Box<dyn ConfigWatcher>>,
    /// The watcher has answered once: from now on it may be silent until something changes.
    answered: bool,
    failures: u32,
    /// The earliest time of the next question.
    next_at: Option<Instant>,
    random: Random,
}

/// The longest wait before a source that can't be read is asked again.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// The time a source has for its first answer.
const ANSWER: Duration = Duration::from_secs(30);
/// The least time between two answers of one source.
const PACE: Duration = Duration::from_millis(25);

// === impl Feed ===

impl Feed {
    pub(super) fn new(layer: Layer, source: Arc<dyn ConfigSource>, needed: bool) -> Self {
        let name = source.name();
        let answer = Box::pin(Asker::new(source).ask());
        Feed { name, layer, needed, answer, tree: None, trouble: None }
    }

    /// The next answer: a text, a new error, or `Err(None)` for the same error again.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Option<SourceError>>> {
        let Poll::Ready((asker, answer)) = self.answer.as_mut().poll(cx) else { return Poll::Pending };
        self.answer = Box::pin(asker.ask());
        Poll::Ready(match answer {
            Ok(text) => {
                (self.tree, self.trouble) = (Some(parse(&text, self.layer)), None);
                Ok(())
            }
            Err(error) => {
                let repeated =
                    self.trouble.replace(error.to_string()).is_some_and(|t| t == error.to_string());
                Err((!repeated).then_some(error))
            }
        })
    }

    /// Whether the first version need not wait for this source.
    pub(super) fn is_settled(&self) -> bool {
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
    fn new(source: Arc<dyn ConfigSource>) -> Self {
        let random = Random::from_os();
        Asker { source, watcher: None, answered: false, failures: 0, next_at: None, random }
    }

    async fn ask(mut self) -> (Self, Result<Text, SourceError>) {
        match self.next_at {
            _ if self.failures > 0 => sleep(backoff(self.failures, LONGEST_WAIT, &self.random)).await,
            Some(at) => sleep_until(at).await,
            None => {}
        }
        let answer = self.next().await;
        self.next_at = Some(Instant::now() + PACE);
        self.failures = if answer.is_ok() { 0 } else { self.failures.saturating_add(1) };
        (self, answer)
    }

    async fn next(&mut self) -> Result<Text, SourceError> {
        let mut watcher = match self.watcher.take() {
            Some(watcher) => watcher,
            None => {
                self.answered = false;
                let source = &self.source;
                let begun = caught(timeout(ANSWER, async { source.watch().await })).await;
                begun.map_err(panic_error)?.map_err(|_| late())??
            }
        };
        let answer = match self.answered {
            true => caught(watcher.next()).await.map(Ok),
            false => caught(timeout(ANSWER, watcher.next())).await,
        };
        // Drop a watcher that panicked or gave no first answer.
        let (answer, keep) = match answer {
            Ok(Ok(answer)) => (answer, true),
            Ok(Err(_)) => (Err(late()), false),
            Err(panicked) => (Err(panic_error(panicked)), false),
        };
        if keep {
            self.watcher = Some(watcher);
            self.answered = true;
        } else if let Err(panicked) = catch(|| drop(watcher)) {
            return Err(panic_error(panicked));
        }
        answer
    }
}

fn panic_error(panicked: chassis_core::tasks::Panicked) -> SourceError {
    SourceError::new(panicked.to_string())
}

fn late() -> SourceError {
    SourceError::new(format!("it has not answered within {ANSWER:?}"))
}
