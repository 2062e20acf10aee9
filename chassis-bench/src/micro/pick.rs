//! Picking an endpoint and learning from the result, with chassis and with tower.
use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use chassis::{Failed, Invocation, Reply, Runtime, clock::Instant};
use chassis_core::{Policy, testing::layers};
use tower::{
    BoxError, ServiceExt,
    balance::p2c::Balance as TowerBalance,
    discover::ServiceList,
    load::{CompleteOnResponse, PeakEwma},
};
use tower_service::Service;

use super::{
    leaf::{AtOnce, Connected, calls},
    pipelines::registry,
};
use crate::layers::{
    case::{Case, Local},
    settings::{ON, settings},
    whole::runtime,
};

/// The chassis balancer over leaves that answer at once.
struct Ours<S> {
    service: S,
    policy: Arc<Policy>,
    _runtime: Runtime,
}

/// tower's, by latency, in its intended use.
struct Towers(usize);

#[derive(Clone)]
struct Number;

/// Picks among `endpoints` endpoints, by `p2c`.
pub async fn ours(endpoints: usize) -> Box<dyn Case> {
    let registry = registry(endpoints);
    let runtime = runtime("caller", |builder| builder.registry(Arc::new(registry)));
    runtime.apply(&settings(ON), 1, "bench").expect("our settings can be applied");
    let cluster = runtime.cluster("echo", &Arc::new(AtOnce::new()));
    while cluster.members().all().is_empty() {
        tokio::task::yield_now().await;
    }
    for node in cluster.members().nodes() {
        node.wake();
        node.load().judged(true, Duration::ZERO, Instant::now()); // creates the first call's state
    }
    let policy = runtime.policies().with(|all| all.outbound(&"echo".into(), "bench.v1.Echo/Call"));
    let service = layers::balance(cluster, Connected(AtOnce::new()));
    Box::new(Ours { service, policy, _runtime: runtime })
}

impl<S> Case for Ours<S>
where
    S: Service<Invocation, Response = Reply, Error = Failed, Future: Send> + Clone + Send + 'static,
{
    fn run(&self, times: usize, callers: usize) -> Local<'_> {
        calls(times, callers, || {
            let (mut service, policy) = (self.service.clone(), self.policy.clone());
            move |call: Invocation| service.call(layers::with_policy(call, policy.clone()))
        })
    }
}

/// Picks among `endpoints` endpoints.
pub async fn towers(endpoints: usize) -> Box<dyn Case> {
    Box::new(Towers(endpoints))
}

impl Case for Towers {
    fn run(&self, times: usize, _: usize) -> Local<'_> {
        Box::pin(async move {
            let decay = (Duration::from_millis(100), 10e9);
            let endpoint = |_| PeakEwma::new(Number, decay.0, decay.1, CompleteOnResponse::default());
            let endpoints: Vec<_> = (0..self.0).map(endpoint).collect();
            let mut balance = TowerBalance::new(ServiceList::new(endpoints));
            for number in 0..times as u64 {
                let ready = balance.ready().await.expect("all are ready");
                assert_eq!(ready.call(number).await.expect("it is answered at once"), number);
            }
        })
    }
}

impl Service<u64> for Number {
    type Response = u64;
    type Error = BoxError;
    type Future = Ready<Result<u64, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, number: u64) -> Self::Future {
        ready(Ok(number))
    }
}
