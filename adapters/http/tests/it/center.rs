//! Settings of a server that keeps the rules.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use chassis_core::{
    config::{ConfigSource, ConfigWatcher, Format, Text},
    testing::contract::config_source::{Place, config_source},
    units::{PositiveSpan, Secret},
};
use chassis_http_center::{HttpSource, HttpSourceConfig, Watch};
use tokio::time::{Instant, timeout};

use crate::server::{Server, Wrong};

/// Far more than any step of a test needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const POLL: Watch = Watch::Poll(PositiveSpan::from_millis(20));
const LONG_POLL: Watch = Watch::LongPoll(PositiveSpan::from_millis(60_000));
const EVENTS: Watch = Watch::Events(PositiveSpan::from_millis(2_000));
pub(crate) const ALL: [Watch; 3] = [POLL, LONG_POLL, EVENTS];

pub(crate) fn source(config: HttpSourceConfig) -> HttpSource {
    HttpSource::new(config).unwrap()
}

pub(crate) fn at(url: String, watch: Watch) -> HttpSourceConfig {
    HttpSourceConfig { watch, ..HttpSourceConfig::at(url) }
}

pub(crate) async fn watch(config: HttpSourceConfig) -> Box<dyn ConfigWatcher> {
    source(config).watch().await.unwrap()
}

/// The next text, without the errors before it.
pub(crate) async fn text(watcher: &mut Box<dyn ConfigWatcher>) -> Text {
    let next = async {
        loop {
            if let Ok(text) = watcher.next().await {
                return text;
            }
        }
    };
    timeout(PATIENCE, next).await.expect("a text comes")
}

pub(crate) async fn error(watcher: &mut Box<dyn ConfigWatcher>) -> String {
    timeout(PATIENCE, watcher.next()).await.expect("an error comes").unwrap_err().to_string()
}

struct Document {
    server: Server,
    watch: Watch,
    spoils_by: Option<Wrong>,
}

#[async_trait]
impl Place for Document {
    fn source(&self) -> Arc<dyn ConfigSource> {
        Arc::new(source(at(self.server.url(), self.watch)))
    }

    async fn write(&mut self, content: &str) {
        self.server.put(content);
    }

    async fn spoil(&mut self) -> bool {
        match self.spoils_by.clone() {
            Some(wrong) => self.server.go_wrong(wrong),
            None => self.server.delete(),
        }
        true
    }
}

#[tokio::test]
async fn polls_keep_the_contract() {
    config_source(Document { server: Server::start().await, watch: POLL, spoils_by: None }).await;
}

#[tokio::test]
async fn long_polls_keep_the_contract() {
    config_source(Document { server: Server::start().await, watch: LONG_POLL, spoils_by: None }).await;
}

#[tokio::test]
async fn events_keep_the_contract() {
    config_source(Document { server: Server::start().await, watch: EVENTS, spoils_by: None }).await;
}

#[tokio::test]
async fn the_contract_holds_where_a_server_fails() {
    let wrong = Some(Wrong { status: 503, headers: vec![], body: "later" });
    for watch in ALL {
        let server = Server::start().await;
        config_source(Document { server, watch, spoils_by: wrong.clone() }).await;
    }
}

#[tokio::test]
async fn a_text_names_its_url_and_revision() {
    for watch_by in ALL {
        let server = Server::start().await;
        let content = "\na: 1\n\n  # end\n\n";
        let number = server.put(content);
        let mut watcher = watch(at(server.url(), watch_by)).await;
        let text = text(&mut watcher).await;
        assert_eq!((text.content.as_str(), text.format), (content, Format::Yaml), "{watch_by:?}");
        assert_eq!(text.origin, format!("{}@{number}", server.url()));
        assert_eq!(text.revision, Some(number.to_string()));
    }
}

#[tokio::test]
async fn each_change_of_many_is_seen_at_last() {
    for watch_by in ALL {
        let server = Server::start().await;
        server.put("a: 0");
        let mut watcher = watch(at(server.url(), watch_by)).await;
        text(&mut watcher).await;
        for round in 1..20 {
            for n in 0..round {
                server.put(&format!("a: {round}.{n}"));
            }
            let last = format!("a: {round}.{}", round - 1);
            if round % 5 == 0 {
                server.cut();
            }
            let begun = Instant::now();
            while text(&mut watcher).await.content != last {}
            assert!(begun.elapsed() < Duration::from_secs(2), "{watch_by:?}: {:?}", begun.elapsed());
        }
    }
}

#[tokio::test]
async fn a_request_says_what_is_known() {
    let server = Server::start().await;
    let number = server.put("a: 1");
    let headers = BTreeMap::from([("x-team".to_owned(), Secret::new("shop"))]);
    let config = |watch| HttpSourceConfig { headers: headers.clone(), ..at(server.url(), watch) };
    let value = |at: usize, name: &str| {
        let value = server.asked()[at].get(name).map(|value| value.to_str().unwrap().to_owned());
        value.unwrap_or_default()
    };
    let mut watcher = watch(config(POLL)).await;
    text(&mut watcher).await;
    server.was_asked(2).await;
    assert_eq!(
        (value(0, "if-none-match"), value(1, "if-none-match")),
        (String::new(), format!("\"{number}\""))
    );
    assert_eq!((value(0, "host"), value(0, "x-team")), (server.address.clone(), "shop".to_owned()));
    assert_eq!(value(1, "prefer"), "");
    drop(watcher);

    let begun = server.asked().len();
    let mut watcher = watch(config(LONG_POLL)).await;
    text(&mut watcher).await;
    server.was_asked(begun + 2).await;
    let last = server.asked().len() - 1;
    let wait: u64 = value(last, "prefer").strip_prefix("wait=").unwrap().parse().unwrap();
    assert!((54..=60).contains(&wait), "{wait}");
    drop(watcher);

    let begun = server.asked().len();
    let mut watcher = watch(config(Watch::LongPoll(PositiveSpan::from_millis(1_000)))).await;
    text(&mut watcher).await;
    server.was_asked(begun + 2).await;
    assert_eq!(value(server.asked().len() - 1, "prefer"), "wait=1", "it is rounded up");
    drop(watcher);

    let begun = server.asked().len();
    let mut watcher = watch(config(EVENTS)).await;
    text(&mut watcher).await;
    server.cut();
    server.was_asked(begun + 2).await;
    assert_eq!(
        (value(begun, "last-event-id"), value(begun + 1, "last-event-id")),
        (String::new(), number.to_string())
    );
    assert!(timeout(Duration::from_millis(100), watcher.next()).await.is_err(), "nothing is new");
    server.put("a: 2");
    assert_eq!(text(&mut watcher).await.content, "a: 2");
}

#[tokio::test]
async fn a_server_that_restarts_is_found_again() {
    for watch_by in ALL {
        let server = Server::start().await;
        server.put("a: 1");
        let mut watcher = watch(at(server.url(), watch_by)).await;
        text(&mut watcher).await;
        let address = server.stop().await;
        assert!(error(&mut watcher).await.contains(&address), "{watch_by:?}");
        let server = Server::start_at(&address).await; // counts its revisions from 1 again
        server.put("a: 2");
        let begun = Instant::now();
        assert_eq!(text(&mut watcher).await.content, "a: 2", "{watch_by:?}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{watch_by:?}: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn another_server_takes_over() {
    for watch_by in ALL {
        let (first, second) = (Server::start().await, Server::start().await);
        first.put("a: 1");
        second.put("a: 1");
        let urls = [first.url(), second.url()];
        let config = HttpSourceConfig { watch: watch_by, ..HttpSourceConfig::at_any(urls) };
        let mut watcher = watch(config).await;
        assert_eq!(text(&mut watcher).await.content, "a: 1");
        assert_eq!(second.asked().len(), 0, "the first is used while it answers");
        first.stop().await;
        let begun = Instant::now();
        second.was_asked(1).await;
        second.put("a: 2");
        let next = timeout(PATIENCE, watcher.next()).await.unwrap();
        assert_eq!(next.expect("one is there: no error").content, "a: 2", "{watch_by:?}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{watch_by:?}: {:?}", begun.elapsed());
        second.stop().await;
        let error = error(&mut watcher).await;
        let both = error.contains("; ") || watch_by == EVENTS;
        assert!(both, "each server is named: {error}");
    }
}

#[tokio::test]
async fn a_token_is_read_anew_from_its_file() {
    let server = Server::start().await;
    server.put("a: 1");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "first\n").unwrap();
    let config = HttpSourceConfig { token_file: Some(path.clone()), ..at(server.url(), POLL) };
    let mut watcher = watch(config).await;
    text(&mut watcher).await;
    let sent = |server: &Server| {
        server.asked().last().unwrap().get("authorization").map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(sent(&server).as_deref(), Some("Bearer first"));
    std::fs::write(&path, "second").unwrap();
    timeout(PATIENCE, async {
        while sent(&server).as_deref() != Some("Bearer second") {
            server.was_asked(server.asked().len() + 1).await;
        }
    })
    .await
    .expect("the new token is sent");
    std::fs::remove_file(&path).unwrap();
    let why = error(&mut watcher).await;
    assert!(why.contains("token: ") && !why.contains("second"), "{why}");

    let password = dir.path().join("password");
    std::fs::write(&password, "open sesame").unwrap();
    let config = HttpSourceConfig {
        user: Some("Aladdin".into()),
        password_file: Some(password),
        ..at(server.url(), EVENTS)
    };
    let mut watcher = watch(config).await;
    text(&mut watcher).await;
    assert_eq!(sent(&server).as_deref(), Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
}
