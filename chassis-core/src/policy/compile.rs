//! From settings to policies: checks everything, resolves what is inherited, and finds the state.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, OnceLock, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::{
    ByName, Common, Entry, LayerSwitch, Policies, Policy, Problem, States, Switched, Table,
    settings::{
        InboundOperationSettings, InboundSettings, OperationSettings, OutboundSettings, ServiceSettings,
        Settings,
    },
};
use crate::{
    Live,
    algorithm::circuit::BreakerConfig,
    clock::Instant,
    event::Events,
    layer::{
        balance::{P2c, Picker, RandomPicker, RoundRobin},
        breaker::{self, Guard},
        concurrency::{self, Bound, ConcurrencyConfig, Gauge},
        fallback::{Fallback, FallbackFn, Source},
        fault::{Fault, FaultConfig, Faults},
        rate_limit::{Buckets, Gcra, Key, Keyed, Limit, RateLimitConfig},
        retry::{Budget, Retries, RetryConfig},
        route::Rule,
    },
    metrics::{AttemptMetrics, Metrics},
    section::Sections,
    site::Site,
    types::{
        FailureSet, Side,
        matching::{Match, MatchRef, Matcher},
        units::{PositiveSpan, Switch},
    },
};

/// What policies are compiled with, apart from the settings.
pub struct Environment {
    /// This service's name: whom calls that come in are for.
    pub service: Arc<str>,
    /// State that outlives versions.
    pub states: States,
    /// Figures.
    pub metrics: Metrics,
    /// Events.
    pub events: Events,
    /// What all policies have in common.
    pub common: Arc<Common>,
    /// Pickers of the user's own, by name.
    pub pickers: HashMap<String, Arc<dyn Picker>>,
    /// Fallback functions by service, and by operation where one is named.
    pub fallbacks: HashMap<(String, Option<String>), Arc<FallbackFn>>,
    /// The names of the user's layers, by their numbers.
    pub layers: Vec<Arc<str>>,
    /// Operations that are declared idempotent.
    pub idempotent: HashSet<String>,
}

/// Everything about a service but the operation.
pub(super) struct Base {
    side: Side,
    service: Arc<str>,
    version: u64,
    own: Own,
    routes: Arc<[Rule]>,
    faults: Faults,
    picker: Arc<dyn Picker>,
    sections: Sections,
    environment: Arc<Environment>,
    /// What the keys of its states begin with.
    key: Box<str>,
    sites: Sites,
}

/// Where the operations of a service speak up, all at the same place.
struct Sites {
    limit: Arc<Site>,
    retry: Arc<Site>,
}

/// What can be different for an operation, resolved.
#[derive(Clone)]
struct Own {
    timeout: Option<Duration>,
    total_timeout: Option<Duration>,
    retry: Option<Arc<RetryConfig>>,
    breaker: Option<Arc<BreakerConfig>>,
    /// The operation has breaker settings, and so a circuit, of its own.
    breaker_is_own: bool,
    concurrency: Option<ConcurrencyConfig>,
    concurrency_is_own: bool,
    rate_limits: Arc<[Arc<Limit>]>,
    fallback: Option<Fallback>,
    idempotent: Option<bool>,
    layers: Switched,
}

/// The keys of states, written into one text: thousands of operations are compiled at a time.
struct Keys<'a> {
    text: String,
    base: &'a str,
    operation: &'a str,
}

/// Collects what is wrong, so that one look shows all of it.
struct Compiler<'a> {
    settings: &'a Settings,
    environment: &'a Arc<Environment>,
    version: u64,
    problems: Vec<Problem>,
    /// Bucket retunings, to be done when the whole version is good.
    retunes: Vec<Arc<Limit>>,
}

/// The names that `balance` knows without being told.
pub const BUILT_IN_PICKERS: [&str; 3] = ["p2c", "random", "round_robin"];

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_INBOUND_TIMEOUT: Duration = Duration::from_secs(30);

/// What services that are not named are compiled from.
fn for_unnamed(settings: &Settings) -> Settings {
    let outbound = OutboundSettings { defaults: settings.outbound.defaults.clone(), ..Default::default() };
    Settings {
        matches: settings.matches.clone(),
        outbound,
        pickers: settings.pickers.clone(),
        layers: settings.layers.clone(),
        sections: settings.sections.clone(),
        ..Default::default()
    }
}

impl Policies {
    /// Compiles `settings`, all or nothing. State, and the operations called so far, come from
    /// `previous` and the environment.
    pub fn compile(
        settings: &Settings,
        version: u64,
        environment: &Arc<Environment>,
        previous: Option<&Policies>,
    ) -> Result<Self, Vec<Problem>> {
        let mut compiler =
            Compiler { settings, environment, version, problems: Vec::new(), retunes: Vec::new() };
        compiler.check_matches();
        let faults = compiler.faults();
        let inbound = compiler.inbound(&settings.inbound, &faults);
        // The defaults are compiled once for a service that no one names, so that they are checked too.
        compiler.outbound_parts("_OTHER".into(), "outbound.defaults", &ServiceSettings::default(), &faults);
        let mut named = ByName::default();
        for (name, service) in &settings.outbound.services {
            let path = format!("outbound.services.{name}");
            let name: Arc<str> = name.as_str().into();
            let table = compiler.outbound(name.clone(), &path, service, &faults);
            named.insert(name, Arc::new(table));
        }
        if !compiler.problems.is_empty() {
            return Err(compiler.problems);
        }
        let now = Instant::now();
        for limit in compiler.retunes {
            limit.buckets.retune(now, &limit.config);
        }
        let policies = Policies {
            version,
            inbound,
            named,
            called: Live::new(ByName::default()),
            environment: environment.clone(),
            settings: Arc::new(for_unnamed(settings)),
            other: OnceLock::new(),
            faults,
        };
        if let Some(previous) = previous {
            policies.carry_over(previous);
        }
        Ok(policies)
    }

    /// Operations that were called keep their policy, and with it their state.
    fn carry_over(&self, previous: &Policies) {
        previous.inbound.carry_over(&self.inbound);
        if let Some(other) = previous.other.get() {
            other.carry_over(self.other());
        }
        let called = previous.called.get();
        let used = previous.named.iter().chain(called.iter()).filter(|(_, table)| table.used.load(Relaxed));
        for (name, table) in used {
            let to = self.named.get(name).cloned().unwrap_or_else(|| self.table(name));
            table.carry_over(&to);
        }
    }

    /// The table of a service that the settings do not name. What the defaults say has been checked.
    pub(super) fn compile_unnamed(&self, service: Arc<str>) -> Table {
        let (settings, environment) = (&*self.settings, &self.environment);
        let (problems, retunes) = (Vec::new(), Vec::new());
        let mut compiler = Compiler { settings, environment, version: self.version, problems, retunes };
        compiler.outbound(service, "outbound.defaults", &ServiceSettings::default(), &self.faults)
    }
}

// === impl Base ===

impl Base {
    /// The policy of an operation that has no settings of its own.
    pub(super) fn policy(&self, operation: Arc<str>) -> Policy {
        self.policy_with(operation, &self.own)
    }

    fn policy_with(&self, operation: Arc<str>, own: &Own) -> Policy {
        let environment = &self.environment;
        let (states, service) = (&environment.states, &self.service);
        let text = String::with_capacity(self.key.len() + operation.len() + "/attempts".len());
        let mut keys = Keys { text, base: &self.key, operation: &operation };
        let concurrency = own.concurrency.filter(|c| c.scope != concurrency::Scope::Endpoint).map(|config| {
            let of_operation = own.concurrency_is_own || config.scope == concurrency::Scope::Operation;
            Bound {
                config,
                gauge: states.cell(keys.of("gauge", of_operation), Gauge::default),
                site: self.sites.limit.clone(),
            }
        });
        let breaker = own.breaker.as_ref().filter(|b| b.scope != breaker::Scope::Endpoint).map(|config| {
            let of_operation = own.breaker_is_own || config.scope == breaker::Scope::Operation;
            let of = if of_operation { &operation } else { service };
            let random = &environment.common.random;
            let make = || breaker::Cell::new(service, of, config.scope, &self.site(), random);
            Guard { config: config.clone(), cell: states.cell(keys.of("breaker", of_operation), make) }
        });
        let retry = own.retry.as_ref().map(|config| Retries {
            config: config.clone(),
            bounds: config.bounds(),
            budget: states.cell(keys.of("budget", false), || Budget::new(Instant::now())),
            site: self.sites.retry.clone(),
        });
        let metrics = states
            .cell(keys.of("metrics", true), || environment.metrics.call(self.side, service, &operation));
        let attempts = (self.side == Side::Client).then(|| {
            states.cell(keys.of("attempts", false), || AttemptMetrics::new(&environment.metrics, service))
        });
        let fallback = match self.function(&operation) {
            Some(function) => Some(Fallback::new(Source::Function(function), self.site())),
            None => own.fallback.clone(),
        };
        let by_scope = |scope| own.concurrency.filter(|c| c.scope == scope).map(|c| c.limit.get());
        Policy {
            service: service.clone(),
            operation: operation.clone(),
            version: self.version,
            timeout: own.timeout,
            total_timeout: own.total_timeout,
            idempotent: own.idempotent.unwrap_or_else(|| environment.idempotent.contains(&*operation)),
            layers: own.layers.clone(),
            routes: self.routes.clone(),
            faults: self.faults.clone(),
            rate_limits: own.rate_limits.clone(),
            concurrency,
            node_concurrency: by_scope(concurrency::Scope::Endpoint),
            breaker,
            node_breaker: own.breaker.clone().filter(|b| b.scope == breaker::Scope::Endpoint),
            failures: own.breaker.as_ref().map_or_else(FailureSet::server_faults, |breaker| breaker.failures),
            retry,
            picker: self.picker.clone(),
            fallback,
            metrics: Some(metrics),
            attempts,
            common: environment.common.clone(),
            sections: self.sections.clone(),
        }
    }

    /// The function that the builder was given to answer instead.
    fn function(&self, operation: &str) -> Option<Arc<FallbackFn>> {
        let all = &self.environment.fallbacks;
        if all.is_empty() || self.side == Side::Server {
            return None;
        }
        let function = |operation| all.get(&(self.service.to_string(), operation)).cloned();
        function(Some(operation.to_owned())).or_else(|| function(None))
    }

    fn site(&self) -> Arc<Site> {
        Arc::new(Site::new(self.environment.metrics.clone(), self.environment.events.clone()))
    }
}

// === impl Keys ===

impl Keys<'_> {
    fn of(&mut self, what: &str, of_operation: bool) -> &str {
        self.text.clear();
        self.text.extend([self.base, if of_operation { self.operation } else { "" }, "/", what]);
        &self.text
    }
}

// === impl Compiler ===

impl Compiler<'_> {
    fn problem(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem::new(path, message));
    }

    fn site(&self) -> Arc<Site> {
        Arc::new(Site::new(self.environment.metrics.clone(), self.environment.events.clone()))
    }

    fn sites(&self) -> Sites {
        Sites { limit: self.site(), retry: self.site() }
    }

    /// Matches that nobody uses have to make sense too.
    fn check_matches(&mut self) {
        for (name, matching) in &self.settings.matches {
            let reference = MatchRef::from(matching.clone());
            self.matcher(&format!("matches.{name}"), Some(&reference));
        }
    }

    fn matcher(&mut self, path: &str, matching: Option<&MatchRef>) -> Matcher {
        let named: &BTreeMap<String, Match> = &self.settings.matches;
        let Some(matching) = matching else { return Matcher::any() };
        match Matcher::compile(matching, named) {
            Ok(matcher) => matcher,
            Err(problem) => {
                let dot = if problem.path.is_empty() || problem.path.starts_with('[') { "" } else { "." };
                let mut told = Problem::new(format!("{path}{dot}{}", problem.path), problem.message);
                told.allowed = problem.allowed;
                self.problems.push(told);
                Matcher::any()
            }
        }
    }

    fn faults(&mut self) -> Arc<[Arc<Fault>]> {
        let mut faults = Vec::new();
        for (i, config) in self.settings.faults.iter().enumerate() {
            let path = format!("faults[{i}]");
            if self.settings.faults[..i].iter().any(|earlier| earlier.name == config.name) {
                self.problem(
                    format!("{path}.name"),
                    format!("a second fault is called `{}`; names tell rules apart", config.name),
                );
            }
            let matcher = self.matcher(&format!("{path}.match"), config.matching.as_ref());
            let until = config.until.map(|until| until.to_string()).unwrap_or_default();
            let applied =
                self.environment.states.cell(&format!("fault/{}/{until}", config.name), Instant::now);
            match Fault::new(config.clone(), matcher, applied, self.site()) {
                Ok(fault) => faults.push(Arc::new(fault)),
                Err(message) => self.problem(path, message),
            }
        }
        faults.into()
    }

    fn faults_of(all: &[Arc<Fault>], service: Option<&str>) -> Faults {
        let of = |config: &FaultConfig| config.to.as_deref() == service;
        all.iter().filter(|fault| of(&fault.config)).cloned().collect()
    }

    fn limits(&mut self, side: Side, of: &str, path: &str, configs: &[RateLimitConfig]) -> Arc<[Arc<Limit>]> {
        let mut limits = Vec::new();
        for (i, config) in configs.iter().enumerate() {
            let path = format!("{path}.rate_limits[{i}]");
            if configs[..i].iter().any(|earlier| earlier.name == config.name) {
                self.problem(
                    format!("{path}.name"),
                    format!("a second rate limit is called `{}`; names tell rules apart", config.name),
                );
            }
            let matcher = self.matcher(&format!("{path}.match"), config.matching.as_ref());
            let buckets = self
                .environment
                .states
                .cell(&format!("{side}/{of}/limit/{}/{:?}", config.name, config.key), || {
                    Buckets::new(config, Instant::now())
                });
            match Limit::new(config.clone(), matcher, buckets, side, self.site()) {
                Ok(limit) => limits.push(Arc::new(limit)),
                Err(message) => self.problem(format!("{path}.key"), message),
            }
        }
        self.retunes.extend(limits.iter().cloned());
        limits.into()
    }

    // === calls that come in ===

    fn inbound(&mut self, settings: &InboundSettings, faults: &Arc<[Arc<Fault>]>) -> Table {
        let service = self.environment.service.clone();
        self.check_inbound_scope("inbound", settings.concurrency.as_ref());
        let rate_limits = self.limits(
            Side::Server,
            &service,
            "inbound",
            settings.rate_limits.as_deref().unwrap_or_default(),
        );
        let mut layers = self.switched(&Switched::default(), "layers", &self.settings.layers);
        layers = self.switched(&layers, "inbound.layers", &settings.layers);
        for (listener, own) in &settings.listeners {
            let at = format!("inbound.listeners.{listener}.layers");
            let (environment, problems) = (self.environment, &mut self.problems);
            let unknown = |name: &str| problems.push(unknown_layer(environment, &at, name));
            layers = layers.over_listener(&environment.layers, listener, &own.layers, unknown);
        }
        let own = Own {
            timeout: span(&settings.timeout, Some(DEFAULT_INBOUND_TIMEOUT)),
            total_timeout: span(&settings.total_timeout, None),
            retry: None,
            breaker: None,
            breaker_is_own: false,
            concurrency: settings.concurrency.as_ref().and_then(Switch::on).copied(),
            concurrency_is_own: false,
            rate_limits,
            fallback: None,
            idempotent: None,
            layers,
        };
        let base = Base {
            key: key_of(Side::Server, &service),
            sites: self.sites(),
            side: Side::Server,
            service: service.clone(),
            version: self.version,
            own,
            routes: Arc::new([]),
            faults: Self::faults_of(faults, None),
            picker: Arc::new(P2c),
            sections: self.settings.sections.clone(),
            environment: self.environment.clone(),
        };
        let mut named = ByName::default();
        for (name, operation) in &settings.operations {
            if let Some(message) = crate::types::matching::misspelt_operation(name) {
                self.problem(format!("inbound.operations.{name}"), message);
            }
            let own = self.inbound_own(&base, name, operation);
            let name: Arc<str> = name.as_str().into();
            named.insert(name.clone(), Entry::new(base.policy_with(name, &own)));
        }
        Table::new(base, named)
    }

    /// Calls that come in go to no endpoint, so nothing can be counted over endpoints.
    fn check_inbound_scope(&mut self, path: &str, concurrency: Option<&Switch<ConcurrencyConfig>>) {
        if concurrency.and_then(Switch::on).is_some_and(|c| c.scope == concurrency::Scope::Endpoint) {
            let message =
                "calls that come in are counted over the service or an operation, not over endpoints";
            self.problem(format!("{path}.concurrency.scope"), message);
        }
    }

    fn inbound_own(&mut self, base: &Base, name: &str, settings: &InboundOperationSettings) -> Own {
        let mut own = base.own.clone();
        self.check_inbound_scope(&format!("inbound.operations.{name}"), settings.concurrency.as_ref());
        own.timeout = span(&settings.timeout, own.timeout);
        own.total_timeout = span(&settings.total_timeout, own.total_timeout);
        if let Some(concurrency) = &settings.concurrency {
            own.concurrency = concurrency.on().copied();
            own.concurrency_is_own = true;
        }
        own.layers =
            self.switched(&own.layers, &format!("inbound.operations.{name}.layers"), &settings.layers);
        if let Some(limits) = &settings.rate_limits {
            let of = format!("{}/{name}", base.service);
            own.rate_limits = self.limits(Side::Server, &of, &format!("inbound.operations.{name}"), limits);
        }
        own
    }

    // === calls that go out ===

    fn outbound(
        &mut self,
        service: Arc<str>,
        path: &str,
        settings: &ServiceSettings,
        faults: &Arc<[Arc<Fault>]>,
    ) -> Table {
        let (base, owns) = self.outbound_parts(service, path, settings, faults);
        let named = owns.into_iter().map(|(name, own)| {
            let policy = base.policy_with(name.clone(), &own);
            (name, Entry::new(policy))
        });
        let named = named.collect();
        Table::new(base, named)
    }

    /// What a service and its operations live under, before any state is looked up for them.
    fn outbound_parts(
        &mut self,
        service: Arc<str>,
        path: &str,
        settings: &ServiceSettings,
        faults: &Arc<[Arc<Fault>]>,
    ) -> (Base, Vec<(Arc<str>, Own)>) {
        let base = self.outbound_base(service, path, settings, faults);
        let mut owns = Vec::new();
        let defaults = &self.settings.outbound.defaults.operations;
        for name in defaults.keys().chain(settings.operations.keys()).collect::<BTreeSet<_>>() {
            if let Some(message) = crate::types::matching::misspelt_operation(name) {
                let at = if settings.operations.contains_key(name) { path } else { "outbound.defaults" };
                self.problem(format!("{at}.operations.{name}"), message);
            }
            let mut own = base.own.clone();
            for (at, settings) in
                [("outbound.defaults", defaults.get(name)), (path, settings.operations.get(name))]
            {
                if let Some(settings) = settings {
                    let of = || format!("{}/{name}", base.service);
                    self.over(&mut own, settings, of, || format!("{at}.operations.{name}"), true);
                }
            }
            owns.push((name.as_str().into(), own));
        }
        (base, owns)
    }

    fn outbound_base(
        &mut self,
        service: Arc<str>,
        path: &str,
        settings: &ServiceSettings,
        faults: &Arc<[Arc<Fault>]>,
    ) -> Base {
        let defaults = &self.settings.outbound.defaults;
        let mut own = Own {
            timeout: Some(DEFAULT_TIMEOUT),
            total_timeout: None,
            retry: Some(Arc::default()),
            breaker: Some(Arc::default()),
            breaker_is_own: false,
            concurrency: None,
            concurrency_is_own: false,
            rate_limits: Arc::new([]),
            fallback: None,
            idempotent: None,
            layers: self.switched(&Switched::default(), "layers", &self.settings.layers),
        };
        self.over(&mut own, &defaults.common(), || service.to_string(), || "outbound.defaults".into(), false);
        self.over(&mut own, &settings.common(), || service.to_string(), || path.into(), false);
        let (routes, at) = match (&settings.routes, &defaults.routes) {
            (Some(routes), _) => (routes.as_slice(), path),
            (None, Some(routes)) => (routes.as_slice(), "outbound.defaults"),
            (None, None) => (&[][..], path),
        };
        let routes = self.routes(&service, &format!("{at}.routes"), routes);
        let (balance, at) = match (&settings.balance, &defaults.balance) {
            (Some(name), _) => (name.as_str(), path),
            (None, Some(name)) => (name.as_str(), "outbound.defaults"),
            (None, None) => ("p2c", path),
        };
        let picker = self.picker(&format!("{at}.balance"), balance);
        let faults = Self::faults_of(faults, Some(&service));
        let environment = self.environment.clone();
        let (key, sites) = (key_of(Side::Client, &service), self.sites());
        let (side, version, sections) = (Side::Client, self.version, self.settings.sections.clone());
        Base { side, service, version, own, routes, faults, picker, sections, environment, key, sites }
    }

    /// Puts a layer of settings over what holds so far. Of what it is, and its path, are seldom asked.
    fn over(
        &mut self,
        own: &mut Own,
        settings: &OperationSettings,
        of: impl Fn() -> String,
        path: impl Fn() -> String,
        is_operation: bool,
    ) {
        own.timeout = span(&settings.timeout, own.timeout);
        own.total_timeout = span(&settings.total_timeout, own.total_timeout);
        if settings.retry.is_some() {
            own.retry = Switch::over(settings.retry.as_ref(), own.retry.as_deref().cloned()).map(Arc::new);
            if let Some(Err(message)) = own.retry.as_deref().map(RetryConfig::check) {
                self.problem(format!("{}.retry.attempts", path()), message);
            }
        }
        if settings.breaker.is_some() {
            own.breaker =
                Switch::over(settings.breaker.as_ref(), own.breaker.as_deref().cloned()).map(Arc::new);
            own.breaker_is_own = is_operation;
        }
        if let Some(concurrency) = &settings.concurrency {
            own.concurrency = concurrency.on().copied();
            own.concurrency_is_own = is_operation;
        }
        if let Some(limits) = &settings.rate_limits {
            own.rate_limits = self.limits(Side::Client, &of(), &path(), limits);
        }
        if let Some(fallback) = &settings.fallback {
            if let Some(Err((key, message))) = fallback.on().map(|config| config.check()) {
                self.problem(format!("{}.fallback.{key}", path()), message);
            }
            let source = fallback.on().map(|config| Source::Settings(Arc::new(config.clone())));
            own.fallback = source.map(|source| Fallback::new(source, self.site()));
        }
        if let Some(layers) = &settings.layers {
            own.layers = self.switched(&own.layers, &format!("{}.layers", path()), layers);
        }
        own.idempotent = settings.idempotent.or(own.idempotent);
    }

    fn routes(
        &mut self,
        service: &Arc<str>,
        path: &str,
        configs: &[crate::layer::route::RouteConfig],
    ) -> Arc<[Rule]> {
        let mut matchers: Vec<Matcher> = Vec::new();
        for (i, config) in configs.iter().enumerate() {
            matchers.push(self.matcher(&format!("{path}[{i}].match"), config.matching.as_ref()));
        }
        let metrics = self.environment.metrics.clone();
        let mut problems = Vec::new();
        let mut matchers = matchers.into_iter();
        let rules = Rule::compile_all(
            configs,
            |_, _| matchers.next().unwrap_or_else(Matcher::any),
            |rule| metrics.route(service, rule),
            &mut |at, message| problems.push(Problem::new(format!("{path}{at}"), message)),
        );
        self.problems.extend(problems);
        rules.into()
    }

    /// Overlays `layers`, which stand at `path`.
    fn switched(&mut self, below: &Switched, path: &str, layers: &BTreeMap<String, LayerSwitch>) -> Switched {
        let (environment, problems) = (self.environment, &mut self.problems);
        below.over(&environment.layers, layers, |name| problems.push(unknown_layer(environment, path, name)))
    }

    fn picker(&mut self, path: &str, name: &str) -> Arc<dyn Picker> {
        let environment = self.environment;
        match name {
            "p2c" => Arc::new(P2c),
            "random" => Arc::new(RandomPicker),
            "round_robin" => Arc::new(RoundRobin),
            name => match self.settings.pickers.0.get(name).or_else(|| environment.pickers.get(name)) {
                Some(picker) => picker.clone(),
                None => {
                    let mut allowed: Vec<String> = BUILT_IN_PICKERS.map(str::to_owned).to_vec();
                    let own: BTreeSet<&String> =
                        self.settings.pickers.0.keys().chain(environment.pickers.keys()).collect();
                    allowed.extend(own.into_iter().cloned());
                    let message = format!("no picker is called `{name}`");
                    self.problems.push(Problem { allowed, ..Problem::new(path, message) });
                    Arc::new(P2c)
                }
            },
        }
    }
}

fn unknown_layer(environment: &Environment, path: &str, name: &str) -> Problem {
    let message = format!("no layer of one's own is called `{name}`");
    let allowed = environment.layers.iter().map(ToString::to_string).collect();
    Problem { found: Some(name.to_owned()), allowed, ..Problem::new(format!("{path}.{name}"), message) }
}

fn key_of(side: Side, service: &str) -> Box<str> {
    format!("{side}/{service}/").into()
}

fn span(setting: &Option<Switch<PositiveSpan>>, below: Option<Duration>) -> Option<Duration> {
    match setting {
        None => below,
        Some(setting) => setting.on().map(|span| span.get()),
    }
}

impl Buckets {
    fn new(config: &RateLimitConfig, now: Instant) -> Self {
        match config.key {
            Key::Global => Buckets::One(Gcra::new(now)),
            _ => Buckets::Keyed(Box::new(Keyed::new(now, config.most_keys()))),
        }
    }

    fn retune(&self, now: Instant, config: &RateLimitConfig) {
        match self {
            Buckets::One(bucket) => bucket.retune(now, config.rate),
            Buckets::Keyed(keyed) => {
                keyed.set_most(config.most_keys());
                keyed.retune(now, config.rate);
            }
        }
    }
}
