//! The contracts of the ports: REST as a protocol, both versions of HTTP as transports, and byte streams.
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use chassis_core::{
    Body, BoxFuture, Error, Failed, Hop, Invocation, Link, Random, Reply, Verdict,
    protocol::{Leaf, Protocol, Pushback, Transport},
    tasks::Tasks,
    testing::contract::{
        self,
        transport::{Endpoint, Handler},
    },
};
use chassis_http::{
    ClientConfig, H2Transport, HTTP, HttpTransport, HttpVersion, ServerConfig,
    connector::{Connector, MemoryNetwork, Network, Stream, contract::connector},
    server::{Answer, Mux, Received, Server, ServerBody},
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::support::call;

#[test]
fn rest_is_a_protocol() {
    contract::protocol::protocol(&HTTP);
}

// === transports ===

/// A server at `memory:stock`.
struct Stock(MemoryNetwork, Tasks);

#[async_trait::async_trait]
impl Endpoint for Stock {
    fn address(&self) -> String {
        "memory:stock".to_owned()
    }

    fn call(&self, text: &'static str) -> Invocation {
        let mut call = call(Method::POST, "/left?of=apples", Body::full(text));
        call.metadata.insert("x-user", "ann".parse().unwrap());
        call
    }

    async fn start(&mut self, handler: Handler) {
        self.1 = Tasks::new();
        let service = move |request: Request<Received>| -> Answer {
            let handler = handler.clone();
            Box::pin(async move {
                let body = request.into_body().collect().await.map(|body| body.to_bytes());
                let said = handler.handle(&body.unwrap_or_default()).await;
                Response::new(ServerBody::from(said.to_owned()))
            })
        };
        let server = Server::new(ServerConfig::default(), &self.1, Random::seeded(1));
        let listener = Box::new(self.0.listen("stock").unwrap());
        server.serve("http", listener, Mux { http: Some(Arc::new(service)), grpc: None }, None);
    }

    async fn stop(&mut self) {
        self.1.end(crate::support::SECOND).await;
    }
}

fn http(version: HttpVersion) -> (HttpTransport, Stock) {
    let memory = MemoryNetwork::default();
    let connector = Arc::new(Network::with_memory(memory.clone()));
    let config = ClientConfig { http_version: version, ..ClientConfig::default() };
    (HttpTransport::new(connector, config), Stock(memory, Tasks::new()))
}

#[tokio::test(start_paused = true)]
async fn http1_is_a_transport() {
    let (transport, stock) = http(HttpVersion::One);
    contract::transport::transport(transport, stock).await;
}

#[tokio::test(start_paused = true)]
async fn http2_is_a_transport() {
    let (transport, stock) = http(HttpVersion::Two);
    contract::transport::transport(transport, stock).await;
}

#[tokio::test(start_paused = true)]
async fn http2_for_another_protocol_is_a_transport() {
    let memory = MemoryNetwork::default();
    let connector = Arc::new(Network::with_memory(memory.clone()));
    let transport = H2Transport::new(&HTTP, connector, ClientConfig::default());
    contract::transport::transport(transport, Stock(memory, Tasks::new())).await;
}

/// How a transport may break a promise.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    KeepsTheCall,
    EmptiesTheCall,
    SendsTwice,
    IgnoresDrops,
    DeniesExecution,
    NeverSays,
    LeavesTasks,
}

struct Broken(HttpTransport, Fault);
struct BrokenLeaf(<HttpTransport as Transport>::Leaf, Fault);

impl Transport for Broken {
    type Leaf = BrokenLeaf;

    fn protocol(&self) -> &'static dyn Protocol {
        self.0.protocol()
    }

    fn leaf(&self, link: Link) -> BrokenLeaf {
        if self.1 == Fault::LeavesTasks {
            link.tasks().spawn(std::future::pending());
        }
        let link = match self.1 {
            Fault::NeverSays => {
                Link::detached(link.service(), link.address(), link.tasks().clone(), link.random().clone())
            }
            _ => link,
        };
        BrokenLeaf(self.0.leaf(link), self.1)
    }
}

impl Leaf for BrokenLeaf {
    type Future = BoxFuture<'static, Result<Reply, Failed>>;

    fn call(&self, call: Invocation) -> Self::Future {
        let fault = self.1;
        if fault == Fault::SendsTwice
            && let Some(again) = call.try_clone()
        {
            tokio::spawn(self.0.call(again));
        }
        let answer = self.0.call(call);
        if fault == Fault::IgnoresDrops {
            let answer = tokio::spawn(answer);
            return Box::pin(async move { answer.await.unwrap() });
        }
        Box::pin(async move {
            let mut error = match answer.await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            match (fault, error.take_unsent()) {
                (Fault::EmptiesTheCall, Some(mut call)) => {
                    call.body = Body::empty();
                    Err(error.returning(call))
                }
                (Fault::KeepsTheCall, Some(_)) => Err(error),
                (_, Some(call)) => Err(error.returning(call)),
                (Fault::DeniesExecution, None) => Err(error.map(|error| error.with_maybe_executed(false))),
                (_, None) => Err(error),
            }
        })
    }

    fn wake(&self) {
        self.0.wake();
    }

    fn close(&self) {
        self.0.close();
    }
}

async fn breaks(fault: Fault) {
    let (transport, stock) = http(HttpVersion::Two);
    contract::transport::transport(Broken(transport, fault), stock).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a call that was not sent is given back")]
async fn what_was_not_sent_must_come_back() {
    breaks(Fault::KeepsTheCall).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a call that was given back arrives with its body")]
async fn what_comes_back_must_be_whole() {
    breaks(Fault::EmptiesTheCall).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a call arrives once")]
async fn a_call_must_not_arrive_twice() {
    breaks(Fault::SendsTwice).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a call that its caller dropped is given up at the endpoint")]
async fn a_dropped_call_must_be_given_up() {
    breaks(Fault::IgnoresDrops).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a call that arrived may have been executed")]
async fn a_lost_call_must_not_pass_for_unexecuted() {
    breaks(Fault::DeniesExecution).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "says that an endpoint is not there")]
async fn the_link_must_be_told() {
    breaks(Fault::NeverSays).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a leaf that was dropped has 1 tasks left")]
async fn no_task_must_stay() {
    breaks(Fault::LeavesTasks).await;
}

/// How a protocol may break a promise.
#[derive(Clone, Copy, PartialEq)]
enum Slip {
    RefusesWithSuccess,
    AllowsRetries,
    BelievesEveryHop,
    SaysTheDeadlineTwice,
}

struct Slipping(Slip);

impl Protocol for Slipping {
    fn name(&self) -> &'static str {
        HTTP.name()
    }

    fn judge_head(&self, status: StatusCode, metadata: &HeaderMap) -> Option<Verdict> {
        HTTP.judge_head(status, metadata)
    }

    fn judge_end(&self, status: StatusCode, trailers: Option<&HeaderMap>) -> Verdict {
        HTTP.judge_end(status, trailers)
    }

    fn refuse(&self, error: &Error) -> (StatusCode, HeaderMap, Body) {
        match (HTTP.refuse(error), self.0) {
            ((_, head, body), Slip::RefusesWithSuccess) => (StatusCode::OK, head, body),
            (refusal, _) => refusal,
        }
    }

    fn pushback(&self, metadata: &HeaderMap) -> Pushback {
        HTTP.pushback(metadata)
    }

    fn strip_foreign(&self, metadata: &mut HeaderMap, hop: Option<&Hop>) -> bool {
        self.0 != Slip::BelievesEveryHop && HTTP.strip_foreign(metadata, hop)
    }

    fn forbid_retry(&self, metadata: &mut HeaderMap) {
        if self.0 != Slip::AllowsRetries {
            HTTP.forbid_retry(metadata);
        }
    }

    fn write_deadline(&self, metadata: &mut HeaderMap, remaining: Duration) {
        let mut said = HeaderMap::new();
        HTTP.write_deadline(&mut said, remaining);
        for (name, value) in said {
            let name = name.expect("each is there once");
            match self.0 {
                Slip::SaysTheDeadlineTwice => drop(metadata.append(name, value)),
                _ => drop(metadata.insert(name, value)),
            }
        }
    }
}

#[test]
#[should_panic(expected = "a refusal is a failure")]
fn a_refusal_must_be_a_failure() {
    static REFUSES: Slipping = Slipping(Slip::RefusesWithSuccess);
    contract::protocol::protocol(&REFUSES);
}

#[test]
#[should_panic(expected = "an answer that forbids retries is read so")]
fn a_ban_on_retries_must_be_read() {
    static ALLOWS: Slipping = Slipping(Slip::AllowsRetries);
    contract::protocol::protocol(&ALLOWS);
}

#[test]
#[should_panic(expected = "another hop's refusal is believed")]
fn another_hop_must_not_be_believed() {
    static BELIEVES: Slipping = Slipping(Slip::BelievesEveryHop);
    contract::protocol::protocol(&BELIEVES);
}

#[test]
#[should_panic(expected = "it is said once")]
fn a_deadline_must_be_said_once() {
    static TWICE: Slipping = Slipping(Slip::SaysTheDeadlineTwice);
    contract::protocol::protocol(&TWICE);
}

// === connectors ===

#[tokio::test]
async fn the_network_is_a_connector_by_tcp_unix_and_memory() {
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", folder.path().join("socket").display());
    for address in ["127.0.0.1:0", &socket, "memory:stock"] {
        let network = Network::default();
        connector(&network, network.bind(address).await.unwrap()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn memory_is_a_connector() {
    let memory = MemoryNetwork::default();
    connector(&memory, Box::new(memory.listen("stock").unwrap())).await;
}

/// How a connector may break a promise.
#[derive(Clone, Copy, PartialEq)]
enum Flaw {
    Panics,
    Hangs,
    NeverEnds,
    LosesBytes,
}

struct Flawed(MemoryNetwork, Flaw);
struct FlawedStream(Stream, Flaw);

#[async_trait::async_trait]
impl Connector for Flawed {
    async fn connect(&self, address: &str) -> io::Result<Stream> {
        let stream = match (self.0.connect(address).await, self.1) {
            (Err(why), Flaw::Panics) => panic!("who would have thought of that: {why}"),
            (Err(_), Flaw::Hangs) => std::future::pending().await,
            (reached, _) => reached?,
        };
        let peer = stream.peer().clone();
        Ok(Stream::new(FlawedStream(stream, self.1), peer))
    }
}

impl AsyncRead for FlawedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = to.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(cx, to))?;
        match self.1 == Flaw::NeverEnds && to.filled().len() == before {
            true => Poll::Pending,
            false => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for FlawedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let most = if self.1 == Flaw::LosesBytes { bytes.len().min(1024) } else { bytes.len() };
        let written = ready!(Pin::new(&mut self.0).poll_write(cx, &bytes[..most]))?;
        Poll::Ready(Ok(if self.1 == Flaw::LosesBytes { bytes.len() } else { written }))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

async fn flawed(flaw: Flaw) {
    let memory = MemoryNetwork::default();
    let listener = Box::new(memory.listen("stock").unwrap());
    connector(&Flawed(memory, flaw), listener).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a connector does not panic")]
async fn a_refusal_must_be_an_error() {
    flawed(Flaw::Panics).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a stream, or an error did not come")]
async fn a_refusal_must_come() {
    flawed(Flaw::Hangs).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "the end of a peer that left did not come")]
async fn an_end_must_be_noticed() {
    flawed(Flaw::NeverEnds).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a large exchange did not come")]
async fn bytes_must_arrive() {
    flawed(Flaw::LosesBytes).await;
}
