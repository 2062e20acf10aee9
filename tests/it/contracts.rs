//! Contracts: services publish their descriptors and OpenAPI texts, and others fetch them.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use chassis::{
    Chassis, ContractsHandle, Event, StartError,
    contracts::{
        Contract, ContractEntry, ContractOwner, Contracts, ContractsError, ContractsErrorKind, Existing,
        FILE_DESCRIPTOR_SET, MAX_CONTENT, OPENAPI_JSON, OPENAPI_YAML,
    },
    document::Environment,
    registries::{MemoryContracts, MemoryQuota},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::mesh::{Mesh, Server};

const YAML: &str = "openapi: 3.1.0\ninfo: { title: stock, version: 1.4.0 }\n";
const JSON: &str = r#"{ "openapi": "3.1.0" }"#;

/// A port in memory with a switch for each mistake.
#[derive(Clone, Default)]
struct Port {
    kept: MemoryContracts,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    is_down: AtomicBool,
    is_full: AtomicBool,
    hangs: AtomicBool,
    panics: AtomicBool,
    attempts: AtomicUsize,
}

impl Port {
    async fn ready(&self) -> Result<(), ContractsError> {
        let error = |kind, words: &str| Err(ContractsError::new(kind, words));
        if self.state.hangs.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        assert!(!self.state.panics.load(SeqCst), "out of cheese");
        if self.state.is_down.load(SeqCst) {
            return error(ContractsErrorKind::Unavailable, "connection refused");
        }
        if self.state.is_full.load(SeqCst) {
            return error(ContractsErrorKind::Refused, "it is full");
        }
        Ok(())
    }

    fn attempts(&self) -> usize {
        self.state.attempts.swap(0, SeqCst)
    }

    async fn names(&self, of: &ContractOwner) -> Vec<String> {
        self.kept.list(of).await.unwrap().into_iter().map(|entry| entry.name).collect()
    }
}

#[async_trait]
impl Contracts for Port {
    fn name(&self) -> String {
        "port".to_owned()
    }
    async fn publish(
        &self,
        of: &ContractOwner,
        contracts: &[Contract],
        existing: Existing,
    ) -> Result<(), ContractsError> {
        self.state.attempts.fetch_add(1, SeqCst);
        self.ready().await?;
        self.kept.publish(of, contracts, existing).await
    }
    async fn versions(&self, service: &str, environment: &str) -> Result<Vec<String>, ContractsError> {
        self.ready().await?;
        self.kept.versions(service, environment).await
    }
    async fn list(&self, of: &ContractOwner) -> Result<Vec<ContractEntry>, ContractsError> {
        self.ready().await?;
        self.kept.list(of).await
    }
    async fn fetch(&self, of: &ContractOwner, name: &str) -> Result<Contract, ContractsError> {
        self.ready().await?;
        self.kept.fetch(of, name).await
    }
}

/// A caller in the environment `staging`.
async fn handle(mesh: &Mesh, port: &Port) -> ContractsHandle {
    let (port, settings) = (port.clone(), "service: { environment: staging }");
    let caller = mesh.server("orders", "orders-1").config(settings);
    caller.with(move |builder| builder.contracts(port)).caller().await.app.contracts()
}

async fn stock(mesh: &Mesh, id: &str, port: &Port, text: &'static str) -> Server {
    let port = port.clone();
    let settings = "service: { version: 1.4.0, environment: staging }";
    let plan = mesh.server("stock", id).config(settings);
    plan.with(move |builder| builder.openapi("api", text).contracts(port)).start().await
}

/// The events about contracts, in short.
fn reports(server: &Server) -> Vec<String> {
    let past = server.runtime().events().past();
    let reports = past.iter().filter_map(|(_, event)| match &**event {
        Event::ContractsPublished { to, names } => Some(format!("{to}: {}", names.join(" "))),
        Event::ContractsNotPublished { to, error } => Some(format!("{to}: not: {error}")),
        _ => None,
    });
    reports.collect()
}

#[tokio::test(start_paused = true)]
async fn descriptors_and_texts_are_published_and_fetched() {
    let (mesh, port) = (Mesh::new(), Port::default());
    let stock = stock(&mesh, "stock-1", &port, YAML).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(reports(&stock), ["port: api descriptors"]);
    let contracts = handle(&mesh, &port).await;
    assert_eq!(contracts.versions("stock").await.unwrap(), ["1.4.0"]);
    assert_eq!(contracts.versions("billing").await.unwrap(), [""; 0]);
    let of = contracts.owner("stock", "1.4.0");
    let names: Vec<_> = contracts.list(&of).await.unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["api", "descriptors"]);
    let api = contracts.fetch(&of, "api").await.unwrap();
    assert_eq!((api.media_type.as_str(), &api.content[..]), (OPENAPI_YAML, YAML.as_bytes()));
    let descriptors = contracts.fetch(&of, "descriptors").await.unwrap();
    assert_eq!(descriptors.media_type, FILE_DESCRIPTOR_SET);
    assert_eq!(descriptors.content, chassis_protos::echo::FILE_DESCRIPTOR_SET);
    let missing = contracts.fetch(&of, "other").await.unwrap_err();
    assert_eq!(missing.kind(), ContractsErrorKind::NotFound);
    assert_eq!(
        missing.to_string(),
        "there is no contract `other` of `stock`, version `1.4.0`, environment `staging`"
    );
    // A process in another environment looks elsewhere.
    let elsewhere = mesh.server("x", "x-1").with({
        let port = port.clone();
        move |builder| builder.contracts(port)
    });
    let elsewhere = elsewhere.caller().await;
    assert_eq!(elsewhere.app.contracts().versions("stock").await.unwrap(), [""; 0]);
    stock.stop().await;
    assert_eq!(contracts.versions("stock").await.unwrap(), ["1.4.0"], "they outlive the process");
}

#[tokio::test(start_paused = true)]
async fn a_port_that_is_down_at_the_start_delays_nothing_and_gets_them_later() {
    let (mesh, port) = (Mesh::new(), Port::default());
    port.state.is_down.store(true, SeqCst);
    let begun = Instant::now();
    let stock = stock(&mesh, "stock-1", &port, YAML).await;
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    sleep(Duration::from_secs(120)).await;
    assert_eq!(reports(&stock), ["port: not: connection refused"], "one event");
    let attempts = port.attempts();
    assert!((60..=200).contains(&attempts), "first often, then every 5 s: {attempts}");
    port.state.is_down.store(false, SeqCst);
    sleep(Duration::from_secs(6)).await;
    assert_eq!(reports(&stock), ["port: not: connection refused", "port: api descriptors"]);
    port.attempts();
    sleep(Duration::from_secs(600)).await;
    let attempts = port.attempts();
    assert!((9..=13).contains(&attempts), "a check a minute: {attempts}");
    assert_eq!(reports(&stock).len(), 2, "a check is no event");
    stock.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_not_repeated_at_once() {
    let (mesh, port) = (Mesh::new(), Port::default());
    port.state.is_full.store(true, SeqCst);
    let stock = stock(&mesh, "stock-1", &port, YAML).await;
    sleep(Duration::from_secs(600)).await;
    let attempts = port.attempts();
    assert!((9..=13).contains(&attempts), "one a minute: {attempts}");
    assert_eq!(reports(&stock), ["port: not: it is full"]);
    stock.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_port_that_hangs_or_panics_fails_nothing() {
    let (mesh, port) = (Mesh::new(), Port::default());
    port.state.hangs.store(true, SeqCst);
    let begun = Instant::now();
    let stock = stock(&mesh, "stock-1", &port, YAML).await;
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    let contracts = handle(&mesh, &port).await;
    let begun = Instant::now();
    let error = contracts.versions("stock").await.unwrap_err();
    assert_eq!((begun.elapsed().as_secs(), error.kind()), (5, ContractsErrorKind::Unavailable));
    let short = contracts.clone().timeout(Duration::from_millis(10));
    assert!(short.list(&short.owner("stock", "")).await.unwrap_err().to_string().contains("10ms"));
    port.state.panics.store(true, SeqCst);
    port.state.hangs.store(false, SeqCst);
    let error = contracts.versions("stock").await.unwrap_err();
    assert!(error.to_string().contains("out of cheese"), "{error}");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(reports(&stock), ["port: not: not published within 30s"]);
    port.state.panics.store(false, SeqCst);
    sleep(Duration::from_secs(6)).await;
    assert_eq!(reports(&stock).last().unwrap(), "port: api descriptors");
    let begun = Instant::now();
    port.state.hangs.store(true, SeqCst);
    stock.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(2), "a stop does not wait: {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_changed_text_of_the_same_version_replaces_the_old_one() {
    let (mesh, port) = (Mesh::new(), Port::default());
    let of = ContractOwner::new("stock", "1.4.0").in_environment("staging");
    let old = stock(&mesh, "stock-1", &port, YAML).await;
    sleep(Duration::from_secs(1)).await;
    let new = stock(&mesh, "stock-2", &port, JSON).await;
    sleep(Duration::from_secs(200)).await;
    let api = port.kept.fetch(&of, "api").await.unwrap();
    assert_eq!((api.media_type.as_str(), &api.content[..]), (OPENAPI_JSON, JSON.as_bytes()));
    assert!(new.runtime().events().past().len() > 1 && reports(&old).len() == 1);
    // The checks of the old process leave it as it is.
    old.stop().await;
    new.stop().await;
    assert_eq!(port.kept.fetch(&of, "api").await.unwrap().content, JSON);
}

#[tokio::test(start_paused = true)]
async fn what_a_server_has_lost_comes_back() {
    let (mesh, port) = (Mesh::new(), Port::default());
    let stock = stock(&mesh, "stock-1", &port, YAML).await;
    sleep(Duration::from_secs(1)).await;
    let of = ContractOwner::new("stock", "1.4.0").in_environment("staging");
    assert_eq!(port.names(&of).await.len(), 2);
    port.kept.clear();
    assert_eq!(port.names(&of).await.len(), 0);
    sleep(Duration::from_secs(61)).await;
    assert_eq!(port.names(&of).await, ["api", "descriptors"]);
    stock.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_is_too_large_is_reported_and_the_others_are_published() {
    let (mesh, port) = (Mesh::new(), Port::default());
    let (of_builder, large) = (port.clone(), "x".repeat(MAX_CONTENT + 1));
    let plan = mesh.server("stock", "stock-1").with(move |builder| {
        builder.openapi("large", large).openapi("api", YAML).openapi("api", JSON).contracts(of_builder)
    });
    let stock = plan.start().await;
    sleep(Duration::from_secs(1)).await;
    let too_large =
        format!("port: not: contract `large` has {} bytes, {MAX_CONTENT} are allowed", MAX_CONTENT + 1);
    assert_eq!(reports(&stock), [too_large.as_str(), "port: api descriptors"]);
    let of = ContractOwner::new("stock", "");
    assert_eq!(port.names(&of).await, ["api", "descriptors"]);
    assert_eq!(port.kept.fetch(&of, "api").await.unwrap().content, JSON, "the later one of a name counts");
    stock.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_not_registered_publishes_nothing() {
    let (mesh, port) = (Mesh::new(), Port::default());
    let (of_builder, quota) = (port.clone(), MemoryQuota::new(mesh.registry.clone(), 1));
    let first = mesh.start("stock", "stock-0").await;
    let plan = mesh.server("stock", "stock-1").with(move |b| b.contracts(of_builder).quota(quota));
    let stock = plan.start().await;
    sleep(Duration::from_secs(200)).await;
    assert_eq!(port.attempts(), 0);
    first.stop().await;
    sleep(Duration::from_secs(62)).await;
    assert_eq!(reports(&stock), ["port: descriptors"]);
    stock.stop().await;
}

#[tokio::test(start_paused = true)]
async fn bad_names_stop_the_start_and_nothing_is_published_by_default() {
    let builder = |name: &str| {
        Chassis::builder("stock")
            .without_file()
            .environment(Environment::default())
            .settings(json!({ "registry": { "kind": "memory", "name": "contracts-off" } }))
            .openapi(name, YAML)
    };
    for bad in ["", "a/b", "a b", "-", "descriptors"] {
        match builder(bad).build().await.err() {
            Some(StartError::Setup(what, _)) => assert_eq!(what, "openapi"),
            other => panic!("{bad}: {other:?}"),
        }
    }
    let app = builder("api").build().await.unwrap();
    let error = app.contracts().versions("stock").await.unwrap_err();
    assert_eq!(error.kind(), ContractsErrorKind::Unsupported);
    assert!(error.to_string().contains("registry.contracts: true"), "{error}");
}

/// By settings alone.
#[tokio::test(start_paused = true)]
async fn the_settings_of_the_registry_switch_them_on() {
    let mesh = Mesh::new();
    let settings = "registry: { kind: memory, name: contracts-on, contracts: true }";
    let stock = mesh.server("stock", "stock-1").own_registry().config(settings);
    let stock = stock.with(|builder| builder.openapi("api", YAML)).start().await;
    let orders = mesh.server("orders", "orders-1").own_registry().config(settings).caller().await;
    let off = settings.replace("true", "false");
    let others = mesh.server("others", "others-1").own_registry().config(&off).caller().await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(reports(&stock), ["memory: api descriptors"]);
    assert_eq!(orders.app.contracts().versions("stock").await.unwrap(), [""]);
    assert_eq!(
        others.app.contracts().versions("stock").await.unwrap_err().kind(),
        ContractsErrorKind::Unsupported
    );
    assert_eq!(stock.running.contracts().versions("stock").await.unwrap(), [""]);
    stock.stop().await;
}
