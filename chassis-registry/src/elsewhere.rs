//! Registering where instances are written by somebody else.
use async_trait::async_trait;
use chassis_core::registry::{Instance, Registration, RegistryError};

/// Stands for an entry that is not ours to put up or take down.
struct Elsewhere;

/// Accepts `instance` and does nothing: a service must start, whoever tells others where it runs.
pub(crate) fn register(instance: &Instance, registry: &str) -> Result<Box<dyn Registration>, RegistryError> {
    crate::check(instance)?;
    let (service, id) = (&instance.service, &instance.id);
    tracing::debug!(%service, %id, registry, "not registered: somebody else writes down the instances");
    Ok(Box::new(Elsewhere))
}

#[async_trait]
impl Registration for Elsewhere {
    async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
        Ok(())
    }
}
