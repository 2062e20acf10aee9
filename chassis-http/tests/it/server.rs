//! The accept loop: which connections it accepts, for how long, and how it drains.
use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use chassis_core::{Random, Reason, protocol::Leaf, tasks::Tasks};
use chassis_http::{
    ClientConfig, H1Leaf, H2Leaf, ServerConfig,
    connector::{Acceptor, Connector, Listener, Network, Peer, Stream},
    server::{Answer, Connected, Mux, Received, Server, ServerBody},
};
use http::{Request, Response};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use crate::support::{Client, SECOND, World, hello, silent};

fn h2(world: &World) -> Client<H2Leaf> {
    world.leaf(|link, connector, config| H2Leaf::new(link, connector, config, true), ClientConfig::default())
}

fn h1(world: &World) -> Client<H1Leaf> {
    world.leaf(H1Leaf::new, ClientConfig::default())
}

/// The answer to a peer that sends `words` and nothing more, and the seconds until it is closed.
async fn say(words: &[u8]) -> (String, u64) {
    let world = World::new();
    let server = world.serve(ServerConfig::default(), hello());
    let mut stream = world.raw().await;
    stream.write_all(words).await.unwrap();
    let (begun, mut received) = (Instant::now(), Vec::new());
    timeout(600 * SECOND, stream.read_to_end(&mut received)).await.expect("the connection ends").unwrap();
    let seconds = begun.elapsed().as_secs();
    // The peer is still connected, and has a second to read the end.
    sleep(2 * SECOND).await;
    assert_eq!(server.connections(), 0);
    assert_eq!(h1(&world).get("/alive").await.unwrap(), "200 alive");
    (String::from_utf8_lossy(&received).into_owned(), seconds)
}

#[tokio::test(start_paused = true)]
async fn slow_and_silent_peers_are_hung_up_on() {
    assert_eq!(say(b"").await, (String::new(), 10));
    assert_eq!(say(b"PRI * HTTP/2").await, (String::new(), 10));
    assert_eq!(say(b"GET / HTTP/1.1\r\nx-slow: ").await, (String::new(), 10));
    let (_, seconds) = say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!((20..=90).contains(&seconds), "{seconds}");
}

/// One byte each second of a frame that has begun: before, the connection was closed only after 75 seconds.
#[tokio::test(start_paused = true)]
async fn a_frame_that_comes_byte_by_byte_is_hung_up_on() {
    let opening = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, b"")].concat();
    for (kind, flags, id) in [(HEADERS, END_HEADERS, 1), (PING, 0, 0), (SETTINGS, 0, 0), (0x42, 0, 0)] {
        let world = World::new();
        let server = world.serve(ServerConfig::default(), hello());
        let mut stream = world.raw().await;
        stream.write_all(&opening).await.unwrap();
        sleep(3 * SECOND).await;
        let begun = Instant::now();
        for byte in frame(kind, flags, id, &[0; 200]) {
            if stream.write_all(&[byte]).await.is_err() || server.connections() == 0 {
                break;
            }
            sleep(SECOND).await;
        }
        let seconds = begun.elapsed().as_secs();
        assert!((9..=14).contains(&seconds), "frame {kind}: {seconds}");
    }
}

/// A request's body may arrive slowly, also within one frame.
#[tokio::test(start_paused = true)]
async fn a_body_may_come_byte_by_byte() {
    let world = World::new();
    let _server =
        world.serve(ServerConfig::default(), crate::support::echo(|_, body| format!("{}", body.len())));
    let mut stream = raw_h2(&world).await;
    stream.write_all(&frame(HEADERS, END_HEADERS, 1, &HEAD)).await.unwrap();
    for byte in frame(DATA, END_STREAM, 1, &[7; 100]) {
        stream.write_all(&[byte]).await.unwrap();
        sleep(SECOND).await;
    }
    until(&mut stream, DATA, 1).await;
}

#[tokio::test(start_paused = true)]
async fn garbage_is_told_so() {
    for garbage in
        [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"hello\r\n\r\n", b"\0\0\0\0\0\0\0\0\r\n\r\n"]
    {
        let (received, seconds) = say(garbage).await;
        assert!(received.starts_with("HTTP/1.1 400 Bad Request"), "{received}");
        assert_eq!(seconds, 0);
    }
    let (_, seconds) = say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nthis is no frame, and no other would be").await;
    assert_eq!(seconds, 0);
}

#[tokio::test(start_paused = true)]
async fn headers_over_the_limit_are_told_431() {
    let large = format!("GET / HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n\r\n", "x".repeat(20_000));
    assert!(say(large.as_bytes()).await.0.starts_with("HTTP/1.1 431"));
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "x-many: 1\r\n".repeat(101));
    assert!(say(many.as_bytes()).await.0.starts_with("HTTP/1.1 431"));
    let world = World::new();
    let _server = world.serve(ServerConfig::default(), hello());
    let client = h2(&world).ready().await;
    let mut call = crate::support::call(http::Method::GET, "/x", chassis_core::Body::empty());
    call.metadata.insert("x-large", "x".repeat(20_000).parse().unwrap());
    let received = crate::support::read(client.leaf.call(call).await.unwrap()).await.unwrap();
    assert!(received.starts_with("431 {"), "{received}");
    let with = async |fields: usize, name: fn(usize) -> String| {
        let mut call = crate::support::call(http::Method::GET, "/x", chassis_core::Body::empty());
        for n in 0..fields {
            call.metadata.append(http::HeaderName::try_from(name(n)).unwrap(), "1".parse().unwrap());
        }
        crate::support::read(client.leaf.call(call).await.unwrap()).await.unwrap()
    };
    for name in [|_| "x-many".to_owned(), |n| format!("x-many-{n}"), |_| "cookie".to_owned()] {
        assert_eq!(with(100, name).await, "200 x");
        let received = with(101, name).await;
        assert!(
            received.starts_with("431 ") && received.contains("has 101 header fields, and may have 100"),
            "{received}"
        );
    }
    assert_eq!(client.get("/x").await.unwrap(), "200 x");
}

#[tokio::test(start_paused = true)]
async fn a_kept_connection_may_be_idle_for_longer_than_a_head_may_take() {
    let world = World::new();
    let server = world.serve(ServerConfig::default(), hello());
    let mut stream = world.raw().await;
    for _ in 0..3 {
        stream.write_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let n = stream.read(&mut [0; 1024]).await.unwrap();
        assert!(n > 10);
        sleep(60 * SECOND).await;
        assert_eq!(server.connections(), 1);
    }
    sleep(30 * SECOND).await;
    assert_eq!(server.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_server_says_so() {
    let world = World::new();
    let config = ServerConfig { max_connections: 2.try_into().unwrap(), ..ServerConfig::default() };
    let _server = world.serve(config, hello());
    let (one, _two) = (world.raw().await, world.raw().await);
    tokio::task::yield_now().await;
    let error = h1(&world).get("/x").await.unwrap();
    assert_eq!(error, "503 ");
    let refused = h2(&world);
    refused.leaf.wake();
    refused.until(chassis_core::Connection::TransientFailure).await;
    drop(one);
    refused.until(chassis_core::Connection::Ready).await;
    assert_eq!(refused.get("/x").await.unwrap(), "200 x");
}

#[tokio::test(start_paused = true)]
async fn a_full_server_closes_the_oldest_connection_without_a_request() {
    let world = World::new();
    let config = ServerConfig { max_connections: 3.try_into().unwrap(), ..ServerConfig::default() };
    let server = Server::new(config, &world.tasks, Random::seeded(1)).evict_idle();
    let listener = world.network.bind("memory:stock").await.unwrap();
    let service = |request: Request<Received>| -> Answer {
        match request.uri().path() {
            "/never" => Box::pin(std::future::pending()),
            _ => Box::pin(async { Response::new(ServerBody::from("well")) }),
        }
    };
    server.serve("admin", listener, Mux { http: Some(Arc::new(service)), ..Mux::default() }, None);
    let mut busy = world.raw().await;
    busy.write_all(b"GET /never HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut slow = world.raw().await;
    slow.write_all(b"GET /x HT").await.unwrap();
    let mut silent = world.raw().await;
    sleep(SECOND / 10).await;
    assert_eq!(server.connections(), 3);
    assert_eq!(h1(&world).get("/x").await.unwrap(), "200 well");
    assert_eq!(slow.read(&mut [0; 8]).await.unwrap(), 0, "the oldest one without a request is closed");
    // A thousand more do not keep a request out, and do not add up.
    let mut all = Vec::new();
    for _ in 0..1_000 {
        all.push(world.raw().await);
        tokio::task::yield_now().await;
    }
    assert_eq!(h1(&world).get("/x").await.unwrap(), "200 well");
    assert_eq!(silent.read(&mut [0; 8]).await.unwrap(), 0);
    sleep(SECOND / 10).await;
    assert!(server.connections() <= 3, "{}", server.connections());
    let mut byte = [0; 1];
    assert!(timeout(SECOND / 10, busy.read(&mut byte)).await.is_err(), "a connection with a request is kept");
}

#[tokio::test(start_paused = true)]
async fn a_server_of_requests_that_all_wait_is_full() {
    let world = World::new();
    let config = ServerConfig { max_connections: 1.try_into().unwrap(), ..ServerConfig::default() };
    let server = Server::new(config, &world.tasks, Random::seeded(1)).evict_idle();
    let listener = world.network.bind("memory:stock").await.unwrap();
    server.serve("admin", listener, Mux { http: Some(Arc::new(silent())), ..Mux::default() }, None);
    let mut busy = world.raw().await;
    busy.write_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    sleep(SECOND / 10).await;
    assert_eq!(h1(&world).get("/x").await.unwrap(), "503 ");
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_told_500_and_the_connection_kept() {
    let world = World::new();
    let service = |request: Request<Received>| -> Answer {
        match request.uri().path() {
            "/at-once" => panic!("at once"),
            "/later" => Box::pin(async { panic!("later") }),
            _ => Box::pin(async { Response::new(ServerBody::from("well")) }),
        }
    };
    let _server = world.serve(ServerConfig::default(), service);
    let client = h2(&world).ready().await;
    for path in ["/at-once", "/later"] {
        assert!(client.get(path).await.unwrap().starts_with("500 {"));
        assert_eq!(client.get("/x").await.unwrap(), "200 well");
    }
    assert_eq!(world.memory.connections("stock"), 1);
    let client = h1(&world).ready().await;
    for path in ["/at-once", "/later"] {
        assert!(client.get(path).await.unwrap().starts_with("500 {"));
        assert_eq!(client.get("/x").await.unwrap(), "200 well");
    }
    assert_eq!(world.memory.connections("stock"), 2);
}

/// Panics when it is polled for the first time.
struct Bomb;

impl http_body::Body for Bomb {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
        panic!("as asked for")
    }
}

/// hyper holds the head back until it has polled the body: no byte was sent.
#[tokio::test(start_paused = true)]
async fn a_body_that_panics_at_once_is_told_500() {
    let world = World::new();
    let service =
        |_: Request<Received>| -> Answer { Box::pin(async { Response::new(ServerBody::new(Bomb)) }) };
    let _server = world.serve(ServerConfig::default(), service);
    let client = h1(&world).ready().await;
    assert!(client.get("/x").await.unwrap().starts_with("500 {"));
    // Over HTTP/2 the head was sent, and the stream is reset.
    let client = h2(&world).ready().await;
    assert_eq!(client.get("/x").await.unwrap_err().reason(), Reason::Internal);
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_calls_finish_and_closes_the_rest_at_once() {
    let world = World::new();
    let service = |_: Request<Received>| -> Answer {
        Box::pin(async {
            sleep(3 * SECOND).await;
            Response::new(ServerBody::from("done"))
        })
    };
    let server = Arc::new(world.serve(ServerConfig::default(), service));
    let (one, two) = (Arc::new(h1(&world).ready().await), Arc::new(h2(&world).ready().await));
    let idle = h2(&world).ready().await;
    let _silent = world.raw().await;
    let mut begun_head = world.raw().await;
    begun_head.write_all(b"GET / HT").await.unwrap();
    let calls =
        [tokio::spawn(async move { one.get("/x").await }), tokio::spawn(async move { two.get("/x").await })];
    sleep(SECOND).await;
    assert_eq!(server.connections(), 5);
    let (begun, draining) = (Instant::now(), server.clone());
    let drain = tokio::spawn(async move { draining.drain(60 * SECOND).await });
    sleep(SECOND + SECOND / 2).await;
    assert_eq!(server.connections(), 2);
    let refused = world.network.connect("memory:stock").await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(drain.await.unwrap(), 0);
    assert!(begun.elapsed() < 4 * SECOND, "{:?}", begun.elapsed());
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), "200 done");
    }
    drop(idle);
}

/// Over HTTP/1.1 a client may send a request at the moment at which the server begins to drain. It is answered, and the answer
/// says that it is the last one; an idle connection is closed a moment later.
#[tokio::test(start_paused = true)]
async fn a_request_on_its_way_to_a_draining_server_is_answered() {
    let world = World::new();
    let server = Arc::new(world.serve(ServerConfig::default(), hello()));
    let (mut used, mut idle) = (world.raw().await, world.raw().await);
    let mut buffer = [0; 1024];
    for connection in [&mut used, &mut idle] {
        connection.write_all(b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let read = connection.read(&mut buffer).await.unwrap();
        assert!(!String::from_utf8_lossy(&buffer[..read]).contains("connection: close"));
    }
    let (begun, draining) = (Instant::now(), server.clone());
    let drain = tokio::spawn(async move { draining.drain(5 * SECOND).await });
    sleep(SECOND / 10).await;
    used.write_all(b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    used.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("connection: close\r\n"),
        "{answer}"
    );
    assert_eq!(begun.elapsed(), SECOND / 10);
    assert_eq!(idle.read(&mut buffer).await.unwrap(), 0);
    assert!(begun.elapsed() < SECOND / 2, "{:?}", begun.elapsed());
    drop((used, idle));
    assert_eq!(drain.await.unwrap(), 0);
    assert!(begun.elapsed() < SECOND, "{:?}", begun.elapsed());
}

/// A client's pool opens connections before it uses them, and a handshake of TLS may take a while. The first request is
/// answered like any other, and a connection without one holds the drain no longer than an idle one.
#[tokio::test(start_paused = true)]
async fn the_first_request_of_a_connection_to_a_draining_server_is_answered() {
    struct Slow;

    #[async_trait]
    impl Acceptor for Slow {
        async fn accept(&self, stream: Stream) -> io::Result<Stream> {
            sleep(SECOND / 5).await;
            Ok(stream)
        }
    }

    for acceptor in [None, Some(Arc::new(Slow) as Arc<dyn Acceptor>)] {
        let world = World::new();
        let server = Server::new(ServerConfig::default(), &world.tasks, world.random.clone());
        let listener = Box::new(world.memory.listen("stock").unwrap());
        let mux = Mux { http: Some(Arc::new(hello())), grpc: None };
        server.serve("http", listener, mux, acceptor);
        let server = Arc::new(server);
        let (mut new, mut unused) = (world.raw().await, world.raw().await);
        tokio::task::yield_now().await;
        assert_eq!(server.connections(), 2);
        let (begun, draining) = (Instant::now(), server.clone());
        let drain = tokio::spawn(async move { draining.drain(5 * SECOND).await });
        sleep(SECOND / 10).await;
        new.write_all(b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        new.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("connection: close\r\n"),
            "{answer}"
        );
        assert!(begun.elapsed() <= SECOND / 4, "{:?}", begun.elapsed());
        assert_eq!(unused.read(&mut [0; 1]).await.unwrap(), 0);
        assert_eq!(begun.elapsed(), SECOND / 4);
        drop((new, unused));
        assert_eq!(drain.await.unwrap(), 0);
        assert!(begun.elapsed() < SECOND, "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_though_a_call_does_not() {
    let world = World::new();
    let server = world.serve(ServerConfig::default(), silent());
    let (one, two) = (h1(&world).ready().await, h2(&world).ready().await);
    let calls = [
        tokio::spawn(async move { one.post("/x", "once").await }),
        tokio::spawn(async move { two.post("/x", "once").await }),
    ];
    sleep(SECOND).await;
    let begun = Instant::now();
    assert_eq!(server.drain(5 * SECOND).await, 2);
    assert_eq!(begun.elapsed().as_secs(), 5);
    for call in calls {
        let error = call.await.unwrap().unwrap_err();
        assert_eq!((error.reason(), error.maybe_executed()), (Reason::ConnectionLost, true));
    }
    assert_eq!(server.connections(), 0);
}

/// Fails for the first attempts, then works.
struct Failing {
    failures: usize,
    asked: Arc<AtomicUsize>,
    kind: io::ErrorKind,
    inner: Box<dyn Listener>,
}

#[async_trait]
impl Listener for Failing {
    async fn accept(&mut self) -> io::Result<Stream> {
        self.asked.fetch_add(1, SeqCst);
        if self.failures > 0 {
            self.failures -= 1;
            return Err(self.kind.into());
        }
        self.inner.accept().await
    }

    fn address(&self) -> String {
        self.inner.address()
    }
}

/// The time until a listener that fails ten times serves a connection.
async fn failing(kind: io::ErrorKind) -> Duration {
    let world = World::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let inner = Box::new(world.memory.listen("stock").unwrap());
    let listener = Failing { failures: 10, asked: asked.clone(), kind, inner };
    let server = Server::new(ServerConfig::default(), &world.tasks, world.random.clone());
    server.serve("http", Box::new(listener), Mux { http: Some(Arc::new(hello())), grpc: None }, None);
    let begun = Instant::now();
    assert_eq!(h1(&world).get("/x").await.unwrap(), "200 x");
    assert!((11..=12).contains(&asked.load(SeqCst)));
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn accept_backs_off_when_it_keeps_failing() {
    let out_of_files = failing(io::ErrorKind::Other).await;
    assert!((SECOND..6 * SECOND).contains(&out_of_files), "{out_of_files:?}");
    assert_eq!(failing(io::ErrorKind::ConnectionAborted).await, Duration::ZERO);
}

/// A handshake that some peers never finish, and that others fail.
struct Handshake;

#[async_trait]
impl Acceptor for Handshake {
    async fn accept(&self, mut stream: Stream) -> io::Result<Stream> {
        match stream.read_u8().await? {
            b'+' => Ok(stream),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_comes_first_and_is_bounded() {
    let world = World::new();
    let server = Server::new(ServerConfig::default(), &world.tasks, world.random.clone());
    let listener = Box::new(world.memory.listen("stock").unwrap());
    let mux = Mux { http: Some(Arc::new(hello())), grpc: None };
    server.serve("http", listener, mux, Some(Arc::new(Handshake)));
    let received = async |words: &[u8]| {
        let (mut stream, begun, mut received) = (world.raw().await, Instant::now(), String::new());
        stream.write_all(words).await.unwrap();
        stream.read_to_string(&mut received).await.unwrap();
        (received, begun.elapsed().as_secs())
    };
    assert_eq!(received(b"").await, (String::new(), 5));
    assert_eq!(received(b"-").await, (String::new(), 0));
    assert!(received(b"+GET /x HTTP/1.0\r\n\r\n").await.0.starts_with("HTTP/1.0 200 OK"));
}

#[tokio::test]
async fn grpc_and_rest_share_a_port() {
    let tasks = Tasks::new();
    let named = |name: &'static str| {
        move |request: Request<Received>| -> Answer {
            let at: &Connected = request.extensions().get().unwrap();
            let text = format!("{name} at {} from {}", at.port(), at.peer().ip().unwrap());
            Box::pin(std::future::ready(Response::new(ServerBody::from(text))))
        }
    };
    let network = Network::default();
    let server = Server::new(ServerConfig::default(), &tasks, Random::seeded(1));
    let listener = network.bind("127.0.0.1:0").await.unwrap();
    let address = listener.address();
    let mux = Mux { grpc: Some(Arc::new(named("gRPC"))), http: Some(Arc::new(named("REST"))) };
    server.serve("both", listener, mux, None);
    let listener = network.bind("127.0.0.1:0").await.unwrap();
    let only_grpc = listener.address();
    server.serve("grpc", listener, Mux { grpc: Some(Arc::new(named("gRPC"))), http: None }, None);
    let ask = async |address: &str, kind: &str| {
        let mut stream = network.connect(address).await.unwrap();
        let head = format!("POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {kind}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut received = String::new();
        stream.read_to_string(&mut received).await.unwrap();
        received
    };
    assert!(ask(&address, "application/grpc+proto").await.ends_with("gRPC at both from 127.0.0.1"));
    assert!(ask(&address, "application/json").await.ends_with("REST at both from 127.0.0.1"));
    assert!(ask(&only_grpc, "application/json").await.starts_with("HTTP/1.1 415"));
    assert_eq!(server.drain(5 * SECOND).await, 0);
}

#[tokio::test]
async fn a_stuck_stream_over_tcp_does_not_hold_the_drain() {
    let tasks = Tasks::new();
    let network = Network::default();
    let server = Server::new(ServerConfig::default(), &tasks, Random::seeded(1));
    let listener = network.bind("127.0.0.1:0").await.unwrap();
    let address = listener.address();
    let reached = Arc::new(tokio::sync::Notify::new());
    let reach = reached.clone();
    let stuck = move |_: Request<Received>| -> Answer {
        reach.notify_one();
        Box::pin(std::future::pending())
    };
    server.serve("http", listener, Mux { http: Some(Arc::new(stuck)), grpc: None }, None);
    let mut stream = network.connect(&address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    reached.notified().await;
    assert_eq!(server.drain(Duration::from_millis(100)).await, 1);
    assert!(network.connect(&address).await.is_err());
}

fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0, 0, payload.len() as u8, kind, flags];
    frame.extend(id.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A connection for hand-written frames.
async fn raw_h2(world: &World) -> Stream {
    let mut stream = world.raw().await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, b"")).await.unwrap();
    stream
}

/// Reads until a frame of this kind arrives on stream `id`. GOAWAY arrives early.
async fn until(stream: &mut Stream, kind: u8, id: u32) {
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).await.unwrap();
        let length = usize::from(header[1]) << 8 | usize::from(header[2]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.unwrap();
        assert_ne!(header[3], GOAWAY, "before stream {id}: {}", String::from_utf8_lossy(&payload));
        if header[3] == kind && header[5..] == id.to_be_bytes() {
            return;
        }
    }
}

/// POST, http, / of the static table.
const HEAD: [u8; 3] = [0x83, 0x86, 0x84];
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// An overloaded server refuses calls before their messages have arrived. After about 1,070 of these, h2 closed
/// the connection with all other calls (`too_many_internal_resets`).
#[tokio::test]
async fn refusing_before_the_message_came_does_not_wear_out_the_connection() {
    let world = World::new();
    let refuse = |_: Request<Received>| -> Answer { Box::pin(async { Response::new(ServerBody::empty()) }) };
    let _server = world.serve(ServerConfig::default(), refuse);
    let mut stream = raw_h2(&world).await;
    for call in 0..1_500 {
        let id = 2 * call + 1;
        stream.write_all(&frame(HEADERS, END_HEADERS, id, &HEAD)).await.unwrap();
        until(&mut stream, HEADERS, id).await;
        stream.write_all(&frame(DATA, END_STREAM, id, b"x")).await.unwrap();
    }
}

/// A client whose calls all timed out while the server was busy. From the twenty-first on, h2 treated it as an
/// attack.
#[tokio::test]
async fn giving_up_on_many_calls_at_once_does_not_cost_the_connection() {
    let world = World::new();
    let _server = world.serve(ServerConfig::default(), silent());
    let mut stream = raw_h2(&world).await;
    until(&mut stream, SETTINGS, 0).await;
    let given_up = |id: u32| {
        let cancel = 8u32.to_be_bytes();
        [frame(HEADERS, END_HEADERS, id, &HEAD), frame(RESET, 0, id, &cancel)].concat()
    };
    let mut all: Vec<u8> = (0..250).flat_map(|call| given_up(2 * call + 1)).collect();
    all.extend(frame(PING, 0, 0, b"are you?"));
    stream.write_all(&all).await.unwrap();
    until(&mut stream, PING, 0).await;
}

/// A peer that has already sent much data: each read contains one frame.
struct Flood {
    frames: VecDeque<Vec<u8>>,
    begun: Arc<AtomicUsize>,
    /// Receives the number of unread frames at the first write after a call has begun.
    unread: Option<oneshot::Sender<usize>>,
}

impl AsyncRead for Flood {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(frame) = self.frames.pop_front() else { return Poll::Pending };
        to.put_slice(&frame);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Flood {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.begun.load(SeqCst) > 0
            && let Some(unread) = self.unread.take()
        {
            let _ = unread.send(self.frames.len());
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct Only(Option<Stream>);

#[async_trait]
impl Listener for Only {
    async fn accept(&mut self) -> io::Result<Stream> {
        match self.0.take() {
            Some(stream) => Ok(stream),
            None => std::future::pending().await,
        }
    }

    fn address(&self) -> String {
        String::from("nowhere")
    }
}

/// h2 writes only when there is nothing more to read: a busy connection read everything that its peer had sent
/// before the first answer, and both ends waited for each other.
#[tokio::test]
async fn answers_go_out_while_more_calls_come_in() {
    let (world, begun) = (World::new(), Arc::new(AtomicUsize::new(0)));
    let calls = begun.clone();
    let answer = move |_: Request<Received>| -> Answer {
        calls.fetch_add(1, SeqCst);
        Box::pin(async { Response::new(ServerBody::empty()) })
    };
    let head = |call: u32| frame(HEADERS, END_HEADERS | END_STREAM, 2 * call + 1, &HEAD);
    let opening = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, b"")];
    let (report, unread) = oneshot::channel();
    let frames = opening.into_iter().chain((0..200).map(head)).collect();
    let flood = Flood { frames, begun, unread: Some(report) };
    let server = Server::new(ServerConfig::default(), &world.tasks, world.random.clone());
    let mux = Mux { http: Some(Arc::new(answer)), grpc: None };
    server.serve("http", Box::new(Only(Some(Stream::new(flood, Peer::Unix)))), mux, None);
    assert!(unread.await.unwrap() > 100);
}
