//! The instances, when each is over, and the last changes: a plain value.
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use chassis_core::registry::Instance;
use tokio::time::Instant;

use super::documents::Documents;
use crate::wire::Revision;

/// All that a server keeps.
pub(super) struct Store {
    history: u64,
    /// How many changes there were.
    number: u64,
    /// Counts what a snapshot has to have, which are leases beside changes.
    version: u64,
    documents: Documents,
    entries: BTreeMap<Key, Entry>,
    leases: HashMap<String, Key>,
    /// The last changes, the oldest first, without gaps.
    changes: VecDeque<Change>,
    most_instances: usize,
    most_changes: usize,
}

/// A service, and the id of an instance.
type Key = (String, String);

/// An instance that is registered.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) instance: Arc<Instance>,
    pub(super) ttl: Duration,
    pub(super) lease: String,
    until: Instant,
    /// The leases of those that registered it before.
    replaced: VecDeque<String>,
}

/// One change.
#[derive(Clone)]
pub(super) struct Change {
    pub(super) number: u64,
    pub(super) service: Arc<str>,
    pub(super) what: What,
}

#[derive(Clone)]
pub(super) enum What {
    Put(Arc<Instance>),
    /// The id.
    Delete(String),
}

/// The result of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Renewed {
    Done,
    /// Another process has registered the same id.
    Replaced,
    Unknown,
}

/// There are as many instances as the server keeps.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// So many earlier leases of an instance are remembered, to inform their owners.
const MOST_REPLACED: usize = 4;

// === impl Store ===

impl Store {
    pub(super) fn new(
        history: u64,
        most_instances: usize,
        most_changes: usize,
        most_documents: usize,
    ) -> Self {
        Store {
            history,
            number: 0,
            version: 0,
            documents: Documents::new(most_documents),
            entries: BTreeMap::new(),
            leases: HashMap::new(),
            changes: VecDeque::new(),
            most_instances,
            most_changes,
        }
    }

    pub(super) fn documents(&self) -> &Documents {
        &self.documents
    }

    /// The documents, to be changed: a snapshot has to have them anew.
    pub(super) fn documents_mut(&mut self) -> &mut Documents {
        self.version += 1;
        &mut self.documents
    }

    /// Registers `instance`, or replaces the one of its id.
    pub(super) fn put(
        &mut self,
        instance: Instance,
        ttl: Duration,
        lease: String,
        now: Instant,
    ) -> Result<(), Full> {
        let key = (instance.service.clone(), instance.id.clone());
        let before = self.entries.get(&key);
        if before.is_none() && self.entries.len() >= self.most_instances {
            return Err(Full);
        }
        let is_same = before.is_some_and(|before| *before.instance == instance);
        let mut replaced = VecDeque::new();
        if let Some(before) = self.entries.remove(&key) {
            replaced = before.replaced;
            replaced.push_back(before.lease);
            while replaced.len() > MOST_REPLACED {
                replaced.pop_front().map(|lease| self.leases.remove(&lease));
            }
        }
        let instance = Arc::new(instance);
        self.leases.insert(lease.clone(), key.clone());
        self.entries
            .insert(key, Entry { instance: instance.clone(), ttl, lease, until: now + ttl, replaced });
        self.version += 1;
        if !is_same {
            self.note(instance.service.as_str().into(), What::Put(instance));
        }
        Ok(())
    }

    /// A heartbeat.
    pub(super) fn renew(&mut self, lease: &str, now: Instant) -> Renewed {
        let Some(entry) = self.leases.get(lease).and_then(|key| self.entries.get_mut(key)) else {
            return Renewed::Unknown;
        };
        if entry.lease != lease {
            return Renewed::Replaced;
        }
        entry.until = now + entry.ttl;
        Renewed::Done
    }

    /// Removes the instance of `lease`, if it was not replaced.
    pub(super) fn remove(&mut self, lease: &str) {
        let Some(key) = self.leases.get(lease).cloned() else {
            return;
        };
        if self.entries.get(&key).is_some_and(|entry| entry.lease == lease) {
            self.drop_entry(&key);
        }
    }

    /// Removes what no heartbeat has come for.
    pub(super) fn expire(&mut self, now: Instant) -> usize {
        let over = self.entries.iter().filter(|(_, entry)| entry.until <= now);
        let over: Vec<_> = over.map(|(key, _)| key.clone()).collect();
        over.iter().for_each(|key| self.drop_entry(key));
        over.len()
    }

    /// When the next instance is over, unless it is renewed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.entries.values().map(|entry| entry.until).min()
    }

    pub(super) fn revision(&self) -> Revision {
        Revision { history: self.history, number: self.number }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// The instance of a lease.
    pub(super) fn get(&self, lease: &str) -> Option<Arc<Instance>> {
        let entry = self.entries.get(self.leases.get(lease)?)?;
        (entry.lease == lease).then(|| entry.instance.clone())
    }

    pub(super) fn list(&self, service: Option<&str>) -> Vec<Arc<Instance>> {
        let ours = self.entries.iter().filter(|((of, _), _)| service.is_none_or(|service| service == of));
        ours.map(|(_, entry)| entry.instance.clone()).collect()
    }

    pub(super) fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.entries.keys().map(|(service, _)| service.as_str()).collect();
        names.dedup();
        names
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The changes of a service after `from`. `None`: they are no longer kept, or `from` is of another history.
    pub(super) fn since(&self, from: Revision, service: &str) -> Option<Vec<Change>> {
        let first = self.number - self.changes.len() as u64;
        if from.history != self.history || from.number < first || from.number > self.number {
            return None;
        }
        let skip = usize::try_from(from.number - first).ok()?;
        let ours = self.changes.iter().skip(skip).filter(|change| &*change.service == service);
        Some(ours.cloned().collect())
    }

    fn drop_entry(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else {
            return;
        };
        self.leases.remove(&entry.lease);
        entry.replaced.iter().for_each(|lease| drop(self.leases.remove(lease)));
        self.version += 1;
        self.note(key.0.as_str().into(), What::Delete(key.1.clone()));
    }

    fn note(&mut self, service: Arc<str>, what: What) {
        self.number += 1;
        self.changes.push_back(Change { number: self.number, service, what });
        while self.changes.len() > self.most_changes {
            self.changes.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn stock(id: &str) -> Instance {
        Instance::new("stock", id).with_address("grpc", "10.0.0.5:1")
    }

    fn ids(store: &Store) -> Vec<String> {
        store.list(Some("stock")).iter().map(|instance| instance.id.clone()).collect()
    }

    #[test]
    fn what_is_not_renewed_goes() {
        let (mut store, now) = (Store::new(7, 9, 9, 9), Instant::now());
        store.put(stock("a"), TTL, "la".into(), now).unwrap();
        store.put(stock("b"), TTL * 2, "lb".into(), now).unwrap();
        assert_eq!(store.due(), Some(now + TTL));
        assert_eq!(store.renew("la", now + TTL / 2), Renewed::Done);
        assert_eq!(store.expire(now + TTL), 0);
        assert_eq!(store.expire(now + TTL * 3 / 2), 1);
        assert_eq!((ids(&store), store.renew("la", now + TTL)), (vec!["b".to_owned()], Renewed::Unknown));
        store.remove("lb");
        assert_eq!((ids(&store), store.due(), store.names().len()), (Vec::new(), None, 0));
    }

    #[test]
    fn a_lease_that_was_replaced_removes_nothing() {
        let (mut store, now) = (Store::new(7, 9, 9, 9), Instant::now());
        store.put(stock("a"), TTL, "first".into(), now).unwrap();
        let revision = store.revision();
        store.put(stock("a"), TTL, "second".into(), now).unwrap();
        assert_eq!(store.revision(), revision, "it is the same instance: nothing changes for watchers");
        assert_eq!(store.renew("first", now), Renewed::Replaced);
        store.remove("first");
        assert_eq!((ids(&store), store.get("first")), (vec!["a".to_owned()], None));
        for n in 0..100 {
            store.put(stock("a").with_weight(n), TTL, format!("l{n}"), now).unwrap();
        }
        assert_eq!(store.leases.len(), 1 + MOST_REPLACED);
        store.remove("l99");
        assert!(store.leases.is_empty() && store.entries.is_empty());
    }

    #[test]
    fn changes_are_kept_up_to_a_number() {
        let (mut store, now) = (Store::new(7, 9, 3, 9), Instant::now());
        let start = store.revision();
        for (at, service) in ["stock", "orders", "stock"].into_iter().enumerate() {
            let mut instance = stock(&format!("i{at}"));
            instance.service = service.into();
            store.put(instance, TTL, format!("l{at}"), now).unwrap();
        }
        let numbers = |store: &Store, from| {
            store.since(from, "stock").map(|all| all.iter().map(|change| change.number).collect::<Vec<_>>())
        };
        assert_eq!(numbers(&store, start), Some(vec![1, 3]));
        assert_eq!(numbers(&store, store.revision()), Some(vec![]));
        store.remove("l0");
        assert_eq!(numbers(&store, start), None, "the first change is no longer kept");
        assert_eq!(numbers(&store, Revision { number: 1, ..start }), Some(vec![3, 4]));
        assert_eq!(numbers(&store, Revision { number: 5, ..start }), None);
        assert_eq!(numbers(&store, Revision { history: 8, number: 3 }), None);
    }

    #[test]
    fn a_full_store_takes_no_more() {
        let (mut store, now) = (Store::new(7, 2, 9, 9), Instant::now());
        for id in ["a", "b", "a"] {
            store.put(stock(id), TTL, format!("l{id}"), now).unwrap();
        }
        assert_eq!(store.put(stock("c"), TTL, "lc".into(), now), Err(Full));
        store.remove("lb");
        assert_eq!(store.put(stock("c"), TTL, "lc".into(), now), Ok(()));
    }
}
