//! Lease files in a directory of the user: the registry that needs no other software.
//!
//! - `dir`: which directory, who may reach it, and names that are safe in it;
//! - `lease`: the file of one instance, from its start to its end, however it ends;
//! - `scan`: one look at the files of a service;
//! - `dir_watcher`: file events of that directory, so that a scan runs soon after a change.
use std::{future::pending, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use chassis_core::{
    kind::{self, Kind},
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
    units::PositiveSpan,
};
use serde::Deserialize;
use tokio::{
    task::{JoinError, JoinHandle, spawn_blocking},
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until},
};

use self::{
    dir::Dir,
    dir_watcher::DirWatcher,
    lease::{Entry, Lease, Refused},
    scan::Scan,
};

mod dir;
mod dir_watcher;
mod lease;
mod scan;

/// Directory of the lease files and duration of a lease: the `registry` table when its `kind` is `local`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct LocalConfig {
    /// The directory. Default `$XDG_RUNTIME_DIR/chassis`, or else `chassis-<uid>` in the directory for
    /// temporary files. It is created with mode 0700; a directory that other users can access is refused.
    pub dir: Option<PathBuf>,
    /// How long an instance counts as running without renewing its lease. A process renews every third of
    /// this time. It matters only for processes that hang: a process that ends is noticed at once. Default
    /// `10s`.
    pub lease: PositiveSpan,
    /// How often a watcher scans even if no change is reported. Default `5s`; where the system reports no
    /// changes, at least every 200 ms.
    pub poll: PositiveSpan,
}

/// Finds the processes of this user on this machine that run a service.
///
/// An instance is a file, `<dir>/<service>/<id>.json`, that its process holds a lock on. A killed process is
/// therefore noticed at once, and the next process that scans removes its file. A process that hangs is left
/// out when its lease has expired, or as soon as it misses a renewal and its address refuses connections.
///
/// Registering fails if another running process (or this one) has registered the id. The first answer of a
/// watcher is `Unknown` if no instance runs; after the last instance has gone it is an empty list; it is
/// never `Deleted`.
///
/// Names may contain any character; names longer than 240 bytes are refused, where a byte that is no letter
/// or digit counts as three. The directory must be on a file system with locks and hard links: any but FAT.
///
/// ```
/// use chassis_core::registry::{Instance, Membership, Registry};
/// use chassis_registry::{LocalConfig, LocalRegistry};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = Some(temp.path().join("chassis"));
/// let registry = LocalRegistry::new(LocalConfig { dir, ..LocalConfig::default() });
/// let stock = Instance::new("stock", "a").with_address("grpc", "127.0.0.1:50051");
/// let registration = registry.register(stock.clone()).await?;
///
/// let mut watcher = registry.watch("stock").await?;
/// assert_eq!(watcher.next().await?, Membership::known([stock]));
/// registration.deregister().await?;
/// assert_eq!(watcher.next().await?, Membership::Known(vec![]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct LocalRegistry {
    config: Arc<LocalConfig>,
}

struct LocalRegistration {
    lease: Arc<Lease>,
    service: String,
    id: String,
    /// How long the lease lasts without a renewal.
    duration: Duration,
    renewal: JoinHandle<()>,
}

struct LocalWatcher {
    dir: Dir,
    poll: Duration,
    dir_watcher: DirWatcher,
    /// The time of the next scan, if no event comes before; `None` is now.
    look_at: Option<Instant>,
    /// Time of the last scan.
    looked: Option<Instant>,
    service: String,
    path: PathBuf,
    /// `None` while a scan is in progress, which owns it.
    scan: Option<Scan>,
    /// The scan in progress. It continues if the future that started it is dropped, so no result is lost.
    looking: Option<JoinHandle<(Scan, Result<(), RegistryError>)>>,
    /// True once an instance has been found.
    was_known: bool,
    answered: Option<Result<Vec<Arc<Instance>>, String>>,
}

/// One change makes several events; the scan waits this long for the last of them.
const SETTLE: Duration = Duration::from_millis(10);
/// The least time between two scans, however many events come.
const BETWEEN: Duration = Duration::from_millis(50);
/// The time between two scans where the system reports no file events.
const UNWATCHED_POLL: Duration = Duration::from_millis(200);
/// Attempts to take an id that seems taken: a scan locks the file of a dead process for a moment.
const TRIES: usize = 5;

// === impl LocalConfig ===

impl Default for LocalConfig {
    fn default() -> Self {
        LocalConfig {
            dir: None,
            lease: PositiveSpan::from_millis(10_000),
            poll: PositiveSpan::from_millis(5_000),
        }
    }
}

// === impl LocalRegistry ===

impl LocalRegistry {
    /// The kind that settings choose by `registry: { kind: local }`.
    pub fn kind() -> impl Kind<Config = LocalConfig, Made = Arc<dyn Registry>> {
        kind::described("local", schema_of!(LocalConfig), |config: &LocalConfig| {
            Ok(Arc::new(LocalRegistry::new(config.clone())) as Arc<dyn Registry>)
        })
    }

    /// Does not access the directory before the first registration or watcher.
    pub fn new(config: LocalConfig) -> Self {
        LocalRegistry { config: Arc::new(config) }
    }

    async fn open(&self) -> Result<Dir, RegistryError> {
        let config = self.config.clone();
        blocking(move || match &config.dir {
            Some(path) => Dir::open(path),
            None => Dir::open(&Dir::default_path()?),
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    let result = spawn_blocking(work).await;
    if result.as_ref().is_err_and(JoinError::is_cancelled) {
        pending::<()>().await; // the runtime is shutting down; this is not an error of the directory
    }
    result.map_err(|e| RegistryError::new("interrupted").with_source(e))?
}

#[async_trait]
impl Registry for LocalRegistry {
    fn name(&self) -> &str {
        "local"
    }

    fn is_local(&self) -> bool {
        true
    }

    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        crate::check(&instance)?;
        let path = self.open().await?.instance(&instance.service, &instance.id)?;
        let what = format!("instance `{}` of `{}`, {}", instance.id, instance.service, path.display());
        let lease = self.config.lease.get();
        let (service, id) = (instance.service.clone(), instance.id.clone());
        let entry = Arc::new(Entry::new(instance, lease));
        let mut tries = TRIES;
        loop {
            let (path, entry) = (path.clone(), entry.clone());
            // If this future is dropped meanwhile, the lease is dropped as soon as it is granted.
            match blocking(move || Ok(Lease::take(path, &entry))).await? {
                Ok(taken) => return Ok(Box::new(LocalRegistration::new(taken, service, id, lease))),
                Err(Refused::Taken) if tries > 1 => tries -= 1,
                Err(Refused::Io(e)) => {
                    return Err(RegistryError::new(format!("{what} can't be written")).with_source(e));
                }
                Err(taken) => return Err(RegistryError::new(format!("{what}: {taken}"))),
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let dir = self.open().await?;
        let (service, path) = (service.to_string(), dir.service(service)?);
        let (poll, dir_watcher, look_at, looked) = (self.config.poll.get(), DirWatcher::new(), None, None);
        let (scan, looking, was_known, answered) = (None, None, false, None);
        Ok(Box::new(LocalWatcher {
            dir,
            poll,
            dir_watcher,
            look_at,
            looked,
            service,
            path,
            scan,
            looking,
            was_known,
            answered,
        }))
    }

    async fn services(&self) -> Vec<String> {
        let Ok(dir) = self.open().await else { return Vec::new() };
        let live = blocking(move || {
            let mut services = dir.services()?;
            services.sort();
            services.retain(|service| {
                let Ok(path) = dir.service(service) else { return false };
                let mut scan = Scan::new(service, path);
                scan.look().is_ok() && !scan.instances().is_empty()
            });
            Ok(services)
        });
        live.await.unwrap_or_default()
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

// === impl LocalRegistration ===

impl LocalRegistration {
    fn new(lease: Lease, service: String, id: String, duration: Duration) -> Self {
        let (lease, every) = (Arc::new(lease), duration / 3);
        let renewed = lease.clone();
        let renewal = tokio::spawn(async move {
            let mut tick = interval_at(Instant::now() + every, every);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                // Three system calls that do not wait for a disk; too little work for a thread of its own.
                if let Err(error) = renewed.renew() {
                    let path = renewed.path().display();
                    tracing::warn!(%path, error = &error as &dyn std::error::Error, "a lease was not renewed");
                }
            }
        });
        LocalRegistration { lease, service, id, duration, renewal }
    }
}

#[async_trait]
impl Registration for LocalRegistration {
    async fn update(&mut self, instance: Instance) -> Result<(), RegistryError> {
        crate::check_update(&instance, &self.service, &self.id)?;
        let what = format!("`{}` of `{}`", self.id, self.service);
        let (lease, entry) = (self.lease.clone(), Entry::new(instance, self.duration));
        blocking(move || {
            lease
                .update(&entry)
                .map_err(|e| RegistryError::new(format!("{what} can't be written")).with_source(e))
        })
        .await
    }

    async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
        let lease = self.lease.clone();
        blocking(move || {
            lease.end().map_err(|e| RegistryError::new("the entry was not removed").with_source(e))
        })
        .await
    }
}

impl Drop for LocalRegistration {
    fn drop(&mut self) {
        self.renewal.abort();
        self.lease.end_or_warn(); // at once: the aborted task may hold its copy of the lease a moment longer
    }
}

// === impl LocalWatcher ===

#[async_trait]
impl Watcher for LocalWatcher {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        loop {
            let looked = self.look().await;
            let answer = looked.as_ref().map(Vec::clone).map_err(ToString::to_string);
            if self.answered.as_ref() == Some(&answer) {
                continue;
            }
            self.answered = Some(answer);
            let all = looked?;
            self.was_known |= !all.is_empty();
            return Ok(if self.was_known { Membership::Known(all) } else { Membership::Unknown });
        }
    }
}

impl LocalWatcher {
    /// Waits until the next scan is due. Cancel-safe: a new call continues the wait.
    async fn rest(&mut self) {
        while let Some(at) = self.look_at.filter(|at| *at > Instant::now()) {
            tokio::select! {
                biased;
                () = self.dir_watcher.changed() => {
                    let soon = Instant::now() + SETTLE;
                    let rested = self.looked.map_or(soon, |looked| looked + BETWEEN);
                    self.look_at = Some(at.min(soon.max(rested)));
                }
                () = sleep_until(at) => return,
            }
        }
    }

    async fn look(&mut self) -> Result<Vec<Arc<Instance>>, RegistryError> {
        let looking = match &mut self.looking {
            Some(looking) => looking,
            None => {
                self.rest().await;
                // Before looking, or what happens in between would be missed.
                let pause = if self.dir_watcher.follow(&self.path) {
                    self.poll
                } else {
                    self.poll.min(UNWATCHED_POLL)
                };
                self.look_at = Some(Instant::now() + pause);
                self.looked = Some(Instant::now());
                let scan = self.scan.take().unwrap_or_else(|| Scan::new(&*self.service, self.path.clone()));
                self.looking.insert(tokio::spawn(look(self.dir.clone(), scan)))
            }
        };
        let result = looking.await;
        if result.as_ref().is_err_and(JoinError::is_cancelled) {
            pending::<()>().await; // the runtime is shutting down; this is not an error of the directory
        }
        self.looking = None;
        let (scan, looked) = result.map_err(|e| RegistryError::new("interrupted").with_source(e))?;
        let instances = scan.instances();
        self.scan = Some(scan);
        looked.map(|()| instances)
    }
}

async fn look(dir: Dir, mut scan: Scan) -> (Scan, Result<(), RegistryError>) {
    let looked = spawn_blocking(move || {
        let looked = dir.check().and_then(|()| scan.look());
        (scan, looked)
    });
    let (mut scan, looked) = match looked.await {
        Ok(looked) => looked,
        Err(ended) if ended.is_cancelled() => pending().await,
        // A panic of the scan continues here; the watcher is then started anew.
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    };
    if looked.is_ok() {
        scan.probe().await;
    }
    (scan, looked)
}

impl Drop for LocalWatcher {
    fn drop(&mut self) {
        if let Some(looking) = &self.looking {
            looking.abort();
        }
    }
}
