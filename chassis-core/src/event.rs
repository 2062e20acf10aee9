//! Events, for logs, for subscribers, and for a look at the last few hundred.
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::sync::broadcast;
use tracing::Level;

use crate::{
    algorithm::circuit::State,
    clock::Instant,
    types::{Error, Origin, Reason, Side},
};

/// An event. A closed set, so that dashboards and tests can rely on it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs)] // the names of the fields describe them
pub enum Event {
    /// An instance was added.
    InstanceJoined { service: Arc<str>, instance: String, address: String },
    /// An instance was removed.
    InstanceLeft { service: Arc<str>, instance: String },
    /// The registry lists no instance of a service any more; the last good set is kept for a while.
    EmptySetHeld { service: Arc<str>, kept: usize },
    /// More than half of a service's instances were removed at once; they are kept for a while, except those
    /// that can't be reached.
    RemovalsHeld { service: Arc<str>, held: usize, left: usize },
    /// The registry did not answer at first; the instances that were saved on disk `age` ago are used until it does.
    LastGoodUsed { service: Arc<str>, instances: usize, age: Duration },
    /// An instance in the registry is invalid or belongs to another service; the others are used.
    InstanceRefused { service: Arc<str>, instance: String, why: String },
    /// The registry has no news, for this reason.
    RegistryUnreachable { service: Arc<str>, error: String },
    /// This process was registered.
    Registered { instance: String, registry: String },
    /// The registry, or the quota of the program, takes no further instance of this service. The process serves, and is not
    /// found by others; it is tried again every minute. One event until it is registered.
    QuotaExceeded { service: Arc<str>, registry: String, why: String },
    /// This process was deregistered.
    Deregistered { instance: String, registry: String },
    /// The contracts of this process are published. `to`: the name of the port.
    ContractsPublished { to: String, names: Vec<String> },
    /// The contracts of this process could not be published. They are tried again, unless one of them can't be published at
    /// all. One event until they are.
    ContractsNotPublished { to: String, error: String },
    /// A health check of the program passes or fails from now on. `status`: `starting`, `passing` or `failing`.
    HealthChanged { check: String, status: &'static str, why: Option<String>, is_critical: bool },
    /// A circuit opened, closed or became half-open. `of`: the service, an operation, or a node.
    CircuitMoved { service: Arc<str>, of: String, from: State, to: State },
    /// A mechanism refuses calls. At most one event a second for each rule.
    Refusing { side: Side, service: Arc<str>, reason: Reason, rule: String },
    /// A call goes to a service that its registry does not know. `message`: that of the error; `known`: the services that
    /// the registry lists, and the most similar name, which the message does not contain. At most one event a second for all services together.
    UnknownService { service: Arc<str>, message: String, known: String },
    /// More than half of the ready nodes have an open circuit: calls ignore the circuits.
    PanicPick { service: Arc<str> },
    /// A service's retry budget is exhausted. At most one event a second.
    RetryBudgetExhausted { service: Arc<str> },
    /// A fault is injected. At most one event a second for each rule.
    FaultInjected { rule: String },
    /// A fallback replaced a failed answer. At most one event a second for each service.
    FellBack { service: Arc<str>, operation: Arc<str>, reason: Reason },
    /// A version of the settings is in force.
    ConfigApplied { version: u64, changed: Vec<String> },
    /// A version of the settings was refused; the one before stays in force.
    ConfigRefused { in_force: u64, problems: Vec<String> },
    /// The settings have changed and are not applied, because an older version is pinned.
    ConfigHeld { in_force: u64, pinned: u64, changed: Vec<String> },
    /// Sound settings are not put in force, because they did harm before or have to wait.
    ConfigAvoided { in_force: u64, hash: String, why: String, changed: Vec<String> },
    /// Settings did harm after they were applied: version `in_force` has those before them.
    ConfigRolledBack { in_force: u64, hash: String, why: String },
    /// Settings that were rolled out in stages have done no harm within their bake time, in so many calls.
    ConfigProven { version: u64, hash: String, calls: u64 },
    /// A source of settings can't be read; the last good version stays in force.
    ConfigUnreadable { in_force: u64, error: String },
    /// These settings have changed and take effect at the next start.
    RestartPending { paths: Vec<String> },
    /// An incoming call was refused, or failed for a reason of chassis' own. At most one event a second for
    /// each reason; refusals of a rule by its rate or its bound are [`Refusing`](Event::Refusing).
    Refused { operation: String, reason: Reason, rule: Option<String>, message: String },
    /// A handler panicked; the message has the text of the panic and, if known, its place.
    HandlerPanicked { operation: String, message: String },
    /// A background task panicked, or a function of the program that it ran; a permanent task is restarted.
    /// `task`: `settings`, `registration`, or the name of the hook.
    TaskPanicked { task: String, message: String },
    /// A registry or a config source has blocked the thread that polls it for `lasts`; reported again while it
    /// does. Calls continue. `call`: `watch`, `next` or another function.
    PluginBlocked { plugin: String, call: String, lasts: Duration },
}

/// The sink of events; clones share it.
#[derive(Clone)]
pub struct Events(Arc<Inner>);

struct Inner {
    live: broadcast::Sender<Arc<Event>>,
    past: Mutex<VecDeque<NumberedEvent>>,
    /// The time of the last log line for each cause.
    causes: Mutex<HashMap<String, Instant>>,
    /// One for each reason.
    refusals: [LogThrottle; Reason::ALL.len()],
    begun: Instant,
}

/// An event with its place among all events of the process.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NumberedEvent {
    /// Counted from 1, without gaps.
    pub number: u64,
    /// The time.
    pub at: SystemTime,
    /// The event.
    pub event: Arc<Event>,
}

/// Events of one cause are logged once in this time, and otherwise at the level `debug`.
const LOGGED_EVERY: Duration = Duration::from_secs(30);
/// The most causes that are remembered.
const MOST_CAUSES: usize = 256;

/// Lets one event a second pass: for events that would otherwise come once a call.
#[derive(Debug, Default)]
pub(crate) struct LogThrottle(AtomicU64);

// === impl Events ===

impl Events {
    /// The number of past events that are kept.
    pub(crate) const KEPT: usize = 500;

    /// Without subscribers.
    pub fn new() -> Self {
        let (live, _) = broadcast::channel(Self::KEPT);
        let refusals = std::array::from_fn(|_| LogThrottle::default());
        Events(Arc::new(Inner {
            live,
            past: Mutex::default(),
            causes: Mutex::default(),
            refusals,
            begun: Instant::now(),
        }))
    }

    /// Logs and keeps the event, and sends it to all subscribers.
    pub fn emit(&self, event: Event) {
        event.log();
        self.keep(event);
    }

    /// The same, but logs at most one event of each cause in half a minute: one broken document may concern
    /// every service.
    pub fn emit_caused(&self, cause: &str, event: Event) {
        let now = Instant::now();
        let mut causes = self.0.causes.lock().unwrap_or_else(PoisonError::into_inner);
        causes.retain(|_, logged| now < *logged + LOGGED_EVERY);
        let is_new = !causes.contains_key(cause);
        if is_new && causes.len() < MOST_CAUSES {
            causes.insert(cause.to_owned(), now);
        }
        drop(causes);
        match is_new {
            true => event.log(),
            false => tracing::debug!(target: "chassis", "{event}"),
        }
        self.keep(event);
    }

    fn keep(&self, event: Event) {
        let event = Arc::new(event);
        let mut past = self.0.past.lock().unwrap_or_else(PoisonError::into_inner);
        let number = past.back().map_or(1, |last| last.number + 1);
        if past.len() == Self::KEPT {
            past.pop_front();
        }
        past.push_back(NumberedEvent { number, at: SystemTime::now(), event: event.clone() });
        // Sent under the lock, so that all subscribers see one order. It is no error if there are none.
        let _ = self.0.live.send(event);
    }

    /// Reports a call to `operation` of this process that ended with `error`: once a second for each reason.
    #[cold]
    pub fn refused(&self, operation: &str, error: &Error) {
        let reason = error.reason();
        let is_told = match reason {
            // The layer that counts them reports them with their rule.
            Reason::RateLimited | Reason::Overloaded => {
                error.origin() == Origin::Local && error.rule().is_some()
            }
            // The panic guard reports panics; cancellations are not reported.
            Reason::Panicked | Reason::Cancelled => true,
            _ => false,
        };
        let throttle = Reason::ALL.iter().position(|it| *it == reason).map(|at| &self.0.refusals[at]);
        if !is_told && throttle.is_some_and(|throttle| throttle.allow(Instant::now(), self.0.begun)) {
            let (operation, message) = (operation.to_owned(), error.message().to_owned());
            self.emit(Event::Refused { operation, reason, rule: error.rule().map(str::to_owned), message });
        }
    }

    /// All events from now on; a subscriber more than 500 events behind misses the oldest.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.live.subscribe()
    }

    /// The last few hundred events, oldest first.
    pub fn past(&self) -> Vec<(SystemTime, Arc<Event>)> {
        self.since(0).into_iter().map(|numbered| (numbered.at, numbered.event)).collect()
    }

    /// The kept events after the one of this number, oldest first. A reader whose last number is smaller than that of the
    /// first one minus one has missed some.
    pub fn since(&self, number: u64) -> Vec<NumberedEvent> {
        let past = self.0.past.lock().unwrap_or_else(PoisonError::into_inner);
        let known = past.partition_point(|one| one.number <= number);
        past.range(known..).cloned().collect()
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Event ===

impl Event {
    fn log(&self) {
        match self.level() {
            Level::WARN => tracing::warn!(target: "chassis", "{self}"),
            Level::DEBUG => tracing::debug!(target: "chassis", "{self}"),
            _ => tracing::info!(target: "chassis", "{self}"),
        }
    }

    /// The level at which it is logged: `WARN`, `INFO` or `DEBUG`.
    pub fn level(&self) -> Level {
        use Event::*;
        match self {
            Refusing { .. }
            | RegistryUnreachable { .. }
            | QuotaExceeded { .. }
            | EmptySetHeld { .. }
            | RemovalsHeld { .. }
            | LastGoodUsed { .. }
            | InstanceRefused { .. }
            | UnknownService { .. }
            | PanicPick { .. }
            | RetryBudgetExhausted { .. }
            | ConfigRefused { .. }
            | ConfigUnreadable { .. }
            | ConfigHeld { .. }
            | ConfigAvoided { .. }
            | ConfigRolledBack { .. }
            | RestartPending { .. }
            | HealthChanged { status: "failing", .. }
            | ContractsNotPublished { .. }
            | HandlerPanicked { .. }
            | TaskPanicked { .. }
            | PluginBlocked { .. } => Level::WARN,
            FaultInjected { .. } | FellBack { .. } => Level::DEBUG,
            _ => Level::INFO,
        }
    }

    /// Its kind, as `instance_joined`.
    pub fn name(&self) -> &'static str {
        use Event::*;
        match self {
            InstanceJoined { .. } => "instance_joined",
            InstanceLeft { .. } => "instance_left",
            EmptySetHeld { .. } => "empty_set_held",
            RemovalsHeld { .. } => "removals_held",
            LastGoodUsed { .. } => "last_good_used",
            InstanceRefused { .. } => "instance_refused",
            RegistryUnreachable { .. } => "registry_unreachable",
            Registered { .. } => "registered",
            Deregistered { .. } => "deregistered",
            HealthChanged { .. } => "health_changed",
            CircuitMoved { .. } => "circuit_moved",
            Refusing { .. } => "refusing",
            PanicPick { .. } => "panic_pick",
            RetryBudgetExhausted { .. } => "retry_budget_exhausted",
            FaultInjected { .. } => "fault_injected",
            FellBack { .. } => "fell_back",
            ConfigApplied { .. } => "config_applied",
            ConfigRefused { .. } => "config_refused",
            ConfigHeld { .. } => "config_held",
            ConfigAvoided { .. } => "config_avoided",
            ConfigRolledBack { .. } => "config_rolled_back",
            ConfigProven { .. } => "config_proven",
            ConfigUnreadable { .. } => "config_unreadable",
            RestartPending { .. } => "restart_pending",
            Refused { .. } => "refused",
            HandlerPanicked { .. } => "handler_panicked",
            TaskPanicked { .. } => "task_panicked",
            PluginBlocked { .. } => "plugin_blocked",
            QuotaExceeded { .. } => "quota_exceeded",
            ContractsPublished { .. } => "contracts_published",
            ContractsNotPublished { .. } => "contracts_not_published",
            UnknownService { .. } => "unknown_service",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Event::*;
        match self {
            InstanceJoined { service, instance, address } => {
                write!(f, "{service}: {instance} joined at {address}")
            }
            InstanceLeft { service, instance } => write!(f, "{service}: {instance} left"),
            EmptySetHeld { service, kept } => {
                write!(f, "{service}: the registry lists no instance; keeping the last {kept} for now")
            }
            RemovalsHeld { service, held, left } => {
                write!(
                    f,
                    "{service}: the registry took out {held} instances at once and left {left}; keeping those \
                     that can be reached for now"
                )
            }
            LastGoodUsed { service, instances, age } => {
                write!(
                    f,
                    "{service}: the registry has not answered; using {instances} instances saved {age:?} ago"
                )
            }
            InstanceRefused { service, instance, why } => {
                write!(f, "{service}: `{}` is not used: {why}", instance.escape_debug())
            }
            RegistryUnreachable { service, error } => {
                write!(f, "{service}: no news from the registry: {error}")
            }
            Registered { instance, registry } => write!(f, "{instance} registered ({registry})"),
            QuotaExceeded { service, registry, why } => {
                write!(f, "{service}: not registered ({registry}), the quota is used up: {why}")
            }
            Deregistered { instance, registry } => write!(f, "{instance} deregistered ({registry})"),
            ContractsPublished { to, names } => write!(f, "contracts published ({to}): {}", names.join(", ")),
            ContractsNotPublished { to, error } => write!(f, "contracts not published ({to}): {error}"),
            HealthChanged { check, status, why, is_critical } => {
                let kind = if *is_critical { "critical health check" } else { "health check" };
                write!(f, "{kind} `{check}` is {status}")?;
                why.iter().try_for_each(|why| write!(f, ": {why}"))
            }
            CircuitMoved { service, of, from, to } => write!(f, "{service}: circuit of {of} {from} -> {to}"),
            Refusing { side, service, reason, rule } => {
                write!(f, "{service}: {side} refuses calls, {reason} by `{rule}`")
            }
            UnknownService { message, known, .. } => write!(f, "{message} ({known})"),
            PanicPick { service } => {
                write!(f, "{service}: over half of the ready nodes have an open circuit; ignoring circuits")
            }
            RetryBudgetExhausted { service } => write!(f, "{service}: the retry budget is used up"),
            FaultInjected { rule } => write!(f, "fault `{rule}` injected"),
            FellBack { service, operation, reason } => {
                write!(f, "{service}: fallback answered {operation} for {reason}")
            }
            ConfigApplied { version, changed } if changed.is_empty() => {
                write!(f, "config version {version} applied")
            }
            ConfigApplied { version, changed } => {
                write!(f, "config version {version} applied: {}", changed.join(", "))
            }
            ConfigRefused { in_force, problems } => {
                write!(f, "config refused, still running version {in_force}\n{}", problems.join("\n"))
            }
            ConfigHeld { in_force, pinned, changed } => {
                let changed = changed.join(", ");
                write!(f, "config held, version {pinned} is pinned as version {in_force}: {changed}")
            }
            ConfigAvoided { in_force, hash, why, changed } => {
                let changed = changed.join(", ");
                write!(f, "config {hash} not applied, still running version {in_force}: {why}: {changed}")
            }
            ConfigRolledBack { in_force, hash, why } => {
                write!(f, "config {hash} rolled back, now running version {in_force}: {why}")
            }
            ConfigProven { version, hash, calls } => {
                write!(f, "config version {version} proven by {calls} calls ({hash})")
            }
            ConfigUnreadable { in_force, error } => {
                write!(f, "config can't be read, still running version {in_force}: {error}")
            }
            RestartPending { paths } => write!(f, "pending restart: {}", paths.join(", ")),
            Refused { operation, reason, rule: Some(rule), message } => {
                write!(f, "{operation} refused, {reason} by `{rule}`: {message}")
            }
            Refused { operation, reason, rule: None, message } => {
                write!(f, "{operation} refused, {reason}: {message}")
            }
            HandlerPanicked { operation, message } => {
                write!(f, "the handler of {operation} panicked: {message}")
            }
            TaskPanicked { task, message } => write!(f, "{task}: {message}"),
            PluginBlocked { plugin, call, lasts } => {
                let lasts = lasts.as_secs_f64();
                write!(
                    f,
                    "{plugin} has blocked its thread in `{call}` for {lasts:.1} s; async code must not block"
                )
            }
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

// === impl LogThrottle ===

impl LogThrottle {
    /// Whether this is the first call within a second.
    pub(crate) fn allow(&self, now: Instant, epoch: Instant) -> bool {
        let millis = now.millis_since(epoch) + 1;
        let last = self.0.load(Ordering::Relaxed);
        let due = last == 0 || millis.saturating_sub(last) >= Duration::from_secs(1).as_millis() as u64;
        due && self.0.compare_exchange(last, millis, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tracing::{Level, Metadata, span};

    use super::*;

    /// Counts log lines at the level `warn`.
    struct Warnings(Arc<AtomicUsize>);

    impl tracing::Subscriber for Warnings {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            self.0.fetch_add(usize::from(*event.metadata().level() == Level::WARN), Ordering::SeqCst);
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    /// Regression: a broken document of twenty services made forty-five log lines in as many tries.
    #[tokio::test(start_paused = true)]
    async fn what_has_one_cause_is_logged_once() {
        let warnings = Arc::new(AtomicUsize::new(0));
        let _logged = tracing::subscriber::set_default(Warnings(warnings.clone()));
        let (events, said) = (Events::new(), || warnings.load(Ordering::SeqCst));
        let unreachable = |service: &str, error: &str| {
            let event = Event::RegistryUnreachable { service: service.into(), error: error.into() };
            events.emit_caused(error, event);
        };
        for n in 0..45 {
            unreachable(&format!("service-{}", n % 20), "instances.json: expected value");
        }
        assert_eq!((said(), events.past().len()), (1, 45), "subscribers get all events");
        unreachable("stock", "no route to host");
        assert_eq!(said(), 2);
        tokio::time::sleep(LOGGED_EVERY).await;
        unreachable("stock", "no route to host");
        assert_eq!(said(), 3);
        // The number of causes is bounded.
        for n in 0..10 * MOST_CAUSES {
            unreachable("stock", &n.to_string());
        }
        assert!(events.0.causes.lock().unwrap().len() <= MOST_CAUSES);
    }
}
