//! Follows the sources of a process's settings, and makes a version of every change that can be applied as a
//! whole.
mod change;
mod control;
mod feed;
mod files;
mod gate;
mod history;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    future::poll_fn,
    path::PathBuf,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use chassis_core::config::{ConfigSource, Text};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, time::Instant};

pub use self::{
    change::{Avoided, Change, Held, Refusal, Unreadable},
    control::{Control, ControlError, Trial},
    feed::SourceOptions,
    gate::{Candidate, Gate},
    history::{Outcome, Record},
};
use self::{
    control::Question,
    feed::{Feed, Source},
    files::Files,
    gate::Gated,
};
use crate::{
    DirectorySource, Overrides,
    code::Code,
    env::Environment,
    finding::Finding,
    interpolate::{Ciphers, Decrypt, Resolved},
    merge::merge,
    problem::Problem,
    rename::{Renamed, renamed},
    tree::{Layer, Node, Origin, Path, Segment, Span},
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
/// assert_eq!(refusal.problems[0].in_a_line(), "C002 settings:1:1 wokers: unknown key; did you mean `workers`?");
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Loader<D, T> {
    program: Vec<Node>,
    feeds: Vec<Feed>,
    environment: Environment,
    overrides: Overrides,
    ciphers: Ciphers,
    /// The files that values were read from.
    files: Files,
    renamed: Option<Box<Renames>>,
    read: Read<D>,
    check: Check<D, T>,
    /// A source has changed since the last version was made.
    dirty: bool,
    /// Errors of sources that `next` has still to return.
    unread: VecDeque<Unreadable>,
    standing: Option<Standing>,
    control: Control,
    asked: mpsc::UnboundedReceiver<Question>,
    /// Questions that are to be answered.
    questions: VecDeque<Question>,
    /// The version that was rolled back to: while there is one, changes of sources are not applied.
    pinned: Option<u64>,
    /// The sources that have changed since the last version was made.
    from: Vec<String>,
    gated: Gated,
    /// Some texts are missing on purpose.
    is_partial: bool,
    /// A change that follows the one that was returned.
    next: Option<Change<D, T>>,
    /// The last change was an error.
    astray: bool,
    /// When the loader stops waiting for sources that are not required.
    patience: Option<Instant>,
}

/// Makes a document from a tree.
type Read<D> = Box<dyn Fn(&Node) -> (Option<D>, Vec<Problem>) + Send + Sync>;

/// The keys that have new names, in a merged tree.
type Renames = dyn Fn(&Node) -> Vec<Renamed> + Send + Sync;

/// Makes a value from a document: with warnings, or errors.
type Check<D, T> = Box<dyn Fn(&D) -> Result<(T, Vec<Finding>), Vec<Finding>> + Send + Sync>;

/// Settings that were read and checked.
struct Sound<D, T> {
    tree: Node,
    document: D,
    value: T,
    warnings: Vec<Problem>,
    files: BTreeMap<PathBuf, Option<String>>,
}

/// All layers as one tree.
struct Merged {
    tree: Node,
    /// Problems of the texts, of which some may be warnings.
    problems: Vec<Problem>,
    /// No text is missing.
    is_whole: bool,
}

/// Settings that can't be used.
struct Refused {
    /// `None` if a text is missing, or can't be parsed.
    tree: Option<Node>,
    problems: Vec<Problem>,
    files: BTreeMap<PathBuf, Option<String>>,
}

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
        let (control, asked) = Control::new();
        Loader {
            control,
            asked,
            questions: VecDeque::new(),
            pinned: None,
            from: Vec::new(),
            read: Box::new(read),
            renamed: None,
            program: Vec::new(),
            feeds: Vec::new(),
            environment: Environment::default(),
            overrides: Overrides::default(),
            ciphers: Ciphers::default(),
            files: Files::default(),
            check: Box::new(check),
            dirty: true,
            unread: VecDeque::new(),
            standing: None,
            gated: Gated::default(),
            is_partial: false,
            next: None,
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
    pub fn source(self, layer: Layer, source: Arc<dyn ConfigSource>) -> Self {
        self.source_with(layer, source, SourceOptions::of(layer))
    }

    /// A source that the first version does not require: it waits 5 s at most for the source, and stops once
    /// the source returned an error.
    pub fn source_if_there(self, layer: Layer, source: Arc<dyn ConfigSource>) -> Self {
        self.source_with(layer, source, SourceOptions { needed: false, ..SourceOptions::of(layer) })
    }

    /// A source with options.
    pub fn source_with(
        mut self,
        layer: Layer,
        source: Arc<dyn ConfigSource>,
        options: SourceOptions,
    ) -> Self {
        self.add(Feed::new(layer, Source::One(source), options));
        self
    }

    /// The files of a directory, which the first version requires to be readable. It need not exist.
    pub fn directory(mut self, layer: Layer, directory: DirectorySource) -> Self {
        self.add(Feed::new(layer, Source::Directory(directory), SourceOptions::of(layer)));
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

    /// Keys that have new names, in a document whose merged tree is passed, with the names as they are written: which keys a
    /// table has may depend on its `kind`. Default: none.
    pub fn renamed(mut self, keys: impl Fn(&Node) -> Vec<Renamed> + Send + Sync + 'static) -> Self {
        self.renamed = Some(Box::new(keys));
        self
    }

    /// A cipher: values of the form `${name:text}` are decrypted by it.
    pub fn decrypt(mut self, name: &str, cipher: Arc<dyn Decrypt>) -> Self {
        self.ciphers.add(name, cipher);
        self
    }

    /// Makes no version, because texts are missing: reports the problems that single values have, whatever the missing
    /// texts set.
    pub fn partial(mut self) -> Self {
        self.is_partial = true;
        self
    }

    /// Asks this loader while it is polled elsewhere.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Waits for the next change. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Change<D, T> {
        if let Some(next) = self.next.take() {
            return next;
        }
        loop {
            self.gather().await;
            if let Some(question) = self.questions.pop_front() {
                match self.answer(question) {
                    Some(change) => return change,
                    None => continue,
                }
            }
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
            if !self.unread.is_empty() || !self.questions.is_empty() {
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
            let is_quiet = tokio::time::timeout_at(until, self.news()).await.is_err();
            if is_quiet || Instant::now() >= latest || !self.questions.is_empty() {
                break;
            }
        }
    }

    /// Waits for a change of any source, and stores it.
    async fn news(&mut self) {
        let running = self.running();
        let (dirty, unread) = (&mut self.dirty, &mut self.unread);
        let (feeds, asked, questions) = (&mut self.feeds, &mut self.asked, &mut self.questions);
        let (files, from) = (&mut self.files, &mut self.from);
        poll_fn(|cx| {
            let mut changed = false;
            while let Poll::Ready(file) = files.poll(cx) {
                from.push(file);
                (*dirty, changed) = (true, true);
            }
            while let Poll::Ready(Some(question)) = asked.poll_recv(cx) {
                questions.push_back(question);
                changed = true;
            }
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
        for feed in &mut self.feeds {
            self.from.extend(feed.refresh());
        }
        let from = std::mem::take(&mut self.from);
        match self.evaluate(self.assemble(None)) {
            Err(Refused { tree, problems, files }) => {
                self.files.follow(files, true);
                self.astray = true;
                let changes = tree.map(|tree| changes(&self.in_force(), &tree)).unwrap_or_default();
                self.control.past().add(from, Outcome::Refused(problems.clone()), changes, None);
                Some(Change::Refused(Refusal { problems, running: self.running() }))
            }
            Ok(read) => {
                self.files.follow(read.files.clone(), false);
                self.feeds.iter_mut().for_each(Feed::used);
                let hash = hash(&read.tree);
                let well = self.feeds.iter().all(Feed::is_well);
                let was_astray = std::mem::replace(&mut self.astray, !well);
                if let Some(standing) = self.standing.as_mut().filter(|s| s.hash == hash) {
                    standing.tree = read.tree; // same meaning, perhaps other positions
                    self.gated.settled();
                    return (was_astray && well).then_some(Change::Restored(standing.number));
                }
                if let Some(pinned) = self.pinned {
                    let changes = changes(&self.in_force(), &read.tree);
                    let changed = changes.clone();
                    self.control.past().add(from, Outcome::Held { hash }, changes, None);
                    return Some(Change::Held(Held { pinned, changed, running: self.running() }));
                }
                match self.gated.admit(&hash, &read.tree, self.standing.is_none()) {
                    Ok(()) => Some(self.apply(read, hash, from, None)),
                    Err(why) => self.avoid(&read.tree, hash, why, from),
                }
            }
        }
    }

    /// The texts of all sources that the version in force was made of; `None` for a repeated version.
    fn sources(&self, is_repeated: bool) -> Option<Vec<(String, Vec<Text>)>> {
        let texts = |feed: &Feed| (feed.name.clone(), feed.texts().cloned().collect());
        (self.gated.gate.is_some() && !is_repeated).then(|| self.feeds.iter().map(texts).collect())
    }

    /// Records that the gate refuses sound settings. `None` if that was reported before.
    fn avoid(&mut self, tree: &Node, hash: String, why: String, from: Vec<String>) -> Option<Change<D, T>> {
        if !self.gated.refuse(&hash, &why) {
            return None;
        }
        let changed = changes(&self.in_force(), tree);
        let outcome = Outcome::Avoided { hash: hash.clone(), why: why.clone() };
        self.control.past().add(from, outcome, changed.clone(), None);
        let running = self.running();
        if running.is_none() {
            self.next = self.begin_instead();
        }
        let is_stuck = self.running().is_none();
        Some(Change::Avoided(Avoided { hash, why, changed, running, is_stuck }))
    }

    /// The version of an earlier time, to begin with.
    fn begin_instead(&mut self) -> Option<Change<D, T>> {
        let read = self.evaluate(self.assemble_instead()?).ok()?;
        let hash = hash(&read.tree);
        self.gated.admit(&hash, &read.tree, true).ok()?;
        Some(self.apply_instead(read, hash))
    }

    /// Makes a version of texts that the sources no longer have.
    fn apply_instead(&mut self, read: Sound<D, T>, hash: String) -> Change<D, T> {
        let mut change = self.apply(read, hash, Vec::new(), None);
        if let Change::Applied(version) = &mut change {
            version.texts.clear();
            version.sources = None;
        }
        change
    }

    /// Makes a version of sound settings.
    fn apply(
        &mut self,
        read: Sound<D, T>,
        hash: String,
        from: Vec<String>,
        back_to: Option<u64>,
    ) -> Change<D, T> {
        let Sound { tree, document, value, warnings, files: _ } = read;
        let changes = changes(&self.in_force(), &tree);
        let number = self.running().unwrap_or(0) + 1;
        let outcome = Outcome::Applied { version: number, hash: hash.clone(), back_to };
        self.control.past().add(from, outcome, changes.clone(), Some(tree.clone()));
        self.standing = Some(Standing { number, hash: hash.clone(), tree: tree.clone() });
        let centers = self.feeds.iter().filter(|feed| feed.layer == Layer::Center && back_to.is_none());
        let texts =
            centers.flat_map(|feed| feed.texts().map(|text| (feed.name.clone(), text.clone()))).collect();
        let sources = self.sources(back_to.is_some());
        Change::Applied(Box::new(Version {
            number,
            hash,
            document,
            value,
            warnings,
            changes,
            tree,
            texts,
            sources,
        }))
    }

    /// Answers a question, which may change the version in force.
    fn answer(&mut self, question: Question) -> Option<Change<D, T>> {
        match question {
            Question::Trial { text, reply } => {
                reply.send(self.trial(&text)).ok(); // the caller may be gone
                None
            }
            Question::Reconsider => {
                self.dirty = true;
                None
            }
            Question::Revert { hash: harmful, reply } => {
                let change = self.revert(&harmful);
                reply.send(change.is_some().then(|| self.running()).flatten()).ok();
                self.dirty = true; // the gate states in the history why the sources' settings are not in force
                change
            }
            Question::Release { reply } => {
                let pinned = self.pinned.take();
                self.dirty |= pinned.is_some();
                reply.send(pinned).ok();
                None
            }
            Question::Rollback { to, reply } => {
                let tree = self.control.past().tree(to);
                let Some(tree) = tree else {
                    let known = self.control.past().versions();
                    reply.send(Err(ControlError::Unknown { version: to, known })).ok();
                    return None;
                };
                match self.evaluate(Merged::whole(tree)) {
                    Err(Refused { problems, .. }) => {
                        let problems = problems.iter().map(ToString::to_string).collect();
                        reply.send(Err(ControlError::Refused(problems))).ok();
                        None
                    }
                    Ok(read) => {
                        self.pinned = Some(to);
                        let hash = hash(&read.tree);
                        let same = self.standing.as_ref().filter(|standing| standing.hash == hash);
                        if let Some(standing) = same {
                            reply.send(Ok(standing.number)).ok();
                            return None;
                        }
                        let change = self.apply(read, hash, Vec::new(), Some(to));
                        reply.send(Ok(self.running().unwrap_or(0))).ok();
                        Some(change)
                    }
                }
            }
        }
    }

    /// Puts the version before the one with this hash in force, if that is in force now.
    fn revert(&mut self, harmful: &str) -> Option<Change<D, T>> {
        if self.pinned.is_some() || self.standing.as_ref().is_none_or(|standing| standing.hash != harmful) {
            return None;
        }
        let before = self.control.past().before(harmful);
        let (merged, back_to) = match before {
            Some((version, tree)) => (Merged::whole(tree), Some(version)),
            None => (self.assemble_instead()?, None),
        };
        let read = self.evaluate(merged).ok()?;
        let hash = hash(&read.tree);
        (hash != harmful).then(|| match back_to {
            Some(_) => self.apply(read, hash, Vec::new(), back_to),
            None => self.apply_instead(read, hash),
        })
    }

    /// The effect that `text` would have.
    fn trial(&self, text: &Text) -> Trial {
        let replaces =
            self.feeds.iter().find(|feed| feed.is_called(&text.origin)).map(|feed| feed.name.clone());
        let (tree, problems) = match self.evaluate(self.assemble(Some(text))) {
            Ok(read) => (Some(read.tree), read.warnings),
            Err(Refused { tree, problems, .. }) => (tree, problems),
        };
        let changes = tree.as_ref().map(|tree| changes(&self.in_force(), tree)).unwrap_or_default();
        Trial { replaces, changes, problems, tree }
    }

    /// The tree of the version in force; empty before the first.
    fn in_force(&self) -> Node {
        let nothing = || Node::empty(Origin::new("defaults", Layer::Defaults, ""));
        self.standing.as_ref().map_or_else(nothing, |standing| standing.tree.clone())
    }

    /// Merges all layers. With `other` in place of the text of its name, or over all texts.
    fn assemble(&self, other: Option<&Text>) -> Merged {
        let placed = other.and_then(|other| {
            let at = self.feeds.iter().position(|feed| feed.is_called(&other.origin))?;
            Some((at, self.feeds[at].with(other)))
        });
        let above = other.filter(|_| placed.is_none()).map(|other| crate::parse(other, Layer::Center));
        self.assemble_with(placed.into_iter().collect(), above)
    }

    /// The same with other texts for some sources, by their index, and a text `above` all of them.
    fn assemble_with(
        &self,
        replaced: Vec<(usize, Vec<feed::Parsed>)>,
        above: Option<feed::Parsed>,
    ) -> Merged {
        let mut texts: Vec<&feed::Parsed> = Vec::new();
        for (at, feed) in self.feeds.iter().enumerate() {
            match replaced.iter().find(|(place, _)| *place == at) {
                Some((_, replaced)) => texts.extend(replaced),
                None => texts.extend(feed.trees()),
            }
        }
        texts.extend(&above);
        let mut problems: Vec<Problem> =
            texts.iter().filter_map(|text| text.as_ref().err().map(|p| (**p).clone())).collect();
        let is_whole = problems.is_empty() && !self.is_partial;
        let layers = || self.program.iter().chain(texts.iter().filter_map(|text| text.as_ref().ok()));
        let mut below = merge(layers());
        let all = self.renamed.as_ref().map(|renamed| renamed(&below)).unwrap_or_default();
        let current: Vec<Option<Node>> = layers().map(|tree| renamed(tree, &all, &mut problems)).collect();
        if current.iter().any(Option::is_some) {
            below = merge(layers().zip(&current).map(|(tree, current)| current.as_ref().unwrap_or(tree)));
        }
        let (environment, more) = self.environment.over(&below);
        problems.extend(more);
        let environment = renamed(&environment, &all, &mut problems).unwrap_or(environment);
        let mut tree = merge([&below, &environment]);
        if !self.overrides.is_empty() {
            let (overrides, more) = self.overrides.over(&tree);
            problems.extend(more);
            let overrides = renamed(&overrides, &all, &mut problems).unwrap_or(overrides);
            tree = merge([&tree, &overrides]);
        }
        Merged { tree, problems, is_whole }
    }

    /// Reads and checks a merged tree. A tree that is refused is returned with its problems.
    #[allow(clippy::result_large_err)] // once for each change of the settings
    fn evaluate(&self, merged: Merged) -> Result<Sound<D, T>, Refused> {
        let Merged { tree, mut problems, is_whole } = merged;
        let Resolved { mut tree, problems: more, files } =
            Resolved::of(&tree, &self.environment, &self.ciphers);
        problems.extend(more);
        let (document, more) = (self.read)(&tree);
        crate::env::without_unknown(&mut tree, &more);
        problems.extend(more);
        if !is_whole {
            problems.retain(|problem| stands_alone(problem, &tree));
            return Err(Refused { tree: None, problems, files });
        }
        let Some(document) = document.filter(|_| !problems.iter().any(Problem::is_error)) else {
            return Err(Refused { tree: Some(tree), problems, files });
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
            Some(value) if !problems.iter().any(Problem::is_error) => {
                Ok(Sound { tree, document, value, warnings: problems, files })
            }
            _ => Err(Refused { tree: Some(tree), problems, files }),
        }
    }
}

// === impl Merged ===

impl Merged {
    fn whole(tree: Node) -> Self {
        Merged { tree, problems: Vec::new(), is_whole: true }
    }
}

/// Whether a problem is one whatever texts set that are missing in `tree`: they may complete a table, choose another kind for
/// it, or define a name that others refer to; they can't mend a wrong value.
fn stands_alone(problem: &Problem, tree: &Node) -> bool {
    // A list is of one text as a whole.
    let is_item = problem.path.0.iter().any(|segment| matches!(segment, Segment::Index(_)));
    let is_of_text = problem.at.as_ref().is_some_and(|at| at.origin.layer != Layer::Defaults);
    match problem.code {
        Code::Syntax
        | Code::TooLarge
        | Code::Unreadable
        | Code::SetPath
        | Code::VariableTwice
        | Code::Deprecated => true,
        Code::Conflict | Code::UnknownVariable => false,
        Code::Missing if !is_item => false,
        _ => is_of_text && is_of_its_kind(problem, tree),
    }
}

/// Whether the text of a problem also chooses the `kind` of each table around it.
fn is_of_its_kind(problem: &Problem, tree: &Node) -> bool {
    let name = |span: &Span| span.origin.name.clone();
    let place = problem.at.as_ref().map(name);
    (0..problem.path.0.len()).all(|depth| {
        let table = tree.at(&Path(problem.path.0[..depth].to_vec()));
        let kind = table.and_then(|table| table.entry("kind"));
        kind.is_none_or(|kind| Some(name(&kind.node.at)) == place)
    })
}
