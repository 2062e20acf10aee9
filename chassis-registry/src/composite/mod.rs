//! Several registries at once: services move from one to another without a gap.
mod entry;
mod follow;
mod merge;
mod one_service;

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use chassis_core::{
    Events, Random,
    adapter::Followers,
    contain,
    contracts::Contracts,
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
    tasks::Tasks,
};
use serde::{Deserialize, Serialize};
use tokio::{task::JoinSet, time::timeout};

pub use self::one_service::RegistryByService;
use self::{
    entry::Registered,
    follow::{Shown, follow},
};

/// The use of one member of a [`CompositeRegistry`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum MemberMode {
    /// Services are looked up in it, and this process is registered in it: `read_write`.
    #[default]
    ReadWrite,
    /// Services are looked up in it: `read`.
    Read,
    /// This process is registered in it: `write`.
    Write,
}

/// Several registries that act as one. The order of the members is their precedence.
///
/// | | members | result |
/// |---|---|---|
/// | look-up | those that are read | the union; a process that several members list counts once, as the first of them describes it |
/// | registration, status | those that are written | all of them; it succeeds with the first one, and the others are tried again in the background |
/// | deregistration | those that are written | all of them at once, each within 2 s |
///
/// The union, and not the first answer, because in a migration the new registry lists at first only those processes
/// that were restarted: they would get all calls. Two entries are of one process if they have the same id, or the
/// same address for the same listener.
///
/// A member that fails keeps its last answer, a watcher reports the failure once, and the others are followed as
/// before. A service is unknown, deleted or without instances only if every member that is read has said so.
///
/// Each member is contained like a registry of its own: one that blocks its thread delays no other.
///
/// ```
/// use chassis_core::registry::{Instance, Membership, Registry};
/// use chassis_registry::{CompositeRegistry, MemberMode, MemoryRegistry};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (old, new) = (MemoryRegistry::new(), MemoryRegistry::new());
/// let registry = CompositeRegistry::new()
///     .member("new", MemberMode::ReadWrite, new.clone())
///     .member("old", MemberMode::ReadWrite, old.clone());
/// // A process that knows the old registry only.
/// old.put(Instance::new("stock", "a").with_address("grpc", "10.0.0.5:50051"));
/// // A process that registers with both.
/// let stock = Instance::new("stock", "b").with_address("grpc", "10.0.0.6:50051");
/// let registration = registry.register(stock).await?;
///
/// let Membership::Known(all) = registry.watch("stock").await?.next().await? else { panic!() };
/// assert_eq!(all.len(), 2);
/// assert_eq!(registry.listed_by("stock", "a").as_deref(), Some("old"));
/// assert_eq!(registry.listed_by("stock", "b").as_deref(), Some("new"));
/// registration.deregister().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct CompositeRegistry {
    members: Arc<[Member]>,
    inner: Arc<Inner>,
}

/// A registry among several.
#[derive(Clone)]
struct Member {
    name: Arc<str>,
    mode: MemberMode,
    registry: Arc<dyn Registry>,
    random: Random,
}

#[derive(Default)]
struct Inner {
    followers: Followers<Shown>,
    /// Begun by the first use, which runs on the runtime of the service.
    tasks: OnceLock<Tasks>,
}

/// The time a member has to list its services.
const SERVICES: Duration = Duration::from_secs(3);

// === impl MemberMode ===

impl MemberMode {
    /// Whether services are looked up in it.
    pub fn reads(self) -> bool {
        self != MemberMode::Write
    }

    /// Whether this process is registered in it.
    pub fn writes(self) -> bool {
        self != MemberMode::Read
    }
}

// === impl CompositeRegistry ===

impl CompositeRegistry {
    /// Without members: it knows no service.
    pub fn new() -> Self {
        CompositeRegistry { members: Arc::new([]), inner: Arc::default() }
    }

    /// Adds a registry below the earlier ones. `name` is for messages and for `inspect`. To be called before the
    /// registry is used: clones and watchers do not get the member.
    pub fn member(self, name: &str, mode: MemberMode, registry: impl Registry) -> Self {
        let registry = contain::registry(Arc::new(registry), &Events::new(), contain::BLOCKED_AFTER);
        let new = Member { name: name.into(), mode, registry, random: Random::from_os() };
        let members = self.members.iter().cloned().chain([new]).collect();
        CompositeRegistry { members, inner: Arc::default() }
    }

    fn tasks(&self) -> &Tasks {
        self.inner.tasks.get_or_init(Tasks::new)
    }

    /// Waits until the watchers of this process no longer see the instance at the given members.
    async fn gone(&self, service: &str, id: &str, members: &[usize]) {
        let lists = |shown: &Shown, member: usize| match shown.answers.get(member).and_then(Option::as_deref)
        {
            Some(Membership::Known(all)) => all.iter().any(|instance| instance.id == id),
            _ => false,
        };
        let is_gone = |_: &_, shown: &Shown| !members.iter().any(|member| lists(shown, *member));
        self.inner.followers.seen(service, is_gone).await;
    }
}

impl Default for CompositeRegistry {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Registry for CompositeRegistry {
    fn name(&self) -> &str {
        "composite"
    }

    /// Whether all members are local that are written; where none is written, all that are read.
    fn is_local(&self) -> bool {
        let mut written = self.members.iter().filter(|member| member.mode.writes()).peekable();
        match written.peek() {
            Some(_) => written.all(|member| member.registry.is_local()),
            None => self.members.iter().all(|member| member.registry.is_local()),
        }
    }

    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        crate::check(&instance)?;
        if !self.members.iter().any(|member| member.mode.writes()) {
            return crate::noop::register(&instance, self.name());
        }
        Ok(Box::new(Registered::begin(self, instance).await?))
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        Ok(self.inner.followers.watch(service, self.tasks(), |mut feed| {
            let (members, service) = (self.members.clone(), service.to_owned());
            async move { follow(members, service, &mut feed).await }
        }))
    }

    /// The services that any member knows that is read. A member that does not answer within 3 s is left out.
    async fn services(&self) -> Vec<String> {
        let mut asked = JoinSet::new();
        for member in self.members.iter().filter(|member| member.mode.reads()) {
            let registry = member.registry.clone();
            asked.spawn(async move { timeout(SERVICES, registry.services()).await.unwrap_or_default() });
        }
        let mut names = BTreeSet::new();
        while let Some(listed) = asked.join_next().await {
            names.extend(listed.unwrap_or_default()); // a member that panics lists none
        }
        names.into_iter().collect()
    }

    /// Whether one of the members that are read can.
    fn lists_services(&self) -> bool {
        self.members.iter().any(|member| member.mode.reads() && member.registry.lists_services())
    }

    /// Those of the first member that has contracts.
    fn contracts(&self) -> Option<Arc<dyn Contracts>> {
        self.members.iter().find_map(|member| member.registry.contracts())
    }

    /// Members that may block have threads of their own.
    fn never_blocks(&self) -> bool {
        true
    }

    fn listed_by(&self, service: &str, id: &str) -> Option<String> {
        let member = self.inner.followers.look(service, |_, shown| shown.member_of(id))??;
        let member = self.members.get(member)?;
        Some(member.registry.listed_by(service, id).unwrap_or_else(|| member.name.to_string()))
    }
}

// === impl Inner ===

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(tasks) = self.tasks.get() {
            tasks.cancel();
        }
    }
}

/// The error with its causes.
fn chain(error: &RegistryError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
