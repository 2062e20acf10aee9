//! The entries in Consul, and how soon others see them.
use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chassis_consul::{Check, ConsulConfig, ConsulRegistry, Warning};
use chassis_core::{
    registry::{Instance, Membership, Registry},
    testing::{
        contract,
        server::{self, PATIENCE, Server, ids_of, stock, until, until_weight},
    },
    units::PositiveSpan,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
    time::Instant,
};

use crate::{server::Consul, trials::Ran};

trials! {
    keeps_the_contract
    an_entry_is_readable_by_others
    what_is_no_instance_is_refused_one_by_one
    a_long_list_is_read_whole
    a_change_is_seen_within_100_ms
    an_entry_that_went_is_back_at_once
    another_process_may_take_an_entry_over
    checks_decide_what_is_called
    an_agent_asks_by_itself
}

pub(crate) fn registry(consul: &Consul) -> ConsulRegistry {
    ConsulRegistry::new(ConsulConfig::at(&consul.address)).unwrap()
}

#[async_trait]
impl Server for Consul {
    fn address(&self) -> &str {
        &self.address
    }

    fn registry(&self, address: &str, lease: Option<Duration>) -> Arc<dyn Registry> {
        let config = ConsulConfig::at(address);
        let check = lease.and_then(PositiveSpan::new).map_or(config.check.clone(), Check::Ttl);
        Arc::new(ConsulRegistry::new(ConsulConfig { check, ..config }).unwrap())
    }

    async fn kill(&mut self) {
        Consul::kill(self).await;
    }

    async fn run(&mut self) {
        Consul::run(self).await;
    }

    async fn freeze(&mut self, is_frozen: bool) {
        self.signal(if is_frozen { "STOP" } else { "CONT" }).await;
    }

    async fn lists(&mut self, id: &str) -> bool {
        let all = self.ok("GET", "/v1/health/service/stock?passing", Value::Null).await;
        all.as_array().unwrap().iter().any(|one| one["Service"]["ID"] == format!("stock:{id}"))
    }
}

async fn keeps_the_contract() -> Ran {
    // Only Consul Enterprise has namespaces, so each promise has an agent of its own.
    drop(Consul::start().await?);
    let agents = std::sync::Mutex::new(Vec::new());
    contract::registry::registry(async || {
        let consul = Consul::start().await.unwrap();
        let registry = registry(&consul);
        agents.lock().unwrap().push(consul);
        Arc::new(registry) as _
    })
    .await;
    Ok(())
}

async fn an_entry_is_readable_by_others() -> Ran {
    let consul = Consul::start().await?;
    let full =
        stock("a b").with_address("http", "127.0.0.1:8080").with_label("track", "stable").with_weight(3);
    let registration = registry(&consul).register(full).await.unwrap();
    let entry = consul.entry("stock:a%20b").await.unwrap();
    assert_eq!(
        (&entry["Service"], &entry["Address"], &entry["Port"]),
        (&json!("stock"), &json!("127.0.0.1"), &json!(8080))
    );
    assert_eq!((&entry["Tags"], &entry["Meta"]["track"]), (&json!(["track=stable"]), &json!("stable")));
    assert_eq!(entry["Weights"]["Passing"], 3);
    // By Consul's own filter, too.
    let found = consul.ok("GET", "/v1/health/service/stock?passing&tag=track%3Dstable", Value::Null).await;
    assert_eq!(found[0]["Service"]["ID"], "stock:a%20b");
    registration.deregister().await.unwrap();
    assert_eq!(consul.entry("stock:a%20b").await, None);

    // And an entry of others is read.
    let by_hand = json!({ "ID": "x", "Name": "stock", "Address": "10.0.0.5", "Port": 1, "Tags": ["t=c"] });
    consul.ok("PUT", "/v1/agent/service/register", by_hand).await;
    let registry = registry(&consul);
    let mut watcher = registry.watch("stock").await.unwrap();
    let x =
        Instance::new("stock", "n1/x").with_address("grpc", "10.0.0.5:1").with_address("http", "10.0.0.5:1");
    assert_eq!(watcher.next().await.unwrap(), Membership::known([x.with_label("t", "c")]));
    assert_eq!(registry.services().await, ["stock"]);
    Ok(())
}

async fn what_is_no_instance_is_refused_one_by_one() -> Ran {
    let consul = Consul::start().await?;
    for (id, more) in [
        ("good", json!({ "Address": "10.0.0.5", "Port": 1 })),
        ("port", json!({ "Address": "10.0.0.5", "Port": 0 })),
        ("scoped", json!({ "Address": "fe80::1%eth0", "Port": 80 })),
        ("space", json!({ "Address": "a b", "Port": 80 })),
        (
            "garbage",
            json!({ "Address": "h", "Port": 80, "Meta": { "chassis-id": "g", "chassis-more": "{{" } }),
        ),
        ("list", json!({ "Address": "h", "Port": 80, "Meta": { "chassis-id": "l", "chassis-more": "[]" } })),
        ("none", json!({ "Address": "h", "Port": 80, "Meta": { "chassis-id": "n" } })),
        ("large", json!({ "Address": "h", "Port": 80, "Tags": ["x".repeat(100_000)] })),
    ] {
        let mut body = more;
        body["ID"] = id.into();
        body["Name"] = "stock".into();
        consul.ok("PUT", "/v1/agent/service/register", body).await;
    }
    let mut watcher = registry(&consul).watch("stock").await.unwrap();
    until(&mut watcher, &["n1/good"]).await;
    // One that turns bad is gone, and the others stay; and it may become good again.
    let mut good = json!({ "ID": "good", "Name": "stock", "Address": "10.0.0.5", "Port": 0 });
    consul.ok("PUT", "/v1/agent/service/register", good.clone()).await;
    until(&mut watcher, &[]).await;
    good["Port"] = 2.into();
    consul.ok("PUT", "/v1/agent/service/register", good).await;
    until(&mut watcher, &["n1/good"]).await;
    Ok(())
}

async fn a_long_list_is_read_whole() -> Ran {
    let consul = Consul::start().await?;
    consul.ok("PUT", "/v1/catalog/register", json!({ "Node": "x", "Address": "10.0.0.5" })).await;
    let services: Vec<_> = (0..1_234)
        .map(|n| {
            let service =
                json!({ "ID": format!("i{n:04}"), "Service": "stock", "Address": "10.0.0.5", "Port": 1 });
            json!({ "Service": { "Verb": "set", "Node": "x", "Service": service } })
        })
        .collect();
    for some in services.chunks(64) {
        consul.ok("PUT", "/v1/txn", some.into()).await;
    }
    let answer = registry(&consul).watch("stock").await.unwrap().next().await.unwrap();
    let ids: Vec<_> = (0..1_234).map(|n| format!("x/i{n:04}")).collect();
    assert_eq!(ids_of(&answer), ids);
    Ok(())
}

async fn a_change_is_seen_within_100_ms() -> Ran {
    server::change_is_seen(&Consul::start().await?, Duration::from_millis(100)).await;
    Ok(())
}

async fn an_entry_that_went_is_back_at_once() -> Ran {
    let consul = Consul::start().await?;
    let registration = registry(&consul).register(stock("a")).await.unwrap();
    let mut watcher = registry(&consul).watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        let begun = Instant::now();
        consul.deregister("stock:a").await;
        while consul.entry("stock:a").await.is_none() {
            assert!(begun.elapsed() < PATIENCE, "it is not back");
        }
        longest = longest.max(begun.elapsed());
    }
    println!("consul: an entry that went is back after {longest:?} at most");
    assert!(longest <= Duration::from_secs(2), "{longest:?}");
    registration.deregister().await.unwrap();
    until(&mut watcher, &[]).await;
    assert_eq!(consul.entry("stock:a").await, None);
    Ok(())
}

async fn another_process_may_take_an_entry_over() -> Ran {
    let consul = Consul::start().await?;
    let mut watcher = registry(&consul).watch("stock").await.unwrap();
    let first = registry(&consul).register(stock("a")).await.unwrap();
    until(&mut watcher, &["a"]).await;
    let owner = || async { consul.entry("stock:a").await.unwrap()["Meta"]["chassis-owner"].clone() };
    let before = owner().await;
    let second = registry(&consul).register(stock("a").with_weight(2)).await.unwrap();
    assert_ne!(owner().await, before);
    // The first one does not take it back, nor down.
    first.deregister().await.unwrap();
    assert!(consul.entry("stock:a").await.is_some());
    let third = registry(&consul).register(stock("a")).await.unwrap();
    let of_third = owner().await;
    third.deregister().await.unwrap();
    let begun = Instant::now();
    while consul.entry("stock:a").await.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(2), "the second one comes back");
    }
    assert_ne!(owner().await, of_third);
    assert_eq!(consul.entry("stock:a").await.unwrap()["Weights"]["Passing"], 2);
    second.deregister().await.unwrap();
    until(&mut watcher, &[]).await;
    Ok(())
}

async fn checks_decide_what_is_called() -> Ran {
    let consul = Consul::start().await?;
    let skipping = ConsulConfig { warning: Warning::Skip, ..ConsulConfig::at(&consul.address) };
    let skipping = ConsulRegistry::new(skipping).unwrap();
    let mut all = registry(&consul).watch("stock").await.unwrap();
    let mut healthy = skipping.watch("stock").await.unwrap();
    let service = json!({
        "ID": "x", "Name": "stock", "Address": "10.0.0.5", "Port": 1, "Weights": { "Passing": 9, "Warning": 4 },
        "Check": { "CheckID": "c", "TTL": "1h", "Status": "passing" } });
    consul.ok("PUT", "/v1/agent/service/register", service).await;
    until(&mut healthy, &["n1/x"]).await;
    let set = async |path: &str| drop(consul.ok("PUT", path, Value::Null).await);
    set("/v1/agent/check/warn/c").await;
    until(&mut healthy, &[]).await;
    until_weight(&mut all, 4).await; // that of this state
    set("/v1/agent/check/fail/c").await;
    until(&mut all, &[]).await;
    set("/v1/agent/check/pass/c").await;
    until(&mut all, &["n1/x"]).await;
    set("/v1/agent/service/maintenance/x?enable=true").await;
    until(&mut all, &[]).await;
    set("/v1/agent/service/maintenance/x?enable=false").await;
    until(&mut all, &["n1/x"]).await;
    until(&mut healthy, &["n1/x"]).await;
    Ok(())
}

async fn an_agent_asks_by_itself() -> Ran {
    let consul = Consul::start().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (status, now) = watch::channel("200 OK");
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut request, status) = ([0; 4_096], *now.borrow());
            let read = stream.read(&mut request).await.unwrap_or(0);
            assert!(request[..read].starts_with(b"GET /healthz "), "{}", String::from_utf8_lossy(&request));
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let chassis_consul::Check::Http(check) = Check::http("/healthz") else { unreachable!() };
    let check = Check::Http(check.every(PositiveSpan::from_millis(1_000)));
    let config = ConsulConfig { check, ..ConsulConfig::at(&consul.address) };
    let registry = ConsulRegistry::new(config).unwrap();
    let registration =
        registry.register(Instance::new("stock", "a").with_address("http", address)).await.unwrap();
    let mut watcher = registry.watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    status.send_replace("503 Service Unavailable");
    until(&mut watcher, &[]).await;
    status.send_replace("200 OK");
    until(&mut watcher, &["a"]).await;
    registration.deregister().await.unwrap();
    let error = registry.register(stock("b")).await.err().unwrap().to_string();
    assert!(error.contains("listener `http`"), "{error}");
    Ok(())
}
