//! Follows the sources of a process's settings, and makes a version of every change that can be applied as a
//! whole.
mod change;
mod feed;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, future::poll_fn, sync::Arc, task::Poll, time::Duration};

use chassis_core::config::ConfigSource;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

pub use self::change::{Change, Refusal, Unreadable};
use self::feed::{Feed, Source};
use crate::{
    DirectorySource, Overrides,
    env::Environment,
    finding::Finding,
    merge::merge,
    problem::Problem,
    tree::{Layer, Node, Origin},
    version::{Version, changes, hash},
};

/// Follows the sources of a document `D`, from which a check makes a `T`.
///
/// A version applies whole or not at all: while a source can't be read, or the document is refused, the last
/// good version stays, and the loader reports the reason. Changes within a short time make one version; a
/// change that leaves the meaning as it is makes none.
///
/// ```
/// use std::sync::Arc;
///
/// use chassis_config::{Change, Loader, TextSource, tree::Layer};
/// use chassis_core::config::Format;
///
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Settings { workers: u32 }
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let source = TextSource::new("settings", Format::Toml, "workers = 4");
/// let mut loader = Loader::new(|s: &Settings| Ok((s.workers, Vec::new())))
///     .source(Layer::File, Arc::new(source.clone()));
/// let Change::Applied(first) = loader.next().await else { panic!("it is sound") };
/// assert_eq!((first.number, first.value), (1, 4));
///
/// source.set("wokers = 5");
/// let Change::Refused(refusal) = loader.next().await else { panic!("it is not") };
/// assert_eq!(refusal.problems[0].in_a_line(), "settings:1:1 wokers: unknown key; did you mean `workers`?");
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Loader<D, T> {
    program: Vec<Node>,
    feeds: Vec<Feed>,
    environment: Environment,
    overrides: Overrides,
    read: Read<D>,
    check: Check<D, T>,
    /// A source has changed since the last version was made.
    dirty: bool,
    /// Errors of sources that `next` has still to return.
    unread: VecDeque<Unreadable>,
    standing: Option<Standing>,
    /// The last change was an error.
    astray: bool,
    /// When the loader stops waiting for sources that are not required.
    patience: Option<Instant>,
}

/// Makes a document from a tree.
type Read<D> = Box<dyn Fn(&Node) -> (Option<D>, Vec<Problem>) + Send + Sync>;

/// Makes a value from a document: with warnings, or errors.
type Check<D, T> = Box<dyn Fn(&D) -> Result<(T, Vec<Finding>), Vec<Finding>> + Send + Sync>;

/// The version in force; the next one is compared with it.
struct Standing {
    number: u64,
    hash: String,
    tree: Node,
}

/// Changes that follow each other this soon make one version.
const TOGETHER: Duration = Duration::from_millis(50);
/// A series of changes makes a version after this time at the latest.
const AT_LATEST: Duration = Duration::from_millis(500);
/// How long the first version waits for a source that is not required.
const PATIENCE: Duration = Duration::from_secs(5);

// === impl Loader ===

impl<D: DeserializeOwned + 'static, T> Loader<D, T> {
    /// A loader without sources; `check` makes the value from a document, or returns the errors.
    pub fn new(
        check: impl Fn(&D) -> Result<(T, Vec<Finding>), Vec<Finding>> + Send + Sync + 'static,
    ) -> Self {
        Loader::reading(crate::de::read::<D>, check)
    }
}

impl<D, T> Loader<D, T> {
    /// The same for a document that serde alone can't read because its shape is only known at run time: `read`
    /// makes it from a tree, with warnings, or returns the errors.
    pub fn reading(
        read: impl Fn(&Node) -> (Option<D>, Vec<Problem>) + Send + Sync + 'static,
        check: impl Fn(&D) -> Result<(T, Vec<Finding>), Vec<Finding>> + Send + Sync + 'static,
    ) -> Self {
        Loader {
            read: Box::new(read),
            program: Vec::new(),
            feeds: Vec::new(),
            environment: Environment::default(),
            overrides: Overrides::default(),
            check: Box::new(check),
            dirty: true,
            unread: VecDeque::new(),
            standing: None,
            astray: false,
            patience: None,
        }
    }

    /// Settings of the program itself, below all sources.
    pub fn settings(mut self, settings: &serde_json::Value) -> Self {
        let origin = Origin::new("builder", Layer::Builder, "");
        self.program.push(Node::from_json(&origin, settings));
        self
    }

    /// A source that the first version requires. Sources of a later layer override those of an earlier one;
    /// within a layer, later calls override earlier ones.
    pub fn source(mut self, layer: Layer, source: Arc<dyn ConfigSource>) -> Self {
        self.add(Feed::new(layer, Source::One(source), true));
        self
    }

    /// A source that the first version does not require: it waits 5 s at most for the source, and stops once
    /// the source returned an error.
    pub fn source_if_there(mut self, layer: Layer, source: Arc<dyn ConfigSource>) -> Self {
        self.add(Feed::new(layer, Source::One(source), false));
        self
    }

    /// The files of a directory, which the first version requires to be readable. It need not exist.
    pub fn directory(mut self, layer: Layer, directory: DirectorySource) -> Self {
        self.add(Feed::new(layer, Source::Directory(directory), true));
        self
    }

    /// The settings of the environment, which override all sources but [`overrides`](Loader::overrides). Default:
    /// none.
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// Single settings, which override all sources and the environment. Default: none.
    pub fn overrides(mut self, overrides: Overrides) -> Self {
        self.overrides = overrides;
        self
    }

    /// Waits for the next change. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Change<D, T> {
        loop {
            self.gather().await;
            if let Some(unreadable) = self.unread.pop_front() {
                self.astray = true;
                return Change::Unreadable(unreadable);
            }
            self.dirty = false;
            if let Some(change) = self.settle() {
                return change;
            }
        }
    }

    fn add(&mut self, feed: Feed) {
        self.feeds.push(feed);
        self.feeds.sort_by_key(|feed| feed.layer); // a stable sort: the order of the calls stays
    }

    fn running(&self) -> Option<u64> {
        self.standing.as_ref().map(|s| s.number)
    }

    /// Waits until there is something to return, and a little longer so that changes of one time come together.
    async fn gather(&mut self) {
        let patience = *self.patience.get_or_insert_with(|| Instant::now() + PATIENCE);
        loop {
            if !self.unread.is_empty() {
                return;
            }
            let ready =
                self.feeds.iter().all(|f| f.is_settled() || (!f.needed && Instant::now() >= patience));
            if self.dirty && ready {
                break;
            }
            let waits = self.feeds.iter().any(|f| !f.is_settled() && !f.needed) && Instant::now() < patience;
            match waits {
                true => drop(tokio::time::timeout_at(patience, self.news()).await),
                false => self.news().await,
            }
        }
        let latest = Instant::now() + AT_LATEST;
        while self.standing.is_some() {
            let until = (Instant::now() + TOGETHER).min(latest);
            if tokio::time::timeout_at(until, self.news()).await.is_err() || Instant::now() >= latest {
                break;
            }
        }
    }

    /// Waits for a change of any source, and stores it.
    async fn news(&mut self) {
        let running = self.running();
        let (dirty, unread) = (&mut self.dirty, &mut self.unread);
        let feeds = &mut self.feeds;
        poll_fn(|cx| {
            let mut changed = false;
            for feed in feeds.iter_mut() {
                let Poll::Ready(news) = feed.poll(cx) else { continue };
                changed = true;
                match news {
                    Ok(()) => *dirty = true,
                    Err(Some(error)) => {
                        let needed = feed.needed && !feed.has_text();
                        unread.push_back(Unreadable { source: feed.name.clone(), error, needed, running });
                    }
                    Err(None) => {}
                }
            }
            if changed { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Makes a version of the current texts. `None` if it equals the last one and there was no error since.
    fn settle(&mut self) -> Option<Change<D, T>> {
        match self.read() {
            Err(problems) => {
                self.astray = true;
                Some(Change::Refused(Refusal { problems, running: self.running() }))
            }
            Ok((tree, document, value, warnings)) => {
                let hash = hash(&tree);
                let well = self.feeds.iter().all(Feed::is_well);
                let was_astray = std::mem::replace(&mut self.astray, !well);
                if let Some(standing) = self.standing.as_mut().filter(|s| s.hash == hash) {
                    standing.tree = tree; // same meaning, perhaps other positions
                    return (was_astray && well).then_some(Change::Restored(standing.number));
                }
                let nothing = Node::empty(Origin::new("defaults", Layer::Defaults, ""));
                let changes = changes(self.standing.as_ref().map_or(&nothing, |s| &s.tree), &tree);
                let number = self.running().unwrap_or(0) + 1;
                self.standing = Some(Standing { number, hash: hash.clone(), tree: tree.clone() });
                let version = Version { number, hash, document, value, warnings, changes, tree };
                Some(Change::Applied(Box::new(version)))
            }
        }
    }

    fn read(&self) -> Result<(Node, D, T, Vec<Problem>), Vec<Problem>> {
        let texts = self.feeds.iter().flat_map(Feed::trees);
        let broken: Vec<Problem> =
            texts.clone().filter_map(|t| t.as_ref().err().map(|p| (**p).clone())).collect();
        if !broken.is_empty() {
            return Err(broken);
        }
        let below = merge(self.program.iter().chain(texts.filter_map(|t| t.as_ref().ok())));
        let (environment, mut problems) = self.environment.over(&below);
        let mut tree = merge([&below, &environment]);
        if !self.overrides.is_empty() {
            let (overrides, more) = self.overrides.over(&tree);
            problems.extend(more);
            tree = merge([&tree, &overrides]);
        }
        let (document, more) = (self.read)(&tree);
        crate::env::without_unknown(&mut tree, &more);
        problems.extend(more);
        let Some(document) = document.filter(|_| !problems.iter().any(Problem::is_error)) else {
            return Err(problems);
        };
        let (value, findings) = match (self.check)(&document) {
            Ok((value, findings)) => (Some(value), findings),
            Err(findings) => (None, findings),
        };
        for problem in findings.into_iter().map(|f| f.place(&tree)) {
            // A problem of the defaults may be found once for every service.
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
        match value {
            Some(value) if !problems.iter().any(Problem::is_error) => Ok((tree, document, value, problems)),
            _ => Err(problems),
        }
    }
}
