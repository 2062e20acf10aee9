//! tonic alone, and under a stack built from tower's parts.
use std::{
    net::SocketAddr,
    task::{Context, Poll},
    time::Duration,
};

use chassis::Random;
use tokio::net::TcpListener;
use tonic::{
    body::Body,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tower::{
    BoxError, ServiceBuilder,
    balance::p2c::Balance,
    discover::ServiceList,
    load::{CompleteOnResponse, PeakEwma},
};
use tower_service::Service;

use super::super::{Case, STREAMS, Setup, Side, Worker, grpc_workers};
use crate::{
    Result,
    echo::{echo_client::EchoClient, echo_server::EchoServer},
    layers::echo::Echo,
};

type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

/// tonic's channel to tonic's server.
pub struct Bare;

/// The same, but each call uses any of the connections, as with a balancer. Callers that always use one
/// connection run in step, so that more bytes are read and written at once.
pub struct Drawn;

/// Picks one of these channels for each call.
#[derive(Clone)]
struct OneOf {
    channels: Vec<Channel>,
    random: Random,
    drawn: Option<usize>,
}

/// LoadShed, ConcurrencyLimit, Timeout, Buffer and Balance over PeakEwma, around tonic's channels.
pub struct Glued;

/// tonic's server, on a port of its own.
pub async fn tonic_serve() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder().max_concurrent_streams(STREAMS).add_service(EchoServer::new(Echo));
    tokio::spawn(server.serve_with_incoming(incoming));
    Ok(address)
}

/// One channel per connection.
pub async fn channels(setup: Setup, at: SocketAddr) -> Result<Vec<Channel>> {
    let mut channels = Vec::new();
    for _ in 0..setup.connections {
        channels.push(Endpoint::from_shared(format!("http://{at}"))?.connect().await?);
    }
    Ok(channels)
}

impl Side for Bare {
    fn name(&self) -> &'static str {
        "bare_tonic"
    }

    fn does(&self, case: Case) -> bool {
        case.is_grpc()
    }

    fn serve(&self, _: Setup) -> BoxFuture<Result<SocketAddr>> {
        Box::pin(tonic_serve())
    }

    fn connect(&self, setup: Setup, at: SocketAddr) -> BoxFuture<Result<Vec<Worker>>> {
        Box::pin(async move {
            let stubs: Vec<_> = channels(setup, at).await?.into_iter().map(EchoClient::new).collect();
            Ok(grpc_workers(setup, &stubs))
        })
    }
}

impl Side for Drawn {
    fn name(&self) -> &'static str {
        "drawn_tonic"
    }

    fn does(&self, case: Case) -> bool {
        case.is_grpc()
    }

    fn fits(&self, setup: Setup) -> bool {
        self.does(setup.case) && setup.connections > 1
    }

    fn serve(&self, _: Setup) -> BoxFuture<Result<SocketAddr>> {
        Box::pin(tonic_serve())
    }

    fn connect(&self, setup: Setup, at: SocketAddr) -> BoxFuture<Result<Vec<Worker>>> {
        Box::pin(async move {
            let channels = channels(setup, at).await?;
            let stub = EchoClient::new(OneOf { channels, random: Random::from_os(), drawn: None });
            Ok(grpc_workers(setup, &[stub]))
        })
    }
}

impl Service<http::Request<Body>> for OneOf {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let count = self.channels.len();
        let drawn = *self.drawn.get_or_insert_with(|| self.random.below(count));
        self.channels[drawn].poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let drawn = self.drawn.take().expect("it was made ready");
        self.channels[drawn].call(request)
    }
}

impl Side for Glued {
    fn name(&self) -> &'static str {
        "glued_tower"
    }

    fn does(&self, case: Case) -> bool {
        case.is_grpc()
    }

    fn serve(&self, _: Setup) -> BoxFuture<Result<SocketAddr>> {
        Box::pin(tonic_serve())
    }

    fn connect(&self, setup: Setup, at: SocketAddr) -> BoxFuture<Result<Vec<Worker>>> {
        Box::pin(async move {
            let measured = channels(setup, at).await?.into_iter().map(|channel| {
                PeakEwma::new(channel, Duration::from_millis(100), 10e9, CompleteOnResponse::default())
            });
            let stack = ServiceBuilder::new()
                .load_shed()
                .concurrency_limit(1024)
                .timeout(Duration::from_secs(5))
                .buffer(1024)
                .service(Balance::new(ServiceList::new(measured.collect::<Vec<_>>())));
            let stack = ServiceBuilder::new().map_err(BoxError::from).service(stack);
            Ok(grpc_workers(setup, &[EchoClient::new(stack)]))
        })
    }
}
