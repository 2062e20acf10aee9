//! The layer and its service.

use tower_service::Service;

use super::{Admission, Cell, Guard, State, Token};
use crate::layer::{MaybeBoxed, forward_ready, plain_layer};
use crate::{
    call::{BuiltIn, Invocation, Listener, Outcome, Reply},
    types::{Error, ended},
};

plain_layer! {
    /// Refuses calls while the circuit of their policy is open.
    BreakerLayer => Breaker
}

impl<S> Service<Invocation> for Breaker<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = MaybeBoxed<S::Future>;

    forward_ready!();

    #[inline]
    fn call(&mut self, call: Invocation) -> Self::Future {
        match call.policy.breaker {
            None => MaybeBoxed::inner(self.inner.call(call)),
            Some(_) => self.guarded(call),
        }
    }
}

impl<S> Breaker<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
{
    /// Passes the call on if its circuit admits it. Not inlined: keeps the disabled path to one branch.
    #[inline(never)]
    fn guarded(&mut self, mut call: Invocation) -> MaybeBoxed<S::Future> {
        let Some(Guard { config, cell }) = &call.policy.breaker else {
            return MaybeBoxed::inner(self.inner.call(call));
        };
        let now = call.attempt_started(); // limits above may have let it wait
        match cell.circuit.admit(now, config) {
            Ok(Admission { token, moved }) => {
                if let Some(moved) = moved {
                    cell.moved(moved);
                }
                call.listen_built_in(BuiltIn::Breaker(token.to_bits()));
                MaybeBoxed::inner(self.inner.call(call))
            }
            Err(refused) => {
                let error = cell.error(refused, config, now);
                MaybeBoxed::refused(call.refuse(error))
            }
        }
    }
}

// === impl Cell ===

impl Listener for Cell {
    fn judged(&self, token: u64, outcome: &Outcome<'_>) {
        let token = Token::from_bits(token);
        // The policy of a call does not change after its circuit has admitted it.
        let Some(Guard { config, .. }) = &outcome.policy.breaker else { return };
        let failed = outcome.policy.failures.contains(ended(&outcome.verdict));
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
