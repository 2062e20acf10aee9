//! One source, followed for good: asked again with a backoff when it can't be read.
//!
//! A source is somebody else's code: its panic is an error, and it is opened anew; one that never answers is
//! given up; one that always has news is asked at a pace that leaves the thread to others.
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
    /// The watcher has answered: it may be silent for as long as nothing changes.
    answered: bool,
    failures: u32,
    /// Not before.
    next_at: Option<Instant>,
    random: Random,
}

/// The longest wait before a source that can't be read is asked again.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A source that has neither begun to watch nor said what it knows by then can't be read.
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
                begun.map_err(told)?.map_err(|_| late())??
            }
        };
        let answer = match self.answered {
            true => caught(watcher.next()).await.map(Ok),
            false => caught(timeout(ANSWER, watcher.next())).await,
        };
        // One that panicked, or is silent when it must not be, is not asked again.
        let (answer, keep) = match answer {
            Ok(Ok(answer)) => (answer, true),
            Ok(Err(_)) => (Err(late()), false),
            Err(panicked) => (Err(told(panicked)), false),
        };
        if keep {
            self.watcher = Some(watcher);
            self.answered = true;
        } else if let Err(panicked) = catch(|| drop(watcher)) {
            return Err(told(panicked));
        }
        answer
    }
}

fn told(panicked: chassis_core::tasks::Panicked) -> SourceError {
    SourceError::new(panicked.to_string())
}

fn late() -> SourceError {
    SourceError::new(format!("it has not answered within {ANSWER:?}"))
}
