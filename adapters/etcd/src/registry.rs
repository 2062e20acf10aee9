//! The registry: an entry for each instance, and a follower for each service that is called.
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chassis_core::{
    BoxError, Kind,
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
    settings::Problem,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::Status;

use crate::{
    client::{Client, Range},
    entry,
    follow::{Entries, View, follow},
    lease::{Entry, Lease},
    proto,
    settings::EtcdConfig,
};

/// Instances in etcd, each as an entry with a lease.
///
/// Clones share connections and followers. A process follows each service that it calls once, for any number of
/// clients. The known instances stay when etcd cannot be reached; a watcher reports that once, as an error, and
/// continues by itself when etcd is back.
///
/// A registration replaces an entry of the same id, which may remain from before a restart. If another process
/// replaces it, this one logs that, and writes its own again when the other one is removed.
///
/// ```no_run
/// use chassis_core::registry::{Instance, Registry};
/// use chassis_etcd::{EtcdConfig, EtcdRegistry};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let registry = EtcdRegistry::new(EtcdConfig::at(["10.0.0.5:2379", "10.0.0.6:2379"]))?;
/// let stock = Instance::new("stock", "stock-1").with_address("grpc", "10.0.0.7:50051");
/// let registration = registry.register(stock).await?;
/// registration.deregister().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct EtcdRegistry(Arc<Inner>);

struct Inner {
    config: EtcdConfig,
    client: Client,
    followed: Mutex<HashMap<String, Arc<Followed>>>,
}

/// The follower of a service, shared by its watchers.
struct Followed {
    service: String,
    state: watch::Receiver<State>,
    /// The follower's task ends when this is dropped.
    _over: watch::Sender<()>,
}

/// The known state of a service.
#[derive(Clone, Default)]
struct State {
    known: Option<Membership>,
    /// The revision of the state.
    revision: i64,
    /// Counts the answers.
    number: u64,
    trouble: Option<Arc<Trouble>>,
}

/// etcd cannot be reached: reported to one watcher, which then asks again.
struct Trouble {
    why: String,
    is_told: AtomicBool,
}

/// Follows one service.
struct ServiceWatcher {
    followed: Arc<Followed>,
    registry: EtcdRegistry,
    state: watch::Receiver<State>,
    /// The number of its last answer.
    answered: Option<u64>,
}

/// Converts the entries of a service to instances.
struct Instances {
    client: Client,
    service: String,
    below: String,
    was_known: bool,
    state: watch::Sender<State>,
    refused: u64,
}

struct Registered {
    registry: EtcdRegistry,
    service: String,
    id: String,
    lease: Lease,
}

struct EtcdKind;

/// The interval of complete lists, in case a change was lost.
const LIST_EVERY: Duration = Duration::from_secs(300);
/// The time for which a service without watchers is still followed: a watcher that is created after an error
/// finds the known state.
const LINGER: Duration = Duration::from_secs(60);
/// The time for which a deregistration waits for this process's own watchers to see it.
const OWN_WATCHERS: Duration = Duration::from_secs(1);
/// Keys that are read at a time to find the names of services.
const NAMES: usize = 2_000;
/// The number of refused entries of a service that the log names.
const MAX_WARNINGS: u64 = 10;

// === impl EtcdRegistry ===

impl EtcdRegistry {
    /// The kind that settings choose by `registry: { kind: etcd }`.
    pub fn kind() -> impl Kind<Config = EtcdConfig, Made = Arc<dyn Registry>> {
        EtcdKind
    }

    /// Connects when it is first used.
    ///
    /// # Errors
    /// The first problem in `config`.
    pub fn new(config: EtcdConfig) -> Result<Self, BoxError> {
        if let [problem, ..] = &config.check()[..] {
            return Err(problem.to_string().into());
        }
        let client = Client::new(config.connection())?;
        Ok(EtcdRegistry(Arc::new(Inner { config, client, followed: Mutex::default() })))
    }

    /// The follower of `service`; started if there is none.
    fn follow(&self, service: &str) -> Arc<Followed> {
        let mut followed = self.followed();
        if let Some(followed) = followed.get(service) {
            return followed.clone();
        }
        let EtcdConfig { prefix, jitter, .. } = &self.0.config;
        let below = entry::service(prefix, service);
        let (range, jitter, client) = (Range::prefix(below.as_str()), jitter.0, self.0.client.clone());
        let (state, known) = watch::channel(State::default());
        let (over, mut is_over) = watch::channel(());
        let new = Arc::new(Followed { service: service.to_owned(), state: known, _over: over });
        let view = Instances {
            client: client.clone(),
            service: service.to_owned(),
            below,
            was_known: false,
            state,
            refused: 0,
        };
        self.0.client.tasks().spawn(async move {
            let mut view = view;
            tokio::select! {
                _ = is_over.changed() => {}
                () = follow(&client, range, jitter, LIST_EVERY, &mut view) => {}
            }
        });
        followed.insert(service.to_owned(), new.clone());
        new
    }

    /// Waits until a watcher of this process would return the state of `service` at `revision`.
    async fn seen_by_watchers(&self, service: &str, revision: i64) {
        let followed = self.followed().get(service).cloned();
        let Some(followed) = followed else { return };
        let mut state = followed.state.clone();
        let _ = timeout(OWN_WATCHERS, state.wait_for(|state| state.revision >= revision)).await;
    }

    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn followed(&self) -> MutexGuard<'_, HashMap<String, Arc<Followed>>> {
        self.0.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Registry for EtcdRegistry {
    fn name(&self) -> &str {
        "etcd"
    }

    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        check(&instance)?;
        let Inner { config, client, .. } = &*self.0;
        let entry = Entry {
            key: entry::key(&config.prefix, &instance.service, &instance.id),
            value: entry::write(&instance),
            ttl: config.lease.get(),
            jitter: config.jitter.0,
        };
        let lease = Lease::begin(client, entry).await.map_err(|status| error(client, &status))?;
        let Instance { service, id, .. } = instance;
        Ok(Box::new(Registered { registry: self.clone(), service, id, lease }))
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let followed = self.follow(service);
        let state = followed.state.clone();
        Ok(Box::new(ServiceWatcher { followed, registry: self.clone(), state, answered: None }))
    }

    async fn services(&self) -> Vec<String> {
        let below = entry::services(&self.0.config.prefix);
        let mut range = Range::prefix(below.as_str());
        let (mut names, mut revision) = (BTreeMap::new(), 0);
        loop {
            // An incomplete list would be worse than none.
            let Ok(page) = self.0.client.page(&range, NAMES, revision, true).await else { return Vec::new() };
            revision = page.revision;
            for entry in &page.all {
                if let Some(name) = entry::service_of(&entry.key, &below) {
                    names.insert(name, ());
                }
            }
            match page.all.last().filter(|_| page.more) {
                Some(last) => range = range.after(&last.key),
                None => return names.into_keys().collect(),
            }
        }
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

/// Whether `instance` can be registered.
fn check(instance: &Instance) -> Result<(), RegistryError> {
    if instance.service.is_empty() {
        let message = format!("instance `{}` doesn't say which service it belongs to", instance.id);
        return Err(RegistryError::new(message));
    }
    instance.check()
}

/// The error of a failed call to etcd. It never contains a password or a token.
fn error(client: &Client, status: &Status) -> RegistryError {
    RegistryError::new(crate::why(client, status))
}

// === impl Registered ===

#[async_trait]
impl Registration for Registered {
    async fn update(&mut self, instance: Instance) -> Result<(), RegistryError> {
        if (&instance.service, &instance.id) != (&self.service, &self.id) {
            return Err(RegistryError::new("an update keeps the service and the id"));
        }
        check(&instance)?;
        let updated = self.lease.update(entry::write(&instance)).await;
        updated.map_err(|status| error(&self.registry.0.client, &status))
    }

    async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
        let Registered { registry, service, lease, .. } = *self;
        let deleted = lease.end().await.map_err(|status| error(&registry.0.client, &status))?;
        if let Some(revision) = deleted {
            registry.seen_by_watchers(&service, revision).await;
        }
        Ok(())
    }
}

// === impl ServiceWatcher ===

#[async_trait]
impl Watcher for ServiceWatcher {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        loop {
            {
                let state = self.state.borrow_and_update();
                if let Some(known) = state.known.as_ref().filter(|_| self.answered != Some(state.number)) {
                    self.answered = Some(state.number);
                    return Ok(known.clone());
                }
                let untold = |trouble: &&Arc<Trouble>| !trouble.is_told.swap(true, Ordering::Relaxed);
                if let Some(trouble) = state.trouble.as_ref().filter(untold) {
                    return Err(RegistryError::new(trouble.why.clone()));
                }
            }
            if self.state.changed().await.is_err() {
                return Err(RegistryError::new("the process ends"));
            }
        }
    }
}

impl Drop for ServiceWatcher {
    fn drop(&mut self) {
        let (registry, followed) = (Arc::downgrade(&self.registry.0), Arc::downgrade(&self.followed));
        self.registry.0.client.tasks().spawn(async move {
            sleep(LINGER).await;
            let (Some(registry), Some(followed)) = (registry.upgrade(), followed.upgrade()) else { return };
            let mut all = registry.followed.lock().unwrap_or_else(PoisonError::into_inner);
            // The reference of the table, and this one.
            if Arc::strong_count(&followed) == 2 {
                all.remove(&followed.service);
            }
        });
    }
}

// === impl Instances ===

impl View for Instances {
    /// `None` if it was refused.
    type Entry = Option<Arc<Instance>>;

    fn read(&mut self, entry: &proto::KeyValue) -> Self::Entry {
        let id = entry.key.get(self.below.len()..).unwrap_or_default();
        match entry::read(&entry.value, &self.service, id) {
            Ok(instance) => Some(Arc::new(instance)),
            Err(why) => {
                self.refused += 1;
                let (key, revision) = (String::from_utf8_lossy(&entry.key), entry.mod_revision);
                if self.refused <= MAX_WARNINGS {
                    tracing::warn!(target: "chassis", key = %key.escape_debug(), revision, %why, "instance refused");
                } else {
                    tracing::debug!(target: "chassis", key = %key.escape_debug(), revision, %why, "instance refused");
                }
                None
            }
        }
    }

    fn show(&mut self, all: &Entries<Self::Entry>, revision: i64) {
        let instances: Vec<_> = all.values().filter_map(|(_, instance)| instance.clone()).collect();
        self.was_known |= !all.is_empty();
        let known = match self.was_known {
            true => Membership::Known(instances),
            false => Membership::Unknown,
        };
        self.state.send_modify(|state| {
            *state = State { known: Some(known), revision, number: state.number + 1, trouble: None };
        });
    }

    fn fail(&mut self, why: &Status) {
        let why = crate::why(&self.client, why);
        let trouble = Some(Arc::new(Trouble { why, is_told: AtomicBool::new(false) }));
        self.state.send_modify(|state| state.trouble = trouble);
    }
}

// === impl EtcdKind ===

impl Kind for EtcdKind {
    type Config = EtcdConfig;
    type Made = Arc<dyn Registry>;

    fn name(&self) -> &str {
        "etcd"
    }

    fn check(&self, config: &EtcdConfig) -> Vec<Problem> {
        config.check()
    }

    fn make(&self, config: &EtcdConfig) -> Result<Arc<dyn Registry>, BoxError> {
        Ok(Arc::new(EtcdRegistry::new(config.clone())?))
    }
}
