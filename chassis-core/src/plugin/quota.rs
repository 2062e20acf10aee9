//! The port for quotas: whether a further instance of a service may be registered.
use async_trait::async_trait;

use super::registry::RegistryError;

/// A question to a [`Quota`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaRequest {
    /// The service that is to be registered. Its first instance registers the service too.
    pub service: String,
    /// Its environment; may be empty.
    pub environment: String,
    /// So many instances are to be registered, in addition to those that are.
    pub instances: u32,
    /// The id of the instance that is to be registered. One that is registered under this id gives its place to it, and does
    /// not count: a process that restarts with the id that it had. Empty: none in particular.
    pub instance: String,
}

/// The answer of a [`Quota`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuotaDecision {
    /// They may be registered.
    Allowed,
    /// They may not.
    Refused {
        /// The limit that would be exceeded, for a reader.
        why: String,
    },
}

/// Decides whether instances may be registered. chassis asks it each time before it registers this process.
///
/// A question reserves nothing: the quota counts what is registered. So two processes that ask at once may both be allowed,
/// and a registry that has limits of its own has the last word; it says so by [`RegistryError::quota_exceeded`].
///
/// Every implementation passes `testing::contract::quota` (feature `testing`).
#[async_trait]
pub trait Quota: Send + Sync + 'static {
    /// Its name in messages, without secrets.
    fn name(&self) -> String;

    /// May these instances be registered? No instances may always be.
    ///
    /// # Errors
    /// The quota can't be asked. chassis logs that, and registers: a quota that is away keeps no service from its callers.
    async fn ask(&self, request: &QuotaRequest) -> Result<QuotaDecision, RegistryError>;

    /// Whether its functions never block their thread when they wait. If so, the threads of calls poll them. Default
    /// `false`: [threads of its own](crate::contain) poll them.
    fn never_blocks(&self) -> bool {
        false
    }
}

// === impl QuotaRequest ===

impl QuotaRequest {
    /// One instance of `service` without an environment, and with no id in particular.
    pub fn one(service: impl Into<String>) -> Self {
        let (environment, instance) = (String::new(), String::new());
        QuotaRequest { service: service.into(), environment, instances: 1, instance }
    }
}

// === impl QuotaDecision ===

impl QuotaDecision {
    /// Is it [`QuotaDecision::Allowed`]?
    pub fn is_allowed(&self) -> bool {
        *self == QuotaDecision::Allowed
    }
}
