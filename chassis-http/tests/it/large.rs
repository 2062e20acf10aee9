//! Headers and trailers over a limit: they fail their own call, and no other call of the connection.
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use chassis_core::{Body, Connection, Origin, Reason, protocol::Leaf};
use chassis_http::{
    ClientConfig, H2Leaf, ServerConfig,
    connector::{Listener, Stream},
    server::{Answer, HttpService, Mux, Received, Server, ServerBody},
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::{io::AsyncWriteExt, time::sleep};

use crate::{
    raw,
    support::{Client, SECOND, World, call, hello, read},
};

const MAX_HEADER_LIST_SIZE: u16 = 6;

fn leaf(world: &World, config: ClientConfig) -> Client<H2Leaf> {
    world.leaf(|link, connector, config| H2Leaf::new(link, connector, config, true), config)
}

/// A hand-written server that sends `settings` and passes each request to `answer`, with its number from 0.
fn serve_raw(
    world: &World,
    settings: &'static [(u16, u32)],
    answer: impl Fn(usize, u32) -> Vec<u8> + Send + Sync + 'static,
) -> Arc<AtomicUsize> {
    let mut listener = world.memory.listen("stock").unwrap();
    let (answer, requests) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
    let count = requests.clone();
    let tasks = world.tasks.clone();
    world.tasks.spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            let (answer, count) = (answer.clone(), count.clone());
            tasks.spawn(async move {
                raw::greet(&mut stream, settings).await;
                while let Some(frame) = raw::read_until(&mut stream, raw::HEADERS).await {
                    let words = answer(count.fetch_add(1, SeqCst), frame.stream);
                    stream.write_all(&words).await.unwrap();
                }
            });
        }
    });
    requests
}

/// Another call that waits for its answer while others are answered.
fn begin(client: &Arc<Client<H2Leaf>>, path: &'static str) -> tokio::task::JoinHandle<String> {
    let client = client.clone();
    tokio::spawn(async move { client.get(path).await.unwrap() })
}

/// Checks an answer with `size` bytes of headers or trailers, between a call that waits and one that follows.
async fn check_answer(size: usize, in_trailers: bool, chunk: usize) {
    let world = World::new();
    let ok = [(":status", "200")];
    let large = move |stream, end| {
        let names: Vec<_> = (0..size.div_ceil(chunk)).map(|n| format!("x-{n}")).collect();
        let value = "v".repeat(chunk);
        let large: Vec<_> = names.iter().map(|name| (name.as_str(), value.as_str())).collect();
        match end {
            true => raw::headers(stream, &large, true),
            false => raw::headers(stream, &[&ok[..], &large].concat(), true),
        }
    };
    let requests = serve_raw(&world, &[], move |n, stream| match n {
        0 => raw::headers(stream, &ok, false),
        1 if in_trailers => [raw::headers(stream, &ok, false), large(stream, true)].concat(),
        1 => large(stream, false),
        _ => {
            let first = raw::frame(raw::DATA, raw::END_STREAM, 1, b"one");
            let this = raw::frame(raw::DATA, raw::END_STREAM, stream, b"two");
            [raw::headers(stream, &ok, false), this, first].concat()
        }
    });
    let client = Arc::new(leaf(&world, ClientConfig::default()).ready().await);
    let neighbour = begin(&client, "/neighbour");
    sleep(SECOND).await;
    let error = client.get("/large").await.unwrap_err();
    assert_eq!((error.reason(), error.maybe_executed()), (Reason::TooLarge, true), "{size}: {error:?}");
    assert!(error.message().contains("client.max_header_list"), "{error:?}");
    assert_eq!(client.get("/after").await.unwrap(), "200 two", "{size}");
    assert_eq!(neighbour.await.unwrap(), "200 one", "{size}");
    assert_eq!((requests.load(SeqCst), world.memory.connections("stock")), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_large_answer_fails_its_call_alone() {
    for in_trailers in [false, true] {
        for size in [17_000, 40_000, 60_000] {
            check_answer(size, in_trailers, 4_000).await;
            check_answer(size, in_trailers, size).await;
            check_answer(size, in_trailers, 100).await;
        }
    }
}

/// h2 may have omitted fields of a larger list silently: such a list is never treated as complete.
#[tokio::test(start_paused = true)]
async fn far_larger_trailers_are_never_taken_for_whole() {
    for size in [70_000, 150_000, 300_000, 1_000_000] {
        let world = World::new();
        serve_raw(&world, &[], move |n, stream| {
            let value = "v".repeat(size / 20);
            let names: Vec<_> = (0..20).map(|n| format!("x-{n}")).collect();
            let trailers: Vec<_> = names.iter().map(|name| (name.as_str(), value.as_str())).collect();
            let head = raw::headers(stream, &[(":status", "200")], n > 0);
            if n == 0 { [head, raw::headers(stream, &trailers, true)].concat() } else { head }
        });
        let config = ClientConfig { max_header_list: "60KiB".parse().unwrap(), ..ClientConfig::default() };
        let client = leaf(&world, config).ready().await;
        let error = client.get("/large").await.unwrap_err();
        assert!(error.maybe_executed(), "{size}: {error:?}");
        sleep(SECOND).await;
        client.until(Connection::Ready).await;
        assert_eq!(client.get("/after").await.unwrap(), "200 ", "{size}");
    }
}

/// A request whose headers exceed the server's announced limit is not sent.
#[tokio::test(start_paused = true)]
async fn a_request_that_the_endpoint_would_not_take_fails_here_and_alone() {
    let world = World::new();
    let requests = serve_raw(&world, &[(MAX_HEADER_LIST_SIZE, 1_000)], |n, stream| match n {
        0 => raw::headers(stream, &[(":status", "200")], false),
        _ => {
            let first = raw::frame(raw::DATA, raw::END_STREAM, 1, b"one");
            [raw::headers(stream, &[(":status", "200")], true), first].concat()
        }
    });
    let client = Arc::new(leaf(&world, ClientConfig::default()).ready().await);
    let neighbour = begin(&client, "/neighbour");
    sleep(SECOND).await;
    let mut large = call(Method::POST, "/large", Body::full("x"));
    large.metadata.insert("x-large", "x".repeat(900).parse().unwrap());
    let error = client.leaf.call(large).await.err().unwrap();
    assert_eq!((error.reason(), error.origin()), (Reason::TooLarge, Origin::Local), "{error:?}");
    assert!(!error.maybe_executed() && error.message().ends_with("the endpoint takes 1000"), "{error:?}");
    let mut small = call(Method::GET, "/small", Body::empty());
    small.metadata.insert("x-large", "x".repeat(700).parse().unwrap());
    assert_eq!(read(client.leaf.call(small).await.unwrap()).await.unwrap(), "200 ");
    assert_eq!(neighbour.await.unwrap(), "200 one");
    assert_eq!(requests.load(SeqCst), 2);
}

/// Sends a request with `size` bytes of headers between two others; returns the statuses by stream.
async fn statuses(world: &World, size: usize, chunk: usize, content_type: &str) -> Vec<(u32, Vec<u8>)> {
    let line = [(":method", "POST"), (":scheme", "http"), (":authority", "stock"), (":path", "/x")];
    let names: Vec<_> = (0..size.div_ceil(chunk)).map(|n| format!("x-{n}")).collect();
    let value = "v".repeat(chunk);
    let large: Vec<_> = names.iter().map(|name| (name.as_str(), value.as_str())).collect();
    let line = [&line[..], &[("content-type", content_type)]].concat();
    let large = [&line[..], &large].concat();
    let mut stream: Stream = world.raw().await;
    let words = [
        &raw::PREFACE[..],
        &raw::settings(&[]),
        &raw::headers(1, &line, false),
        &raw::headers(3, &large, false),
        &raw::headers(5, &line, true),
        &raw::frame(raw::DATA, raw::END_STREAM, 1, b""),
        &raw::frame(raw::DATA, raw::END_STREAM, 3, b""),
    ]
    .concat();
    stream.write_all(&words).await.unwrap();
    let mut found = Vec::new();
    while found.len() < 3 {
        let frame = raw::read(&mut stream).await.expect("the connection lives");
        assert_ne!(frame.kind, raw::GOAWAY, "{frame:?}");
        if frame.kind == raw::HEADERS {
            found.push((frame.stream, frame.payload));
        }
    }
    found.sort();
    found
}

#[tokio::test(start_paused = true)]
async fn a_large_request_is_refused_alone() {
    let world = World::new();
    let _server = world.serve(ServerConfig::default(), hello());
    for (size, chunk) in
        [(17_000, 17_000), (40_000, 4_000), (64_000, 64_000), (64_000, 100), (100_000, 4_000)]
    {
        let found = statuses(&world, size, chunk, "text/plain").await;
        // `:status: 200` is the eighth entry of HPACK's static table; 431 is not in it.
        let is_well: Vec<_> = found.iter().map(|(_, head)| head[0] == 0x88).collect();
        assert_eq!(is_well, [true, false, true], "{size}: {found:?}");
    }
    assert_eq!(world.memory.connections("stock"), 5);
}

/// A chassis client gets an error that names the limit and its setting.
#[tokio::test(start_paused = true)]
async fn a_large_request_is_told_the_limit() {
    let world = World::new();
    let _server = world.serve(ServerConfig::default(), hello());
    let client = leaf(&world, ClientConfig::default()).ready().await;
    let mut large = call(Method::GET, "/large", Body::empty());
    large.metadata.insert("x-large", "x".repeat(20_000).parse().unwrap());
    let answer = read(client.leaf.call(large).await.unwrap()).await.unwrap();
    assert!(answer.starts_with("431 ") && answer.contains("server.max_header_list"), "{answer}");
    assert_eq!(client.get("/small").await.unwrap(), "200 small");
}

/// The answer of a server to an h2 client that accepts `most` bytes of headers, and the state of its
/// connection.
async fn answered(
    most: Option<u32>,
    head: HeaderMap,
    trailers: Option<HeaderMap>,
    content_type: &str,
) -> (StatusCode, HeaderMap, Option<HeaderMap>) {
    let world = World::new();
    let service = move |_: Request<Received>| -> Answer {
        let body = match trailers.clone() {
            Some(trailers) => {
                let body = http_body_util::Full::new(bytes::Bytes::from("x"));
                ServerBody::new(body.with_trailers(async move { Some(Ok(trailers)) }))
            }
            None => ServerBody::empty(),
        };
        let mut response = Response::new(body);
        *response.headers_mut() = head.clone();
        Box::pin(std::future::ready(response))
    };
    let server = Server::new(ServerConfig::default(), &world.tasks, world.random.clone());
    let service: Arc<dyn HttpService> = Arc::new(service);
    let mux = Mux { http: Some(service.clone()), grpc: Some(service) };
    server.serve("http", Box::new(world.memory.listen("stock").unwrap()), mux, None);
    let mut builder = h2::client::Builder::new();
    most.map(|most| builder.max_header_list_size(most));
    let (mut client, connection) = builder.handshake::<_, bytes::Bytes>(world.raw().await).await.unwrap();
    tokio::spawn(connection);
    sleep(SECOND).await; // its settings are there
    let request = Request::post("http://stock/x").header("content-type", content_type).body(()).unwrap();
    let (answer, _) = client.send_request(request, true).unwrap();
    let (head, mut body) = answer.await.unwrap().into_parts();
    while let Some(data) = body.data().await {
        data.unwrap();
    }
    (head.status, head.headers, body.trailers().await.unwrap())
}

fn status(message: usize, user: usize) -> HeaderMap {
    let mut list = HeaderMap::new();
    list.insert("grpc-status", "13".parse().unwrap());
    list.insert("grpc-message", "m".repeat(message).parse().unwrap());
    list.insert("x-user", "u".repeat(user).parse().unwrap());
    list
}

#[tokio::test(start_paused = true)]
async fn a_grpc_status_is_cut_to_what_its_reader_takes() {
    for (most, message) in [(None, 7_500..8_000), (Some(4_000), 3_500..4_000), (Some(400), 100..300)] {
        let mut head = HeaderMap::new();
        head.insert("content-type", "application/grpc".parse().unwrap());
        let (_, _, trailers) =
            answered(most, head.clone(), Some(status(20_000, 10)), "application/grpc").await;
        let trailers = trailers.unwrap();
        assert_eq!((&trailers["grpc-status"], trailers["x-user"].len()), (&"13".parse().unwrap(), 10));
        assert!(message.contains(&trailers["grpc-message"].len()), "{most:?}: {trailers:?}");
        // The same for an answer that consists of its status.
        head.extend(status(20_000, 10));
        let (_, head, trailers) = answered(most, head, None, "application/grpc").await;
        assert_eq!((&head["grpc-status"], head["x-user"].len()), (&"13".parse().unwrap(), 10));
        assert!(message.contains(&head["grpc-message"].len()), "{most:?}: {head:?}");
        assert_eq!(trailers, None);
    }
}

/// Headers of a handler that exceed the caller's limit: the caller gets an error that explains it.
#[tokio::test(start_paused = true)]
async fn an_answer_that_its_reader_does_not_take_is_an_error() {
    let mut large = HeaderMap::new();
    large.insert("x-user", "u".repeat(9_000).parse().unwrap());
    for content_type in ["text/plain", "application/grpc"] {
        for most in [None, Some(16_384)] {
            let (status, head, _) = answered(most, large.clone(), None, content_type).await;
            assert_eq!((status.as_u16(), head["x-user"].len()), (200, 9_000));
        }
    }
    let (status, head, _) = answered(Some(9_000), large.clone(), None, "text/plain").await;
    assert_eq!((status.as_u16(), &head["content-type"]), (500, &"application/problem+json".parse().unwrap()));
    let (status, head, _) = answered(Some(9_000), large, None, "application/grpc").await;
    assert_eq!((status.as_u16(), &head["grpc-status"]), (200, &"13".parse().unwrap()));
    assert!(head["grpc-message"].to_str().unwrap().ends_with("the caller takes 9000"), "{head:?}");
}
