//! The peers, in one process: tonic alone, tonic under a stack of tower's parts, hyper alone under axum.
use std::{convert::Infallible, time::Duration};

use axum::{Router, extract::Path, routing::get};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::io::{DuplexStream, duplex};
use tonic::transport::{Channel, Endpoint, Server};
use tower::{
    BoxError, ServiceBuilder,
    balance::p2c::Balance,
    discover::ServiceList,
    load::{CompleteOnResponse, PeakEwma},
};

use super::{
    case::{Case, Local, by_callers},
    echo::{self, Echo, Wire},
};
use crate::echo::{echo_client::EchoClient, echo_server::EchoServer};

/// The capacity of a stream between client and server, similar to socket buffers.
pub const BUFFER: usize = 64 * 1024;

/// A stub over one channel of tonic's.
struct Tonic {
    stub: EchoClient<Channel>,
    wire: Wire,
}

/// A stub over a stack built from tower's parts, around three channels.
struct Glued<T>(EchoClient<T>);

/// A hyper connection for each caller, to an axum router.
struct Hyper;

/// A channel to a server of its own.
pub async fn channel() -> Channel {
    let (client, server) = duplex(BUFFER);
    let incoming = tokio_stream::once(Ok::<_, Infallible>(server));
    let router = Server::builder().add_service(EchoServer::new(Echo));
    tokio::spawn(
        router.serve_with_incoming(tokio_stream::StreamExt::chain(incoming, tokio_stream::pending())),
    );
    let mut client = Some(client);
    let connect = move |_| {
        let client = client.take().map(TokioIo::new);
        async move { client.ok_or_else(|| std::io::Error::other("connected already")) }
    };
    Endpoint::from_static("http://echo")
        .connect_with_connector(tower::service_fn(connect))
        .await
        .expect("in memory")
}

/// tonic alone.
pub async fn tonic(wire: Wire) -> Box<dyn Case> {
    Box::new(Tonic { stub: EchoClient::new(channel().await), wire })
}

impl Case for Tonic {
    fn run(&self, times: usize, callers: usize) -> Local<'_> {
        Box::pin(echo::call(&self.stub, self.wire, times, callers))
    }
}

/// LoadShed, ConcurrencyLimit, Timeout, Buffer and Balance over PeakEwma.
pub async fn glued() -> Box<dyn Case> {
    let mut channels = Vec::new();
    for _ in 0..3 {
        let decay = (Duration::from_millis(100), 10e9);
        channels.push(PeakEwma::new(channel().await, decay.0, decay.1, CompleteOnResponse::default()));
    }
    let balance = Balance::new(ServiceList::new(channels));
    let stack = ServiceBuilder::new()
        .load_shed()
        .concurrency_limit(1024)
        .timeout(Duration::from_secs(5))
        .buffer(1024)
        .service(balance);
    let stack = ServiceBuilder::new().map_err(BoxError::from).service(stack);
    Box::new(Glued(EchoClient::new(stack)))
}

impl<T> Case for Glued<T>
where
    T: tower_service::Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<tonic::body::Body>,
            Error = BoxError,
        > + Clone
        + Send
        + 'static,
    T::Future: Send,
{
    fn run(&self, times: usize, callers: usize) -> Local<'_> {
        Box::pin(echo::call(&self.0, Wire::Plain, times, callers))
    }
}

/// hyper alone: HTTP/1.1, GET, a short text.
pub async fn hyper() -> Box<dyn Case> {
    Box::new(Hyper)
}

/// The routes of REST rows.
pub fn router() -> Router {
    // As in `axum::serve`; otherwise each call would build its route again.
    Router::new()
        .route("/call/{id}", get(|Path(id): Path<u64>| async move { format!("{id}: {TEXT}") }))
        .with_state(())
}

/// A body as long as in other published measurements: 56 bytes with the number.
const TEXT: &str = "the quick brown fox jumps over the lazy dog, twice";

async fn connection() -> http1::SendRequest<Empty<Bytes>> {
    let (client, server): (DuplexStream, DuplexStream) = duplex(BUFFER);
    let service = TowerToHyperService::new(router());
    tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service));
    let (sender, connection) = http1::handshake(TokioIo::new(client)).await.expect("in memory");
    tokio::spawn(connection);
    sender
}

impl Case for Hyper {
    fn run(&self, times: usize, callers: usize) -> Local<'_> {
        Box::pin(by_callers(times, callers, |times| async move {
            let mut sender = connection().await;
            for _ in 0..times {
                sender.ready().await.expect("connected");
                let request = http::Request::get("/call/42")
                    .header(http::header::HOST, "echo")
                    .body(Empty::new())
                    .expect("a sound request");
                let response = sender.send_request(request).await.expect("the echo answers");
                assert!(echo::drain(response.into_body()).await > 50);
            }
        }))
    }
}
