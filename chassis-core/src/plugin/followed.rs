//! For registries on a server: one follower for each service, for any number of watchers.
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::watch, time::sleep};

use super::registry::{Membership, RegistryError, Watcher};

/// The followed services by name.
///
/// ```
/// use chassis_core::{followed::{Followed, State}, registry::Membership};
///
/// # async fn example(followed: &std::sync::Arc<Followed>) {
/// let (watcher, new) = followed.watch("stock", ());
/// if let Some(state) = new {
///     // There is no follower of this service yet: this task is one.
///     let followed = followed.clone();
///     tokio::spawn(async move {
///         let follow = async { State::show(&state, Membership::Unknown) };
///         tokio::join!(follow, followed.unused("stock", &state));
///     });
/// }
/// # }
/// ```
#[derive(Default)]
pub struct Followed(Mutex<HashMap<String, watch::Sender<State>>>);

/// The state that a follower publishes to its watchers.
#[derive(Clone, Default)]
pub struct State {
    /// `None` until the first answer.
    known: Option<Membership>,
    /// Counts the answers.
    number: u64,
    trouble: Option<Arc<Trouble>>,
}

/// The reason of a failure: reported by one watcher, once.
struct Trouble {
    why: String,
    is_told: AtomicBool,
}

/// Watches a followed service. `K` is kept as long as there are watchers.
struct FollowedWatcher<K> {
    state: watch::Receiver<State>,
    /// The number of the last answer.
    answered: Option<u64>,
    _keeps: K,
}

/// The time for which a service without watchers is still followed: a watcher that is created after an error
/// finds the known state.
const LINGER: Duration = Duration::from_secs(60);

// === impl Followed ===

impl Followed {
    /// A watcher of `service`, which keeps `keeps`; and the sender for its follower, if there is none yet.
    pub fn watch<K: Send + 'static>(
        &self,
        service: &str,
        keeps: K,
    ) -> (Box<dyn Watcher>, Option<watch::Sender<State>>) {
        let mut all = self.lock();
        let (state, new) = match all.get(service) {
            Some(state) => (state.subscribe(), None),
            None => {
                let (sender, state) = watch::channel(State::default());
                all.insert(service.to_owned(), sender.clone());
                (state, Some(sender))
            }
        };
        (Box::new(FollowedWatcher { state, answered: None, _keeps: keeps }), new)
    }

    /// Completes when `service` has had no watcher for a while. It is no longer in the table then.
    pub async fn unused(&self, service: &str, state: &watch::Sender<State>) {
        loop {
            state.closed().await;
            sleep(LINGER).await;
            let mut all = self.lock();
            if state.receiver_count() == 0 {
                all.remove(service);
                return;
            }
        }
    }

    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<State>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    /// Publishes the known instances to watchers.
    pub fn show(state: &watch::Sender<State>, known: Membership) {
        state.send_modify(|state| {
            *state = State { known: Some(known), number: state.number + 1, trouble: None };
        });
    }

    /// Reports the reason of a failure to one watcher. The known instances stay.
    pub fn fail(state: &watch::Sender<State>, why: impl Into<String>) {
        let trouble = Some(Arc::new(Trouble { why: why.into(), is_told: AtomicBool::new(false) }));
        state.send_modify(|state| state.trouble = trouble);
    }
}

// === impl FollowedWatcher ===

#[async_trait]
impl<K: Send + 'static> Watcher for FollowedWatcher<K> {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        loop {
            {
                let state = self.state.borrow_and_update();
                if let Some(known) = state.known.as_ref().filter(|_| self.answered != Some(state.number)) {
                    self.answered = Some(state.number);
                    return Ok(known.clone());
                }
                let untold = |trouble: &&Arc<Trouble>| !trouble.is_told.swap(true, Relaxed);
                if let Some(trouble) = state.trouble.as_ref().filter(untold) {
                    return Err(RegistryError::new(trouble.why.clone()));
                }
            }
            if self.state.changed().await.is_err() {
                return Err(RegistryError::new("the process ends"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_known_outlives_a_watcher_for_a_while() {
        let followed = Followed::default();
        let (mut first, new) = followed.watch("stock", ());
        let state = new.expect("there was no follower");
        State::show(&state, Membership::Deleted);
        assert_eq!(first.next().await.unwrap(), Membership::Deleted);
        drop(first);
        let (mut second, new) = followed.watch("stock", ());
        assert!(new.is_none(), "one follower is enough");
        assert_eq!(second.next().await.unwrap(), Membership::Deleted);
        drop(second);
        followed.unused("stock", &state).await;
        assert!(followed.watch("stock", ()).1.is_some(), "the service was forgotten");
    }

    #[tokio::test]
    async fn trouble_is_told_once_and_takes_nothing_away() {
        let followed = Followed::default();
        let (mut first, new) = followed.watch("stock", ());
        let state = new.expect("there was no follower");
        State::show(&state, Membership::Unknown);
        State::fail(&state, "no answer");
        assert_eq!(first.next().await.unwrap(), Membership::Unknown);
        assert_eq!(first.next().await.unwrap_err().to_string(), "no answer");
        let (mut second, _) = followed.watch("stock", ());
        assert_eq!(second.next().await.unwrap(), Membership::Unknown);
        State::show(&state, Membership::Deleted);
        assert_eq!(second.next().await.unwrap(), Membership::Deleted);
        assert_eq!(first.next().await.unwrap(), Membership::Deleted);
    }
}
