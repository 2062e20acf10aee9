//! Stubs and services with the complete path between them: pipelines, HTTP/2, a network within the process.
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use chassis_core::{
    Origin, Reason, Runtime, pipeline,
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
};
use chassis_grpc::{
    Channel, GrpcServer, GrpcServices, GrpcTransport, Health, RequestExt, idempotent_operations,
};
use chassis_http::{
    ClientConfig, ServerConfig,
    connector::{Connector, Network},
    server::{Mux, Server},
};
use chassis_protos::echo::{
    EchoRequest, FILE_DESCRIPTOR_SET, echo_client::EchoClient, echo_server::EchoServer,
};
use prost::Message;
use tokio::time::Instant;
use tonic::{Code, Request, Status, metadata::BinaryMetadataValue};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};

use crate::echo::{Echo, says};

/// One instance of `echo`, at `memory:echo`.
struct OneInstance;
struct WatchOnce(bool);

#[async_trait::async_trait]
impl Registry for OneInstance {
    fn name(&self) -> &str {
        "one"
    }
    async fn register(&self, _: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        Err(RegistryError::unsupported("there is one instance"))
    }
    async fn watch(&self, _: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        Ok(Box::new(WatchOnce(false)))
    }
}

#[async_trait::async_trait]
impl Watcher for WatchOnce {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        if std::mem::replace(&mut self.0, true) {
            std::future::pending::<()>().await;
        }
        let instance = Instance::new("echo", "echo-1").with_label("track", "stable");
        Ok(Membership::known([instance.with_address("grpc", "memory:echo")]))
    }
}

/// A server, a stub of it, and the values that keep them running.
struct World {
    network: Network,
    transport: Arc<GrpcTransport>,
    client: Runtime,
    server: Server,
    _runtime: Runtime,
}

impl World {
    async fn new(echo: Echo) -> Self {
        let services = GrpcServices::default().add(EchoServer::new(echo));
        Self::of(services.descriptors(FILE_DESCRIPTOR_SET).unwrap()).await
    }

    async fn of(services: GrpcServices) -> Self {
        let network = Network::default();
        let runtime = Runtime::builder("echo").build().unwrap();
        let edge = GrpcServer::new(&runtime, services);
        let server = Server::new(ServerConfig::default(), runtime.tasks(), runtime.random().clone());
        let listener = network.bind("memory:echo").await.unwrap();
        server.serve("grpc", listener, Mux { grpc: Some(Arc::new(edge)), http: None }, None);
        let client = Runtime::builder("tests").registry(Arc::new(OneInstance));
        let client = client.idempotent(idempotent_operations(FILE_DESCRIPTOR_SET).unwrap()).build().unwrap();
        let transport = GrpcTransport::new(Arc::new(network.clone()), ClientConfig::default());
        World { network, transport: Arc::new(transport), client, server, _runtime: runtime }
    }

    fn stub(&self) -> EchoClient<Channel> {
        EchoClient::new(self.channel())
    }

    fn channel(&self) -> Channel {
        Channel::new("echo", pipeline::client(&self.client, "echo", &self.transport))
    }
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_call() {
    let world = World::new(Echo { mirrors: true, ..Echo::default() }).await;
    let mut stub = world.stub();
    let mut request = Request::new(says("a"));
    for value in [&b"\0\xff"[..], b"", b"\x80"] {
        request.metadata_mut().append_bin("x-some-bin", BinaryMetadataValue::from_bytes(value));
    }
    let response = stub.call(request).await.unwrap();
    let values = response.metadata().get_all_bin("x-some-bin").iter();
    assert_eq!(values.map(|v| v.to_bytes().unwrap()).collect::<Vec<_>>(), [&b"\0\xff"[..], b"", b"\x80"]);
    assert!(!response.metadata().contains_key("content-length"));
    assert_eq!(response.metadata().get("x-chassis-caller").unwrap(), "tests", "mirrored");
    assert_eq!(response.into_inner().message, "a");

    let mut replies = stub.download(EchoRequest { repeat: 2, ..says("b") }).await.unwrap().into_inner();
    assert_eq!(replies.message().await.unwrap().unwrap().count, 1);
    assert_eq!(replies.message().await.unwrap().unwrap().count, 2);
    assert!(replies.message().await.unwrap().is_none());

    let all = stub.upload(tokio_stream::iter(["c", "d"].map(says))).await.unwrap().into_inner();
    assert_eq!((all.message.as_str(), all.count), ("cd", 2));

    let (send, requests) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut replies = stub.chat(requests).await.unwrap().into_inner();
    for (count, message) in [(1, "e"), (2, "f")] {
        send.send(says(message)).await.unwrap();
        let reply = replies.message().await.unwrap().unwrap();
        assert_eq!((reply.message.as_str(), reply.count), (message, count));
    }
    drop(send);
    assert!(replies.message().await.unwrap().is_none());
    assert_eq!(world.server.drain(Duration::from_secs(5)).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_large_message_both_ways() {
    let world = World::new(Echo::default()).await;
    let payload: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
    let request = EchoRequest { payload: payload.clone(), ..says("") };
    assert!(world.stub().call(request).await.unwrap().into_inner().payload == payload);
}

/// tonic's decoder would answer OUT_OF_RANGE.
#[tokio::test(start_paused = true)]
async fn a_request_over_the_services_limit_is_resource_exhausted() {
    let long = || EchoRequest { payload: vec![0; 4 * 1024 * 1024 + 1], ..says("") };
    let world = World::new(Echo::default()).await;
    let mut stub = world.stub();
    let mut refused = vec![stub.call(long()).await.unwrap_err(), stub.download(long()).await.unwrap_err()];
    for requests in [vec![long()], vec![says("a"), long()]] {
        refused.push(stub.upload(tokio_stream::iter(requests.clone())).await.unwrap_err());
        let mut replies = stub.chat(tokio_stream::iter(requests.clone())).await.unwrap().into_inner();
        for _ in 1..requests.len() {
            assert!(replies.message().await.unwrap().is_some(), "what came before is answered");
        }
        refused.push(replies.message().await.unwrap_err());
    }
    for status in refused {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().contains("the limit is: 4194304 bytes"), "{status:?}");
    }
    assert_eq!(stub.call(says("b")).await.unwrap().into_inner().message, "b", "on the same connection");
}

#[tokio::test(start_paused = true)]
async fn an_answer_over_the_clients_limit_is_resource_exhausted() {
    let half = || EchoRequest { payload: vec![1; 3_000_000], ..says("") };
    let world = World::new(Echo::default()).await;
    let check = |status: Status, length: &str| {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().contains(length) && status.message().contains("max_message"), "{status:?}");
        let error = chassis_grpc::error(&status).unwrap();
        assert_eq!((error.reason(), error.origin()), (Reason::TooLarge, Origin::Local));
        assert!(error.maybe_executed());
    };
    let halves = || tokio_stream::iter([half(), half()]);
    check(world.stub().upload(halves()).await.unwrap_err(), "a message of 60000");
    let small = || EchoClient::new(world.channel().max_message(1_000));
    check(small().call(half()).await.unwrap_err(), "limit of 1000");
    let mut replies = small().download(EchoRequest { repeat: 2, ..half() }).await.unwrap().into_inner();
    check(replies.message().await.unwrap_err(), "limit of 1000");
    let requests = tokio_stream::iter([says("a"), says("b"), half(), says("c")]);
    let mut replies = small().chat(requests).await.unwrap().into_inner();
    for message in ["a", "b"] {
        assert_eq!(replies.message().await.unwrap().unwrap().message, message, "what came before is read");
    }
    check(replies.message().await.unwrap_err(), "limit of 1000");
    assert!(replies.message().await.unwrap().is_none());

    let limit = 16 << 20;
    let mut stub = EchoClient::new(world.channel().max_message(limit)).max_decoding_message_size(limit);
    assert_eq!(stub.upload(halves()).await.unwrap().into_inner().payload.len(), 6_000_000);
    assert_eq!(world.server.drain(Duration::from_secs(5)).await, 0, "answers that were cut have ended");
}

#[tokio::test(start_paused = true)]
async fn a_message_too_long_to_be_written_is_resource_exhausted() {
    let world = World::new(Echo::default()).await;
    let mut stub = world.stub().max_encoding_message_size(100);
    let long = || EchoRequest { payload: vec![0; 101], ..says("") };
    let mut refused = vec![stub.call(long()).await.unwrap_err(), stub.download(long()).await.unwrap_err()];
    let (send, requests) = tokio::sync::mpsc::channel(1);
    let upload = stub.upload(tokio_stream::wrappers::ReceiverStream::new(requests));
    let sending = async {
        send.send(says("a")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        send.send(long()).await.unwrap();
    };
    refused.push(tokio::join!(upload, sending).0.unwrap_err());
    let (send, requests) = tokio::sync::mpsc::channel(1);
    let mut stub = world.stub().max_encoding_message_size(100);
    let mut replies =
        stub.chat(tokio_stream::wrappers::ReceiverStream::new(requests)).await.unwrap().into_inner();
    send.send(says("a")).await.unwrap();
    assert_eq!(replies.message().await.unwrap().unwrap().message, "a");
    send.send(long()).await.unwrap();
    refused.push(replies.message().await.unwrap_err());
    for status in refused {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        let error = chassis_grpc::error(&status).unwrap();
        assert_eq!((error.reason(), error.origin()), (Reason::TooLarge, Origin::Local));
        assert!(status.message().contains("encoded message length too large"), "{status:?}");
    }

    let world = World::of(
        GrpcServices::default().add(EchoServer::new(Echo::default()).max_encoding_message_size(100)),
    );
    let world = world.await;
    let mut stub = world.stub();
    let mut refused = vec![stub.call(long()).await.unwrap_err()];
    let mut replies = stub.chat(tokio_stream::once(long())).await.unwrap().into_inner();
    refused.push(replies.message().await.unwrap_err());
    for status in refused {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().contains("encoded message length too large"), "{status:?}");
    }
}

/// Tools leave such streams open for as long as they run.
#[tokio::test(start_paused = true)]
async fn open_streams_of_reflection_and_health_do_not_hold_up_a_stop() {
    let health = Health::default();
    let services = GrpcServices::default().reflection().unwrap().health(&health);
    let world = World::of(services).await;
    let (send, requests) = tokio::sync::mpsc::channel(1);
    let list = v1::server_reflection_request::MessageRequest::ListServices(String::new());
    send.send(v1::ServerReflectionRequest { message_request: Some(list), ..Default::default() })
        .await
        .unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut stub = v1::server_reflection_client::ServerReflectionClient::new(world.channel());
    let mut newer = stub.server_reflection_info(requests).await.unwrap().into_inner();
    assert!(newer.message().await.unwrap().is_some());
    let mut stub = v1alpha::server_reflection_client::ServerReflectionClient::new(world.channel());
    let mut older = stub.server_reflection_info(tokio_stream::pending()).await.unwrap().into_inner();
    let mut stub = HealthClient::new(world.channel());
    let mut watch = stub.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());

    let started = Instant::now();
    health.close();
    assert_eq!(world.server.drain(Duration::from_secs(25)).await, 0);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(newer.message().await.unwrap().is_none() && older.message().await.unwrap().is_none());
    assert!(watch.message().await.unwrap().is_none());
    drop(send);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_holds_at_both_ends() {
    let world = World::new(Echo::default()).await;
    let mut stub = world.stub();
    stub.call(says("connect")).await.unwrap();

    let mut request = Request::new(says(""));
    request.set_timeout(Duration::from_millis(100));
    let remaining = stub.call(request).await.unwrap().into_inner().remaining_ms;
    assert!((90..=100).contains(&remaining), "{remaining} ms");

    let mut request = Request::new(EchoRequest { delay_ms: 60_000, ..says("") });
    request.set_timeout(Duration::from_millis(100));
    let began = Instant::now();
    let status = stub.call(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(began.elapsed().as_millis(), 100);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_holds_to_the_end_of_a_stream() {
    let world = World::new(Echo::default()).await;
    let (send, requests) = tokio::sync::mpsc::channel(1);
    let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(requests));
    request.set_timeout(Duration::from_millis(100));
    let began = Instant::now();
    let mut replies = world.stub().chat(request).await.unwrap().into_inner();
    send.send(says("a")).await.unwrap();
    assert_eq!(replies.message().await.unwrap().unwrap().message, "a");
    assert_eq!(replies.message().await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(began.elapsed().as_millis(), 100);
    // The request stream is closed too: no reader is left.
    send.closed().await;
}

#[tokio::test(start_paused = true)]
async fn dropping_the_answer_ends_the_handlers_stream() {
    let world = World::new(Echo::default()).await;
    let (send, requests) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut replies = world.stub().chat(requests).await.unwrap().into_inner();
    send.send(says("a")).await.unwrap();
    replies.message().await.unwrap();
    drop(replies);
    send.closed().await;
    assert_eq!(world.server.drain(Duration::from_secs(60)).await, 0, "nothing is left in flight");
}

#[tokio::test(start_paused = true)]
async fn without_instances_a_call_is_unavailable() {
    let world = World::new(Echo::default()).await;
    world.server.drain(Duration::from_secs(1)).await;
    let status = world.stub().call(says("")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let error = chassis_grpc::error(&status).unwrap();
    assert!(!error.maybe_executed(), "{status:?}");

    let status = world.stub().call(Request::new(says("")).pin("track", "canary")).await.unwrap_err();
    let error = chassis_grpc::error(&status).unwrap();
    assert_eq!((status.code(), error.origin()), (Code::Unavailable, Origin::Local), "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_costs_one_call() {
    let world = World::new(Echo::default()).await;
    let mut stub = world.stub();
    stub.call(says("a")).await.unwrap();
    let status = stub.call(says("panic")).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    let error = chassis_grpc::error(&status).unwrap();
    assert_eq!(
        (error.reason(), error.origin(), error.maybe_executed()),
        (Reason::Panicked, Origin::Remote, true)
    );
    stub.call(says("b")).await.unwrap();
    assert_eq!(world.network.memory().connections("echo"), 1, "the connection is kept");
}

/// A service that is unavailable at every second call, beginning with the first.
fn every_other_time(calls: &Arc<AtomicU32>) -> Echo {
    let calls = calls.clone();
    let fails = move || calls.fetch_add(1, SeqCst).is_multiple_of(2).then(|| Status::unavailable("not now"));
    Echo { fails: Some(Arc::new(fails)), mirrors: true, ..Echo::default() }
}

#[tokio::test(start_paused = true)]
async fn what_is_idempotent_is_tried_again() {
    let calls = Arc::new(AtomicU32::new(0));
    let world = World::new(every_other_time(&calls)).await;
    let mut stub = world.stub();
    // Safe to repeat by its proto, then by the caller's option.
    for response in [stub.safe(says("a")).await, stub.call(Request::new(says("b")).idempotent()).await] {
        assert_eq!(response.unwrap().metadata().get("grpc-previous-rpc-attempts").unwrap(), "1");
    }
    assert_eq!(calls.load(SeqCst), 4);
    let status = stub.call(says("c")).await.unwrap_err();
    assert_eq!((status.code(), calls.swap(0, SeqCst)), (Code::Unavailable, 5));
    stub.safe(Request::new(says("d")).no_retry()).await.unwrap_err();
    assert_eq!(calls.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn pushback_is_obeyed() {
    let failed = AtomicBool::new(false);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let times = asked.clone();
    let fails = move || {
        times.lock().unwrap().push(Instant::now());
        let mut status = Status::unavailable("not now");
        status.metadata_mut().insert("grpc-retry-pushback-ms", "700".parse().unwrap());
        (!failed.swap(true, SeqCst)).then_some(status)
    };
    let world = World::new(Echo { fails: Some(Arc::new(fails)), ..Echo::default() }).await;
    world.stub().safe(says("")).await.unwrap();
    let asked = asked.lock().unwrap();
    assert!((asked[1] - asked[0]).as_millis() >= 700, "{:?}", asked[1] - asked[0]);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_method_is_unimplemented() {
    let world = World::new(Echo::default()).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(world.channel());
    assert_eq!(
        health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap_err().code(),
        Code::Unimplemented
    );
}

/// Three calls that wait for their answers while `odd` runs, and one that follows it.
async fn beside_neighbours<T>(world: &World, odd: impl Future<Output = T>) -> T {
    let neighbours: Vec<_> = (0..3)
        .map(|_| {
            let mut stub = world.stub();
            let slow = EchoRequest { delay_ms: 2_000, ..says("neighbour") };
            tokio::spawn(async move { stub.call(slow).await.unwrap().into_inner().message })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let came_of_it = odd.await;
    assert_eq!(world.stub().call(says("after")).await.unwrap().into_inner().message, "after");
    for neighbour in neighbours {
        assert_eq!(neighbour.await.unwrap(), "neighbour");
    }
    assert_eq!(world.network.memory().connections("echo"), 1);
    came_of_it
}

/// The code of a status arrives even if its message is very long, and no other call is affected.
#[tokio::test(start_paused = true)]
async fn a_long_message_is_cut_and_ends_no_other_call() {
    for letter in ["f", "\u{e9}", "\u{20ac} "] {
        for size in [7_000, 17_000, 70_000, 300_000] {
            let world = World::new(Echo::default()).await;
            let message = letter.repeat(size / letter.len());
            let fails = EchoRequest { fail_code: 9, fail_message: message.clone(), ..says("x") };
            let (mut unary, mut stream) = (world.stub(), world.stub());
            let found = beside_neighbours(&world, async {
                let unary = unary.call(fails.clone()).await.unwrap_err();
                let replies = stream.download(EchoRequest { repeat: 2, ..fails }).await.unwrap();
                let mut replies = replies.into_inner();
                assert!(replies.message().await.unwrap().is_some());
                assert!(replies.message().await.unwrap().is_some());
                [unary, replies.message().await.unwrap_err()]
            });
            for status in found.await {
                assert_eq!(status.code(), Code::FailedPrecondition, "{size} of {letter:?}");
                assert!(message.starts_with(status.message()), "cut between characters");
                assert!(status.message().len() >= 2_600, "{}", status.message().len());
            }
        }
    }
}

/// Details are one message, and a truncated one is useless.
#[tokio::test(start_paused = true)]
async fn large_details_go_before_the_code_does() {
    for (size, kept) in [(100, 100), (9_000, 0), (100_000, 0)] {
        let details = bytes::Bytes::from(vec![0; size]);
        let status = move || Some(Status::with_details(Code::Aborted, "lost a race", details.clone()));
        let world = World::new(Echo { fails: Some(Arc::new(status)), ..Echo::default() }).await;
        let status = world.stub().call(says("x")).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Aborted, "lost a race"));
        assert_eq!(status.details().len(), kept);
    }
}

/// A request with larger headers than a server accepts is refused as a gRPC status; no other call is
/// affected.
#[tokio::test(start_paused = true)]
async fn large_metadata_of_a_request_is_refused_alone() {
    for size in [17_000, 40_000, 60_000] {
        let world = World::new(Echo::default()).await;
        let mut request = Request::new(says("large"));
        request.metadata_mut().insert("x-large", "x".repeat(size).parse().unwrap());
        let mut stub = world.stub();
        let status = beside_neighbours(&world, stub.call(request)).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().contains("server.max_header_list"), "{status:?}");
    }
}

/// The same for an answer with larger headers than its caller accepts.
#[tokio::test(start_paused = true)]
async fn large_metadata_of_an_answer_fails_its_call_alone() {
    let world = World::new(Echo { mirrors: true, ..Echo::default() }).await;
    let mut request = Request::new(says("large"));
    for n in 0..15 {
        let name: tonic::metadata::AsciiMetadataKey = format!("x-{n}").parse().unwrap();
        request.metadata_mut().insert(name, "x".repeat(1_000).parse().unwrap());
    }
    let config = ClientConfig { max_header_list: "8KiB".parse().unwrap(), ..ClientConfig::default() };
    let transport = GrpcTransport::new(Arc::new(world.network.clone()), config);
    let channel = Channel::new("echo", pipeline::client(&world.client, "echo", &Arc::new(transport)));
    let mut stub = EchoClient::new(channel);
    let status = stub.call(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("client.max_header_list"), "{status:?}");
    assert_eq!(stub.call(says("after")).await.unwrap().into_inner().message, "after");
    assert_eq!(world.network.memory().connections("echo"), 1);
}

/// A client that reads the connection but never enlarges a stream's window of four messages. Each stream then
/// buffers another one: 12 MiB in total.
#[tokio::test(start_paused = true)]
async fn streams_that_are_not_read_hold_so_much_together() {
    const STREAMS: usize = 200;
    const MESSAGE: usize = 64 * 1024;
    /// One sixth of `server.send_buffer`.
    const WAITING: usize = 4 * 1024 * 1024;
    let echo = Echo::default();
    let asked = echo.asked.clone();
    let world = World::new(echo).await;
    let stream = world.network.connect("memory:echo").await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(4 * MESSAGE as u32).initial_connection_window_size(1 << 30);
    let (client, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
    tokio::spawn(connection);
    let download = async |payload: usize, repeat: u32| {
        let asks =
            EchoRequest { payload: vec![b'x'; payload], repeat, ..EchoRequest::default() }.encode_to_vec();
        let frame = [&[0][..], &(asks.len() as u32).to_be_bytes(), &asks].concat();
        let request = http::Request::post("http://echo/chassis.test.v1.Echo/Download");
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        let mut client = client.clone().ready().await.unwrap();
        let (answer, mut to) = client.send_request(request.body(()).unwrap(), false).unwrap();
        to.send_data(frame.into(), true).unwrap();
        answer.await.unwrap().into_body()
    };
    let mut bodies = Vec::new();
    for _ in 0..STREAMS {
        // Plus its frame, its tags and its length.
        bodies.push(download(MESSAGE - 11, 100).await);
    }
    let mut come = 0;
    for body in &mut bodies {
        while let Ok(data) = tokio::time::timeout(Duration::from_millis(10), body.data()).await {
            come += data.unwrap().unwrap().len();
        }
    }
    assert_eq!(come, STREAMS * 4 * MESSAGE);
    assert_eq!(asked.load(SeqCst) * MESSAGE - come, WAITING);
    // One of them is read to its end.
    let mut last = bodies.pop().unwrap();
    last.flow_control().release_capacity(4 * MESSAGE).unwrap();
    while let Some(data) = last.data().await {
        last.flow_control().release_capacity(data.unwrap().len()).unwrap();
    }
    assert_eq!(last.trailers().await.unwrap().unwrap()["grpc-status"], "0");
}
