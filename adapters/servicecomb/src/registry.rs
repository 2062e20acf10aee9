//! The registry: an entry for each instance, and a follower for each service that is called.
use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use chassis_core::{
    BoxError, Kind,
    adapter::{Feed, Followers, Owned},
    contracts::Contracts,
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
    settings::Problem,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    client::{Answer, Client, Failure, Query},
    contracts::ServiceCombContracts,
    entry::{self, Definition, Listed, ServiceKey},
    follow::{Finder, View, follow},
    link::{Link, Topic},
    owner::Own,
    settings::{CONSUMER, ServiceCombConfig},
};

/// Instances in a ServiceComb service center, where go-chassis and the Java chassis register theirs.
///
/// Clones share connections and what is followed. A process follows each service that it calls once, however many
/// clients it has. What is known stays when service center can't be reached; a watcher reports that once, as an error,
/// and goes on by itself when it is back.
///
/// ```no_run
/// use chassis_core::registry::{Instance, Registry};
/// use chassis_servicecomb::{ServiceCombConfig, ServiceCombRegistry};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let registry = ServiceCombRegistry::new(ServiceCombConfig::default())?;
/// let stock = Instance::new("stock", "stock-1").with_address("grpc", "10.0.0.7:50051");
/// let registration = registry.register(stock).await?;
/// registration.deregister().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ServiceCombRegistry(Arc<Inner>);

struct Inner {
    config: ServiceCombConfig,
    client: Client,
    link: Link,
    followers: Followers,
}

/// Makes instances of the entries of a service.
struct Instances {
    registry: ServiceCombRegistry,
    service: String,
    feed: Feed,
    /// The last instances, by id. An instance that has not changed is shared with the watchers of before.
    known: HashMap<String, Arc<Instance>>,
    /// The last refused entries, by their ids: each is logged once.
    refused: HashMap<String, String>,
    /// Counts what is shown.
    shown: u64,
}

/// The content of a list.
#[derive(Default)]
struct List {
    instances: Vec<(Instance, u64)>,
    refused: HashMap<String, String>,
}

#[derive(Deserialize)]
struct Instantiated<'a> {
    #[serde(borrow, default)]
    instances: Option<Vec<&'a RawValue>>,
}

struct Registered {
    registry: ServiceCombRegistry,
    service: String,
    id: String,
    own: Owned<Own>,
}

struct ServiceCombKind;

/// A longer list is read on a thread of its own.
const LARGE: usize = 128 << 10;
/// A longer entry is no instance: it would be kept in the memory of every process that calls the service.
const MAX_ENTRY: usize = 64 << 10;
/// So many refused entries of a service are named in the log each time.
const MAX_WARNINGS: usize = 10;
const NAME: &str = "servicecomb";
/// The service that service center registers itself.
const CENTER: &str = "SERVICECENTER";

// === impl ServiceCombRegistry ===

impl ServiceCombRegistry {
    /// The kind that settings choose by `registry: { kind: servicecomb }`.
    pub fn kind() -> impl Kind<Config = ServiceCombConfig, Made = Arc<dyn Registry>> {
        ServiceCombKind
    }

    /// Connects with its first use.
    ///
    /// # Errors
    /// The first problem in `config`.
    pub fn new(config: ServiceCombConfig) -> Result<Self, BoxError> {
        if let [problem, ..] = &config.check()[..] {
            return Err(problem.to_string().into());
        }
        let client = Client::new(config.connection()?)?;
        let consumer = ServiceKey::new(&config, config.consumer.clone(), "");
        let link = Link::new(consumer, config.jitter.0, config.watch);
        Ok(ServiceCombRegistry(Arc::new(Inner { config, client, link, followers: Followers::default() })))
    }

    /// The pushes, from the first use on.
    fn link(&self) -> Link {
        self.0.link.begin(&self.0.client);
        self.0.link.clone()
    }

    /// The followers of this process do not wait for the push of its own change.
    fn wake(&self, service: &str) {
        if let Ok(name) = entry::name(service) {
            self.0.link.wake(&Topic::Service(name));
        }
    }
}

#[async_trait]
impl Registry for ServiceCombRegistry {
    fn name(&self) -> &str {
        NAME
    }

    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        check(&instance)?;
        let Inner { config, client, .. } = &*self.0;
        let definition = Definition::new(&instance, config)?;
        let own = Own::new(client.clone(), self.link(), config.clone(), definition);
        let own = Owned::begin(client.tasks(), instance.id.clone(), own).await?;
        self.wake(&instance.service);
        let (service, id) = (instance.service, instance.id);
        Ok(Box::new(Registered { registry: self.clone(), service, id, own }))
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let (name, link) = (entry::name(service)?, self.link());
        let Inner { config, client, followers, .. } = &*self.0;
        let begin = |feed| {
            let wake = link.listen(Topic::Service(name.clone()));
            let finder = Finder::new(client.clone(), link, config.clone(), name);
            let (registry, service) = (self.clone(), service.to_owned());
            let (known, refused, shown) = (HashMap::new(), HashMap::new(), 0);
            async move {
                let mut view = Instances { registry, service, feed, known, refused, shown };
                follow(finder, wake, &mut view).await;
            }
        };
        Ok(followers.watch(service, client.tasks(), begin))
    }

    async fn services(&self) -> Vec<String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Service {
            #[serde(default)]
            app_id: String,
            #[serde(default)]
            service_name: String,
            #[serde(default)]
            environment: String,
        }
        #[derive(Default, Deserialize)]
        struct Services {
            #[serde(default)]
            services: Option<Vec<Service>>,
        }
        let Inner { config, client, .. } = &*self.0;
        let Ok(answer) = client.send(&Query::get("/v4/{project}/registry/microservices")).await else {
            return Vec::new();
        };
        let services: Services = answer.read("list of services").unwrap_or_default();
        let all = services.services.unwrap_or_default().into_iter();
        let ours = all.filter(|service| {
            let is_there = (&service.app_id, &service.environment) == (&config.app, &config.environment);
            is_there && ![CENTER, CONSUMER].contains(&service.service_name.as_str())
        });
        let mut names: Vec<_> = ours.filter_map(|service| entry::service_of(&service.service_name)).collect();
        names.sort();
        names.dedup(); // there is one for each version
        names
    }

    fn contracts(&self) -> Option<Arc<dyn Contracts>> {
        let Inner { config, client, .. } = &*self.0;
        let contracts = || Arc::new(ServiceCombContracts::on(client, config)) as Arc<dyn Contracts>;
        config.contracts.then(contracts)
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
        self.own.update(Definition::new(&instance, &self.registry.0.config)?).await?;
        self.registry.wake(&self.service);
        Ok(())
    }

    async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
        let Registered { registry, service, id, own } = *self;
        own.end().await?;
        registry.wake(&service);
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
    async fn show(&mut self, list: Option<Answer>) -> Result<(), Failure> {
        let is_there = list.is_some();
        let list = match list {
            None => List::default(),
            Some(answer) => {
                let (service, body) = (self.service.clone(), answer.body);
                match body.len() > LARGE {
                    true => tokio::task::spawn_blocking(move || read(&body, &service))
                        .await
                        .map_err(|error| Failure::of(error.to_string()))?,
                    false => read(&body, &service),
                }?
            }
        };
        self.warn(list.refused);
        let mut found: HashMap<String, (Instance, u64)> = HashMap::new();
        for (instance, generation) in list.instances {
            // An entry that was replaced, or was left behind by a process that ended, is there for a while longer.
            if found.get(&instance.id).is_none_or(|(_, other)| generation > *other) {
                found.insert(instance.id.clone(), (instance, generation));
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
        self.shown += 1;
        self.feed.show(instances, is_there, self.shown);
        Ok(())
    }

    fn fail(&mut self, why: &Failure) {
        self.feed.fail(format!("{}: {why}", self.registry.0.client.name()));
    }
}

impl Instances {
    /// Says what was not refused before.
    fn warn(&mut self, refused: HashMap<String, String>) {
        let new = refused.iter().filter(|(entry, why)| self.refused.get(*entry) != Some(*why));
        for (n, (entry, why)) in new.enumerate() {
            if n < MAX_WARNINGS {
                tracing::warn!(target: "chassis", service = self.service, entry, why, "instance refused");
            } else {
                tracing::debug!(target: "chassis", service = self.service, entry, why, "instance refused");
            }
        }
        self.refused = refused;
    }
}

/// Reads a list. Entries that are no instances are refused one by one.
fn read(body: &Bytes, service: &str) -> Result<List, Failure> {
    let all: Instantiated<'_> = serde_json::from_slice(body)
        .map_err(|error| Failure::of(format!("its list is malformed: {error}")))?;
    let mut list = List::default();
    for (n, entry) in all.instances.unwrap_or_default().into_iter().enumerate() {
        let (place, read) = match serde_json::from_str::<Listed>(entry.get()) {
            Err(error) => (format!("the entry {n}"), Err(error.to_string())),
            Ok(listed) => {
                let place = listed.instance_id.escape_debug().to_string();
                let (length, most) = (entry.get().len(), MAX_ENTRY);
                let read = match length > most {
                    true => Err(format!("it has {length} bytes, {most} are allowed")),
                    false => listed.read(service).map_err(|error| error.to_string()),
                };
                (place, read)
            }
        };
        match read {
            Ok(read) => list.instances.push((read.instance, read.generation)),
            Err(why) => drop(list.refused.insert(place, why)),
        }
    }
    Ok(list)
}

// === impl ServiceCombKind ===

impl Kind for ServiceCombKind {
    type Config = ServiceCombConfig;
    type Made = Arc<dyn Registry>;

    fn name(&self) -> &str {
        NAME
    }

    #[cfg(feature = "schema")]
    fn schema(&self) -> chassis_core::schema::Value {
        chassis_core::schema::of::<ServiceCombConfig>()
    }

    fn check(&self, config: &ServiceCombConfig) -> Vec<Problem> {
        config.check()
    }

    fn make(&self, config: &ServiceCombConfig) -> Result<Arc<dyn Registry>, BoxError> {
        Ok(Arc::new(ServiceCombRegistry::new(config.clone())?))
    }
}
