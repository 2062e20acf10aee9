//! A registry of its own for single services.
use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use chassis_core::{
    contracts::Contracts,
    registry::{Instance, Registration, Registry, RegistryError, Watcher},
};

/// Looks some services up in registries of their own, and all others in the usual one.
///
/// This process is registered in the usual one. A registry that blocks its thread has to be
/// [contained](chassis_core::contain::registry) by the caller.
///
/// ```
/// use std::sync::Arc;
///
/// use chassis_core::registry::{Instance, Registry};
/// use chassis_registry::{MemoryRegistry, RegistryByService};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let (usual, partners) = (MemoryRegistry::new(), MemoryRegistry::new());
/// partners.put(Instance::new("billing", "a").with_address("http", "10.0.0.5:80"));
/// let registry = RegistryByService::new(Arc::new(usual)).service("billing", Arc::new(partners));
/// assert_eq!(registry.services().await, ["billing"]);
/// assert_eq!(registry.name(), "memory");
/// # }
/// ```
pub struct RegistryByService {
    usual: Arc<dyn Registry>,
    services: BTreeMap<String, Arc<dyn Registry>>,
}

// === impl RegistryByService ===

impl RegistryByService {
    /// All services are looked up in `usual`.
    pub fn new(usual: Arc<dyn Registry>) -> Self {
        RegistryByService { usual, services: BTreeMap::new() }
    }

    /// Looks `service` up in `registry`.
    pub fn service(mut self, service: impl Into<String>, registry: Arc<dyn Registry>) -> Self {
        self.services.insert(service.into(), registry);
        self
    }

    fn of(&self, service: &str) -> &Arc<dyn Registry> {
        self.services.get(service).unwrap_or(&self.usual)
    }
}

#[async_trait]
impl Registry for RegistryByService {
    /// The name of the usual registry, which this process is registered in.
    fn name(&self) -> &str {
        self.usual.name()
    }

    fn is_local(&self) -> bool {
        self.usual.is_local()
    }

    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        self.usual.register(instance).await
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        self.of(service).watch(service).await
    }

    /// Those of the usual registry, and those that have one of their own.
    async fn services(&self) -> Vec<String> {
        let mut names = self.usual.services().await;
        names.extend(self.services.keys().filter(|name| !names.contains(name)).cloned().collect::<Vec<_>>());
        names
    }

    fn lists_services(&self) -> bool {
        self.usual.lists_services()
    }

    fn looked_up_in(&self, service: &str) -> &str {
        self.of(service).looked_up_in(service)
    }

    /// Those of the usual registry.
    fn contracts(&self) -> Option<Arc<dyn Contracts>> {
        self.usual.contracts()
    }

    fn never_blocks(&self) -> bool {
        [&self.usual].into_iter().chain(self.services.values()).all(|registry| registry.never_blocks())
    }

    fn listed_by(&self, service: &str, id: &str) -> Option<String> {
        let registry = self.of(service);
        let own = || self.services.get(service).map(|registry| registry.name().to_owned());
        registry.listed_by(service, id).or_else(own)
    }
}
