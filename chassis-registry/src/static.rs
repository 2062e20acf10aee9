//! Instances named in the configuration, for services with fixed addresses.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;
use chassis_core::{
    BoxError,
    kind::Kind,
    registry::{Instance, Membership, Registration, Registry, RegistryError, Status, Watcher},
    settings::Problem,
};
use serde::Deserialize;

use crate::store::MembershipStore;

/// The instances that run: the `registry` table when its `kind` is `static`.
///
/// ```yaml
/// registry:
///   kind: static
///   services:
///     stock:
///       - { id: a, addresses: { grpc: 127.0.0.1:50051 }, labels: { track: stable } }
///       - { addresses: { grpc: 127.0.0.1:50052 }, weight: 2 }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct StaticConfig {
    /// The instances of each service. Default none. A service with an empty list has no instances; a service
    /// that is not listed is unknown.
    pub services: BTreeMap<String, Vec<StaticInstance>>,
}

/// One instance of a service in a [`StaticConfig`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct StaticInstance {
    /// Id in messages and metrics, unique within the service. Default: its first address, in the order of the
    /// protocols' names.
    pub id: Option<String>,
    /// Address by the name of the listener: `grpc: 10.0.0.5:50051`, `http: unix:/run/stock.sock`. At least one.
    pub addresses: BTreeMap<String, String>,
    /// Version that runs there. Default: not stated.
    pub version: String,
    /// Zone where it runs. Default: not stated.
    pub zone: String,
    /// Region, which has several zones. Default: not stated.
    pub region: String,
    /// Host where it runs. Default: not stated.
    pub hostname: String,
    /// Application that the service is a part of. Default: not stated.
    pub app: String,
    /// Environment; callers of another one do not call it. Default: not stated, so callers of every one do.
    pub environment: String,
    /// Rank among the instances of the service: smaller numbers come first. Default 0.
    pub priority: u32,
    /// Does it take calls? `out_of_service`, `starting` or `down` has it take no new ones. Default `up`.
    pub status: Status,
    /// Share of the calls relative to others. Default 1; 0 takes no new calls.
    pub weight: Option<u32>,
    /// Labels that routes can match. Default none.
    pub labels: BTreeMap<String, String>,
}

/// Reports the instances of the configuration; every watcher receives a new configuration.
///
/// Registering is accepted and changes nothing: the addresses of this process are written in the
/// configuration of its callers.
///
/// A service that a new configuration no longer names counts as deleted on purpose: `Deleted`.
///
/// ```
/// use chassis_registry::{StaticConfig, StaticInstance, StaticRegistry};
///
/// let addresses = [("grpc".to_string(), "127.0.0.1:50051".to_string())].into();
/// let stock = StaticInstance { addresses, ..Default::default() };
/// let config = StaticConfig { services: [("stock".to_string(), vec![stock])].into() };
/// let registry = StaticRegistry::new(config)?;
/// registry.set(StaticConfig::default())?; // later
/// # Ok::<_, chassis_core::registry::RegistryError>(())
/// ```
#[derive(Clone, Default)]
pub struct StaticRegistry {
    store: Arc<MembershipStore>,
}

/// The kind `static`. Its instances can change while the process runs, so it keeps the registry it makes.
struct StaticKind(StaticRegistry);

// === impl StaticConfig ===

impl StaticConfig {
    /// The instances by service, or the first error: an invalid address, a duplicate id. The message names
    /// the place: `services.stock[1]`.
    pub fn instances(&self) -> Result<BTreeMap<String, Vec<Instance>>, RegistryError> {
        self.resolve().map_err(|problems| {
            let first = problems.first().map(ToString::to_string);
            RegistryError::new(first.unwrap_or_default())
        })
    }

    /// The instances by service, or all errors.
    fn resolve(&self) -> Result<BTreeMap<String, Vec<Instance>>, Vec<Problem>> {
        let mut problems = Vec::new();
        let resolved = self
            .services
            .iter()
            .map(|(service, all)| (service.clone(), resolve(service, all, &mut problems)));
        let resolved = resolved.collect();
        if problems.is_empty() { Ok(resolved) } else { Err(problems) }
    }
}

fn resolve(service: &str, all: &[StaticInstance], problems: &mut Vec<Problem>) -> Vec<Instance> {
    let mut ids = BTreeSet::new();
    let mut instances = Vec::with_capacity(all.len());
    for (at, written) in all.iter().enumerate() {
        let instance = written.resolve(service);
        let why = if instance.addresses.is_empty() {
            Some("no address; write addresses: { grpc: host:port }".to_owned())
        } else if let Err(why) = crate::check(&instance) {
            Some(why.to_string())
        } else if !ids.insert(instance.id.clone()) {
            Some(format!("another instance has the id `{}`", instance.id))
        } else {
            None
        };
        match why {
            Some(why) => problems.push(Problem::new(format!("services.{service}[{at}]"), why)),
            None => instances.push(instance),
        }
    }
    instances
}

// === impl StaticInstance ===

impl StaticInstance {
    fn resolve(&self, service: &str) -> Instance {
        let first = || self.addresses.values().next().cloned();
        let mut instance = Instance::new(service, self.id.clone().or_else(first).unwrap_or_default())
            .with_version(&self.version)
            .with_zone(&self.zone)
            .with_region(&*self.region)
            .with_hostname(&*self.hostname)
            .with_app(&*self.app)
            .with_environment(&*self.environment)
            .with_weight(self.weight.unwrap_or(1))
            .with_priority(self.priority)
            .with_status(self.status.clone());
        instance.addresses = self.addresses.clone().into();
        instance.labels = self.labels.clone().into();
        instance
    }
}

// === impl StaticRegistry ===

impl StaticRegistry {
    /// The kind that settings choose by `registry: { kind: static }`. `services` can change while the process runs.
    pub fn kind() -> impl Kind<Config = StaticConfig, Made = Arc<dyn Registry>> {
        StaticKind(StaticRegistry::default())
    }

    /// Creates a registry with the instances of `config`, or returns the errors in it.
    pub fn new(config: StaticConfig) -> Result<Self, RegistryError> {
        let registry = StaticRegistry::default();
        registry.set(config)?;
        Ok(registry)
    }

    /// Replaces the configuration; an invalid one changes nothing.
    pub fn set(&self, config: StaticConfig) -> Result<(), RegistryError> {
        let mut instances = config.instances()?;
        for gone in self.store.services().into_iter().filter(|service| !instances.contains_key(service)) {
            self.store.set(&gone, Membership::Deleted);
        }
        while let Some((service, all)) = instances.pop_first() {
            self.store.set(&service, Membership::known(all));
        }
        Ok(())
    }
}

#[async_trait]
impl Registry for StaticRegistry {
    fn name(&self) -> &str {
        "static"
    }

    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        crate::noop::register(&instance, self.name())
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        Ok(self.store.follow(service))
    }

    async fn services(&self) -> Vec<String> {
        self.store.services()
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

// === impl StaticKind ===

impl Kind for StaticKind {
    type Config = StaticConfig;
    type Made = Arc<dyn Registry>;

    fn name(&self) -> &str {
        "static"
    }

    #[cfg(feature = "schema")]
    fn schema(&self) -> chassis_core::schema::Value {
        chassis_core::schema::of::<StaticConfig>()
    }

    fn check(&self, config: &StaticConfig) -> Vec<Problem> {
        config.resolve().err().unwrap_or_default()
    }

    fn make(&self, config: &StaticConfig) -> Result<Arc<dyn Registry>, BoxError> {
        self.change(config)?;
        Ok(Arc::new(self.0.clone()))
    }

    fn make_fixed(&self, config: &StaticConfig) -> Result<Arc<dyn Registry>, BoxError> {
        Ok(Arc::new(StaticRegistry::new(config.clone())?))
    }

    fn live(&self) -> &[&str] {
        &["services"]
    }

    fn change(&self, config: &StaticConfig) -> Result<(), BoxError> {
        Ok(self.0.set(config.clone())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> StaticConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn ids_default_to_the_first_address() {
        let config =
            config(r#"{"services": {"stock": [{"addresses": {"http": "h:80", "grpc": "h:50051"}}]}}"#);
        let stock =
            Instance::new("stock", "h:50051").with_address("grpc", "h:50051").with_address("http", "h:80");
        assert_eq!(config.instances().unwrap()["stock"], [stock]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_place() {
        let check = |json: &str, expected: &str| {
            let refused = config(json).instances().unwrap_err();
            assert_eq!(refused.to_string(), expected);
        };
        check(
            r#"{"services": {"stock": [{"addresses": {"grpc": "h:1"}}, {"id": "b", "addresses": {"grpc": "h:0"}}]}}"#,
            "services.stock[1]: instance `b`, grpc `h:0`: port 0 can't be connected to",
        );
        check(
            r#"{"services": {"stock": [{"addresses": {"grpc": "h:1"}}, {"addresses": {"grpc": "h:1"}}]}}"#,
            "services.stock[1]: another instance has the id `h:1`",
        );
        check(
            r#"{"services": {"stock": [{}]}}"#,
            "services.stock[0]: no address; write addresses: { grpc: host:port }",
        );
        for unknown in [r#"{"service": {}}"#, r#"{"services": {"stock": [{"adresses": {}}]}}"#] {
            assert!(serde_json::from_str::<StaticConfig>(unknown).is_err(), "{unknown}");
        }
    }

    #[tokio::test]
    async fn a_new_configuration_is_reported_and_an_invalid_one_changes_nothing() {
        let one = r#"{"services": {"stock": [{"id": "a", "addresses": {"grpc": "h:1"}}], "other": []}}"#;
        let registry = StaticRegistry::new(config(one)).unwrap();
        let mut watcher = registry.watch("stock").await.unwrap();
        let a = Instance::new("stock", "a").with_address("grpc", "h:1");
        assert_eq!(watcher.next().await.unwrap(), Membership::known([a.clone()]));

        let bad = r#"{"services": {"stock": [], "other": [{"id": "x"}]}}"#;
        assert!(registry.set(config(bad)).is_err());
        let two = r#"{"services": {"stock": [{"id": "a", "addresses": {"grpc": "h:1"}, "weight": 0}]}}"#;
        registry.set(config(two)).unwrap();
        assert_eq!(watcher.next().await.unwrap(), Membership::known([a.with_weight(0)]));
        assert_eq!(registry.services().await, ["stock"]);
        registry.set(StaticConfig::default()).unwrap();
        assert_eq!(watcher.next().await.unwrap(), Membership::Deleted);
    }

    #[tokio::test]
    async fn registering_is_accepted_and_changes_nothing() {
        let registry = StaticRegistry::default();
        let mut watcher = registry.watch("stock").await.unwrap();
        assert_eq!(watcher.next().await.unwrap(), Membership::Unknown);
        let here = Instance::new("stock", "a").with_address("grpc", "127.0.0.1:50051");
        let registration = registry.register(here).await.unwrap();
        assert!(registry.services().await.is_empty());
        registration.deregister().await.unwrap();
    }
}
