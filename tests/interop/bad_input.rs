//! Invalid input on every listener: each piece ends in a defined way, and the process keeps running.
use std::time::Duration;

use bytes::Bytes;
use chassis::{Chassis, Random, Running};
use chassis_protos::echo::{EchoRequest, echo_client::EchoClient};
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet, time::sleep};
use tonic::{Code, metadata::MetadataValue};
use tower::Service;

use crate::{
    echo::{self, says},
    ours::{self, counted},
    raw::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, PRIORITY,
        PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE, exchange, frame, get, http2, to_the_end,
    },
};

trials! {
    noise
    malformed_requests
    odd_requests
    grpc_over_http_1_is_refused_with_the_reason
    malformed_frames
    floods_of_frames
    slow_heads_and_silence
    an_answer_comes_though_the_body_was_too_large
    messages_and_metadata_that_are_too_large
    malformed_messages
    a_panic_in_a_handler
}

/// A server of both protocols, and a well-behaved caller.
struct World {
    server: Running,
    ports: [String; 2],
    callers: [Chassis; 2],
}

impl World {
    async fn new() -> Self {
        let settings = json!({ "server": { "header_timeout": "300ms", "idle_timeout": "300ms" } });
        let app = ours::builder(settings).build().await.unwrap();
        let server = app.serve_grpc(echo::service()).serve_http(ours::router()).start().await.unwrap();
        let ports = ["grpc", "http"].map(|name| server.address(name).unwrap().to_owned());
        let callers = [ours::caller(&ports[0], json!({})).await, ours::caller(&ports[1], json!({})).await];
        World { server, ports, callers }
    }

    /// Both ports answer correctly.
    async fn check_alive(&self) {
        let [grpc, http] = &self.callers;
        let answer = EchoClient::new(grpc.grpc("peer")).call(says("alive")).await.unwrap();
        assert_eq!(answer.into_inner().message, "alive");
        let answer = http.http("peer").get("/hello/you").send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "hello, you");
    }

    /// Sends each piece to both ports.
    async fn throw(&self, pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) {
        for piece in pieces {
            for port in &self.ports {
                exchange(port, piece.as_ref()).await;
            }
        }
        self.check_alive().await;
        assert_eq!(counted(self.server.runtime(), "chassis_handler_panics_total", &[]), 0);
    }
}

/// The status of an answer over HTTP/1.
fn status(said: &[u8]) -> &str {
    std::str::from_utf8(said.get(9..12).unwrap_or_default()).unwrap()
}

async fn noise() {
    let world = World::new().await;
    let random = Random::seeded(7);
    let noise = (0..50).map(|n| (0..(1 << (n % 17))).map(|_| random.next_u64() as u8).collect::<Vec<_>>());
    world.throw(noise).await;
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 the beginning of TLS";
    let zeros = vec![0; 100_000];
    let lines = b"\r\n".repeat(50_000);
    let letters = vec![b'A'; 1 << 20];
    world.throw([&hello[..], &zeros, &lines, &letters, b"\x00", b"\n", b"quit\r\n", b""]).await;
}

async fn malformed_requests() {
    let world = World::new().await;
    let with = |rest: &str| format!("POST /echo HTTP/1.1\r\nhost: x\r\n{rest}");
    let bad = [
        "GET\r\n\r\n".to_owned(),
        "GET /hello/you\r\n\r\n".to_owned(),
        "GET /hello/you HTTP/9.9\r\n\r\n".to_owned(),
        "G\0T /hello/you HTTP/1.1\r\n\r\n".to_owned(),
        "GET /hello you HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        with("no colon\r\n\r\n"),
        with("x-text : space\r\n\r\n"),
        with(": no name\r\n\r\n"),
        with("x-nul: a\0b\r\n\r\n"),
        with("content-length: -1\r\n\r\n"),
        with("content-length: +5\r\n\r\nhello"),
        with("content-length: 5, 6\r\n\r\nhello"),
        with("content-length: 5\r\ncontent-length: 6\r\n\r\nhello!"),
        with("content-length: 99999999999999999999999\r\n\r\n"),
        with("transfer-encoding: chunked, gzip\r\n\r\n"),
        with("transfer-encoding: gzip\r\n\r\n"),
        with("transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
        with("host: y\r\n\r\n"),
        "GET /hello/you HTTP/1.1\r\n\r\n".to_owned(),
        "GET /hello/you HTTP/1.1\r\nhost:\r\n\r\n".to_owned(),
        "GET /hello/you HTTP/1.1\r\nhost: user@x\r\n\r\n".to_owned(),
    ];
    for request in bad {
        let said = exchange(&world.ports[1], request.as_bytes()).await;
        assert_eq!(status(&said), "400", "{request:?} {:?}", String::from_utf8_lossy(&said));
    }
    // Bodies that break off or are invalid: the handler does not use them.
    for rest in [
        "content-length: 50\r\n\r\nhello",
        "transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n",
        "transfer-encoding: chunked\r\n\r\n5\r\nhel",
        "transfer-encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nhello",
        "transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello",
    ] {
        let said = exchange(&world.ports[1], with(rest).as_bytes()).await;
        assert_ne!(status(&said), "200", "{rest:?}");
    }
    // Both lengths: a proxy that uses the other one sees another request. The connection ends with it.
    let smuggled = "GET /panic HTTP/1.1\r\nhost: x\r\n\r\n";
    let both = with(&format!("content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"));
    let said = exchange(&world.ports[1], both.as_bytes()).await;
    assert_eq!(String::from_utf8_lossy(&said).matches("HTTP/1.1").count(), 1, "one answer");
    assert_eq!(counted(world.server.runtime(), "chassis_handler_panics_total", &[]), 0, "it was smuggled in");
    world.check_alive().await;
}

async fn odd_requests() {
    let world = World::new().await;
    let long = format!("GET /hello/{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(70_000));
    let odd = [
        "GET http://elsewhere/hello/you HTTP/1.1\r\nhost: x\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
        "CONNECT elsewhere:443 HTTP/1.1\r\nhost: x\r\n\r\n",
        "BREW /hello/you HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /hello/%zz HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /hello/%ff%fe HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET //hello//you?? HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /hello/you HTTP/1.1\r\n\r\n",
        "GET /hello/you HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        "GET /hello/you HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
        "GET /hello/you HTTP/1.1\r\nhost: x\r\nx-request-timeout-ms: soon\r\n\r\n",
        "GET /hello/you HTTP/1.1\r\nhost: x\r\ntraceparent: 00-zz\r\nbaggage: =;,\r\n\r\n",
        "GET /hello/you HTTP/1.1\r\nhost: x\r\nx-chassis-attempt: -1\r\nx-chassis-caller: \u{fffd}\r\n\r\n",
        &long,
    ];
    world.throw(odd).await;
    let said = exchange(&world.ports[1], odd[11].as_bytes()).await;
    assert_eq!(status(&said), "400", "{:?}", String::from_utf8_lossy(&said));
    let said = exchange(&world.ports[1], long.as_bytes()).await;
    assert!(["414", "431"].contains(&status(&said)), "{:?}", String::from_utf8_lossy(&said));
}

async fn grpc_over_http_1_is_refused_with_the_reason() {
    let world = World::new().await;
    let request = "POST /chassis.test.v1.Echo/Call HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc\r\n\
        connection: close\r\ncontent-length: 5\r\n\r\n\0\0\0\0\0";
    let said = exchange(&world.ports[0], request.as_bytes()).await;
    let said = String::from_utf8_lossy(&said);
    assert!(said.starts_with("HTTP/1.1 505 "), "{said:?}");
    assert!(said.contains("\r\ngrpc-status: 12\r\n") && said.contains("HTTP/2"), "{said:?}");
    world.check_alive().await;
}

async fn malformed_frames() {
    let world = World::new().await;
    let request = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &get());
    let headers = |block: &[u8]| frame(HEADERS, END_HEADERS | END_STREAM, 1, block);
    let mut oversize = frame(DATA, 0, 1, &[]);
    oversize[..3].copy_from_slice(&[0xff; 3]);
    let bad = [
        vec![oversize],
        vec![frame(SETTINGS, 0, 0, &[0; 5])],
        vec![frame(SETTINGS, ACK, 0, &[0; 6])],
        vec![frame(SETTINGS, 0, 1, &[])],
        vec![frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])], // a window over the limit
        vec![frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1])],             // frames below the limit
        vec![frame(HEADERS, END_HEADERS | END_STREAM, 0, &get())],
        vec![frame(HEADERS, END_HEADERS | END_STREAM, 2, &get())],
        vec![frame(HEADERS, 0, 1, &get()), frame(DATA, 0, 1, b"x")], // headers that do not end
        vec![frame(HEADERS, 0, 1, &get())],
        vec![frame(CONTINUATION, END_HEADERS, 1, &get())],
        vec![frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])],
        vec![frame(DATA, 0, 1, b"to an idle stream")],
        vec![frame(RST_STREAM, 0, 1, &[0; 4])],
        vec![frame(RST_STREAM, 0, 0, &[0; 4])],
        vec![frame(WINDOW_UPDATE, 0, 0, &[0; 4])],
        vec![frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])],
        vec![frame(PING, 0, 0, &[0; 7])],
        vec![frame(PING, 0, 1, &[0; 8])],
        vec![frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 0])], // depends on itself
        vec![frame(GOAWAY, 0, 0, &[0; 3])],
        vec![frame(0xff, 0xff, 0xffff, b"an unknown kind")],
        vec![headers(&[0xff; 100])],                  // no HPACK
        vec![headers(&[])],                           // no pseudo-headers
        vec![headers(&[0x82, 0x82, 0x86, 0x84])],     // one twice
        vec![headers(b"\x82\x86\x84\x00\x01X\x01y")], // a name in upper case
        vec![headers(b"\x82\x86\x84\x00\x0aconnection\x01y")],
        vec![headers(b"\x82\x86\x84\x00\x02te\x04gzip")],
        vec![headers(b"\x82\x86\x00\x05:path\x00")], // an empty path
        vec![request(3), request(1)],                // streams that go back
        vec![request(1), frame(DATA, 0, 1, b"after the end")],
        vec![request(1), request(1)],
    ];
    world.throw(bad.iter().map(|frames| http2(frames))).await;
    // The same with the beginning cut, and a valid request with any end of it missing.
    let good = http2(&[request(1)]);
    world.throw((0..good.len()).map(|n| &good[..n])).await;
    let said = exchange(&world.ports[1], &good).await;
    assert!(said.windows(10).any(|part| part == b"hello, you"), "{said:?}");
}

/// Input that costs the sender little and a server much.
async fn floods_of_frames() {
    let world = World::new().await;
    let request = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &get());
    let streams = (0..20_000).map(|n| 2 * n + 1);
    let resets: Vec<_> = streams.flat_map(|n| [request(n), frame(RST_STREAM, 0, n, &[0, 0, 0, 8])]).collect();
    let mut continuations = vec![frame(HEADERS, 0, 1, &get())];
    continuations.extend((0..50_000).map(|_| frame(CONTINUATION, 0, 1, b"\x00\x01x\x01y")));
    let mut empty = vec![frame(HEADERS, END_HEADERS, 1, &get())];
    empty.extend((0..50_000).map(|_| frame(DATA, 0, 1, &[])));
    let pings = (0..50_000).map(|_| frame(PING, 0, 0, &[0; 8])).collect();
    let settings = (0..50_000).map(|_| frame(SETTINGS, 0, 0, &[])).collect();
    world.throw([resets, continuations, empty, pings, settings].map(|frames: Vec<_>| http2(&frames))).await;
}

/// A client that sends nothing, or never completes its head, is disconnected.
async fn slow_heads_and_silence() {
    let world = World::new().await;
    let head = b"GET /hello/you HTTP/1.1\r\nhost: x\r\nx-slow: ";
    let opening = http2(&[]);
    let unending = http2(&[frame(HEADERS, 0, 1, &get())]);
    let mut guests = JoinSet::new();
    for port in &world.ports {
        for begin in [&b""[..], b"G", head, &PREFACE[..10], PREFACE, &opening, &unending] {
            let (port, begin) = (port.clone(), begin.to_vec());
            guests.spawn(async move {
                let mut stream = TcpStream::connect(port).await.unwrap();
                stream.write_all(&begin).await.unwrap();
                to_the_end(&mut stream).await;
            });
        }
        // Single bytes from time to time do not extend the limit.
        let (mut read, mut write) = TcpStream::connect(port).await.unwrap().into_split();
        guests.spawn(async move {
            let trickle = async {
                write.write_all(head).await.unwrap();
                while write.write_all(b"x").await.is_ok() {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::select! { _ = to_the_end(&mut read) => {}, () = trickle => {} }
        });
    }
    guests.join_all().await;
    world.check_alive().await;
}

async fn an_answer_comes_though_the_body_was_too_large() {
    let server = ours::builder(json!({})).build().await.unwrap();
    let server = server.serve_http(ours::router()).start().await.unwrap();
    let address = server.address("http").unwrap();
    for version in ["1", "2"] {
        let app = ours::caller(address, json!({ "client": { "http_version": version } })).await;
        let peer = app.http("peer");
        for streamed in [false, true] {
            let large = Bytes::from(vec![b'x'; 8 << 20]);
            let request = peer.post("/echo");
            let request = match streamed {
                true => request.stream(Full::new(large)),
                false => request.body(large),
            };
            let problem = request.send().await.unwrap().ok().await.unwrap_err();
            assert_eq!(problem.status().as_u16(), 413, "{version} {streamed}");
            assert_eq!(peer.get("/hello/you").send().await.unwrap().text().await.unwrap(), "hello, you");
        }
    }
}

async fn messages_and_metadata_that_are_too_large() {
    let world = World::new().await;
    let mut stub = EchoClient::new(world.callers[0].grpc("peer"));
    let request = EchoRequest { payload: vec![0; 5 << 20], ..says("") };
    let status = stub.call(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");

    let mut request = tonic::Request::new(says(""));
    request.metadata_mut().insert("x-large", MetadataValue::try_from("x".repeat(20_000)).unwrap());
    let status = stub.call(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("server.max_header_list"), "{status:?}");
    world.check_alive().await;
}

async fn malformed_messages() {
    let world = World::new().await;
    let good = [0, 0, 0, 0, 3, 0x0a, 0x01, b'x'];
    for body in [
        &[][..],                      // no message at all
        &[0, 0],                      // half a prefix
        &good[..6],                   // half a message
        &[0, 0xff, 0xff, 0xff, 0xff], // one of 4 GiB
        &[1, 0, 0, 0, 1, 0],          // compressed, with no algorithm named
        &[9, 0, 0, 0, 0],             // unknown flags
        &[0, 0, 0, 0, 2, 0x0a, 0x09], // no protobuf
        &[0, 0, 0, 0, 2, 0xff, 0xff], // nor this
    ] {
        let (status, reply) = send(&world.callers[0], body).await;
        assert_ne!(status, "0", "{body:?}");
        assert_eq!(reply, "", "{body:?}");
    }
    let (status, reply) = send(&world.callers[0], &good).await;
    assert_eq!((status.as_str(), &reply[5..]), ("0", "\n\u{1}x"));
    world.check_alive().await;
}

/// Calls the Echo service with this body. Returns the status and the body of the answer.
async fn send(caller: &Chassis, body: &[u8]) -> (String, String) {
    let body = tonic::body::Body::new(Full::new(Bytes::copy_from_slice(body)));
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = "/chassis.test.v1.Echo/Call".parse().unwrap();
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    let Ok(answer) = caller.grpc("peer").call(request).await;
    let (head, body) = answer.into_parts();
    let Ok(body) = body.collect().await;
    let of = |metadata: &HeaderMap| Some(metadata.get("grpc-status")?.to_str().unwrap().to_owned());
    let status = body.trailers().and_then(of).or(of(&head.headers)).unwrap();
    (status, String::from_utf8(body.to_bytes().to_vec()).unwrap())
}

/// It costs its own call only, not those beside it on the connection.
async fn a_panic_in_a_handler() {
    let world = World::new().await;
    let mut stub = EchoClient::new(world.callers[0].grpc("peer"));
    let (send, requests) = tokio::sync::mpsc::channel(1);
    send.send(says("before")).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut beside = stub.chat(requests).await.unwrap().into_inner();
    assert_eq!(beside.message().await.unwrap().unwrap().message, "before");

    let status = stub.call(says("panic")).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal, "{status:?}");
    let problem = world.callers[1].http("peer").get("/panic").send().await.unwrap().ok().await.unwrap_err();
    assert_eq!(problem.status().as_u16(), 500);
    assert_eq!(counted(world.server.runtime(), "chassis_handler_panics_total", &[]), 2);

    send.send(says("after")).await.unwrap();
    assert_eq!(beside.message().await.unwrap().unwrap().message, "after");
    world.check_alive().await;
}
