//! The contracts by service, environment and version: a plain value.
use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use chassis_core::contracts::{Contract, ContractOwner};
use tokio::time::Instant;

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

struct Version {
    /// The number of its last change.
    changed: u64,
    /// When it was last changed or asked for.
    used: Instant,
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

/// A contract and the hash of its content, which is made once.
#[derive(Clone, Debug)]
pub(super) struct Hashed {
    pub(super) contract: Contract,
    pub(super) etag: String,
}

/// Why there is no room.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// There are as many contracts, or bytes, as are kept.
    Used,
    /// All versions of the service are in use, and the contract is not to replace another one.
    Versions,
}

/// A version is in use for so long after it was changed or asked for. Processes ask for their own once a minute.
pub(super) const IN_USE: Duration = Duration::from_secs(600);

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

    /// The contracts that have to go before `contract` is put: those of a version of the same service, if there is one more
    /// than is kept. It is the one that was changed the longest time ago, of those that are not in use if there are such.
    /// Only a process that starts has a claim on the place of one in use: if another one, whose contracts are to be `kept`,
    /// had it too, versions would take each other's place for ever.
    pub(super) fn room(
        &self,
        of: &ContractOwner,
        contract: &Contract,
        kept: bool,
        now: Instant,
    ) -> Result<Vec<Key>, Full> {
        let mut gone = Vec::new();
        if !self.versions.contains_key(of) {
            let ours = self
                .versions
                .iter()
                .filter(|(other, _)| (&other.service, &other.environment) == (&of.service, &of.environment));
            let is_used = |version: &Version| now.saturating_duration_since(version.used) < IN_USE;
            let mut ours: Vec<_> = ours.collect();
            ours.sort_by_key(|(_, version)| (is_used(version), version.changed));
            let more = (ours.len() + 1).saturating_sub(self.limits.versions.max(1));
            for (owner, version) in ours.into_iter().take(more) {
                if kept && is_used(version) {
                    return Err(Full::Versions);
                }
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
            false => Err(Full::Used),
        }
    }

    /// Puts a contract for which there is [`room`](Self::room).
    pub(super) fn put(&mut self, of: &ContractOwner, hashed: Hashed, gone: &[Key], now: Instant) {
        gone.iter().for_each(|(of, name)| self.remove(of, name));
        self.number += 1;
        let new = || Version { changed: 0, used: now, contracts: BTreeMap::new() };
        let version = self.versions.entry(of.clone()).or_insert_with(new);
        (version.changed, version.used) = (self.number, now);
        let Hashed { contract: Contract { name, media_type, content }, etag } = hashed;
        version.contracts.insert(name, Kept { media_type, content, etag });
    }

    /// The versions that `fits` chooses are asked for.
    pub(super) fn asked(&mut self, fits: impl Fn(&ContractOwner) -> bool, now: Instant) {
        let ours = self.versions.iter_mut().filter(|(of, _)| fits(of));
        ours.for_each(|(_, version)| version.used = now);
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

// === impl Hashed ===

impl Hashed {
    /// Hashes up to a megabyte: not for a thread that serves requests.
    pub(super) fn new(contract: Contract) -> Self {
        let etag = etag_of(&contract.content);
        Hashed { contract, etag }
    }
}

// === impl Kept ===

impl Kept {
    /// Is it this one?
    pub(super) fn is(&self, contract: &Contract) -> bool {
        (&self.media_type, &self.content) == (&contract.media_type, &contract.content)
    }
}
