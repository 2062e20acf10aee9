//! The registry: an entry for each instance, and a follower for each service that is called.
use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use chassis_core::{
    BoxError, Kind,
    adapter::{Feed, Followers, Owned, Pace},
    registry::{Instance, Registration, Registry, RegistryError, Watcher},
    settings::Problem,
};
use tonic::Status;

use crate::{
    client::{Client, Range},
    entry,
    follow::{Entries, View, follow},
    lease::Own,
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
    /// With etcd's revisions.
    followers: Followers<i64>,
}

/// Converts the entries of a service to instances.
struct Instances {
    client: Client,
    service: String,
    below: String,
    feed: Feed<i64>,
    refused: u64,
}

struct Registered {
    registry: EtcdRegistry,
    service: String,
    id: String,
    own: Owned<Own>,
}

struct EtcdKind;

/// The interval of complete lists, in case a change was lost.
const LIST_EVERY: Duration = Duration::from_secs(300);
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
        Ok(EtcdRegistry(Arc::new(Inner { config, client, followers: Followers::default() })))
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
        let key = entry::key(&config.prefix, &instance.service, &instance.id);
        let value = entry::write(&instance);
        let own = Own::new(client.clone(), key.clone(), value, config.lease.get(), config.jitter.0);
        let own = Owned::begin(client.tasks(), key, own).await?;
        let Instance { service, id, .. } = instance;
        Ok(Box::new(Registered { registry: self.clone(), service, id, own }))
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let Inner { config, client, followers } = &*self.0;
        Ok(followers.watch(service, client.tasks(), |feed| {
            let (below, service) = (entry::service(&config.prefix, service), service.to_owned());
            let (range, jitter) = (Range::prefix(below.as_str()), config.jitter.0);
            let (client, of) = (client.clone(), client.clone());
            async move {
                let mut view = Instances { client, service, below, feed, refused: 0 };
                follow(&of, range, Pace::new(jitter), LIST_EVERY, &mut view).await;
            }
        }))
    }

    async fn services(&self) -> Vec<String> {
        let below = entry::services(&self.0.config.prefix);
        let mut range = Range::prefix(below.as_str());
        let (mut names, mut revision) = (BTreeSet::new(), 0);
        loop {
            // An incomplete list would be worse than none.
            let Ok(page) = self.0.client.page(&range, NAMES, revision, true).await else { return Vec::new() };
            revision = page.revision;
            for entry in &page.all {
                if let Some(name) = entry::service_of(&entry.key, &below) {
                    names.insert(name);
                }
            }
            match page.all.last().filter(|_| page.more) {
                Some(last) => range = range.after(&last.key),
                None => return names.into_iter().collect(),
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

// === impl Registered ===

#[async_trait]
impl Registration for Registered {
    async fn update(&mut self, instance: Instance) -> Result<(), RegistryError> {
        if (&instance.service, &instance.id) != (&self.service, &self.id) {
            return Err(RegistryError::new("an update keeps the service and the id"));
        }
        check(&instance)?;
        self.own.update(entry::write(&instance)).await
    }

    async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
        let Registered { registry, service, own, .. } = *self;
        if let Some(deleted) = own.end().await?.flatten() {
            registry.0.followers.seen(&service, |_, revision| *revision >= deleted).await;
        }
        Ok(())
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
        self.feed.show(instances, !all.is_empty(), revision);
    }

    fn fail(&mut self, why: &Status) {
        self.feed.fail(crate::why(&self.client, why));
    }
}

// === impl EtcdKind ===

impl Kind for EtcdKind {
    type Config = EtcdConfig;
    type Made = Arc<dyn Registry>;

    fn name(&self) -> &str {
        "etcd"
    }

    #[cfg(feature = "schema")]
    fn schema(&self) -> chassis_core::schema::Value {
        chassis_core::schema::of::<EtcdConfig>()
    }

    fn check(&self, config: &EtcdConfig) -> Vec<Problem> {
        config.check()
    }

    fn make(&self, config: &EtcdConfig) -> Result<Arc<dyn Registry>, BoxError> {
        Ok(Arc::new(EtcdRegistry::new(config.clone())?))
    }
}
