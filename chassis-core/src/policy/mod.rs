//! The policies of calls: compiled from settings, taken once per call, swapped as a whole.
//!
//! The compiler finds every piece of state (circuits, buckets, budgets, counts) by a stable key in cells that
//! versions share: the same key gives the same cell. So a swap changes numbers, and no history is lost.
//! Operations that the settings do not name get their policy with their first call, a bounded number of them;
//! the others share that of `_OTHER`.
mod compile;
mod concerns;
mod live_section;
mod resolved;
mod settings;

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use self::compile::Base;
pub(crate) use self::concerns::concerns;
pub use self::live_section::LiveSection;
pub use self::settings::{
    InboundOperationSettings, InboundSettings, ListenerSettings, OperationSettings, OutboundSettings,
    ServiceSettings, Settings, defaults,
};
pub use crate::layer::{
    balance::{BUILT_IN_PICKERS, Pickers},
    own::LayerSwitch,
};
pub use crate::rule::Problem;
pub(crate) use crate::rule::{Common, Environment, States};
use crate::{
    Live,
    cluster::NodeRules,
    layer::{
        self,
        concurrency::ConcurrencyConfig,
        fault::{Fault, Faults},
        retry::RetryConfig,
        route::Rule,
    },
    rule::Concern,
    section::Sections,
    striped::{self, Striped},
};

macro_rules! policy {
    (both { $($both:tt)* } outbound { $($outbound:tt)* } service { $($service:tt)* }) => {
        policy_of! { $($both)* $($outbound)* $($service)* }
    };
}

macro_rules! policy_of {
    (
        $(
            $(#[$doc:meta])* $key:ident: $written:ty => {
                $( $(#[$field_doc:meta])* $vis:vis $field:ident: $type:ty ),+
            } by $concern:ty $(, seen as $(#[$view_doc:meta])* $view:ident: $view_type:ty)? ;
        )*
    ) => {
        /// The rules of one call, with the state they share. A field that is `None` or empty is off.
        #[derive(Clone)]
        pub struct Policy {
            /// The service called; on the server this one.
            pub(crate) service: Arc<str>,
            /// The operation, or `_OTHER`.
            pub(crate) operation: Arc<str>,
            /// The version of the settings.
            pub(crate) version: u64,
            /// The faults to inject, by their place.
            pub(crate) faults: Faults,
            /// The metrics.
            pub(crate) metrics: Option<Arc<layer::metrics::CallMetrics>>,
            /// The metrics of attempts.
            pub(crate) attempts: Option<Arc<layer::attempt::AttemptMetrics>>,
            /// The common values of all policies of a process.
            pub(crate) common: Arc<Common>,
            /// The registered sections, of the same version.
            pub(crate) sections: Sections,
            $( $( $(#[$field_doc])* $vis $field: $type, )+ )*
        }

        impl Policy {
            #[allow(unused_parens)] // concerns with one field
            fn empty() -> Self {
                $( let ($($field),+) = <$concern as Concern>::none(); )*
                Policy {
                    service: "".into(),
                    operation: "".into(),
                    version: 0,
                    faults: Faults::default(),
                    metrics: None,
                    attempts: None,
                    common: Arc::default(),
                    sections: Sections::default(),
                    $( $($field,)+ )*
                }
            }
        }
    };
}

concerns!(policy);

/// Every call looks up a name. The hash is fast and randomly seeded; the number of names that callers invent is
/// bounded ([`MOST_OPERATIONS`]).
type ByName<T> = HashMap<Arc<str>, T, foldhash::fast::RandomState>;

/// One version of all policies: service → operation → policy.
pub struct Policies {
    version: u64,
    inbound: Table,
    /// Services that the settings name.
    named: ByName<Arc<Table>>,
    /// Services that were called and are not in the settings.
    called: Live<ByName<Arc<Table>>>,
    environment: Arc<Environment>,
    /// The settings, for services that are called without being named.
    settings: Arc<Settings>,
    /// The table of services beyond [`MOST_SERVICES`].
    other: OnceLock<Arc<Table>>,
    faults: Arc<[Arc<Fault>]>,
}

/// The rest of a service that is no longer called, as long as calls of it are in flight.
pub(crate) struct Retired {
    service: Arc<str>,
    table: Option<Arc<Table>>,
}

/// The policies of one service.
struct Table {
    base: Base,
    named: ByName<Entry>,
    called: Live<ByName<Arc<Entry>>>,
    /// The first few of them again: found without a hash or a snapshot.
    first: [OnceLock<(Arc<str>, Arc<Entry>)>; 8],
    other: Entry,
    /// Whether a policy was requested, so that there may be state to carry over.
    used: AtomicBool,
    copies: Copies,
}

/// The policy of an operation. A call counts references to it and to the targets of its rules, so threads have
/// copies; otherwise they would compete for the counters. All state is shared.
struct Entry {
    policy: Arc<Policy>,
    /// The stripe that has the policy itself, plus one; 0 before the first call of the operation.
    owner: AtomicUsize,
    copies: Striped<Arc<Policy>>,
}

/// The copied parts of a service's policies.
#[derive(Default)]
struct Copies {
    count: AtomicUsize,
    routes: Striped<Arc<[Rule]>>,
}

/// The limit of unnamed operations of one service that have a policy of their own: beyond it they share that of
/// `_OTHER`, so that invented names cannot fill the memory.
pub const MOST_OPERATIONS: usize = 1024;

/// The limit of unnamed services that have policies of their own: beyond it they share those of `_OTHER`, so
/// that invented names cannot fill the memory.
pub const MOST_SERVICES: usize = 1024;

/// The limit of copies of one service's policies: about half a megabyte. Threads share the policies of other
/// operations; among so many operations few are called by two threads at once.
const MOST_COPIES: usize = 1024;

// === impl Policy ===

impl Policy {
    /// The policy of a call before the route layer: without rules.
    pub fn none() -> Arc<Self> {
        static NONE: Striped<Arc<Policy>> = Striped::new();
        NONE.mine(|| Arc::new(Policy::empty())).clone()
    }

    /// The service that is called; of a call that comes in, this service.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The operation, by its name in the settings; `_OTHER` for one that has no policy of its own.
    pub fn operation(&self) -> &str {
        &self.operation
    }

    /// The version of the settings that this policy was compiled from; 0 for the defaults.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The setting `timeout`: how long the call may take to the head of its answer. `None`: no bound.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// The setting `total_timeout`: how long the call may take to the end of its body. `None`: no bound.
    pub fn total_timeout(&self) -> Option<Duration> {
        self.total_timeout
    }

    /// Whether the settings say that executing the call twice does no harm.
    pub fn is_idempotent(&self) -> bool {
        self.idempotent
    }

    /// The settings `retry`; `None` if they are off.
    pub fn retry(&self) -> Option<&RetryConfig> {
        self.retry.as_ref().map(|retries| &*retries.config)
    }

    /// The setting `concurrency` of the service or the operation; `None` if it is off.
    pub fn concurrency(&self) -> Option<&ConcurrencyConfig> {
        self.concurrency.as_ref().map(|bound| &bound.config)
    }

    /// The rules for the nodes that a call may be sent to.
    #[inline]
    pub(crate) fn node_rules(&self) -> NodeRules<'_> {
        NodeRules {
            breaker: self.node_breaker.as_deref(),
            concurrency: self.node_concurrency,
            failures: &self.failures,
        }
    }

    /// The section of this type, in the version of the settings of this call; `None` if none was registered. It
    /// costs a comparison for each section, and counts no reference.
    pub fn extension<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.sections.get()
    }
}

// === impl Policies ===

impl Policies {
    /// The version of the settings.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The registered sections.
    pub fn sections(&self) -> &Sections {
        &self.settings.sections
    }

    /// Operations that were called without being named in the settings: those of `service`, or the incoming
    /// ones.
    pub fn called(&self, service: Option<&str>) -> Vec<Arc<str>> {
        match service {
            None => self.inbound.names_called(),
            Some(name) => match self.named.get(name) {
                Some(table) => table.names_called(),
                None => self.called.get().get(name).map(|table| table.names_called()).unwrap_or_default(),
            },
        }
    }

    /// The policy of a call to `operation` of `service`.
    pub fn outbound(&self, service: &Arc<str>, operation: &str) -> Arc<Policy> {
        match self.named.get(service) {
            Some(table) => table.policy(operation),
            None => self.table(service).policy(operation),
        }
    }

    /// The policy of an incoming call for `operation`.
    pub fn inbound(&self, operation: &str) -> Arc<Policy> {
        self.inbound.policy(operation)
    }

    /// All policies, for the inspection: inbound, then by service.
    pub fn all(&self) -> Vec<Arc<Policy>> {
        let mut tables: Vec<Arc<Table>> = self.named.values().cloned().collect();
        tables.extend(self.called.get().values().cloned());
        tables.extend(self.other.get().cloned());
        let mut all = self.inbound.all();
        all.extend(tables.iter().flat_map(|table| table.all()));
        all
    }

    /// The faults of the settings.
    pub(crate) fn faults(&self) -> &[Arc<Fault>] {
        &self.faults
    }

    /// Whether the settings name `service`.
    pub(crate) fn is_named(&self, service: &str) -> bool {
        self.named.contains_key(service)
    }

    /// Whether calls to `service` have policies of their own already.
    pub(crate) fn has(&self, service: &str) -> bool {
        self.is_named(service) || self.called.with(|called| called.contains_key(service))
    }

    /// The rules of incoming calls of operations without rules of their own. Changes nothing, unlike a call.
    pub(crate) fn inbound_now(&self) -> Arc<Policy> {
        self.inbound.other.policy.clone()
    }

    /// The policy of calls to operations of `service` without one of their own; changes nothing, unlike a call.
    pub(crate) fn outbound_now(&self, service: &str) -> Arc<Policy> {
        let table = self.named.get(service).cloned();
        let table = table.or_else(|| self.called.with(|called| called.get(service).cloned()));
        table.unwrap_or_else(|| self.other().clone()).other.policy.clone()
    }

    /// Removes the policies of a service that the settings do not name and that is no longer called. A later
    /// call creates them again, with the state that calls in flight still hold.
    pub(crate) fn retire(&self, service: Arc<str>) -> Retired {
        let table = self.called.with(|called| called.get(&service).cloned());
        if table.is_some() {
            self.called.update(|called| {
                let mut called = called.clone();
                called.remove(&service);
                called
            });
        }
        Retired { service, table }
    }

    fn table(&self, service: &Arc<str>) -> Arc<Table> {
        let found = self.called.with(|called| match called.get(service) {
            Some(table) => Some(table.clone()),
            None if called.len() >= MOST_SERVICES => Some(self.other().clone()),
            None => None,
        });
        if let Some(table) = found {
            return table;
        }
        let table = Arc::new(self.compile_unnamed(service.clone()));
        insert(&self.called, service.clone(), table, MOST_SERVICES);
        // Another thread may have been faster; all use the table in the map.
        self.called.with(|called| called.get(service).cloned()).unwrap_or_else(|| self.other().clone())
    }

    fn other(&self) -> &Arc<Table> {
        self.other.get_or_init(|| Arc::new(self.compile_unnamed("_OTHER".into())))
    }
}

// === impl Retired ===

impl Retired {
    pub(crate) fn service(&self) -> &Arc<str> {
        &self.service
    }

    /// Whether a call holds any of it.
    pub(crate) fn is_in_use(&self) -> bool {
        self.table.as_ref().is_some_and(|table| table.is_in_use())
    }
}

// === impl Table ===

impl Table {
    fn new(base: Base, named: ByName<Entry>) -> Self {
        let other = Entry::new(base.policy("_OTHER".into()));
        let (called, first) = (Live::new(ByName::default()), Default::default());
        let (used, copies) = (AtomicBool::new(false), Copies::default());
        Table { base, named, called, first, other, used, copies }
    }

    fn policy(&self, operation: &str) -> Arc<Policy> {
        if !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
        if let Some(entry) = self.named.get(operation) {
            return entry.mine(&self.copies);
        }
        let first = self.first.iter().map_while(OnceLock::get);
        if let Some((_, entry)) = first.into_iter().find(|(name, _)| **name == *operation) {
            return entry.mine(&self.copies);
        }
        let mine = |entry: &Arc<Entry>| entry.mine(&self.copies);
        if let Some(policy) = self.called.with(|called| called.get(operation).map(mine)) {
            return policy;
        }
        if operation == "_OTHER" || self.called.with(|called| called.len() >= MOST_OPERATIONS) {
            return self.other.mine(&self.copies);
        }
        self.call(operation.into())
    }

    /// The policy of an operation that is called for the first time.
    fn call(&self, operation: Arc<str>) -> Arc<Policy> {
        match self.add(operation) {
            Some(entry) => entry.mine(&self.copies),
            None => self.other.mine(&self.copies),
        }
    }

    /// Creates a policy for `operation`; `None` if there are too many.
    fn add(&self, operation: Arc<str>) -> Option<Arc<Entry>> {
        let entry = Arc::new(Entry::new(self.base.policy(operation.clone())));
        insert(&self.called, operation.clone(), entry, MOST_OPERATIONS);
        let entry = self.called.with(|called| called.get(&operation).cloned())?;
        if let Some(free) = self.first.iter().find(|first| first.get().is_none()) {
            let _ = free.set((operation, entry.clone())); // unless another thread was faster
        }
        Some(entry)
    }

    /// Whether one of its policies is held outside this table.
    fn is_in_use(&self) -> bool {
        let called = self.called.get();
        let entries = self.named.values().chain(called.values().map(|entry| &**entry)).chain([&self.other]);
        entries.into_iter().any(Entry::is_in_use)
    }

    fn all(&self) -> Vec<Arc<Policy>> {
        let mut all: Vec<_> = self.named.values().map(|entry| entry.policy.clone()).collect();
        all.extend(self.called.get().values().map(|entry| entry.policy.clone()));
        all.push(self.other.policy.clone());
        all
    }

    fn names_called(&self) -> Vec<Arc<str>> {
        self.called.get().keys().cloned().collect()
    }

    /// Operations that were called without being named keep their policy in `next`.
    fn carry_over(&self, next: &Table) {
        next.used.store(self.used.load(Relaxed), Relaxed);
        for operation in self.called.get().keys() {
            if !next.named.contains_key(operation) {
                next.add(operation.clone()); // for the thread that calls it, which is not this one
            }
        }
    }
}

// === impl Entry ===

impl Entry {
    fn new(policy: Policy) -> Self {
        Entry { policy: Arc::new(policy), owner: AtomicUsize::new(0), copies: Striped::new() }
    }

    fn is_in_use(&self) -> bool {
        // If there are too many copies, a thread uses the policy itself.
        let own = |policy: &&Arc<Policy>| Arc::ptr_eq(policy, &self.policy);
        let copies = self.copies.all().filter(|copy| !own(copy));
        Arc::strong_count(&self.policy) > 1 + self.copies.all().filter(own).count()
            || copies.into_iter().any(|copy| Arc::strong_count(copy) > 1)
    }

    /// The policy, or this thread's copy of it.
    fn mine(&self, of: &Copies) -> Arc<Policy> {
        let me = striped::mine() + 1;
        match self.owner.load(Relaxed) {
            owner if owner == me => self.policy.clone(),
            0 if self.owner.compare_exchange(0, me, Relaxed, Relaxed).is_ok() => self.policy.clone(),
            _ => self.copies.mine(|| of.copy(&self.policy)).clone(),
        }
    }
}

// === impl Copies ===

impl Copies {
    fn copy(&self, policy: &Arc<Policy>) -> Arc<Policy> {
        if self.count.fetch_add(1, Relaxed) >= MOST_COPIES {
            return policy.clone();
        }
        let routes = self.routes.mine(|| policy.routes.iter().map(Rule::apart).collect());
        Arc::new(Policy { routes: routes.clone(), ..(**policy).clone() })
    }
}

fn insert<T>(map: &Live<ByName<Arc<T>>>, key: Arc<str>, value: Arc<T>, most: usize) {
    map.update(|old| {
        let mut new = old.clone();
        if new.len() < most {
            new.entry(key.clone()).or_insert_with(|| value.clone());
        }
        new
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Runtime;

    /// Each concern's `default_of` is its `unwritten`: as settings the defaults change no rule.
    #[tokio::test]
    async fn defaults_as_settings_change_no_rule() {
        let rules = |settings: &Settings| {
            let runtime = Runtime::builder("orders").build().expect("the names of the metrics are free");
            runtime.apply(settings, 1, "").expect("they fit together");
            let policies = runtime.policies().get();
            [policies.outbound(&"stock".into(), "a.B/C"), policies.inbound("a.B/C")].map(|policy| {
                let Policy { breaker, node_breaker, failures, .. } = &*policy;
                let circuits =
                    (breaker.as_ref().map(|guard| *guard.config), node_breaker.as_deref().copied());
                let retry = policy.retry.as_ref().map(|retry| (retry.config.clone(), retry.bounds.clone()));
                let lists = (policy.rate_limits.len(), policy.routes.len(), policy.node_concurrency);
                let off = (policy.fallback.is_none(), policy.concurrency.is_none());
                format!(
                    "{:?} {:?} {retry:?} {} {circuits:?} {failures:?} {lists:?} {off:?}",
                    policy.timeout, policy.total_timeout, policy.idempotent
                )
            })
        };
        let (inbound, outbound) = defaults();
        let outbound = OutboundSettings { defaults: outbound, ..OutboundSettings::default() };
        let written = Settings { inbound, outbound, ..Settings::default() };
        let (found, default) = (rules(&written), rules(&Settings::default()));
        assert_eq!(found, default);
        assert!(default[0].starts_with("Some(5s)") && default[1].starts_with("Some(30s)"), "{default:?}");
    }
}
