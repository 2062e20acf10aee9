//! The layer and its service.

use tower_service::Service;

use super::Gauge;
use crate::layer::{MaybeBoxed, forward_ready};
use crate::{
    call::{BuiltIn, Invocation, Listener, Outcome, Reply},
    event::Event,
    types::{Error, Reason, Side},
};

/// Refuses calls over the bound of their policy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConcurrencyLayer {
    /// The side of its metrics.
    pub side: Side,
}

/// The service of [`ConcurrencyLayer`].
#[derive(Clone, Debug)]
pub(crate) struct Concurrency<S> {
    inner: S,
    side: Side,
}

impl<S> tower_layer::Layer<S> for ConcurrencyLayer {
    type Service = Concurrency<S>;
    fn layer(&self, inner: S) -> Concurrency<S> {
        Concurrency { inner, side: self.side }
    }
}

impl<S> Service<Invocation> for Concurrency<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = MaybeBoxed<S::Future>;

    forward_ready!();

    #[inline]
    fn call(&mut self, mut call: Invocation) -> Self::Future {
        if let Some(bound) = &call.policy.concurrency {
            let limit = bound.config.limit.get();
            if !bound.gauge.acquire(limit) {
                return MaybeBoxed::refused(refuse(call, self.side, limit));
            }
            call.listen_built_in(BuiltIn::Concurrency);
        }
        MaybeBoxed::inner(self.inner.call(call))
    }
}

#[cold]
fn refuse(call: Invocation, side: Side, limit: u32) -> Error {
    let service = call.policy.service.clone();
    let message = format!("{service}: {limit} calls are under way, the most at once");
    if let Some(bound) = &call.policy.concurrency {
        let (reason, rule) = (Reason::Overloaded, "concurrency".to_owned());
        bound.reporter.emit_throttled(call.started, || Event::Refusing { side, service, reason, rule });
    }
    call.refuse(Error::local(Reason::Overloaded, message).with_rule("concurrency"))
}

// === impl Gauge ===

impl Listener for Gauge {
    fn judged(&self, _: u64, _: &Outcome<'_>) {}

    fn ended(&self, _: u64) {
        self.release();
    }
}
