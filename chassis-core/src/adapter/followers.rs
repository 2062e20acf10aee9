//! The services that a registry follows, each once for all its watchers.
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    plugin::registry::{Instance, Membership, RegistryError, Watcher},
    tasks::Tasks,
};

/// The services that are followed. A process follows each service that it calls once, however many clients it has;
/// clones share them.
///
/// The last state stays while the server can't be reached. It is reported once, as an error of one watcher, and the
/// watchers go on when the server is back.
#[derive(Clone, Default)]
pub struct Followers(Arc<Mutex<HashMap<String, Arc<Followed>>>>);

/// Receives the instances that the follower of a service reads.
pub struct Feed {
    state: watch::Sender<State>,
    was_known: bool,
}

/// A service that is followed, for all its watchers.
struct Followed {
    service: String,
    state: watch::Receiver<State>,
    /// The task of the follower ends with it.
    _over: watch::Sender<()>,
}

/// The known state of a service.
#[derive(Clone, Default)]
struct State {
    known: Option<Membership>,
    /// The server's revision it is of.
    revision: u64,
    /// Counts the states.
    number: u64,
    trouble: Option<Arc<Trouble>>,
}

/// The server can't be asked: reported to one watcher, which is asked anew for it.
struct Trouble {
    why: String,
    is_told: AtomicBool,
}

/// Watches one service.
struct ServiceWatcher {
    followed: Arc<Followed>,
    followers: Followers,
    tasks: Tasks,
    state: watch::Receiver<State>,
    /// The number of the state that it returned last.
    last: Option<u64>,
}

/// A service without watchers is followed on for so long: who asks anew after an error finds what was known.
const LINGER: Duration = Duration::from_secs(60);
/// The longest wait until the watchers of this process have seen a change.
const SEEN: Duration = Duration::from_secs(1);

// === impl Followers ===

impl Followers {
    /// A watcher of `service`. If there is no follower of it yet, `follow` makes the future of one, which runs among
    /// `tasks` until a minute after its last watcher has gone.
    pub fn watch<F>(&self, service: &str, tasks: &Tasks, follow: impl FnOnce(Feed) -> F) -> Box<dyn Watcher>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let followed = self.followed(service, tasks, follow);
        let state = followed.state.clone();
        let (followers, tasks) = (self.clone(), tasks.clone());
        Box::new(ServiceWatcher { followed, followers, tasks, state, last: None })
    }

    /// Waits, for a second at most, until the watchers of `service` see a state that `is_seen` takes: its
    /// instances, and the server's revision. Returns at once where it is not followed.
    pub async fn seen(&self, service: &str, is_seen: impl Fn(&Membership, u64) -> bool) {
        let followed = self.lock().get(service).cloned();
        let Some(followed) = followed else { return };
        let mut state = followed.state.clone();
        let is_seen =
            |state: &State| state.known.as_ref().is_some_and(|known| is_seen(known, state.revision));
        let _ = timeout(SEEN, state.wait_for(is_seen)).await;
    }

    fn followed<F>(&self, service: &str, tasks: &Tasks, follow: impl FnOnce(Feed) -> F) -> Arc<Followed>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut all = self.lock();
        if let Some(followed) = all.get(service) {
            return followed.clone();
        }
        let (state, known) = watch::channel(State::default());
        let (over, mut is_over) = watch::channel(());
        let new = Arc::new(Followed { service: service.to_owned(), state: known, _over: over });
        let following = follow(Feed { state, was_known: false });
        tasks.spawn(async move {
            tokio::select! {
                _ = is_over.changed() => {}
                () = following => {}
            }
        });
        all.insert(service.to_owned(), new.clone());
        new
    }

    /// Nothing panics while it is held; a poisoned lock would be as good as new.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Followed>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Feed ===

impl Feed {
    /// Shows the watchers these instances, as they are at the server's `revision`. A service of which there was never
    /// an entry, also no refused one, is unknown: `is_there` says whether there is one.
    pub fn show(&mut self, instances: Vec<Arc<Instance>>, is_there: bool, revision: u64) {
        self.was_known |= is_there;
        let known = match self.was_known {
            true => Membership::Known(instances),
            false => Membership::Unknown,
        };
        self.state.send_modify(|state| {
            *state = State { known: Some(known), revision, number: state.number + 1, trouble: None };
        });
    }

    /// Reports to one watcher that the server can't be asked, and why.
    pub fn fail(&mut self, why: String) {
        let trouble = Some(Arc::new(Trouble { why, is_told: AtomicBool::new(false) }));
        self.state.send_modify(|state| state.trouble = trouble);
    }
}

// === impl ServiceWatcher ===

#[async_trait]
impl Watcher for ServiceWatcher {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        loop {
            {
                let state = self.state.borrow_and_update();
                if let Some(known) = state.known.as_ref().filter(|_| self.last != Some(state.number)) {
                    self.last = Some(state.number);
                    return Ok(known.clone());
                }
                let untold = |trouble: &&Arc<Trouble>| !trouble.is_told.swap(true, Ordering::Relaxed);
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

impl Drop for ServiceWatcher {
    fn drop(&mut self) {
        let (followers, followed) = (Arc::downgrade(&self.followers.0), Arc::downgrade(&self.followed));
        self.tasks.spawn(async move {
            sleep(LINGER).await;
            let (Some(followers), Some(followed)) = (followers.upgrade(), followed.upgrade()) else { return };
            let mut all = followers.lock().unwrap_or_else(PoisonError::into_inner);
            // The table's own, and this one.
            if Arc::strong_count(&followed) == 2 {
                all.remove(&followed.service);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn watchers_share_a_follower_which_ends_a_minute_after_the_last_one() {
        let (followers, tasks) = (Followers::default(), Tasks::new());
        let watch = || {
            followers.watch("stock", &tasks, |mut feed| async move {
                feed.show(vec![Instance::new("stock", "a").into()], true, 1);
                std::future::pending::<()>().await;
                drop(feed);
            })
        };
        let (mut first, mut second) = (watch(), watch());
        for watcher in [&mut first, &mut second] {
            assert_eq!(watcher.next().await.unwrap(), Membership::known([Instance::new("stock", "a")]));
        }
        assert_eq!(tasks.running(), 1);
        drop((first, second));
        sleep(LINGER / 2).await;
        assert!(followers.lock().contains_key("stock"));
        sleep(LINGER).await;
        assert!(!followers.lock().contains_key("stock"));
        tokio::task::yield_now().await;
        assert_eq!(tasks.running(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_is_told_once_and_what_is_known_stays() {
        let (followers, tasks) = (Followers::default(), Tasks::new());
        let (fed, feed) = tokio::sync::oneshot::channel();
        let mut first = followers.watch("stock", &tasks, |feed| async move { drop(fed.send(feed)) });
        let mut feed = feed.await.unwrap_or_else(|_| panic!("the follower runs"));
        feed.show(Vec::new(), false, 1);
        assert_eq!(first.next().await.unwrap(), Membership::Unknown);
        feed.fail("no route".into());
        assert_eq!(first.next().await.unwrap_err().to_string(), "no route");
        let mut second = followers.watch("stock", &tasks, |_| async {});
        assert_eq!(second.next().await.unwrap(), Membership::Unknown);
        for watcher in [&mut first, &mut second] {
            assert!(timeout(Duration::from_secs(9), watcher.next()).await.is_err(), "nothing is new");
        }
        feed.show(Vec::new(), true, 7);
        followers.seen("stock", |known, revision| *known == Membership::Known(vec![]) && revision == 7).await;
        feed.show(Vec::new(), false, 8); // it was there
        assert_eq!(first.next().await.unwrap(), Membership::Known(Vec::new()));
    }
}
