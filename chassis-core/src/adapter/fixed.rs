//! A registry of one server, for the client that reaches it.
use std::sync::Arc;

use async_trait::async_trait;

use crate::plugin::registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher};

/// Every service is at these addresses: for a runtime whose only calls go to one server, or to the members of it.
pub struct FixedAddresses {
    name: &'static str,
    instances: Vec<Arc<Instance>>,
}

struct Once(Option<Vec<Arc<Instance>>>);

// === impl FixedAddresses ===

impl FixedAddresses {
    /// The server `name`, reached by `protocol` at `addresses`.
    pub fn new<'a>(
        name: &'static str,
        protocol: &str,
        addresses: impl IntoIterator<Item = &'a String>,
    ) -> Self {
        let instance = |address: &String| {
            Arc::new(Instance::new("", address.as_str()).with_address(protocol, address.as_str()))
        };
        FixedAddresses { name, instances: addresses.into_iter().map(instance).collect() }
    }
}

#[async_trait]
impl Registry for FixedAddresses {
    fn name(&self) -> &str {
        self.name
    }

    async fn register(&self, _: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        Err(RegistryError::unsupported("the addresses stand in the settings"))
    }

    async fn watch(&self, _: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        Ok(Box::new(Once(Some(self.instances.clone()))))
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

#[async_trait]
impl Watcher for Once {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        match self.0.take() {
            Some(all) => Ok(Membership::Known(all)),
            None => std::future::pending().await,
        }
    }
}
