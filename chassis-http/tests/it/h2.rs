//! HTTP/2 connections: their states, their streams, and the information about calls when they end.
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use chassis_core::{
    Body, Connection, Error, Link, Reason, Reply,
    protocol::Leaf,
    units::{PositiveSpan, Ratio, Span},
};
use chassis_http::{
    ClientConfig, H2Leaf, ServerConfig,
    connector::{Fate, Listener, Stream},
    server::{Answer, Mux, Received, Server, ServerBody},
};
use http::{Method, Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
    time::{Instant, sleep},
};

use crate::support::{Client, SECOND, World, call, echo, hello, read, silent};

const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

fn leaf(world: &World, config: ClientConfig) -> Client<H2Leaf> {
    world.leaf(|link, connector, config| H2Leaf::new(link, connector, config, true), config)
}

fn goaway(last: u8, code: u8) -> [u8; 17] {
    [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, last, 0, 0, 0, code]
}

/// Reads until the client has sent the head of its first request.
async fn read_head(stream: &mut Stream) {
    let mut seen = [0; 24];
    stream.read_exact(&mut seen).await.unwrap();
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).await.unwrap();
        let length = usize::from(header[1]) << 8 | usize::from(header[2]);
        stream.read_exact(&mut vec![0; length]).await.unwrap();
        if header[3] == 1 {
            return;
        }
    }
}

/// The result of a call whose server sends `words` after it has received the head, and then closes if
/// `hang_up`.
async fn answer_with(words: Vec<u8>, hang_up: bool) -> Error {
    let world = World::new();
    let mut listener = world.memory.listen("stock").unwrap();
    world.tasks.spawn(async move {
        let mut stream = listener.accept().await.unwrap();
        stream.write_all(&SETTINGS).await.unwrap();
        read_head(&mut stream).await;
        stream.write_all(&words).await.unwrap();
        if !hang_up {
            std::future::pending::<()>().await;
        }
    });
    let client = leaf(&world, ClientConfig::default()).ready().await;
    client.post("/order", "one").await.unwrap_err().into()
}

#[tokio::test(start_paused = true)]
async fn serves_calls_once_ready() {
    let world = World::new();
    let _server = world.serve(ServerConfig::default(), hello());
    let client = leaf(&world, ClientConfig::default());
    assert_eq!(client.link.connection(), Connection::Idle);
    let mut early = client.get("/early").await.unwrap_err();
    assert_eq!((early.reason(), early.maybe_executed()), (Reason::ConnectFailed, false));
    let back = early.take_unsent().expect("it never left");
    let client = client.ready().await;
    assert_eq!(read(client.leaf.call(back).await.unwrap()).await.unwrap(), "200 early");
    assert_eq!(client.get("/again").await.unwrap(), "200 again");
    assert_eq!(world.memory.connections("stock"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_stream_was_not_executed() {
    let refused = [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 7].to_vec();
    let error = answer_with(refused, false).await;
    assert_eq!((error.reason(), error.maybe_executed()), (Reason::StreamRefused, false));
    let cancelled = [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 2].to_vec();
    let error = answer_with(cancelled, false).await;
    assert_eq!((error.reason(), error.maybe_executed()), (Reason::Internal, true));
}

#[tokio::test(start_paused = true)]
async fn a_stream_above_the_last_of_a_goaway_was_not_executed() {
    for code in [0, 11] {
        let error = answer_with(goaway(0, code).to_vec(), true).await;
        assert_eq!((error.reason(), error.maybe_executed()), (Reason::StreamRefused, false), "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_below_the_last_of_a_goaway_may_have_been_executed() {
    for code in [0, 2] {
        let error = answer_with(goaway(1, code).to_vec(), true).await;
        assert_eq!((error.reason(), error.maybe_executed()), (Reason::ConnectionLost, true), "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_breaks_the_rules_is_told_apart() {
    let data_on_stream_0 = [0, 0, 1, 0, 0, 0, 0, 0, 0, 9].to_vec();
    let error = answer_with(data_on_stream_0, false).await;
    assert_eq!((error.reason(), error.maybe_executed()), (Reason::Malformed, true));
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_is_replaced_while_a_long_call_goes_on() {
    let world = World::new();
    let config = ServerConfig {
        max_age: Span(10 * SECOND),
        max_age_jitter: Ratio::percent(0),
        max_age_grace: Span(5 * SECOND),
        ..ServerConfig::default()
    };
    let service = |request: Request<Received>| -> Answer {
        Box::pin(async move {
            if request.uri().path() == "/long" {
                sleep(14 * SECOND).await;
            }
            Response::new(ServerBody::from("done"))
        })
    };
    let server = world.serve(config, service);
    let client = Arc::new(leaf(&world, ClientConfig::default()).ready().await);
    client.get("/first").await.unwrap();
    let long = tokio::spawn({
        let client = client.clone();
        async move { client.get("/long").await }
    });
    let mut refused = 0;
    for _ in 0..130 {
        sleep(SECOND / 10).await;
        match client.get("/short").await {
            Ok(answer) => assert_eq!(answer, "200 done"),
            // The call was in transmission when the server sent GOAWAY: it was not executed, and may be resent.
            Err(error) => {
                assert!(error.unsent(), "{error:?}");
                refused += 1;
            }
        }
    }
    assert!(refused <= 1, "{refused}");
    assert_eq!(server.connections(), 2);
    assert_eq!(long.await.unwrap().unwrap(), "200 done");
    assert_eq!(world.memory.connections("stock"), 2);
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_is_cut_after_the_grace() {
    let world = World::new();
    let config = ServerConfig {
        max_age: Span(10 * SECOND),
        max_age_grace: Span(5 * SECOND),
        ..ServerConfig::default()
    };
    let _server = world.serve(config, silent());
    let client = leaf(&world, ClientConfig::default()).ready().await;
    let begun = Instant::now();
    let error = client.post("/order", "one").await.unwrap_err();
    assert_eq!((error.reason(), error.maybe_executed()), (Reason::ConnectionLost, true));
    assert!((14..=17).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn fails_at_once_and_recovers_by_itself() {
    let world = World::new();
    let client = leaf(&world, ClientConfig::default());
    client.leaf.wake();
    client.until(Connection::TransientFailure).await;
    let begun = Instant::now();
    let mut error = client.get("/x").await.unwrap_err();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!((error.reason(), error.maybe_executed()), (Reason::ConnectFailed, false));
    assert!(error.take_unsent().is_some());
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(why, "no listener there");
    let _server = world.serve(ServerConfig::default(), hello());
    client.until(Connection::Ready).await;
    assert_eq!(client.get("/x").await.unwrap(), "200 x");
}

#[tokio::test(start_paused = true)]
async fn comes_back_quickly_after_a_restart() {
    let world = World::new();
    let server = world.serve(ServerConfig::default(), hello());
    let client = leaf(&world, ClientConfig::default()).ready().await;
    client.get("/x").await.unwrap();
    server.drain(Duration::ZERO).await;
    let _server = world.serve(ServerConfig::default(), hello());
    let begun = Instant::now();
    client.until(Connection::Connecting).await;
    client.until(Connection::Ready).await;
    assert!(begun.elapsed() <= SECOND / 10, "{:?}", begun.elapsed());
    assert_eq!(client.get("/x").await.unwrap(), "200 x");
}

#[tokio::test]
async fn speaks_over_tcp_and_unix_sockets() {
    let folder = tempfile::tempdir().unwrap();
    for address in [String::from("127.0.0.1:0"), format!("unix:{}", folder.path().join("s").display())] {
        let world = World::new();
        let server = Server::new(ServerConfig::default(), &world.tasks, world.random.clone());
        let listener = world.network.bind(&address).await.unwrap();
        let link = Link::detached("stock", &listener.address(), world.tasks.clone(), world.random.clone());
        server.serve("http", listener, Mux { http: Some(Arc::new(hello())), grpc: None }, None);
        let connector = Arc::new(world.network.clone());
        let leaf = H2Leaf::new(link.clone(), connector, ClientConfig::default(), true);
        let client = Client { leaf, link }.ready().await;
        for _ in 0..100 {
            assert_eq!(client.get("/x").await.unwrap(), "200 x");
        }
        client.leaf.close();
        assert_eq!(server.drain(10 * SECOND).await, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn backs_off_from_an_endpoint_that_refuses() {
    let world = World::new();
    let client = leaf(&world, ClientConfig::default());
    client.leaf.wake();
    sleep(300 * SECOND).await;
    let tries = world.memory.connections("stock");
    assert!((11..=15).contains(&tries), "{tries}");
    assert_eq!(client.link.connection(), Connection::TransientFailure);
}

#[tokio::test(start_paused = true)]
async fn backs_off_from_an_endpoint_that_flaps() {
    let world = World::new();
    let mut listener = world.memory.listen("stock").unwrap();
    world.tasks.spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            stream.write_all(&SETTINGS).await.unwrap();
        }
    });
    let client = leaf(&world, ClientConfig::default());
    client.leaf.wake();
    sleep(300 * SECOND).await;
    let tries = world.memory.connections("stock");
    assert!(tries <= 15, "{tries}");
}

#[tokio::test(start_paused = true)]
async fn gives_up_connecting_in_time() {
    let world = World::new();
    world.memory.faults("stock", |_| Fate::Hang);
    let client = leaf(&world, ClientConfig::default());
    let begun = Instant::now();
    client.leaf.wake();
    client.until(Connection::TransientFailure).await;
    assert_eq!(begun.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_says_nothing_is_not_connected_to() {
    let world = World::new();
    let _listener = world.memory.listen("stock").unwrap();
    let client = leaf(&world, ClientConfig::default());
    let begun = Instant::now();
    client.leaf.wake();
    client.until(Connection::TransientFailure).await;
    assert_eq!(begun.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn names_a_listener_of_another_kind() {
    let world = World::new();
    let mut listener = world.memory.listen("stock").unwrap();
    world.tasks.spawn(async move {
        let mut stream = listener.accept().await.unwrap();
        stream.write_all(b"220 mail.example.org ESMTP\r\n").await.unwrap();
        std::future::pending::<()>().await;
    });
    let client = leaf(&world, ClientConfig::default());
    client.leaf.wake();
    client.until(Connection::TransientFailure).await;
    let error = client.get("/x").await.unwrap_err();
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(why, "the endpoint does not speak HTTP/2");
}

/// Makes this many calls at once to a server of two streams a connection; returns the number of opened
/// connections.
async fn crowd(calls: usize, max_connections: usize) -> u64 {
    let world = World::new();
    let gate = Arc::new(Semaphore::new(0));
    let config = ServerConfig { max_streams: 2.try_into().unwrap(), ..ServerConfig::default() };
    let waits = gate.clone();
    let service = move |_: Request<Received>| -> Answer {
        let gate = waits.clone();
        Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            Response::new(ServerBody::from("done"))
        })
    };
    let _server = world.serve(config, service);
    let max_connections = max_connections.try_into().unwrap();
    let client = leaf(&world, ClientConfig { max_connections, ..ClientConfig::default() }).ready().await;
    let client = Arc::new(client);
    let tasks: Vec<_> = (0..calls)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get("/x").await })
        })
        .collect();
    sleep(SECOND).await;
    gate.add_permits(calls);
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap(), "200 done");
    }
    world.memory.connections("stock")
}

#[tokio::test(start_paused = true)]
async fn opens_another_connection_when_streams_run_out() {
    assert_eq!(crowd(2, 8).await, 1);
    assert_eq!(crowd(5, 8).await, 3);
    assert_eq!(crowd(50, 4).await, 4);
}

#[tokio::test(start_paused = true)]
async fn keeps_as_many_connections_as_it_is_told() {
    let world = World::new();
    let server = world.serve(ServerConfig::default(), hello());
    let config = ClientConfig { connections: 3.try_into().unwrap(), ..ClientConfig::default() };
    let client = leaf(&world, config).ready().await;
    sleep(SECOND).await;
    assert_eq!(server.connections(), 3);
    client.leaf.close();
    sleep(2 * SECOND).await;
    assert_eq!(server.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn closes_a_connection_that_nobody_uses() {
    let world = World::new();
    let server = world.serve(ServerConfig::default(), hello());
    let client = leaf(&world, ClientConfig::default()).ready().await;
    client.get("/x").await.unwrap();
    client.until(Connection::Idle).await;
    sleep(SECOND).await;
    assert_eq!(server.connections(), 0);
    let client = client.ready().await;
    assert_eq!(client.get("/x").await.unwrap(), "200 x");
    assert_eq!(world.memory.connections("stock"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_falls_silent_is_found_out() {
    let world = World::new();
    let mut listener = world.memory.listen("stock").unwrap();
    world.tasks.spawn(async move {
        let mut stream = listener.accept().await.unwrap();
        stream.write_all(&SETTINGS).await.unwrap();
        let _unread = (stream, std::future::pending::<()>().await);
    });
    let client = leaf(&world, ClientConfig::default()).ready().await;
    let begun = Instant::now();
    let error = client.post("/order", "one").await.unwrap_err();
    assert_eq!((error.reason(), error.maybe_executed()), (Reason::ConnectionLost, true));
    assert!((14..=16).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn pings_more_slowly_when_told_to_calm_down() {
    let world = World::new();
    let mut listener = world.memory.listen("stock").unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    world.tasks.spawn(async move {
        loop {
            let mut stream = listener.accept().await.unwrap();
            stream.write_all(&SETTINGS).await.unwrap();
            let mut preface = [0; 24];
            stream.read_exact(&mut preface).await.unwrap();
            loop {
                let mut header = [0; 9];
                if stream.read_exact(&mut header).await.is_err() {
                    break;
                }
                stream.read_exact(&mut vec![0; usize::from(header[2])]).await.unwrap();
                if header[3] == 6 {
                    counted.fetch_add(1, SeqCst);
                    stream.write_all(&goaway(0, 11)).await.unwrap();
                    break;
                }
            }
        }
    });
    let config =
        ClientConfig { idle_timeout: PositiveSpan::from_millis(86_400_000), ..ClientConfig::default() };
    let client = leaf(&world, config);
    client.leaf.wake();
    // At first the client pings every 10 s; after each complaint, half as often.
    sleep(1_000 * SECOND).await;
    client.leaf.wake();
    assert!((2..=7).contains(&asked.load(SeqCst)), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn headers_over_the_limit_fail_the_call_and_not_the_connection() {
    let world = World::new();
    let service = |request: Request<Received>| -> Answer {
        let mut response = Response::new(ServerBody::from("x"));
        if request.uri().path() == "/large" {
            response.headers_mut().insert("x-large", "x".repeat(20_000).parse().unwrap());
        }
        Box::pin(std::future::ready(response))
    };
    let _server = world.serve(ServerConfig::default(), service);
    let client = leaf(&world, ClientConfig::default()).ready().await;
    let error = client.get("/large").await.unwrap_err();
    assert_eq!((error.reason(), error.maybe_executed()), (Reason::TooLarge, true));
    assert_eq!(client.get("/small").await.unwrap(), "200 x");
    assert_eq!(world.memory.connections("stock"), 1);
}

/// A server that answers at once and then reads the request; `seen` counts its chunks, and 1,000 for the end.
async fn bidirectional(world: &World) -> (Client<H2Leaf>, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    let service = move |request: Request<Received>| -> Answer {
        let seen = counted.clone();
        let mut body = request.into_body();
        tokio::spawn(async move {
            use http_body_util::BodyExt;
            while let Some(Ok(_)) = body.frame().await {
                seen.fetch_add(1, SeqCst);
            }
            seen.fetch_add(1_000, SeqCst);
        });
        let endless = http_body_util::channel::Channel::<Bytes, std::convert::Infallible>::new(1);
        Box::pin(async move {
            let (sender, body) = endless;
            tokio::spawn(async move {
                let _open = sender;
                std::future::pending::<()>().await;
            });
            Response::new(ServerBody::new(body))
        })
    };
    world.serve(ServerConfig::default(), service);
    (leaf(world, ClientConfig::default()).ready().await, seen)
}

#[tokio::test(start_paused = true)]
async fn dropping_the_answer_stops_the_request() {
    let world = World::new();
    let (client, seen) = bidirectional(&world).await;
    let (mut sender, body) = http_body_util::channel::Channel::<Bytes, std::convert::Infallible>::new(1);
    let body = Body::stream(body, |never| match never {});
    let reply: Reply = client.leaf.call(call(Method::POST, "/chat", body)).await.unwrap();
    sender.send_data("hello".into()).await.unwrap();
    sleep(SECOND).await;
    assert_eq!(seen.load(SeqCst), 1);
    drop(reply.into_body());
    sleep(SECOND).await;
    assert_eq!(seen.load(SeqCst), 1_001);
    drop(sender);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_call_drops_its_handler() {
    let world = World::new();
    let running = Arc::new(AtomicUsize::new(0));
    struct Running(Arc<AtomicUsize>);
    impl Drop for Running {
        fn drop(&mut self) {
            self.0.fetch_sub(1, SeqCst);
        }
    }
    let count = running.clone();
    let service = move |_: Request<Received>| -> Answer {
        count.fetch_add(1, SeqCst);
        let guard = Running(count.clone());
        Box::pin(async move {
            let _guard = guard;
            std::future::pending().await
        })
    };
    let _server = world.serve(ServerConfig::default(), service);
    let client = leaf(&world, ClientConfig::default()).ready().await;
    let dropped = tokio::time::timeout(SECOND, client.get("/x")).await;
    assert!(dropped.is_err());
    sleep(SECOND).await;
    assert_eq!(running.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn repeated_headers_and_trailers_come_through() {
    let world = World::new();
    let service = echo(|_, body| String::from_utf8_lossy(&body).into_owned());
    let _server = world.serve(ServerConfig::default(), service);
    let client = leaf(&world, ClientConfig::default()).ready().await;
    let large = "x".repeat(3_000_000);
    let body = Body::full(large.clone());
    let reply = client.leaf.call(call(Method::POST, "/echo", body)).await.unwrap();
    assert_eq!(read(reply).await.unwrap(), format!("200 {large}"));
}

/// A server that neither reads nor answers, and the number of its running handlers.
fn deaf(world: &World) -> Arc<AtomicUsize> {
    let running = Arc::new(AtomicUsize::new(0));
    let count = running.clone();
    let service = move |request: Request<Received>| -> Answer {
        struct Running(Arc<AtomicUsize>);
        impl Drop for Running {
            fn drop(&mut self) {
                self.0.fetch_sub(1, SeqCst);
            }
        }
        count.fetch_add(1, SeqCst);
        let held = (request, Running(count.clone()));
        Box::pin(async move {
            let _held = held;
            std::future::pending().await
        })
    };
    world.serve(ServerConfig::default(), service);
    running
}

/// An endless body; counts every chunk that is taken, and its drop as 1,000,000.
struct Endless(Arc<AtomicUsize>);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        self.0.fetch_add(1, SeqCst);
        let chunk = Bytes::from_static(&[b'x'; 16 * 1024]);
        std::task::Poll::Ready(Some(Ok(http_body::Frame::data(chunk))))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.0.fetch_add(1_000_000, SeqCst);
    }
}

/// Before, its reset was not noticed while it waited for room.
#[tokio::test(start_paused = true)]
async fn an_upload_waits_for_its_reader_and_ends_with_its_call() {
    let world = World::new();
    let running = deaf(&world);
    let client = leaf(&world, ClientConfig::default()).ready().await;
    let taken = Arc::new(AtomicUsize::new(0));
    let body = Body::stream(Endless(taken.clone()), |never| match never {});
    let sending = client.leaf.call(call(Method::POST, "/upload", body));
    assert!(tokio::time::timeout(SECOND, sending).await.is_err());
    sleep(SECOND).await;
    let taken = taken.load(SeqCst);
    let (dropped, chunks) = (taken / 1_000_000, taken % 1_000_000);
    // The server's window, and the data that the connection buffers.
    assert!((64..=128).contains(&chunks), "{chunks}");
    assert_eq!((dropped, running.load(SeqCst)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_breaks_off_is_never_taken_for_whole() {
    let world = World::new();
    let (ended, mut wholes) = tokio::sync::mpsc::unbounded_channel();
    let service = move |request: Request<Received>| -> Answer {
        use http_body_util::BodyExt;
        let ended = ended.clone();
        Box::pin(async move {
            let _ = ended.send(request.into_body().collect().await.is_ok());
            std::future::pending().await
        })
    };
    world.serve(ServerConfig::default(), service);
    let client = leaf(&world, ClientConfig::default()).ready().await;
    for panics in [false, true] {
        let mut chunks = 0;
        let body = futures_body(move || {
            chunks += 1;
            match chunks {
                1 => Some(Ok(Bytes::from_static(b"half"))),
                _ if panics => panic!("on purpose"),
                _ => Some(Err("no more".to_owned())),
            }
        });
        let body = Body::stream(body, |words: String| Error::local(Reason::Internal, words));
        let error = client.leaf.call(call(Method::POST, "/upload", body)).await.unwrap_err();
        let expected = if panics { Reason::Cancelled } else { Reason::Internal };
        assert_eq!((error.reason(), error.message() == "no more"), (expected, !panics), "{error:?}");
        assert_eq!(error.origin(), chassis_core::Origin::Local, "only the caller is to blame");
        assert!(error.maybe_executed());
        assert_eq!(wholes.recv().await, Some(false));
    }
    assert_eq!(world.memory.connections("stock"), 1);
}

/// A body of the chunks that `next` creates; each except the first is delayed a little.
fn futures_body<F>(next: F) -> impl http_body::Body<Data = Bytes, Error = String> + Send + 'static
where
    F: FnMut() -> Option<Result<Bytes, String>> + Send + Unpin + 'static,
{
    struct Chunks<F>(F, bool);
    impl<F: FnMut() -> Option<Result<Bytes, String>> + Unpin> http_body::Body for Chunks<F> {
        type Data = Bytes;
        type Error = String;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, String>>> {
            self.1 = !self.1;
            if self.1 {
                cx.waker().wake_by_ref();
                return std::task::Poll::Pending;
            }
            std::task::Poll::Ready((self.0)().map(|chunk| chunk.map(http_body::Frame::data)))
        }
    }
    Chunks(next, false)
}

/// When much other data is in transmission, the answer to a ping may be late.
#[tokio::test(start_paused = true)]
async fn a_peer_that_says_anything_at_all_lives() {
    let world = World::new();
    let mut listener = world.memory.listen("stock").unwrap();
    world.tasks.spawn(async move {
        let mut stream = listener.accept().await.unwrap();
        stream.write_all(&SETTINGS).await.unwrap();
        // It is pinged after 10 s, and would be closed after 15 s.
        sleep(12 * SECOND).await;
        stream.write_all(&SETTINGS).await.unwrap();
        let _unread = (stream, std::future::pending::<()>().await);
    });
    let client = leaf(&world, ClientConfig::default()).ready().await;
    let begun = Instant::now();
    let error = client.post("/order", "one").await.unwrap_err();
    assert_eq!((error.reason(), error.maybe_executed()), (Reason::ConnectionLost, true));
    assert_eq!(error.message(), "the endpoint no longer answers pings");
    // Counted from the last received byte: 10 s, then the time that an answer may take.
    assert!((26..=28).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_allows_fewer_streams_from_now_on_is_heeded() {
    let world = World::new();
    let mut listener = world.memory.listen("stock").unwrap();
    let heads = Arc::new(AtomicUsize::new(0));
    let seen = heads.clone();
    world.tasks.spawn(async move {
        let mut stream = listener.accept().await.unwrap();
        stream.write_all(&SETTINGS).await.unwrap();
        read_head(&mut stream).await;
        seen.fetch_add(1, SeqCst);
        // At most one stream, which is in use.
        stream.write_all(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1]).await.unwrap();
        loop {
            let mut header = [0; 9];
            stream.read_exact(&mut header).await.unwrap();
            let length = usize::from(header[1]) << 8 | usize::from(header[2]);
            stream.read_exact(&mut vec![0; length]).await.unwrap();
            seen.fetch_add(usize::from(header[3] == 1), SeqCst);
        }
    });
    let config = ClientConfig { max_connections: 1.try_into().unwrap(), ..ClientConfig::default() };
    let client = Arc::new(leaf(&world, config).ready().await);
    let one = client.clone();
    tokio::spawn(async move { one.post("/order", "one").await });
    sleep(SECOND).await;
    let two = tokio::time::timeout(SECOND, client.post("/order", "two")).await;
    assert!(two.is_err(), "it waits");
    assert_eq!(heads.load(SeqCst), 1);
}
