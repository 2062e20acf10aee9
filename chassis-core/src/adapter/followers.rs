//! The services that a registry follows, each once for all its watchers.
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
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
    cluster::{drop_list, offload},
    plugin::registry::{Instance, Membership, RegistryError, Watcher},
    tasks::Tasks,
};

/// The followed services. A process follows each service that it calls once, for any number of clients; clones share
/// them.
///
/// The last state stays while the server cannot be reached. One watcher reports that once, as an error, and the
/// watchers continue when the server is back. All followers end with the last clone and the last watcher.
///
/// `R` is the server's revision of a state.
pub struct Followers<R = u64>(Arc<Table<R>>);

/// Receives the instances that the follower of a service reads.
pub struct Feed<R = u64> {
    state: watch::Sender<State<R>>,
    was_known: bool,
}

/// The followed services by name.
struct Table<R> {
    all: Mutex<HashMap<String, watch::Sender<State<R>>>>,
    /// The tasks of the followers end with it.
    over: watch::Sender<()>,
}

/// The known state of a service.
struct State<R> {
    /// The instances, and the server's revision of them. `None` until the first answer. Shared, because there may be
    /// many instances, and watchers copy them where that delays no call.
    known: Option<(Arc<Membership>, R)>,
    /// Counts the answers.
    number: u64,
    trouble: Option<Trouble>,
}

/// The server cannot be asked: reported by one watcher, once.
struct Trouble {
    why: String,
    is_reported: AtomicBool,
}

/// A follower in the table, which it leaves when it is dropped.
struct Followed<R> {
    service: String,
    state: watch::Sender<State<R>>,
    table: Weak<Table<R>>,
}

/// Watches one service.
struct ServiceWatcher<R> {
    state: watch::Receiver<State<R>>,
    /// The number of the state that it returned last.
    last: Option<u64>,
    _followers: Followers<R>,
}

/// The time for which a service without watchers is still followed: a watcher that is created after an error finds the
/// known state.
const LINGER: Duration = Duration::from_secs(60);
/// The longest wait until the watchers of this process have seen a change.
const SEEN: Duration = Duration::from_secs(1);

// === impl Followers ===

impl<R: Send + Sync + 'static> Followers<R> {
    /// A watcher of `service`. If there is no follower of it yet, `follow` makes the future of one, which runs among
    /// `tasks` until a minute after its last watcher was dropped.
    pub fn watch<F>(
        &self,
        service: &str,
        tasks: &Tasks,
        follow: impl FnOnce(Feed<R>) -> F,
    ) -> Box<dyn Watcher>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let state = self.followed(service, tasks, follow);
        Box::new(ServiceWatcher { state, last: None, _followers: self.clone() })
    }

    /// Waits, for a second at most, until the watchers of `service` see a state that `is_seen` accepts: its
    /// instances, and the server's revision. Returns at once if it is not followed.
    pub async fn seen(&self, service: &str, is_seen: impl Fn(&Membership, &R) -> bool) {
        let state = self.0.lock().get(service).map(watch::Sender::subscribe);
        let Some(mut state) = state else { return };
        let is_seen = |state: &State<R>| state.known.as_ref().is_some_and(|(known, at)| is_seen(known, at));
        let _ = timeout(SEEN, state.wait_for(is_seen)).await;
    }

    /// What `look` finds in the last state of `service`: its instances, and the server's revision. `None` if it is not
    /// followed, or nothing is known.
    pub fn look<T>(&self, service: &str, look: impl FnOnce(&Membership, &R) -> T) -> Option<T> {
        let state = self.0.lock().get(service).map(watch::Sender::subscribe)?;
        let state = state.borrow();
        state.known.as_ref().map(|(known, at)| look(known, at))
    }

    fn followed<F>(
        &self,
        service: &str,
        tasks: &Tasks,
        follow: impl FnOnce(Feed<R>) -> F,
    ) -> watch::Receiver<State<R>>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (state, known) = watch::channel(State { known: None, number: 0, trouble: None });
        {
            let mut all = self.0.lock();
            if let Some(followed) = all.get(service) {
                return followed.subscribe();
            }
            all.insert(service.to_owned(), state.clone());
        }
        let (service, table) = (service.to_owned(), Arc::downgrade(&self.0));
        let followed = Followed { service, state: state.clone(), table };
        let following = follow(Feed { state, was_known: false });
        let mut over = self.0.over.subscribe();
        tasks.spawn(async move {
            tokio::select! {
                _ = over.changed() => {}
                () = followed.unused() => {}
                () = following => {}
            }
        });
        known
    }
}

impl<R> Clone for Followers<R> {
    fn clone(&self) -> Self {
        Followers(self.0.clone())
    }
}

impl<R> Default for Followers<R> {
    fn default() -> Self {
        Followers(Arc::new(Table { all: Mutex::default(), over: watch::Sender::new(()) }))
    }
}

// === impl Table ===

impl<R> Table<R> {
    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<State<R>>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Feed ===

impl<R: Send + Sync + 'static> Feed<R> {
    /// Publishes these instances to the watchers, as they are at the server's `revision`. A service that never had an
    /// entry, also no refused one, is unknown: `is_there` states whether it has one.
    pub fn show(&mut self, instances: Vec<Arc<Instance>>, is_there: bool, revision: R) {
        self.was_known |= is_there;
        let known = match self.was_known {
            true => Membership::Known(instances),
            false => Membership::Unknown,
        };
        self.publish(known, revision);
    }

    /// Publishes what is known of the service to the watchers, as it is at the server's `revision`.
    pub fn publish(&mut self, known: Membership, revision: R) {
        self.publish_shared(Arc::new(known), revision);
    }

    /// The same, for a caller that keeps what is known. What was published before is dropped where that delays no call.
    pub fn publish_shared(&mut self, known: Arc<Membership>, revision: R) {
        let mut before = None;
        self.state.send_modify(|state| {
            before = state.known.replace((known, revision));
            (state.number, state.trouble) = (state.number + 1, None);
        });
        drop_list(before.as_ref().map_or(0, |(known, _)| known.size()), before);
    }

    /// The instances are those of before also at this `revision`.
    pub fn at(&self, revision: R) {
        let mut before = (0, None);
        self.state.send_modify(|state| {
            if let Some((known, at)) = &mut state.known {
                before = (known.size(), Some(std::mem::replace(at, revision)));
            }
        });
        drop_list(before.0, before.1);
    }

    /// Reports to one watcher that the server cannot be asked, and why. The known instances stay.
    pub fn fail(&self, why: String) {
        let trouble = Some(Trouble { why, is_reported: AtomicBool::new(false) });
        self.state.send_modify(|state| state.trouble = trouble);
    }
}

// === impl Followed ===

impl<R> Followed<R> {
    /// Completes when the service has had no watcher for a while. It is no longer in the table then.
    async fn unused(&self) {
        loop {
            self.state.closed().await;
            sleep(LINGER).await;
            let Some(table) = self.table.upgrade() else { return };
            let mut all = table.lock();
            if self.state.receiver_count() == 0 {
                all.remove(&self.service);
                return;
            }
        }
    }
}

impl<R> Drop for Followed<R> {
    fn drop(&mut self) {
        let Some(table) = self.table.upgrade() else { return };
        let mut all = table.lock();
        // Another follower may have begun.
        if all.get(&self.service).is_some_and(|kept| kept.same_channel(&self.state)) {
            all.remove(&self.service);
        }
    }
}

// === impl ServiceWatcher ===

#[async_trait]
impl<R: Send + Sync + 'static> Watcher for ServiceWatcher<R> {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        loop {
            let news = {
                let state = self.state.borrow_and_update();
                let known = state.known.as_ref().filter(|_| self.last != Some(state.number));
                let news = known.map(|(known, _)| (known.clone(), state.number));
                let is_new = |trouble: &&Trouble| !trouble.is_reported.swap(true, Ordering::Relaxed);
                if news.is_none()
                    && let Some(trouble) = state.trouble.as_ref().filter(is_new)
                {
                    return Err(RegistryError::new(trouble.why.clone()));
                }
                news
            };
            if let Some((known, number)) = news {
                let answer = offload(known.size(), move || Membership::clone(&known)).await;
                self.last = Some(number); // not before: the future may be dropped meanwhile
                return Ok(answer);
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

    /// A watcher of `stock`, and the feed of its new follower.
    async fn begun(followers: &Followers, tasks: &Tasks) -> (Box<dyn Watcher>, Feed) {
        let (sent, feed) = tokio::sync::oneshot::channel();
        let watcher = followers.watch("stock", tasks, |feed| async move {
            drop(sent.send(feed));
            std::future::pending().await
        });
        (watcher, feed.await.unwrap_or_else(|_| panic!("there was a follower")))
    }

    /// A further watcher, of the same follower.
    fn further(followers: &Followers, tasks: &Tasks) -> Box<dyn Watcher> {
        followers.watch("stock", tasks, |_| async { panic!("one follower is enough") })
    }

    #[tokio::test(start_paused = true)]
    async fn watchers_share_a_follower_which_ends_a_minute_after_the_last_one() {
        let (followers, tasks) = (Followers::default(), Tasks::new());
        let (mut first, mut feed) = begun(&followers, &tasks).await;
        let mut second = further(&followers, &tasks);
        feed.show(vec![Instance::new("stock", "a").into()], true, 1);
        for watcher in [&mut first, &mut second] {
            assert_eq!(watcher.next().await.unwrap(), Membership::known([Instance::new("stock", "a")]));
        }
        assert_eq!(tasks.running(), 1);
        for _ in 0..2 {
            drop((first, second));
            sleep(LINGER / 2).await;
            (first, second) = (further(&followers, &tasks), further(&followers, &tasks));
            assert_eq!(first.next().await.unwrap(), Membership::known([Instance::new("stock", "a")]));
        }
        drop((first, second));
        sleep(LINGER * 2).await;
        assert_eq!(tasks.running(), 0);
        begun(&followers, &tasks).await;
    }

    /// Of a large set a watcher returns a copy that another thread makes. A future that is dropped meanwhile loses nothing.
    #[tokio::test]
    async fn a_large_set_arrives_although_the_future_is_dropped() {
        let (followers, tasks) = (Followers::default(), Tasks::new());
        let (mut first, mut feed) = begun(&followers, &tasks).await;
        let mut second = further(&followers, &tasks);
        for revision in 1..50 {
            let all: Vec<_> =
                (0..1_000).map(|n| Arc::new(Instance::new("stock", format!("{revision}-{n}")))).collect();
            feed.show(all.clone(), true, revision);
            let early = tokio::select! {
                biased;
                early = first.next() => Some(early), // the other thread was faster
                () = std::future::ready(()) => None,
            };
            let answer = match early {
                Some(early) => early,
                None => first.next().await,
            };
            for answer in [answer, second.next().await] {
                assert_eq!(answer.unwrap(), Membership::Known(all.clone()));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn followers_end_with_the_last_clone_and_watcher() {
        let (followers, tasks) = (Followers::default(), Tasks::new());
        let (watcher, _feed) = begun(&followers, &tasks).await;
        drop(followers);
        sleep(LINGER * 2).await;
        assert_eq!(tasks.running(), 1, "it has a watcher");
        drop(watcher);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(tasks.running(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_that_panicked_is_replaced() {
        let (followers, tasks) = (Followers::<u64>::default(), Tasks::new());
        let mut watcher = followers.watch("stock", &tasks, |feed| async move {
            drop(feed);
            panic!("on purpose")
        });
        assert!(watcher.next().await.is_err());
        begun(&followers, &tasks).await;
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_is_reported_once_and_what_is_known_stays() {
        let (followers, tasks) = (Followers::default(), Tasks::new());
        let (mut first, mut feed) = begun(&followers, &tasks).await;
        feed.show(Vec::new(), false, 1);
        assert_eq!(first.next().await.unwrap(), Membership::Unknown);
        feed.fail("no route".into());
        assert_eq!(first.next().await.unwrap_err().to_string(), "no route");
        let mut second = further(&followers, &tasks);
        assert_eq!(second.next().await.unwrap(), Membership::Unknown);
        feed.at(2);
        for watcher in [&mut first, &mut second] {
            assert!(timeout(Duration::from_secs(9), watcher.next()).await.is_err(), "nothing is new");
        }
        followers.seen("stock", |_, revision| *revision == 2).await;
        feed.show(Vec::new(), true, 7);
        followers
            .seen("stock", |known, revision| *known == Membership::Known(vec![]) && *revision == 7)
            .await;
        feed.show(Vec::new(), false, 8); // it was there
        assert_eq!(first.next().await.unwrap(), Membership::Known(Vec::new()));
    }
}
