//! The shared parts of a running chassis: the newest policies, the registry, events, metrics, randomness,
//! tasks.
//!
//! Cheap to clone. When the last clone is dropped, or [`Runtime::shutdown`] is called, its tasks end.
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use http::{Extensions, HeaderName, HeaderValue};
use tokio::sync::watch;

use crate::{
    Live,
    cluster::{Cluster, Directory, Grace, HoldConfig, Keeper, LastGoodConfig, LeafMaker, Lookup, Start},
    contain,
    event::Events,
    health::Health,
    inspect::{Inspection, RolloutView},
    layer::{
        balance::{PickerFactory, Pickers},
        fallback::{FallbackFn, Fallbacks, Protocols},
        own::LayerNames,
        retry::Idempotent,
    },
    metrics::Metrics,
    plugin::{
        protocol::Protocol,
        registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
        transport::Transport,
    },
    policy::{Common, Environment, LiveSection, Policies, Problem, Retired, Settings, States},
    random::Random,
    reporter::Reporter,
    stage::Stages,
    tasks::Tasks,
    types::{LabelSet, units::Ratio},
};

/// The shared parts of a running chassis.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

struct Inner {
    environment: Arc<Environment>,
    policies: Live<Policies>,
    /// The hash of the version in force; held while a version is compiled.
    applying: Mutex<String>,
    lookup: Arc<Lookup>,
    stages: Stages,
    clusters: Mutex<HashMap<ClusterKey, Arc<Cluster>>>,
    /// Retired services, which are no longer called and have parts that must be dropped.
    retired: Mutex<Vec<Retired>>,
    /// Whether a task that drops them is running.
    sweeping: AtomicBool,
    this: Weak<Inner>,
    tasks: Tasks,
    health: Health,
    rollout: Mutex<Option<RolloutView>>,
}

/// The limit of followed services that neither the registry nor the settings know. Beyond it, the least
/// recently used one is retired, if no call waits for it.
pub const MOST_UNKNOWN: usize = 512;
/// Services that were retired within this time are dropped together.
const SWEEP: Duration = Duration::from_secs(1);
/// The time until the next attempt to drop parts that calls still hold.
const SWEEP_AGAIN: Duration = Duration::from_secs(60);

/// A service, and the address of the transport that reaches it. The cluster keeps the transport, so no other
/// one can have this address.
type ClusterKey = (Arc<str>, usize);

/// Builds a [`Runtime`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use chassis_core::Runtime;
///
/// let runtime = Runtime::builder("orders").build().unwrap();
/// assert_eq!(runtime.inspect().version, 0);
/// # }
/// ```
pub struct RuntimeBuilder {
    service: Arc<str>,
    labels: LabelSet,
    lookup_in: Arc<str>,
    last_good: Option<LastGoodConfig>,
    registry: Arc<dyn Registry>,
    metrics: Option<prometheus::Registry>,
    random: Random,
    events: Events,
    stages: Stages,
    /// Values for single concerns, which find their own by type.
    extensions: Extensions,
}

// === impl RuntimeBuilder ===

impl RuntimeBuilder {
    /// The labels of this service, sent to the services that it calls. Default: none.
    pub fn labels(mut self, labels: LabelSet) -> Self {
        self.labels = labels;
        self
    }

    /// The environment of this service: instances that state another one are not called. Default: empty, which is the
    /// environment of instances that state none.
    pub fn environment(mut self, environment: &str) -> Self {
        self.lookup_in = environment.into();
        self
    }

    /// Keeps the last good instances of each called service on disk. A cluster whose registry fails, or does not answer
    /// within 2 s of the first call, begins with them. Default: nothing is kept.
    pub fn last_good(mut self, config: LastGoodConfig) -> Self {
        self.last_good = Some(config);
        self
    }

    /// The registry of services. Default: none, so no service is known. A registry that may block its thread is
    /// polled by [threads of its own](crate::contain).
    pub fn registry(mut self, registry: Arc<dyn Registry>) -> Self {
        self.registry = registry;
        self
    }

    /// The registry of metrics. Default: a new one.
    pub fn metrics(mut self, registry: prometheus::Registry) -> Self {
        self.metrics = Some(registry);
        self
    }

    /// The source of randomness. Default: the operating system.
    pub fn random(mut self, random: Random) -> Self {
        self.random = random;
        self
    }

    /// The sink of events. Default: a new one.
    pub fn events(mut self, events: Events) -> Self {
        self.events = events;
        self
    }

    /// The user's layers. Default: none.
    pub fn stages(mut self, stages: Stages) -> Self {
        self.extensions.insert(LayerNames(stages.distinct().into()));
        self.stages = stages;
        self
    }

    /// Adds a picker that settings can name, or a factory of pickers.
    pub fn picker(mut self, name: impl Into<String>, picker: Arc<dyn PickerFactory>) -> Self {
        let Pickers(pickers) = self.extensions.get_or_insert_default();
        pickers.insert(name.into(), picker);
        self
    }

    /// Sets the answers for failed calls to `service`, or to one operation of it.
    pub fn fallback(
        mut self,
        service: impl Into<String>,
        operation: Option<String>,
        answer: Arc<FallbackFn>,
    ) -> Self {
        let Fallbacks(fallbacks) = self.extensions.get_or_insert_default();
        fallbacks.insert((service.into(), operation), answer);
        self
    }

    /// Registers a protocol of outgoing or incoming calls. Its metrics are registered when the runtime is
    /// built, and it checks its settings when they are loaded. Calls of a protocol that is not registered work
    /// too: its metrics are registered with the first one.
    pub fn protocol(mut self, protocol: &'static dyn Protocol) -> Self {
        let Protocols(protocols) = self.extensions.get_or_insert_default();
        protocols.push(protocol);
        self
    }

    /// Declares operations that can be executed twice without harm, as in their protos.
    pub fn idempotent(mut self, operations: impl IntoIterator<Item = String>) -> Self {
        let Idempotent(declared) = self.extensions.get_or_insert_default();
        declared.extend(operations);
        self
    }

    /// Compiles the defaults. Call it within a tokio runtime. Fails if a metric's name exists already.
    pub fn build(self) -> Result<Runtime, prometheus::Error> {
        let mut caller = self.service.to_string();
        for (name, value) in self.labels.iter() {
            caller.push_str(&format!(";{name}={value}"));
        }
        let metrics = Metrics::new(self.metrics.unwrap_or_default())?;
        if let Some(Protocols(protocols)) = self.extensions.get() {
            protocols.iter().try_for_each(|protocol| metrics.register(*protocol))?;
        }
        let registry = contain::registry(self.registry, &self.events, contain::BLOCKED_AFTER);
        let common = Common::new(self.random).called(caller);
        let environment = Arc::new(Environment {
            service: self.service.clone(),
            states: States::default(),
            metrics,
            events: self.events,
            common: Arc::new(common),
            extensions: self.extensions,
        });
        let policies = match Policies::compile(&Settings::default(), 0, &environment, None) {
            Ok(policies) => policies,
            Err(problems) => unreachable!("the defaults compile: {problems:?}"),
        };
        let tasks = Tasks::new();
        let health =
            Health::new(environment.events.clone(), environment.common.random.clone(), tasks.clone());
        Ok(Runtime(Arc::new_cyclic(|this| Inner {
            environment,
            policies: Live::new(policies),
            applying: Mutex::default(),
            lookup: Arc::new(Lookup {
                registry,
                environment: self.lookup_in,
                last_good: self.last_good,
                hold: watch::Sender::new(Some(HoldConfig::default())),
                start: Start::new(),
                directory: Directory::default(),
            }),
            stages: self.stages,
            clusters: Mutex::default(),
            retired: Mutex::default(),
            sweeping: AtomicBool::new(false),
            this: this.clone(),
            tasks,
            health,
            rollout: Mutex::default(),
        })))
    }
}

// === impl Runtime ===

impl Runtime {
    /// A builder of the runtime for the service of this name.
    pub fn builder(service: &str) -> RuntimeBuilder {
        RuntimeBuilder {
            service: service.into(),
            labels: LabelSet::default(),
            lookup_in: "".into(),
            last_good: None,
            registry: Arc::new(Nowhere),
            metrics: None,
            random: Random::from_os(),
            events: Events::new(),
            stages: Stages::default(),
            extensions: Extensions::new(),
        }
    }

    /// Puts new settings in force as a whole, or returns all problems in them. Calls in flight end under the
    /// version they began with; state is kept. `hash` names the content in metrics.
    pub fn apply(&self, settings: &Settings, version: u64, hash: &str) -> Result<(), Vec<Problem>> {
        let mut in_force = self.0.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = self.0.policies.get();
        let compiled = Policies::compile(settings, version, &self.0.environment, Some(&previous));
        let applied = compiled.map(|policies| self.0.policies.set(policies));
        drop(previous);
        self.0.environment.states.sweep(); // also the states of a refused version
        applied?;
        self.metrics().config_applied(version, hash);
        hash.clone_into(&mut in_force);
        Ok(())
    }

    /// Checks whether these settings would be put in force. Changes nothing, except that unused cells may be
    /// created.
    pub fn check(&self, settings: &Settings) -> Result<(), Vec<Problem>> {
        let scratch = Environment {
            service: self.0.environment.service.clone(),
            states: States::default(),
            metrics: match Metrics::new(prometheus::Registry::new()) {
                Ok(metrics) => metrics,
                Err(_) => self.metrics().clone(),
            },
            events: self.events().clone(),
            common: self.0.environment.common.clone(),
            extensions: self.0.environment.extensions.clone(),
        };
        Policies::compile(settings, 0, &Arc::new(scratch), None).map(|_| ())
    }

    /// The cluster of `service` over `transport`: clients of the same transport share it, with its connections.
    /// Another transport has a cluster of its own, even if it has the same type, because it may have other
    /// credentials.
    ///
    /// Names may come from input. A service that neither the registry nor the settings know, and that was not
    /// called for five minutes, leaves no task, state or metric behind. At most [`MOST_UNKNOWN`] of them are
    /// followed at once, apart from those that calls wait for.
    pub fn cluster<T: Transport>(&self, service: &str, transport: &Arc<T>) -> Arc<Cluster> {
        let key = (Arc::<str>::from(service), Arc::as_ptr(transport).addr());
        let mut clusters = self.0.clusters();
        if clusters.len() >= MOST_UNKNOWN && !clusters.contains_key(&key) {
            self.0.make_room(&mut clusters);
        }
        let start = || {
            let reporter = Reporter::new(self.metrics().clone(), self.events().clone());
            let (lookup, tasks) = (self.0.lookup.clone(), self.0.tasks.clone());
            let keeper: Weak<Inner> = self.0.this.clone();
            let (protocol, transport) = (transport.protocol().name(), transport.clone());
            Cluster::start(
                service.into(),
                LeafMaker { protocol, make: Box::new(move |link| Box::new(transport.leaf(link))) },
                lookup,
                keeper,
                reporter,
                tasks,
                self.random().clone(),
            )
        };
        clusters.entry(key).or_insert_with(start).clone()
    }

    /// All clusters that were requested.
    pub fn clusters(&self) -> Vec<Arc<Cluster>> {
        self.0.clusters().values().cloned().collect()
    }

    /// This service's name.
    pub fn service(&self) -> &Arc<str> {
        &self.0.environment.service
    }

    /// The newest policies.
    pub fn policies(&self) -> &Live<Policies> {
        &self.0.policies
    }

    /// The live section `name` of the settings; `None` if there is none of this name and type.
    pub fn section<T: Send + Sync + 'static>(&self, name: &str) -> Option<LiveSection<T>> {
        LiveSection::new(self.0.policies.clone(), &self.0.environment.common, name)
    }

    /// The registry.
    pub fn registry(&self) -> &Arc<dyn Registry> {
        &self.0.lookup.registry
    }

    /// The events.
    pub fn events(&self) -> &Events {
        &self.0.environment.events
    }

    /// The metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.0.environment.metrics
    }

    /// The source of randomness.
    pub fn random(&self) -> &Random {
        &self.0.environment.common.random
    }

    /// The user's layers.
    pub fn stages(&self) -> &Stages {
        &self.0.stages
    }

    /// Sets the names of the headers that are carried on along a chain of hops, for calls from now on. Default:
    /// none.
    pub fn set_carried(&self, names: Vec<HeaderName>) {
        self.0.environment.common.carried.set(names);
    }

    /// Sets the share of calls without a trace that begin one, for calls from now on. Default: none.
    pub fn set_sample(&self, share: Ratio) {
        self.0.environment.common.sample.set(share);
    }

    /// Sets when instances that the registry removed are kept for a while; `None`: never. It also applies to those that
    /// are kept now. Default: [`HoldConfig::default`].
    pub fn set_hold(&self, hold: Option<HoldConfig>) {
        self.0.lookup.hold.send_if_modified(|now| std::mem::replace(now, hold) != hold);
    }

    /// Sets how long after the start of this runtime calls wait for a service that no registry has announced yet. It also
    /// applies to calls that wait now. Default: [`Grace::default`], 3 s.
    pub fn set_grace(&self, grace: Grace) {
        if self.0.lookup.start.set(grace) {
            self.clusters().iter().for_each(|cluster| cluster.look_again());
        }
    }

    /// Sets the roll-out that the inspection shows. Default: none.
    pub fn set_rollout(&self, view: Option<RolloutView>) {
        *self.0.rollout.lock().unwrap_or_else(PoisonError::into_inner) = view;
    }

    pub(crate) fn rollout(&self) -> Option<RolloutView> {
        self.0.rollout.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn states(&self) -> &States {
        &self.0.environment.states
    }

    /// The background tasks.
    pub fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    /// The health checks of the program.
    pub fn health(&self) -> &Health {
        &self.0.health
    }

    /// The name of this service in its calls.
    pub fn caller(&self) -> Option<HeaderValue> {
        self.0.environment.common.caller()
    }

    /// The complete current state: services, nodes, circuits, limits, rules, the version.
    pub fn inspect(&self) -> Inspection {
        let hash = self.0.applying.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Inspection::of(self, hash)
    }

    /// Ends all background tasks; waits at most `bound`. Returns whether all have ended.
    pub async fn shutdown(&self, bound: Duration) -> bool {
        self.0.tasks.end(bound).await
    }
}

// === impl Inner ===

impl Inner {
    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn clusters(&self) -> MutexGuard<'_, HashMap<ClusterKey, Arc<Cluster>>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn retired(&self) -> MutexGuard<'_, Vec<Retired>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Retires the least recently used unknown service, if there are too many.
    #[cold]
    fn make_room(&self, clusters: &mut HashMap<ClusterKey, Arc<Cluster>>) {
        // A cluster with a client is kept.
        clusters.retain(|_, cluster| cluster.is_followed() || Arc::strong_count(cluster) > 1);
        let policies = self.policies.get();
        let idle =
            clusters.values().filter(|cluster| cluster.is_idle() && !policies.is_named(cluster.service()));
        let idle: Vec<_> = idle.collect();
        if idle.len() < MOST_UNKNOWN {
            return;
        }
        let oldest = idle.into_iter().min_by_key(|cluster| cluster.last_asked());
        if let Some(oldest) = oldest.map(Arc::as_ptr) {
            self.retire_of(clusters, oldest);
        }
    }

    /// Stops following one cluster; it is kept only while it has a client.
    fn retire_of(&self, clusters: &mut HashMap<ClusterKey, Arc<Cluster>>, cluster: *const Cluster) -> bool {
        let Some((key, found)) = clusters.iter().find(|(_, one)| Arc::as_ptr(one) == cluster) else {
            return false;
        };
        if !found.retire() {
            return false;
        }
        // One reference is here, the other belongs to the following task.
        let (key, is_held) = (key.clone(), Arc::strong_count(found) > 2);
        if !is_held {
            clusters.remove(&key);
        }
        let service = key.0;
        if !clusters.values().any(|one| *one.service() == service && one.is_followed()) {
            self.let_go(service);
        }
        true
    }

    /// Retires `service`, which is no longer called: its policies are dropped now, its state and metrics when
    /// no call holds them.
    fn let_go(&self, service: Arc<str>) {
        // A running compilation would carry it over.
        let applying = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let retired = self.policies.with(|policies| policies.retire(service));
        drop(applying);
        let mut all = self.retired();
        all.push(retired);
        if !self.sweeping.swap(true, SeqCst) {
            self.tasks.spawn(sweep(self.this.clone()));
        }
    }

    /// Drops the parts of retired services that calls no longer hold. Returns whether all were dropped.
    fn sweep(&self) -> bool {
        let mut retired = std::mem::take(&mut *self.retired());
        let policies = self.policies.get();
        // Services that are called again keep their state.
        retired.retain(|one| !policies.has(one.service()));
        let (held, gone): (Vec<_>, Vec<_>) = retired.into_iter().partition(Retired::is_in_use);
        let services: Vec<_> = gone.iter().map(|one| one.service().clone()).collect();
        drop(gone);
        if !services.is_empty() {
            self.environment.metrics.forget(&services);
        }
        self.environment.states.sweep();
        let mut retired = self.retired();
        retired.extend(held);
        if retired.is_empty() {
            self.sweeping.store(false, SeqCst); // under the lock, so that a service added later starts a new task
        }
        retired.is_empty()
    }
}

impl Keeper for Inner {
    fn retire(&self, cluster: &Arc<Cluster>) -> bool {
        let is_named = self.policies.with(|policies| policies.is_named(cluster.service()));
        !is_named && self.retire_of(&mut self.clusters(), Arc::as_ptr(cluster))
    }
}

/// Drops retired services until none is left.
async fn sweep(inner: Weak<Inner>) {
    let mut pause = SWEEP;
    loop {
        tokio::time::sleep(pause).await;
        let Some(inner) = inner.upgrade() else { return };
        if inner.sweep() {
            return;
        }
        pause = SWEEP_AGAIN;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

/// A registry without services.
struct Nowhere;

#[async_trait::async_trait]
impl Registry for Nowhere {
    fn name(&self) -> &str {
        "none"
    }
    async fn register(&self, _: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        Err(RegistryError::unsupported("there is no registry"))
    }
    async fn watch(&self, _: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        Ok(Box::new(Nothing(false)))
    }
    fn never_blocks(&self) -> bool {
        true
    }
}

struct Nothing(bool);

#[async_trait::async_trait]
impl Watcher for Nothing {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        if std::mem::replace(&mut self.0, true) {
            std::future::pending::<()>().await;
        }
        Ok(Membership::Unknown)
    }
}
