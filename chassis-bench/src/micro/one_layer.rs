//! Each layer alone over a leaf that answers at once: on, and off where it can be off.
use std::sync::Arc;

use chassis::{
    Invocation, Live, Reply, Runtime, Side,
    layer::{
        attempt::AttemptLayer,
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
    units::Ratio,
};
use chassis_core::{Policies, Policy, Staged};
use tower_layer::Layer;
use tower_service::Service;

use super::leaf::{AtOnce, Connected, calls};
use crate::layers::{
    case::{Case, Local},
    settings::{ON, settings},
    whole::runtime,
};

/// A layer over the leaf, and the policy of its calls.
struct Alone<S> {
    service: S,
    policy: Option<Arc<Policy>>,
    bounded: bool,
    _runtime: Runtime,
}

/// The names of the layers in the rows; those of the second list cannot be off.
pub const SWITCHED: [&str; 10] = [
    "fallback",
    "deadline",
    "rate_limit",
    "concurrency",
    "fault",
    "breaker",
    "retry",
    "trace",
    "metrics",
    "attempt",
];
pub const ALWAYS: [&str; 3] = ["route", "panic", "context"];

/// In addition to the settings of all rows: a fallback, and a limit on attempts.
const MORE: &str = "outbound: { services: { echo: { fallback: { body: '' }, retry: { per_try: 4s } } } }";

/// The layer of this name, on or off.
pub async fn layer(name: &str, on: bool) -> Box<dyn Case> {
    let runtime = runtime("echo", |builder| builder);
    let mut all = settings(ON);
    let more = settings(MORE).outbound.services.remove("echo").expect("it is there");
    let echo = all.outbound.services.get_mut("echo").expect("it is there");
    echo.fallback = more.fallback;
    if name == "attempt" {
        echo.retry = more.retry;
    }
    runtime.apply(&all, 1, "bench").expect("our settings can be applied");
    let policies: &Live<Policies> = runtime.policies();
    let policy = policies.with(|all| all.outbound(&"echo".into(), "bench.v1.Echo/Call"));
    runtime.sample().set(Ratio::percent(if on && name == "trace" { 100 } else { 0 }));
    let (metrics, events) = (runtime.metrics().clone(), runtime.events().clone());
    let bounded = on && name == "deadline";
    let policy = on.then_some(policy);
    macro_rules! alone {
        ($layer:expr) => {
            alone!($layer, AtOnce::new())
        };
        ($layer:expr, $inner:expr) => {
            Box::new(Alone { service: $layer.layer($inner), policy, bounded, _runtime: runtime.clone() })
        };
    }
    match name {
        "fallback" => alone!(FallbackLayer),
        "deadline" => alone!(DeadlineLayer),
        "rate_limit" => alone!(RateLimitLayer),
        "concurrency" => alone!(ConcurrencyLayer { side: Side::Client }),
        "fault" => alone!(FaultLayer::new(At::Call)),
        "breaker" => alone!(BreakerLayer),
        "retry" => alone!(RetryLayer, Connected(AtOnce::new())),
        "trace" => alone!(TraceLayer::new(Side::Server)),
        "metrics" => alone!(MetricsLayer),
        "attempt" => alone!(AttemptLayer, Connected(AtOnce::new())),
        "route" => alone!(RouteLayer::new(Side::Client, policies.clone())),
        "panic" => alone!(PanicLayer::new(events, metrics)),
        "context" => alone!(ContextLayer),
        other => panic!("there is no layer `{other}`"),
    }
}

/// A stage without any user layer.
pub async fn empty_stage() -> Box<dyn Case> {
    let runtime = runtime("echo", |builder| builder);
    Box::new(Alone { service: Staged::Plain(AtOnce::new()), policy: None, bounded: false, _runtime: runtime })
}

impl<S> Case for Alone<S>
where
    S: Service<Invocation, Response = Reply, Error: std::fmt::Debug> + Clone + Send + 'static,
    S::Future: Send,
{
    fn run(&self, times: usize, callers: usize) -> Local<'_> {
        calls(times, callers, || {
            let (mut service, policy, bounded) = (self.service.clone(), self.policy.clone(), self.bounded);
            move |mut call: Invocation| {
                if let Some(policy) = &policy {
                    call.set_policy(policy.clone());
                }
                if bounded {
                    call.head_by = Some(call.started + std::time::Duration::from_secs(5));
                }
                service.call(call)
            }
        })
    }
}
