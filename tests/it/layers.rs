//! HTTP layers around gRPC, over sockets.
use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use axum::{extract::Request, middleware, middleware::from_fn, response::Response};
use chassis::{Chassis, ChassisBuilder, Running, document::Environment, registries::MemoryRegistry};
use chassis_protos::echo::{EchoReply, EchoRequest, echo_client::EchoClient, echo_server};
use http::HeaderValue;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, combinators::MapFrame};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Status, Streaming, body::Body as TonicBody, transport::Channel};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, util::MapRequestLayer};

/// Answers with the message it received; special messages make it misbehave.
struct Echo;

type Replies = Pin<Box<dyn Stream<Item = Result<EchoReply, Status>> + Send>>;

fn reply(message: String) -> EchoReply {
    EchoReply { message, ..EchoReply::default() }
}

#[tonic::async_trait]
impl echo_server::Echo for Echo {
    type DownloadStream = Replies;
    type ChatStream = Replies;

    async fn call(&self, request: tonic::Request<EchoRequest>) -> Result<tonic::Response<EchoReply>, Status> {
        match &*request.get_ref().message {
            "panic" => panic!("as asked for"),
            "slow" => std::future::pending().await,
            _ => Ok(tonic::Response::new(reply(request.into_inner().message))),
        }
    }

    async fn safe(&self, request: tonic::Request<EchoRequest>) -> Result<tonic::Response<EchoReply>, Status> {
        self.call(request).await
    }

    async fn download(
        &self,
        request: tonic::Request<EchoRequest>,
    ) -> Result<tonic::Response<Replies>, Status> {
        let EchoRequest { repeat, message, .. } = request.into_inner();
        let replies =
            (0..repeat).map(move |_| Ok(reply(message.clone()))).chain([Err(Status::data_loss("all"))]);
        Ok(tonic::Response::new(Box::pin(tokio_stream::iter(replies))))
    }

    async fn upload(
        &self,
        _: tonic::Request<Streaming<EchoRequest>>,
    ) -> Result<tonic::Response<EchoReply>, Status> {
        Err(Status::unimplemented("no uploads"))
    }

    async fn chat(
        &self,
        request: tonic::Request<Streaming<EchoRequest>>,
    ) -> Result<tonic::Response<Replies>, Status> {
        let replies = request.into_inner().map(|request| Ok(reply(request?.message)));
        Ok(tonic::Response::new(Box::pin(replies)))
    }
}

/// An access log in the style of tower-http: over any HTTP service, and any bodies.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

#[derive(Clone)]
struct Logged<S> {
    inner: S,
    log: Log,
}

type Note<D> = Box<dyn FnMut(Frame<D>) -> Frame<D> + Send>;

impl<S> Layer<S> for Log {
    type Service = Logged<S>;

    fn layer(&self, inner: S) -> Logged<S> {
        Logged { inner, log: self.clone() }
    }
}

impl<S, B, R> Service<http::Request<B>> for Logged<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>, Future: Send + 'static>,
    R: Body,
{
    type Response = http::Response<MapFrame<R, Note<R::Data>>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let (log, path) = (self.log.clone(), request.uri().path().rsplit('/').next().unwrap().to_owned());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            let status = answer.headers().get("grpc-status").map_or("-", |status| status.to_str().unwrap());
            let mark =
                if answer.headers().contains_key("access-control-allow-origin") { " cors" } else { "" };
            log.note(format!("{path} {} {status}{mark}", answer.status().as_u16()));
            Ok(answer.map(|body| {
                let note: Note<R::Data> = Box::new(move |frame| {
                    log.note(match frame.trailers_ref() {
                        Some(trailers) => {
                            format!("{path} ends {}", trailers["grpc-status"].to_str().unwrap())
                        }
                        None => format!("{path} data"),
                    });
                    frame
                });
                body.map_frame(note)
            }))
        })
    }
}

impl Log {
    fn note(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// In the style of a CORS layer.
async fn cors(request: Request, next: middleware::Next) -> Response {
    let mut answer = match *request.method() == http::Method::OPTIONS {
        true => Response::default(),
        false => next.run(request).await,
    };
    answer.headers_mut().insert("access-control-allow-origin", HeaderValue::from_static("*"));
    answer
}

/// Panics where the request asks for it.
async fn clumsy(request: Request, next: middleware::Next) -> Response {
    let how = request.headers().get("x-panic").cloned();
    if how.as_ref().is_some_and(|how| how == "answer") {
        panic!("the layer is broken");
    }
    let answer = next.run(request).await;
    match how {
        Some(_) => answer.map(|body| {
            axum::body::Body::new(body.map_frame(|_| -> Frame<bytes::Bytes> { panic!("the body is broken") }))
        }),
        None => answer,
    }
}

/// `stock` on a socket, and a stub of tonic's own.
async fn stock(
    timeout: &str,
    build: impl FnOnce(ChassisBuilder) -> ChassisBuilder,
) -> (Running, EchoClient<Channel>) {
    let none = json!({ "name": "none", "rate": "0/s", "burst": 0, "match": { "operation": "chassis.test.v1.Echo/Safe" } });
    let settings = json!({
        "listen": { "grpc": "127.0.0.1:0" },
        "inbound": { "rate_limits": [none], "timeout": timeout },
    });
    let builder = Chassis::builder("stock").without_file().environment(Environment::default());
    let builder = builder.registry(MemoryRegistry::new()).settings(settings);
    let app = build(builder).build().await.unwrap();
    let running = app.serve_grpc(echo_server::EchoServer::new(Echo)).start().await.unwrap();
    let channel =
        Channel::from_shared(format!("http://{}", address(&running))).unwrap().connect().await.unwrap();
    (running, EchoClient::new(channel))
}

fn address(running: &Running) -> &str {
    &running.advertised().iter().find(|(protocol, _)| protocol == "grpc").unwrap().1
}

fn says(message: &str) -> EchoRequest {
    EchoRequest { message: message.to_owned(), ..EchoRequest::default() }
}

/// The answer over HTTP/1.1.
async fn http1(running: &Running, request: &str) -> String {
    let mut stream = TcpStream::connect(address(running)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn layers_around_grpc_see_answers_refusals_and_trailers() {
    let log = Log::default();
    let (running, mut stub) = stock("100ms", |builder| builder.grpc_layer(log.clone())).await;
    assert_eq!(stub.call(says("hello")).await.unwrap().into_inner().message, "hello");
    assert_eq!(log.take(), ["Call 200 -", "Call data", "Call ends 0"]);

    let mut replies = stub.download(EchoRequest { repeat: 2, ..says("a") }).await.unwrap().into_inner();
    let mut come = 0;
    let end = loop {
        match replies.message().await {
            Ok(_) => come += 1,
            Err(status) => break status,
        }
    };
    assert_eq!((come, end.code(), end.message()), (2, Code::DataLoss, "all"));
    let seen = log.take();
    assert_eq!((&*seen[0], &**seen.last().unwrap()), ("Download 200 -", "Download ends 15"), "{seen:?}");

    let replies = stub.chat(tokio_stream::iter(["b", "c"].map(says))).await.unwrap().into_inner();
    let replies: Vec<_> = replies.map(|reply| reply.unwrap().message).collect().await;
    assert_eq!(replies, ["b", "c"]);
    assert_eq!(log.take().last().unwrap(), "Chat ends 0");

    // The pipeline refuses: over its limit, over its deadline, and after a panic.
    for (code, refused) in [
        (Code::ResourceExhausted, stub.safe(says("a")).await),
        (Code::DeadlineExceeded, stub.call(says("slow")).await),
        (Code::Internal, stub.call(says("panic")).await),
        (Code::Unimplemented, stub.upload(tokio_stream::iter([says("a")])).await),
    ] {
        assert_eq!(refused.unwrap_err().code(), code);
    }
    assert_eq!(log.take(), ["Safe 200 8", "Call 200 4", "Call 200 13", "Upload 200 12"]);

    // A request that is not gRPC, or not over HTTP/2.
    let grpc = "POST /a.B/C HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n";
    assert!(http1(&running, grpc).await.starts_with("HTTP/1.1 505 "));
    let get = "GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    assert!(http1(&running, get).await.starts_with("HTTP/1.1 415 "));
    assert_eq!(log.take(), ["C 505 12", "x 415 -"]);
    running.stop().await;
}

/// axum's middleware, tower's layers, and layers for tonic only; the first is outermost.
#[tokio::test]
async fn layers_of_all_kinds_stand_around_grpc_in_their_order() {
    #[derive(Clone)]
    struct Tonics;
    #[derive(Clone)]
    struct OfTonic<S>(S);
    impl<S> Layer<S> for Tonics {
        type Service = OfTonic<S>;
        fn layer(&self, inner: S) -> OfTonic<S> {
            OfTonic(inner)
        }
    }
    impl<S, B> Service<http::Request<B>> for OfTonic<S>
    where
        S: Service<http::Request<TonicBody>, Response = http::Response<TonicBody>>,
        B: Body<Data = bytes::Bytes, Error: Into<tonic::codegen::StdError>> + Send + 'static,
    {
        type Response = http::Response<TonicBody>;
        type Error = S::Error;
        type Future = S::Future;
        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
            self.0.poll_ready(cx)
        }
        fn call(&mut self, request: http::Request<B>) -> S::Future {
            self.0.call(request.map(TonicBody::new))
        }
    }

    let log = Log::default();
    let path = log.clone();
    let note = MapRequestLayer::new(move |request: http::Request<axum::body::Body>| {
        path.note(format!(
            "from {}",
            request.extensions().get::<chassis::http::server::Connected>().unwrap().port()
        ));
        request
    });
    let (running, mut stub) = stock("off", |builder| {
        builder
            .grpc_layer(ServiceBuilder::new().layer(log.clone()).layer(note))
            .grpc_layer(from_fn(cors))
            .grpc_layer(Tonics)
    })
    .await;
    let answer = stub.call(says("hello")).await.unwrap();
    assert_eq!(answer.metadata().get("access-control-allow-origin").unwrap(), "*");
    assert_eq!(log.take(), ["from grpc", "Call 200 - cors", "Call data", "Call ends 0"]);
    let refused = stub.safe(says("a")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.metadata().get("access-control-allow-origin").unwrap(), "*");
    // A preflight is no gRPC request.
    let preflight = "OPTIONS /a.B/C HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answer = http1(&running, preflight).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains("access-control-allow-origin: *"),
        "{answer}"
    );
    running.stop().await;
}

#[tokio::test]
async fn a_layer_around_grpc_that_fails_or_panics_ends_its_own_call() {
    let fails = tower::layer::layer_fn(|inner: chassis::grpc::GrpcEdge| {
        tower::util::BoxCloneSyncService::new(tower::service_fn(move |request: Request| {
            let inner = inner.clone();
            async move {
                match request.headers().contains_key("x-fail") {
                    true => Err(Box::<dyn std::error::Error + Send + Sync>::from(Status::aborted("no"))),
                    false => Ok(inner.oneshot(request).await.unwrap_or_else(|never| match never {})),
                }
            }
        }))
    });
    let (running, mut stub) =
        stock("off", |builder| builder.grpc_layer(from_fn(clumsy)).grpc_layer(fails)).await;
    let (sender, requests) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut beside = tonic::Request::new(requests);
    beside.set_timeout(Duration::from_secs(60));
    let mut beside = stub.chat(beside).await.unwrap().into_inner();
    for (name, how, code, words) in [
        ("x-panic", "answer", Code::Internal, "a layer of HTTP panicked"),
        ("x-panic", "body", Code::Internal, ""),
        ("x-fail", "yes", Code::Aborted, "no"),
    ] {
        let mut request = tonic::Request::new(says("a"));
        request.metadata_mut().insert(name, how.parse().unwrap());
        let status = stub.call(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{name}: {how}");
        assert!(words.is_empty() || status.message() == words, "{status:?}");
    }
    // The others on the same connection continue.
    sender.send(says("still")).await.unwrap();
    assert_eq!(beside.message().await.unwrap().unwrap().message, "still");
    assert_eq!(stub.call(says("well")).await.unwrap().into_inner().message, "well");
    drop((sender, beside, stub));
    running.stop().await;
}
