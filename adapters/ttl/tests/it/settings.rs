//! Documents of settings: their requests, and the config center that reads them.
use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chassis_core::{
    config::{ConfigSource, ConfigWatcher, Format},
    testing::contract::config_source::{Place, config_source},
    units::Size,
};
use chassis_ttl::{TtlServer, TtlServerConfig, TtlSource, TtlSourceConfig};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::process::{PATIENCE, Process};

const KEY: &str = "orders/chassis.yaml";
const PATH: &str = "/v1/settings/orders/chassis.yaml";

struct Document(Process);

#[async_trait]
impl Place for Document {
    fn source(&self) -> Arc<dyn ConfigSource> {
        Arc::new(TtlSource::new(TtlSourceConfig::at([&self.0.address], "/orders/chassis.yaml")).unwrap())
    }

    async fn write(&mut self, content: &str) {
        put(&self.0, content).await;
    }

    async fn spoil(&mut self) -> bool {
        let (status, answer) = self.0.ask("DELETE", PATH, "").await;
        assert_eq!(status, 200, "{answer}");
        true
    }
}

/// Puts the document; its revision.
async fn put(server: &Process, content: &str) -> u64 {
    let (status, answer) = server.ask("PUT", PATH, content).await;
    assert_eq!(status, 200, "{answer}");
    answer["revision"].as_str().unwrap().parse().unwrap()
}

async fn watch<'a>(servers: impl IntoIterator<Item = &'a Process>) -> Box<dyn ConfigWatcher> {
    let servers = servers.into_iter().map(|server| &server.address);
    TtlSource::new(TtlSourceConfig::at(servers, KEY)).unwrap().watch().await.unwrap()
}

/// The next text, without the errors before it.
async fn text(watcher: &mut Box<dyn ConfigWatcher>) -> String {
    let next = async {
        loop {
            if let Ok(text) = watcher.next().await {
                return text.content;
            }
        }
    };
    timeout(PATIENCE, next).await.expect("a text comes")
}

async fn error(watcher: &mut Box<dyn ConfigWatcher>) -> String {
    timeout(PATIENCE, watcher.next()).await.expect("an error comes").unwrap_err().to_string()
}

/// Sends a request with these headers; the status, the head and the body of the answer.
async fn raw(server: &Process, method: &str, headers: &str, body: &str) -> (u16, String, String) {
    let head = format!("{method} {PATH} HTTP/1.1\r\nhost: r\r\nconnection: close\r\n{headers}");
    server.exchange(&format!("{head}content-length: {}\r\n\r\n{body}", body.len())).await
}

#[tokio::test]
async fn a_center_keeps_the_contract() {
    config_source(Document(Process::start().await)).await;
}

#[tokio::test]
async fn a_text_names_its_key_and_revision() {
    let server = Process::start().await;
    let source = TtlSource::new(TtlSourceConfig::at([&server.address], "/a.toml")).unwrap();
    assert_eq!(source.name(), format!("ttl:a.toml of {}", server.address));
    let mut watcher = source.watch().await.unwrap();
    assert!(error(&mut watcher).await.ends_with("has no document a.toml"));
    let content = "\n# a\n\n[b]\nc = 1\n\n";
    let (_, answer) = server.ask("PUT", "/v1/settings/a.toml", content).await;
    let text = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap();
    assert_eq!((text.content.as_str(), text.format), (content, Format::Toml));
    let revision = answer["revision"].as_str().unwrap();
    assert_eq!((text.origin, text.revision.as_deref()), (format!("ttl:a.toml@{revision}"), Some(revision)));
    server.ask("DELETE", "/v1/settings/a.toml", "").await;
    assert!(error(&mut watcher).await.contains("has no document a.toml: it was deleted at "));
}

#[tokio::test]
async fn a_document_is_put_read_and_deleted() {
    let server = Process::start().await;
    assert_eq!(raw(&server, "GET", "", "").await.0, 404);
    assert_eq!(raw(&server, "PUT", "if-match: \"1\"\r\n", "a: 1").await.0, 412);
    let first = put(&server, "a: 1").await;
    assert_eq!(put(&server, "a: 1").await, first, "nothing changes");
    let (status, head, body) = raw(&server, "GET", "", "").await;
    assert_eq!((status, body.as_str()), (200, "a: 1"));
    assert!(head.contains(&format!("etag: \"{first}\"\r\n")), "{head}");
    assert!(head.contains("content-type: application/yaml\r\n"), "{head}");
    let known = format!("if-none-match: \"{first}\"\r\n");
    assert_eq!(raw(&server, "GET", &known, "").await.0, 304);
    assert_eq!(raw(&server, "PUT", "if-none-match: *\r\n", "a: 2").await.0, 412);
    let (status, _, answer) = raw(&server, "PUT", &format!("if-match: \"{first}\"\r\n"), "a: 2").await;
    assert_eq!(status, 200, "{answer}");
    let (status, _, answer) = raw(&server, "PUT", &format!("if-match: \"{first}\"\r\n"), "a: 3").await;
    assert_eq!(status, 412, "another has changed it: {answer}");
    assert_eq!(raw(&server, "GET", &known, "").await.2, "a: 2");
    let (_, list) = server.ask("GET", "/v1/settings", "").await;
    assert_eq!((&list[0]["key"], &list[0]["bytes"], list[1].is_null()), (&json!(KEY), &json!(4), true));
    assert_eq!(raw(&server, "DELETE", &known.replace("if-none-match", "if-match"), "").await.0, 412);
    assert_eq!(raw(&server, "DELETE", "", "").await.0, 200);
    assert_eq!(raw(&server, "DELETE", "", "").await.0, 200);
    assert_eq!(raw(&server, "GET", "", "").await.0, 404);
    assert_eq!(server.ask("GET", "/v1/settings", "").await.1, json!([]));
    assert_eq!(raw(&server, "PUT", "if-none-match: *\r\n", "a: 4").await.0, 200);
}

#[tokio::test]
async fn a_long_poll_is_answered_by_the_change() {
    let server = Process::start().await;
    let first = put(&server, "a: 1").await;
    let known = format!("if-none-match: \"{first}\"\r\nprefer: wait=");
    let begun = Instant::now();
    assert_eq!(raw(&server, "GET", &format!("{known}1\r\n"), "").await.0, 304);
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    let begun = Instant::now();
    let asked = format!("{known}60\r\n");
    let other = server.ask("PUT", "/v1/settings/other.yaml", "{}");
    let (long, ()) = tokio::join!(raw(&server, "GET", &asked, ""), async {
        assert_eq!(other.await.0, 200);
        put(&server, "a: 2").await;
    });
    assert_eq!((long.0, long.2.as_str()), (200, "a: 2"));
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_is_no_document_is_refused() {
    let config =
        TtlServerConfig { max_document: Size::from_kib(1), max_documents: 2, ..TtlServerConfig::default() };
    let server = Process::start_with(config).await;
    for (path, body, expected) in [
        ("/v1/settings/a", "", 400),
        ("/v1/settings/a", " \n", 400),
        ("/v1/settings/a", "a\rb", 400),
        ("/v1/settings/a", &*"a".repeat(1_025), 413),
        ("/v1/settings/a//b", "a: 1", 400),
        ("/v1/settings/a/../b", "a: 1", 400),
        ("/v1/settings/a%20b", "a: 1", 400),
        ("/v1/settings/a", &*"a".repeat(1_024), 200),
        ("/v1/settings/b", "a: 1", 200),
        ("/v1/settings/c", "a: 1", 507),
        ("/v1/settings/b", "a: 2", 200),
    ] {
        let (status, answer) = server.ask("PUT", path, body).await;
        assert_eq!(status, expected, "{path}: {answer}");
        assert!(status == 200 || answer["error"].is_string(), "{path}: {answer}");
    }
    assert_eq!(server.ask("DELETE", "/v1/settings/a", "").await.0, 200);
    assert_eq!(server.ask("PUT", "/v1/settings/c", "a: 1").await.0, 200, "a deleted one makes room");
}

#[tokio::test]
async fn a_restart_loses_nothing() {
    let mut server = Process::start().await;
    let first = put(&server, "a: 1").await;
    server.put("stock-1", 1).await;
    server.ask("PUT", "/v1/settings/gone.yaml", "a: 1").await;
    let (_, gone) = server.ask("DELETE", "/v1/settings/gone.yaml", "").await;
    let mut watcher = watch([&server]).await;
    assert_eq!(text(&mut watcher).await, "a: 1");
    server.kill();
    let why = error(&mut watcher).await;
    assert!(why.contains(&server.address), "{why}");
    server.run().await;
    assert_eq!(text(&mut watcher).await, "a: 1", "it can be read again");
    let (_, head, _) = raw(&server, "GET", "", "").await;
    assert!(head.contains(&format!("etag: \"{first}\"\r\n")), "{head}");
    assert_eq!(server.ids().await, ["stock-1"]);
    let (_, again) = server.ask("DELETE", "/v1/settings/gone.yaml", "").await;
    assert_eq!(again, gone, "a deletion is known after a restart");
    let begun = Instant::now();
    assert!(put(&server, "a: 2").await > first);
    assert_eq!(text(&mut watcher).await, "a: 2");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

/// The server is killed again and again; the last version is always seen, and none comes after a later one.
#[tokio::test]
async fn no_version_is_lost_in_gaps() {
    let mut server = Process::start().await;
    put(&server, "a: 0").await;
    let mut watcher = watch([&server]).await;
    let mut last = 0;
    for n in 1..=20 {
        if n % 2 == 0 {
            put(&server, &format!("a: {n}")).await; // seen, or in the gap
        }
        server.kill();
        server.run().await;
        if n % 2 == 1 {
            put(&server, &format!("a: {n}")).await;
        }
        loop {
            let seen: u32 = text(&mut watcher).await["a: ".len()..].parse().unwrap();
            assert!(seen >= last, "{seen} after {last}");
            last = seen;
            if seen == n {
                break;
            }
        }
    }
}

#[tokio::test]
async fn of_several_servers_the_version_that_was_put_last_counts() {
    let (mut first, mut second) = (Process::start().await, Process::start().await);
    let old = put(&first, "a: 1").await;
    while put(&second, "a: 2").await <= old {
        second.ask("DELETE", PATH, "").await; // within the same millisecond
    }
    let mut watcher = watch([&first, &second]).await;
    assert_eq!(text(&mut watcher).await, "a: 2");
    put(&first, "a: 3").await;
    assert_eq!(text(&mut watcher).await, "a: 3");
    // One of them goes: no error, and the other one is still followed.
    first.kill();
    put(&second, "a: 4").await;
    let next = timeout(PATIENCE, watcher.next()).await.unwrap();
    assert_eq!(next.expect("one is there: no error").content, "a: 4");
    // It comes back with its older version, which does not count.
    first.run().await;
    put(&second, "a: 5").await;
    assert_eq!(text(&mut watcher).await, "a: 5");
    let mut fresh = watch([&first, &second]).await;
    assert_eq!(text(&mut fresh).await, "a: 5");
    first.kill();
    second.kill();
    let why = error(&mut watcher).await;
    assert!(why.contains(&first.address) && why.contains(&second.address), "{why}");
    second.run().await;
    assert_eq!(text(&mut watcher).await, "a: 5");
}

#[tokio::test]
async fn who_changes_settings_may_need_a_token_of_its_own() {
    let config = |settings: Option<&str>| TtlServerConfig {
        token: Some("reader".into()),
        settings_token: settings.map(str::to_owned),
        ..TtlServerConfig::default()
    };
    let ask = async |server: &Process, method: &str, token: &str| {
        let header = format!("authorization: Bearer {token}\r\n");
        raw(server, method, &header, if method == "PUT" { "a: 1" } else { "" }).await.0
    };
    let server = Process::start_with(config(None)).await;
    for (method, token, expected) in
        [("PUT", "x", 401), ("PUT", "reader", 200), ("GET", "reader", 200), ("GET", "", 401)]
    {
        assert_eq!(ask(&server, method, token).await, expected, "{method} {token}");
    }
    let server = Process::start_with(config(Some("writer"))).await;
    for (method, token, expected) in [
        ("PUT", "reader", 401),
        ("PUT", "writer", 200),
        ("GET", "reader", 200),
        ("GET", "writer", 200),
        ("GET", "write", 401),
        ("DELETE", "reader", 401),
        ("DELETE", "writer", 200),
    ] {
        assert_eq!(ask(&server, method, token).await, expected, "{method} {token}");
    }
}

#[tokio::test]
async fn an_empty_token_is_refused() {
    let base = TtlServerConfig::default();
    for (config, name) in [
        (TtlServerConfig { token: Some(String::new()), ..base.clone() }, "`token` is empty"),
        (
            TtlServerConfig { settings_token: Some(String::new()), ..base.clone() },
            "`settings_token` is empty",
        ),
    ] {
        let error = TtlServer::open(config).await.map(drop).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn tokens_are_not_printed() {
    let tokens = (Some("reader".to_owned()), Some("writer".to_owned()));
    let config = TtlServerConfig { token: tokens.0, settings_token: tokens.1, ..TtlServerConfig::default() };
    let printed = format!("{config:?}");
    assert!(!printed.contains("reader") && !printed.contains("writer"), "{printed}");
    assert!(printed.contains("max_changes: 4096"), "{printed}");
}

#[tokio::test]
async fn a_change_that_is_not_on_disk_is_no_success() {
    let server = Process::start().await;
    put(&server, "a: 1").await;
    std::fs::remove_dir_all(server.snapshot().parent().unwrap()).unwrap();
    let (status, answer) = server.ask("PUT", PATH, "a: 2").await;
    assert_eq!((status, answer["error"].is_string()), (503, true), "{answer}");
    std::fs::create_dir(server.snapshot().parent().unwrap()).unwrap();
    put(&server, "a: 3").await;
    let kept: Value = serde_json::from_slice(&std::fs::read(server.snapshot()).unwrap()).unwrap();
    assert_eq!(kept["settings"][0]["content"], "a: 3");
}
