//! Client and server edge connected directly: one reads the output of the other.
use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use chassis_core::{
    Body, CallOptions, Code, Error, Invocation, Next, Origin, Reason, Reply, Runtime, Stage, Stages,
};
use chassis_grpc::{Channel, GRPC, GrpcServer, GrpcServices, RequestExt};
use chassis_protos::echo::{EchoReply, EchoRequest, echo_client::EchoClient, echo_server::EchoServer};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use proptest::prelude::*;
use tonic::metadata::{BinaryMetadataValue, MetadataValue};
use tower_service::Service;

use crate::{
    echo::{Echo, Fails, says},
    pipeline_of,
};

type Stub = EchoClient<Channel>;

/// A test's view of a call in the pipeline.
#[derive(Clone, Debug, Default)]
struct Seen {
    operation: String,
    metadata: HeaderMap,
    options: CallOptions,
    deadline: Option<Duration>,
    previous_attempts: u32,
    caller: Option<String>,
}

type Sight = Arc<Mutex<Vec<Seen>>>;

fn look(call: &Invocation, sight: &Sight) {
    sight.lock().unwrap().push(Seen {
        operation: call.target.operation.to_string(),
        metadata: call.metadata.clone(),
        options: call.options.clone(),
        deadline: call.remaining(call.started()),
        previous_attempts: call.previous_attempts,
        caller: call.target.caller_name().map(str::to_owned),
    });
}

fn server(echo: Echo, sight: &Sight) -> GrpcServer {
    let services = GrpcServices::default().add(EchoServer::new(echo));
    let services = services.descriptors(chassis_protos::echo::FILE_DESCRIPTOR_SET).unwrap();
    let sight = sight.clone();
    let look = move |call: Invocation, next: Next| {
        look(&call, &sight);
        next.run(call)
    };
    GrpcServer::new(&runtime(look), services)
}

/// A runtime whose server pipeline begins with `layer`.
fn runtime<F>(layer: impl Fn(Invocation, Next) -> F + Send + Sync + 'static) -> Runtime
where
    F: Future<Output = Result<Reply, Error>> + Send + 'static,
{
    let mut stages = Stages::default();
    stages.add_fn(Stage::ServerCall, "test", None, layer);
    Runtime::builder("echo").stages(stages).build().unwrap()
}

/// A stub whose calls `answer` answers.
fn stub<F>(answer: impl Fn(Request<Body>) -> F + Clone + Send + Sync + 'static) -> Stub
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let pipeline = pipeline_of(move |mut call| {
        let mut request = Request::new(std::mem::take(&mut call.body));
        *request.method_mut() = call.method.clone();
        // In the form that the attempt layer and a transport write.
        *request.uri_mut() = format!("http://{}{}", call.target.service, call.uri).parse().unwrap();
        let caller = HeaderValue::from_static("tests");
        call.metadata.entry("x-chassis-caller").or_insert(caller.clone());
        call.target.caller = Some(caller);
        *request.headers_mut() = std::mem::take(&mut call.metadata);
        let answered = answer(request);
        Box::pin(async move {
            let (head, body) = answered.await.into_parts();
            Ok(call.answered(head.status, head.headers, body))
        })
    });
    EchoClient::new(Channel::new("echo", pipeline))
}

/// A stub that calls `server`.
fn to(server: GrpcServer) -> Stub {
    stub(move |request| {
        let answered = server.clone().call(request);
        async move {
            let Ok(response) = answered.await;
            assert_eq!(response.body().size_hint().exact(), None, "hyper would add a content-length");
            response.map(|body| Body::stream(body, |never| match never {}))
        }
    })
}

/// A stub that always gets this head and no body.
fn answered_by(status: u16, head: &[(&'static str, &'static str)]) -> Stub {
    let mut response = Response::builder().status(status);
    for (name, value) in head {
        response = response.header(*name, *value);
    }
    let (head, ()) = response.body(()).unwrap().into_parts();
    stub(move |_| std::future::ready(Response::from_parts(head.clone(), Body::empty())))
}

/// A stub whose pipeline refuses every call.
fn refused(error: impl Fn() -> Error + Clone + Send + Sync + 'static) -> Stub {
    let pipeline = pipeline_of(move |call| Box::pin(std::future::ready(Err(call.refuse(error())))));
    EchoClient::new(Channel::new("echo", pipeline))
}

#[tokio::test]
async fn every_kind_of_call() {
    let mut stub = to(server(Echo::default(), &Sight::default()));
    assert_eq!(stub.call(says("a")).await.unwrap().into_inner().message, "a");

    let request = EchoRequest { repeat: 3, ..says("b") };
    let mut replies = stub.download(request).await.unwrap().into_inner();
    for count in 1..=3 {
        assert_eq!(replies.message().await.unwrap().unwrap().count, count);
    }
    assert!(replies.message().await.unwrap().is_none());

    let requests = ["c", "d", "e"].map(says);
    let all = stub.upload(tokio_stream::iter(requests)).await.unwrap().into_inner();
    assert_eq!((all.message.as_str(), all.count), ("cde", 3));

    let (send, requests) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut replies = stub.chat(requests).await.unwrap().into_inner();
    for (count, message) in [(1, "f"), (2, "g")] {
        send.send(says(message)).await.unwrap();
        let reply = replies.message().await.unwrap().unwrap();
        assert_eq!((reply.message.as_str(), reply.count), (message, count));
    }
    drop(send);
    assert!(replies.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_handlers_failure_arrives_as_it_is() {
    let mut stub = to(server(Echo::default(), &Sight::default()));
    let failing = EchoRequest {
        fail_code: 5,
        fail_message: "no such item: 100 %, ümlaut".to_owned(),
        repeat: 2,
        ..says("")
    };
    let status = stub.call(failing.clone()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (tonic::Code::NotFound, failing.fail_message.as_str()));
    assert!(chassis_grpc::error(&status).is_none());
    let mut replies = stub.download(failing).await.unwrap().into_inner();
    assert_eq!(replies.message().await.unwrap().unwrap().count, 1);
    assert_eq!(replies.message().await.unwrap().unwrap().count, 2);
    assert_eq!(replies.message().await.unwrap_err().code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn the_server_reads_what_the_head_says() {
    let sight = Sight::default();
    let mut stub = to(server(Echo::default(), &sight));
    let mut request = tonic::Request::new(says(""));
    for (name, value) in [("x-chassis-caller", "orders;track=stable"), ("grpc-previous-rpc-attempts", "2")] {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    stub.safe(request).await.unwrap();
    let seen = sight.lock().unwrap().pop().unwrap();
    assert_eq!(seen.operation, "chassis.test.v1.Echo/Safe");
    assert_eq!((seen.caller.as_deref(), seen.previous_attempts, seen.deadline), (Some("orders"), 2, None));
    assert!(seen.metadata["user-agent"].to_str().unwrap().starts_with("grpc-rust-chassis/"));
}

#[tokio::test]
async fn the_timeout_of_a_request_is_an_option_and_no_metadata() {
    let sight = Sight::default();
    let pipeline = {
        let sight = sight.clone();
        pipeline_of(move |call| {
            look(&call, &sight);
            Box::pin(std::future::ready(Err(call.refuse(Error::local(Reason::Internal, "seen")))))
        })
    };
    let mut stub = EchoClient::new(Channel::new("echo", pipeline));
    let mut request = tonic::Request::new(says("")).pin("track", "canary").no_retry();
    request.set_timeout(Duration::from_millis(250));
    stub.call(request).await.unwrap_err();
    stub.call(says("")).await.unwrap_err();
    let [first, second] = sight.lock().unwrap().split_off(0).try_into().unwrap();
    assert_eq!((first.options.timeout, first.options.no_retry), (Some(Duration::from_millis(250)), true));
    assert_eq!(first.options.labels.unwrap().to_string(), "track=canary");
    assert!(!first.metadata.contains_key("grpc-timeout"));
    assert!(second.options.timeout.is_none() && second.options.labels.is_none() && !second.options.no_retry);

    // Of tonic's timeout and that of the options the shorter one holds.
    for (of_tonic, of_options) in [(200, 300), (300, 200)] {
        let mut request = tonic::Request::new(says("")).timeout(Duration::from_millis(of_options));
        request.set_timeout(Duration::from_millis(of_tonic));
        stub.call(request).await.unwrap_err();
        let seen = sight.lock().unwrap().pop().unwrap();
        assert_eq!(seen.options.timeout, Some(Duration::from_millis(200)), "{of_tonic} {of_options}");
    }
    stub.call(tonic::Request::new(says("")).timeout(Duration::from_secs(1))).await.unwrap_err();
    assert_eq!(sight.lock().unwrap().pop().unwrap().options.timeout, Some(Duration::from_secs(1)));
}

#[tokio::test]
async fn a_malformed_timeout_is_refused_clearly() {
    let mut server = server(Echo::default(), &Sight::default());
    for (value, expected) in
        [("100m", Some(Duration::from_millis(100))), ("soon", None), ("123456789m", None), ("", None)]
    {
        let request = Request::post("/chassis.test.v1.Echo/Call").header("content-type", "application/grpc");
        let request = request.header("grpc-timeout", value).body(Body::full(&[0; 5][..])).unwrap();
        let Ok(response) = server.call(request).await;
        let status = tonic::Status::from_header_map(response.headers());
        match expected {
            Some(_) => assert!(status.is_none()),
            None => {
                assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{value:?}");
                let status = status.unwrap();
                assert_eq!(status.code(), tonic::Code::Internal);
                assert!(status.message().contains("malformed grpc-timeout"), "{status:?}");
                assert!(response.body().is_end_stream(), "trailers-only");
            }
        }
    }
}

#[tokio::test]
async fn what_is_no_grpc_is_refused_in_http() {
    let mut server = server(Echo::default(), &Sight::default());
    for (method, content_type, expected) in
        [("POST", "application/json", 415), ("GET", "application/grpc", 405)]
    {
        let request = Request::builder().method(method).uri("/chassis.test.v1.Echo/Call");
        let request = request.header("content-type", content_type).body(Body::empty()).unwrap();
        let Ok(response) = server.call(request).await;
        assert_eq!(response.status(), expected);
        assert!(!response.headers().contains_key("grpc-status"));
    }
}

#[tokio::test]
async fn another_encoding_than_protobuf_is_refused_in_both_tongues() {
    let mut server = server(Echo::default(), &Sight::default());
    let mut ask = async |content_type: &str| {
        let request = Request::post("/chassis.test.v1.Echo/Call").header("content-type", content_type);
        let body = Body::full(&[0, 0, 0, 0, 0][..]);
        let Ok(response) = server.call(request.body(body).unwrap()).await;
        let status = tonic::Status::from_header_map(response.headers()).map(|status| status.code());
        (response.status().as_u16(), status)
    };
    for content_type in ["application/grpc", "application/grpc+proto", "application/grpc+PROTO;a=b"] {
        assert_eq!(ask(content_type).await, (200, None), "{content_type}");
    }
    for content_type in ["application/grpc+json", "application/grpc+", "application/grpc+protobuf;a=b"] {
        assert_eq!(ask(content_type).await, (415, Some(tonic::Code::Unimplemented)), "{content_type}");
    }
}

#[tokio::test]
async fn an_answer_in_another_encoding_is_no_answer_of_grpc() {
    let head = [("content-type", "application/grpc+json")];
    let status = answered_by(200, &head).call(says("")).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unknown);
    assert!(status.message().contains("application/grpc+json"), "{status:?}");
}

#[tokio::test]
async fn a_unary_call_without_a_message_is_unimplemented() {
    let mut server = server(Echo::default(), &Sight::default());
    for method in ["Call", "Download"] {
        let request = Request::post(format!("/chassis.test.v1.Echo/{method}"));
        let request = request.header("content-type", "application/grpc").body(Body::empty()).unwrap();
        let Ok(response) = server.call(request).await;
        let status = tonic::Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), tonic::Code::Unimplemented, "{method}: {status:?}");
    }
}

#[tokio::test]
async fn unknown_names_are_unimplemented_and_never_operations() {
    let sight = Sight::default();
    let mut server = server(Echo::default(), &sight);
    for path in
        ["/chassis.test.v1.Echo/Nothing", "/chassis.test.v2.Echo/Call", "/", "/a", "/a/b/c", "//", "/?q", "*"]
    {
        let request =
            Request::post(path).header("content-type", "application/grpc").body(Body::empty()).unwrap();
        let Ok(response) = server.call(request).await;
        assert_eq!(
            (response.status(), &response.headers()["grpc-status"]),
            (StatusCode::OK, &HeaderValue::from_static("12"))
        );
        assert_eq!(sight.lock().unwrap().pop().unwrap().operation, "_OTHER", "{path}");
    }
}

#[tokio::test]
async fn a_refusal_here_is_known_as_such() {
    let later = Duration::from_millis(70);
    let mut stub = refused(move || {
        Error::local(Reason::RateLimited, "100/s is used up").with_rule("per-caller").with_retry_after(later)
    });
    for status in [stub.call(says("")).await.unwrap_err(), stub.download(says("")).await.unwrap_err()] {
        assert_eq!((status.code(), status.message()), (tonic::Code::ResourceExhausted, "100/s is used up"));
        let error = chassis_grpc::error(&status).unwrap();
        assert_eq!(
            (error.reason(), error.origin(), error.rule()),
            (Reason::RateLimited, Origin::Local, Some("per-caller"))
        );
        assert_eq!((error.maybe_executed(), error.retry_after()), (false, Some(later)));
    }
}

#[tokio::test]
async fn a_refusal_over_there_is_remote_and_was_not_executed() {
    let full = || {
        Error::local(Reason::Overloaded, "512 calls are under way")
            .with_source(std::io::Error::other("inner"))
    };
    let runtime = runtime(move |call, _| std::future::ready(Err(call.refuse(full()))));
    let mut stub = to(GrpcServer::new(&runtime, GrpcServices::default()));
    let status = stub.call(says("")).await.unwrap_err();
    assert_eq!(status.message(), "512 calls are under way", "what lies beneath stays there");
    let error = chassis_grpc::error(&status).unwrap();
    assert_eq!(
        (error.reason(), error.origin(), error.code()),
        (Reason::Overloaded, Origin::Remote, Code::Unavailable)
    );
    assert!(!error.maybe_executed());
}

#[tokio::test]
async fn a_handler_that_passes_a_refusal_on_was_executed() {
    let upstream =
        Error::local(Reason::CircuitOpen, "stock is out of order").with_retry_after(Duration::from_secs(1));
    let fails: Fails = Arc::new(move || Some(chassis_grpc::status(&upstream)));
    let mut stub = to(server(Echo { fails: Some(fails), ..Echo::default() }, &Sight::default()));
    let by_head = stub.call(says("")).await.unwrap_err();
    let mut replies = stub.download(EchoRequest { repeat: 1, ..says("") }).await.unwrap().into_inner();
    replies.message().await.unwrap();
    let by_trailers = replies.message().await.unwrap_err();
    for status in [by_head, by_trailers] {
        assert_eq!((status.code(), status.message()), (tonic::Code::Unavailable, "stock is out of order"));
        assert!(chassis_grpc::error(&status).is_none(), "{status:?}");
        assert!(!status.details().is_empty(), "its RetryInfo stays");
    }
}

#[tokio::test]
async fn answers_of_others_are_mapped_by_the_table() {
    use tonic::Code::{Internal, PermissionDenied, Unavailable, Unimplemented, Unknown};
    let html = [("content-type", "text/html")];
    let grpc = [("content-type", "application/grpc")];
    for (status, code) in [
        (400, Internal),
        (403, PermissionDenied),
        (404, Unimplemented),
        (503, Unavailable),
        (200, Unknown),
        (500, Unknown),
    ] {
        let actual = answered_by(status, &html).call(says("")).await.unwrap_err();
        assert_eq!(actual.code(), code, "{status}");
        assert!(
            actual.message().contains("text/html") && actual.message().contains(&status.to_string()),
            "{actual:?}"
        );
    }
    assert_eq!(answered_by(200, &grpc).call(says("")).await.unwrap_err().code(), Unknown, "no grpc-status");
    let actual = answered_by(502, &[("grpc-status", "5")]).call(says("")).await.unwrap_err();
    assert_eq!(actual.code(), tonic::Code::NotFound, "a grpc-status overrides the HTTP status");
}

#[tokio::test]
async fn a_handlers_details_arrive_byte_by_byte() {
    // Of another domain, with fields out of order and one that no version of the message has.
    let info =
        [&b"\n(type.googleapis.com/google.rpc.ErrorInfo\x12\x14"[..], b"\n\x05STALE\x12\x0bexample.org"]
            .concat();
    let details = [&b"\x12\x0blost a race\x1a"[..], &[info.len() as u8], &info, b"\x08\x0a\x78\x01"].concat();
    let sent = details.clone();
    let fails: Fails = Arc::new(move || {
        Some(tonic::Status::with_details(tonic::Code::Aborted, "lost a race", sent.clone().into()))
    });
    let mut stub = to(server(Echo { fails: Some(fails), ..Echo::default() }, &Sight::default()));
    let by_head = stub.call(says("")).await.unwrap_err();
    let mut replies = stub.download(EchoRequest { repeat: 1, ..says("") }).await.unwrap().into_inner();
    replies.message().await.unwrap();
    let by_trailers = replies.message().await.unwrap_err();
    for status in [by_head, by_trailers] {
        assert_eq!((status.code(), status.details()), (tonic::Code::Aborted, &details[..]));
    }
}

#[tokio::test]
async fn garbage_for_details_does_no_harm() {
    const GARBAGE: (&str, &str) = ("grpc-status-details-bin", "!not base64!");
    let head = [("grpc-status", "7"), GARBAGE];
    assert_eq!(
        answered_by(200, &head).call(says("")).await.unwrap_err().code(),
        tonic::Code::PermissionDenied
    );
    let mut stub = stub(|_| {
        let trailers = [("grpc-status", "7"), GARBAGE]
            .map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)));
        let body = Body::with_trailers(None, HeaderMap::from_iter(trailers));
        std::future::ready(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
    });
    assert_eq!(stub.call(says("")).await.unwrap_err().code(), tonic::Code::PermissionDenied);
}

/// One message of five bytes, then an error.
struct BreaksOff(Option<Error>, bool);

impl http_body::Body for BreaksOff {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match std::mem::replace(&mut self.1, true) {
            false => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 5]))))),
            true => Poll::Ready(self.0.take().map(Err)),
        }
    }
}

fn breaks_off(error: Error) -> Body {
    Body::stream(BreaksOff(Some(error), false), |error| error)
}

#[tokio::test]
async fn an_answer_that_breaks_off_has_its_exact_code() {
    let causes = [
        (Reason::DeadlineExceeded, tonic::Code::DeadlineExceeded),
        (Reason::ConnectionLost, tonic::Code::Unavailable),
    ];
    for (reason, code) in causes {
        let mut stub = stub(move |_| {
            let body = breaks_off(Error::remote(reason, "it broke off"));
            std::future::ready(
                Response::builder().header("content-type", "application/grpc").body(body).unwrap(),
            )
        });
        let mut replies = stub.download(says("")).await.unwrap().into_inner();
        assert_eq!(replies.message().await.unwrap(), Some(EchoReply::default()));
        let status = replies.message().await.unwrap_err();
        assert_eq!(status.code(), code);
        let error = chassis_grpc::error(&status).unwrap();
        assert_eq!((error.reason(), error.maybe_executed()), (reason, true));
        assert_eq!(stub.call(says("")).await.unwrap_err().code(), code, "unary too");
    }
}

#[tokio::test]
async fn a_panic_in_the_midst_of_an_answer_is_internal() {
    let mut stub = to(server(Echo::default(), &Sight::default()));
    let request = EchoRequest { repeat: 3, ..says("panic") };
    // The first reply is written together with the second, whose creation panics.
    let status = stub.download(request).await.unwrap().into_inner().message().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Internal);
    assert_eq!(chassis_grpc::error(&status).unwrap().reason(), Reason::Panicked);
}

#[tokio::test]
async fn half_a_request_is_not_taken_for_a_whole_one() {
    let mut server = server(Echo::default(), &Sight::default());
    let body = breaks_off(Error::remote(Reason::Cancelled, "the caller broke off its request"));
    let request = Request::post("/chassis.test.v1.Echo/Upload").header("content-type", "application/grpc");
    let Ok(response) = server.call(request.body(body).unwrap()).await;
    let status = tonic::Status::from_header_map(response.headers()).unwrap();
    assert_eq!(status.code(), tonic::Code::Aborted);
}

#[tokio::test]
async fn a_server_refuses_a_repeated_service_name_by_its_last() {
    let fails: Fails = Arc::new(|| Some(tonic::Status::already_exists("the second")));
    let second = EchoServer::new(Echo { fails: Some(fails), ..Echo::default() });
    let services = GrpcServices::default().add(EchoServer::new(Echo::default())).add(second);
    let server = GrpcServer::new(&Runtime::builder("echo").build().unwrap(), services);
    assert_eq!(to(server).call(says("")).await.unwrap_err().code(), tonic::Code::AlreadyExists);
}

#[test]
fn any_metadata_survives() {
    let binary = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..4);
    let ascii = proptest::collection::vec("[ -~]{0,40}", 0..4);
    let mut runner = proptest::test_runner::TestRunner::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = runtime.enter();
    let stub = to(server(Echo { mirrors: true, ..Echo::default() }, &Sight::default()));
    let round_trip = |(binary, ascii): (Vec<Vec<u8>>, Vec<String>)| {
        let mut request = tonic::Request::new(says(""));
        for value in &binary {
            request.metadata_mut().append_bin("x-some-bin", BinaryMetadataValue::from_bytes(value));
        }
        for value in &ascii {
            request.metadata_mut().append("x-some", MetadataValue::try_from(value).unwrap());
        }
        let response = runtime.block_on(stub.clone().call(request)).unwrap();
        let back: Vec<_> =
            response.metadata().get_all_bin("x-some-bin").iter().map(|v| v.to_bytes().unwrap()).collect();
        prop_assert_eq!(back, binary);
        let back: Vec<_> =
            response.metadata().get_all("x-some").iter().map(|v| v.to_str().unwrap()).collect();
        prop_assert_eq!(back, ascii);
        Ok(())
    };
    runner.run(&(binary, ascii), round_trip).unwrap();
}

#[test]
fn the_protocol_has_one_name() {
    assert_eq!(chassis_core::protocol::Protocol::name(&GRPC), "grpc");
}
