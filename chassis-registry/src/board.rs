//! What is known of each service, within one process, and those who follow it.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
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
    news: watch::Receiver<Membership>,
    /// Keeps the sender alive, so that `news` never ends.
    _board: Arc<Board>,
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
        Box::new(BoardWatcher { news, _board: self.clone() })
    }

    /// The services that have instances, or had.
    pub(crate) fn services(&self) -> Vec<String> {
        let services = self.lock();
        let known = services.iter().filter(|(_, slot)| matches!(*slot.borrow(), Membership::Known(_)));
        known.map(|(service, _)| service.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, watch::Sender<Membership>>> {
        self.services.lock().expect("nobody panics while holding it")
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
        self.news.changed().await.map_err(|e| RegistryError::new("the registry is gone").with_source(e))?;
        Ok(self.news.borrow_and_update().clone())
    }
}
