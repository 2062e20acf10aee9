//! A registry whose answers a test sets.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::plugin::registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher};

/// Gives no answer about a service until the test sets one. Clones share the answers.
///
/// ```
/// use chassis_core::{registry::Membership, testing::ScriptedRegistry};
///
/// let registry = ScriptedRegistry::new();
/// registry.put("stock", ["a", "b"]); // at `memory:a` and `memory:b`
/// registry.set("old", Membership::Deleted);
/// registry.fail("far", "no route to host");
/// ```
#[derive(Clone, Default)]
pub struct ScriptedRegistry(Arc<Mutex<BTreeMap<String, watch::Sender<Said>>>>);

/// `None`: not set yet, watchers wait. Each watcher gets an error once.
type Said = Option<Result<Membership, String>>;

struct Script(watch::Receiver<Said>);

// === impl ScriptedRegistry ===

impl ScriptedRegistry {
    /// A registry without answers.
    pub fn new() -> Self {
        Self::default()
    }

    /// An instance as [`put`](Self::put) makes them: reachable at `memory:<id>` by the test protocol.
    pub fn instance(service: &str, id: &str) -> Instance {
        Instance::new(service, id).with_address("test", format!("memory:{id}"))
    }

    /// Sets the instances of the service.
    pub fn put<const N: usize>(&self, service: &str, ids: [&str; N]) {
        self.set(service, Membership::known(ids.map(|id| Self::instance(service, id))));
    }

    /// Sets the answer about a service.
    pub fn set(&self, service: &str, membership: Membership) {
        self.slot(service).send_replace(Some(Ok(membership)));
    }

    /// Makes the registry fail for a service, with this message, until another answer is set.
    pub fn fail(&self, service: &str, message: &str) {
        self.slot(service).send_replace(Some(Err(message.to_owned())));
    }

    fn slot(&self, service: &str) -> watch::Sender<Said> {
        self.slots().entry(service.to_owned()).or_default().clone()
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, watch::Sender<Said>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Registry for ScriptedRegistry {
    fn name(&self) -> &str {
        "scripted"
    }

    async fn register(&self, _: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        Err(RegistryError::unsupported("a scripted registry is written by its test"))
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let mut said = self.slot(service).subscribe();
        said.mark_changed(); // the first answer is the current state
        Ok(Box::new(Script(said)))
    }

    async fn services(&self) -> Vec<String> {
        let known = |said: &watch::Sender<Said>| matches!(&*said.borrow(), Some(Ok(Membership::Known(_))));
        self.slots().iter().filter(|(_, said)| known(said)).map(|(name, _)| name.clone()).collect()
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

#[async_trait]
impl Watcher for Script {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        loop {
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await; // the test is over
            }
            if let Some(said) = &*self.0.borrow_and_update() {
                return said.clone().map_err(RegistryError::new);
            }
        }
    }
}
