//! The entries in etcd, and the delay until others see them.
use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chassis_core::{
    registry::{Instance, Membership, Registry},
    testing::{
        contract,
        server::{self, PATIENCE, Server, ids_of, stock, until, until_weight},
    },
    units::PositiveSpan,
};
use chassis_etcd::{EtcdConfig, EtcdRegistry};
use tokio::time::Instant;

use crate::{server::Etcd, trials::Ran};

trials! {
    keeps_the_contract
    an_entry_is_readable_by_others
    what_is_no_instance_is_refused_one_by_one
    a_range_of_many_pages_is_read_whole
    pages_that_are_too_large_are_read_in_smaller_ones
    a_change_is_seen_within_100_ms
    an_entry_that_went_is_back_at_once
    another_process_may_take_an_entry_over
}

pub(crate) fn registry(etcd: &Etcd) -> EtcdRegistry {
    EtcdRegistry::new(EtcdConfig::at([etcd.address.as_str()])).unwrap()
}

#[async_trait]
impl Server for Etcd {
    fn address(&self) -> &str {
        &self.address
    }

    fn registry(&self, address: &str, lease: Option<Duration>) -> Arc<dyn Registry> {
        let config = EtcdConfig::at([address]);
        let lease = lease.and_then(PositiveSpan::new).unwrap_or(config.lease);
        Arc::new(EtcdRegistry::new(EtcdConfig { lease, ..config }).unwrap())
    }

    async fn kill(&mut self) {
        Etcd::kill(self).await;
    }

    async fn run(&mut self) {
        Etcd::run(self).await;
    }

    async fn freeze(&mut self, is_frozen: bool) {
        self.signal(if is_frozen { "STOP" } else { "CONT" }).await;
    }

    async fn compact(&mut self) {
        Etcd::compact(self).await;
    }

    async fn lists(&mut self, id: &str) -> bool {
        self.get(&format!("/chassis/services/stock/{id}")).await.is_some()
    }
}

async fn keeps_the_contract() -> Ran {
    let etcd = Etcd::start().await?;
    let number = std::cell::Cell::new(0);
    contract::registry::registry(async || {
        number.set(number.get() + 1);
        let prefix = format!("/contract/{}", number.get());
        let config = EtcdConfig { prefix, ..EtcdConfig::at([etcd.address.as_str()]) };
        Arc::new(EtcdRegistry::new(config).unwrap()) as _
    })
    .await;
    Ok(())
}

async fn an_entry_is_readable_by_others() -> Ran {
    let etcd = Etcd::start().await?;
    let registration = registry(&etcd).register(stock("a b")).await.unwrap();
    let (value, lease) = etcd.get("/chassis/services/stock/a%20b").await.unwrap();
    assert_eq!(value, r#"{"id":"a b","service":"stock","addresses":{"main":"127.0.0.1:50051"}}"#);
    assert_ne!(lease, 0, "it goes with its process");
    registration.deregister().await.unwrap();
    assert_eq!(etcd.get("/chassis/services/stock/a%20b").await, None);

    // And an entry that another program wrote is read.
    let by_hand =
        r#"{ "id": "x", "addresses": { "grpc": "10.0.0.5:1" }, "started": 12, "labels": { "t": "c" } }"#;
    etcd.put("/chassis/services/stock/x", by_hand).await;
    let found = registry(&etcd).watch("stock").await.unwrap().next().await.unwrap();
    let x = Instance::new("stock", "x").with_address("grpc", "10.0.0.5:1").with_label("t", "c");
    let x = x.with_other("started", 12.into());
    assert_eq!(found, Membership::known([x]));
    Ok(())
}

async fn what_is_no_instance_is_refused_one_by_one() -> Ran {
    let etcd = Etcd::start().await?;
    let entry = |id: &str, address: &str| format!(r#"{{"id":"{id}","addresses":{{"grpc":"{address}"}}}}"#);
    let huge = "x".repeat(100_000);
    for (key, value) in [
        ("good", entry("good", "10.0.0.5:1")),
        ("another", entry("other", "10.0.0.5:1")),
        ("garbage", "\u{0}\u{1}{{{".to_owned()),
        ("empty", String::new()),
        ("list", "[]".to_owned()),
        ("huge", huge),
        ("port", entry("port", "10.0.0.5:0")),
        ("scoped", entry("scoped", "[fe80::1%eth0]:80")),
        ("deep", "[".repeat(10_000)),
        ("foreign", r#"{"id":"foreign","service":"billing","addresses":{"grpc":"h:1"}}"#.to_owned()),
        ("nested/key", entry("nested/key", "10.0.0.5:1")),
    ] {
        etcd.put(&format!("/chassis/services/stock/{key}"), &value).await;
    }
    let mut watcher = registry(&etcd).watch("stock").await.unwrap();
    until(&mut watcher, &["good", "nested/key"]).await;
    // An entry that becomes invalid is removed, and the others stay; it may become valid again.
    etcd.put("/chassis/services/stock/good", "bad").await;
    until(&mut watcher, &["nested/key"]).await;
    etcd.put("/chassis/services/stock/good", &entry("good", "10.0.0.5:2")).await;
    until(&mut watcher, &["good", "nested/key"]).await;
    Ok(())
}

async fn a_range_of_many_pages_is_read_whole() -> Ran {
    let etcd = Etcd::start().await?;
    fill(&etcd, 1_234, 0).await;
    let registry = registry(&etcd);
    let found = registry.watch("stock").await.unwrap().next().await.unwrap();
    let ids: Vec<_> = (0..1_234).map(|n| format!("i{n:04}")).collect();
    assert_eq!(ids_of(&found), ids);
    assert_eq!(registry.services().await, ["stock"]);
    Ok(())
}

async fn pages_that_are_too_large_are_read_in_smaller_ones() -> Ran {
    let etcd = Etcd::start().await?;
    fill(&etcd, 560, 60_000).await; // 500 of them, a page, are more than the 32 MiB of a message
    let found = registry(&etcd).watch("stock").await.unwrap().next().await.unwrap();
    assert_eq!(ids_of(&found).len(), 560);
    Ok(())
}

/// `count` instances, each with a label of `bytes` bytes.
async fn fill(etcd: &Etcd, count: usize, bytes: usize) {
    let value = |n| {
        let label = "x".repeat(bytes);
        format!(r#"{{"id":"i{n:04}","addresses":{{"grpc":"10.0.0.5:1"}},"labels":{{"x":"{label}"}}}}"#)
    };
    let all: Vec<_> = (0..count).map(|n| (format!("/chassis/services/stock/i{n:04}"), value(n))).collect();
    for some in all.chunks(if bytes > 0 { 16 } else { 100 }) {
        etcd.put_all(some.iter().cloned()).await;
    }
}

async fn a_change_is_seen_within_100_ms() -> Ran {
    server::change_is_seen(&Etcd::start().await?, Duration::from_millis(100)).await;
    Ok(())
}

async fn an_entry_that_went_is_back_at_once() -> Ran {
    let etcd = Etcd::start().await?;
    let key = "/chassis/services/stock/a";
    let registration = registry(&etcd).register(stock("a")).await.unwrap();
    let mut watcher = registry(&etcd).watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    let mut longest = Duration::ZERO;
    for round in 0..20 {
        let (_, lease) = etcd.get(key).await.unwrap();
        let begun = Instant::now();
        match round % 2 {
            0 => etcd.revoke(lease).await,
            _ => etcd.delete(key).await,
        }
        // A lease that is over never comes back. The watcher may not have seen that the entry went.
        while etcd.get(key).await.is_none_or(|(_, new)| new == lease) {
            assert!(begun.elapsed() < PATIENCE, "it is not back");
        }
        longest = longest.max(begun.elapsed());
    }
    println!("etcd: an entry that went is back after {longest:?} at most");
    assert!(longest <= Duration::from_secs(2), "{longest:?}");
    registration.deregister().await.unwrap();
    until(&mut watcher, &[]).await;
    let leases = etcd.post("/v3/lease/leases", serde_json::json!({})).await;
    assert_eq!(leases.get("leases"), None, "no lease is left behind: {leases}");
    Ok(())
}

async fn another_process_may_take_an_entry_over() -> Ran {
    let etcd = Etcd::start().await?;
    let first = registry(&etcd).register(stock("a").with_weight(1)).await.unwrap();
    let mut watcher = registry(&etcd).watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    let second = registry(&etcd).register(stock("a").with_weight(2)).await.unwrap();
    until_weight(&mut watcher, 2).await;
    // The first one is written again when the second one is removed; before that it removes nothing of the
    // second.
    second.deregister().await.unwrap();
    until_weight(&mut watcher, 1).await;
    let third = registry(&etcd).register(stock("a").with_weight(3)).await.unwrap();
    until_weight(&mut watcher, 3).await;
    first.deregister().await.unwrap();
    assert!(etcd.get("/chassis/services/stock/a").await.unwrap().0.contains(r#""weight":3"#));
    third.deregister().await.unwrap();
    until(&mut watcher, &[]).await;
    Ok(())
}
