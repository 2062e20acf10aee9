//! Servers that answer as no config center should.
use std::time::Duration;

use chassis_core::units::PositiveSpan;
use chassis_http_center::{HttpSourceConfig, Watch};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::{
    center::{PATIENCE, POLL, at, error, watch},
    server::{Server, Wrong},
};

/// Answers each connection with these bytes, and closes it.
async fn raw(answer: Vec<u8>) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut head = [0; 4_096];
                while stream.read(&mut head).await.is_ok_and(|read| read > 0 && !head.ends_with(b"\r\n\r\n"))
                {
                    if stream.write_all(&answer).await.is_err() || stream.shutdown().await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (format!("http://{address}/x.yaml"), task)
}

#[tokio::test]
async fn a_status_is_an_error_and_the_text_stays_known() {
    for (status, headers, body, why) in [
        (500, vec![], "no\nway", "it answers 500: no\\nway"),
        (502, vec![("content-type", "text/html")], "<html>", "it answers 502"),
        (404, vec![], "", "there is no document (404)"),
        (410, vec![], "", "there is no document (410)"),
        (401, vec![], "", "does not let this process read the document (401)"),
        (301, vec![("location", "http://127.0.0.1:1/y")], "", "it redirects (301) to http://127.0.0.1:1/y"),
        (200, vec![("content-type", "text/html")], "a: 1", "a page (text/html)"),
        (200, vec![], "<html>a: 1</html>", "a page"),
        (200, vec![], "", "the document is empty"),
        (204, vec![], "", "it answers 204"),
        (206, vec![], "a: 1", "it answers 206: a: 1"),
        (200, vec![("content-encoding", "gzip")], "a: 1", "compressed (gzip)"),
    ] {
        let server = Server::start().await;
        server.put("a: 1");
        let mut watcher = watch(at(server.url(), POLL)).await;
        assert_eq!(timeout(PATIENCE, watcher.next()).await.unwrap().unwrap().content, "a: 1");
        server.go_wrong(Wrong { status, headers, body });
        let found = error(&mut watcher).await;
        assert!(found.contains(why) && found.contains(&server.url()), "{status} {body}: {found}");
        let asked = server.asked().len();
        server.was_asked(asked + 2).await;
        let more = timeout(Duration::from_millis(50), watcher.next()).await;
        assert!(more.is_err(), "it is reported once: {more:?}");
        server.put("a: 1");
        assert_eq!(
            timeout(PATIENCE, watcher.next()).await.unwrap().unwrap().content,
            "a: 1",
            "{status} {body}"
        );
    }
}

#[tokio::test]
async fn a_body_that_may_be_cut_off_is_no_document() {
    for (answer, why) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\na: 1\n", "127.0.0.1"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\na: 1\n\r\n", "127.0.0.1"),
        ("HTTP/1.1 200 OK\r\n\r\na: 1\n", "the answer states no length"),
        ("HTTP/1.0 200 OK\r\n\r\na: 1\n", "the answer states no length"),
        ("HTTP/1.1 304 Not Modified\r\n\r\n", "304 to a request without"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n\u{e9}\"", "no text in UTF-8"),
        ("garbage", "127.0.0.1"),
    ] {
        // The one that is not valid UTF-8 ends in the middle of a letter.
        let bytes = answer.replace('\u{e9}', "a").into_bytes();
        let bytes = if why.contains("UTF-8") {
            [&bytes[..bytes.len() - 2], &[b'a', 0xff, b'b']].concat()
        } else {
            bytes
        };
        let (url, task) = raw(bytes).await;
        let mut watcher = watch(at(url, POLL)).await;
        let found = error(&mut watcher).await;
        assert!(found.contains(why), "{answer:?}: {found}");
        task.abort();
    }
    let (url, task) =
        raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\na: 1\n\r\n0\r\n\r\n".to_vec()).await;
    let mut watcher = watch(at(url, POLL)).await;
    assert_eq!(timeout(PATIENCE, watcher.next()).await.unwrap().unwrap().content, "a: 1\n");
    task.abort();
}

#[tokio::test]
async fn a_document_without_end_is_refused() {
    let body = vec![b'#'; (4 << 20) + 1];
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    let (url, task) = raw([head.into_bytes(), body.clone()].concat()).await;
    let mut watcher = watch(at(url, POLL)).await;
    let found = error(&mut watcher).await;
    assert!(found.contains("more than 4194304 bytes"), "{found}");
    task.abort();
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n".to_vec();
    let (url, task) = raw([head, body.repeat(3)].concat()).await;
    let mut watcher = watch(at(url, Watch::Events(PositiveSpan::from_millis(9_000)))).await;
    let found = error(&mut watcher).await;
    assert!(found.contains("an event has more than"), "{found}");
    task.abort();
}

#[tokio::test]
async fn a_server_that_is_silent_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap(); // accepts, and says nothing
    let url = format!("http://{}/x", listener.local_addr().unwrap());
    for by in [POLL, Watch::Events(PositiveSpan::from_millis(9_000))] {
        let config = HttpSourceConfig { timeout: PositiveSpan::from_millis(200), ..at(url.clone(), by) };
        let begun = Instant::now();
        let found = error(&mut watch(config).await).await;
        assert!(found.contains("no answer in time"), "{found}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }
    // A stream that goes silent after its first event begins anew, with what it has.
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nid: 7\ndata: a: 1\n\n";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/x", listener.local_addr().unwrap());
    let by = Watch::Events(PositiveSpan::from_millis(1_000));
    let config = HttpSourceConfig { timeout: PositiveSpan::from_millis(1_000), ..at(url, by) };
    let mut watcher = watch(config).await;
    let mut streams = Vec::new();
    for is_first in [true, false] {
        let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.expect("it connects").unwrap();
        let mut request = vec![0; 4_096];
        let read = stream.read(&mut request).await.unwrap();
        let request = String::from_utf8_lossy(&request[..read]).into_owned();
        assert_eq!(request.contains("last-event-id: 7\r\n"), !is_first, "{request}");
        stream.write_all(head.as_bytes()).await.unwrap();
        streams.push(stream);
        if is_first {
            assert_eq!(timeout(PATIENCE, watcher.next()).await.unwrap().unwrap().content, "a: 1");
        }
    }
    assert!(timeout(Duration::from_millis(50), watcher.next()).await.is_err(), "nothing is new");
    // A server that answers no more is reported, though each attempt lasts as long as a good stream.
    let found = error(&mut watcher).await;
    assert!(found.contains("no answer in time"), "{found}");
}

#[tokio::test]
async fn what_is_no_stream_of_events_is_an_error() {
    let by = Watch::Events(PositiveSpan::from_millis(9_000));
    for (headers, body, why) in [
        (vec![("content-type", "application/yaml")], "a: 1", "it sends no events, but `application/yaml`"),
        (vec![], "a: 1", "it sends no events"),
        (vec![("content-type", "text/event-stream")], "data: <html>\n\n", "a page"),
        (vec![("content-type", "text/event-stream")], ": alive\n\n", "has ended"),
        (vec![("content-type", "text/event-stream")], "event: delete\n\n", "the document was deleted"),
        (vec![("content-type", "text/event-stream")], "data: a: 1\n", "has ended"),
    ] {
        let server = Server::start().await;
        server.go_wrong(Wrong { status: 200, headers, body });
        let found = error(&mut watch(at(server.url(), by)).await).await;
        assert!(found.contains(why), "{body}: {found}");
    }
}

/// A server that answers a long poll at once is not asked without a pause.
#[tokio::test]
async fn a_server_that_does_not_wait_is_asked_at_a_bounded_pace() {
    let server = Server::start().await;
    server.go_wrong(Wrong { status: 200, headers: vec![("etag", "\"1\"")], body: "a: 1" });
    let mut watcher = watch(at(server.url(), Watch::LongPoll(PositiveSpan::from_millis(60_000)))).await;
    assert_eq!(timeout(PATIENCE, watcher.next()).await.unwrap().unwrap().content, "a: 1");
    server.was_asked(2).await;
    assert!(timeout(Duration::from_millis(500), watcher.next()).await.is_err());
    assert_eq!(server.asked().len(), 2);
}
