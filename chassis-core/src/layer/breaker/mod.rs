//! Stops calling what keeps failing, and finds out with a few probes when it works again.
//!
//! A circuit guards a service, or each operation of it, here; at the scope `endpoint` every node has
//! one, and a node with an open circuit is not picked (see `balance`). What is refused locally or
//! cancelled counts for nothing, and gives a probe's place back. So does what failed at a node that fails
//! while most others of the service don't: picks pass over that node, the service goes on without it.
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use tower_service::Service;

use super::{Decided, forward_ready, plain_layer};
pub use crate::{
    algorithm::circuit::{
        Admission, BreakerConfig, BreakerPatch, Circuit, CircuitFigures, Force, Refused, Scope, State, Token,
        Transition,
    },
    types::{Ended, FailureSet},
};
use crate::{
    call::{BuiltIn, Invocation, Listener, Outcome, Reply},
    clock::Instant,
    event::Event,
    random::Random,
    site::Site,
    types::{Error, Reason, Side, ended, units::Span},
};

plain_layer! {
    /// Refuses calls while the circuit of their policy is open.
    BreakerLayer => Breaker
}

/// The circuit one policy lives under, and its numbers.
#[derive(Clone)]
pub struct Guard {
    /// What is in force.
    pub config: Arc<BreakerConfig>,
    /// The circuit; shared by all policies of the same scope, across versions.
    pub cell: Arc<Cell>,
}

/// A circuit that says what it guards, and tells when it moves.
pub struct Cell {
    /// The circuit.
    pub circuit: Circuit,
    /// The service or the operation.
    pub of: Arc<str>,
    service: Arc<str>,
    scope: Scope,
    /// Counted among the circuits that are not closed.
    counted: AtomicBool,
    opened: Opened,
    site: Arc<Site>,
}

/// Why a circuit opened last: failures and calls at that moment, for the window goes on. 0: a probe failed; no
/// calls: failures in a row.
#[derive(Default)]
struct Opened(AtomicU64);

impl<S> Service<Invocation> for Breaker<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = Decided<S::Future>;

    forward_ready!();

    #[inline]
    fn call(&mut self, call: Invocation) -> Self::Future {
        match call.policy.breaker {
            None => Decided::inner(self.inner.call(call)),
            Some(_) => self.guarded(call),
        }
    }
}

impl<S> Breaker<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
{
    /// Passes the call on if its circuit lets it. Apart, so that a layer without one is a branch.
    #[inline(never)]
    fn guarded(&mut self, mut call: Invocation) -> Decided<S::Future> {
        let Some(Guard { config, cell }) = &call.policy.breaker else {
            return Decided::inner(self.inner.call(call));
        };
        let now = call.attempt_started(); // limits above may have let it wait
        match cell.circuit.admit(now, config) {
            Ok(Admission { token, moved }) => {
                if let Some(moved) = moved {
                    cell.moved(moved);
                }
                call.listen_built_in(BuiltIn::Breaker(token.to_bits()));
                Decided::inner(self.inner.call(call))
            }
            Err(refused) => {
                let error = cell.error(refused, config, now);
                Decided::refused(call.refuse(error))
            }
        }
    }
}

// === impl Opened ===

impl Opened {
    const PROBE: u64 = 0;

    #[cold]
    fn set(&self, from: State, figures: CircuitFigures, config: &BreakerConfig) {
        let few = figures.calls < config.min_calls.get();
        let packed = match from {
            State::HalfOpen => Self::PROBE,
            // Too few for a ratio: it was a row of failures.
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

// === impl Cell ===

impl Cell {
    pub(crate) fn new(
        service: &Arc<str>,
        of: &Arc<str>,
        scope: Scope,
        site: &Arc<Site>,
        random: &Random,
    ) -> Self {
        let circuit = Circuit::with_jitter(Instant::now(), random);
        let (of, service, site) = (of.clone(), service.clone(), site.clone());
        Cell { circuit, of, service, scope, counted: AtomicBool::new(false), opened: Opened::default(), site }
    }

    fn error(&self, refused: Refused, config: &BreakerConfig, now: Instant) -> Error {
        self.site.pulse(now, || Event::Refusing {
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

    /// The answer to the call of `token` begins well: the token that takes its place.
    pub(crate) fn answered(&self, token: u64, config: &BreakerConfig) -> u64 {
        let (token, moved) = self.circuit.answered(Token::from_bits(token), Instant::now(), config);
        if let Some(moved) = moved {
            self.moved(moved);
        }
        token.to_bits()
    }

    fn moved(&self, Transition { from, to }: Transition) {
        let open = i64::from(to != State::Closed) - i64::from(from != State::Closed);
        self.counted.store(to != State::Closed, Relaxed);
        self.site.metrics.circuit(&self.service, self.scope.name(), to.name(), open);
        let (service, of) = (self.service.clone(), self.of.to_string());
        self.site.events.emit(Event::CircuitMoved { service, of, from, to });
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if self.counted.load(Relaxed) {
            self.site.metrics.circuit_gone(&self.service, self.scope.name());
        }
    }
}

impl Listener for Cell {
    fn judged(&self, token: u64, outcome: &Outcome<'_>) {
        let token = Token::from_bits(token);
        // The policy of a call does not change once a circuit has let it in.
        let Some(Guard { config, .. }) = &outcome.policy.breaker else { return };
        let failed = config.failures.contains(ended(&outcome.verdict));
        if outcome.verdict.blames_nobody() || (failed && outcome.is_of_an_outlier()) {
            return self.circuit.release(token, config);
        }
        if let Some(moved) = self.circuit.record(token, failed, outcome.now, config) {
            if moved.to == State::Open {
                self.opened.set(moved.from, self.circuit.figures(outcome.now, config), config);
            }
            self.moved(moved);
        }
    }

    fn ended(&self, _: u64) {}
}
