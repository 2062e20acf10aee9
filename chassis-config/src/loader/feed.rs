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
    DirectorySource,
    code::Code,
    parse::parse_as,
    problem::Problem,
    source::{DirectoryWatcher, is_blank},
    tree::{Layer, Node, Origin, Path, Span},
};

/// A text as a tree, or its fault.
pub(super) type Parsed = Result<Node, Box<Problem>>;

/// A source and its last answer.
pub(super) struct Feed {
    pub(super) name: String,
    pub(super) layer: Layer,
    pub(super) needed: bool,
    /// Whether `${env:…}` and `${file:…}` in its texts are replaced.
    has_references: bool,
    answer: Answer,
    /// The last texts.
    texts: Option<Vec<Text>>,
    /// The same, parsed, or the parser's problems.
    trees: Vec<Parsed>,
    /// The last texts that could be used set something.
    has_settings: bool,
    /// The texts changed since they were parsed, and since a version was made.
    is_stale: bool,
    /// The error of the last question.
    trouble: Option<String>,
}

/// The pending question; it returns the asker with the answer.
type Answer = Pin<Box<dyn Future<Output = (Asker, Result<Vec<Text>, SourceError>)> + Send>>;

/// The source of the texts of a feed.
pub(super) enum Source {
    /// One text.
    One(Arc<dyn ConfigSource>),
    /// A text for each file of a directory.
    Directory(DirectorySource),
}

/// The use of a source's texts: see [`Loader::source_with`](crate::Loader::source_with).
#[derive(Clone, Copy, Debug)]
pub struct SourceOptions {
    /// The first version requires the source. If not, it waits 5 s at most for the source, and stops waiting once the
    /// source returned an error.
    pub needed: bool,
    /// `${env:…}` and `${file:…}` in the texts are replaced. If not, a text with such a reference is refused: its writer
    /// must not read files and variables of this process. Ciphers are always applied.
    pub has_references: bool,
}

enum Watcher {
    One(Box<dyn ConfigWatcher>),
    Directory(Box<DirectoryWatcher>),
}

struct Asker {
    source: Source,
    watcher: Option<Watcher>,
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

// === impl SourceOptions ===

impl SourceOptions {
    /// The defaults of a layer: the source is needed; references are replaced, but for texts of config centers.
    pub fn of(layer: Layer) -> Self {
        SourceOptions { needed: true, has_references: layer.has_references() }
    }
}

// === impl Feed ===

impl Feed {
    pub(super) fn new(layer: Layer, source: Source, options: SourceOptions) -> Self {
        let SourceOptions { needed, has_references } = options;
        let name = match &source {
            Source::One(source) => source.name(),
            Source::Directory(source) => source.path().display().to_string(),
        };
        let answer = Box::pin(Asker::new(source).ask());
        Feed {
            name,
            layer,
            needed,
            has_references,
            answer,
            texts: None,
            trees: Vec::new(),
            has_settings: false,
            is_stale: false,
            trouble: None,
        }
    }

    /// The next answer: texts, a new error, or `Err(None)` for the same error again.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Option<SourceError>>> {
        let Poll::Ready((asker, answer)) = self.answer.as_mut().poll(cx) else { return Poll::Pending };
        self.answer = Box::pin(asker.ask());
        Poll::Ready(match answer {
            Ok(texts) => {
                (self.texts, self.is_stale, self.trouble) = (Some(texts), true, None);
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
        self.texts.is_some() || (!self.needed && self.trouble.is_some())
    }

    pub(super) fn has_text(&self) -> bool {
        self.texts.is_some()
    }

    pub(super) fn is_well(&self) -> bool {
        self.trouble.is_none() || (self.texts.is_none() && !self.needed)
    }

    /// The last texts.
    pub(super) fn texts(&self) -> impl Iterator<Item = &Text> {
        self.texts.iter().flatten()
    }

    /// The parsed texts; later ones override earlier ones.
    pub(super) fn trees(&self) -> impl Iterator<Item = &Result<Node, Box<Problem>>> + Clone {
        self.trees.iter()
    }

    /// Parses the texts if they have changed since the last time. If so, returns their names: only then are they
    /// parsed, because of many changes within a moment only the last is used.
    pub(super) fn refresh(&mut self) -> Vec<String> {
        if !std::mem::take(&mut self.is_stale) {
            return Vec::new();
        }
        let texts = self.texts.as_deref().unwrap_or_default();
        self.trees = texts.iter().map(|text| self.parse(text)).collect();
        let named = |text: &Text| match &text.revision {
            Some(revision) if !text.origin.contains(revision.as_str()) => {
                format!("{}@{revision}", text.origin)
            }
            _ => text.origin.clone(),
        };
        match texts {
            [] => vec![self.name.clone()],
            texts => texts.iter().map(named).collect(),
        }
    }

    /// The texts are part of settings that can be used.
    pub(super) fn used(&mut self) {
        self.has_settings = self.trees.iter().flatten().any(|tree| !tree.entries().is_empty());
    }

    /// Parses a text. A [blank](is_blank) one of a config center that had settings is refused: it is more often a text that was cut
    /// off than the wish to remove all of them.
    pub(super) fn parse(&self, text: &Text) -> Result<Node, Box<Problem>> {
        if self.layer == Layer::Center && self.has_settings && is_blank(&text.content, text.format) {
            let origin = Origin::of_text(text, self.layer, self.has_references);
            let message = "the text is blank, and had settings before; `{}` removes all of them";
            let at = Span { line: 1, column: 1, ..Span::whole(origin) };
            let problem = Problem::error(Path::default(), Some(at), message);
            return Err(Box::new(problem.coded(Code::Syntax)));
        }
        parse_as(text, self.layer, self.has_references)
    }

    /// Whether this source, or a text of it, is called `name`.
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.name == name || self.texts.iter().flatten().any(|text| is_called(text, name))
    }

    /// The texts, with `other` in place of the one of its name.
    pub(super) fn with(&self, other: &Text) -> Vec<Parsed> {
        let texts = self.texts.as_deref().unwrap_or_default();
        let replaced = |text: &Text| is_called(text, &other.origin) || self.name == other.origin;
        let parsed = texts.iter().map(|text| self.parse(if replaced(text) { other } else { text }));
        match texts {
            [] => vec![self.parse(other)],
            _ => parsed.collect(),
        }
    }
}

// === impl Asker ===

impl Asker {
    fn new(source: Source) -> Self {
        let random = Random::from_os();
        Asker { source, watcher: None, answered: false, failures: 0, next_at: None, random }
    }

    async fn ask(mut self) -> (Self, Result<Vec<Text>, SourceError>) {
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

    async fn next(&mut self) -> Result<Vec<Text>, SourceError> {
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

// === impl Source ===

impl Source {
    async fn watch(&self) -> Result<Watcher, SourceError> {
        match self {
            Source::One(source) => source.watch().await.map(Watcher::One),
            Source::Directory(source) => Ok(Watcher::Directory(Box::new(source.watch()))),
        }
    }
}

impl Watcher {
    async fn next(&mut self) -> Result<Vec<Text>, SourceError> {
        match self {
            Watcher::One(watcher) => watcher.next().await.map(|text| vec![text]),
            Watcher::Directory(watcher) => watcher.next().await,
        }
    }
}

/// Whether the text has this name, with or without its revision.
fn is_called(text: &Text, name: &str) -> bool {
    text.origin == name || text.origin.rsplit_once('@').is_some_and(|(plain, _)| plain == name)
}

fn panic_error(panicked: chassis_core::tasks::Panicked) -> SourceError {
    SourceError::new(panicked.to_string())
}

fn late() -> SourceError {
    SourceError::new(format!("it has not answered within {ANSWER:?}"))
}
