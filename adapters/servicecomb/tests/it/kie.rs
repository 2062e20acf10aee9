//! Settings in kie.
use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chassis_core::{
    config::{ConfigSource, ConfigWatcher, Format, Text},
    testing::{
        contract::config_source::{Place, config_source},
        server::{Proxy, SOON, config_gaps},
    },
    units::PositiveSpan,
};
use chassis_servicecomb::{KieSource, KieSourceConfig, TlsConfig};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    certificates::Authority,
    kie_server::{Kie, needs_stand_in},
    registry::PATIENCE,
    tls_front::{front, front_for},
    trials::Ran,
};

trials! {
    a_document_keeps_the_contract
    a_label_set_keeps_the_contract
    a_text_names_its_labels_key_and_revision
    settings_of_a_label_set_change_as_they_are
    entries_of_others_do_not_count
    a_change_is_seen_soon
    a_poll_waits_for_its_time
    what_is_no_text_is_an_error
    no_change_is_lost_over_gaps
    a_change_that_was_not_reported_is_found
    a_restart_with_an_older_revision_is_found_out
    a_server_that_is_frozen_is_left
    a_server_that_comes_later_is_found
    answers_that_are_none_are_errors
    a_token_may_be_replaced
    documents_are_read_by_tls
    changes_of_others_do_not_make_it_ask_all_the_time
}

const KEY: &str = "orders.yaml";

fn at_key(kie: &Kie) -> KieSourceConfig {
    KieSourceConfig::key(&kie.address, kie.labels.clone(), KEY)
}

fn at_labels(kie: &Kie) -> KieSourceConfig {
    KieSourceConfig::labels(&kie.address, kie.labels.clone())
}

async fn watch(config: KieSourceConfig) -> Box<dyn ConfigWatcher> {
    KieSource::new(config).unwrap().watch().await.unwrap()
}

/// The next text.
#[track_caller]
fn text(watcher: &mut Box<dyn ConfigWatcher>) -> impl Future<Output = Text> {
    let caller = std::panic::Location::caller();
    async move {
        let answer = timeout(PATIENCE, watcher.next()).await.unwrap_or_else(|_| panic!("{caller}: nothing"));
        answer.unwrap_or_else(|error| panic!("{caller}: {error}"))
    }
}

/// The next answer, which has to be an error.
#[track_caller]
fn error(watcher: &mut Box<dyn ConfigWatcher>) -> impl Future<Output = String> {
    let caller = std::panic::Location::caller();
    async move {
        let answer = timeout(PATIENCE, watcher.next()).await.unwrap_or_else(|_| panic!("{caller}: nothing"));
        answer.expect_err(&caller.to_string()).to_string()
    }
}

async fn is_quiet(watcher: &mut Box<dyn ConfigWatcher>, time: Duration) {
    if let Ok(answer) = timeout(time, watcher.next()).await {
        panic!("nothing changed, but {answer:?}");
    }
}

struct Key(Kie, KieSourceConfig);

#[async_trait]
impl Place for Key {
    fn source(&self) -> Arc<dyn ConfigSource> {
        Arc::new(KieSource::new(self.1.clone()).unwrap())
    }

    async fn write(&mut self, content: &str) {
        self.0.put(KEY, "yaml", content).await;
    }

    async fn spoil(&mut self) -> bool {
        self.0.put_as(KEY, "yaml", "a: 0\n", "disabled").await;
        true
    }
}

async fn a_document_keeps_the_contract() {
    let kie = Kie::start().await;
    let config = at_key(&kie);
    config_source(Key(kie, config)).await;
}

/// The contract's `a: 1` as one setting, without the names of the entries in the document.
struct Setting(Kie);

struct Bare(KieSource);

struct BareWatcher(Box<dyn ConfigWatcher>);

#[async_trait]
impl Place for Setting {
    fn source(&self) -> Arc<dyn ConfigSource> {
        Arc::new(Bare(KieSource::new(at_labels(&self.0)).unwrap()))
    }

    async fn write(&mut self, content: &str) {
        self.0.put("chassis.a", "text", content["a: ".len()..].trim()).await;
    }

    async fn spoil(&mut self) -> bool {
        self.0.delete("chassis.a").await;
        true
    }
}

#[async_trait]
impl ConfigSource for Bare {
    fn name(&self) -> String {
        self.0.name()
    }

    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, chassis_core::config::SourceError> {
        Ok(Box::new(BareWatcher(self.0.watch().await?)))
    }
}

#[async_trait]
impl ConfigWatcher for BareWatcher {
    async fn next(&mut self) -> Result<Text, chassis_core::config::SourceError> {
        let text = self.0.next().await?;
        let content = text.content.split(" # ").next().unwrap_or_default();
        Ok(Text { content: format!("{content}\n"), ..text })
    }
}

async fn a_label_set_keeps_the_contract() {
    config_source(Setting(Kie::start().await)).await;
}

async fn a_text_names_its_labels_key_and_revision() {
    let kie = Kie::start().await;
    let revision = kie.put("orders.toml", "text", "a = 1").await;
    let config = KieSourceConfig::key(format!("http://{}/", kie.address), kie.labels.clone(), "orders.toml");
    let source = KieSource::new(config).unwrap();
    let service = &kie.labels["service"];
    assert_eq!(
        source.name(),
        format!("kie:app=shop,service={service}/orders.toml of kie at {}", kie.address)
    );
    let text = source.watch().await.unwrap().next().await.unwrap();
    assert_eq!((text.content.as_str(), text.format), ("a = 1", Format::Toml));
    assert_eq!(text.origin, format!("kie:app=shop,service={service}/orders.toml@{revision}"));
    assert_eq!(text.revision, Some(revision.to_string()));
}

async fn settings_of_a_label_set_change_as_they_are() {
    let kie = Kie::start().await;
    kie.put("chassis.outbound.defaults.timeout", "text", "3s").await;
    kie.put("chassis.outbound.services", "yaml", "stock: { timeout: 1s }\n").await;
    kie.put("chassis.outbound.defaults.retry", "json", r#"{ "max": 2 }"#).await;
    kie.put("chassis.inbound", "properties", "timeout = 7s").await;
    kie.put("cse.loadbalance.strategy.name", "text", "RoundRobin").await; // of go-chassis
    kie.put_as("chassis.outbound.defaults.breaker", "text", "off", "disabled").await;
    let mut watcher = watch(at_labels(&kie)).await;
    let labels = format!("kie:app=shop,service={}", kie.labels["service"]);
    let whole = |timeout: &str, is_off: bool| {
        let breaker = match is_off {
            true => format!("    breaker: off # {labels}/chassis.outbound.defaults.breaker\n"),
            false => String::new(),
        };
        format!(
            "inbound:\n  timeout: 7s # {labels}/chassis.inbound\noutbound:\n  defaults:\n{breaker}    \
             retry: {{ \"max\": 2 }} # {labels}/chassis.outbound.defaults.retry\n    timeout: {timeout} \
             # {labels}/chassis.outbound.defaults.timeout\n  services: # {labels}/chassis.outbound.services\n    \
             stock: {{ timeout: 1s }}\n"
        )
    };
    let first = text(&mut watcher).await;
    assert_eq!((first.content, first.format), (whole("3s", false), Format::Yaml));
    assert!(first.origin.starts_with(&format!("{labels}/chassis.*@")), "{}", first.origin);

    kie.put("chassis.outbound.defaults.timeout", "text", "4s").await;
    assert_eq!(text(&mut watcher).await.content, whole("4s", false));
    kie.put("chassis.outbound.defaults.breaker", "text", "off").await;
    assert_eq!(text(&mut watcher).await.content, whole("4s", true));
    kie.delete("chassis.outbound.defaults.breaker").await;
    assert_eq!(text(&mut watcher).await.content, whole("4s", false));

    // Entries that can't stand together leave the text of before.
    kie.put("chassis.outbound", "yaml", "{}").await;
    let why = error(&mut watcher).await;
    assert!(why.contains("/chassis.outbound@") || why.contains("/chassis.outbound.defaults.retry@"), "{why}");
    assert!(why.contains("is set by kie:") && why.contains(" as well"), "{why}");
    kie.delete("chassis.outbound").await;
    assert_eq!(text(&mut watcher).await.content, whole("4s", false));

    let all = KieSourceConfig { prefix: Some("cse.".into()), ..at_labels(&kie) };
    let others = text(&mut watch(all).await).await.content;
    assert!(others.starts_with("loadbalance:\n  strategy:\n    name: RoundRobin # "), "{others}");
}

async fn entries_of_others_do_not_count() {
    let kie = Kie::start().await;
    let mut other = kie.labels.clone();
    other.insert("version".to_owned(), "1.0.0".to_owned());
    kie.put(KEY, "yaml", "a: 1").await;
    let mut watcher = watch(at_key(&kie)).await;
    assert_eq!(text(&mut watcher).await.content, "a: 1");
    let others = kie.with_labels(other);
    others.put(KEY, "yaml", "a: 2").await;
    assert_eq!(text(&mut watch(at_key(&others)).await).await.content, "a: 2");
    kie.put("other.yaml", "yaml", "a: 3").await;
    is_quiet(&mut watcher, Duration::from_millis(300)).await;
    kie.put(KEY, "yaml", "a: 4").await;
    assert_eq!(text(&mut watcher).await.content, "a: 4");
}

async fn a_change_is_seen_soon() {
    let kie = Kie::start().await;
    kie.put(KEY, "yaml", "a: -1").await;
    let mut watcher = watch(at_key(&kie)).await;
    text(&mut watcher).await;
    let mut taken = Vec::new();
    for n in 0..100 {
        let begun = Instant::now();
        kie.put(KEY, "yaml", &format!("a: {n}")).await;
        assert_eq!(text(&mut watcher).await.content, format!("a: {n}"));
        taken.push(begun.elapsed());
    }
    taken.sort();
    println!("kie: a change is seen after {:?}, p99 {:?}", taken[50], taken[99]);
    // A real one stores a change after it has counted it: one that comes right after another may be seen later.
    let p99 = if needs_stand_in().is_ok() { Duration::from_millis(100) } else { SOON };
    assert!(taken[99] <= p99, "{:?}", taken[99]);
}

async fn a_poll_waits_for_its_time() -> Ran {
    let kie = Kie::stand_in().await?;
    kie.put(KEY, "yaml", "a: 1").await;
    let mut watcher = watch(at_key(&kie)).await;
    text(&mut watcher).await;
    // Longer than a call may take by default.
    is_quiet(&mut watcher, Duration::from_secs(8)).await;
    let log = kie.log();
    let polls: Vec<_> = log.iter().filter(|line| line.contains("wait=")).collect();
    assert_eq!(polls.len(), 2, "a short one, and a long one: {log:?}");
    kie.put(KEY, "yaml", "a: 2").await;
    assert_eq!(text(&mut watcher).await.content, "a: 2");
    Ok(())
}

async fn what_is_no_text_is_an_error() {
    let kie = Kie::start().await;
    let mut watcher = watch(at_key(&kie)).await;
    let labels = format!("kie:app=shop,service={}", kie.labels["service"]);
    let why = error(&mut watcher).await;
    assert_eq!(why, format!("kie at {} has no key {labels}/{KEY}", kie.address));
    let mut settings = watch(at_labels(&kie)).await;
    let why = error(&mut settings).await;
    assert!(why.ends_with(&format!("has no key that begins with {labels}/chassis.*")), "{why}");
    is_quiet(&mut watcher, Duration::from_millis(200)).await;
    kie.put_as(KEY, "yaml", "a: 1", "disabled").await;
    let why = error(&mut watcher).await;
    assert!(why.ends_with(&format!("has no enabled key {labels}/{KEY}")), "{why}");
    kie.put(KEY, "yaml", "a: 1").await;
    assert_eq!(text(&mut watcher).await.content, "a: 1");
    kie.delete(KEY).await;
    assert!(error(&mut watcher).await.contains("has no key "));
    let at = kie.put(KEY, "ini", "[a]").await;
    let why = error(&mut watcher).await;
    assert!(
        why.starts_with(&format!("{labels}/{KEY}@{at}: settings can't be of the value_type `ini`")),
        "{why}"
    );
    kie.put("chassis.a", "json", "{").await;
    let why = error(&mut settings).await;
    assert!(why.contains("/chassis.a@") && why.contains("no JSON"), "{why}");
}

async fn no_change_is_lost_over_gaps() {
    let kie = Kie::start().await;
    let proxy = Proxy::start(&kie.address).await.unwrap();
    let config = KieSourceConfig { addresses: vec![proxy.address().to_owned()], ..at_key(&kie) };
    config_gaps(Key(kie, config), &proxy).await;
}

async fn a_change_that_was_not_reported_is_found() -> Ran {
    let kie = Kie::stand_in().await?;
    kie.put(KEY, "yaml", "a: 0").await;
    // In a row with another one it is seen soon, however long a poll waits.
    let mut watcher = watch(at_key(&kie)).await;
    assert_eq!(text(&mut watcher).await.content, "a: 0");
    kie.put(KEY, "yaml", "a: 1").await;
    assert_eq!(text(&mut watcher).await.content, "a: 1");
    kie.put_unseen(KEY, "a: 2");
    let begun = Instant::now();
    assert_eq!(text(&mut watcher).await.content, "a: 2");
    assert!(begun.elapsed() <= SOON, "{:?}", begun.elapsed());

    kie.put(KEY, "yaml", "a: 1").await;
    let wait = PositiveSpan::from_millis(3_000);
    let mut watcher = watch(KieSourceConfig { wait, ..at_key(&kie) }).await;
    assert_eq!(text(&mut watcher).await.content, "a: 1");
    is_quiet(&mut watcher, Duration::from_millis(1_500)).await;
    kie.put_unseen(KEY, "a: 2");
    let begun = Instant::now();
    assert_eq!(text(&mut watcher).await.content, "a: 2");
    assert!(begun.elapsed() <= wait.get() + SOON, "{:?}", begun.elapsed());
    Ok(())
}

async fn a_restart_with_an_older_revision_is_found_out() -> Ran {
    let mut kie = Kie::stand_in().await?;
    for n in 0..5 {
        kie.put(KEY, "yaml", &format!("a: {n}")).await;
    }
    let mut watcher = watch(at_key(&kie)).await;
    assert_eq!(text(&mut watcher).await.content, "a: 4");
    kie.kill();
    let why = error(&mut watcher).await;
    assert!(why.starts_with(&format!("kie at {}: ", kie.address)), "{why}");
    kie.forget();
    kie.run().await;
    let back = Instant::now();
    // The document went with the server's memory: no reason to give up the version in force.
    assert!(error(&mut watcher).await.contains("has no key"));
    assert!(back.elapsed() <= SOON, "{:?}", back.elapsed());
    // The same revision as before, and another content.
    for n in 0..5 {
        kie.put(KEY, "yaml", &format!("b: {n}")).await;
    }
    let seen = async { while text(&mut watcher).await.content != "b: 4" {} };
    timeout(SOON, seen).await.expect("the last one is seen");
    kie.kill();
    kie.forget();
    kie.run().await;
    for n in 0..5 {
        kie.put(KEY, "yaml", &format!("c: {n}")).await;
    }
    let seen = async { while watcher.next().await.ok().is_none_or(|text| text.content != "c: 4") {} };
    timeout(SOON, seen).await.expect("the same revision is not the same text");
    Ok(())
}

async fn a_server_that_is_frozen_is_left() -> Ran {
    let kie = Kie::stand_in().await?;
    kie.put(KEY, "yaml", "a: 1").await;
    let wait = PositiveSpan::from_millis(1_000);
    let mut watcher = watch(KieSourceConfig { wait, ..at_key(&kie) }).await;
    assert_eq!(text(&mut watcher).await.content, "a: 1");
    sleep(Duration::from_millis(50)).await; // the poll waits
    let frozen = kie.freeze();
    let begun = Instant::now();
    error(&mut watcher).await;
    // Two requests: the one that waited, with the time that its answer may take, and the next one.
    assert!(begun.elapsed() < wait.get() + Duration::from_secs(9), "{:?}", begun.elapsed());
    drop(frozen);
    let back = Instant::now();
    assert_eq!(text(&mut watcher).await.content, "a: 1");
    assert!(back.elapsed() <= SOON, "{:?}", back.elapsed());
    Ok(())
}

async fn a_server_that_comes_later_is_found() -> Ran {
    let mut kie = Kie::stand_in().await?;
    kie.put(KEY, "yaml", "a: 1").await;
    kie.kill();
    let begun = Instant::now();
    let mut watcher = watch(at_key(&kie)).await;
    let why = error(&mut watcher).await;
    assert!(why.contains(&kie.address) && begun.elapsed() < Duration::from_secs(10), "{why}");
    is_quiet(&mut watcher, Duration::from_millis(500)).await; // it is returned once
    kie.run().await;
    let back = Instant::now();
    assert_eq!(text(&mut watcher).await.content, "a: 1");
    assert!(back.elapsed() <= SOON, "{:?}", back.elapsed());
    // One of two servers is enough.
    let gone = Kie::stand_in().await?;
    let addresses = vec![gone.address.clone(), kie.address.clone()];
    drop(gone);
    let mut watcher = watch(KieSourceConfig { addresses, ..at_key(&kie) }).await;
    let found = async { while watcher.next().await.ok().is_none_or(|text| text.content != "a: 1") {} };
    timeout(SOON, found).await.expect("the other server answers");
    Ok(())
}

async fn answers_that_are_none_are_errors() -> Ran {
    let kie = Kie::stand_in().await?;
    kie.put(KEY, "yaml", "a: 1").await;
    let mut watcher = watch(KieSourceConfig { wait: PositiveSpan::from_millis(1_000), ..at_key(&kie) }).await;
    assert_eq!(text(&mut watcher).await.content, "a: 1");
    let entry =
        |labels: &str| format!(r#"{{"data":[{{"key":"{KEY}","status":"enabled","labels":{labels}}}]}}"#);
    for (status, revision, body, why) in [
        (200, Some("9"), "{".to_owned(), "its list of entries is malformed"),
        (200, Some("9"), "null".to_owned(), "its list of entries is malformed"),
        (200, Some("9"), r#"{"data":[{"value":"a: 2"}]}"#.to_owned(), "its list of entries is malformed"),
        (200, Some("9"), r#"{"data":null}"#.to_owned(), "has no key"),
        (200, Some("9"), entry(r#"{"app":"other"}"#), "has no key"),
        (200, Some("9"), "<html>Sign in</html>".to_owned(), "its list of entries is malformed"),
        (200, None, r#"{"data":[]}"#.to_owned(), "x-kie-revision"),
        (200, Some("soon"), r#"{"data":[]}"#.to_owned(), "x-kie-revision"),
        (500, Some("9"), "out of\u{1b}order".to_owned(), r"it answers 500: out of\u{1b}order"),
        (304, None, String::new(), "without being asked"),
        (200, Some("9"), format!(r#"{{"data":[],"x":"{}"}}"#, "x".repeat(33 << 20)), ""),
    ] {
        kie.plant(status, revision, body);
        let said = error(&mut watcher).await;
        assert!(said.contains(why) && said.len() < 1_000, "{why}: {said}");
        kie.heal();
        assert_eq!(text(&mut watcher).await.content, "a: 1", "{why}");
    }
    Ok(())
}

async fn a_token_may_be_replaced() -> Ran {
    let kie = Kie::stand_in().await?;
    kie.put(KEY, "yaml", "a: 1").await;
    kie.guard(&["first"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "first\n").unwrap();
    let wait = PositiveSpan::from_millis(1_000);
    let config = KieSourceConfig { token_file: Some(file.path().to_owned()), wait, ..at_key(&kie) };
    let mut watcher = watch(config.clone()).await;
    assert_eq!(text(&mut watcher).await.content, "a: 1");
    let why = error(&mut watch(KieSourceConfig { token_file: None, ..config.clone() }).await).await;
    assert!(why.contains("401"), "{why}");

    kie.guard(&["second"]);
    let why = error(&mut watcher).await;
    assert!(why.contains("401") && !why.contains("first"), "{why}");
    std::fs::write(file.path(), "second").unwrap();
    assert_eq!(text(&mut watcher).await.content, "a: 1");
    std::fs::write(file.path(), "").unwrap();
    let why = error(&mut watcher).await;
    assert!(why.ends_with("token: it is empty"), "{why}");
    Ok(())
}

async fn documents_are_read_by_tls() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let stranger = Authority::new(folder.path(), "stranger");
    let kie = Kie::start().await;
    kie.put(KEY, "yaml", "a: 1").await;
    let server = authority.server("server");
    let at = front(kie.address.clone(), &server, "http/1.1").await;
    let by = |at: &str, tls: TlsConfig| KieSourceConfig {
        addresses: vec![format!("https://{at}")],
        tls: Some(tls),
        ..at_key(&kie)
    };
    let mut watcher = watch(by(&at, TlsConfig::new(&authority.ca))).await;
    assert_eq!(text(&mut watcher).await.content, "a: 1");
    kie.put(KEY, "yaml", "a: 2").await;
    assert_eq!(text(&mut watcher).await.content, "a: 2");
    let why = error(&mut watch(by(&at, TlsConfig::new(&stranger.ca))).await).await;
    assert!(why.contains(&at), "{why}");

    let known = authority.client("orders", &[]);
    let at = front_for(kie.address.clone(), &server, "http/1.1", Some(&authority.ca)).await;
    let tls = TlsConfig::new(&authority.ca);
    error(&mut watch(by(&at, tls.clone())).await).await;
    let mut watcher = watch(by(&at, tls.with_identity(&known.cert, &known.key))).await;
    assert_eq!(text(&mut watcher).await.content, "a: 2");
}

async fn changes_of_others_do_not_make_it_ask_all_the_time() -> Ran {
    let kie = Kie::stand_in().await?;
    kie.put(KEY, "yaml", "a: 1").await;
    let mut watcher = watch(at_key(&kie)).await;
    text(&mut watcher).await;
    // Others change something before each query: none of them waits.
    kie.is_busy(true);
    kie.put(KEY, "yaml", "a: 2").await;
    assert_eq!(text(&mut watcher).await.content, "a: 2");
    kie.log();
    is_quiet(&mut watcher, Duration::from_secs(4)).await;
    let asked = kie.log().len();
    println!("kie: asked {asked} times in 4 s while entries of others changed");
    assert!((100..=230).contains(&asked), "{asked}");
    kie.put(KEY, "yaml", "a: 3").await;
    assert_eq!(text(&mut watcher).await.content, "a: 3");
    Ok(())
}
