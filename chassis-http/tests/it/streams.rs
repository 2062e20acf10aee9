//! The answers of a server over HTTP/2: heads, bodies, and how they end.
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use chassis_core::{Body, Reason, Reply, protocol::Leaf, units::Span};
use chassis_http::{
    ClientConfig, H2Leaf, ServerConfig,
    server::{Answer, HttpService, Received, Server, ServerBody},
};
use http::{HeaderMap, Method, Request, Response};
use http_body::Frame;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep},
};

use crate::{
    raw,
    support::{Client, SECOND, World, call, hello, read},
};

async fn client(world: &World, service: impl HttpService) -> (Server, Client<H2Leaf>) {
    let server = world.serve(ServerConfig::default(), service);
    let make = |link, connector, config| H2Leaf::new(link, connector, config, true);
    (server, world.leaf(make, ClientConfig::default()).ready().await)
}

fn answers(answer: impl Fn() -> Response<ServerBody> + Send + Sync + 'static) -> impl HttpService {
    move |_: Request<Received>| -> Answer { Box::pin(std::future::ready(answer())) }
}

async fn get(client: &Client<H2Leaf>) -> Reply {
    client.leaf.call(call(Method::GET, "/x", Body::empty())).await.unwrap()
}

/// Endless chunks; each is counted, and the drop as 1,000,000.
struct Endless {
    chunks: Arc<AtomicUsize>,
    /// The result of the fourth chunk.
    breaks: Option<Break>,
}

#[derive(Clone, Copy)]
enum Break {
    Error,
    Panic,
}

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(Some(match (self.chunks.fetch_add(1, SeqCst), self.breaks) {
            (3, Some(Break::Error)) => Err("no more"),
            (3, Some(Break::Panic)) => panic!("on purpose"),
            _ => Ok(Frame::data(Bytes::from_static(&[b'x'; 16 * 1024]))),
        }))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.chunks.fetch_add(1_000_000, SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_says_when_and_how_much_and_nothing_of_the_connection() {
    let world = World::new();
    let answer = || {
        let mut response = Response::new(ServerBody::from("hello"));
        for (name, value) in [("connection", "close"), ("keep-alive", "timeout=5"), ("x-own", "1")] {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    };
    let (_server, client) = client(&world, answers(answer)).await;
    let reply = get(&client).await;
    let mut names: Vec<_> = reply.metadata.keys().map(|name| name.as_str().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["content-length", "date", "x-own"]);
    assert_eq!(reply.metadata["content-length"], "5");
    let date = reply.metadata["date"].to_str().unwrap();
    assert!(httpdate::parse_http_date(date).is_ok(), "{date}");
    assert_eq!(read(reply).await.unwrap(), "200 hello");
}

#[tokio::test(start_paused = true)]
async fn a_body_waits_for_its_reader_and_ends_with_it() {
    let world = World::new();
    let taken = Arc::new(AtomicUsize::new(0));
    let chunks = taken.clone();
    let answer = move || Response::new(ServerBody::new(Endless { chunks: chunks.clone(), breaks: None }));
    let (_server, client) = client(&world, answers(answer)).await;
    let reply = get(&client).await;
    sleep(SECOND).await;
    let chunks = taken.load(SeqCst);
    // The client's window, and the data that the connection buffers.
    assert!((64..=128).contains(&chunks), "{chunks}");
    drop(reply);
    sleep(SECOND).await;
    assert_eq!(taken.load(SeqCst) / 1_000_000, 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_is_never_taken_for_whole() {
    for breaks in [Break::Error, Break::Panic] {
        let world = World::new();
        let body = move || Endless { chunks: Arc::default(), breaks: Some(breaks) };
        let (_server, client) = client(&world, answers(move || Response::new(ServerBody::new(body())))).await;
        // A reset overtakes data that is not sent yet, also the head.
        let error = client.get("/x").await.unwrap_err();
        assert_eq!((error.reason(), error.maybe_executed()), (Reason::Internal, true));
        assert_eq!(world.memory.connections("stock"), 1);
    }
}

/// A server polls for further requests only after one that is not the newest. Three requests whose bytes arrive
/// in two parts, cut at any byte, start three handlers, also if no answer wakes the connection.
#[tokio::test(start_paused = true)]
async fn every_request_is_accepted_wherever_its_bytes_are_cut() {
    let begin =
        |call| raw::frame(raw::HEADERS, raw::END_HEADERS | raw::END_STREAM, raw::stream(call), &raw::GET);
    let requests = [begin(0), begin(1), begin(2)].concat();
    for cut in 0..requests.len() {
        let world = World::new();
        let begun = Arc::new(AtomicUsize::new(0));
        let count = begun.clone();
        let service = move |_: Request<Received>| -> Answer {
            count.fetch_add(1, SeqCst);
            Box::pin(std::future::pending())
        };
        let _server = world.serve(ServerConfig::default(), service);
        let mut stream = world.raw().await;
        raw::open(&mut stream, &[]).await;
        let (first, rest) = requests.split_at(cut);
        stream.write_all(first).await.unwrap();
        sleep(SECOND).await;
        stream.write_all(rest).await.unwrap();
        sleep(SECOND).await;
        assert_eq!(begun.load(SeqCst), 3, "cut at {cut}");
    }
}

/// The client keeps the stream of its last call, which must not keep the connection open.
#[tokio::test(start_paused = true)]
async fn a_connection_that_had_calls_closes_when_it_is_unused() {
    let world = World::new();
    let answer = || Response::new(ServerBody::new(Body::with_trailers(Some("x".into()), HeaderMap::new())));
    let server = world.serve(ServerConfig::default(), answers(answer));
    let idle_timeout = chassis_core::units::PositiveSpan::from_millis(1_000);
    let make = |link, connector, config| H2Leaf::new(link, connector, config, true);
    let client = world.leaf(make, ClientConfig { idle_timeout, ..ClientConfig::default() }).ready().await;
    assert_eq!(client.get("/x").await.unwrap(), "200 x");
    assert_eq!(server.connections(), 1);
    sleep(4 * SECOND).await;
    assert_eq!(server.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_falls_silent_is_found_out_and_one_that_answers_is_kept() {
    let world = World::new();
    let idle_timeout = chassis_core::units::PositiveSpan::from_millis(3_600_000);
    let interval = Span(20 * SECOND);
    let config = ServerConfig { idle_timeout, keep_alive_interval: interval, ..ServerConfig::default() };
    let server = world.serve(config, hello());
    let mut silent = world.raw().await;
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let begun = Instant::now();
    let mut received = Vec::new();
    silent.read_to_end(&mut received).await.unwrap();
    assert!((29..=32).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());

    let make = |link, connector, config| H2Leaf::new(link, connector, config, true);
    let config =
        ClientConfig { idle_timeout, keep_alive_interval: Span(10_000 * SECOND), ..ClientConfig::default() };
    let answers = world.leaf(make, config).ready().await;
    sleep(600 * SECOND).await;
    assert_eq!((server.connections(), answers.get("/x").await.unwrap()), (1, "200 x".to_owned()));
    assert_eq!(world.memory.connections("stock"), 2);
}
