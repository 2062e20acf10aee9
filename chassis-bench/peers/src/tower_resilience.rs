//! tonic's channel under the applicable layers of tower-resilience: a circuit breaker, a bulkhead, a rate
//! limiter, a time limiter. It has no balancer, so each connection has its own stack.
use std::{net::SocketAddr, time::Duration};

use chassis_bench::{
    Result,
    compare::{Case, Setup, Side, Worker, grpc_workers, sides},
    echo::echo_client::EchoClient,
};
use tower::{BoxError, ServiceBuilder};
use tower_resilience::{
    bulkhead::BulkheadLayer, circuitbreaker::CircuitBreakerLayer, ratelimiter::RateLimiterLayer,
    timelimiter::TimeLimiterLayer,
};

use crate::BoxFuture;

/// Four layers around tonic's channel.
pub(crate) struct TowerResilience;

impl Side for TowerResilience {
    fn name(&self) -> &'static str {
        "tower_resilience"
    }

    fn does(&self, case: Case) -> bool {
        case.is_grpc()
    }

    fn serve(&self, _: Setup) -> BoxFuture<Result<SocketAddr>> {
        Box::pin(sides::tonic_serve())
    }

    fn connect(&self, setup: Setup, at: SocketAddr) -> BoxFuture<Result<Vec<Worker>>> {
        Box::pin(async move {
            let mut stubs = Vec::new();
            for channel in sides::channels(setup, at).await? {
                let rate = RateLimiterLayer::builder()
                    .limit_for_period(10_000_000)
                    .refresh_period(Duration::from_secs(1))
                    .build()?;
                let bulkhead = BulkheadLayer::builder().max_concurrent_calls(100_000).build()?;
                let circuit = CircuitBreakerLayer::builder()
                    .failure_rate_threshold(0.5)
                    .sliding_window_size(100)
                    .build()?;
                let time = TimeLimiterLayer::builder().timeout_duration(Duration::from_secs(5)).build();
                let stack = ServiceBuilder::new()
                    .map_err(BoxError::from)
                    .layer(rate)
                    .map_err(BoxError::from)
                    .layer(bulkhead)
                    .map_err(BoxError::from)
                    .layer(circuit)
                    .map_err(BoxError::from)
                    .layer(time)
                    .service(channel);
                stubs.push(EchoClient::new(stack));
            }
            Ok(grpc_workers(setup, &stubs))
        })
    }
}
