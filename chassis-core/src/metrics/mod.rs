//! The metrics of a process, in the `prometheus` registry that its builder was given.
//!
//! Names follow OpenTelemetry's semantic conventions (RPC and HTTP durations) in their Prometheus spelling;
//! names without a convention start with `chassis_`. Handles are resolved once and kept in the policy: a call
//! looks up no label. Counters that every call changes are counted by each thread separately, and summed when
//! they are read.
mod durations;
mod totals;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64},
    },
};

use prometheus::{
    Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::{
        Collector, GenericCounter, GenericCounterVec, GenericGauge, GenericGaugeVec, MetricVec,
        MetricVecBuilder,
    },
};

pub(crate) use self::durations::{Durations, ProtocolDurations};
pub use self::totals::CallTotals;
use self::totals::Series;
use crate::{
    Live,
    plugin::protocol::Protocol,
    striped::StripedAtomic,
    types::{Code, DurationFamilies, Reason, Side},
};

/// All metrics of a process; clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Families>);

/// A counter that each thread counts separately.
pub(crate) type CallCounter = GenericCounter<StripedAtomic<AtomicU64>>;

type CallCounterVec = GenericCounterVec<StripedAtomic<AtomicU64>>;
pub(crate) type CallGauge = GenericGauge<StripedAtomic<AtomicI64>>;
type CallGaugeVec = GenericGaugeVec<StripedAtomic<AtomicI64>>;

/// The families, with the names of the metrics as field names.
struct Families {
    registry: Registry,
    /// The durations of calls, which protocols name.
    durations: Live<Vec<Arc<ProtocolDurations>>>,
    /// Held while a family is registered.
    registering: Mutex<()>,
    /// The series of `durations`.
    series: Mutex<Series>,
    in_flight: CallGaugeVec,
    rejected: IntCounterVec,
    attempts: CallCounterVec,
    retries: IntCounterVec,
    transitions: IntCounterVec,
    breakers: IntGaugeVec,
    decisions: CallCounterVec,
    routes: CallCounterVec,
    faults: IntCounterVec,
    fallbacks: IntCounterVec,
    panic_picks: IntCounterVec,
    endpoints: IntGaugeVec,
    endpoints_held: IntGaugeVec,
    registry_errors: IntCounter,
    instances_refused: IntCounter,
    task_panics: IntCounterVec,
    handler_panics: IntCounter,
    connections_closed: IntCounterVec,
    streams_reset: IntCounterVec,
    config_applies: IntCounterVec,
    config_successful: IntGauge,
    config_timestamp: Gauge,
    config_info: GaugeVec,
}

/// The reasons of refusals that depend on the settings; the others are failures.
const REFUSALS: [Reason; 8] = [
    Reason::RateLimited,
    Reason::Overloaded,
    Reason::CircuitOpen,
    Reason::NoEndpoint,
    Reason::NoRoute,
    Reason::UnknownService,
    Reason::TooLarge,
    Reason::ShuttingDown,
];

// === impl Families ===

impl Families {
    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn series(&self) -> std::sync::MutexGuard<'_, Series> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Metrics ===

impl Metrics {
    /// Registers all families with `registry`; an error names the metric that exists there already.
    pub fn new(registry: Registry) -> Result<Self, prometheus::Error> {
        let make = Make(&registry);
        let families = Families {
            durations: Live::new(Vec::new()),
            registering: Mutex::default(),
            series: Mutex::default(),
            in_flight: make.call_gauge(
                "chassis_in_flight",
                "Calls under way, to the end of their bodies.",
                &["side", "service"],
            )?,
            rejected: make.counter(
                "chassis_rejected_total",
                "Calls refused by this process.",
                &["side", "service", "reason"],
            )?,
            attempts: make.call_counter(
                "chassis_attempts_total",
                "Attempts at outgoing calls, by their outcome.",
                &["service", "code"],
            )?,
            retries: make.counter(
                "chassis_retry_attempts_total",
                "Retries, and the reasons against further ones.",
                &["service", "outcome"],
            )?,
            transitions: make.counter(
                "chassis_breaker_transitions_total",
                "Circuits that moved.",
                &["service", "scope", "to"],
            )?,
            breakers: make.gauge(
                "chassis_breaker_open",
                "Circuits that are not closed.",
                &["service", "scope"],
            )?,
            decisions: make.call_counter(
                "chassis_rate_limit_decisions_total",
                "Decisions of rate limits.",
                &["side", "rule", "decision"],
            )?,
            routes: make.call_counter(
                "chassis_route_decisions_total",
                "Calls that a route rule matched.",
                &["service", "rule"],
            )?,
            faults: make.counter("chassis_faults_injected_total", "Faults injected.", &["rule", "kind"])?,
            fallbacks: make.counter(
                "chassis_fallbacks_total",
                "Answers of fallbacks.",
                &["service", "reason"],
            )?,
            panic_picks: make.counter(
                "chassis_panic_picks_total",
                "Picks that ignored open circuits.",
                &["service"],
            )?,
            endpoints: make.gauge("chassis_endpoints", "Instances known.", &["service", "protocol"])?,
            endpoints_held: make.gauge(
                "chassis_endpoints_held",
                "Instances that are kept although their registry removed them.",
                &["service", "protocol"],
            )?,
            registry_errors: make
                .one("chassis_registry_errors_total", "Failures of a registry to answer, and its panics.")?,
            instances_refused: make.one(
                "chassis_instances_refused_total",
                "Instances that are not used because their registry entry is invalid.",
            )?,
            task_panics: make.counter(
                "chassis_task_panics_total",
                "Background tasks and hooks that panicked.",
                &["task"],
            )?,
            handler_panics: make.one("chassis_handler_panics_total", "Handlers that panicked.")?,
            connections_closed: make.counter(
                "chassis_connections_closed_total",
                "Connections closed because their peer exceeded a limit.",
                &["side", "reason"],
            )?,
            streams_reset: make.counter(
                "chassis_streams_reset_total",
                "HTTP/2 streams reset because their peer exceeded a limit.",
                &["side", "reason"],
            )?,
            config_applies: make.counter(
                "chassis_config_reloads_total",
                "Versions of the settings.",
                &["result"],
            )?,
            config_successful: make
                .gauge(
                    "chassis_config_last_reload_successful",
                    "1 if the last version was applied, otherwise 0.",
                    &[],
                )?
                .with_label_values(&[] as &[&str]),
            config_timestamp: make
                .float(
                    "chassis_config_last_reload_success_timestamp_seconds",
                    "The time at which a version was last applied, in seconds since 1970.",
                    &[],
                )?
                .with_label_values(&[] as &[&str]),
            config_info: make.float(
                "chassis_config_info",
                "The version of the settings in force.",
                &["version", "sha256"],
            )?,
            registry: registry.clone(),
        };
        Ok(Metrics(Arc::new(families)))
    }

    /// The registry of the metrics, to be scraped.
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// Registers the families of `protocol`; an error names the metric that exists already. Otherwise they are
    /// registered with the first call over the protocol.
    pub fn register(&self, protocol: &'static dyn Protocol) -> Result<(), prometheus::Error> {
        self.durations(protocol.durations()).map(drop)
    }

    fn durations(
        &self,
        names: &'static DurationFamilies,
    ) -> Result<Arc<ProtocolDurations>, prometheus::Error> {
        let find = |all: &[Arc<ProtocolDurations>]| {
            all.iter().find(|of| of.names.client.name == names.client.name).cloned()
        };
        if let Some(found) = self.0.durations.with(|all| find(all)) {
            return Ok(found);
        }
        let _one = self.0.registering.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = self.0.durations.with(|all| find(all)) {
            return Ok(found);
        }
        let made = Arc::new(ProtocolDurations::new(names)?);
        // A family that cannot be registered is still counted, and not created again with each call.
        let registered =
            made.sides.iter().try_for_each(|side| self.0.registry.register(Box::new(side.clone())));
        self.0.durations.update(|all| {
            let mut all = all.clone();
            all.push(made.clone());
            all
        });
        registered.map(|()| made)
    }

    /// The same for the first call over a protocol, where no caller handles an error.
    pub(crate) fn durations_of_calls(&self, protocol: &'static dyn Protocol) -> Arc<ProtocolDurations> {
        let names = protocol.durations();
        match self.durations(names) {
            Ok(durations) => durations,
            Err(error) => {
                tracing::warn!(%error, protocol = protocol.name(), "durations of calls are not exported");
                self.durations(names).unwrap_or_else(|_| Arc::new(ProtocolDurations::unnamed()))
            }
        }
    }

    /// Adds the durations of calls with one outcome to the sums over all calls.
    pub(crate) fn sum_up(&self, side: Side, has_failed: bool, durations: &Durations) {
        self.0.series().add(side, has_failed, durations);
    }

    /// The sums over all calls of one side. It reads every series, so it is for decisions that are taken now and then.
    pub fn call_totals(&self, side: Side) -> CallTotals {
        let mut totals = self.0.series().totals(side);
        for metric in self.0.rejected.collect().iter().flat_map(|family| family.get_metric()) {
            let has = |name: &str, is_it: &dyn Fn(&str) -> bool| {
                metric.get_label().iter().any(|label| label.name() == name && is_it(label.value()))
            };
            let is_refusal = |reason: &str| REFUSALS.iter().any(|refusal| refusal.name() == reason);
            if has("side", &|value| value == side.name()) && has("reason", &is_refusal) {
                totals.refusals += metric.get_counter().get_value() as u64;
            }
        }
        totals
    }

    /// The gauge of calls in flight: of `service` on one side.
    pub(crate) fn in_flight(&self, side: Side, service: &str) -> CallGauge {
        self.0.in_flight.with_label_values(&[side.name(), service])
    }

    /// Counts a call that this process refused.
    pub(crate) fn rejected(&self, side: Side, service: &str, reason: Reason) {
        self.0.rejected.with_label_values(&[side.name(), service, reason.name()]).inc();
    }

    /// The counter of attempts that ended with `code`.
    pub(crate) fn attempts(&self, service: &str, code: Code) -> CallCounter {
        self.0.attempts.with_label_values(&[service, code.name()])
    }

    /// Counts a retry, or the reason against one.
    pub(crate) fn retry(&self, service: &str, outcome: &str) {
        self.0.retries.with_label_values(&[service, outcome]).inc();
    }

    /// Counts a circuit's change of state; `open` is the change of the number of circuits that are not closed.
    pub(crate) fn circuit(&self, service: &str, scope: &str, to: &str, open: i64) {
        self.0.transitions.with_label_values(&[service, scope, to]).inc();
        self.0.breakers.with_label_values(&[service, scope]).add(open);
    }

    /// Records that a circuit that was not closed was dropped.
    pub(crate) fn circuit_gone(&self, service: &str, scope: &str) {
        self.0.breakers.with_label_values(&[service, scope]).dec();
    }

    /// The counters of a rate limit: allowed, refused.
    pub(crate) fn limit(&self, side: Side, rule: &str) -> [CallCounter; 2] {
        ["allowed", "refused"]
            .map(|decision| self.0.decisions.with_label_values(&[side.name(), rule, decision]))
    }

    /// The counter of a route rule.
    pub(crate) fn route(&self, service: &str, rule: &str) -> CallCounter {
        self.0.routes.with_label_values(&[service, rule])
    }

    /// The counter of a fault's kind.
    pub(crate) fn fault(&self, rule: &str, kind: &str) -> IntCounter {
        self.0.faults.with_label_values(&[rule, kind])
    }

    /// Counts an answer of a fallback.
    pub(crate) fn fallback(&self, service: &str, reason: Reason) {
        self.0.fallbacks.with_label_values(&[service, reason.name()]).inc();
    }

    /// Counts a pick that ignored open circuits.
    pub(crate) fn panic_pick(&self, service: &str) {
        self.0.panic_picks.with_label_values(&[service]).inc();
    }

    /// Sets the number of known instances of a service.
    pub(crate) fn endpoints(&self, service: &str, protocol: &str, count: usize) {
        self.0
            .endpoints
            .with_label_values(&[service, protocol])
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets the number of instances that are kept although the registry removed them.
    pub(crate) fn endpoints_held(&self, service: &str, protocol: &str, count: usize) {
        self.0
            .endpoints_held
            .with_label_values(&[service, protocol])
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts a failure of the registry to answer.
    pub fn registry_failed(&self) {
        self.0.registry_errors.inc();
    }

    /// Counts an instance that is not used because its registry entry is invalid.
    pub(crate) fn instance_refused(&self) {
        self.0.instances_refused.inc();
    }

    /// Counts a task, or a hook, that panicked: `settings`, `registration`, `hook`.
    pub fn task_panicked(&self, task: &str) {
        self.0.task_panics.with_label_values(&[task]).inc();
    }

    /// Removes all series of these services, which are no longer called.
    pub fn forget(&self, services: &[Arc<str>]) {
        let gone: HashSet<&str> = services.iter().map(|service| &**service).collect();
        let all = &*self.0;
        all.durations.with(|all| {
            for of in all.iter() {
                if let Some(label) = of.names.service {
                    of.sides.iter().for_each(|family| forget(family, label, &gone));
                }
            }
        });
        forget(&all.in_flight, "service", &gone);
        for family in [&all.attempts, &all.routes] {
            forget(family, "service", &gone);
        }
        for family in [&all.rejected, &all.retries, &all.transitions, &all.fallbacks, &all.panic_picks] {
            forget(family, "service", &gone);
        }
        for family in [&all.breakers, &all.endpoints, &all.endpoints_held] {
            forget(family, "service", &gone);
        }
    }

    /// Counts a handler that panicked.
    pub(crate) fn handler_panicked(&self) {
        self.0.handler_panics.inc();
    }

    /// Counts a connection that was closed because its peer exceeded a limit: a flood, slow reading.
    pub fn connection_closed(&self, side: Side, reason: &str) {
        self.0.connections_closed.with_label_values(&[side.name(), reason]).inc();
    }

    /// Counts an HTTP/2 stream that was reset for the same reason.
    pub fn stream_reset(&self, side: Side, reason: &str) {
        self.0.streams_reset.with_label_values(&[side.name(), reason]).inc();
    }

    /// Records that a version of the settings is in force.
    pub fn config_applied(&self, version: u64, hash: &str) {
        self.0.config_applies.with_label_values(&["applied"]).inc();
        self.0.config_successful.set(1);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        self.0.config_timestamp.set(now.as_secs_f64());
        self.0.config_info.reset();
        self.0.config_info.with_label_values(&[version.to_string().as_str(), hash]).set(1.0);
    }

    /// Records that a version was refused, or a source could not be read.
    pub fn config_refused(&self, result: &str) {
        self.0.config_applies.with_label_values(&[result]).inc();
        self.0.config_successful.set(0);
    }
}

/// Removes the series whose `label` has one of these values.
fn forget<B: MetricVecBuilder>(family: &MetricVec<B>, label: &str, gone: &HashSet<&str>) {
    for metric in family.collect().iter().flat_map(|family| family.get_metric()) {
        let labels: HashMap<&str, &str> =
            metric.get_label().iter().map(|label| (label.name(), label.value())).collect();
        if labels.get(label).is_some_and(|value| gone.contains(value)) {
            let _ = family.remove(&labels); // an error says that it is gone already
        }
    }
}

/// Creates and registers families.
struct Make<'a>(&'a Registry);

impl Make<'_> {
    fn put<C: Collector + Clone + 'static>(&self, family: C) -> Result<C, prometheus::Error> {
        self.0.register(Box::new(family.clone()))?;
        Ok(family)
    }
    fn call_counter(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<CallCounterVec, prometheus::Error> {
        self.put(CallCounterVec::new(Opts::new(name, help), labels)?)
    }
    fn call_gauge(&self, name: &str, help: &str, labels: &[&str]) -> Result<CallGaugeVec, prometheus::Error> {
        self.put(CallGaugeVec::new(Opts::new(name, help), labels)?)
    }
    fn counter(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        self.put(IntCounterVec::new(Opts::new(name, help), labels)?)
    }
    fn gauge(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
        self.put(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }
    fn float(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
        self.put(GaugeVec::new(Opts::new(name, help), labels)?)
    }
    fn one(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.put(IntCounter::new(name, help)?)
    }
}
