//! Each layer alone over a leaf that answers at once: on, and off where it can be off.
use std::sync::Arc;

use chassis::{Invocation, Live, Reply, Runtime, units::Ratio};
use chassis_core::{Policies, Policy, testing::layers};
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
    runtime.set_sample(Ratio::percent(if on && name == "trace" { 100 } else { 0 }));
    let bounded = on && name == "deadline";
    let policy = on.then_some(policy);
    macro_rules! alone {
        ($service:expr) => {
            Box::new(Alone { service: $service, policy, bounded, _runtime: runtime.clone() })
        };
    }
    let leaf = AtOnce::new();
    match name {
        "fallback" => alone!(layers::fallback(leaf)),
        "deadline" => alone!(layers::deadline(leaf)),
        "rate_limit" => alone!(layers::rate_limit(leaf)),
        "concurrency" => alone!(layers::concurrency(leaf)),
        "fault" => alone!(layers::fault(leaf)),
        "breaker" => alone!(layers::breaker(leaf)),
        "retry" => alone!(layers::retry(Connected(leaf))),
        "trace" => alone!(layers::trace(leaf)),
        "metrics" => alone!(layers::metrics(leaf)),
        "attempt" => alone!(layers::attempt(Connected(leaf))),
        "route" => alone!(layers::route(&runtime, leaf)),
        "panic" => alone!(layers::panic(&runtime, leaf)),
        "context" => alone!(layers::context(leaf)),
        other => panic!("there is no layer `{other}`"),
    }
}

/// A stage without any user layer.
pub async fn empty_stage() -> Box<dyn Case> {
    let runtime = runtime("echo", |builder| builder);
    Box::new(Alone {
        service: layers::empty_stage(AtOnce::new()),
        policy: None,
        bounded: false,
        _runtime: runtime,
    })
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
                    call = layers::with_policy(call, policy.clone());
                }
                if bounded {
                    call.end_within(std::time::Duration::from_secs(5));
                }
                service.call(call)
            }
        })
    }
}
