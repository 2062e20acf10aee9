//! Compiles settings to policies: which settings overlay which, and the resulting tables. Every concern
//! compiles itself (`layer/*/rule.rs`).
use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock, atomic::Ordering::Relaxed},
};

use http::Extensions;

use super::{
    ByName, Entry, Policies, Policy, Table,
    resolved::{Resolved, unreplaced},
    settings::{InboundSettings, OutboundSettings, ServiceSettings, Settings},
};
use crate::{
    Live,
    clock::Instant,
    layer::fault::{self, Fault, Faults},
    rule::{Binding, Environment, Findings, Level, Place, Problem, Shared},
    section::Sections,
    types::{
        Side,
        matching::{MatchRef, misspelt_operation},
    },
};

/// Everything about a service except the operation.
pub(super) struct Base {
    side: Side,
    service: Arc<str>,
    version: u64,
    resolved: Resolved,
    faults: Faults,
    sections: Sections,
    environment: Arc<Environment>,
}

/// Collects all problems, so that one run shows all of them.
struct Compiler<'a> {
    settings: &'a Settings,
    environment: &'a Arc<Environment>,
    /// Values of the settings for single concerns.
    extensions: Extensions,
    version: u64,
    findings: Findings,
}

const DEFAULTS: &str = "outbound.defaults";

/// The settings from which services without settings of their own are compiled.
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
    /// Compiles `settings`, all or nothing. State, and the operations called so far, come from `previous` and
    /// the environment.
    pub(crate) fn compile(
        settings: &Settings,
        version: u64,
        environment: &Arc<Environment>,
        previous: Option<&Policies>,
    ) -> Result<Self, Vec<Problem>> {
        let mut compiler = Compiler::new(settings, environment, version);
        compiler.check_matches();
        let faults = compiler.faults();
        let inbound = compiler.inbound(&settings.inbound, &faults);
        // The defaults are compiled once for a fictitious service, so that they are checked too.
        compiler.outbound_parts("_OTHER".into(), DEFAULTS, &ServiceSettings::default(), &faults);
        let mut named = ByName::default();
        for (name, service) in &settings.outbound.services {
            let path = format!("outbound.services.{name}");
            let name: Arc<str> = name.as_str().into();
            let table = compiler.outbound(name.clone(), &path, service, &faults);
            named.insert(name, Arc::new(table));
        }
        if !compiler.findings.problems.is_empty() {
            return Err(compiler.findings.problems);
        }
        compiler.findings.accept(Instant::now());
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

    /// The table of a service that the settings do not name. The defaults have been checked.
    pub(super) fn compile_unnamed(&self, service: Arc<str>) -> Table {
        let mut compiler = Compiler::new(&self.settings, &self.environment, self.version);
        compiler.outbound(service, DEFAULTS, &ServiceSettings::default(), &self.faults)
    }
}

// === impl Base ===

impl Base {
    /// The policy of an operation without settings of its own.
    pub(super) fn policy(&self, operation: Arc<str>) -> Policy {
        self.policy_with(operation, &self.resolved)
    }

    fn policy_with(&self, operation: Arc<str>, resolved: &Resolved) -> Policy {
        let binding = Binding::new(self.side, &self.service, &operation, &self.environment);
        resolved.policy(self.version, self.faults.clone(), self.sections.clone(), binding)
    }

    fn table(self, operations: Vec<(Arc<str>, Resolved)>) -> Table {
        let named = operations.into_iter().map(|(name, resolved)| {
            let policy = self.policy_with(name.clone(), &resolved);
            (name, Entry::new(policy))
        });
        let named = named.collect();
        Table::new(self, named)
    }
}

// === impl Compiler ===

impl<'a> Compiler<'a> {
    fn new(settings: &'a Settings, environment: &'a Arc<Environment>, version: u64) -> Self {
        let mut extensions = Extensions::new();
        if !settings.pickers.0.is_empty() {
            extensions.insert(settings.pickers.clone());
        }
        Compiler { settings, environment, extensions, version, findings: Findings::default() }
    }

    fn problem(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.findings.problems.push(Problem::new(path, message));
    }

    /// The level at `place`, for calls of `service`.
    fn level<'b>(&'b mut self, side: Side, service: &'b Arc<str>, place: Place<'b>) -> Level<'b> {
        let Compiler { settings, environment, extensions, findings, .. } = self;
        let shared = Shared { matches: &settings.matches, extensions };
        Level::new(side, service, place, environment, shared, findings)
    }

    fn base(&self, side: Side, service: Arc<str>, resolved: Resolved, faults: Faults) -> Base {
        let (sections, environment) = (self.settings.sections.clone(), self.environment.clone());
        Base { side, service, version: self.version, resolved, faults, sections, environment }
    }

    /// The settings for calls of `service` before those of their side are overlaid.
    fn resolved(&mut self, side: Side, service: &Arc<str>) -> Resolved {
        let settings = self.settings;
        let mut level = self.level(side, service, Place::new(""));
        let mut resolved = Resolved::unwritten(&level);
        resolved.document(settings, &mut level);
        resolved
    }

    /// Unused matches must be valid too.
    fn check_matches(&mut self) {
        let (matches, service) = (&self.settings.matches, self.environment.service.clone());
        let mut level = self.level(Side::Server, &service, Place::new(""));
        for (name, matching) in matches {
            let reference = MatchRef::from(matching.clone());
            level.at("matches").matcher(&format!(".{name}"), Some(&reference));
        }
    }

    fn faults(&mut self) -> Arc<[Arc<Fault>]> {
        let (configs, service) = (&self.settings.faults, self.environment.service.clone());
        let mut level = self.level(Side::Server, &service, Place::new(""));
        fault::rules(configs, level.at("faults"))
    }

    fn inbound(&mut self, settings: &InboundSettings, faults: &[Arc<Fault>]) -> Table {
        const SIDE: Side = Side::Server;
        let (service, place) = (self.environment.service.clone(), Place::new("inbound"));
        let mut resolved = self.resolved(SIDE, &service);
        resolved.inbound(settings, &mut self.level(SIDE, &service, place));
        for (name, listener) in &settings.listeners {
            let path = format!("inbound.listeners.{name}");
            resolved.listener(name, listener, &mut self.level(SIDE, &service, Place::new(&path)));
        }
        let mut operations = Vec::new();
        for (name, operation) in &settings.operations {
            if let Some(message) = misspelt_operation(name) {
                self.problem(format!("inbound.operations.{name}"), message);
            }
            let mut resolved = resolved.clone();
            resolved.inbound_operation(operation, &mut self.level(SIDE, &service, place.of(name)));
            operations.push((name.as_str().into(), resolved));
        }
        self.base(SIDE, service, resolved, Faults::of(faults, None)).table(operations)
    }

    fn outbound(
        &mut self,
        service: Arc<str>,
        path: &str,
        settings: &ServiceSettings,
        faults: &[Arc<Fault>],
    ) -> Table {
        let (base, operations) = self.outbound_parts(service, path, settings, faults);
        base.table(operations)
    }

    /// The resolved settings of a service and its operations, before any state is looked up for them.
    fn outbound_parts(
        &mut self,
        service: Arc<str>,
        path: &str,
        settings: &ServiceSettings,
        faults: &[Arc<Fault>],
    ) -> (Base, Vec<(Arc<str>, Resolved)>) {
        const SIDE: Side = Side::Client;
        let all = &self.settings.outbound.defaults;
        let (defaults, own) = (Place::new(DEFAULTS), Place::new(path));
        let mut resolved = self.resolved(SIDE, &service);
        let mut level = self.level(SIDE, &service, defaults);
        resolved.service(all, &mut level);
        resolved.whole_service(&unreplaced(all, settings), &mut level);
        let mut level = self.level(SIDE, &service, own);
        resolved.service(settings, &mut level);
        resolved.whole_service(settings, &mut level);
        let mut operations = Vec::new();
        for name in all.operations.keys().chain(settings.operations.keys()).collect::<BTreeSet<_>>() {
            if let Some(message) = misspelt_operation(name) {
                let at = if settings.operations.contains_key(name) { path } else { DEFAULTS };
                self.problem(format!("{at}.operations.{name}"), message);
            }
            let mut resolved = resolved.clone();
            for (place, operations) in [(defaults, &all.operations), (own, &settings.operations)] {
                if let Some(operation) = operations.get(name) {
                    resolved.operation(operation, &mut self.level(SIDE, &service, place.of(name)));
                }
            }
            operations.push((name.as_str().into(), resolved));
        }
        let faults = Faults::of(faults, Some(&service));
        (self.base(SIDE, service, resolved, faults), operations)
    }
}
