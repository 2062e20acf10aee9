//! The entries at the servers, and how soon others see them.
use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chassis_core::{
    registry::Registry,
    testing::{
        contract,
        server::{self, Server, stock, until, until_weight},
    },
    units::PositiveSpan,
};
use chassis_ttl::{TtlConfig, TtlRegistry, TtlServerConfig};
use tokio::time::Instant;

use crate::process::Process;

pub(crate) fn registry(servers: &[&Process]) -> TtlRegistry {
    TtlRegistry::new(TtlConfig::at(servers.iter().map(|server| server.address.as_str()))).unwrap()
}

/// A process, and what keeps it frozen.
pub(crate) struct Single(Process, Option<std::sync::mpsc::Sender<()>>);

impl Single {
    pub(crate) async fn start() -> Single {
        Single(Process::start().await, None)
    }
}

#[async_trait]
impl Server for Single {
    fn address(&self) -> &str {
        &self.0.address
    }

    fn registry(&self, address: &str, lease: Option<Duration>) -> Arc<dyn Registry> {
        let config = TtlConfig::at([address]);
        let lease = lease.and_then(PositiveSpan::new).unwrap_or(config.lease);
        Arc::new(TtlRegistry::new(TtlConfig { lease, ..config }).unwrap())
    }

    async fn kill(&mut self) {
        self.0.kill();
    }

    async fn run(&mut self) {
        self.0.run().await;
    }

    async fn freeze(&mut self, is_frozen: bool) {
        self.1 = is_frozen.then(|| self.0.freeze());
    }

    async fn lists(&mut self, id: &str) -> bool {
        self.0.ids().await.iter().any(|listed| listed == id)
    }
}

/// The contract with so many servers, which are new for each promise.
async fn keeps_the_contract(servers: usize) {
    let all = std::cell::RefCell::new(Vec::new());
    contract::registry::registry(async || {
        let mut new = Vec::new();
        for _ in 0..servers {
            new.push(Process::start().await);
        }
        let registry = registry(&new.iter().collect::<Vec<_>>());
        all.borrow_mut().extend(new);
        Arc::new(registry) as _
    })
    .await;
}

#[tokio::test]
async fn keeps_the_contract_with_one_server() {
    keeps_the_contract(1).await;
}

#[tokio::test]
async fn keeps_the_contract_with_three_servers() {
    keeps_the_contract(3).await;
}

#[tokio::test]
async fn a_change_is_seen_within_100_ms() {
    server::change_is_seen(&Single::start().await, Duration::from_millis(100)).await;
}

#[tokio::test]
async fn a_process_that_ends_is_gone_when_its_lease_is_over() {
    let server = Process::start().await;
    let mut watcher = registry(&[&server]).watch("stock").await.unwrap();
    let address = server.address.clone();
    // A process of its own: a runtime that ends with all its tasks.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let lease = PositiveSpan::from_millis(2_000);
        let config = TtlConfig { lease, ..TtlConfig::at([address]) };
        let registration =
            runtime.block_on(async { TtlRegistry::new(config).unwrap().register(stock("a")).await.unwrap() });
        runtime.shutdown_background();
        drop(registration);
    })
    .join()
    .unwrap();
    until(&mut watcher, &["a"]).await;
    let begun = Instant::now();
    until(&mut watcher, &[]).await;
    assert!(begun.elapsed() <= Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn another_process_may_take_an_entry_over() {
    let server = Process::start().await;
    let mut watcher = registry(&[&server]).watch("stock").await.unwrap();
    let first = registry(&[&server]).register(stock("a")).await.unwrap();
    let second = registry(&[&server]).register(stock("a").with_weight(2)).await.unwrap();
    until_weight(&mut watcher, 2).await;
    // The first one comes back when the second goes, and takes nothing of it along.
    second.deregister().await.unwrap();
    let gone = Instant::now();
    until_weight(&mut watcher, 1).await;
    assert!(gone.elapsed() <= Duration::from_secs(2), "{:?}", gone.elapsed());
    let third = registry(&[&server]).register(stock("a").with_weight(3)).await.unwrap();
    first.deregister().await.unwrap();
    assert_eq!(server.ids().await, ["a"]);
    third.deregister().await.unwrap();
    assert_eq!(server.ids().await, Vec::<String>::new());
}

#[tokio::test]
async fn entries_are_readable_by_others() {
    let server = Process::start().await;
    let registration = registry(&[&server]).register(stock("a b")).await.unwrap();
    let (status, answer) = server.ask("GET", "/v1/services", "").await;
    let expected =
        serde_json::json!([{ "id": "a b", "service": "stock", "addresses": { "main": "127.0.0.1:50051" } }]);
    assert_eq!((status, &answer["instances"]), (200, &expected));
    assert_eq!(server.ask("GET", "/v1/names", "").await, (200, serde_json::json!(["stock"])));
    registration.deregister().await.unwrap();

    // And by hand one takes part.
    let lease = server.put("x", 1).await;
    let mut watcher = registry(&[&server]).watch("stock").await.unwrap();
    until(&mut watcher, &["x"]).await;
    assert_eq!(server.ask("PUT", &format!("/v1/services/{lease}/heartbeat"), "").await.0, 204);
    let (status, instance) = server.ask("GET", &format!("/v1/services/{lease}"), "").await;
    assert_eq!((status, instance["id"].as_str()), (200, Some("x")));
    server.delete(&lease).await;
    until(&mut watcher, &[]).await;
    assert_eq!(server.ask("PUT", &format!("/v1/services/{lease}/heartbeat"), "").await.0, 404);
    assert_eq!(server.ask("GET", &format!("/v1/services/{lease}"), "").await.0, 404);
}

#[tokio::test]
async fn a_token_is_asked_for_and_may_change() {
    let config = TtlServerConfig { token: Some("first".into()), ..TtlServerConfig::default() };
    let server = Process::start_with(config).await;
    let error = registry(&[&server]).register(stock("a")).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("401") && error.contains(&server.address), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "wrong\n").unwrap();
    let config = TtlConfig { token_file: Some(path.clone()), ..TtlConfig::at([server.address.as_str()]) };
    let registry = TtlRegistry::new(config).unwrap();
    let error = registry.register(stock("a")).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("401") && !error.contains("wrong"), "{error}");
    std::fs::write(&path, "first\n").unwrap();
    let _registration = registry.register(stock("a")).await.unwrap();
    until(&mut registry.watch("stock").await.unwrap(), &["a"]).await;
    for authorization in ["", "authorization: Bearer firs\r\n", "authorization: Basic first\r\n"] {
        let request =
            format!("GET /v1/names HTTP/1.1\r\nhost: r\r\n{authorization}connection: close\r\n\r\n");
        assert_eq!(server.send(&request).await.0, 401, "{authorization}");
    }
}
