//! The instance of this process in its registry: one task registers, updates and deregisters it.
use std::{
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use chassis_core::{
    Event, Runtime,
    health::{Health, Readiness},
    quota::{Quota, QuotaDecision, QuotaRequest},
    registry::{Instance, Registration, Registry, RegistryError, Status},
    tasks::{backoff, catch, caught},
};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout},
};

use crate::rollout::{KEY, Mark};

/// Whether this process takes calls, as its registry and its health service state it. Clones share one state.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use chassis::Chassis;
///
/// let app = Chassis::builder("shop")
///     .settings(serde_json::json!({ "registry": { "kind": "memory", "name": "doc-presence" } }))
///     .build()
///     .await?;
/// let presence = app.presence().clone(); // for a handler, or for a task that watches a signal
/// let running = app.start().await?;
/// presence.take_out_of_service().await?;
/// // Other services send no new calls here; calls in flight go on.
/// presence.put_back_in_service().await?;
/// running.stop().await;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Presence(Arc<Inner>);

struct Inner {
    reasons: Mutex<Reasons>,
    /// The entry to register, as far as it changes.
    wanted: watch::Sender<Wanted>,
    /// The registered status; `None` if nothing is registered.
    registered: watch::Sender<Option<Status>>,
    /// False before the start, after the stop, and if nothing is served.
    registers: AtomicBool,
    /// A [`Phase`]: from the moment that the process listens to the begin of its stop it serves.
    phase: AtomicU8,
    /// Whether the process served once while its critical checks passed.
    has_started: AtomicBool,
    /// Sets the answer of gRPC's health service.
    health: Box<dyn Fn(bool) + Send + Sync>,
}

/// The phase of the life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Starting,
    Serving,
    Stopping,
}

/// The parts of the entry that change while the process runs.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    status: Status,
    /// The statement about new settings, for the other instances.
    rollout: Option<Mark>,
}

/// What decides whether the process wants calls.
struct Reasons {
    /// Up, or out of service by hand.
    by_hand: Status,
    readiness: Readiness,
}

/// The registration, owned by one task.
pub(crate) struct Registered {
    deregister: oneshot::Sender<oneshot::Sender<()>>,
    presence: Presence,
}

/// The task that owns the registration.
struct Keeper {
    registry: Arc<dyn Registry>,
    quota: Option<Arc<dyn Quota>>,
    /// The entry, apart from the parts that change.
    entry: Instance,
    /// The parts that the registry has.
    stated: Wanted,
    runtime: Runtime,
    presence: Presence,
    wanted: watch::Receiver<Wanted>,
    asked: oneshot::Receiver<oneshot::Sender<()>>,
    /// Resolved once the first try has ended.
    first: Option<oneshot::Sender<()>>,
    failures: u32,
    /// The quota is used up, and that was reported.
    is_over_quota: bool,
    /// The last error, and when it was reported.
    reported: Option<(String, Instant)>,
}

/// How a wait of the keeper ends.
enum Over<T> {
    Done(T),
    /// The process stops; the sender, if any, is answered after the deregistration.
    Stops(Option<oneshot::Sender<()>>),
}

/// The time that a start, or a change of the status, waits for the registry.
const REGISTER: Duration = Duration::from_secs(5);
/// The time limit of one try to register or update.
const REGISTER_TRY: Duration = Duration::from_secs(10);
/// The longest wait before the registry is asked again.
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// How long after a refusal by a quota the registry is asked again.
const OVER_QUOTA: Duration = Duration::from_secs(60);
/// The time limit of a question to the quota.
const ASK_QUOTA: Duration = Duration::from_secs(5);
/// An error of the registry that stays the same is reported again after this time.
const REMINDER: Duration = Duration::from_secs(60);
/// The time that a stop waits for the registry.
const DEREGISTER: Duration = Duration::from_secs(2);

// === impl Presence ===

impl Presence {
    /// `health` sets the answer of gRPC's health service.
    pub(crate) fn new(checks: &Health, health: impl Fn(bool) + Send + Sync + 'static) -> Self {
        let reasons = Reasons { by_hand: Status::Up, readiness: checks.readiness() };
        Presence(Arc::new(Inner {
            wanted: watch::Sender::new(Wanted { status: reasons.status(), rollout: None }),
            reasons: Mutex::new(reasons),
            registered: watch::Sender::new(None),
            registers: AtomicBool::new(false),
            phase: AtomicU8::new(Phase::Starting as u8),
            has_started: AtomicBool::new(false),
            health: Box::new(health),
        }))
    }

    /// Makes other services send no new calls here: the registered status becomes [`Status::OutOfService`], and gRPC's
    /// health service answers NOT_SERVING. The process still answers calls, so callers that do not know the new status
    /// see no failure. With a registry that does not support updates, the instance is registered anew.
    ///
    /// Before the start, this makes the service start out of service. If all instances of a service are out of service,
    /// callers use all of them.
    ///
    /// # Errors
    /// The registry has not accepted the change within 5 s. It is tried again in the background until it does.
    pub async fn take_out_of_service(&self) -> Result<(), RegistryError> {
        self.set(Status::OutOfService).await
    }

    /// Takes calls again, as after the start: unless a critical health check does not pass.
    ///
    /// # Errors
    /// As for [`take_out_of_service`](Self::take_out_of_service).
    pub async fn put_back_in_service(&self) -> Result<(), RegistryError> {
        self.set(Status::Up).await
    }

    /// Whether the process wants calls: it was not taken out of service, and its critical
    /// [health checks](chassis_core::health::Health) pass. Its registry may not know yet.
    pub fn is_in_service(&self) -> bool {
        self.0.wanted.borrow().status.is_up()
    }

    /// Returns once the registry has accepted this process.
    pub(crate) async fn registered(&self) {
        // The sender is part of this value.
        let _ = self.0.registered.subscribe().wait_for(Option::is_some).await;
    }

    /// Follows the health checks.
    pub(crate) async fn follow(self, mut readiness: watch::Receiver<Readiness>) {
        loop {
            let now = *readiness.borrow_and_update();
            self.want(|reasons| reasons.readiness = now);
            if readiness.changed().await.is_err() {
                return;
            }
        }
    }

    /// Changes the reasons; returns the status that follows from them.
    fn want(&self, change: impl FnOnce(&mut Reasons)) -> Status {
        let status = {
            let mut reasons = self.reasons();
            change(&mut reasons);
            let status = reasons.status();
            let is_new =
                |before: &mut Wanted| std::mem::replace(&mut before.status, status.clone()) != status;
            self.0.wanted.send_if_modified(is_new);
            status
        };
        self.update_health();
        status
    }

    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn reasons(&self) -> MutexGuard<'_, Reasons> {
        self.0.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn set(&self, by_hand: Status) -> Result<(), RegistryError> {
        let mut registered = self.0.registered.subscribe();
        let status = self.want(|reasons| reasons.by_hand = by_hand);
        if !self.0.registers.load(Ordering::SeqCst) {
            return Ok(());
        }
        let is_over = |now: &Option<Status>| {
            now.as_ref() == Some(&status)
                || self.0.wanted.borrow().status != status // it was changed again
                || !self.0.registers.load(Ordering::SeqCst)
        };
        match timeout(REGISTER, registered.wait_for(is_over)).await {
            Ok(_) => Ok(()),
            Err(_) => {
                let message = format!(
                    "the registry has not accepted the status `{}` within {REGISTER:?}; it is tried again",
                    status.as_str()
                );
                Err(RegistryError::new(message))
            }
        }
    }

    /// The status in the registry; `None` if nothing is registered.
    #[allow(dead_code, reason = "for the admin surface, which a build may be without")]
    pub(crate) fn registered_as(&self) -> Option<Status> {
        self.0.registered.borrow().clone()
    }

    /// The phase of the life of the process.
    pub(crate) fn phase(&self) -> Phase {
        match self.0.phase.load(Ordering::SeqCst) {
            starting if starting == Phase::Starting as u8 => Phase::Starting,
            serving if serving == Phase::Serving as u8 => Phase::Serving,
            _ => Phase::Stopping,
        }
    }

    /// Whether the process served once while its critical checks passed: its start is over, whatever came later.
    #[allow(dead_code, reason = "for the admin surface, which a build may be without")]
    pub(crate) fn has_started(&self) -> bool {
        self.0.has_started.load(Ordering::SeqCst)
    }

    /// Sets the statement about new settings, which the registry is given when it can take it.
    pub(crate) fn state_rollout(&self, mark: Option<Mark>) {
        self.0.wanted.send_if_modified(|before| {
            let is_new = before.rollout != mark;
            before.rollout = mark;
            is_new
        });
    }

    /// The process listens.
    pub(crate) fn serving(&self) {
        self.0.phase.store(Phase::Serving as u8, Ordering::SeqCst);
        self.update_health();
    }

    /// The process stops: from here on no status puts it back in service.
    pub(crate) fn stopping(&self) {
        self.0.phase.store(Phase::Stopping as u8, Ordering::SeqCst);
        self.update_health();
    }

    fn update_health(&self) {
        let serves = || self.phase() == Phase::Serving;
        if serves() && self.reasons().readiness == Readiness::Ready {
            self.0.has_started.store(true, Ordering::SeqCst);
        }
        (self.0.health)(serves() && self.is_in_service());
        // A stop may have begun meanwhile, and decides.
        if !serves() {
            (self.0.health)(false);
        }
    }

    /// Registers `entry`; the first try is awaited, later ones run in the background.
    pub(crate) async fn register(
        &self,
        entry: Instance,
        runtime: &Runtime,
        quota: Option<Arc<dyn Quota>>,
    ) -> Registered {
        let (deregister, asked) = oneshot::channel();
        let (first, tried) = oneshot::channel();
        let keeper = Keeper {
            registry: runtime.registry().clone(),
            quota,
            entry,
            stated: self.0.wanted.borrow().clone(),
            runtime: runtime.clone(),
            presence: self.clone(),
            wanted: self.0.wanted.subscribe(),
            asked,
            first: Some(first),
            failures: 0,
            is_over_quota: false,
            reported: None,
        };
        self.0.registers.store(true, Ordering::SeqCst);
        // Not one of the runtime's own tasks: it has to outlive the first of them.
        runtime.tasks().spawn(keeper.keep());
        let _ = timeout(REGISTER, tried).await;
        Registered { deregister, presence: self.clone() }
    }
}

// === impl Wanted ===

impl Wanted {
    /// `entry`, with these parts.
    fn entry(&self, entry: &Instance) -> Instance {
        let entry = entry.clone().with_status(self.status.clone());
        match &self.rollout {
            Some(mark) => entry.with_other(KEY, mark.to_json()),
            None => entry,
        }
    }
}

// === impl Reasons ===

impl Reasons {
    /// The status to register. Taken out by hand precedes the checks.
    fn status(&self) -> Status {
        match self.readiness {
            _ if !self.by_hand.is_up() => self.by_hand.clone(),
            Readiness::Ready => Status::Up,
            Readiness::Starting => Status::Starting,
            Readiness::Failing => Status::OutOfService,
        }
    }
}

// === impl Registered ===

impl Registered {
    /// Deregisters; returns when the registry has, or after 2 s.
    pub(crate) async fn deregister(self) {
        let (done, gone) = oneshot::channel();
        // The task answers after the registry does; if the task is gone, nothing is registered.
        let _ = self.deregister.send(done);
        if timeout(DEREGISTER, gone).await.is_err() {
            tracing::warn!(target: "chassis", "still in the registry after {DEREGISTER:?}; going on without it");
        }
        self.presence.0.registers.store(false, Ordering::SeqCst);
        self.presence.0.registered.send_replace(None);
    }
}

// === impl Keeper ===

/// A registry is code of another crate: its panic is an error, and every try has a time limit.
impl Keeper {
    async fn keep(mut self) {
        let done = loop {
            let registration = match self.register().await {
                Over::Done(registration) => registration,
                Over::Stops(done) => break done,
            };
            self.is_over_quota = false;
            self.accepted();
            let (instance, registry) = (self.entry.id.clone(), self.registry.name().to_owned());
            self.runtime.events().emit(Event::Registered { instance, registry });
            self.tried();
            match self.hold(registration).await {
                Over::Done(()) => {} // it is registered anew
                Over::Stops(done) => break done,
            }
        };
        done.map(|done| done.send(()));
    }

    /// Registers the entry, again until it succeeds.
    async fn register(&mut self) -> Over<Box<dyn Registration>> {
        loop {
            self.stated = self.wanted.borrow_and_update().clone();
            let (registry, entry) = (self.registry.clone(), self.stated.entry(&self.entry));
            let quota = self.quota.clone();
            let register = async move {
                if let Some(quota) = quota
                    && let Err(refused) = ask(&*quota, &entry).await
                {
                    return Ok(Err(refused));
                }
                // The question has a time limit of its own, and uses up nothing of this one.
                timeout(REGISTER_TRY, registry.register(entry)).await
            };
            let mut registering = pin!(caught(register));
            let tried = tokio::select! {
                tried = &mut registering => tried,
                done = &mut self.asked => {
                    // A pending registration may still succeed, and would then stay until its lease ends.
                    if let Ok(Ok(Ok(Ok(late)))) = timeout(DEREGISTER / 2, registering).await {
                        self.deregister(late).await;
                    }
                    return Over::Stops(done.ok());
                }
            };
            let error = match tried {
                Ok(Ok(Ok(registration))) => return Over::Done(registration),
                Ok(Ok(Err(error))) if error.is_quota_exceeded() => {
                    self.over_quota(error.to_string());
                    self.tried();
                    if let Over::Stops(done) = self.pause().await {
                        return Over::Stops(done);
                    }
                    continue;
                }
                Ok(Ok(Err(error))) => error.to_string(),
                Ok(Err(_)) => format!("it did not register within {REGISTER_TRY:?}"),
                Err(panicked) => panicked.to_string(),
            };
            self.is_over_quota = false;
            self.failed(error);
            self.tried();
            if let Over::Stops(done) = self.pause().await {
                return Over::Stops(done);
            }
        }
    }

    /// Keeps `registration` at the wanted status until the stop. `Done`: it was given up, and has to be made anew.
    async fn hold(&mut self, mut registration: Box<dyn Registration>) -> Over<()> {
        self.failures = 0;
        // When a statement is written again that the registry has not taken.
        let mut again: Option<Instant> = None;
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let has_moved = wanted.status != self.stated.status;
            let is_due = again.is_none_or(|again| Instant::now() >= again);
            if has_moved || (is_due && wanted != self.stated) {
                let entry = wanted.entry(&self.entry);
                let updated = {
                    let mut updating = pin!(caught(timeout(REGISTER_TRY, registration.update(entry))));
                    tokio::select! {
                        updated = &mut updating => Ok(updated),
                        done = &mut self.asked => {
                            // It may still succeed, and would overtake the deregistration.
                            let _late = timeout(DEREGISTER / 2, updating).await;
                            Err(done.ok())
                        }
                    }
                };
                let updated = match updated {
                    Ok(updated) => updated,
                    Err(None) => return Over::Stops(None),
                    Err(done) => {
                        self.deregister(registration).await;
                        return Over::Stops(done);
                    }
                };
                let why = match updated {
                    Ok(Ok(Ok(()))) => {
                        self.stated = wanted;
                        self.accepted();
                        (self.failures, again) = (0, None);
                        continue;
                    }
                    Ok(Ok(Err(error))) => error.to_string(),
                    Ok(Err(_)) => format!("it did not change the entry within {REGISTER_TRY:?}"),
                    Err(panicked) => panicked.to_string(),
                };
                if has_moved {
                    tracing::debug!(target: "chassis", why, "the instance could not be updated; it is registered anew");
                    self.deregister(registration).await;
                    return Over::Done(());
                }
                // Calls do not depend on a statement, so the entry stays.
                tracing::debug!(target: "chassis", why, "the registry has not taken a statement about settings");
                self.failures += 1;
                again = Some(Instant::now() + backoff(self.failures, LONGEST_WAIT, self.runtime.random()));
            }
            let due = async {
                match again {
                    Some(again) => tokio::time::sleep_until(again).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await; // this task holds the sender
                    }
                    again = None;
                }
                () = due => {}
                done = &mut self.asked => {
                    // An error means that the service was dropped without a stop; then so is the registration.
                    if let Ok(done) = done {
                        self.deregister(registration).await;
                        return Over::Stops(Some(done));
                    }
                    return Over::Stops(None);
                }
            }
        }
    }

    async fn pause(&mut self) -> Over<()> {
        let random = self.runtime.random();
        let pause = match self.is_over_quota {
            true => random.between(OVER_QUOTA * 4 / 5, OVER_QUOTA),
            false => backoff(self.failures, LONGEST_WAIT, random),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => Over::Done(()),
            done = &mut self.asked => Over::Stops(done.ok()),
        }
    }

    /// There is no place for this instance.
    fn over_quota(&mut self, why: String) {
        self.runtime.metrics().registry_failed();
        if !std::mem::replace(&mut self.is_over_quota, true) {
            let (service, registry) = (self.runtime.service().clone(), self.registry.name().to_owned());
            self.runtime.events().emit(Event::QuotaExceeded { service, registry, why });
        }
    }

    /// The registry has accepted the entry.
    fn accepted(&self) {
        self.presence.0.registered.send_replace(Some(self.stated.status.clone()));
    }

    fn tried(&mut self) {
        self.first.take().map(|first| first.send(()));
    }

    fn failed(&mut self, error: String) {
        self.runtime.metrics().registry_failed();
        self.failures += 1;
        let now = Instant::now();
        if !self.reported.as_ref().is_some_and(|(before, at)| *before == error && now < *at + REMINDER) {
            self.reported = Some((error.clone(), now));
            let service = self.runtime.service().clone();
            self.runtime.events().emit_caused(&error.clone(), Event::RegistryUnreachable { service, error });
        }
    }

    async fn deregister(&self, registration: Box<dyn Registration>) {
        let (instance, registry) = (self.entry.id.clone(), self.registry.name().to_owned());
        let ended = caught(timeout(REGISTER_TRY, registration.deregister())).await;
        let late = |_| Err(RegistryError::new(format!("it did not deregister within {REGISTER_TRY:?}")));
        match ended.map(|ended| ended.unwrap_or_else(late)) {
            Ok(Ok(())) => self.runtime.events().emit(Event::Deregistered { instance, registry }),
            Ok(Err(error)) => {
                tracing::warn!(target: "chassis", %error, "could not be removed from the registry");
            }
            Err(panicked) => {
                crate::life::report_panic(
                    &self.runtime,
                    "registration",
                    "registration".to_owned(),
                    &panicked,
                );
            }
        }
    }
}

/// Asks the quota, which is code of another crate: one that fails, hangs or panics is logged, and allows it.
async fn ask(quota: &dyn Quota, entry: &Instance) -> Result<(), RegistryError> {
    let (environment, instance) = (entry.environment().to_owned(), entry.id.clone());
    let request = QuotaRequest { environment, instance, ..QuotaRequest::one(entry.service.as_str()) };
    let why = match caught(timeout(ASK_QUOTA, quota.ask(&request))).await {
        Ok(Ok(Ok(QuotaDecision::Allowed))) => return Ok(()),
        Ok(Ok(Ok(QuotaDecision::Refused { why }))) => return Err(RegistryError::quota_exceeded(why)),
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(_)) => format!("no answer within {ASK_QUOTA:?}"),
        Err(panicked) => panicked.to_string(),
    };
    let name = catch(|| quota.name()).unwrap_or_else(|panicked| panicked.to_string());
    tracing::warn!(target: "chassis", quota = name, why, "the quota can't be asked; registering without it");
    Ok(())
}
