//! Servers that answer as an API server may, at moments that can't be caused with a real one.
use std::{sync::Arc, time::Duration};

use chassis_core::registry::{Membership, Registry, Watcher};
use chassis_kubernetes::{KubernetesConfig, KubernetesRegistry, PodLabels};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    time::{sleep, timeout},
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
    pods_that_may_not_be_read_are_asked_for_seldom
    the_first_answer_waits_for_labels_but_not_for_ever
    services_are_listed_by_pages_of_metadata
    services_that_cannot_be_listed_are_not_none
}

const PATIENCE: Duration = Duration::from_secs(30);
const ERROR: &str = r#"{"type":"ERROR","object":{"kind":"Status","code":500,"message":"away"}}"#;
const EXPIRED: &str = r#"{"kind":"Status","code":410,"reason":"Expired","message":"too old"}"#;

/// Answers requests in their order; the last answer stays without an end. Returns the targets of the requests.
async fn answers(all: Vec<(&'static str, String)>) -> (Box<dyn Watcher>, mpsc::UnboundedReceiver<String>) {
    let (registry, targets) = server(all).await;
    (registry.watch("stock").await.unwrap(), targets)
}

/// The same, without a watcher. Behind each target is the form that was asked for.
async fn server(all: Vec<(&'static str, String)>) -> (KubernetesRegistry, mpsc::UnboundedReceiver<String>) {
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
            let form = head.lines().find(|line| line.to_ascii_lowercase().starts_with("accept:"));
            let _ = to.send(format!("{target} {}", form.unwrap_or_default()));
            let Some((status, body)) = all.next() else { std::future::pending().await };
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{body}"
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (registry(KubernetesConfig { server, ..KubernetesConfig::default() }), targets)
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

/// An answer: after how long, the status, the body. `None`: there is none.
type Answer = Option<(Duration, &'static str, String)>;

/// Answers each request by its target, and sends its head.
async fn answers_by_target(
    answer: impl Fn(&str) -> Answer + Send + Sync + 'static,
) -> (Option<String>, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Some(format!("http://{}", listener.local_addr().unwrap()));
    let (to, heads) = mpsc::unbounded_channel();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (to, answer) = (to.clone(), answer.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return, // the connection that tests the way
                    }
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let answer = answer(head.split(' ').nth(1).unwrap());
                let _ = to.send(head);
                let Some((after, status, body)) = answer else { std::future::pending().await };
                sleep(after).await; // a server that is slow
                let head = "content-type: application/json\r\nconnection: close";
                let _ =
                    stream.write_all(format!("HTTP/1.1 {status}\r\n{head}\r\n\r\n{body}").as_bytes()).await;
            });
        }
    });
    (server, heads)
}

/// A watch of slices that ends again and again shows how often pods are asked for meanwhile.
async fn pods_that_may_not_be_read_are_asked_for_seldom() {
    let (server, mut heads) = answers_by_target(|target| match target {
        target if target.contains("/pods") => {
            Some((Duration::ZERO, "403 X", r#"{"message":"no pods for you"}"#.to_owned()))
        }
        target if target.contains("watch=true") => Some((Duration::ZERO, "200 X", String::new())),
        _ => Some((Duration::ZERO, "200 X", list(5, &[1], "").1)),
    })
    .await;
    let config =
        KubernetesConfig { server, pod_labels: PodLabels::Every(true), ..KubernetesConfig::default() };
    let mut watcher = registry(config).watch("stock").await.unwrap();
    until(&mut watcher, &hosts(&[1])).await;
    let (mut pods, mut watches) = (Vec::new(), 0);
    while watches < 20 {
        let head = timeout(PATIENCE, heads.recv()).await.unwrap().unwrap();
        match head.contains("/pods") {
            true => pods.push(head),
            false => watches += usize::from(head.contains("watch=true")),
        }
    }
    assert_eq!(pods.len(), 1, "{pods:#?}");
    let accept =
        "accept: application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json;q=0.5";
    assert!(pods[0].contains(accept), "{}", pods[0]);
    assert!(!pods[0].contains("Selector"), "{}", pods[0]);
}

/// A server that is slow to list pods, and one that never does.
async fn the_first_answer_waits_for_labels_but_not_for_ever() {
    for comes in [true, false] {
        let (server, _heads) = answers_by_target(move |target| {
            let pod = json!({ "metadata": { "name": "a", "uid": "1", "labels": { "version": "v1" } } });
            let slice = slice(
                "s",
                json!([{ "addresses": ["192.0.2.1"], "targetRef": { "kind": "Pod", "name": "a", "uid": "1" } }]),
            );
            let list = |item| json!({ "metadata": { "resourceVersion": "5" }, "items": [item] }).to_string();
            match target {
                target if target.contains("watch=true") => None,
                target if target.contains("/pods") => {
                    comes.then(|| (Duration::from_millis(300), "200 X", list(pod)))
                }
                _ => Some((Duration::ZERO, "200 X", list(slice))),
            }
        })
        .await;
        let config =
            KubernetesConfig { server, pod_labels: PodLabels::Every(true), ..KubernetesConfig::default() };
        let begun = tokio::time::Instant::now();
        let mut watcher = registry(config).watch("stock").await.unwrap();
        let first = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap();
        let Membership::Known(all) = first else { panic!("{first:?}") };
        assert_eq!(all[0].label("version"), comes.then_some("v1"));
        assert!(comes || begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}

/// A page of the metadata of slices, each of one of these services.
fn names(services: &[&str], next: &str) -> (&'static str, String) {
    let item = |name: &&str| json!({ "metadata": { "labels": { "kubernetes.io/service-name": name } } });
    let items: Vec<_> = services.iter().map(item).collect();
    ("200 X", json!({ "metadata": { "continue": next }, "items": items }).to_string())
}

async fn services_are_listed_by_pages_of_metadata() {
    let all = vec![names(&["stock", "orders"], "two"), names(&["stock", "mail"], "three"), names(&[], "")];
    let (registry, mut targets) = server(all).await;
    assert_eq!(registry.services().await, ["mail", "orders", "stock"]);
    assert!(registry.lists_services());
    for next in [None, Some("continue=two"), Some("continue=three")] {
        let target = targets.recv().await.unwrap();
        assert!(target.contains("as=PartialObjectMetadataList"), "{target}");
        assert_eq!(target.contains("continue="), next.is_some(), "{target}");
        assert!(target.contains(next.unwrap_or_default()), "{target}");
    }
}

/// An incomplete list is none either, and a namespace without services is not one that can't be read.
async fn services_that_cannot_be_listed_are_not_none() {
    let denied = || ("403 X", r#"{"message":"not you"}"#.to_owned());
    let endless = (0..200).map(|n| names(&["stock"], &format!("page{n}")));
    for all in [
        vec![denied()],
        vec![names(&["stock"], "more"), denied()],
        vec![names(&["stock"], "more"), ("410 X", EXPIRED.to_owned())],
        vec![("200 X", "{".to_owned())],
        endless.collect(),
    ] {
        let well = [names(&[], ""), names(&["stock"], "")];
        let (registry, _targets) = server(all.into_iter().chain(well).collect()).await;
        assert!(registry.lists_services());
        assert_eq!(registry.services().await, Vec::<String>::new());
        assert!(!registry.lists_services());
        assert_eq!(registry.services().await, Vec::<String>::new());
        assert!(registry.lists_services());
        assert_eq!(registry.services().await, ["stock"]);
    }
}
