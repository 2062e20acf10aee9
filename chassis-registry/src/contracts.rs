//! Contracts within one process: for tests, and for several services in one process.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use async_trait::async_trait;
use chassis_core::contracts::{
    Contract, ContractEntry, ContractOwner, Contracts, ContractsError, ContractsErrorKind, Existing,
};

/// Holds the contracts that were published with it or with a clone of it, until the last clone is dropped: 10,000 at most.
///
/// ```
/// use chassis_core::contracts::{Contract, ContractOwner, Contracts, Existing};
/// use chassis_registry::MemoryContracts;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let contracts = MemoryContracts::new();
/// let stock = ContractOwner::new("stock", "1.4.0");
/// let api = Contract::openapi("api", "openapi: 3.1.0");
/// contracts.publish(&stock, std::slice::from_ref(&api), Existing::Replace).await?;
/// assert_eq!(contracts.versions("stock", "").await?, ["1.4.0"]);
/// assert_eq!(contracts.fetch(&stock, "api").await?, api);
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct MemoryContracts(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    /// By owner, then by name, with the number of the change that brought it.
    all: BTreeMap<ContractOwner, BTreeMap<String, (u64, Contract)>>,
    changes: u64,
}

/// So many contracts are kept: names may come from input.
const MOST: usize = 10_000;

// === impl MemoryContracts ===

impl MemoryContracts {
    /// Without contracts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Those that this process shares under `name`. They are removed once nothing holds them any more.
    pub fn shared(name: &str) -> Self {
        static SHARED: Mutex<BTreeMap<String, Weak<Mutex<Kept>>>> = Mutex::new(BTreeMap::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = shared.get(name).and_then(Weak::upgrade) {
            return MemoryContracts(kept);
        }
        shared.retain(|_, kept| kept.strong_count() > 0);
        let new = Self::new();
        shared.insert(name.to_owned(), Arc::downgrade(&new.0));
        new
    }

    /// Forgets all contracts, as a server does that has lost its disk.
    pub fn clear(&self) {
        self.kept().all.clear();
    }

    /// No code panics while it is held, so the value behind a poisoned lock is intact.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Contracts for MemoryContracts {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    async fn publish(
        &self,
        of: &ContractOwner,
        contracts: &[Contract],
        existing: Existing,
    ) -> Result<(), ContractsError> {
        of.check(contracts)?;
        let mut kept = self.kept();
        if kept.all.values().map(BTreeMap::len).sum::<usize>() + contracts.len() > MOST {
            let message = format!("there are {MOST} contracts, as many as are kept");
            return Err(ContractsError::new(ContractsErrorKind::Refused, message));
        }
        for contract in contracts {
            let of_owner = kept.all.entry(of.clone()).or_default();
            let stays = |(_, there): &(u64, Contract)| existing == Existing::Keep || there == contract;
            if of_owner.get(&contract.name).is_some_and(stays) {
                continue;
            }
            kept.changes += 1;
            let entry = (kept.changes, contract.clone());
            kept.all.entry(of.clone()).or_default().insert(contract.name.clone(), entry);
        }
        Ok(())
    }

    async fn versions(&self, service: &str, environment: &str) -> Result<Vec<String>, ContractsError> {
        let kept = self.kept();
        let ours = kept.all.keys().filter(|of| of.service == service && of.environment == environment);
        Ok(ours.map(|of| of.version.clone()).collect())
    }

    async fn list(&self, of: &ContractOwner) -> Result<Vec<ContractEntry>, ContractsError> {
        let kept = self.kept();
        let entry = |(name, (change, _)): (&String, &(u64, Contract))| ContractEntry {
            name: name.clone(),
            etag: change.to_string(),
        };
        Ok(kept.all.get(of).into_iter().flatten().map(entry).collect())
    }

    async fn fetch(&self, of: &ContractOwner, name: &str) -> Result<Contract, ContractsError> {
        let kept = self.kept();
        let found = kept.all.get(of).and_then(|all| all.get(name));
        found.map(|(_, contract)| contract.clone()).ok_or_else(|| ContractsError::not_found(of, name))
    }

    fn never_blocks(&self) -> bool {
        true
    }
}
