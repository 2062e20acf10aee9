//! A look into a running process: what a table, an admin page or a test reads.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::Serialize;

use crate::{
    algorithm::circuit::State,
    clock::Instant,
    cluster::{Cluster, Node},
    layer::rate_limit::Buckets,
    policy::Policy,
    runtime::Runtime,
};

/// Everything there is to see at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// This service.
    pub service: String,
    /// The version of the settings in force; 0 for the defaults.
    pub version: u64,
    /// The hash of their content.
    pub hash: String,
    /// Services that are called, by name and protocol.
    pub services: Vec<ServiceView>,
    /// Circuits above the retries, of services and operations.
    pub circuits: Vec<CircuitView>,
    /// Rate limits, of calls out and in.
    pub limits: Vec<LimitView>,
    /// Bounds on concurrent calls.
    pub concurrency: Vec<ConcurrencyView>,
    /// Pieces of state that outlive versions: grows with what is called and named, not with time.
    pub cells: usize,
}

/// A service that is called.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceView {
    /// Its name.
    pub name: String,
    /// Over which protocol.
    pub protocol: &'static str,
    /// Its nodes.
    pub nodes: Vec<NodeView>,
    /// Its route rules, in order.
    pub rules: Vec<RuleView>,
}

/// One node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeView {
    /// The instance's id.
    pub id: String,
    /// Where it is.
    pub address: String,
    /// Its labels, version and zone among them.
    pub labels: BTreeMap<String, String>,
    /// Its weight.
    pub weight: u32,
    /// How its connection is.
    pub connection: String,
    /// The state of its circuit, where breakers work at the scope of endpoints.
    pub circuit: Option<State>,
    /// Attempts that ended.
    pub calls: u64,
    /// Those that went well.
    pub successes: u64,
    /// Under way.
    pub in_flight: u32,
    /// Half of the attempts were quicker.
    pub p50: Option<Duration>,
    /// 99 of 100 were quicker.
    pub p99: Option<Duration>,
    /// The share of failures that weighs on picks, fading.
    pub failure_share: f64,
}

/// A route rule.
#[derive(Clone, Debug, Serialize)]
pub struct RuleView {
    /// Its name.
    pub name: String,
    /// Calls it decided on.
    pub hits: u64,
}

/// A circuit above the retries.
#[derive(Clone, Debug, Serialize)]
pub struct CircuitView {
    /// The service called.
    pub service: String,
    /// What it guards: the service, or an operation.
    pub of: String,
    /// Its state.
    pub state: State,
    /// Calls in the window.
    pub calls: u32,
    /// Failures among them.
    pub failures: u32,
    /// How much longer it stays open.
    pub retry_after: Option<Duration>,
}

/// A rate limit.
#[derive(Clone, Debug, Serialize)]
pub struct LimitView {
    /// The service called, or this one.
    pub service: String,
    /// The rule.
    pub rule: String,
    /// Its rate.
    pub rate: String,
    /// Its burst.
    pub burst: u32,
    /// What one bucket for all would admit now.
    pub available: Option<u32>,
    /// How many keys have a bucket.
    pub keys: Option<usize>,
}

/// A bound on concurrent calls.
#[derive(Clone, Debug, Serialize)]
pub struct ConcurrencyView {
    /// The service called, or this one.
    pub service: String,
    /// The operation, where it is the operation's own.
    pub operation: String,
    /// The most at once.
    pub limit: u32,
    /// Under way.
    pub in_use: u32,
}

// === impl Inspection ===

impl Inspection {
    pub(crate) fn of(runtime: &Runtime, hash: String) -> Self {
        let now = Instant::now();
        let policies = runtime.policies().get();
        let all = policies.all();
        let mut seen = Seen::default();
        let circuits = all.iter().filter(|p| p.breaker.as_ref().is_some_and(|b| seen.first(&b.cell)));
        let circuits = circuits.filter_map(|policy| CircuitView::of(policy, now)).collect();
        let limits = all.iter().flat_map(|p| p.rate_limits.iter().map(move |limit| (p, limit)));
        let limits = limits.filter(|(_, limit)| seen.first(&limit.buckets));
        let limits = limits.map(|(policy, limit)| LimitView::of(policy, limit, now)).collect();
        let bounds = all.iter().filter_map(|p| p.concurrency.as_ref().map(|bound| (p, bound)));
        let bounds =
            bounds.filter(|(_, bound)| seen.first(&bound.gauge)).map(|(policy, bound)| ConcurrencyView {
                service: policy.service.to_string(),
                operation: policy.operation.to_string(),
                limit: bound.config.limit.get(),
                in_use: bound.gauge.in_use(),
            });
        let concurrency = bounds.collect();
        let mut services: Vec<_> = runtime
            .clusters()
            .iter()
            .map(|cluster| ServiceView::of(cluster, &policies.outbound_now(cluster.service()), now))
            .collect();
        services.sort_by(|a, b| (&a.name, a.protocol).cmp(&(&b.name, b.protocol)));
        let service = runtime.service().to_string();
        let (version, cells) = (policies.version(), runtime.states().len());
        Inspection { service, version, hash, services, circuits, limits, concurrency, cells }
    }
}

/// Cells shared by several policies are shown once.
#[derive(Default)]
struct Seen(std::collections::HashSet<usize>);

impl Seen {
    fn first<T>(&mut self, cell: &Arc<T>) -> bool {
        self.0.insert(Arc::as_ptr(cell) as usize)
    }
}

impl ServiceView {
    fn of(cluster: &Cluster, policy: &Policy, now: Instant) -> Self {
        ServiceView {
            name: cluster.service().to_string(),
            protocol: cluster.protocol(),
            nodes: cluster.members().nodes().iter().map(|node| NodeView::of(node, policy, now)).collect(),
            rules: policy
                .rules()
                .iter()
                .map(|r| RuleView { name: r.name.to_string(), hits: r.hits() })
                .collect(),
        }
    }
}

impl NodeView {
    fn of(node: &Node, policy: &Policy, now: Instant) -> Self {
        let (instance, figures) = (node.instance(), node.load().figures(now));
        let mut labels: BTreeMap<_, _> = instance.labels.clone().into();
        for (name, value) in [("version", &instance.version), ("zone", &instance.zone)] {
            if !value.is_empty() {
                labels.entry(name.to_owned()).or_insert_with(|| value.clone());
            }
        }
        NodeView {
            id: node.id().to_owned(),
            address: node.address().to_owned(),
            labels,
            weight: instance.weight,
            connection: node.connection().to_string(),
            circuit: policy.node_breaker.as_ref().map(|_| node.circuit(now, policy)),
            calls: figures.calls,
            successes: figures.successes,
            in_flight: figures.in_flight,
            p50: figures.p50,
            p99: figures.p99,
            failure_share: figures.failure_share,
        }
    }
}

impl CircuitView {
    fn of(policy: &Policy, now: Instant) -> Option<Self> {
        let guard = policy.breaker.as_ref()?;
        let figures = guard.cell.circuit.figures(now, &guard.config);
        Some(CircuitView {
            service: policy.service.to_string(),
            of: guard.cell.of.to_string(),
            state: figures.state,
            calls: figures.calls,
            failures: figures.failures,
            retry_after: figures.retry_after,
        })
    }
}

impl LimitView {
    fn of(policy: &Policy, limit: &crate::layer::rate_limit::Limit, now: Instant) -> Self {
        let (available, keys) = match &*limit.buckets {
            Buckets::One(bucket) => (Some(bucket.available(now, limit.config.burst)), None),
            Buckets::Keyed(keyed) => (None, Some(keyed.len())),
        };
        LimitView {
            service: policy.service.to_string(),
            rule: limit.config.name.clone(),
            rate: limit.config.rate.to_string(),
            burst: limit.config.burst,
            available,
            keys,
        }
    }
}
