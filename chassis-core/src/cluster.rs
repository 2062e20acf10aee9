//! The nodes of one service over one protocol: who is there, and what we have seen of each.
//!
//! *Instance* is what the registry says; *node* is one instance over one protocol with its load, its
//! circuit and its connection. Nodes outlive refreshes of the set, so nothing seen is forgotten.
use std::{
    any::Any,
    collections::{HashMap, HashSet},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    BoxError, Live,
    call::{Listener, Outcome},
    event::{Event, Events},
    labels::LabelSet,
    layer::breaker::{Circuit, CircuitFigures, Force, State, Token, Transition, ended},
    load::Load,
    metrics::Metrics,
    policy::{Policy, Site},
    protocol::{Leaf, Transport},
    random::Random,
    registry::{Instance, Membership, Registry, RegistryError},
    tasks::Tasks,
};

/// What the connection to an endpoint is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Connection {
    /// Nobody wanted one yet, or it was closed for lack of use.
    Idle = 0,
    /// Under way.
    Connecting = 1,
    /// Takes calls.
    Ready = 2,
    /// Failed; another try comes after a backoff.
    TransientFailure = 3,
}

/// A leaf's side of its node: where to connect, and where to tell how that goes.
#[derive(Clone)]
pub struct Link {
    service: Arc<str>,
    instance: Arc<str>,
    address: Arc<str>,
    vital: Arc<Vital>,
    tasks: Tasks,
    random: Random,
}

/// One instance over one protocol.
pub struct Node {
    service: Arc<str>,
    id: Arc<str>,
    address: Arc<str>,
    instance: Live<Instance>,
    vital: Arc<Vital>,
    load: Load,
    circuit: Circuit,
    leaf: Box<dyn AnyLeaf>,
    /// Counted among the circuits that are not closed.
    counted: AtomicBool,
    events: Events,
    metrics: Metrics,
}

/// The nodes of one service over one protocol, following the registry.
pub struct Cluster {
    service: Arc<str>,
    protocol: &'static str,
    members: Live<Members>,
    changes: Arc<Changes>,
    make: Box<dyn Fn(Link) -> Box<dyn AnyLeaf> + Send + Sync>,
    events: Events,
    metrics: Metrics,
    site: Site,
    tasks: Tasks,
    random: Random,
}

/// Who is there, as of one snapshot of the registry.
pub struct Members {
    /// What the registry said; `None` before its first answer.
    known: Option<Known>,
    /// The name that may have been meant, where this one is unknown.
    near: Option<Arc<str>>,
    /// Everybody, those of weight 0 too.
    nodes: Box<[Arc<Node>]>,
    all: Arc<Subset>,
    chosen: Live<HashMap<LabelSet, Arc<Subset>, foldhash::fast::RandomState>>,
    /// The first few of them once more, by the very sets of the rules: found without hashing.
    first: [OnceLock<(Arc<LabelSet>, Arc<Subset>)>; 4],
}

/// What a registry's answer amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It has instances, or had some and says nothing of a deletion.
    Service,
    /// It has never heard of the service.
    Unknown,
    /// The service was deleted.
    Deleted,
}

/// The nodes that a call may go to, in a fixed order, with their weights.
pub struct Subset {
    nodes: Box<[Arc<Node>]>,
    /// Running sums of the weights, where they differ.
    weights: Option<Box<[u64]>>,
    /// The epoch of the changes that `panicking` was worked out at, plus one, and the answer.
    panicking: (AtomicU64, AtomicBool),
}

/// Counts what changed in a cluster, and wakes those who wait for it.
struct Changes {
    epoch: AtomicU64,
    notify: Notify,
}

struct Vital {
    connection: AtomicU8,
    changes: Arc<Changes>,
}

/// A leaf of any protocol.
trait AnyLeaf: Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn wake(&self);
    fn close(&self);
}

/// How long calls to an unknown service wait for the name that may have been meant.
const SERVICES_WAIT: Duration = Duration::from_millis(100);
/// A registry that answers with an empty list is believed after this long.
const EMPTY_GRACE: Duration = Duration::from_secs(60);
/// Label sets a cluster keeps ready; more are worked out per call.
const MOST_SUBSETS: usize = 256;

// === impl Connection ===

impl Connection {
    fn from_number(number: u8) -> Self {
        match number {
            0 => Connection::Idle,
            1 => Connection::Connecting,
            2 => Connection::Ready,
            _ => Connection::TransientFailure,
        }
    }
}

impl std::fmt::Display for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Connection::Idle => "idle",
            Connection::Connecting => "connecting",
            Connection::Ready => "ready",
            Connection::TransientFailure => "failing",
        })
    }
}

// === impl Link ===

impl Link {
    /// A link that belongs to no cluster: for tests of a transport alone.
    pub fn detached(service: &str, address: &str, tasks: Tasks, random: Random) -> Self {
        let vital = Arc::new(Vital { connection: AtomicU8::new(0), changes: Arc::new(Changes::new()) });
        Link {
            service: service.into(),
            instance: address.into(),
            address: address.into(),
            vital,
            tasks,
            random,
        }
    }

    /// Where to connect: `host:port`, `unix:/path`, `memory:name`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The logical service, for `:authority` and TLS names.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The instance's id, for logs.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Tells how the connection is.
    pub fn set(&self, connection: Connection) {
        if self.vital.connection.swap(connection as u8, Ordering::AcqRel) != connection as u8 {
            self.vital.changes.bump();
        }
    }

    /// How the connection was last told to be.
    pub fn connection(&self) -> Connection {
        self.vital.connection()
    }

    /// Resolves after the next change of this or a sibling's connection.
    pub async fn changed(&self) {
        self.vital.changes.notify.notified().await;
    }

    /// What runs in the background ends with this.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Randomness for jitter.
    pub fn random(&self) -> &Random {
        &self.random
    }
}

impl Vital {
    fn connection(&self) -> Connection {
        Connection::from_number(self.connection.load(Ordering::Acquire))
    }
}

impl Changes {
    fn new() -> Self {
        Changes { epoch: AtomicU64::new(0), notify: Notify::new() }
    }

    fn bump(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.notify.notify_waiters();
    }
}

impl<L: Leaf> AnyLeaf for L {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn wake(&self) {
        Leaf::wake(self);
    }
    fn close(&self) {
        Leaf::close(self);
    }
}

// === impl Node ===

impl Node {
    /// The instance's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it is reached.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What the registry says of it now.
    pub fn instance(&self) -> Arc<Instance> {
        self.instance.get()
    }

    /// What goes on there, and went.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// How its connection is.
    pub fn connection(&self) -> Connection {
        self.vital.connection()
    }

    /// The state of its circuit: closed unless breakers work at the scope of endpoints.
    pub fn circuit(&self, now: Instant, policy: &Policy) -> State {
        policy.node_breaker.as_ref().map_or(State::Closed, |config| self.circuit.state(now, config))
    }

    /// The figures of its circuit; `None` unless breakers work at the scope of endpoints.
    pub fn circuit_figures(&self, now: Instant, policy: &Policy) -> Option<CircuitFigures> {
        policy.node_breaker.as_ref().map(|config| self.circuit.figures(now, config))
    }

    /// Would a call be let in now? Asking changes nothing.
    pub fn is_available(&self, now: Instant, policy: &Policy, ignore_circuit: bool) -> bool {
        self.connection() == Connection::Ready
            && policy.node_concurrency.is_none_or(|most| self.load.in_flight() < most)
            && (ignore_circuit
                || policy.node_breaker.as_ref().is_none_or(|config| self.circuit.admits(now, config)))
    }

    /// A call would like to go here: connect.
    pub fn wake(&self) {
        self.leaf.wake();
    }

    /// The leaf, if it is an `L`.
    pub(crate) fn leaf<L: Leaf>(&self) -> Option<&L> {
        self.leaf.as_any().downcast_ref()
    }

    /// Is it ready, but has no room for another call?
    pub(crate) fn is_full(&self, policy: &Policy) -> bool {
        policy.node_concurrency.is_some_and(|most| self.load.in_flight() >= most)
    }

    /// Lets a call in, or says no. What comes back goes to [`Listener`] with the attempt.
    pub(crate) fn admit(&self, now: Instant, policy: &Policy, ignore_circuit: bool) -> Option<Admitted> {
        if self.connection() != Connection::Ready {
            return None;
        }
        self.load.started();
        if policy.node_concurrency.is_some_and(|most| self.load.in_flight() > most) {
            self.load.ended();
            return None;
        }
        let Some(breaker) = policy.node_breaker.as_deref() else {
            return Some(Admitted { token: UNGUARDED, in_panic: false });
        };
        match self.circuit.admit(now, breaker) {
            Ok(admission) => {
                if let Some(moved) = admission.moved {
                    self.moved(moved);
                }
                Some(Admitted { token: admission.token.to_bits(), in_panic: false })
            }
            Err(_) if ignore_circuit => Some(Admitted { token: UNGUARDED, in_panic: true }),
            Err(_) => {
                self.load.ended();
                None
            }
        }
    }

    fn moved(&self, Transition { from, to }: Transition) {
        self.vital.changes.bump();
        self.counted.store(to != State::Closed, Ordering::Relaxed);
        let open = i64::from(to != State::Closed) - i64::from(from != State::Closed);
        self.metrics.circuit(&self.service, "endpoint", to.name(), open);
        self.events.emit(Event::CircuitMoved {
            service: self.service.clone(),
            of: self.id.to_string(),
            from,
            to,
        });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.counted.load(Ordering::Relaxed) {
            self.metrics.circuit_gone(&self.service, "endpoint");
        }
    }
}

/// A node has let a call in.
pub(crate) struct Admitted {
    /// To be handed to the node with the attempt's outcome.
    pub(crate) token: u64,
    /// Only because circuits are ignored.
    pub(crate) in_panic: bool,
}

/// The token of a call that no circuit watches.
const UNGUARDED: u64 = u64::MAX;

/// A node listens to the attempts that were sent to it.
impl Listener for Node {
    fn judged(&self, token: u64, outcome: &Outcome<'_>) {
        let policy = outcome.policy;
        let verdict = &outcome.verdict;
        if verdict.blames_nobody() {
            if token != UNGUARDED {
                self.circuit.release(Token::from_bits(token));
            }
            return;
        }
        let failed = policy.failures.contains(ended(verdict));
        self.load.judged(!failed, outcome.now.saturating_duration_since(outcome.started), outcome.now);
        if let Some(breaker) = policy.node_breaker.as_deref().filter(|_| token != UNGUARDED) {
            let failed = breaker.failures.contains(ended(verdict));
            if let Some(moved) = self.circuit.record(Token::from_bits(token), failed, outcome.now, breaker) {
                self.moved(moved);
            }
        }
    }

    fn ended(&self, _: u64) {
        self.load.ended();
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", &self.id).field("address", &self.address).finish_non_exhaustive()
    }
}

// === impl Cluster ===

impl Cluster {
    /// Starts to follow `service` in the background; ends with `tasks`.
    pub(crate) fn start<T: Transport>(
        service: Arc<str>,
        transport: Arc<T>,
        registry: Arc<dyn Registry>,
        events: Events,
        metrics: Metrics,
        tasks: Tasks,
        random: Random,
    ) -> Arc<Self> {
        let protocol = transport.protocol().name();
        let members = Live::new(Members::new(None, None, Vec::new()));
        let cluster = Arc::new(Cluster {
            service,
            protocol,
            members,
            changes: Arc::new(Changes::new()),
            make: Box::new(move |link| Box::new(transport.leaf(link))),
            site: Site::new(metrics.clone(), events.clone()),
            events,
            metrics,
            tasks: tasks.clone(),
            random,
        });
        tasks.spawn(follow(cluster.clone(), registry));
        cluster
    }

    /// The service's name.
    pub fn service(&self) -> &Arc<str> {
        &self.service
    }

    /// The protocol its nodes speak.
    pub fn protocol(&self) -> &'static str {
        self.protocol
    }

    /// Who is there now.
    pub fn members(&self) -> Arc<Members> {
        self.members.get()
    }

    /// Looks at who is there now, without holding on to it.
    pub(crate) fn with_members<R>(&self, look: impl FnOnce(&Members) -> R) -> R {
        self.members.with(|members| look(members))
    }

    /// Waits until something changes that a pick depends on. Take the future, look, then await it.
    /// Where picking speaks up.
    pub(crate) fn site(&self) -> &Site {
        &self.site
    }

    pub(crate) fn random(&self) -> &Random {
        &self.random
    }

    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changes.notify.notified()
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.changes.epoch.load(Ordering::Acquire)
    }

    /// The instances that can be called over this protocol, each once.
    fn usable(&self, mut instances: Vec<Instance>) -> Vec<Instance> {
        let service = &*self.service;
        let mut seen = HashSet::new();
        instances.retain(|instance| {
            if !instance.addresses.contains_key(self.protocol) {
                return false;
            }
            if let Err(error) = instance.check() {
                tracing::warn!(target: "chassis", service, %error, "an instance is ignored");
                return false;
            }
            let first = seen.insert(instance.id.clone());
            if !first {
                let id = &instance.id;
                tracing::warn!(target: "chassis", service, id, "a second instance of the same id is ignored");
            }
            first
        });
        instances
    }

    /// `returned`: they had been gone, and the last set was only held on to.
    fn replace(&self, known: Known, near: Option<Arc<str>>, instances: Vec<Instance>, returned: bool) {
        let old = self.members.get();
        let mut by_id: HashMap<&str, &Arc<Node>> = old.nodes.iter().map(|n| (&*n.id, n)).collect();
        let mut nodes = Vec::with_capacity(instances.len());
        for instance in instances {
            let Some(address) = instance.addresses.get(self.protocol) else { continue };
            // Who comes back after a failure is another process: it is not to wait for a backoff.
            let stays = |node: &&Arc<Node>| {
                *node.address == **address && !(returned && node.connection() == Connection::TransientFailure)
            };
            match by_id.remove(instance.id.as_str()).filter(stays) {
                Some(node) => {
                    if *node.instance.get() != instance {
                        node.instance.set(instance);
                    }
                    nodes.push(node.clone());
                }
                None => nodes.push(self.node(instance)),
            }
        }
        let kept: HashSet<*const Node> = nodes.iter().map(Arc::as_ptr).collect();
        let gone: Vec<_> = old.nodes.iter().filter(|n| !kept.contains(&Arc::as_ptr(n))).cloned().collect();
        self.metrics.endpoints(&self.service, self.protocol, nodes.len());
        self.members.set(Members::new(Some(known), near, nodes));
        self.changes.bump();
        for node in gone {
            node.leaf.close();
            self.events
                .emit(Event::InstanceLeft { service: self.service.clone(), instance: node.id.to_string() });
        }
    }

    fn node(&self, instance: Instance) -> Arc<Node> {
        let address: Arc<str> = instance.addresses.get(self.protocol).map_or("", String::as_str).into();
        let id: Arc<str> = instance.id.as_str().into();
        let vital = Arc::new(Vital { connection: AtomicU8::new(0), changes: self.changes.clone() });
        let link = Link {
            service: self.service.clone(),
            instance: id.clone(),
            address: address.clone(),
            vital: vital.clone(),
            tasks: self.tasks.clone(),
            random: self.random.clone(),
        };
        self.events.emit(Event::InstanceJoined {
            service: self.service.clone(),
            instance: id.to_string(),
            address: address.to_string(),
        });
        let now = Instant::now();
        Arc::new(Node {
            service: self.service.clone(),
            id,
            address,
            instance: Live::new(instance),
            vital,
            load: Load::new(now),
            circuit: Circuit::new(now),
            leaf: (self.make)(link),
            counted: AtomicBool::new(false),
            events: self.events.clone(),
            metrics: self.metrics.clone(),
        })
    }
}

/// Keeps `cluster` as the registry says, and the last good set where it says nothing.
async fn follow(cluster: Arc<Cluster>, registry: Arc<dyn Registry>) {
    let mut failures = 0u32;
    loop {
        let error = match registry.watch(&cluster.service).await {
            Ok(mut watcher) => follow_one(&cluster, &*registry, &mut *watcher, &mut failures).await,
            Err(error) => error,
        };
        failures += 1;
        cluster
            .events
            .emit(Event::RegistryUnreachable { service: cluster.service.clone(), error: chain(&error) });
        let most = Duration::from_millis(100 << failures.min(8)).min(Duration::from_secs(15));
        tokio::time::sleep(cluster.random.between(most / 2, most)).await;
    }
}

async fn follow_one(
    cluster: &Cluster,
    registry: &dyn Registry,
    watcher: &mut dyn crate::registry::Watcher,
    failures: &mut u32,
) -> RegistryError {
    let mut empty_since: Option<Instant> = None;
    loop {
        let next = match empty_since {
            None => watcher.next().await,
            Some(since) => match tokio::time::timeout_at(since + EMPTY_GRACE, watcher.next()).await {
                Ok(next) => next,
                Err(_) => {
                    cluster.replace(Known::Service, None, Vec::new(), false);
                    empty_since = None;
                    continue;
                }
            },
        };
        let membership = match next {
            Ok(membership) => membership,
            Err(error) => return error,
        };
        *failures = 0;
        let kept = cluster.members.get().nodes.len();
        let (known, instances) = match membership {
            Membership::Known(instances) => (Known::Service, cluster.usable(instances)),
            Membership::Unknown => (Known::Unknown, Vec::new()),
            Membership::Deleted => (Known::Deleted, Vec::new()),
        };
        // A registry that knows of nobody any more, or has forgotten the service, may have lost its memory.
        if instances.is_empty() && kept > 0 && known != Known::Deleted {
            if empty_since.is_none() {
                empty_since = Some(Instant::now());
                cluster.events.emit(Event::EmptySetHeld { service: cluster.service.clone(), kept });
            }
            continue;
        }
        let returned = empty_since.take().is_some();
        let near = match known {
            Known::Unknown => nearest_of(&cluster.service, registry).await,
            Known::Service | Known::Deleted => None,
        };
        cluster.replace(known, near, instances, returned);
    }
}

/// The service that may have been meant. A registry that can't tell at once is not waited for: calls wait.
async fn nearest_of(name: &str, registry: &dyn Registry) -> Option<Arc<str>> {
    let all = tokio::time::timeout(SERVICES_WAIT, registry.services()).await.ok()?;
    nearest(name, all).map(Into::into)
}

/// The name that differs least, if it is near enough to be a slip.
fn nearest(name: &str, all: Vec<String>) -> Option<String> {
    let far = name.len().max(3) / 3;
    all.into_iter()
        .filter(|other| other != name)
        .map(|other| (crate::matching::edit_distance(name, &other), other))
        .filter(|(distance, _)| *distance <= far)
        .min()
        .map(|(_, other)| other)
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

// === impl Members ===

impl Members {
    fn new(known: Option<Known>, near: Option<Arc<str>>, nodes: Vec<Arc<Node>>) -> Self {
        let all = Subset::new(nodes.clone());
        Members {
            known,
            near,
            nodes: nodes.into(),
            all,
            chosen: Live::new(HashMap::default()),
            first: Default::default(),
        }
    }

    /// What the registry said last; `None` before its first answer.
    pub fn known(&self) -> Option<Known> {
        self.known
    }

    /// The service that may have been meant, where the registry has never heard of this one.
    pub fn nearest_name(&self) -> Option<&str> {
        self.near.as_deref()
    }

    /// Every node, those of weight 0 too.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Every node that takes calls.
    pub fn all(&self) -> &Arc<Subset> {
        &self.all
    }

    /// The nodes with the labels of a rule; may be empty.
    pub(crate) fn with_labels_of(&self, rule: &Arc<LabelSet>) -> Arc<Subset> {
        let taken = self.first.iter().map_while(OnceLock::get);
        if let Some((_, subset)) = taken.clone().find(|(labels, _)| Arc::ptr_eq(labels, rule)) {
            return subset.clone();
        }
        let subset = self.with_labels(rule);
        if let Some(free) = self.first.get(taken.count()) {
            let _ = free.set((rule.clone(), subset.clone())); // or somebody was quicker
        }
        subset
    }

    /// The nodes with `labels`; may be empty.
    pub fn with_labels(&self, labels: &LabelSet) -> Arc<Subset> {
        if labels.is_empty() {
            return self.all.clone();
        }
        if let Some(subset) = self.chosen.with(|chosen| chosen.get(labels).cloned()) {
            return subset;
        }
        let select = |node: &&Arc<Node>| labels.selects(&node.instance.get());
        let subset = Subset::new(self.all.nodes.iter().filter(select).cloned().collect());
        self.chosen.update(|chosen| {
            let mut chosen = chosen.clone();
            if chosen.len() < MOST_SUBSETS {
                chosen.insert(labels.clone(), subset.clone());
            }
            chosen
        });
        subset
    }
}

// === impl Subset ===

impl Subset {
    fn new(nodes: Vec<Arc<Node>>) -> Arc<Self> {
        // Weight 0 takes no new calls, unless all have it.
        let weight = |node: &Arc<Node>| u64::from(node.instance.get().weight);
        let any = nodes.iter().any(|node| weight(node) > 0);
        let nodes: Box<[_]> = nodes.into_iter().filter(|node| !any || weight(node) > 0).collect();
        let same = nodes.windows(2).all(|pair| weight(&pair[0]) == weight(&pair[1]));
        let mut sum = 0;
        let sums = nodes.iter().map(|node| {
            sum += weight(node).max(1);
            sum
        });
        let weights = (!same).then(|| sums.collect());
        Arc::new(Subset { nodes, weights, panicking: (AtomicU64::new(0), AtomicBool::new(false)) })
    }

    /// The nodes, in a fixed order.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// An index drawn in proportion to the weights. The subset must not be empty.
    pub fn draw(&self, random: &Random) -> usize {
        match &self.weights {
            None => random.below(self.nodes.len()),
            Some(sums) => {
                let total = sums.last().copied().unwrap_or(1);
                let at = random.below(usize::try_from(total).unwrap_or(usize::MAX)) as u64;
                sums.partition_point(|sum| *sum <= at).min(self.nodes.len() - 1)
            }
        }
    }

    /// Two different nodes, each by its weight; there have to be two.
    pub(crate) fn draw_two(&self, random: &Random) -> (usize, usize) {
        let count = self.nodes.len();
        if self.weights.is_none() {
            return random.two_below(count);
        }
        let (a, b) = (self.draw(random), self.draw(random));
        // A second draw of the same node would be no choice; any other is as likely.
        (a, if a == b { (a + 1 + random.below(count - 1)) % count } else { b })
    }

    /// Is more than half of what is ready out by an open circuit? Then circuits are ignored, unless they
    /// are held open by hand.
    ///
    /// After Envoy's panic threshold and Finagle's panic mode. Worked out once per change. That the time
    /// of an open circuit is over is no change yet, but the first call there makes it one.
    pub(crate) fn is_panicking(&self, epoch: u64, now: Instant, policy: &Policy) -> bool {
        if policy.node_breaker.as_ref().is_none_or(|breaker| breaker.force != Force::Auto) {
            return false;
        }
        if self.panicking.0.load(Ordering::Acquire) == epoch + 1 {
            return self.panicking.1.load(Ordering::Relaxed);
        }
        let (mut ready, mut out) = (0u64, 0u64);
        for node in &self.nodes {
            if node.connection() == Connection::Ready {
                let weight = u64::from(node.instance.get().weight.max(1));
                ready += weight;
                out += if node.circuit(now, policy) == State::Open { weight } else { 0 };
            }
        }
        let panicking = out * 2 > ready;
        self.panicking.1.store(panicking, Ordering::Relaxed);
        self.panicking.0.store(epoch + 1, Ordering::Release);
        panicking
    }
}

impl From<RegistryError> for crate::Error {
    fn from(error: RegistryError) -> Self {
        crate::Error::local(crate::Reason::NoEndpoint, error.to_string())
            .with_source(Box::new(error) as BoxError)
    }
}
