//! Follows the registry of a cluster permanently, at a bounded pace, whatever the registry does.
//!
//! A registry is foreign code. After a panic or an error, which is reported, it is called again after a pause,
//! and the last good set is kept meanwhile; a call that never answers is abandoned; a registry that always has
//! changes is polled at a pace that leaves the thread to others.
use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use super::{
    Cluster,
    belief::{Belief, News},
    last_good::{LastGood, Of, Snapshot},
    link::Connection,
    members::Hint,
};
use crate::{
    algorithm::nearest,
    clock::Instant,
    event::Event,
    plugin::registry::{Instance, Membership, Registry, RegistryError, Watcher},
    tasks::{backoff, catch, caught},
};

/// The time for which calls to an unknown service wait for the most similar known name.
const SERVICES_WAIT: Duration = Duration::from_millis(100);
/// A registry that has neither begun to watch nor answered after this time is called again.
const ANSWER: Duration = Duration::from_secs(30);
/// While a registry has not answered for this time, calls use the last good instances on disk.
const LATE: Duration = Duration::from_secs(2);
/// The longest pause before a registry is called again.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// The interval of reports about a registry that fails for an unchanged reason.
const REMINDER: Duration = Duration::from_secs(60);
/// Changes in quick succession are applied at once up to [`QUICK`], then one in this time: the newest.
const PACE: Duration = Duration::from_millis(20);
const QUICK: u32 = 16;
/// The number of changes that are skipped at a time for a newer one.
const MOST_PASSED: usize = 64;
/// The number of kept instances that are connected to at a time, to check whether they run.
const PROBES: usize = 32;
/// The number of invalid instances of one answer that are reported individually.
const MOST_REFUSED: usize = 10;
/// The number of listeners or environments of other instances that a message lists for a caller that finds none.
const MOST_LISTED: usize = 8;

/// A cluster and its position in the registry's changes.
struct Follower<'a> {
    cluster: &'a Cluster,
    /// The number of this follower.
    following: u64,
    registry: &'a dyn Registry,
    belief: Belief,
    pace: Pace,
    failures: u32,
    /// The last error, and the time of its report.
    reported: Option<(String, Instant)>,
    /// The invalid instances of the last answer.
    refused: HashSet<String>,
    /// The number of kept instances in the last report.
    held: usize,
    /// The reason why none of the instances of the last answer can be called, if there were some.
    others: Option<Hint>,
    /// The file of the last good set; `None` if none is kept.
    last_good: Option<LastGood>,
    /// Takes what is to be written to it.
    save: tokio::sync::watch::Sender<Snapshot>,
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
    let (last_good, snapshots) = (follower.last_good.clone(), follower.save.subscribe());
    let saving = async {
        match last_good {
            Some(last_good) => last_good.keep(snapshots).await,
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
            let pause = backoff(follower.failures, LONGEST_PAUSE, cluster.random());
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
    fn new(cluster: &'a Cluster, following: u64) -> Self {
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
            following,
            registry,
            belief: Belief::default(),
            pace: Pace::default(),
            failures: 0,
            reported: None,
            refused: HashSet::new(),
            held: 0,
            others: None,
            last_good,
            save: Default::default(),
        }
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
        if self.last_good.is_some() && self.belief.is_unset() {
            if let Ok(answer) = tokio::time::timeout(LATE, &mut asked).await {
                return answer;
            }
            self.restore().await;
        }
        asked.await
    }

    /// Uses the instances on disk, if the registry has not answered yet. They are checked like an answer.
    async fn restore(&mut self) {
        let Some(last_good) = self.last_good.as_ref().filter(|_| self.belief.is_unset()) else { return };
        let Some((instances, age)) = last_good.load().await else { return };
        let instances = self.usable(instances);
        if instances.is_empty() {
            return;
        }
        let count = instances.len();
        if let News::Set { known, .. } = self.belief.accept(Membership::Known(instances), Instant::now()) {
            self.cluster.replace(self.following, known, None, self.belief.set(), false);
            let service = self.cluster.service().clone();
            self.cluster.reporter().events.emit(Event::LastGoodUsed { service, instances: count, age });
        }
    }

    async fn receive(&mut self, watcher: &mut dyn Watcher) -> RegistryError {
        let first = self.answer_of(watcher.next()).await;
        let mut next = first.and_then(|first| first.unwrap_or_else(|_| Err(late("return the instances"))));
        loop {
            match next {
                Ok(said) => self.take_in(said).await,
                Err(error) => return error,
            }
            // Other tasks get their turn, even if the registry always has changes.
            tokio::task::yield_now().await;
            next = match self.pace.take(Instant::now()) {
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
        loop {
            // Registered before the check, so that no change in between is missed.
            let mut changed = std::pin::pin!(cluster.changed());
            changed.as_mut().enable();
            let gone = self.unreachable();
            let news = self.belief.give_up(&gone);
            self.apply(news, None);
            let due = self.belief.due();
            let over = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                next = ask(watcher.next()) => return next?,
                () = over => {
                    let news = self.belief.pass(Instant::now());
                    self.apply(news, None);
                }
                () = changed, if self.belief.held() > 0 => {}
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
                    Ok(said) => (newest, passed) = (Some(said), passed + 1),
                    Err(error) => return (newest, Some(error)),
                },
            }
            tokio::task::yield_now().await;
        }
    }

    async fn take_in(&mut self, said: Membership) {
        self.failures = 0;
        self.reported = None;
        let said = match said {
            Membership::Known(instances) => {
                self.others = self.cluster.out_of_reach(&instances);
                Membership::Known(self.usable(instances))
            }
            other => {
                self.others = None;
                other
            }
        };
        let near = match said {
            Membership::Unknown => nearest_of(&self.cluster.registered, self.registry).await,
            _ => None,
        };
        let news = self.belief.accept(said, Instant::now());
        self.apply(news, near);
        self.save.send_if_modified(|snapshot| {
            if snapshot.instances.is_none() && !self.belief.set().is_empty() {
                snapshot.instances = Some(self.belief.set().to_vec());
            }
            !std::mem::replace(&mut snapshot.is_current, true)
        });
    }

    fn apply(&mut self, news: News, near: Option<Arc<str>>) {
        let cluster = self.cluster;
        let service = || cluster.service().clone();
        match news {
            News::None => {}
            News::EmptyHeld(kept) => {
                cluster.reporter().events.emit(Event::EmptySetHeld { service: service(), kept });
            }
            News::Set { known, returned, held } => {
                let hint = near.map(Hint::Name).or_else(|| self.others.clone());
                // A first answer without instances may come from a registry that has lost them: the file stays.
                let had_some = cluster.with_members(|members| !members.nodes().is_empty());
                if self.last_good.is_some() && (had_some || !self.belief.set().is_empty()) {
                    let instances = Some(self.belief.set().to_vec());
                    self.save.send_modify(|snapshot| *snapshot = Snapshot { instances, is_current: true });
                }
                cluster.replace(self.following, known, hint, self.belief.set(), returned);
                let held_before = std::mem::replace(&mut self.held, self.belief.held());
                cluster.count_held(held_before, self.held);
                if held > 0 {
                    let left = self.belief.set().len() - self.belief.held();
                    cluster.reporter().events.emit(Event::RemovalsHeld { service: service(), held, left });
                    self.probe();
                }
            }
        }
    }

    /// Connects to some of the kept instances, unless calls do so already: an unreachable one is removed.
    fn probe(&self) {
        let members = self.cluster.members();
        let idle =
            |node: &&Arc<super::Node>| self.belief.holds(node.id()) && node.connection() == Connection::Idle;
        members.nodes().iter().filter(idle).take(PROBES).for_each(|node| node.wake());
    }

    /// The kept instances that cannot be connected to.
    fn unreachable(&self) -> Vec<String> {
        if self.belief.held() == 0 {
            return Vec::new();
        }
        let members = self.cluster.members();
        let held = members.nodes().iter().filter(|node| self.belief.holds(node.id()));
        let gone = held.filter(|node| node.connection() == Connection::TransientFailure);
        gone.map(|node| node.id().to_owned()).collect()
    }

    fn report(&mut self, error: &RegistryError) {
        self.failures = self.failures.saturating_add(1);
        self.save.send_if_modified(|snapshot| std::mem::replace(&mut snapshot.is_current, false));
        let (service, error, now) = (self.cluster.service().clone(), chain(error), Instant::now());
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

    /// The instances that can be called over this cluster's protocol, each once.
    fn usable(&mut self, mut instances: Vec<Arc<Instance>>) -> Vec<Arc<Instance>> {
        let cluster = self.cluster;
        let before = std::mem::take(&mut self.refused);
        let (mut refused, mut new) = (HashSet::new(), 0);
        let mut refuse = |id: &str, why: String| {
            if !before.contains(&why) && !refused.contains(&why) {
                new += 1;
                cluster.reporter().metrics.instance_refused();
                if new <= MOST_REFUSED {
                    let (service, instance) = (cluster.service().clone(), id.to_owned());
                    cluster
                        .reporter()
                        .events
                        .emit_caused(&why, Event::InstanceRefused { service, instance, why: why.clone() });
                }
            }
            refused.insert(why);
        };
        let mut seen = HashSet::new();
        instances.retain(|instance| {
            if !instance.addresses.contains_key(&cluster.listener)
                || !instance.is_in(&cluster.lookup.environment)
            {
                return false;
            }
            if let Err(error) = instance.check_for(&cluster.registered) {
                refuse(&instance.id, error.to_string());
                return false;
            }
            let first = seen.insert(instance.id.clone());
            if !first {
                refuse(&instance.id, format!("another instance has the id `{}`", instance.id));
            }
            first
        });
        if new > MOST_REFUSED {
            let service = &**cluster.service();
            tracing::warn!(target: "chassis", service, refused = new, "more instances were refused than are named");
        }
        self.refused = refused;
        instances
    }
}

// === impl Pace ===

impl Pace {
    /// Counts a change that is applied at `now`; returns until when the next one must wait, if at all.
    fn take(&mut self, now: Instant) -> Option<Instant> {
        let whole = self.whole.filter(|whole| *whole > now).unwrap_or(now) + PACE;
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

/// The most similar known service. Because calls wait, a registry that cannot answer at once is not waited for.
async fn nearest_of(name: &str, registry: &dyn Registry) -> Option<Arc<str>> {
    let mut all = ask(tokio::time::timeout(SERVICES_WAIT, registry.services())).await.ok()?.ok()?;
    all.sort_unstable(); // so that among equally similar names the choice is always the same
    nearest(name, all.iter().map(String::as_str).filter(|other| *other != name)).map(Into::into)
}

/// The first few names, because a registry may contain any number of them.
fn listed(names: BTreeSet<&str>) -> Arc<str> {
    let mut first: Vec<_> =
        names.iter().take(MOST_LISTED).map(|name| name.escape_debug().to_string()).collect();
    if names.len() > MOST_LISTED {
        first.push("…".to_owned());
    }
    first.join(", ").into()
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

impl Cluster {
    /// The reason why no calls go to any of `instances`: none has the listener, or those that have it are in other
    /// environments.
    fn out_of_reach(&self, instances: &[Arc<Instance>]) -> Option<Hint> {
        let has_listener = |instance: &&Arc<Instance>| instance.addresses.contains_key(&self.listener);
        let (mut others, mut in_reach) = (BTreeSet::new(), false);
        for instance in instances.iter().filter(has_listener) {
            in_reach |= instance.is_in(&self.lookup.environment);
            others.insert(instance.environment());
        }
        if in_reach {
            return None;
        }
        if !others.is_empty() {
            return Some(Hint::Environments(listed(others)));
        }
        let spoken: BTreeSet<_> = instances.iter().flat_map(|instance| instance.addresses.keys()).collect();
        (!spoken.is_empty()).then(|| Hint::Protocols(listed(spoken)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A quick succession of changes is applied at once, and endless changes at a pace.
    #[test]
    fn changes_have_a_pace() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        let quick = (0..100).take_while(|_| pace.take(now).is_none()).count();
        assert_eq!(quick, QUICK as usize);
        let (began, mut taken) = (now, 0);
        while now < began + Duration::from_secs(10) {
            now = pace.take(now).unwrap_or(now);
            taken += 1;
        }
        assert!((495..=505).contains(&taken), "{taken} in ten seconds");
        // After a pause changes are applied at once again.
        now += Duration::from_secs(1);
        assert_eq!((0..100).take_while(|_| pace.take(now).is_none()).count(), QUICK as usize);
    }
}
