//! The registry: an entry at each server for each instance, and a follower for each service that is called.
use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use chassis_core::{
    BoxError, Kind,
    adapter::Followers,
    contracts::Contracts,
    registry::{Instance, Registration, Registry, RegistryError, Watcher},
    settings::Problem,
};
use tokio::task::JoinSet;

use crate::{
    client::{Client, Failure},
    contracts::TtlContracts,
    follow::{Read, follow},
    lease::{Entry, Lease},
    settings::TtlConfig,
    wire::Register,
};

/// Instances at registry servers, each with a heartbeat.
///
/// Clones share connections and what is followed. A process follows each service that it calls once at each server, however
/// many clients it has. What is known stays when no server can be reached; a watcher reports that once, as an error, and goes
/// on by itself when one is back.
///
/// A registration replaces an entry of the same id, which a process that restarts may have left behind. If another process
/// replaces it, this one logs that, and puts its own up again when that one goes.
///
/// ```no_run
/// use chassis_core::registry::{Instance, Registry};
/// use chassis_ttl::{TtlConfig, TtlRegistry};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let registry = TtlRegistry::new(TtlConfig::at(["10.0.0.5:8500", "10.0.0.6:8500"]))?;
/// let stock = Instance::new("stock", "stock-1").with_address("grpc", "10.0.0.7:50051");
/// let registration = registry.register(stock).await?;
/// registration.deregister().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct TtlRegistry(Arc<Inner>);

struct Inner {
    config: TtlConfig,
    client: Client,
    /// With the revision up to which each server was read.
    followers: Followers<Read>,
}

struct Registered {
    registry: TtlRegistry,
    service: String,
    id: String,
    lease: Lease,
}

struct TtlKind;

// === impl TtlRegistry ===

impl TtlRegistry {
    /// The kind that settings choose by `registry: { kind: ttl }`.
    pub fn kind() -> impl Kind<Config = TtlConfig, Made = Arc<dyn Registry>> {
        TtlKind
    }

    /// Connects with its first use.
    ///
    /// # Errors
    /// The first problem in `config`.
    pub fn new(config: TtlConfig) -> Result<Self, BoxError> {
        if let [problem, ..] = &config.check()[..] {
            return Err(problem.to_string().into());
        }
        let client = Client::new(config.clone())?;
        Ok(TtlRegistry(Arc::new(Inner { config, client, followers: Followers::default() })))
    }

    /// The registration of `instance`, as it is sent.
    fn body(&self, instance: &Instance) -> Result<Bytes, RegistryError> {
        instance.check()?;
        let body = serde_json::to_vec(&Register { instance, ttl: Some(self.0.config.lease) });
        Ok(body.map_err(|error| RegistryError::new(error.to_string()))?.into())
    }
}

#[async_trait]
impl Registry for TtlRegistry {
    fn name(&self) -> &str {
        "ttl"
    }

    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        if instance.service.is_empty() {
            let message = format!("instance `{}` doesn't say which service it belongs to", instance.id);
            return Err(RegistryError::new(message));
        }
        let Inner { config, client, .. } = &*self.0;
        let body = self.body(&instance)?;
        let entry =
            Entry { id: instance.id.as_str().into(), ttl: config.lease.get(), jitter: config.jitter.0 };
        let lease = Lease::begin(client, &entry, body).await.map_err(error)?;
        let Instance { service, id, .. } = instance;
        Ok(Box::new(Registered { registry: self.clone(), service, id, lease }))
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let Inner { config, client, followers } = &*self.0;
        Ok(followers.watch(service, client.tasks(), |mut feed| {
            let (client, service, jitter) = (client.clone(), service.to_owned(), config.jitter.0);
            async move { follow(&client, &service, jitter, &mut feed).await }
        }))
    }

    async fn services(&self) -> Vec<String> {
        let mut asked = JoinSet::new();
        for server in 0..self.0.client.count() {
            let client = self.0.client.clone();
            asked.spawn(async move { client.names(server).await });
        }
        let names = asked.join_all().await.into_iter().flatten().flatten();
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn contracts(&self) -> Option<Arc<dyn Contracts>> {
        let contracts = || Arc::new(TtlContracts::on(&self.0.client)) as Arc<dyn Contracts>;
        self.0.config.contracts.then(contracts)
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

fn error(failure: Failure) -> RegistryError {
    RegistryError::new(failure.why)
}

// === impl Registered ===

#[async_trait]
impl Registration for Registered {
    async fn update(&mut self, instance: Instance) -> Result<(), RegistryError> {
        if (&instance.service, &instance.id) != (&self.service, &self.id) {
            return Err(RegistryError::new("an update keeps the service and the id"));
        }
        let body = self.registry.body(&instance)?;
        self.lease.update(body).await.map_err(error)
    }

    async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
        let Registered { registry, service, lease, .. } = *self;
        let revisions = lease.end().await.map_err(error)?;
        let is_seen = |_: &_, read: &Read| {
            revisions.iter().all(|(server, revision)| {
                let at = read.get(*server).copied().flatten();
                at.is_some_and(|at| at.history != revision.history || at.number >= revision.number)
            })
        };
        registry.0.followers.seen(&service, is_seen).await;
        Ok(())
    }
}

// === impl TtlKind ===

impl Kind for TtlKind {
    type Config = TtlConfig;
    type Made = Arc<dyn Registry>;

    fn name(&self) -> &str {
        "ttl"
    }

    #[cfg(feature = "schema")]
    fn schema(&self) -> chassis_core::schema::Value {
        chassis_core::schema::of::<TtlConfig>()
    }

    fn check(&self, config: &TtlConfig) -> Vec<Problem> {
        config.check()
    }

    fn make(&self, config: &TtlConfig) -> Result<Arc<dyn Registry>, BoxError> {
        Ok(Arc::new(TtlRegistry::new(config.clone())?))
    }
}
