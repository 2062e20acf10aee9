//! A document of instances that something else writes: a deployment script, a sidecar, a person.
//!
//! The file is looked at every `poll`, at most once for all who watch, and parsed only when its content is
//! another. There is no task: watching does the work, and when nobody watches none is done.
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

/// Where the document is: the `registry` table when its `kind` is `file`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// The document. It may not be there yet.
    pub path: PathBuf,
    /// How often the file is looked at. Default `1s`.
    #[serde(default = "one_second")]
    pub poll: PositiveSpan,
}

/// Tells what a document says, and follows it.
///
/// The document is JSON. `services` must be there, and no other key beside it:
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
/// | in the document | is told as |
/// |---|---|
/// | a list | these instances |
/// | `[]`, or no longer named | no instances; those who call it may hold on to the last ones for a while |
/// | `null` | deleted: believed at once |
/// | never named | unknown |
///
/// An instance that makes no sense (port 0, no id, an id given before, an unknown key, another service's
/// name) is refused with a warning; the rest is used. A document that can't be read whole (half-written,
/// gone, no regular file, no JSON, over 64 MiB) is an error, told once: no news until it can be read again. Best written
/// under another name and renamed.
///
/// Registering is accepted and changes nothing: the document is not ours to write.
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
    /// The tick was heard, and what it was for not done yet.
    due: bool,
    /// The service was named in the document before.
    heard: bool,
    /// What was answered from: the same content has no news, and need not be copied and compared.
    seen: Option<Arc<Services>>,
    answered: Option<Result<Membership, Arc<str>>>,
}

/// The last look at the file.
#[derive(Default)]
struct Last {
    at: Option<Instant>,
    /// A look that has begun; it outlives the future that began it.
    looking: Option<JoinHandle<Look>>,
    look: Look,
}

// === impl FileConfig ===

impl FileConfig {
    /// The document at `path`, looked at every second.
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
        kind::from_fn("file", |config: &FileConfig| {
            Ok(Arc::new(FileRegistry::new(config.clone())) as Arc<dyn Registry>)
        })
    }

    /// Touches nothing until somebody watches.
    pub fn new(config: FileConfig) -> Self {
        FileRegistry { config: Arc::new(config), last: Arc::default() }
    }

    /// The content as it is now, or was when another watcher looked within half a `poll`.
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
                pending::<()>().await; // the process ends: that is no news of the document
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
        let (due, heard, seen, answered) = (false, false, None, None);
        Ok(Box::new(FileWatcher { registry, service, tick, due, heard, seen, answered }))
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
                self.tick.tick().await; // the first one is over at once
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
            self.heard |= news.as_ref().is_ok_and(|news| *news != Membership::Unknown);
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
            None if self.heard => Membership::Known(Vec::new()),
            None => Membership::Unknown,
        }
    }
}
