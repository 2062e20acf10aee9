//! Single layers of the pipeline around a service, to test or measure one of them alone.
//!
//! A call that reaches such a layer has the policy that [`with_policy`] gave it.
use std::sync::Arc;

use tower_layer::Layer;
use tower_service::Service;

use crate::{
    call::{CallError, Failed, Invocation, Reply},
    cluster::Cluster,
    layer::{
        attempt::AttemptLayer,
        balance::BalanceLayer,
        breaker::BreakerLayer,
        concurrency::ConcurrencyLayer,
        context::ContextLayer,
        deadline::DeadlineLayer,
        fallback::FallbackLayer,
        fault::{At, FaultLayer},
        metrics::MetricsLayer,
        panic::PanicLayer,
        rate_limit::RateLimitLayer,
        retry::RetryLayer,
        route::RouteLayer,
        trace::TraceLayer,
    },
    policy::Policy,
    runtime::Runtime,
    stage::Staged,
    types::{Error, Side},
};

/// `call` with this policy, as the route layer passes it on.
pub fn with_policy(mut call: Invocation, policy: Arc<Policy>) -> Invocation {
    call.set_policy(policy);
    call
}

/// Declares a function for each layer: it puts the layer around a service whose error is `$inner`, and the error of
/// the result is `$outer`.
macro_rules! layers {
    ($( $(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*): $inner:ty => $outer:ty = $layer:expr; )*) => {
        $(
            $(#[$doc])*
            pub fn $name<S>(
                $($argument: $type,)*
                inner: S,
            ) -> impl Service<Invocation, Response = Reply, Error = $outer, Future: Send> + Clone + Send + Sync + use<S>
            where
                S: Service<Invocation, Response = Reply, Error = $inner, Future: Send + 'static>
                    + Clone + Send + Sync + 'static,
            {
                Layer::layer(&$layer, inner)
            }
        )*
    };
}

layers! {
    /// The layer `attempt` around `inner`.
    attempt(): Failed => Failed = AttemptLayer;
    /// The layer `balance` around `inner`, which picks from `cluster`.
    balance(cluster: Arc<Cluster>): Failed => Failed = BalanceLayer::new(cluster);
    /// The layer `breaker` around `inner`.
    breaker(): Error => Error = BreakerLayer;
    /// The layer `concurrency` of clients around `inner`.
    concurrency(): Error => Error = ConcurrencyLayer { side: Side::Client };
    /// The layer `context` around `inner`.
    context(): Error => Error = ContextLayer;
    /// The layer `deadline` around `inner`.
    deadline(): Error => Error = DeadlineLayer;
    /// The layer `fallback` around `inner`.
    fallback(): Error => Error = FallbackLayer;
    /// The layer `fault` for whole calls around `inner`.
    fault(): Error => Error = FaultLayer::new(At::Call);
    /// The layer `metrics` around `inner`.
    metrics(): Error => Error = MetricsLayer;
    /// The layer `panic` around `inner`, which reports to `runtime`.
    panic(runtime: &Runtime): Error => Error = PanicLayer::new(runtime.events().clone(), runtime.metrics().clone());
    /// The layer `rate_limit` around `inner`.
    rate_limit(): Error => Error = RateLimitLayer;
    /// The layer `retry` around `inner`.
    retry(): Failed => Error = RetryLayer;
    /// The layer `route` of clients around `inner`, with the policies of `runtime`.
    route(runtime: &Runtime): Error => Error = RouteLayer::new(Side::Client, runtime.policies().clone());
    /// The layer `trace` of servers around `inner`.
    trace(): Error => Error = TraceLayer::new(Side::Server);
}

/// A stage around `inner` to which no layer was added.
pub fn empty_stage<S, E>(
    inner: S,
) -> impl Service<Invocation, Response = Reply, Error = E, Future: Send> + Clone + Send + Sync + 'static
where
    S: Service<Invocation, Response = Reply, Error = E, Future: Send> + Clone + Send + Sync + 'static,
    E: CallError,
{
    Staged::Plain(inner)
}
