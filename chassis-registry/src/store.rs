//! The memberships of all services, within one process, and their watchers.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use chassis_core::registry::{Membership, RegistryError, Watcher};
use tokio::sync::watch;

/// Holds one membership for each service. Watchers see the newest, not every one in between.
#[derive(Default)]
pub(crate) struct MembershipStore {
    services: Mutex<BTreeMap<String, watch::Sender<Membership>>>,
}

struct StoreWatcher {
    service: String,
    /// `None` only while the watcher is being dropped.
    news: Option<watch::Receiver<Membership>>,
    /// Keeps the sender alive, so that `news` never ends.
    store: Arc<MembershipStore>,
}

// === impl MembershipStore ===

impl MembershipStore {
    /// Changes the membership of `service` by `change`, which returns whether it changed anything.
    pub(crate) fn change(&self, service: &str, change: impl FnOnce(&mut Membership) -> bool) -> bool {
        slot(&mut self.lock(), service).send_if_modified(change)
    }

    /// Replaces the membership of `service`; watchers see it if it differs.
    pub(crate) fn set(&self, service: &str, membership: Membership) {
        self.change(service, |known| {
            let differs = *known != membership;
            if differs {
                *known = membership; // else watchers keep the only copy
            }
            differs
        });
    }

    pub(crate) fn follow(self: &Arc<Self>, service: &str) -> Box<dyn Watcher> {
        let mut news = slot(&mut self.lock(), service).subscribe();
        news.mark_changed(); // the first answer is the membership as it is now
        Box::new(StoreWatcher { service: service.to_owned(), news: Some(news), store: self.clone() })
    }

    /// Removes `service` if its membership is unknown and it has no watcher: names may come from input.
    fn forget_unknown(&self, service: &str) {
        let mut services = self.lock();
        let is_unknown = |slot: &watch::Sender<Membership>| {
            slot.receiver_count() == 0 && matches!(*slot.borrow(), Membership::Unknown)
        };
        if services.get(service).is_some_and(is_unknown) {
            services.remove(service);
        }
    }

    /// The services that have instances or had some.
    pub(crate) fn services(&self) -> Vec<String> {
        let services = self.lock();
        let known = services.iter().filter(|(_, slot)| matches!(*slot.borrow(), Membership::Known(_)));
        known.map(|(service, _)| service.clone()).collect()
    }

    /// No code panics while it holds this lock, so the value behind a poisoned lock is intact.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, watch::Sender<Membership>>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn slot<'a>(
    services: &'a mut BTreeMap<String, watch::Sender<Membership>>,
    service: &str,
) -> &'a watch::Sender<Membership> {
    services.entry(service.into()).or_insert_with(|| watch::Sender::new(Membership::Unknown))
}

// === impl StoreWatcher ===

#[async_trait]
impl Watcher for StoreWatcher {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        let Some(news) = &mut self.news else { return Err(RegistryError::new("the watcher is gone")) };
        news.changed().await.map_err(|e| RegistryError::new("the registry is gone").with_source(e))?;
        Ok(news.borrow_and_update().clone())
    }
}

impl Drop for StoreWatcher {
    fn drop(&mut self) {
        self.news = None; // or it would be counted
        self.store.forget_unknown(&self.service);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_that_nobody_knows_are_forgotten_with_their_last_watcher() {
        let store = Arc::new(MembershipStore::default());
        let held = || store.lock().len();
        for n in 0..100 {
            let mut watcher = store.follow(&format!("name-{n}"));
            assert_eq!(watcher.next().await.unwrap(), Membership::Unknown);
        }
        assert_eq!(held(), 0);
        let (first, second) = (store.follow("stock"), store.follow("stock"));
        drop(first);
        assert_eq!(held(), 1);
        // The membership is kept, and watchers receive it.
        let mut second = second;
        store.set("stock", Membership::Deleted);
        assert_eq!(second.next().await.unwrap(), Membership::Deleted);
        drop(second);
        assert_eq!(held(), 1);
    }
}
