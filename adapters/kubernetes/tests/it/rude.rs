//! Servers that answer as an API server may, at moments that can't be caused with a real one.
use std::time::Duration;

use chassis_core::registry::{Registry, Watcher};
use chassis_kubernetes::KubernetesConfig;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    time::timeout,
};

use crate::{
    registry::{hosts, registry, until},
    server::slice,
};

trials! {
    a_version_that_has_gone_is_listed_anew
    pages_that_have_gone_are_listed_anew
    what_is_malformed_is_no_instance
    what_came_before_an_error_is_shown
    watches_that_end_by_an_error_are_reported
    versions_that_go_again_and_again_are_listed_with_pauses
    pages_without_an_end_are_refused
    a_server_that_asks_for_a_pause_gets_it
}

const PATIENCE: Duration = Duration::from_secs(30);
const ERROR: &str = r#"{"type":"ERROR","object":{"kind":"Status","code":500,"message":"away"}}"#;
const EXPIRED: &str = r#"{"kind":"Status","code":410,"reason":"Expired","message":"too old"}"#;

/// Answers requests in their order; the last answer stays without an end. Returns the targets of the requests.
async fn answers(all: Vec<(&'static str, String)>) -> (Box<dyn Watcher>, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Some(format!("http://{}", listener.local_addr().unwrap()));
    let (to, targets) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut all = all.into_iter();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let Some(target) = head.split(' ').nth(1) else { continue }; // the connection that tests the way
            let _ = to.send(target.to_owned());
            let Some((status, body)) = all.next() else { std::future::pending().await };
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{body}"
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let registry = registry(KubernetesConfig { server, ..KubernetesConfig::default() });
    (registry.watch("stock").await.unwrap(), targets)
}

/// A list of slices with an endpoint each.
fn list(version: u32, all: &[u8], next: &str) -> (&'static str, String) {
    let item = |host: &u8| slice(&format!("s{host}"), json!([{ "addresses": [format!("192.0.2.{host}")] }]));
    let items: Vec<_> = all.iter().map(item).collect();
    let metadata = json!({ "resourceVersion": version.to_string(), "continue": next });
    ("200 X", json!({ "kind": "EndpointSliceList", "metadata": metadata, "items": items }).to_string())
}

async fn a_version_that_has_gone_is_listed_anew() {
    for gone in [
        ("410 X", EXPIRED.to_owned()),
        ("200 X", format!("{{\"type\":\"ERROR\",\"object\":{EXPIRED}}}\n")),
        ("200 X", "{\"type\":\"ADDED\",\"object\":7}\n".to_owned()),
    ] {
        let bookmark = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}"#;
        let all = vec![list(5, &[1, 2], ""), ("200 X", format!("{bookmark}\n")), gone, list(12, &[2, 3], "")];
        let (mut watcher, mut targets) = answers(all).await;
        until(&mut watcher, &hosts(&[1, 2])).await;
        until(&mut watcher, &hosts(&[2, 3])).await;
        let mut seen = Vec::new();
        while seen.len() < 5 {
            seen.push(timeout(PATIENCE, targets.recv()).await.unwrap().unwrap());
        }
        for (at, words) in
            [(1, "resourceVersion=5"), (2, "resourceVersion=9"), (3, "limit="), (4, "resourceVersion=12")]
        {
            assert!(seen[at].contains(words), "{words}: {seen:#?}");
        }
        assert!(
            seen[1].contains("allowWatchBookmarks=true") && !seen[3].contains("resourceVersion"),
            "{seen:#?}"
        );
    }
}

async fn pages_that_have_gone_are_listed_anew() {
    let all =
        vec![list(5, &[1], "more"), ("410 X", EXPIRED.to_owned()), list(7, &[2], "more"), list(7, &[3], "")];
    let (mut watcher, mut targets) = answers(all).await;
    until(&mut watcher, &hosts(&[2, 3])).await;
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.push(timeout(PATIENCE, targets.recv()).await.unwrap().unwrap());
    }
    let continued: Vec<_> = seen.iter().map(|target| target.contains("continue=more")).collect();
    assert_eq!(continued, [false, true, false, true]);
}

async fn what_is_malformed_is_no_instance() {
    let mut bad = slice("bad", json!([{ "addresses": "x" }, { "addresses": ["192.0.2.7"] }]));
    let items = json!([
        bad.take(),
        slice("worse", json!(7)),
        7,
        slice("good", json!([{ "addresses": ["192.0.2.1"] }]))
    ]);
    let whole = json!({ "metadata": { "resourceVersion": "5" }, "items": items }).to_string();
    let all = vec![
        ("200 X", "{".to_owned()),
        ("200 X", "[]".to_owned()),
        ("500 X", "x".to_owned()),
        ("200 X", whole),
    ];
    let (mut watcher, _targets) = answers(all).await;
    until(&mut watcher, &hosts(&[1, 7])).await;
}

/// The first error of a watcher.
async fn error(watcher: &mut Box<dyn Watcher>) -> String {
    let first = async {
        loop {
            if let Err(error) = watcher.next().await {
                return error.to_string();
            }
        }
    };
    timeout(PATIENCE, first).await.unwrap()
}

async fn what_came_before_an_error_is_shown() {
    let mut object = slice("s2", json!([{ "addresses": ["192.0.2.2"] }]));
    object["metadata"]["resourceVersion"] = json!("6");
    let event = json!({ "type": "ADDED", "object": object });
    let all = vec![list(5, &[1], ""), ("200 X", format!("{event}\n{ERROR}\n"))];
    let (mut watcher, mut targets) = answers(all).await;
    until(&mut watcher, &hosts(&[1, 2])).await;
    for words in ["limit=", "resourceVersion=5", "resourceVersion=6"] {
        let target = timeout(PATIENCE, targets.recv()).await.unwrap().unwrap();
        assert!(target.contains(words), "{words}: {target}");
    }
}

async fn watches_that_end_by_an_error_are_reported() {
    let all = vec![list(5, &[1], ""), ("200 X", format!("{ERROR}\n")), ("200 X", format!("{ERROR}\n"))];
    let (mut watcher, _targets) = answers(all).await;
    let why = error(&mut watcher).await;
    assert!(why.contains("away"), "{why}");
}

async fn versions_that_go_again_and_again_are_listed_with_pauses() {
    let gone = || ("410 X", EXPIRED.to_owned());
    let list = || list(5, &[1], "");
    let all = vec![list(), gone(), list(), gone(), list(), gone(), list(), gone(), list()];
    let begun = tokio::time::Instant::now();
    let (mut watcher, mut targets) = answers(all).await;
    let why = error(&mut watcher).await;
    assert!(why.contains("too old"), "{why}");
    for _ in 0..9 {
        timeout(PATIENCE, targets.recv()).await.unwrap().unwrap();
    }
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(200 + 400 + 600), "{took:?}");
    until(&mut watcher, &hosts(&[1])).await;
}

async fn pages_without_an_end_are_refused() {
    let all = vec![list(5, &[1], "more"), list(5, &[2], "more"), list(7, &[3], "")];
    let (mut watcher, _targets) = answers(all).await;
    let why = error(&mut watcher).await;
    assert!(why.contains("`continue` twice"), "{why}");
    until(&mut watcher, &hosts(&[3])).await;
}

async fn a_server_that_asks_for_a_pause_gets_it() {
    for busy in ["429 X\r\nretry-after: 1", "503 X\r\nretry-after: 1"] {
        let begun = tokio::time::Instant::now();
        let (mut watcher, _targets) = answers(vec![(busy, String::new()), list(5, &[1], "")]).await;
        until(&mut watcher, &hosts(&[1])).await;
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(1), "{took:?}");
    }
}
