//! Reads a document of instances that something else writes: a deployment script, a sidecar, a person.
//!
//! All watchers together check the file at most once per `poll` and parse it only if its content changed.
//! There is no background task: `Watcher::next` does the work, so without watchers the file is not read.
use std::{future::pending, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use chassis_core::{
    kind::{self, Kind},
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
    units::PositiveSpan,
};
use serde::Deserialize;
use tokio::{
    sync::Mutex,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, Interval, MissedTickBehavior, interval},
};

use self::look::{Look, Services};

mod look;

/// Path and poll interval of the document: the `registry` table when its `kind` is `file`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// Path of the document. The file may not exist yet.
    pub path: PathBuf,
    /// How often the file is checked for changes. Default `1s`.
    #[serde(default = "one_second")]
    pub poll: PositiveSpan,
}

/// Reads the instances from a JSON document and follows its changes.
///
/// `services` is required, and no other key may stand beside it:
///
/// ```json
/// { "services": {
///     "stock": [
///       { "id": "a", "addresses": { "grpc": "10.0.0.5:50051", "http": "10.0.0.5:8080" } },
///       { "id": "b", "addresses": { "grpc": "10.0.0.6:50051" }, "version": "1.4.0", "zone": "eu-1a",
///         "weight": 2, "labels": { "track": "canary" } } ],
///     "resting": [],
///     "retired": null
/// } }
/// ```
///
/// | in the document | result |
/// |---|---|
/// | a list | these instances |
/// | `[]`, or no longer named | no instances; callers may keep the last ones for a while |
/// | `null` | deleted: takes effect at once |
/// | never named | unknown |
///
/// An invalid instance (port 0, no id, a duplicate id, an unknown key, another service's name) is refused
/// with a warning; the rest is used. A document that cannot be read as a whole (half-written, missing, no
/// regular file, no JSON, over 64 MiB) is reported once as an error, and the watcher then waits until it can
/// be read again. To replace the document, write it under another name and rename it.
///
/// Registering is accepted and changes nothing: chassis does not write the document.
///
/// ```
/// use chassis_registry::{FileConfig, FileRegistry};
///
/// let registry = FileRegistry::new(FileConfig::at("/etc/shop/instances.json"));
/// ```
#[derive(Clone)]
pub struct FileRegistry {
    config: Arc<FileConfig>,
    last: Arc<Mutex<Last>>,
}

struct FileWatcher {
    registry: FileRegistry,
    service: String,
    tick: Interval,
    /// The interval has elapsed, and the check of the file is not finished.
    due: bool,
    /// True once the document has named the service.
    was_known: bool,
    /// The content of the last answer: the same content cannot bring a change and is not compared again.
    seen: Option<Arc<Services>>,
    answered: Option<Result<Membership, Arc<str>>>,
}

/// The last read of the file.
#[derive(Default)]
struct Last {
    at: Option<Instant>,
    /// The read in progress. It continues if the future that started it is dropped.
    looking: Option<JoinHandle<Look>>,
    look: Look,
}

// === impl FileConfig ===

impl FileConfig {
    /// The document at `path`, checked every second.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        FileConfig { path: path.into(), poll: one_second() }
    }
}

fn one_second() -> PositiveSpan {
    PositiveSpan::from_millis(1000)
}

// === impl FileRegistry ===

impl FileRegistry {
    /// The kind that settings choose by `registry: { kind: file }`.
    pub fn kind() -> impl Kind<Config = FileConfig, Made = Arc<dyn Registry>> {
        kind::described("file", schema_of!(FileConfig), |config: &FileConfig| {
            Ok(Arc::new(FileRegistry::new(config.clone())) as Arc<dyn Registry>)
        })
    }

    /// Does not access the file before the first watcher asks.
    pub fn new(config: FileConfig) -> Self {
        FileRegistry { config: Arc::new(config), last: Arc::default() }
    }

    /// The current content, or the one that another watcher read within the last half of a `poll`.
    async fn content(&self) -> Result<Arc<Services>, Arc<str>> {
        let mut last = self.last.lock().await;
        let Last { at, looking, look } = &mut *last;
        if at.is_none_or(|at| at.elapsed() >= self.config.poll.get() / 2) {
            let begin = || {
                let (config, before) = (self.config.clone(), look.clone());
                spawn_blocking(move || before.again(&config.path))
            };
            let result = looking.get_or_insert_with(begin).await;
            if result.as_ref().is_err_and(|e| e.is_cancelled()) {
                pending::<()>().await; // the runtime is shutting down; this is not an error of the document
            }
            *looking = None;
            *at = Some(Instant::now());
            *look = result.unwrap_or_else(|e| Look::failed(format!("reading was interrupted: {e}")));
        }
        look.content.clone()
    }
}

#[async_trait]
impl Registry for FileRegistry {
    fn name(&self) -> &str {
        "file"
    }

    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        crate::noop::register(&instance, self.name())
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let mut tick = interval(self.config.poll.get());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (registry, service) = (self.clone(), service.to_string());
        let (due, was_known, seen, answered) = (false, false, None, None);
        Ok(Box::new(FileWatcher { registry, service, tick, due, was_known, seen, answered }))
    }

    async fn services(&self) -> Vec<String> {
        let services = self.content().await.unwrap_or_default();
        services.iter().filter(|(_, all)| all.is_some()).map(|(service, _)| service.clone()).collect()
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

// === impl FileWatcher ===

#[async_trait]
impl Watcher for FileWatcher {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        loop {
            if !self.due {
                self.tick.tick().await; // the first tick completes at once
                self.due = true;
            }
            let content = self.registry.content().await;
            self.due = false;
            let seen = std::mem::replace(&mut self.seen, content.as_ref().ok().cloned());
            if let (Ok(now), Some(before)) = (&content, &seen)
                && Arc::ptr_eq(now, before)
            {
                continue;
            }
            let news = content.map(|services| self.membership(&services));
            self.was_known |= news.as_ref().is_ok_and(|news| *news != Membership::Unknown);
            if self.answered.as_ref() != Some(&news) {
                self.answered = Some(news.clone());
                return news.map_err(|why| RegistryError::new(&*why));
            }
        }
    }
}

impl FileWatcher {
    fn membership(&self, services: &Services) -> Membership {
        match services.get(&self.service) {
            Some(Some(all)) => Membership::Known(all.clone()),
            Some(None) => Membership::Deleted,
            None if self.was_known => Membership::Known(Vec::new()),
            None => Membership::Unknown,
        }
    }
}
