//! The layer and its service.
use std::time::Duration;

use tower_service::Service;

use super::At;
use crate::layer::{MaybeBoxed, forward_ready};
use crate::{
    call::{CallError, Invocation, Reply},
    clock::Instant,
    types::Error,
};

/// Injects the faults of a policy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FaultLayer {
    at: At,
}

/// The service of [`FaultLayer`].
#[derive(Clone, Debug)]
pub(crate) struct InjectFault<S> {
    inner: S,
    with: FaultLayer,
}

impl FaultLayer {
    /// Injects the faults whose place is `at`.
    pub(crate) fn new(at: At) -> Self {
        FaultLayer { at }
    }

    /// Whether any fault may hit `call`.
    fn is_about(&self, call: &Invocation) -> bool {
        let subject = call.subject();
        call.policy.faults.at(self.at).iter().any(|fault| fault.matcher.matches(&subject))
    }

    /// The delay and the abort that hit `call`, if any.
    fn draw(&self, call: &Invocation) -> (Duration, Option<Error>) {
        let mut delay = Duration::ZERO;
        let mut abort = None;
        let (random, subject) = (&call.policy.common.random, call.subject());
        for fault in call.policy.faults.at(self.at) {
            if fault.is_over(call.attempt_started()) || !fault.matcher.matches(&subject) {
                continue;
            }
            let config = &fault.config;
            if let Some(by) = &config.delay
                && random.chance(by.share().unwrap_or(config.share))
            {
                delay += by.draw(random);
                fault.injected(0, call.attempt_started());
            }
            if let Some(with) = config.abort.as_ref().filter(|_| abort.is_none())
                && random.chance(with.share.unwrap_or(config.share))
            {
                abort = Some(fault.error(with));
                fault.injected(1, call.attempt_started());
            }
        }
        (delay, abort)
    }
}

impl<S> tower_layer::Layer<S> for FaultLayer {
    type Service = InjectFault<S>;
    fn layer(&self, inner: S) -> InjectFault<S> {
        InjectFault { inner, with: *self }
    }
}

impl<S> Service<Invocation> for InjectFault<S>
where
    S: Service<Invocation, Response = Reply, Error: CallError> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Reply;
    type Error = S::Error;
    type Future = MaybeBoxed<S::Future, S::Error>;

    forward_ready!();

    #[inline]
    fn call(&mut self, call: Invocation) -> Self::Future {
        match call.policy.faults.at(self.with.at).is_empty() {
            true => MaybeBoxed::inner(self.inner.call(call)),
            false => self.drawn(call),
        }
    }
}

impl<S> InjectFault<S>
where
    S: Service<Invocation, Response = Reply, Error: CallError> + Clone + Send + 'static,
    S::Future: Send,
{
    /// Draws whether a fault hits. Not inlined: keeps the disabled path to one branch.
    #[inline(never)]
    fn drawn(&mut self, mut call: Invocation) -> MaybeBoxed<S::Future, S::Error> {
        if !self.with.is_about(&call) {
            return MaybeBoxed::inner(self.inner.call(call));
        }
        match self.with.draw(&call) {
            (Duration::ZERO, None) => MaybeBoxed::inner(self.inner.call(call)),
            (Duration::ZERO, Some(error)) => MaybeBoxed::refused(call.refuse(error)),
            (delay, abort) => {
                let mut inner = self.inner.clone();
                MaybeBoxed::boxed(async move {
                    tokio::time::sleep(delay).await;
                    match abort {
                        Some(error) => Err(call.refuse(error)),
                        None => {
                            call.attempt_waited(Instant::now());
                            inner.call(call).await
                        }
                    }
                })
            }
        }
    }
}

// === impl Fault ===
