//! Rolls new settings out in stages: some instances of the service apply them first, and the others after a while. An instance
//! rolls settings back that do harm to its calls.
//!
//! No instance coordinates the others. Each computes from the registry's list which ones are first (`rank.rs`), and states in
//! its own entry there what it found out about the settings (`members.rs`). In a registry that keeps no such statements, only
//! the time counts. `state.rs` decides; this file connects it to the loader, the registry and the counters.
mod baseline;
mod guard;
mod members;
mod rank;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chassis_config::{Candidate, Control, Gate, tree::Node};
use chassis_core::{Event, Metrics, Runtime, Side, registry::Instance, tasks::caught};
use tokio::{sync::watch, task::spawn_blocking, time::Instant};

pub(crate) use self::members::{KEY, Mark};
use self::{
    guard::Totals,
    state::{Id, State, Step},
};
use crate::{crash_guard::CrashGuard, follow::Applied, presence::Presence};

/// Decides when settings are applied, and watches them then.
pub(crate) struct Rollout {
    control: Control,
    crash_guard: Option<Arc<CrashGuard>>,
    state: Mutex<State>,
    /// Sent with each change of the state.
    changes: watch::Sender<()>,
}

// === impl Rollout ===

impl Rollout {
    pub(crate) fn new(control: Control, crash_guard: Option<Arc<CrashGuard>>) -> Arc<Self> {
        let (state, changes) = (Mutex::default(), watch::Sender::new(()));
        Arc::new(Rollout { control, crash_guard, state, changes })
    }

    /// Sets the id and the environment of this process.
    pub(crate) fn is(&self, id: &str, environment: Option<&str>) {
        self.change(|state| {
            id.clone_into(&mut state.me.id);
            environment.unwrap_or_default().clone_into(&mut state.me.environment);
        });
    }

    /// Sets where others reach this process.
    pub(crate) fn advertised(&self, entry: &Instance) {
        let addresses = entry.addresses.iter().map(|(_, address)| address.to_owned()).collect();
        self.change(|state| state.me.addresses = addresses);
    }

    /// A version was put in force.
    pub(crate) fn applied(&self, version: &Applied, runtime: &Runtime) {
        let next = version.document.rollout.clone();
        let (id, totals) = (Id::of(&version.hash, &version.tree), totals(runtime.metrics()));
        let rolled_back = self.change(|state| {
            let rolled_back = state.applied(&id, version.number, next, Instant::now(), &totals);
            if !state.is_baking(&version.hash) {
                self.control.prove(&version.hash);
            }
            rolled_back
        });
        if let Some((hash, why)) = rolled_back {
            runtime.metrics().config_refused("rolled_back");
            runtime.events().emit(Event::ConfigRolledBack { in_force: version.number, hash, why });
        }
    }

    /// Resolves once settings with this hash are not watched any more. Returns whether they did no harm.
    pub(crate) async fn decided(&self, hash: &str) -> bool {
        let mut changes = self.changes.subscribe();
        while self.state().is_baking(hash) {
            if changes.changed().await.is_err() {
                return false;
            }
        }
        !self.state().is_harmful(hash)
    }

    /// Lets settings be applied again that did harm. Returns whether there are any with this hash.
    pub(crate) async fn allow(&self, hash: &str) -> bool {
        let known = self.change(|state| state.allow(hash));
        let (guard, hash) = (self.crash_guard.clone(), hash.to_owned());
        let is_known = known.is_some();
        let hashes = known.map_or_else(|| vec![hash], |id| vec![id.hash, id.shared]);
        let forgive =
            move |guard: Arc<CrashGuard>| hashes.iter().filter(|hash| guard.forgive(hash)).count() > 0;
        let on_disk = spawn_blocking(move || guard.is_some_and(forgive)).await;
        self.control.reconsider();
        is_known || on_disk.unwrap_or(false) // an error: the process ends
    }

    /// Follows the registry and watches the calls, while settings of a roll-out are in force.
    pub(crate) async fn drive(self: Arc<Self>, runtime: Runtime, presence: Presence) {
        let deciding = async {
            let mut changes = self.changes.subscribe();
            loop {
                changes.borrow_and_update();
                let due = match caught(self.step(&runtime, &presence)).await {
                    Ok(due) => due,
                    Err(panicked) => {
                        crate::life::report_panic(&runtime, "settings", "settings".to_owned(), &panicked);
                        None
                    }
                };
                let sleep = async {
                    match due {
                        Some(due) => tokio::time::sleep_until(due).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = sleep => {}
                }
            }
        };
        let following = async {
            let mut changes = self.changes.subscribe();
            let mut switched = async |on: bool| {
                while self.state().is_on() != on {
                    if changes.changed().await.is_err() {
                        return;
                    }
                }
            };
            loop {
                switched(true).await;
                tokio::select! {
                    () = switched(false) => {}
                    () = members::follow(&runtime, |list| self.change(|state| state.listed(list, Instant::now()))) => {}
                }
            }
        };
        tokio::join!(deciding, following);
    }

    /// Does all that is to be done now; returns when there will be more.
    async fn step(&self, runtime: &Runtime, presence: &Presence) -> Option<Instant> {
        loop {
            let (step, mark, view) = {
                let mut state = self.state();
                let step = state.step(Instant::now(), || totals(runtime.metrics()));
                (step, state.mark().cloned(), state.view().cloned())
            };
            presence.state_rollout(mark);
            runtime.set_rollout(view);
            match step {
                Step::Wait(due) => return due,
                Step::Reconsider => self.control.reconsider(),
                Step::Proven { id, number, calls } => {
                    self.control.prove(&id.hash);
                    self.changes.send_replace(());
                    runtime.events().emit(Event::ConfigProven { version: number, hash: id.hash, calls });
                }
                Step::RollBack { id, why } => self.roll_back(id, why).await,
            }
        }
    }

    async fn roll_back(&self, id: Id, why: String) {
        if self.control.revert(&id.hash).await.is_none() {
            if self.change(|state| state.kept(&id.hash)) {
                tracing::error!(target: "chassis", hash = id.hash, why, "settings that do harm stay in force: there are none \
                    before them, or they are pinned");
            }
            return; // a start must be able to use them
        }
        if let Some(guard) = self.crash_guard.clone() {
            // The shared one, too: later starts may have other settings of their own.
            let avoid = move || [&id.hash, &id.shared].iter().for_each(|hash| guard.avoid(hash, why.clone()));
            spawn_blocking(avoid).await.ok(); // an error: the process ends
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state());
        self.changes.send_replace(());
        changed
    }

    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate for Rollout {
    fn admit(&self, candidate: &Candidate<'_>, is_first: bool) -> Result<(), String> {
        let id = Id::of(candidate.hash, candidate.tree);
        let guard = self.crash_guard.as_ref();
        let refused =
            guard.and_then(|guard| guard.admit(&id.hash).and_then(|()| guard.admit(&id.shared)).err());
        if let Some(why) = refused {
            self.change(|state| state.refused(&id, &why));
            return Err(why);
        }
        if is_first { Ok(()) } else { self.change(|state| state.admit(&id, Instant::now())) }
    }

    fn settled(&self) {
        self.change(State::settled);
    }
}

impl Id {
    fn of(hash: &str, tree: &Node) -> Self {
        Id { hash: hash.to_owned(), shared: rank::shared(tree) }
    }
}

fn totals(metrics: &Metrics) -> Totals {
    [Side::Client, Side::Server].map(|side| metrics.call_totals(side))
}
