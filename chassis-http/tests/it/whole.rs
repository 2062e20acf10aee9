//! A body is complete only if its stream ended, and with the declared number of bytes; in both directions.
use std::time::Duration;

use chassis_core::{Body, Failed, Reason, protocol::Leaf};
use chassis_http::{
    ClientConfig, H1Leaf, H2Leaf, ServerConfig,
    connector::Listener,
    server::{Answer, Received, ServerBody},
};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    raw,
    support::{SECOND, World, call, read},
};

/// The result of a call over HTTP/2 whose server sends `words` after it has received the head of stream 1.
async fn h2_answer(words: Vec<Vec<u8>>) -> Result<String, Failed> {
    let world = World::new();
    let mut listener = world.memory.listen("stock").unwrap();
    world.tasks.spawn(async move {
        let mut stream = listener.accept().await.unwrap();
        raw::greet(&mut stream, &[]).await;
        raw::read_until(&mut stream, raw::HEADERS).await.unwrap();
        for word in words {
            stream.write_all(&word).await.unwrap();
            sleep(Duration::from_millis(10)).await;
        }
        while raw::read(&mut stream).await.is_some() {}
    });
    let make = |link, connector, config| H2Leaf::new(link, connector, config, true);
    world.leaf(make, ClientConfig::default()).ready().await.get("/x").await
}

fn head(fields: &[(&str, &str)]) -> Vec<u8> {
    raw::headers(1, &[&[(":status", "200")], fields].concat(), false)
}

fn data(text: &str, end: bool) -> Vec<u8> {
    raw::frame(raw::DATA, u8::from(end), 1, text.as_bytes())
}

#[track_caller]
fn check_broken(answer: Result<String, Failed>, reason: Reason) {
    let error = answer.expect_err("not taken for whole");
    assert_eq!((error.reason(), error.maybe_executed()), (reason, true), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_reset_before_its_end_is_not_whole() {
    for length in [&[][..], &[("content-length", "1000")]] {
        let broken = h2_answer(vec![head(length), data("half", false), raw::reset(1, 0)]).await;
        check_broken(broken, Reason::ConnectionLost);
        let broken = h2_answer(vec![head(length), raw::reset(1, 0)]).await;
        check_broken(broken, Reason::ConnectionLost);
        let at_once = [head(length), data("half", false), raw::reset(1, 0)].concat();
        check_broken(h2_answer(vec![at_once]).await, Reason::ConnectionLost);
    }
    check_broken(h2_answer(vec![raw::reset(1, 0)]).await, Reason::ConnectionLost);
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_another_length_than_it_said_is_not_whole() {
    let short = h2_answer(vec![head(&[("content-length", "1000")]), data("half", true)]).await;
    check_broken(short, Reason::ConnectionLost);
    let trailers = raw::headers(1, &[("x-sum", "1")], true);
    let short = h2_answer(vec![head(&[("content-length", "1000")]), data("half", false), trailers]).await;
    check_broken(short, Reason::ConnectionLost);
    let long = h2_answer(vec![head(&[("content-length", "2")]), data("more", true)]).await;
    check_broken(long, Reason::ConnectionLost);
}

#[tokio::test(start_paused = true)]
async fn a_reset_after_the_whole_answer_concerns_the_request_alone() {
    let apart = h2_answer(vec![head(&[]), data("all", true), raw::reset(1, 0)]).await;
    assert_eq!(apart.unwrap(), "200 all");
    let at_once = [head(&[]), data("all", true), raw::reset(1, 0)].concat();
    assert_eq!(h2_answer(vec![at_once]).await.unwrap(), "200 all");
}

/// An upload is answered before its end, and its client is asked to stop: the answer is valid, the upload ends.
#[tokio::test(start_paused = true)]
async fn an_upload_that_is_told_to_stop_has_its_answer() {
    let world = World::new();
    let mut listener = world.memory.listen("stock").unwrap();
    world.tasks.spawn(async move {
        let mut stream = listener.accept().await.unwrap();
        raw::greet(&mut stream, &[]).await;
        raw::read_until(&mut stream, raw::DATA).await.unwrap();
        let answer = [head(&[("content-length", "4")]), data("full", true), raw::reset(1, 0)].concat();
        stream.write_all(&answer).await.unwrap();
        while raw::read(&mut stream).await.is_some() {}
    });
    let make = |link, connector, config| H2Leaf::new(link, connector, config, true);
    let client = world.leaf(make, ClientConfig::default()).ready().await;
    let (mut sender, body) =
        http_body_util::channel::Channel::<bytes::Bytes, std::convert::Infallible>::new(1);
    sender.send_data("some".into()).await.unwrap();
    let body = Body::stream(body, |never| match never {});
    let reply = client.leaf.call(call(Method::POST, "/upload", body)).await.unwrap();
    assert_eq!(read(reply).await.unwrap(), "200 full");
    sleep(SECOND).await;
    assert!(sender.send_data("more".into()).await.is_err(), "its reader is gone");
}

/// The error of a reset names its code.
#[tokio::test(start_paused = true)]
async fn a_reset_by_the_peer_is_not_told_as_headers_over_the_limit() {
    for words in [vec![raw::reset(1, 1)], vec![head(&[]), data("half", false), raw::reset(1, 1)]] {
        check_broken(h2_answer(words).await, Reason::Internal);
    }
    let malformed = raw::headers(1, &[(":status", "200"), ("connection", "close")], true);
    check_broken(h2_answer(vec![malformed]).await, Reason::Malformed);
}

/// The same for an answer over HTTP/1.1.
#[tokio::test(start_paused = true)]
async fn an_answer_over_http1_that_ends_early_is_not_whole() {
    for words in [
        "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nha",
    ] {
        let world = World::new();
        let mut listener = world.memory.listen("stock").unwrap();
        world.tasks.spawn(async move {
            while let Ok(mut stream) = listener.accept().await {
                assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
                stream.write_all(words.as_bytes()).await.unwrap();
            }
        });
        let client = world.leaf(H1Leaf::new, ClientConfig::default());
        check_broken(client.get("/x").await, Reason::ConnectionLost);
    }
}

/// How the request's body ends for the handler of a server that gets `words`: the number of bytes, an error, or
/// no end.
async fn request(words: Vec<Vec<u8>>) -> Option<usize> {
    let world = World::new();
    let (ended, mut received) = mpsc::unbounded_channel();
    let service = move |request: Request<Received>| -> Answer {
        let ended = ended.clone();
        // In its own task, because the exchange ends with its stream.
        tokio::spawn(async move {
            let body = request.into_body().collect().await;
            let _ = ended.send(body.ok().map(|body| body.to_bytes().len()));
        });
        Box::pin(async {
            sleep(SECOND).await;
            Response::new(ServerBody::from("done"))
        })
    };
    let _server = world.serve(ServerConfig::default(), service);
    let mut stream = world.raw().await;
    for word in words {
        stream.write_all(&word).await.unwrap();
        sleep(Duration::from_millis(10)).await;
    }
    // A stream that is reset before it is handled gets no handler.
    timeout(SECOND, received.recv()).await.ok().flatten().flatten()
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_reset_before_its_end_is_not_whole() {
    let begin = [&raw::PREFACE[..], &raw::settings(&[])].concat();
    for content_type in ["text/plain", "application/octet-stream"] {
        for length in [&[][..], &[("content-length", "1000")]] {
            let head =
                [
                    &[
                        (":method", "POST"),
                        (":scheme", "http"),
                        (":authority", "stock"),
                        (":path", "/upload"),
                    ][..],
                    &[("content-type", content_type)],
                    length,
                ]
                .concat();
            let head = raw::headers(1, &head, false);
            for code in [0, 1, 8] {
                let words = vec![begin.clone(), head.clone(), data("half", false), raw::reset(1, code)];
                assert_eq!(request(words.clone()).await, None, "code {code}");
                assert_eq!(request(vec![words.concat()]).await, None, "code {code}, at once");
            }
            let short = vec![begin.clone(), head.clone(), data("half", true)];
            assert_eq!(request(short).await, length.is_empty().then_some(4));
            // Some of it was unread when the stream was reset after its end.
            let whole = vec![[begin.clone(), head, data("half", true), raw::reset(1, 0)].concat()];
            assert_ne!(request(whole).await, Some(0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_over_http1_that_ends_early_is_not_whole() {
    let head = "POST /upload HTTP/1.1\r\nhost: stock\r\n";
    for words in [
        "content-length: 1000\r\n\r\nhalf",
        "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "transfer-encoding: chunked\r\n\r\n4\r\nha",
    ] {
        assert_eq!(request(vec![format!("{head}{words}").into_bytes()]).await, None, "{words}");
    }
}
