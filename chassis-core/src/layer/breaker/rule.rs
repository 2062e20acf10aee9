//! Compiles `breaker`.
//!
//! State: the circuit, with its window. Its key is the service, or the operation if the circuit is the
//! operation's own. At the scope `endpoint` every node has a circuit.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde::Serialize;

use super::{
    BreakerConfig, BreakerPatch, Circuit, CircuitConfig, CircuitFigures, FailureSet, Refused, Scope, State,
    Token, Transition,
};
use crate::{
    clock::Instant,
    event::Event,
    reporter::Reporter,
    rule::{Binding, Concern, Environment, Level, Look, Of, Visible},
    types::{
        Error, Reason, Side,
        units::{Span, Switch},
    },
};

/// The circuit of one policy, and its numbers.
#[derive(Clone)]
pub(crate) struct Guard {
    /// The numbers in force.
    pub config: Arc<CircuitConfig>,
    /// The circuit; shared by all policies of the same scope, across versions.
    pub cell: Arc<Cell>,
}

/// A circuit with its name; it reports its transitions.
pub(crate) struct Cell {
    /// The circuit.
    pub circuit: Circuit,
    /// The service or the operation.
    pub of: Arc<str>,
    service: Arc<str>,
    scope: Scope,
    /// Whether it is counted in the metric of circuits that are not closed.
    counted: AtomicBool,
    pub(super) opened: Opened,
    reporter: Arc<Reporter>,
}

/// The cause of the last opening: failures and calls at that moment, because the window continues. 0: a probe
/// failed; without calls: failures in a row.
#[derive(Default)]
pub(super) struct Opened(AtomicU64);

impl Opened {
    const PROBE: u64 = 0;

    #[cold]
    pub(super) fn set(&self, from: State, figures: CircuitFigures, config: &CircuitConfig) {
        let few = figures.calls < config.min_calls.get();
        let packed = match from {
            State::HalfOpen => Self::PROBE,
            // Too few calls for a ratio: it was a row of failures.
            _ if few => u64::from(config.consecutive) << 32,
            _ => u64::from(figures.failures) << 32 | u64::from(figures.calls),
        };
        self.0.store(packed, Relaxed);
    }

    fn in_words(&self) -> String {
        let packed = self.0.load(Relaxed);
        match (packed >> 32, packed & u64::from(u32::MAX)) {
            _ if packed == Self::PROBE => "a probe failed".to_owned(),
            (failures, 0) => format!("{failures} calls in a row failed"),
            (failures, calls) => format!("opened as {failures} of {calls} calls had failed"),
        }
    }
}

impl Cell {
    fn new(service: &Arc<str>, of: &Arc<str>, scope: Scope, environment: &Environment) -> Self {
        let circuit = Circuit::with_jitter(Instant::now(), &environment.common.random);
        let (of, service, reporter) = (of.clone(), service.clone(), environment.reporter());
        Cell {
            circuit,
            of,
            service,
            scope,
            counted: AtomicBool::new(false),
            opened: Opened::default(),
            reporter,
        }
    }

    pub(super) fn error(&self, refused: Refused, config: &CircuitConfig, now: Instant) -> Error {
        self.reporter.emit_throttled(now, || Event::Refusing {
            side: Side::Client,
            service: self.service.clone(),
            reason: Reason::CircuitOpen,
            rule: format!("breaker of {}", self.of),
        });
        let message = match (refused.state, refused.retry_after) {
            (State::HalfOpen, _) => {
                format!("{}: circuit half-open, all {} probes are out", self.of, config.probes)
            }
            (_, None) => format!("{}: circuit forced open", self.of),
            (_, Some(after)) => {
                let after = Span(std::time::Duration::from_millis(after.as_millis() as u64));
                format!("{}: circuit open for {after} more ({})", self.of, self.opened.in_words())
            }
        };
        let error = Error::local(Reason::CircuitOpen, message).with_rule("breaker");
        match refused.retry_after {
            Some(after) => error.with_retry_after(after),
            None => error,
        }
    }

    /// The head of the answer to the call of `token` is good; returns the token that replaces it.
    pub(crate) fn answered(&self, token: u64, config: &CircuitConfig) -> u64 {
        let (token, moved) = self.circuit.answered(Token::from_bits(token), Instant::now(), config);
        if let Some(moved) = moved {
            self.moved(moved);
        }
        token.to_bits()
    }

    pub(super) fn moved(&self, Transition { from, to }: Transition) {
        let open = i64::from(to != State::Closed) - i64::from(from != State::Closed);
        self.counted.store(to != State::Closed, Relaxed);
        self.reporter.metrics.circuit(&self.service, self.scope.name(), to.name(), open);
        let (service, of) = (self.service.clone(), self.of.to_string());
        self.reporter.events.emit(Event::CircuitMoved { service, of, from, to });
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if self.counted.load(Relaxed) {
            self.reporter.metrics.circuit_gone(&self.service, self.scope.name());
        }
    }
}

/// A circuit above the retries, in `inspect`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CircuitView {
    /// The service called.
    pub service: String,
    /// The scope of the circuit: the service, or an operation.
    pub of: String,
    /// Its state.
    pub state: State,
    /// Calls in the window.
    pub calls: u32,
    /// Failures among them.
    pub failures: u32,
    /// How long it stays open.
    pub retry_after: Option<Duration>,
}

/// Compiles `breaker`.
pub(crate) struct BreakerRule;

/// The resolved settings of `breaker`.
#[derive(Clone)]
pub(crate) struct Resolved {
    config: Option<Arc<BreakerConfig>>,
    /// The numbers of its circuits, one value for all operations that inherit them.
    circuit: Option<Arc<CircuitConfig>>,
    /// The operation has settings of its own, and so its own circuit.
    is_own: bool,
}

// === impl Resolved ===

impl Resolved {
    fn new(config: Option<BreakerConfig>, is_own: bool) -> Self {
        let circuit = config.as_ref().map(|config| Arc::new(config.circuit()));
        Resolved { config: config.map(Arc::new), circuit, is_own }
    }
}

// === impl BreakerRule ===

impl Concern for BreakerRule {
    type Written = Switch<BreakerPatch>;
    type Resolved = Resolved;
    /// The circuit, the numbers of the nodes' circuits, and the failures that reduce a node's share of picks.
    type Rule = (Option<Guard>, Option<Arc<CircuitConfig>>, FailureSet);

    fn none() -> Self::Rule {
        (None, None, FailureSet::server_faults())
    }

    fn default_of(side: Side) -> Option<Self::Written> {
        Some(match side {
            Side::Client => Switch::On(BreakerPatch::default()),
            Side::Server => Switch::Off,
        })
    }

    fn unwritten(level: &Level<'_>) -> Resolved {
        Resolved::new((level.side == Side::Client).then(BreakerConfig::default), false)
    }

    fn overlay(resolved: &mut Resolved, written: &Self::Written, level: &mut Level<'_>) {
        let below = resolved.config.as_deref().cloned();
        *resolved = Resolved::new(Switch::over(Some(written), below), level.is_operation());
    }

    fn rule(resolved: &Resolved, binding: &mut Binding<'_>) -> Self::Rule {
        let (Some(config), Some(circuit)) = (&resolved.config, &resolved.circuit) else {
            return Self::none();
        };
        let failures = config.failures;
        if config.scope == Scope::Endpoint {
            return (None, Some(circuit.clone()), failures);
        }
        let (of, name) = match resolved.is_own || config.scope == Scope::Operation {
            true => (Of::Operation, binding.operation),
            false => (Of::Service, binding.service),
        };
        let (service, environment) = (binding.service, binding.environment);
        let make = || Cell::new(service, name, config.scope, environment);
        let cell = binding.state(of, "breaker", make);
        (Some(Guard { config: circuit.clone(), cell }), None, failures)
    }
}

impl Visible for BreakerRule {
    type View = CircuitView;

    fn view((guard, ..): &Self::Rule, look: &mut Look<'_>) -> Vec<CircuitView> {
        let Some(guard) = guard.as_ref().filter(|guard| look.is_first(&guard.cell)) else {
            return Vec::new();
        };
        let figures = guard.cell.circuit.figures(look.now, &guard.config);
        vec![CircuitView {
            service: look.service.to_owned(),
            of: guard.cell.of.to_string(),
            state: figures.state,
            calls: figures.calls,
            failures: figures.failures,
            retry_after: figures.retry_after,
        }]
    }
}
