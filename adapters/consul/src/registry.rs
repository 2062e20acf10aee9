//! The registry: an entry on the agent for each instance, and a follower for each service that is called.
use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use chassis_core::{
    BoxError, Kind,
    adapter::{Feed, Followers, Owned},
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
    settings::Problem,
};
use serde_json::value::RawValue;

use crate::{
    client::{After, Answer, Client, Failure, Query},
    entry::{self, Definition, Listed},
    follow::{View, follow},
    owner::Own,
    settings::{Check, ConsulConfig, Warning},
};

/// Instances in Consul, each as a service of the agent that its process registers with.
///
/// Clones share connections and what is followed. A process follows each service that it calls once, however many
/// clients it has. What is known stays when Consul can't be reached, and when it hides its entries from the token; a
/// watcher reports that once, as an error, and goes on by itself when Consul is back.
///
/// A registration replaces an entry of the same id on the same agent, which a process that restarts may have left
/// behind. If another process replaces it, this one logs that, and puts its own up again when that one goes.
///
/// ```no_run
/// use chassis_consul::{ConsulConfig, ConsulRegistry};
/// use chassis_core::registry::{Instance, Registry};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let registry = ConsulRegistry::new(ConsulConfig::default())?;
/// let stock = Instance::new("stock", "stock-1").with_address("grpc", "10.0.0.7:50051");
/// let registration = registry.register(stock).await?;
/// registration.deregister().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ConsulRegistry(Arc<Inner>);

struct Inner {
    config: ConsulConfig,
    client: Client,
    followers: Followers,
}

/// Makes instances of the entries of a service.
struct Instances {
    client: Client,
    config: ConsulConfig,
    service: String,
    feed: Feed,
    /// The last instances, by id. An instance that has not changed is shared with the watchers of before.
    known: HashMap<String, Arc<Instance>>,
    /// The last refused entries, by their places: each is logged once.
    refused: HashMap<String, String>,
}

/// The content of a list.
#[derive(Default)]
struct List {
    /// How many entries there are, also such that are not to be called.
    entries: usize,
    instances: Vec<(Instance, u64)>,
    refused: HashMap<String, String>,
}

struct Registered {
    registry: ConsulRegistry,
    service: String,
    id: String,
    owner: String,
    own: Owned<Own>,
}

struct ConsulKind;

/// A longer list is read on a thread of its own.
const LARGE: usize = 128 << 10;
/// A longer entry is no instance: it would be kept in the memory of every process that calls the service.
const MAX_ENTRY: usize = 64 << 10;
/// So many refused entries of a service are named in the log each time.
const MAX_WARNINGS: usize = 10;
/// The service that the servers of Consul register themselves.
const CONSUL: &str = "consul";

// === impl ConsulRegistry ===

impl ConsulRegistry {
    /// The kind that settings choose by `registry: { kind: consul }`.
    pub fn kind() -> impl Kind<Config = ConsulConfig, Made = Arc<dyn Registry>> {
        ConsulKind
    }

    /// Connects with its first use.
    ///
    /// # Errors
    /// The first problem in `config`.
    pub fn new(config: ConsulConfig) -> Result<Self, BoxError> {
        if let [problem, ..] = &config.check()[..] {
            return Err(problem.to_string().into());
        }
        let client = Client::new(config.connection())?;
        Ok(ConsulRegistry(Arc::new(Inner { config, client, followers: Followers::default() })))
    }
}

#[async_trait]
impl Registry for ConsulRegistry {
    fn name(&self) -> &str {
        CONSUL
    }

    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        check(&instance)?;
        let Inner { config, client, .. } = &*self.0;
        let owner = format!("{:016x}", client.random().next_u64());
        let definition = Definition::new(&instance, &owner, config)?;
        let ttl = match &config.check {
            Check::Ttl(ttl) => Some(ttl.get()),
            _ => None,
        };
        let name = definition.id.clone();
        let own = Own::new(client.clone(), definition, owner.clone(), ttl, config.jitter.0);
        let own = Owned::begin(client.tasks(), name, own).await?;
        let (service, id) = (instance.service, instance.id);
        Ok(Box::new(Registered { registry: self.clone(), service, id, owner, own }))
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let Inner { config, client, followers } = &*self.0;
        let begin = |feed| {
            let mut query = Query::read("/v1/health/service/{service}", "service", entry::name(service));
            if config.warning == Warning::Skip {
                query = query.with("passing", "true");
            }
            let (client, config, service) = (client.clone(), config.clone(), service.to_owned());
            async move {
                let (of, jitter, known, refused) =
                    (client.clone(), config.jitter.0, HashMap::new(), HashMap::new());
                let mut view = Instances { client, config, service, feed, known, refused };
                follow(&of, &query, jitter, &mut view).await;
            }
        };
        Ok(followers.watch(service, client.tasks(), begin))
    }

    async fn services(&self) -> Vec<String> {
        let query = Query::read("/v1/catalog/services", "", "");
        let Ok(answer) = self.0.client.get(&query, &After::Nothing).await else { return Vec::new() };
        let names: HashMap<String, serde::de::IgnoredAny> =
            serde_json::from_slice(&answer.body).unwrap_or_default();
        let names = names.into_keys().filter(|name| name != CONSUL);
        names.filter_map(|name| entry::service_of(&name)).collect()
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
        let definition = Definition::new(&instance, &self.owner, &self.registry.0.config)?;
        self.own.update(definition).await
    }

    async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
        let Registered { registry, service, id, own, .. } = *self;
        own.end().await?;
        let is_gone = |known: &Membership, _: &u64| match known {
            Membership::Known(all) => all.iter().all(|instance| instance.id != id),
            Membership::Unknown | Membership::Deleted => true,
        };
        registry.0.followers.seen(&service, is_gone).await;
        Ok(())
    }
}

// === impl Instances ===

impl View for Instances {
    async fn show(&mut self, answer: Answer) -> Result<(), Failure> {
        if !answer.is_there {
            return Err(Failure::of("it has no health API".to_owned()));
        }
        let (service, config) = (self.service.clone(), self.config.clone());
        let (body, index) = (answer.body.clone(), answer.index.unwrap_or(0));
        let read = move || read(&body, &service, &config);
        let list = match answer.body.len() > LARGE {
            true => {
                tokio::task::spawn_blocking(read).await.map_err(|error| Failure::of(error.to_string()))?
            }
            false => read(),
        }?;
        if list.entries == 0 {
            self.is_empty(&answer).await?;
        }
        self.warn(list.refused);
        let mut found: HashMap<String, (Instance, u64)> = HashMap::new();
        for (instance, modified) in list.instances {
            // An instance that has moved to another agent, and the entry that it left behind.
            if found.get(&instance.id).is_none_or(|(_, other)| modified > *other) {
                found.insert(instance.id.clone(), (instance, modified));
            }
        }
        let mut before = std::mem::take(&mut self.known);
        self.known = found
            .into_iter()
            .map(|(id, (instance, _))| {
                let same = before.remove(&id).filter(|before| **before == instance);
                (id, same.unwrap_or_else(|| Arc::new(instance)))
            })
            .collect();
        let mut instances: Vec<_> = self.known.values().cloned().collect();
        instances.sort_by(|a, b| a.id.cmp(&b.id));
        self.feed.show(instances, list.entries > 0, index);
        Ok(())
    }

    fn fail(&mut self, why: &Failure) {
        self.feed.fail(format!("{}: {why}", self.client.name()));
    }
}

impl Instances {
    /// Is there really no entry? Without the right to read them Consul answers with an empty list.
    async fn is_empty(&self, answer: &Answer) -> Result<(), Failure> {
        let hidden = || {
            let token = match answer.has_token {
                true => "the token may not read it",
                false => "no token is set, and without one nothing may be read",
            };
            Failure::of(format!("it hides the instances of `{}`: {token}", self.service))
        };
        if answer.is_filtered {
            return Err(hidden());
        }
        // Of a request without a token it does not say whether it has left out something.
        if answer.is_guarded && !answer.has_token {
            let may_read = self.client.may_read(&entry::name(&self.service)).await?;
            return if may_read { Ok(()) } else { Err(hidden()) };
        }
        Ok(())
    }

    /// Says what was not refused before.
    fn warn(&mut self, refused: HashMap<String, String>) {
        let new = refused.iter().filter(|(place, why)| self.refused.get(*place) != Some(*why));
        for (n, (place, why)) in new.enumerate() {
            if n < MAX_WARNINGS {
                tracing::warn!(target: "chassis", service = self.service, entry = place, why, "instance refused");
            } else {
                tracing::debug!(target: "chassis", service = self.service, entry = place, why, "instance refused");
            }
        }
        self.refused = refused;
    }
}

/// Reads a list of the health API. Entries that are no instances are refused one by one.
fn read(body: &Bytes, service: &str, config: &ConsulConfig) -> Result<List, Failure> {
    let entries: Vec<&RawValue> = serde_json::from_slice(body)
        .map_err(|error| Failure::of(format!("its list is malformed: {error}")))?;
    let mut list = List { entries: entries.len(), ..List::default() };
    for (n, entry) in entries.into_iter().enumerate() {
        let (place, read) = match serde_json::from_str::<Listed>(entry.get()) {
            Err(error) => (format!("the entry {n}"), Err(error.to_string())),
            Ok(listed) => {
                let place = listed.place();
                let (length, most) = (entry.get().len(), MAX_ENTRY);
                let read = match length > most {
                    true => Err(format!("it has {length} bytes, {most} are allowed")),
                    false => listed.read(service, config).map_err(|error| error.to_string()),
                };
                (place, read)
            }
        };
        match read {
            Ok(read) => list.instances.extend(read.map(|read| (read.instance, read.modified))),
            Err(why) => drop(list.refused.insert(place, why)),
        }
    }
    Ok(list)
}

// === impl ConsulKind ===

impl Kind for ConsulKind {
    type Config = ConsulConfig;
    type Made = Arc<dyn Registry>;

    fn name(&self) -> &str {
        CONSUL
    }

    #[cfg(feature = "schema")]
    fn schema(&self) -> chassis_core::schema::Value {
        chassis_core::schema::of::<ConsulConfig>()
    }

    fn check(&self, config: &ConsulConfig) -> Vec<Problem> {
        config.check()
    }

    fn make(&self, config: &ConsulConfig) -> Result<Arc<dyn Registry>, BoxError> {
        Ok(Arc::new(ConsulRegistry::new(config.clone())?))
    }
}
