//! The inspection of a running process, for a table, an admin page or a test.
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;

use crate::{
    algorithm::circuit::State,
    clock::Instant,
    cluster::{Cluster, Node},
    layer,
    policy::{Policies, Policy, concerns},
    rule::{Look, Visible},
    runtime::Runtime,
    tasks::catch,
};

pub use crate::health::CheckView;
pub use crate::layer::{
    breaker::CircuitView, concurrency::ConcurrencyView, fault::FaultView, own::LayerView,
    rate_limit::LimitView, retry::BudgetView,
};

macro_rules! inspection {
    (both { $($both:tt)* } outbound { $($outbound:tt)* } service { $($service:tt)* }) => {
        inspection_of! { $($both)* $($outbound)* $($service)* }
    };
}

/// Declares the inspection, with the view of each concern's rules.
macro_rules! inspection_of {
    (
        $(
            $(#[$doc:meta])* $key:ident: $written:ty => {
                $( $(#[$field_doc:meta])* $vis:vis $field:ident: $type:ty ),+
            } by $concern:ty $(, seen as $(#[$view_doc:meta])* $view:ident: $view_type:ty)? ;
        )*
    ) => {
        /// The complete state at one moment.
        #[derive(Clone, Debug, Serialize)]
        pub struct Inspection {
            /// This service.
            pub service: String,
            /// The version of the settings in force; 0 for the defaults.
            pub version: u64,
            /// The hash of their content.
            pub hash: String,
            /// The staged roll-out of new settings; `None` if there was none.
            pub rollout: Option<RolloutView>,
            /// The health checks of the program, by name.
            pub checks: Vec<CheckView>,
            /// Services that are called, by name and protocol.
            pub services: Vec<ServiceView>,
            $( $( $(#[$view_doc])* pub $view: Vec<$view_type>, )? )*
            /// Faults of the settings, in their order.
            pub faults: Vec<FaultView>,
            /// The number of states that outlive versions: grows with the number of called and configured
            /// names, not with time.
            pub cells: usize,
        }

        impl Inspection {
            pub(crate) fn of(runtime: &Runtime, hash: String) -> Self {
                let now = Instant::now();
                let policies = runtime.policies().get();
                let (all, mut seen) = (policies.all(), HashSet::new());
                $( view! { all, now, seen, [$($field),+], $concern, $($view)? } )*
                let services = services(runtime, &policies, now);
                let faults = policies.faults().iter().map(|fault| fault.view(now)).collect();
                let service = runtime.service().to_string();
                let (version, cells) = (policies.version(), runtime.states().len());
                let (rollout, checks) = (runtime.rollout(), runtime.health().view());
                Inspection { service, version, hash, rollout, checks, services, $( $( $view, )? )* faults, cells }
            }
        }
    };
}

/// Collects the views of one concern in the rules of all policies, as a local variable; empty for a concern
/// without a view.
macro_rules! view {
    ($all:ident, $now:ident, $seen:ident, [$($field:ident),+], $concern:ty,) => {};
    ($all:ident, $now:ident, $seen:ident, [$($field:ident),+], $concern:ty, $view:ident) => {
        let mut $view = Vec::new();
        for policy in &$all {
            let mut look = Look::new(&policy.service, &policy.operation, $now, &mut $seen);
            #[allow(unused_parens)] // concerns with one field
            let rule = ($(policy.$field.clone()),+);
            $view.extend(<$concern as Visible>::view(&rule, &mut look));
        }
    };
}

concerns!(inspection);

/// The staged roll-out of the newest settings in this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RolloutView {
    /// The hash of these settings.
    pub hash: String,
    /// `waiting`: other instances have them first. `baking`: they are in force, and calls are watched. `proven`: they are
    /// in force. `rolled_back`: they did harm and are not in force. `refused`: they did harm elsewhere, or before.
    pub state: &'static str,
    /// Whether this process is among the first.
    pub is_first: bool,
    /// The number of instances that apply them first.
    pub first: usize,
    /// The number of all instances of the service; 0 while the registry has not listed them.
    pub members: usize,
    /// Why they are not in force.
    pub why: Option<String>,
}

/// A service that is called.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ServiceView {
    /// Its name.
    pub name: String,
    /// Its protocol.
    pub protocol: &'static str,
    /// Its nodes.
    pub nodes: Vec<NodeView>,
    /// Its route rules, in order.
    pub rules: Vec<RuleView>,
}

/// One node.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct NodeView {
    /// The instance's id.
    pub id: String,
    /// Its address.
    pub address: String,
    /// The registry that lists it: the member of a composite one, or the one that the service has of its own.
    pub registry: String,
    /// Its labels, version and zone among them.
    pub labels: BTreeMap<String, String>,
    /// Its weight.
    pub weight: u32,
    /// Its priority; smaller numbers come first.
    pub priority: u32,
    /// The status that the registry states: `up`, `out_of_service`.
    pub status: String,
    /// The state of its connection.
    pub connection: String,
    /// The state of its circuit, if breakers have the scope `endpoint`.
    pub circuit: Option<State>,
    /// The number of finished attempts.
    pub calls: u64,
    /// The number of successful attempts.
    pub successes: u64,
    /// The number of attempts in flight.
    pub in_flight: u32,
    /// The median duration of attempts.
    pub p50: Option<Duration>,
    /// The 99th percentile of the duration of attempts.
    pub p99: Option<Duration>,
    /// The decaying share of failures that affects picks.
    pub failure_share: f64,
}

/// A route rule.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RuleView {
    /// Its name.
    pub name: String,
    /// The number of calls that it decided.
    pub hits: u64,
}

fn services(runtime: &Runtime, policies: &Policies, now: Instant) -> Vec<ServiceView> {
    let mut services: Vec<_> = runtime
        .clusters()
        .iter()
        .map(|cluster| ServiceView::of(runtime, cluster, &policies.outbound_now(cluster.service()), now))
        .collect();
    services.sort_by(|a, b| (&a.name, a.protocol).cmp(&(&b.name, b.protocol)));
    services
}

// === impl ServiceView ===

impl ServiceView {
    fn of(runtime: &Runtime, cluster: &Cluster, policy: &Policy, now: Instant) -> Self {
        let (registry, service) = (runtime.registry(), cluster.registered());
        // The registry is code of another crate: its panic hides nothing else.
        let own = catch(|| registry.name().to_owned()).unwrap_or_default();
        let listed_by = |id: &str| {
            catch(|| registry.listed_by(service, id)).ok().flatten().unwrap_or_else(|| own.clone())
        };
        let members = cluster.members();
        let node = |node: &Arc<Node>| NodeView::of(node, listed_by(node.id()), policy, now);
        let nodes = members.nodes().iter().map(node).collect();
        ServiceView {
            name: cluster.service().to_string(),
            protocol: cluster.protocol(),
            nodes,
            rules: policy
                .rules()
                .iter()
                .map(|r| RuleView { name: r.name.to_string(), hits: r.hits() })
                .collect(),
        }
    }
}

impl NodeView {
    fn of(node: &Node, registry: String, policy: &Policy, now: Instant) -> Self {
        let (instance, figures) = (node.instance(), node.load().figures(now));
        let mut labels: BTreeMap<_, _> = instance.labels.clone().into();
        for (name, value) in instance.stated() {
            labels.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
        NodeView {
            id: node.id().to_owned(),
            address: node.address().to_owned(),
            registry,
            labels,
            weight: instance.weight,
            priority: instance.priority,
            status: instance.status().as_str().to_owned(),
            connection: node.connection().to_string(),
            circuit: policy.node_breaker.as_ref().map(|_| node.circuit(now, &policy.node_rules())),
            calls: figures.calls,
            successes: figures.successes,
            in_flight: figures.in_flight,
            p50: figures.p50,
            p99: figures.p99,
            failure_share: figures.failure_share,
        }
    }
}
