//! Puts new versions of the settings in force, and reports the result of each.
use std::{collections::BTreeSet, future::poll_fn, pin::pin, sync::Arc, time::Duration};

use chassis_config::{Change, Finding, Loader, Version};
use chassis_core::{
    Event, Grace, Runtime,
    settings::Settings,
    tasks::{backoff, caught},
};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::{block_in_place, spawn_blocking},
    time::Instant,
};

use crate::{
    ConfigHandle, Document,
    builder::avoided_event,
    crash_guard::{CrashGuard, SURVIVAL},
    document::{Seen, ShutdownSection},
    last_good::LastGood,
    rollout::Rollout,
};

/// A version of the whole document.
pub(crate) type Applied = Version<Document, Settings>;

/// The time a registry has to find the services in the settings before a warning is logged.
const LOOK: Duration = Duration::from_secs(10);

/// The time a registry has to list its services.
const SERVICES: Duration = Duration::from_secs(5);
/// The longest wait after a panic before the settings are followed again.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// Applies the parts of a version that are outside the pipeline.
pub(crate) struct Follower {
    pub(crate) runtime: Runtime,
    pub(crate) config: ConfigHandle,
    /// Where texts of config centers are kept.
    pub(crate) last_good: Option<LastGood>,
    /// The kind of registry that the settings chose at the start.
    pub(crate) registry: Option<String>,
    /// Operations that the descriptors of the builder declare.
    pub(crate) declared: Vec<String>,
    pub(crate) shutdown: chassis_core::Live<ShutdownSection>,
    pub(crate) guard: Option<Arc<CrashGuard>>,
    pub(crate) rollout: Arc<Rollout>,
}

impl Follower {
    /// Follows `loader`, whose last version was `latest`, while this future is polled.
    ///
    /// A panic is reported, and the next change is followed all the same: a missed change would only be noticed
    /// when it is needed.
    pub(crate) async fn follow(self, mut loader: Loader<Document, Settings>, mut latest: Box<Applied>) {
        let (mut pending, mut failures) = (Vec::new(), 0);
        while let Err(panicked) = caught(self.follow_on(&mut loader, &mut latest, &mut pending)).await {
            failures += 1;
            self.runtime.metrics().task_panicked("settings");
            let (task, message) = ("settings".to_owned(), panicked.to_string());
            self.runtime.events().emit(Event::TaskPanicked { task, message });
            tokio::time::sleep(backoff(failures, LONGEST_WAIT, self.runtime.random())).await;
        }
    }

    async fn follow_on(
        &self,
        loader: &mut Loader<Document, Settings>,
        latest: &mut Box<Applied>,
        pending: &mut Vec<String>,
    ) {
        let mut look = Some(Instant::now() + LOOK);
        loop {
            let in_force = self.runtime.policies().get().version();
            let looking = async {
                match look {
                    Some(look) => tokio::time::sleep_until(look).await,
                    None => std::future::pending().await,
                }
                self.warn_of_unseen(latest).await;
            };
            // Changes do not wait for a registry that does not answer: one of them may be a roll-back.
            let change = tokio::select! {
                change = aside(loader.next()) => change,
                () = looking => {
                    look = None;
                    continue;
                }
            };
            match change {
                Change::Applied(version) => {
                    aside(async { self.apply(&version, pending) }).await;
                    *latest = version;
                    look = Some(Instant::now() + LOOK);
                }
                Change::Refused(refusal) => {
                    self.runtime.metrics().config_refused("refused");
                    let problems = refusal.problems.iter().map(ToString::to_string).collect();
                    self.runtime.events().emit(Event::ConfigRefused { in_force, problems });
                }
                Change::Unreadable(unreadable) => {
                    self.runtime.metrics().config_refused("unreadable");
                    let error = unreadable.to_string();
                    self.runtime.events().emit(Event::ConfigUnreadable { in_force, error });
                }
                Change::Avoided(avoided) => self.runtime.events().emit(avoided_event(in_force, avoided)),
                Change::Held(held) => {
                    let changed = held.changed.iter().map(ToString::to_string).collect();
                    self.runtime.events().emit(Event::ConfigHeld { in_force, pinned: held.pinned, changed });
                }
                Change::Restored(number) => {
                    self.runtime.metrics().config_applied(number, &self.runtime.inspect().hash);
                    let changed = vec!["readable again, and unchanged".to_owned()];
                    self.runtime.events().emit(Event::ConfigApplied { version: number, changed });
                }
            }
        }
    }

    /// Warns of names that were not seen by now, which are probably misspelt. The registry may still learn of
    /// them, so nothing is refused.
    async fn warn_of_unseen(&self, version: &Applied) {
        let policies = self.runtime.policies().get();
        let called = |service: Option<&str>| {
            policies.called(service).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let operations = |named: Vec<&String>, service: Option<&str>| {
            let mut known: BTreeSet<String> = self.declared.iter().cloned().chain(called(service)).collect();
            // Of REST operations only those that were called are known; before the first call every name may be
            // right.
            if !known.iter().any(|operation| operation.contains(' ')) {
                known.extend(named.into_iter().filter(|operation| operation.contains(' ')).cloned());
            }
            known
        };
        let mut seen = Seen::default();
        // A registry is code of another crate: it may panic, and it may never answer.
        let registry = self.runtime.registry();
        let services = caught(tokio::time::timeout(SERVICES, async { registry.services().await })).await;
        for service in services.into_iter().flatten().flatten() {
            seen.services.entry(service).or_default();
        }
        for cluster in self.runtime.clusters() {
            let members = cluster.members();
            if members.all().is_empty() {
                continue;
            }
            let service = seen.services.entry(cluster.service().to_string()).or_default();
            for node in members.all().nodes() {
                service.labels.extend(node.instance().labels.keys().map(str::to_owned));
            }
        }
        for (name, service) in &mut seen.services {
            let named = version.document.outbound.services.get(name);
            let named = named.map(|settings| settings.operations.keys().collect()).unwrap_or_default();
            service.operations = operations(named, Some(name));
        }
        seen.operations = operations(version.document.inbound.operations.keys().collect(), None);
        for finding in version.document.unseen(&seen) {
            tracing::warn!(target: "chassis", "{}", finding.place(&version.tree));
        }
    }

    /// Attributes a crash of the next seconds to `version`, and proves it if there is none.
    fn begin_trial(&self, version: &Applied) {
        let Some(guard) = self.guard.clone() else { return };
        if !guard.trying(&version.hash) {
            return;
        }
        let (hash, sources) = (version.hash.clone(), version.sources.clone());
        let in_force = self.runtime.policies().clone();
        let (number, rollout) = (version.number, self.rollout.clone());
        self.runtime.tasks().spawn(async move {
            tokio::time::sleep(SURVIVAL).await;
            let (survivor, survived) = (guard.clone(), hash.clone());
            spawn_blocking(move || survivor.survived(&survived)).await.ok(); // it ends with the process
            tokio::time::sleep(guard.proven_after().saturating_sub(SURVIVAL)).await;
            let is_good = rollout.decided(&hash).await;
            if let Some(sources) = sources.filter(|_| is_good && in_force.get().version() == number) {
                spawn_blocking(move || guard.prove(&hash, sources)).await.ok();
            }
        });
    }

    /// Puts one version in force. It was checked, so only a picker that is gone could refuse it.
    pub(crate) fn apply(&self, version: &Applied, pending: &mut Vec<String>) {
        for warning in &version.warnings {
            tracing::warn!(target: "chassis", "{warning}");
        }
        self.begin_trial(version);
        if let Err(problems) = self.runtime.apply(&version.value, version.number, &version.hash) {
            let in_force = self.runtime.policies().get().version();
            let place = |problem| Finding::from(problem).place(&version.tree).to_string();
            let problems = problems.into_iter().map(place).collect();
            self.runtime.metrics().config_refused("refused");
            return self.runtime.events().emit(Event::ConfigRefused { in_force, problems });
        }
        self.runtime.set_carried(version.document.propagate.0.clone());
        self.runtime.set_sample(version.document.telemetry.sample);
        self.runtime.set_hold(version.document.discovery.hold.on().copied());
        self.runtime.set_grace(version.document.discovery.grace.on().copied().unwrap_or(Grace::NONE));
        self.shutdown.set(version.document.shutdown.clone());
        let chosen = version.document.registry.as_ref();
        let chosen = chosen.filter(|chosen| self.registry.as_deref() == Some(chosen.kind()));
        if let Some(Err(error)) = chosen.map(|chosen| chosen.change()) {
            let problem = Finding::error("registry", error.to_string()).place(&version.tree);
            let (in_force, problems) = (version.number, vec![problem.to_string()]);
            self.runtime.events().emit(Event::ConfigRefused { in_force, problems });
        }
        self.config.applied(version);
        for (source, text) in &version.texts {
            if let Some(Err(error)) = self.last_good.as_ref().map(|kept| kept.keep(source, text)) {
                tracing::warn!(target: "chassis", "the last good settings of {source} can't be kept: {error}");
            }
        }
        let changed = version.changes.iter().map(ToString::to_string).collect();
        self.runtime.events().emit(Event::ConfigApplied { version: version.number, changed });
        self.rollout.applied(version, &self.runtime);
        let paths: Vec<String> = self.config.pending(&version.tree).iter().map(ToString::to_string).collect();
        if paths != *pending {
            if !paths.is_empty() {
                self.runtime.events().emit(Event::RestartPending { paths: paths.clone() });
            }
            *pending = paths;
        }
    }
}

/// Polls `work` so that no call has to wait: large settings take tens of milliseconds to read and compile, in
/// which other threads take over this thread's calls. A runtime of one thread has no other thread to do so.
async fn aside<F: Future>(work: F) -> F::Output {
    let mut work = pin!(work);
    let several = Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
    poll_fn(|cx| match several {
        true => block_in_place(|| work.as_mut().poll(cx)),
        false => work.as_mut().poll(cx),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_is_done_aside_holds_nobody_up() {
        let (unblock, blocked) = std::sync::mpsc::channel();
        let follower = tokio::spawn(aside(async move {
            // Only another task of the same thread can end this wait.
            blocked.recv_timeout(Duration::from_secs(60)).expect("the thread was held up");
        }));
        tokio::spawn(async move { unblock.send(()) }).await.unwrap().unwrap();
        follower.await.unwrap();
    }
}
