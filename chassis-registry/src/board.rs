//! What is known of each service, within one process, and those who follow it.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use chassis_core::registry::{Membership, RegistryError, Watcher};
use tokio::sync::watch;

/// One membership a service. Followers see the newest, not every one in between.
#[derive(Default)]
pub(crate) struct Board {
    services: Mutex<BTreeMap<String, watch::Sender<Membership>>>,
}

struct BoardWatcher {
    service: String,
    /// `None` only while it is dropped.
    news: Option<watch::Receiver<Membership>>,
    /// Keeps the sender alive, so that `news` never ends.
    board: Arc<Board>,
}

// === impl Board ===

impl Board {
    /// Changes what is known of `service` by `change`, which says whether it changed anything.
    pub(crate) fn change(&self, service: &str, change: impl FnOnce(&mut Membership) -> bool) -> bool {
        slot(&mut self.lock(), service).send_if_modified(change)
    }

    /// Replaces what is known of `service`; followers hear of it if it differs.
    pub(crate) fn set(&self, service: &str, membership: Membership) {
        self.change(service, |known| {
            let differs = *known != membership;
            if differs {
                *known = membership; // else the copy that followers have stays the only one
            }
            differs
        });
    }

    pub(crate) fn follow(self: &Arc<Self>, service: &str) -> Box<dyn Watcher> {
        let mut news = slot(&mut self.lock(), service).subscribe();
        news.mark_changed(); // the first answer is what is known now
        Box::new(BoardWatcher { service: service.to_owned(), news: Some(news), board: self.clone() })
    }

    /// Forgets `service` if nothing is known of it and nobody follows it: names may come from input.
    fn forget_unknown(&self, service: &str) {
        let mut services = self.lock();
        let is_unknown = |slot: &watch::Sender<Membership>| {
            slot.receiver_count() == 0 && matches!(*slot.borrow(), Membership::Unknown)
        };
        if services.get(service).is_some_and(is_unknown) {
            services.remove(service);
        }
    }

    /// The services that have instances, or had.
    pub(crate) fn services(&self) -> Vec<String> {
        let services = self.lock();
        let known = services.iter().filter(|(_, slot)| matches!(*slot.borrow(), Membership::Known(_)));
        known.map(|(service, _)| service.clone()).collect()
    }

    /// Nothing panics while it is held; a poisoned lock would be as good as new.
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

// === impl BoardWatcher ===

#[async_trait]
impl Watcher for BoardWatcher {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        let Some(news) = &mut self.news else { return Err(RegistryError::new("the watcher is gone")) };
        news.changed().await.map_err(|e| RegistryError::new("the registry is gone").with_source(e))?;
        Ok(news.borrow_and_update().clone())
    }
}

impl Drop for BoardWatcher {
    fn drop(&mut self) {
        self.news = None; // or it would be counted
        self.board.forget_unknown(&self.service);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_that_nobody_knows_are_forgotten_with_their_last_watcher() {
        let board = Arc::new(Board::default());
        let held = || board.lock().len();
        for n in 0..100 {
            let mut watcher = board.follow(&format!("name-{n}"));
            assert_eq!(watcher.next().await.unwrap(), Membership::Unknown);
        }
        assert_eq!(held(), 0);
        let (first, second) = (board.follow("stock"), board.follow("stock"));
        drop(first);
        assert_eq!(held(), 1);
        // What is known is kept, and told to who follows it.
        let mut second = second;
        board.set("stock", Membership::Deleted);
        assert_eq!(second.next().await.unwrap(), Membership::Deleted);
        drop(second);
        assert_eq!(held(), 1);
    }
}
