//! Heads of requests and answers that pass a server: refused ones, and fields that end here.
use axum::{Router, extract::Request, response::IntoResponse, routing::any};
use bytes::Bytes;
use chassis_core::{Body, Runtime, protocol::Leaf};
use chassis_http::{
    ClientConfig, H1Leaf, H2Leaf, HttpVersion, RestLayer, ServerConfig,
    connector::{Listener, Stream},
    server::{Answer, Received, Server, ServerBody},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    lengths::{Party, relay},
    support::{World, call, read},
};

/// Answers with the request's fields, and the length of its body.
async fn describe(request: Request) -> String {
    let (head, body) = request.into_parts();
    let mut fields: Vec<_> =
        head.headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
    fields.sort();
    let body = axum::body::to_bytes(body, 1_000).await.map_or(-1, |body| body.len() as i64);
    format!("{} {body}", fields.join("|"))
}

fn serve(world: &World) -> Server {
    let relayed = async || {
        let fields = [
            ("connection", "keep-alive, x-named"),
            ("x-named", "1"),
            ("keep-alive", "timeout=5"),
            ("x-own", "1"),
        ];
        let mut response = "relayed".into_response();
        for (name, value) in fields {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    };
    let routes = Router::new()
        .route("/switches", any(async || StatusCode::SWITCHING_PROTOCOLS))
        .route("/relayed", any(relayed))
        .route("/closes", any(async || ([("connection", "close")], "bye")))
        .fallback(any(describe));
    world.serve(
        ServerConfig::default(),
        RestLayer::new(&Runtime::builder("orders").build().unwrap()).serve(routes),
    )
}

/// The answer to `request` over HTTP/1.1, until the server closes.
async fn ask(request: &str) -> String {
    let world = World::new();
    let _server = serve(&world);
    let mut stream = world.raw().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    said
}

#[tokio::test(start_paused = true)]
async fn one_host_or_none_of_the_request() {
    for fields in [
        "",
        "Host: x\r\nHost: y\r\n",
        "Host: x\r\nHost: x\r\n",
        "Host:\r\n",
        "Host: user@x\r\n",
        "Host: a/b\r\n",
    ] {
        let said = ask(&format!("GET /x HTTP/1.1\r\n{fields}\r\n")).await;
        assert!(said.starts_with("HTTP/1.1 400 ") && said.contains("connection: close"), "{fields:?} {said}");
        assert!(said.contains("application/problem+json") && said.contains("Host`"), "{said}");
    }
    let said = ask("GET http://elsewhere/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(said.ends_with("host=elsewhere 0"), "{said}");
    assert!(ask("GET /x HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 200 "));
}

#[tokio::test(start_paused = true)]
async fn bodies_are_chunked_once_or_not_at_all() {
    let post = async |fields: &str, rest: &str| {
        let said = ask(&format!("POST /x HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n{rest}")).await;
        (said[9..12].to_owned(), said)
    };
    let hello = "5\r\nhello\r\n0\r\n\r\n";
    for (fields, status) in [
        ("Transfer-Encoding: gzip, chunked", "501"),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", "501"),
        ("Transfer-Encoding: chunked, chunked", "400"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: Chunked", "400"),
        ("Transfer-Encoding: chunked, gzip", "400"),
    ] {
        let (received, said) = post(fields, hello).await;
        assert_eq!(received, status, "{fields}: {said}");
        assert_eq!(said.matches("HTTP/1.1").count(), 1, "{said}");
    }
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    for fields in
        ["Content-Length: 3\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 3"]
    {
        let (received, said) = post(fields, &format!("{hello}{smuggled}")).await;
        assert!(received == "200" && said.ends_with("host=x 5"), "by chunked: {said}");
        assert!(said.contains("connection: close") && said.matches("HTTP/1.1").count() == 1, "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_switches_to_another_protocol() {
    let socket = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
    let said = ask(&format!("GET /x HTTP/1.1\r\nHost: x\r\n{socket}\r\n")).await;
    assert!(said.starts_with("HTTP/1.1 501 ") && said.contains("WebSocket is not spoken here"), "{said}");
    let said = ask("CONNECT elsewhere:443 HTTP/1.1\r\nHost: elsewhere:443\r\n\r\n").await;
    assert!(said.starts_with("HTTP/1.1 501 ") && said.contains("CONNECT"), "{said}");
    // A client that also accepts HTTP/1.1 gets it.
    let h2c = "Connection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n";
    let said = ask(&format!("GET /x HTTP/1.1\r\nHost: x\r\n{h2c}\r\n")).await;
    assert!(said.starts_with("HTTP/1.1 200 ") && said.ends_with("host=x 0"), "{said}");
    let said = ask("GET /switches HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(said.starts_with("HTTP/1.1 501 "), "{said}");
    let world = World::new();
    let _server = serve(&world);
    let make = |link, connector, config| H2Leaf::new(link, connector, config, true);
    let client = world.leaf(make, ClientConfig::default()).ready().await;
    assert!(client.get("/switches").await.unwrap().starts_with("501 {"));
}

#[tokio::test(start_paused = true)]
async fn what_is_about_the_connection_ends_here() {
    let request = "GET /x HTTP/1.1\r\nHost: x\r\nConnection: close, X-Named, Authorization\r\nX-Named: 1\r\n\
        Authorization: Bearer t\r\nX-Forwarded-For: 10.0.0.1\r\nTE: gzip\r\nKeep-Alive: timeout=5\r\nX-Own: 1\r\n\
        Cookie: a=1\r\nCookie: b=2\r\n\r\n";
    let said = ask(request).await;
    let fields = "authorization=Bearer t|cookie=a=1; b=2|host=x|x-forwarded-for=10.0.0.1|x-own=1 0";
    assert!(said.ends_with(&format!("\r\n\r\n{fields}")), "{said}");
    let said = ask("GET /relayed HTTP/1.0\r\n\r\n").await;
    assert!(said.contains("x-own: 1") && said.ends_with("relayed"), "{said}");
    assert!(!["keep-alive", "x-named"].iter().any(|name| said.contains(name)), "{said}");
    assert!(ask("GET /closes HTTP/1.1\r\nHost: x\r\n\r\n").await.contains("connection: close"));
}

#[tokio::test(start_paused = true)]
async fn over_http2_a_cookie_is_one_and_so_is_the_authority() {
    let world = World::new();
    let _server = serve(&world);
    let make = |link, connector, config| H2Leaf::new(link, connector, config, true);
    let client = world.leaf(make, ClientConfig::default()).ready().await;
    let mut crumbs = call(Method::GET, "/x", Body::empty());
    for crumb in ["session=abc", "theme=dark", "lang=de"] {
        crumbs.metadata.append("cookie", HeaderValue::from_static(crumb));
    }
    let received = read(client.leaf.call(crumbs).await.unwrap()).await.unwrap();
    assert_eq!(received, "200 cookie=session=abc; theme=dark; lang=de 0");
    assert_eq!(world.memory.connections("stock"), 1);
}

/// The head of the next request, in lower case.
async fn head_of(stream: &mut Stream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap().to_lowercase()
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_passed_on_begins_its_hop_anew() {
    let world = World::new();
    let mut upstream = world.memory.listen("up").unwrap();
    let asked = tokio::spawn(async move {
        let mut stream = upstream.accept().await.unwrap();
        let head = head_of(&mut stream).await;
        let answer = "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Named\r\nKeep-Alive: timeout=5\r\nX-Named: 1\r\n\
            X-Own: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        (head, stream)
    });
    let middle = Party::new(&world, "stock", HttpVersion::One);
    let routes = relay(middle.client("up"));
    let middle = middle.serve(&world, routes);
    let mut stream = world.raw().await;
    let request = "GET /x HTTP/1.1\r\nHost: shop.example\r\nConnection: close, X-Named, Authorization\r\n\
        X-Named: 1\r\nAuthorization: Bearer t\r\nTE: gzip\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\n\
        Cookie: a=1\r\nCookie: b=2\r\nTraceparent: 00-zz\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    let (head, _upstream) = asked.await.unwrap();
    let mut fields: Vec<_> = head.trim_end().lines().collect();
    fields.sort_unstable();
    let expected = [
        "authorization: bearer t",
        "cookie: a=1; b=2",
        "get /x http/1.1",
        "host: up",
        "x-chassis-caller: stock",
    ];
    assert_eq!(fields, expected);
    assert!(said.contains("x-own: 1") && said.ends_with("2\r\nok\r\n0\r\n\r\n"), "{said}");
    assert!(!["keep-alive", "x-named"].iter().any(|name| said.contains(name)), "{said}");
    drop(middle);
}

/// Also for a caller that forwards nothing.
#[tokio::test(start_paused = true)]
async fn an_answer_says_nothing_of_its_connection() {
    let world = World::new();
    let mut upstream = world.memory.listen("stock").unwrap();
    let client = world.leaf(H1Leaf::new, ClientConfig::default());
    let answering = tokio::spawn(async move {
        let mut stream = upstream.accept().await.unwrap();
        head_of(&mut stream).await;
        let answer = "HTTP/1.1 200 OK\r\nConnection: X-Named, Set-Cookie\r\nKeep-Alive: timeout=5\r\nX-Named: 1\r\n\
            Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream
    });
    let reply = client.leaf.call(call(Method::GET, "/x", Body::empty())).await.unwrap();
    let fields: Vec<_> = reply.metadata.iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect();
    assert_eq!(fields, ["set-cookie=a=1", "set-cookie=b=2"]);
    assert_eq!(read(reply).await.unwrap(), "200 ok");
    drop(answering);
}

/// Such trailers made the answer malformed, and its status was lost with it.
#[tokio::test(start_paused = true)]
async fn nor_do_trailers() {
    let world = World::new();
    let service = |_: http::Request<Received>| -> Answer {
        let trailers = [("connection", "close"), ("keep-alive", "timeout=5"), ("x-status", "0")];
        let trailers = trailers.map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)));
        let trailers = std::future::ready(Some(Ok(HeaderMap::from_iter(trailers))));
        let body = Full::new(Bytes::from_static(b"hello")).with_trailers(trailers);
        Box::pin(std::future::ready(Response::new(ServerBody::new(body))))
    };
    let _server = world.serve(ServerConfig::default(), service);
    let make = |link, connector, config| H2Leaf::new(link, connector, config, true);
    let client = world.leaf(make, ClientConfig::default()).ready().await;
    let reply = client.leaf.call(call(Method::GET, "/x", Body::empty())).await.unwrap();
    let whole = reply.into_body().collect().await.unwrap();
    let trailers: Vec<_> = whole.trailers().unwrap().keys().map(|name| name.as_str().to_owned()).collect();
    assert_eq!(trailers, ["x-status"]);
    assert_eq!(whole.to_bytes(), "hello");
}

/// The status of the answer to a GET of `/` with these fields, in HPACK, over HTTP/2; by its static table.
async fn status_h2(fields: &[u8]) -> u8 {
    let world = World::new();
    let _server = serve(&world);
    let mut stream = world.raw().await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let block = [&b"\x82\x86\x84"[..], fields].concat(); // GET, http, /
    stream.write_all(&[&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1], &block[..]].concat()).await.unwrap();
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).await.unwrap();
        let mut payload = vec![0; usize::from(header[1]) << 8 | usize::from(header[2])];
        stream.read_exact(&mut payload).await.unwrap();
        if header[3] == 1 {
            return payload[0];
        }
    }
}

#[tokio::test(start_paused = true)]
async fn over_http2_host_and_authority_agree() {
    const OK: u8 = 0x88;
    const BAD_REQUEST: u8 = 0x8c;
    let authority = |name: &str| [&[0x01, name.len() as u8], name.as_bytes()].concat();
    let host = |name: &str| [&[0x0f, 0x17, name.len() as u8], name.as_bytes()].concat();
    for (fields, status) in [
        (vec![], OK),
        (authority("shop.example"), OK),
        ([authority("shop.example"), host("shop.example")].concat(), OK),
        ([authority("shop.example"), host("other.example")].concat(), BAD_REQUEST),
        ([authority("shop.example"), host("shop.example"), host("shop.example")].concat(), BAD_REQUEST),
        (authority("user@shop.example"), BAD_REQUEST),
        (host(""), BAD_REQUEST),
        (host("shop.example"), OK),
    ] {
        assert_eq!(status_h2(&fields).await, status, "{fields:?}");
    }
}
