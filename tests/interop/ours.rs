//! chassis services: servers for the foreign clients, and clients for the foreign servers.
use std::{collections::BTreeMap, convert::Infallible};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Path,
    routing::{get, post},
};
use chassis::{Channel, Chassis, ChassisBuilder, Running, Runtime, document::Environment};
use chassis_protos::echo::FILE_DESCRIPTOR_SET;
use prometheus::proto::Metric;
use serde_json::{Value, json};
use tonic::{Request, codec::Codec, metadata::MetadataMap};
use tonic_prost::ProstCodec;

use crate::echo;

/// A service without known peers, at free ports.
pub(crate) fn builder(settings: Value) -> ChassisBuilder {
    let base = json!({
        "registry": { "kind": "memory" },
        "listen": { "grpc": "127.0.0.1:0", "http": "127.0.0.1:0" },
    });
    Chassis::builder("tests").environment(Environment::default()).settings(base).settings(settings)
}

/// The Echo service with reflection, and its address.
pub(crate) async fn echo(settings: Value) -> (Running, String) {
    let app = builder(settings).descriptors(FILE_DESCRIPTOR_SET).build().await.unwrap();
    let running = app.serve_grpc(echo::service()).reflection().start().await.unwrap();
    let address = running.address("grpc").unwrap().to_owned();
    (running, address)
}

/// A REST service, and its address.
pub(crate) async fn rest(settings: Value) -> (Running, String) {
    let app = builder(settings).build().await.unwrap();
    let running = app.serve_http(router()).start().await.unwrap();
    let address = running.address("http").unwrap().to_owned();
    (running, address)
}

pub(crate) fn router() -> Router {
    Router::new()
        .route("/hello/{name}", get(async |Path(name): Path<String>| format!("hello, {name}")))
        .route("/echo", post(async |body: Bytes| body))
        .route("/lines/{n}", get(async |Path(n): Path<u32>| Body::from_stream(tokio_stream::iter(lines(n)))))
        .route("/panic", get(async || -> String { panic!("as asked for") }))
}

/// The answer of `/lines/{n}`, piece by piece.
pub(crate) fn lines(n: u32) -> impl Iterator<Item = Result<String, Infallible>> {
    (0..n).map(|line| Ok(format!("line {line}\n")))
}

/// A service that calls `peer` at `address`, over any protocol.
pub(crate) async fn caller(address: &str, settings: Value) -> Chassis {
    let addresses: BTreeMap<_, _> = ["grpc", "http"].map(|protocol| (protocol, address)).into();
    let peer =
        json!({ "registry": { "kind": "static", "services": { "peer": [{ "addresses": addresses }] } } });
    builder(peer).settings(settings).build().await.unwrap()
}

/// The sum of those series of a family that have these labels.
pub(crate) fn counted(runtime: &Runtime, family: &str, labels: &[(&str, &str)]) -> u64 {
    let families = runtime.metrics().registry().gather();
    let metrics = families.iter().filter(|one| one.name() == family).flat_map(|one| one.get_metric());
    let has = |metric: &Metric, (name, value): &(&str, &str)| {
        metric.get_label().iter().any(|label| label.name() == *name && label.value() == *value)
    };
    let these = metrics.filter(|metric| labels.iter().all(|label| has(metric, label)));
    these
        .map(|metric| metric.get_counter().get_value() as u64 + metric.get_histogram().get_sample_count())
        .sum()
}

/// An answer in its parts: stubs of unary calls merge the metadata of head and trailers.
pub(crate) struct Parts<R> {
    pub(crate) head: MetadataMap,
    pub(crate) replies: Vec<R>,
    pub(crate) trailers: MetadataMap,
}

/// Calls `path` with one request, without a stub.
pub(crate) async fn call<Q, R>(channel: Channel, path: &'static str, request: Request<Q>) -> Parts<R>
where
    Q: Send + Sync + 'static,
    R: Send + Sync + 'static,
    ProstCodec<Q, R>: Codec<Encode = Q, Decode = R>,
{
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static(path);
    let response = client.server_streaming(request, path, ProstCodec::<Q, R>::default()).await.unwrap();
    let (head, mut rest, _) = response.into_parts();
    let mut replies = Vec::new();
    while let Some(reply) = rest.message().await.unwrap() {
        replies.push(reply);
    }
    Parts { head, replies, trailers: rest.trailers().await.unwrap().unwrap() }
}
