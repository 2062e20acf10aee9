//! The settings of a running service: origins, past versions, rollback, dry runs, listeners.
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use chassis_config::{
    Control, ControlError, Moved, Overrides, Problem, Provenance, Record, Trial, Version, merge,
    tree::{Node, Path, Segment, Value},
};
use chassis_core::{Live, Runtime, config::Text};
use tokio::sync::watch;

pub use self::change::{SettingChange, UnreadableSetting};
use self::listener::{Listener, Swap, Swaps};
use crate::{
    document::{ReadOnce, Reader},
    rollout::Rollout,
};

mod change;
mod listener;

/// The settings of a service: the origin of each, past versions, rollback, dry runs. Clones are of the same service.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> chassis::Result {
/// let app = chassis::Chassis::builder("orders")
///     .without_file()
///     .settings(serde_json::json!({ "registry": { "kind": "memory" } }))
///     .set("outbound.defaults.retry.attempts", "3")
///     .build()
///     .await?;
/// let config = app.config();
/// let origin = |path| config.origin(path).map(|origin| origin.to_string());
/// // A service inherits the settings for all services.
/// assert_eq!(origin("outbound.services.stock.retry.attempts").as_deref(), Some("--set"));
/// assert_eq!(origin("outbound.defaults.timeout").as_deref(), Some("default"));
/// assert_eq!(origin("outbound.defaults.timeuot"), None);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ConfigHandle(Arc<Inner>);

struct Inner {
    control: Control,
    rollout: Arc<Rollout>,
    reader: Arc<Reader>,
    in_force: Live<InForce>,
    /// The number of the version in force; set once it is applied as a whole.
    applied: watch::Sender<u64>,
    /// The settings at the start, with those that are read once.
    started: Node,
    read_once: ReadOnce,
    listeners: Mutex<Vec<Arc<Listener>>>,
    /// Versions that the listeners have still to be called for.
    swaps: Swaps,
    runtime: Runtime,
}

/// The version in force.
struct InForce {
    number: u64,
    hash: String,
    tree: Arc<Node>,
}

/// The effect that a text would have on a running service.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DryRun {
    /// The source whose text it would replace; `None` if it would overlay all sources.
    pub replaces: Option<String>,
    /// The settings that would change. Secrets are masked.
    pub changes: Vec<Moved>,
    /// Changes that would wait for a restart.
    pub restart: Vec<Moved>,
    /// The problems. With an error among them the text would be refused.
    pub problems: Vec<Problem>,
}

/// A setting in force that a source sets.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EffectiveSetting {
    /// Its path: `outbound.defaults.timeout`.
    pub path: String,
    /// Its value on one line; `***` for a secret.
    pub value: String,
    /// The origin.
    pub origin: Provenance,
}

// === impl ConfigHandle ===

impl ConfigHandle {
    pub(crate) fn new<D, T>(
        control: Control,
        rollout: Arc<Rollout>,
        reader: Arc<Reader>,
        read_once: ReadOnce,
        version: &Version<D, T>,
        runtime: &Runtime,
    ) -> Self {
        let Version { number, hash, tree, .. } = version;
        let in_force = InForce { number: *number, hash: hash.clone(), tree: Arc::new(tree.clone()) };
        ConfigHandle(Arc::new(Inner {
            control,
            rollout,
            reader,
            in_force: Live::new(in_force),
            applied: watch::Sender::new(*number),
            started: tree.clone(),
            read_once,
            listeners: Mutex::default(),
            swaps: Swaps::new(runtime),
            runtime: runtime.clone(),
        }))
    }

    /// A version was put in force: has the listeners called.
    pub(crate) fn applied<D, T>(&self, version: &Version<D, T>) {
        let Version { number, hash, tree, .. } = version;
        let (before, after) = (self.0.in_force.get().tree.clone(), Arc::new(tree.clone()));
        self.0.in_force.set(InForce { number: *number, hash: hash.clone(), tree: after.clone() });
        self.0.applied.send_replace(*number);
        let listeners = self.0.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !listeners.is_empty() {
            let swap = Swap { version: *number, before, after, listeners };
            self.0.swaps.add(swap);
        }
    }

    /// The changes that wait for a restart.
    pub(crate) fn pending(&self, tree: &Node) -> Vec<Moved> {
        self.0.read_once.pending(&self.0.started, tree)
    }

    /// The number of the version in force, counted from 1.
    pub fn version(&self) -> u64 {
        self.0.in_force.get().number
    }

    /// The hash of the settings in force: the same in every process with the same settings.
    pub fn hash(&self) -> String {
        self.0.in_force.get().hash.clone()
    }

    /// The origin of a setting's value; `None` if there is no such setting.
    ///
    /// An operation inherits from its service, and a service from the defaults: if only `defaults` have a
    /// setting, that is its origin.
    pub fn origin(&self, path: &str) -> Option<Provenance> {
        let tree = &self.0.in_force.get().tree;
        let path = Overrides::path(path, tree)?;
        for path in inherited(&path) {
            // `retry: off` sets all that would be below.
            let above = (1..=path.0.len())
                .rev()
                .find_map(|to| tree.at(&Path(path.0[..to].to_vec())).map(|n| (to, n)));
            let Some((to, node)) = above else { continue };
            let is_set = match node.value {
                Value::Null => false,
                Value::Map(_) | Value::List(_) => to == path.0.len(),
                Value::Plain(_) | Value::Quoted(_) => true,
            };
            if is_set {
                return Some(Provenance::of(node));
            }
        }
        self.is_known(tree, &path).then_some(Provenance::Default)
    }

    /// Every setting in force that a source sets, in the order of the document.
    pub fn settings(&self) -> Vec<EffectiveSetting> {
        let in_force = self.0.in_force.get();
        let setting = |(path, node): (Path, &Node)| EffectiveSetting {
            value: if path.is_secret() { "***".to_owned() } else { node.shown().to_string() },
            path: path.to_string(),
            origin: Provenance::of(node),
        };
        in_force.tree.leaves().into_iter().map(setting).collect()
    }

    /// Past versions, oldest first: the last 20 that were accepted and the last 20 that were not, with their sources and
    /// changes.
    pub fn history(&self) -> Vec<Arc<Record>> {
        self.0.control.history()
    }

    /// The differences between two accepted versions of the [history](ConfigHandle::history). Secrets are masked.
    ///
    /// # Errors
    /// [`Unknown`](ControlError::Unknown): the history does not have one of them.
    pub fn diff(&self, from: u64, to: u64) -> Result<Vec<Moved>, ControlError> {
        let all = self.history();
        let known = || all.iter().filter_map(|record| record.version()).collect();
        let find = |version: u64| {
            let found = all.iter().find(|record| record.version() == Some(version));
            found.ok_or_else(|| ControlError::Unknown { version, known: known() })
        };
        let (from, to) = (find(from)?, find(to)?);
        // Every accepted version is kept with its settings.
        Ok(from.changes_to(to).unwrap_or_default())
    }

    /// The changes that wait for a restart.
    #[allow(dead_code, reason = "for the admin surface, which a build may be without")]
    pub(crate) fn waiting(&self) -> Vec<Moved> {
        self.pending(&self.0.in_force.get().tree)
    }

    /// The kinds and sections of the settings.
    #[allow(dead_code, reason = "for the admin surface, which a build may be without")]
    pub(crate) fn reader(&self) -> &Reader {
        &self.0.reader
    }

    /// Puts a past version in force again, as a new version, whose number is returned. It stays until
    /// [`release`](ConfigHandle::release) or a restart: until then changes of the sources are recorded and not applied.
    ///
    /// # Errors
    /// The history does not have the version, or the program refuses it now.
    pub async fn rollback(&self, to: u64) -> Result<u64, ControlError> {
        let number = self.0.control.rollback(to).await?;
        let mut applied = self.0.applied.subscribe();
        applied.wait_for(|applied| *applied >= number).await.map_err(|_| ControlError::Gone)?;
        Ok(number)
    }

    /// Ends a rollback: the settings of the sources are put in force. Returns the version that was rolled back to;
    /// `None` if there was none.
    ///
    /// # Errors
    /// [`Gone`](ControlError::Gone): the process stops.
    pub async fn release(&self) -> Result<Option<u64>, ControlError> {
        self.0.control.release().await
    }

    /// Lets settings be applied again that are not, because they did harm: a roll-out found that in this process or in another
    /// one, or they crashed the process. If the sources have them, they are applied by this process as any others, with the
    /// guard of [`config.rollout`](crate::document::RolloutConfig). Returns whether such settings were known.
    ///
    /// It concerns this process alone. For all instances, change the settings.
    pub async fn allow(&self, hash: &str) -> bool {
        self.0.rollout.allow(hash).await
    }

    /// Determines the effect that a text would have on this service; changes nothing.
    ///
    /// The text replaces that of the source in its `origin` (the path of a file, the key of a config center),
    /// or overlays all sources, below the environment.
    ///
    /// # Errors
    /// [`Gone`](ControlError::Gone): the process stops.
    pub async fn dry_run(&self, text: Text) -> Result<DryRun, ControlError> {
        let Trial { replaces, changes, problems, tree, .. } = self.0.control.trial(text).await?;
        let mut restart = tree.map(|tree| self.pending(&tree)).unwrap_or_default();
        restart.retain(|waiting| changes.iter().any(|moved| moved.path == waiting.path));
        Ok(DryRun { replaces, changes, restart, problems })
    }

    /// Calls a function for every setting that changes and whose path is `pattern` or below it: first the changes of one
    /// version in the order of the document, then those of the next.
    ///
    /// In a pattern `*` stands for one key, and `**` for any number of them: `outbound.services.*.timeout`. Settings of
    /// chassis and of your own sections are treated alike.
    ///
    /// Functions are called after the version was put in force, one after the other in the order of their registration, on
    /// threads of their own. A panic is logged. A function that has not returned after 5 s is reported by
    /// `Event::PluginBlocked`. The others wait 5 s at most for all the calls of one function for a version: then its own
    /// changes wait, 1,024 at most, further ones are lost to it and logged. Where more than 64 versions wait, the newest
    /// ones are taken together as one.
    ///
    /// ```
    /// use chassis::units::{PositiveSpan, Switch};
    ///
    /// # async fn example(app: chassis::Chassis) {
    /// app.config().on_change("outbound.services.*.timeout", |change| {
    ///     let timeout = change.read_new::<Switch<PositiveSpan>>(); // as in a document: `off`, or a length of time
    ///     println!("{} {timeout:?}", change.path);
    /// });
    /// # }
    /// ```
    pub fn on_change(&self, pattern: &str, call: impl Fn(&SettingChange) + Send + Sync + 'static) {
        let keys = Overrides::path(pattern, &self.0.in_force.get().tree).unwrap_or_default();
        let keys = keys.0.into_iter().map(|segment| Path(vec![segment]).key()).collect();
        let listener = Arc::new(Listener::new(pattern, keys, call, &self.0.runtime));
        self.0.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    /// Whether the document has a setting at `path`.
    fn is_known(&self, tree: &Node, path: &Path) -> bool {
        let (probe, problems) = Overrides::default().set(&path.to_string(), "").over(tree);
        let (_, found) = self.0.reader.read(&merge([tree, &probe]));
        let is_unknown = |problem: &Problem| problem.is_unknown_key() && path.is_within(&problem.path);
        problems.is_empty() && !found.iter().any(is_unknown)
    }
}

impl fmt::Debug for ConfigHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigHandle").field("version", &self.version()).finish_non_exhaustive()
    }
}

/// The paths whose values hold at `path`, the nearest first.
fn inherited(path: &Path) -> Vec<Path> {
    let keys: Vec<&str> = path
        .0
        .iter()
        .map_while(|segment| match segment {
            Segment::Key(key) => Some(key.as_str()),
            Segment::Index(_) => None,
        })
        .collect();
    let with = |start: &[&str], from: usize| {
        let rest = path.0[from..].iter().cloned();
        Path(Path::of(start.iter().copied()).0.into_iter().chain(rest).collect())
    };
    let mut found = vec![path.clone()];
    match &*keys {
        ["outbound", "services", service, "operations", _, _, ..] => {
            found.push(with(&["outbound", "services", service], 5));
            found.push(with(&["outbound", "defaults"], 5));
        }
        ["outbound", "services", _, next, ..] if *next != "operations" => {
            found.push(with(&["outbound", "defaults"], 3));
        }
        ["inbound", "operations" | "listeners", _, _, ..] => found.push(with(&["inbound"], 3)),
        _ => {}
    }
    found
}

// === impl DryRun ===

impl DryRun {
    /// Whether the text would be accepted.
    pub fn is_accepted(&self) -> bool {
        !self.problems.iter().any(Problem::is_error)
    }
}
