//! Follows the registry of a cluster permanently, at a bounded pace, whatever the registry does.
//!
//! A registry is foreign code. After a panic or an error, which is reported, it is called again after a pause,
//! and the last good set is kept meanwhile; a call that never answers is abandoned; a registry that always has
//! changes is polled at a pace that leaves the thread to others.
//!
//! What takes time in proportion to the number of instances is the work of the [`View`]: large sets are compared and
//! applied on a thread that serves no calls.
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    Cluster,
    directory::{Listed, NotKnown},
    last_good::{LastGood, Of},
    offload::{IN_PLACE, drop_list, offload},
    view::{Summary, View},
};
use crate::{
    clock::Instant,
    event::Event,
    plugin::registry::{Membership, Registry, RegistryError, Watcher},
    tasks::{backoff, catch, caught},
};

/// The time for which calls to an unknown service wait for the names of the known ones, after the first moments of the
/// process.
const SERVICES_WAIT: Duration = Duration::from_millis(100);
/// While calls to an unknown service fail, their error is renewed in this interval.
const RENEWED: Duration = Duration::from_secs(10);
/// The error is also renewed this long before calls stop waiting for services that were not announced yet.
const BEFORE_GRACE_ENDS: Duration = Duration::from_millis(500);
/// A registry that has neither begun to watch nor answered after this time is called again.
const ANSWER: Duration = Duration::from_secs(30);
/// While a registry has not answered for this time, calls use the last good instances on disk. A start may have waited
/// a second for a config center before: together they are less than 3 s.
const LATE: Duration = Duration::from_millis(1_500);
/// The longest pause before a registry is called again.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// The same while nothing is known of the service, so that its calls fail: a registry that is back is noticed soon.
const LONGEST_BLIND_PAUSE: Duration = Duration::from_secs(1);
/// The interval of reports about a registry that fails for an unchanged reason.
const REMINDER: Duration = Duration::from_secs(60);
/// Changes in quick succession are applied at once up to [`QUICK`], then one in this time: the newest.
const PACE: Duration = Duration::from_millis(20);
const QUICK: u32 = 16;
/// The number of changes that are skipped at a time for a newer one.
const MOST_PASSED: usize = 64;
/// Changes of a large set may take one in so many parts of the time of a thread.
const SHARE: u32 = 2;

/// A cluster and its position in the registry's changes.
struct Follower<'a> {
    cluster: &'a Arc<Cluster>,
    registry: &'a dyn Registry,
    /// Locked by the work that is under way, of which there is one at a time.
    view: Arc<Mutex<View>>,
    /// The outcome of the last work.
    summary: Summary,
    pace: Pace,
    failures: u32,
    /// The last error, and the time of its report.
    reported: Option<(String, Instant)>,
    /// The file of the last good set; `None` if none is kept.
    last_good: Option<LastGood>,
    /// When the error of calls is renewed next, while the service is unknown.
    renewal: Option<Renewal>,
}

/// When an error is renewed.
#[derive(Clone, Copy)]
struct Renewal {
    at: Instant,
    /// The last call before the error was made: it is only renewed for later ones. `None`: there is no error yet.
    last_asked: Option<Instant>,
}

/// The pace at which changes are applied.
#[derive(Default)]
struct Pace {
    /// The time at which the allowance is complete again.
    whole: Option<Instant>,
}

/// Keeps `cluster` equal to the registry's set, and keeps the last good set while the registry does not answer.
/// Ends when an unknown service was not called for a while.
pub(super) async fn follow(cluster: Arc<Cluster>, following: u64) {
    let mut follower = Follower::new(&cluster, following);
    let (last_good, snapshots) = (follower.last_good.clone(), follower.view().snapshots());
    let saving = async {
        match last_good.zip(snapshots) {
            Some((last_good, snapshots)) => last_good.keep(snapshots).await,
            None => std::future::pending().await,
        }
    };
    let followed = async {
        loop {
            // Twice: a watcher that panicked is dropped outside of that panic, and may panic again.
            let error = match caught(follower.watch()).await {
                Ok(error) => error,
                Err(panicked) => RegistryError::new(panicked.to_string()),
            };
            follower.report(&error);
            follower.restore().await;
            let longest = if follower.summary.is_unset { LONGEST_BLIND_PAUSE } else { LONGEST_PAUSE };
            let pause = backoff(follower.failures, longest, cluster.random());
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        biased;
        () = cluster.retired(following) => {}
        () = saving => {}
        () = followed => {}
    }
}

// === impl Follower ===

impl<'a> Follower<'a> {
    fn new(cluster: &'a Arc<Cluster>, following: u64) -> Self {
        let registry = &*cluster.lookup.registry;
        let of = || Of {
            registry: registry.name().to_owned(),
            environment: cluster.lookup.environment.to_string(),
            service: cluster.registered.to_string(),
            listener: cluster.listener.to_string(),
        };
        let last_good = cluster.lookup.last_good.as_ref();
        // The name of the registry comes from code of another crate.
        let last_good =
            last_good.and_then(|config| catch(|| LastGood::new(config, of(), cluster.random().clone())).ok());
        Follower {
            cluster,
            registry,
            view: Arc::new(Mutex::new(View::new(following, last_good.is_some()))),
            summary: Summary::default(),
            pace: Pace::default(),
            failures: 0,
            reported: None,
            last_good,
            renewal: None,
        }
    }

    /// Has the view do some work that concerns this many instances, and those that are accepted.
    async fn work<T: Send + 'static>(
        &mut self,
        instances: usize,
        work: impl FnOnce(&mut View, &Cluster) -> T + Send + 'static,
    ) -> T {
        let (view, cluster) = (self.view.clone(), self.cluster.clone());
        let locked = move || {
            let mut view = view.lock().unwrap_or_else(PoisonError::into_inner);
            let done = work(&mut view, &cluster);
            (done, view.summary(&cluster))
        };
        let (done, summary) = offload(instances.max(self.summary.instances), locked).await;
        self.summary = summary;
        done
    }

    /// The view, in its intervals of rest. After a panic it is still usable: the next answer replaces it.
    fn view(&self) -> std::sync::MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows one watcher until it fails.
    async fn watch(&mut self) -> RegistryError {
        let (registry, service) = (self.registry, self.cluster.registered.clone());
        let begun = self.answer_of(registry.watch(&service)).await;
        let mut watcher = match begun.and_then(|begun| begun.unwrap_or_else(|_| Err(late("watch")))) {
            Ok(watcher) => watcher,
            Err(error) => return error,
        };
        let error = self.receive(&mut *watcher).await;
        match catch(|| drop(watcher)) {
            Ok(()) => error,
            Err(panicked) => RegistryError::new(panicked.to_string()),
        }
    }

    /// The answer to `question`, if it comes in time. While no answer has come yet, calls wait; so the instances on disk
    /// are used before that.
    async fn answer_of<T>(
        &mut self,
        question: impl Future<Output = T>,
    ) -> Result<Result<T, tokio::time::error::Elapsed>, RegistryError> {
        let mut asked = std::pin::pin!(ask(tokio::time::timeout(ANSWER, question)));
        if self.last_good.is_some() && self.summary.is_unset {
            if let Ok(answer) = tokio::time::timeout(LATE, &mut asked).await {
                return answer;
            }
            self.restore().await;
        }
        asked.await
    }

    /// Uses the instances on disk, if the registry has not answered yet. They are checked like an answer.
    async fn restore(&mut self) {
        let Some(last_good) = self.last_good.as_ref().filter(|_| self.summary.is_unset) else { return };
        let Some((instances, age)) = last_good.load().await else { return };
        let restored =
            self.work(instances.len(), move |view, cluster| view.restore(cluster, instances)).await;
        if let Some(count) = restored {
            let service = self.cluster.service().clone();
            self.cluster.reporter().events.emit(Event::LastGoodUsed { service, instances: count, age });
        }
    }

    async fn receive(&mut self, watcher: &mut dyn Watcher) -> RegistryError {
        let first = self.answer_of(watcher.next()).await;
        let mut next = first.and_then(|first| first.unwrap_or_else(|_| Err(late("return the instances"))));
        loop {
            let took = match next {
                Ok(said) => self.take_in(said).await,
                Err(error) => return error,
            };
            // Other tasks get their turn, even if the registry always has changes.
            tokio::task::yield_now().await;
            next = match self.pace.take(Instant::now(), took) {
                Some(until) => match self.newest(watcher, until).await {
                    (Some(newest), Some(error)) => {
                        self.take_in(newest).await;
                        return error;
                    }
                    (None, Some(error)) => return error,
                    (Some(newest), None) => Ok(newest),
                    (None, None) => self.news(watcher).await,
                },
                None => self.news(watcher).await,
            };
        }
    }

    /// Waits for the registry's next answer; meanwhile kept instances may expire or turn out to be unreachable.
    async fn news(&mut self, watcher: &mut dyn Watcher) -> Result<Membership, RegistryError> {
        let cluster = self.cluster;
        let mut settings = cluster.lookup.hold.subscribe();
        if self.summary.due.is_some() {
            settings.mark_changed(); // it may have changed since the last answer was applied
        }
        loop {
            // Registered before the check, so that no change in between is missed.
            let mut changed = std::pin::pin!(cluster.changed());
            changed.as_mut().enable();
            if self.summary.held > 0 {
                self.work(0, View::give_up_unreachable).await;
            }
            let due = self.summary.due;
            let over = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            let is_large = self.summary.instances > IN_PLACE;
            let changed = async {
                changed.await;
                // Each of many connections is a change: one look at all of them in this time is enough.
                if is_large {
                    tokio::time::sleep(PACE).await;
                }
            };
            let renewed = renewed(cluster, self.registry, self.renewal);
            tokio::select! {
                biased;
                next = ask(watcher.next()) => return next?,
                error = renewed => {
                    self.work(0, |view, cluster| view.explain(cluster, error)).await;
                    self.renewal = Some(self.next_renewal());
                }
                () = over => self.work(0, |view, cluster| view.pass(cluster, Instant::now())).await,
                () = changed, if self.summary.held > 0 => {}
                _ = settings.changed() => self.work(0, |view, cluster| view.pass(cluster, Instant::now())).await,
            }
        }
    }

    /// The newest of the changes before `until`, and the error that ended it.
    async fn newest(
        &mut self,
        watcher: &mut dyn Watcher,
        until: Instant,
    ) -> (Option<Membership>, Option<RegistryError>) {
        let (mut newest, mut passed) = (None, 0);
        let mut over = std::pin::pin!(tokio::time::sleep_until(until.into()));
        loop {
            tokio::select! {
                biased;
                () = &mut over => return (newest, None),
                next = ask(watcher.next()), if passed < MOST_PASSED => match next.and_then(|next| next) {
                    Ok(said) => {
                        let before = newest.replace(said);
                        drop_list(before.as_ref().map_or(0, Membership::size), before);
                        passed += 1;
                    }
                    Err(error) => return (newest, Some(error)),
                },
            }
            tokio::task::yield_now().await;
        }
    }

    /// Applies an answer; returns the time that it took.
    async fn take_in(&mut self, said: Membership) -> Duration {
        self.failures = 0;
        self.reported = None;
        *self.cluster.troubled() = None;
        // In the first moments of the process the service may be announced at any time, which must not be missed; and no
        // call needs the error yet.
        let is_late = Instant::now() >= self.cluster.grace_ends();
        let error = match said {
            Membership::Unknown if is_late => {
                let listed = self.cluster.lookup.directory.listed(self.registry);
                match tokio::time::timeout(SERVICES_WAIT, listed).await {
                    Ok(listed) => Some(not_known(self.cluster, listed).await),
                    Err(_) => None,
                }
            }
            _ => None,
        };
        let (began, is_explained) = (Instant::now(), error.is_some());
        self.work(said.size(), move |view, cluster| view.take_in(cluster, said, error)).await;
        let at_once = Renewal { at: Instant::now(), last_asked: None };
        let renewal = if is_explained { self.next_renewal() } else { at_once };
        self.renewal = self.summary.is_unknown.then_some(renewal);
        began.elapsed()
    }

    /// When the error of calls to this unknown service, which was made now, is renewed.
    fn next_renewal(&self) -> Renewal {
        let (now, usual) = (Instant::now(), Instant::now() + RENEWED);
        let before = self.cluster.grace_ends().checked_sub(BEFORE_GRACE_ENDS);
        let at = before.filter(|before| now < *before).map_or(usual, |before| before.min(usual));
        Renewal { at, last_asked: Some(self.cluster.last_asked()) }
    }

    fn report(&mut self, error: &RegistryError) {
        self.failures = self.failures.saturating_add(1);
        self.view().outdated();
        let (service, error, now) = (self.cluster.service().clone(), chain(error), Instant::now());
        *self.cluster.troubled() = Some(error.as_str().into());
        self.cluster.reporter().metrics.registry_failed();
        let is_reported = |(before, at): &(String, Instant)| *before == error && now < *at + REMINDER;
        if !self.reported.as_ref().is_some_and(is_reported) {
            self.reported = Some((error.clone(), now));
            // One document or one server is the cause for all services: one line reports it.
            self.cluster
                .reporter()
                .events
                .emit_caused(&error.clone(), Event::RegistryUnreachable { service, error });
        }
    }
}

// === impl Pace ===

impl Pace {
    /// Counts a change that was applied at `now` and took this long; returns until when the next one must wait, if at
    /// all.
    fn take(&mut self, now: Instant, took: Duration) -> Option<Instant> {
        let whole = self.whole.filter(|whole| *whole > now).unwrap_or(now) + PACE.max(took * SHARE);
        self.whole = Some(whole);
        let until = whole.checked_sub(PACE * QUICK)?;
        (until > now).then_some(until)
    }
}

/// The answer of user code; its panic is an error.
async fn ask<T>(question: impl Future<Output = T>) -> Result<T, RegistryError> {
    caught(question).await.map_err(|panicked| RegistryError::new(panicked.to_string()))
}

fn late(what: &str) -> RegistryError {
    RegistryError::new(format!("it did not {what} within {ANSWER:?}"))
}

/// The error of calls to an unknown service, with the names of the known ones.
async fn not_known(cluster: &Cluster, listed: Listed) -> NotKnown {
    let (service, registry) = (cluster.registered.clone(), cluster.registry.clone());
    cluster.lookup.directory.not_known(listed, service, registry).await
}

/// The same at this time, if there were calls since; otherwise later. Never without a time.
async fn renewed(cluster: &Cluster, registry: &dyn Registry, renewal: Option<Renewal>) -> NotKnown {
    let Some(Renewal { mut at, last_asked }) = renewal else { return std::future::pending().await };
    loop {
        tokio::time::sleep_until(at.into()).await;
        if cluster.is_waited_for() || last_asked != Some(cluster.last_asked()) {
            return not_known(cluster, cluster.lookup.directory.listed(registry).await).await;
        }
        at = Instant::now() + RENEWED;
    }
}

fn chain(error: &RegistryError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A quick succession of changes is applied at once, and endless changes at a pace.
    #[test]
    fn changes_have_a_pace() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        let quick = (0..100).take_while(|_| pace.take(now, Duration::ZERO).is_none()).count();
        assert_eq!(quick, QUICK as usize);
        let (began, mut taken) = (now, 0);
        while now < began + Duration::from_secs(10) {
            now = pace.take(now, Duration::ZERO).unwrap_or(now);
            taken += 1;
        }
        assert!((495..=505).contains(&taken), "{taken} in ten seconds");
        // After a pause changes are applied at once again.
        now += Duration::from_secs(1);
        assert_eq!((0..100).take_while(|_| pace.take(now, Duration::ZERO).is_none()).count(), QUICK as usize);
    }

    /// Changes that take long leave most of the thread's time to others.
    #[test]
    fn long_changes_have_a_share() {
        let (mut pace, mut now, took) = (Pace::default(), Instant::now(), Duration::from_millis(100));
        let (began, mut taken) = (now, 0);
        while now < began + Duration::from_secs(20) {
            now += took;
            now = pace.take(now, took).unwrap_or(now);
            taken += 1;
        }
        assert!((98..=105).contains(&taken), "{taken} of 100 ms in 20 s");
    }
}
