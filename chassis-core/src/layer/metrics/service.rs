//! The layer and its service.
use tower_service::Service;

use super::CallMetrics;
use crate::layer::{forward_ready, plain_layer};
use crate::{
    call::{BuiltIn, Invocation, Listener, Outcome, Reply},
    types::Error,
};

plain_layer! {
    /// Records every call, with any outcome.
    MetricsLayer => Metrics
}

impl<S> Service<Invocation> for Metrics<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = S::Future;

    forward_ready!();

    fn call(&mut self, mut call: Invocation) -> S::Future {
        if let Some(metrics) = &call.policy.metrics {
            metrics.started();
            call.listen_built_in(BuiltIn::Metrics);
        }
        self.inner.call(call)
    }
}

// === impl CallMetrics ===

impl Listener for CallMetrics {
    fn judged(&self, _: u64, outcome: &Outcome<'_>) {
        let took = outcome.now.nanos_since(outcome.started);
        self.record(outcome.protocol, outcome.verdict, took);
    }

    fn ended(&self, _: u64) {
        CallMetrics::ended(self);
    }
}
