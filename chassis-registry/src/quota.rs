//! A quota within one process, for tests and for several services in one process.
use std::sync::Arc;

use async_trait::async_trait;
use chassis_core::{
    quota::{Quota, QuotaDecision, QuotaRequest},
    registry::{Membership, Registry, RegistryError},
};

/// Limits the instances of each service in a registry, whose instances it counts.
///
/// ```
/// use chassis_core::{quota::{Quota, QuotaRequest}, registry::Instance};
/// use chassis_registry::{MemoryQuota, MemoryRegistry};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = MemoryRegistry::new();
/// let quota = MemoryQuota::new(registry.clone(), 1);
/// assert!(quota.ask(&QuotaRequest::one("stock")).await?.is_allowed());
/// registry.put(Instance::new("stock", "a").with_address("grpc", "127.0.0.1:50051"));
/// assert!(!quota.ask(&QuotaRequest::one("stock")).await?.is_allowed());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct MemoryQuota {
    registry: Arc<dyn Registry>,
    instances: u32,
}

// === impl MemoryQuota ===

impl MemoryQuota {
    /// Allows `instances` of each service in `registry`, in all environments together. 0: none.
    pub fn new(registry: impl Registry, instances: u32) -> Self {
        MemoryQuota { registry: Arc::new(registry), instances }
    }
}

#[async_trait]
impl Quota for MemoryQuota {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    async fn ask(&self, request: &QuotaRequest) -> Result<QuotaDecision, RegistryError> {
        let used = match self.registry.watch(&request.service).await?.next().await? {
            Membership::Known(all) => {
                let is_other = |id: &str| request.instance.is_empty() || id != request.instance;
                all.iter().filter(|instance| is_other(&instance.id)).count() as u64
            }
            Membership::Unknown | Membership::Deleted => 0,
        };
        let (asked, most) = (u64::from(request.instances), u64::from(self.instances));
        if asked == 0 || used + asked <= most {
            return Ok(QuotaDecision::Allowed);
        }
        let service = request.service.escape_debug();
        let why =
            format!("`{service}` has {used} instances and may have {most}, {asked} more were asked for");
        Ok(QuotaDecision::Refused { why })
    }

    fn never_blocks(&self) -> bool {
        self.registry.never_blocks()
    }
}
