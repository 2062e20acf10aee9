//! Registration with registries whose instances are written by other means.
use async_trait::async_trait;
use chassis_core::registry::{Instance, Registration, RegistryError};

/// A registration that has nothing to remove.
struct NoopRegistration;

/// Accepts `instance` and does nothing: a service must start also where other tools publish its address.
pub(crate) fn register(instance: &Instance, registry: &str) -> Result<Box<dyn Registration>, RegistryError> {
    crate::check(instance)?;
    let (service, id) = (&instance.service, &instance.id);
    tracing::debug!(%service, %id, registry, "not registered: this registry is written by other means");
    Ok(Box::new(NoopRegistration))
}

#[async_trait]
impl Registration for NoopRegistration {
    async fn update(&mut self, _: Instance) -> Result<(), RegistryError> {
        Ok(())
    }

    async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
        Ok(())
    }
}
