//! Instances within one process: for tests, and for several services in one process.
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use async_trait::async_trait;
use chassis_core::{
    contracts::Contracts,
    kind::{self, Kind},
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
};

use serde::Deserialize;

use crate::{MemoryContracts, store::MembershipStore};

/// The name of the registry: the `registry` table when its `kind` is `memory`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// Services of one process with the same name share one registry. Default: the empty name, so all
    /// services share one.
    pub name: String,
    /// Are the contracts of this process published there, and can it fetch those of others? Default `false`.
    pub contracts: bool,
}

/// Holds the instances that were registered with it or with a clone of it, until the process ends.
///
/// An id that is registered cannot be registered again. A test may also change instances without a
/// registration: [`put`](Self::put), [`remove`](Self::remove) and [`set`](Self::set) do not check it.
///
/// ```
/// use chassis_core::registry::{Instance, Membership, Registry};
/// use chassis_registry::MemoryRegistry;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = MemoryRegistry::new();
/// let stock = Instance::new("stock", "a").with_address("grpc", "127.0.0.1:50051");
/// let registration = registry.register(stock.clone()).await?;
///
/// let mut watcher = registry.watch("stock").await?;
/// assert_eq!(watcher.next().await?, Membership::known([stock]));
/// registration.deregister().await?;
/// assert_eq!(watcher.next().await?, Membership::Known(vec![]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct MemoryRegistry {
    store: Arc<MembershipStore>,
    leases: Arc<Mutex<Leases>>,
    /// The contracts that this handle offers.
    contracts: Option<MemoryContracts>,
}

/// The current registration of each entry, so that a registration removes only its own entry and no later one
/// with the same id.
#[derive(Default)]
struct Leases {
    newest: u64,
    by_entry: HashMap<(String, String), u64>,
}

/// A registry that others hold.
type Held = (Weak<MembershipStore>, Weak<Mutex<Leases>>);

struct Lease {
    registry: MemoryRegistry,
    entry: (String, String),
    number: u64,
}

// === impl MemoryRegistry ===

impl MemoryRegistry {
    /// The kind that settings choose by `registry: { kind: memory }`.
    pub fn kind() -> impl Kind<Config = MemoryConfig, Made = Arc<dyn Registry>> {
        kind::described("memory", schema_of!(MemoryConfig), |config: &MemoryConfig| {
            let contracts = config.contracts.then(|| MemoryContracts::shared(&config.name));
            let registry = MemoryRegistry { contracts, ..MemoryRegistry::shared(&config.name) };
            Ok(Arc::new(registry) as Arc<dyn Registry>)
        })
    }

    /// Creates an empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// The registry that this process shares under `name`. It is removed once nothing holds it any more.
    ///
    /// ```
    /// use chassis_core::registry::{Instance, Registry};
    /// use chassis_registry::MemoryRegistry;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let (one, two) = (MemoryRegistry::shared("shop"), MemoryRegistry::shared("shop"));
    /// one.put(Instance::new("stock", "a").with_address("grpc", "127.0.0.1:50051"));
    /// assert_eq!(two.services().await, ["stock"]);
    /// # }
    /// ```
    pub fn shared(name: &str) -> Self {
        static SHARED: Mutex<BTreeMap<String, Held>> = Mutex::new(BTreeMap::new());
        // No code panics while it holds this lock, so the value behind a poisoned lock is intact.
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let held = shared.get(name).and_then(|(store, leases)| store.upgrade().zip(leases.upgrade()));
        if let Some((store, leases)) = held {
            return MemoryRegistry { store, leases, contracts: None };
        }
        shared.retain(|_, (store, leases)| store.strong_count() > 0 && leases.strong_count() > 0);
        let new = MemoryRegistry::new();
        shared.insert(name.to_owned(), (Arc::downgrade(&new.store), Arc::downgrade(&new.leases)));
        new
    }

    /// Adds `instance`, or replaces the one with the same id.
    pub fn put(&self, instance: Instance) {
        let instance = Arc::new(instance);
        self.store.change(&instance.service, |known| {
            let all = entries(known);
            match find(all, &instance.id) {
                Ok(at) => all[at] = instance.clone(),
                Err(at) => all.insert(at, instance.clone()),
            }
            true
        });
    }

    /// Removes the instance `id` of `service`. Returns whether it existed.
    pub fn remove(&self, service: &str, id: &str) -> bool {
        self.store.change(service, |known| match known {
            Membership::Known(all) => find(all, id).map(|at| all.remove(at)).is_ok(),
            Membership::Unknown | Membership::Deleted => false,
        })
    }

    /// Replaces the membership of `service`: `Membership::Deleted` marks it as deleted.
    pub fn set(&self, service: &str, mut membership: Membership) {
        if let Membership::Known(all) = &mut membership {
            all.sort_by(|a, b| a.id.cmp(&b.id)); // `find` expects this order
        }
        self.store.set(service, membership);
    }
}

#[async_trait]
impl Registry for MemoryRegistry {
    fn name(&self) -> &str {
        "memory"
    }

    fn is_local(&self) -> bool {
        true
    }

    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        crate::check(&instance)?;
        let entry = (instance.service.clone(), instance.id.clone());
        let mut leases = self.leases.lock().expect("no code panics while it holds this lock");
        let added = self.store.change(&entry.0, |known| {
            let all = entries(known);
            find(all, &entry.1).map_err(|at| all.insert(at, Arc::new(instance))).is_err()
        });
        if !added {
            return Err(RegistryError::new(format!("`{}` has an instance `{}` already", entry.0, entry.1)));
        }
        leases.newest += 1;
        let number = leases.newest;
        leases.by_entry.insert(entry.clone(), number);
        Ok(Box::new(Lease { registry: self.clone(), entry, number }))
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        Ok(self.store.follow(service))
    }

    async fn services(&self) -> Vec<String> {
        self.store.services()
    }

    fn contracts(&self) -> Option<Arc<dyn Contracts>> {
        self.contracts.clone().map(|contracts| Arc::new(contracts) as Arc<dyn Contracts>)
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

/// The instances, sorted by id. An unknown service becomes a known one.
fn entries(known: &mut Membership) -> &mut Vec<Arc<Instance>> {
    if !matches!(known, Membership::Known(_)) {
        *known = Membership::Known(Vec::new());
    }
    match known {
        Membership::Known(all) => all,
        Membership::Unknown | Membership::Deleted => unreachable!("set to Known above"),
    }
}

fn find(all: &[Arc<Instance>], id: &str) -> Result<usize, usize> {
    all.binary_search_by(|instance| instance.id.as_str().cmp(id))
}

// === impl Lease ===

#[async_trait]
impl Registration for Lease {
    async fn update(&mut self, instance: Instance) -> Result<(), RegistryError> {
        crate::check_update(&instance, &self.entry.0, &self.entry.1)?;
        let leases = self.registry.leases.lock().expect("no code panics while it holds this lock");
        if leases.by_entry.get(&self.entry) != Some(&self.number) {
            return Err(RegistryError::new(format!("`{}` belongs to a later registration", self.entry.1)));
        }
        self.registry.put(instance);
        Ok(())
    }

    async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
        Ok(()) // `drop` removes the entry
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Ok(mut leases) = self.registry.leases.lock() else { return };
        if leases.by_entry.get(&self.entry) == Some(&self.number) {
            leases.by_entry.remove(&self.entry);
            self.registry.remove(&self.entry.0, &self.entry.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stock(id: &str) -> Instance {
        Instance::new("stock", id).with_address("grpc", "127.0.0.1:50051")
    }

    #[tokio::test]
    async fn an_id_that_is_up_is_refused_and_free_again_afterwards() {
        let registry = MemoryRegistry::new();
        let first = registry.register(stock("a")).await.unwrap();
        let refused = registry.register(stock("a")).await.err().unwrap();
        assert_eq!(refused.to_string(), "`stock` has an instance `a` already");
        drop(first);
        registry.register(stock("a")).await.unwrap();
    }

    #[tokio::test]
    async fn a_registration_ends_its_own_entry_and_no_later_one() {
        let registry = MemoryRegistry::new();
        let first = registry.register(stock("a")).await.unwrap();
        assert!(registry.remove("stock", "a"));
        let _second = registry.register(stock("a")).await.unwrap();
        drop(first);
        let known = registry.watch("stock").await.unwrap().next().await.unwrap();
        assert_eq!(known, Membership::known([stock("a")]));
    }

    #[tokio::test]
    async fn one_of_a_name_is_shared_while_it_is_held() {
        let name = "one_of_a_name_is_shared_while_it_is_held";
        let (one, two) = (MemoryRegistry::shared(name), MemoryRegistry::shared(name));
        let lease = one.register(stock("a")).await.unwrap();
        assert_eq!(two.services().await, ["stock"]);
        assert!(
            two.register(stock("a")).await.is_err(),
            "the id is taken, also for another handle of the registry"
        );
        assert!(MemoryRegistry::shared("another").services().await.is_empty());
        drop((one, two));
        assert_eq!(MemoryRegistry::shared(name).services().await, ["stock"], "the lease holds it");
        drop(lease);
        assert!(MemoryRegistry::shared(name).services().await.is_empty());
    }

    #[tokio::test]
    async fn a_test_can_change_things_without_a_registration() {
        let registry = MemoryRegistry::new();
        let mut watcher = registry.watch("stock").await.unwrap();
        assert_eq!(watcher.next().await.unwrap(), Membership::Unknown);
        registry.set("stock", Membership::known([stock("b"), stock("a")]));
        registry.put(stock("b").with_weight(7));
        let known = Membership::known([stock("a"), stock("b").with_weight(7)]);
        assert_eq!(watcher.next().await.unwrap(), known);
        registry.set("stock", Membership::Deleted);
        assert_eq!(watcher.next().await.unwrap(), Membership::Deleted);
        assert!(!registry.remove("stock", "a"));
        assert!(registry.services().await.is_empty());
    }

    #[tokio::test]
    async fn what_cannot_be_called_is_refused() {
        let registry = MemoryRegistry::new();
        let port_0 = stock("a").with_address("http", "127.0.0.1:0");
        let nobodys = Instance::new("", "a").with_address("grpc", "127.0.0.1:1");
        for bad in [port_0, nobodys, stock(""), Instance::new("stock", "a")] {
            assert!(registry.register(bad.clone()).await.is_err(), "{bad:?}");
        }
        assert!(registry.services().await.is_empty());
    }
}
