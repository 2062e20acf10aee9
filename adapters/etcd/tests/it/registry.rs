//! The entries in etcd, and the delay until others see them.
use std::{sync::Arc, time::Duration};

use chassis_core::{
    registry::{Instance, Membership, Registration, Registry, Watcher},
    testing::contract,
};
use chassis_etcd::{EtcdConfig, EtcdRegistry};
use tokio::time::{Instant, timeout};

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

/// A limit for each wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn registry(etcd: &Etcd) -> EtcdRegistry {
    EtcdRegistry::new(EtcdConfig::at([etcd.address.as_str()])).unwrap()
}

pub(crate) fn stock(id: &str) -> Instance {
    Instance::new("stock", id).with_address("grpc", "127.0.0.1:50051")
}

/// Registers after etcd is back: a connection exists again within 2 s.
pub(crate) async fn register_soon(registry: &EtcdRegistry, instance: Instance) -> Box<dyn Registration> {
    let back = Instant::now();
    loop {
        match registry.register(instance.clone()).await {
            Ok(registration) => return registration,
            Err(error) => assert!(back.elapsed() < Duration::from_secs(2), "{error}"),
        }
        tokio::task::yield_now().await;
    }
}

/// Waits until the watcher returns these ids.
#[track_caller]
pub(crate) fn until<'a>(watcher: &'a mut Box<dyn Watcher>, ids: &'a [&str]) -> impl Future<Output = ()> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let mut last = None;
        let found = timeout(PATIENCE, async {
            loop {
                let found = watcher.next().await;
                if found.as_ref().is_ok_and(|found| ids_of(found) == ids) {
                    return;
                }
                last = Some(found);
            }
        });
        if found.await.is_err() {
            panic!("{caller}: expected {ids:?}, last answer {last:?}");
        }
    }
}

pub(crate) fn ids_of(found: &Membership) -> Vec<&str> {
    match found {
        Membership::Known(all) => all.iter().map(|instance| instance.id.as_str()).collect(),
        Membership::Unknown | Membership::Deleted => Vec::new(),
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
    assert_eq!(value, r#"{"id":"a b","service":"stock","addresses":{"grpc":"127.0.0.1:50051"}}"#);
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
    let etcd = Etcd::start().await?;
    let mut watcher = registry(&etcd).watch("stock").await.unwrap();
    assert_eq!(watcher.next().await.unwrap(), Membership::Unknown);
    let writer = registry(&etcd);
    let mut taken = Vec::new();
    for round in 0..100 {
        let id = format!("i{round}");
        let begun = Instant::now();
        let registration = writer.register(stock(&id)).await.unwrap();
        until(&mut watcher, &[&id]).await;
        taken.push(begun.elapsed());
        let begun = Instant::now();
        registration.deregister().await.unwrap();
        until(&mut watcher, &[]).await;
        taken.push(begun.elapsed());
    }
    taken.sort();
    let p99 = taken[taken.len() * 99 / 100];
    println!("etcd: a change is seen after {:?}, p99 {p99:?}", taken[taken.len() / 2]);
    assert!(p99 <= Duration::from_millis(100), "{p99:?}");
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
        until(&mut watcher, &[]).await;
        until(&mut watcher, &["a"]).await;
        longest = longest.max(begun.elapsed());
        let (_, new) = etcd.get(key).await.unwrap();
        assert_ne!(new, lease, "a lease that is over never comes back");
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
    weight(&mut watcher, 2).await;
    // The first one is written again when the second one is removed; before that it removes nothing of the
    // second.
    second.deregister().await.unwrap();
    weight(&mut watcher, 1).await;
    let third = registry(&etcd).register(stock("a").with_weight(3)).await.unwrap();
    weight(&mut watcher, 3).await;
    first.deregister().await.unwrap();
    assert!(etcd.get("/chassis/services/stock/a").await.unwrap().0.contains(r#""weight":3"#));
    third.deregister().await.unwrap();
    until(&mut watcher, &[]).await;
    Ok(())
}

async fn weight(watcher: &mut Box<dyn Watcher>, weight: u32) {
    let found = timeout(PATIENCE, async {
        loop {
            if let Ok(Membership::Known(all)) = watcher.next().await
                && all.iter().any(|instance| instance.weight == weight)
            {
                return;
            }
        }
    });
    found.await.unwrap_or_else(|_| panic!("no instance of weight {weight}"));
}
