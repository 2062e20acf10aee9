//! The contracts by service, environment and version: a plain value.
use std::collections::BTreeMap;

use bytes::Bytes;
use chassis_core::contracts::{Contract, ContractOwner};

use crate::wire::etag_of;

/// The bounds of a server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Of all services.
    pub(super) contracts: usize,
    /// Of all contents together.
    pub(super) bytes: usize,
    /// Of one service in one environment.
    pub(super) versions: usize,
}

/// All contracts.
pub(super) struct Store {
    limits: Limits,
    versions: BTreeMap<ContractOwner, Version>,
    /// Counts changes.
    number: u64,
}

#[derive(Default)]
struct Version {
    /// The number of its last change.
    changed: u64,
    contracts: BTreeMap<String, Kept>,
}

/// A contract that is kept.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) media_type: String,
    pub(super) content: Bytes,
    pub(super) etag: String,
}

/// A contract by its owner and its name.
pub(super) type Key = (ContractOwner, String);

/// There are as many contracts, or bytes, as are kept.
#[derive(Debug)]
pub(super) struct Full;

// === impl Store ===

impl Store {
    pub(super) fn new(limits: Limits) -> Self {
        Store { limits, versions: BTreeMap::new(), number: 0 }
    }

    /// The number of the last change.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The next change has at least this number: it was read from disk.
    pub(super) fn number_from(&mut self, number: u64) {
        self.number = self.number.max(number.saturating_sub(1));
    }

    /// The contracts that have to go before `contract` is put: those of the version of the same service that was changed
    /// the longest time ago, if there is one more than is kept.
    pub(super) fn room(&self, of: &ContractOwner, contract: &Contract) -> Result<Vec<Key>, Full> {
        let mut gone = Vec::new();
        if !self.versions.contains_key(of) {
            let ours = self
                .versions
                .iter()
                .filter(|(other, _)| (&other.service, &other.environment) == (&of.service, &of.environment));
            let mut ours: Vec<_> = ours.collect();
            ours.sort_by_key(|(_, version)| version.changed);
            let more = (ours.len() + 1).saturating_sub(self.limits.versions.max(1));
            for (owner, version) in ours.into_iter().take(more) {
                gone.extend(version.contracts.keys().map(|name| (owner.clone(), name.clone())));
            }
        }
        let mut going: Vec<_> = gone.clone();
        going.push((of.clone(), contract.name.clone()));
        let stays = |of: &ContractOwner, name: &String| !going.iter().any(|(o, n)| (o, n) == (of, name));
        let all = self.iter(|_| true).filter(|(of, name, _)| stays(of, name));
        let (count, bytes) = all.fold((1, contract.content.len()), |(count, bytes), (.., kept)| {
            (count + 1, bytes + kept.content.len())
        });
        match count <= self.limits.contracts && bytes <= self.limits.bytes {
            true => Ok(gone),
            false => Err(Full),
        }
    }

    /// Puts a contract for which there is [`room`](Self::room).
    pub(super) fn put(&mut self, of: &ContractOwner, contract: Contract, gone: &[Key]) {
        gone.iter().for_each(|(of, name)| self.remove(of, name));
        self.number += 1;
        let version = self.versions.entry(of.clone()).or_default();
        version.changed = self.number;
        let Contract { name, media_type, content } = contract;
        let etag = etag_of(&content);
        version.contracts.insert(name, Kept { media_type, content, etag });
    }

    pub(super) fn remove(&mut self, of: &ContractOwner, name: &str) {
        if let Some(version) = self.versions.get_mut(of) {
            version.contracts.remove(name);
            if version.contracts.is_empty() {
                self.versions.remove(of);
            }
        }
    }

    pub(super) fn get(&self, of: &ContractOwner, name: &str) -> Option<&Kept> {
        self.versions.get(of)?.contracts.get(name)
    }

    /// Those whose owner `fits`, in order.
    pub(super) fn iter(
        &self,
        fits: impl Fn(&ContractOwner) -> bool,
    ) -> impl Iterator<Item = (&ContractOwner, &String, &Kept)> {
        let ours = self.versions.iter().filter(move |(of, _)| fits(of));
        ours.flat_map(|(of, version)| version.contracts.iter().map(move |(name, kept)| (of, name, kept)))
    }
}

// === impl Kept ===

impl Kept {
    /// Is it this one?
    pub(super) fn is(&self, contract: &Contract) -> bool {
        (&self.media_type, &self.content) == (&contract.media_type, &contract.content)
    }
}
