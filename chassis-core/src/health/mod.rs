//! Health checks of the program: they decide whether this process is ready for calls.
mod run;
mod streak;

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::sync::watch;

use self::{run::Probe, streak::Streak};
use crate::{
    BoxError, BoxFuture,
    event::{Event, Events},
    random::Random,
    tasks::Tasks,
};

/// How a check is run, and what it decides.
///
/// ```
/// use std::time::Duration;
///
/// use chassis_core::health::CheckConfig;
///
/// let config = CheckConfig { interval: Duration::from_secs(5), ..CheckConfig::informative() };
/// assert!(!config.is_critical);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckConfig {
    /// The pause between the end of a run and the begin of the next one; each is shortened by up to a tenth, at random,
    /// so that processes do not check at the same moment. Default 10 s. Until the first success it is 1 s at most.
    /// Less than 10 ms counts as 10 ms.
    pub interval: Duration,
    /// A run that takes longer has failed, and is dropped. Default 2 s; with 0 every run fails.
    pub timeout: Duration,
    /// Whether the process takes no calls while the check does not pass. Default true.
    pub is_critical: bool,
    /// A check that passes fails after so many failures in a row. Default 3.
    pub failures: NonZeroU32,
    /// A check that fails passes after so many successes in a row. Default 1. At the beginning one is enough.
    pub successes: NonZeroU32,
}

/// The status of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckStatus {
    /// It has not passed yet.
    #[default]
    Starting,
    /// It passes.
    Passing,
    /// It fails, for this reason.
    Failing(String),
}

/// Whether the critical checks allow this process to take calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// All of them pass, or there is none.
    #[default]
    Ready,
    /// One has not passed yet, and none fails.
    Starting,
    /// One fails.
    Failing,
}

/// The health checks of this process. Clones share them.
///
/// A check is a function of the program that runs every [`interval`](CheckConfig::interval). One that panics, fails, or
/// takes longer than its time limit has failed. It never runs twice at once, and one that blocks its thread delays
/// nothing else.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use chassis_core::{Runtime, health::{CheckConfig, CheckStatus, Readiness}};
///
/// let runtime = Runtime::builder("orders").build().unwrap();
/// let health = runtime.health();
/// let db = health.check("db", CheckConfig::default(), || async { Ok(()) }); // pings the database
/// health.set("licence", CheckStatus::Failing("it has expired".to_owned()));
/// assert_eq!(health.readiness(), Readiness::Failing);
/// health.remove("licence");
/// drop(db); // ends the check; `db.detach()` keeps it until the stop
/// assert_eq!(health.readiness(), Readiness::Ready);
/// # }
/// ```
#[derive(Clone)]
pub struct Health(Arc<Inner>);

/// A running check. Dropping it ends the check.
#[must_use = "a check ends when this is dropped; `detach` keeps it"]
pub struct RunningCheck {
    /// `None` once it is detached.
    of: Option<(Health, String, u64)>,
}

/// A check at one moment.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CheckView {
    /// Its name.
    pub name: String,
    /// `starting`, `passing` or `failing`.
    pub status: &'static str,
    /// Why it fails, or why its last run failed.
    pub why: Option<String>,
    /// Whether the process takes no calls while it does not pass.
    pub is_critical: bool,
    /// Whether the status was set by [`Health::set`].
    pub is_set: bool,
    /// The number of results in a row that differ from the status.
    pub contrary: u32,
    /// The number of finished runs.
    pub runs: u64,
}

struct Inner {
    checks: Mutex<BTreeMap<String, Check>>,
    readiness: watch::Sender<Readiness>,
    numbers: AtomicU64,
    events: Events,
    random: Random,
    tasks: Tasks,
}

/// A check, or a status that was set.
struct Check {
    /// Tells a check from a later one of the same name.
    number: u64,
    config: CheckConfig,
    streak: Streak,
    /// The reason of the last failure, until the next success.
    last: Option<String>,
    runs: u64,
    /// The status that was set; it hides that of the runs.
    set: Option<CheckStatus>,
    /// Its task ends with it. `None`: there is no function, only a status.
    task: Option<watch::Sender<()>>,
}

/// The function of a check.
pub(crate) type CheckFn = dyn Fn() -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync;

/// `n`, which is not zero.
const fn number(n: u32) -> NonZeroU32 {
    match NonZeroU32::new(n) {
        Some(n) => n,
        None => NonZeroU32::MIN,
    }
}

// === impl CheckConfig ===

impl CheckConfig {
    /// The defaults for a check that only informs: calls come here also while it fails.
    pub fn informative() -> Self {
        CheckConfig { is_critical: false, ..CheckConfig::default() }
    }
}

impl Default for CheckConfig {
    fn default() -> Self {
        CheckConfig {
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(2),
            is_critical: true,
            failures: number(3),
            successes: number(1),
        }
    }
}

// === impl CheckStatus ===

impl CheckStatus {
    /// `starting`, `passing` or `failing`.
    pub fn as_str(&self) -> &'static str {
        match self {
            CheckStatus::Starting => "starting",
            CheckStatus::Passing => "passing",
            CheckStatus::Failing(_) => "failing",
        }
    }

    fn why(&self) -> Option<&String> {
        match self {
            CheckStatus::Failing(why) => Some(why),
            CheckStatus::Starting | CheckStatus::Passing => None,
        }
    }
}

// === impl Health ===

impl Health {
    pub(crate) fn new(events: Events, random: Random, tasks: Tasks) -> Self {
        let readiness = watch::Sender::new(Readiness::Ready);
        let (checks, numbers) = (Mutex::default(), AtomicU64::new(0));
        Health(Arc::new(Inner { checks, readiness, numbers, events, random, tasks }))
    }

    /// Runs `check` at once and then every [`interval`](CheckConfig::interval), until the returned value is dropped or
    /// the service stops. A check of the same name is replaced; its successor has to pass anew.
    ///
    /// A critical check makes this process not ready until it has passed for the first time.
    pub fn check<F, Fut>(&self, name: &str, config: CheckConfig, check: F) -> RunningCheck
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let check = move || -> BoxFuture<'static, _> { Box::pin(check()) };
        let probe = Probe::new(name, config.clone(), Arc::new(check), &self.0.events);
        let (over, mut is_over) = watch::channel(());
        let number = self.insert(name, config, None, Some(over));
        // The task does not keep the checks: they end with the service.
        let (health, name) = (Arc::downgrade(&self.0), name.to_owned());
        let (random, of) = (self.0.random.clone(), name.clone());
        self.0.tasks.spawn(async move {
            let record = |result| match health.upgrade() {
                Some(inner) => Health(inner).record(&name, number, result),
                None => CheckStatus::Starting,
            };
            tokio::select! {
                biased;
                _ = is_over.changed() => {}
                () = probe.run(record, &random) => {}
            }
        });
        RunningCheck { of: Some((self.clone(), of, number)) }
    }

    /// Sets the status of the check `name` by hand, until [`remove`](Self::remove): the results of its runs are ignored
    /// meanwhile. If there is no such check, there is one from now on, which is critical.
    pub fn set(&self, name: &str, status: CheckStatus) {
        let mut checks = self.0.checks();
        match checks.get_mut(name) {
            Some(check) => {
                let before = check.status().clone();
                check.set = Some(status);
                self.changed(name, &before, check);
                self.update(&checks);
            }
            None => {
                drop(checks);
                self.insert(name, CheckConfig::default(), Some(status), None);
            }
        }
    }

    /// Ends what [`set`](Self::set) has begun: the runs of a check decide again; one without a function is removed.
    pub fn remove(&self, name: &str) {
        let mut checks = self.0.checks();
        let Some(check) = checks.get_mut(name) else { return };
        let before = check.status().clone();
        check.set = None;
        match check.task {
            Some(_) => self.changed(name, &before, check),
            None => drop(checks.remove(name)),
        }
        self.update(&checks);
    }

    /// Whether the critical checks allow this process to take calls.
    pub fn readiness(&self) -> Readiness {
        *self.0.readiness.borrow()
    }

    /// The readiness now and in future.
    pub fn watch(&self) -> watch::Receiver<Readiness> {
        self.0.readiness.subscribe()
    }

    /// All checks at this moment, by name.
    pub fn view(&self) -> Vec<CheckView> {
        let view = |(name, check): (&String, &Check)| CheckView {
            name: name.clone(),
            status: check.status().as_str(),
            why: check.status().why().or(check.last.as_ref()).cloned(),
            is_critical: check.config.is_critical,
            is_set: check.set.is_some(),
            contrary: check.streak.contrary(),
            runs: check.runs,
        };
        self.0.checks().iter().map(view).collect()
    }

    /// Records a result of the check with this number; returns the status of its runs.
    fn record(&self, name: &str, number: u64, result: Result<(), String>) -> CheckStatus {
        let mut checks = self.0.checks();
        let Some(check) = checks.get_mut(name).filter(|check| check.number == number) else {
            return CheckStatus::Starting;
        };
        let before = check.status().clone();
        check.runs += 1;
        check.last = result.as_ref().err().cloned();
        let config = check.config.clone();
        let has_changed = check.streak.record(result, &config);
        let status = check.streak.status().clone();
        if has_changed {
            self.changed(name, &before, check);
            self.update(&checks);
        }
        status
    }

    fn insert(
        &self,
        name: &str,
        config: CheckConfig,
        set: Option<CheckStatus>,
        task: Option<watch::Sender<()>>,
    ) -> u64 {
        let number = self.0.numbers.fetch_add(1, Ordering::Relaxed);
        let check = Check { number, config, streak: Streak::default(), last: None, runs: 0, set, task };
        let mut checks = self.0.checks();
        self.changed(name, &CheckStatus::Starting, &check);
        checks.insert(name.to_owned(), check);
        self.update(&checks);
        number
    }

    /// Reports the status of `check`, if it is another one than before. Called under the lock, so that the events have
    /// the order of the changes.
    fn changed(&self, name: &str, before: &CheckStatus, check: &Check) {
        let status = check.status();
        if before.as_str() != status.as_str() {
            let (check, is_critical) = (name.to_owned(), check.config.is_critical);
            let (status, why) = (status.as_str(), status.why().cloned());
            self.0.events.emit(Event::HealthChanged { check, status, why, is_critical });
        }
    }

    fn update(&self, checks: &BTreeMap<String, Check>) {
        let mut readiness = Readiness::Ready;
        for check in checks.values().filter(|check| check.config.is_critical) {
            match check.status() {
                CheckStatus::Passing => {}
                CheckStatus::Failing(_) => readiness = Readiness::Failing,
                CheckStatus::Starting if readiness == Readiness::Ready => readiness = Readiness::Starting,
                CheckStatus::Starting => {}
            }
        }
        self.0.readiness.send_if_modified(|before| std::mem::replace(before, readiness) != readiness);
    }
}

// === impl Inner ===

impl Inner {
    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn checks(&self) -> MutexGuard<'_, BTreeMap<String, Check>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Check ===

impl Check {
    fn status(&self) -> &CheckStatus {
        self.set.as_ref().unwrap_or_else(|| self.streak.status())
    }
}

// === impl RunningCheck ===

impl RunningCheck {
    /// Keeps the check until the service stops.
    pub fn detach(mut self) {
        self.of = None;
    }
}

/// Ends the check, unless another one has replaced it.
impl Drop for RunningCheck {
    fn drop(&mut self) {
        let Some((health, name, number)) = self.of.take() else { return };
        let mut checks = health.0.checks();
        if checks.get(&name).is_some_and(|check| check.number == number) {
            checks.remove(&name);
            health.update(&checks);
        }
    }
}
