//! etcd is stopped, frozen, or has lost its data.
use std::time::Duration;

use chassis_core::{
    registry::Registry,
    testing::server::{self, PATIENCE, Proxy, SOON, ids_of, register_soon, stock, until},
};
use chassis_etcd::{EtcdConfig, EtcdRegistry};
use tokio::time::{Instant, timeout};

use crate::{registry::registry, server::Etcd, trials::Ran};

trials! {
    a_restart_is_told_once_and_loses_nothing
    who_begins_without_etcd_finds_it_when_it_comes
    an_entry_outlives_a_server_that_was_frozen_beyond_its_lease
    a_server_that_lost_its_memory_gets_its_entries_back
    a_server_that_lost_its_memory_and_is_ahead_is_read_anew
    another_member_takes_over
}

async fn a_restart_is_told_once_and_loses_nothing() -> Ran {
    let mut etcd = Etcd::start().await?;
    let (ours, others) = (registry(&etcd), registry(&etcd));
    let a = ours.register(stock("a")).await.unwrap();
    let b = others.register(stock("b")).await.unwrap();
    let mut watcher = ours.watch("stock").await.unwrap();
    until(&mut watcher, &["a", "b"]).await;
    etcd.kill().await;
    let error = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap_err().to_string();
    assert!(error.contains(&etcd.address), "{error}");
    // A new watcher gets the known instances, and not the same error again.
    let mut watcher = ours.watch("stock").await.unwrap();
    assert_eq!(ids_of(&watcher.next().await.unwrap()), ["a", "b"]);
    assert!(timeout(Duration::from_millis(500), watcher.next()).await.is_err(), "nothing changed");
    assert!(timeout(PATIENCE, ours.register(stock("c"))).await.unwrap().is_err());
    // One instance ends meanwhile and cannot deregister: its lease expires.
    drop(b);
    etcd.run().await;
    let back = Instant::now();
    assert_eq!(ids_of(&timeout(PATIENCE, watcher.next()).await.unwrap().unwrap()), ["a", "b"]);
    let c = register_soon(&others, stock("c")).await;
    let found = timeout(PATIENCE, async { while !ids_of(&watcher.next().await.unwrap()).contains(&"c") {} });
    found.await.unwrap();
    assert!(back.elapsed() <= SOON, "{:?}", back.elapsed());
    until(&mut watcher, &["a", "c"]).await;
    a.deregister().await.unwrap();
    c.deregister().await.unwrap();
    until(&mut watcher, &[]).await;
    Ok(())
}

async fn who_begins_without_etcd_finds_it_when_it_comes() -> Ran {
    server::begun_without_it(&mut Etcd::start().await?).await;
    Ok(())
}

async fn an_entry_outlives_a_server_that_was_frozen_beyond_its_lease() -> Ran {
    server::frozen_beyond_its_lease(&mut Etcd::start().await?).await;
    Ok(())
}

async fn a_server_that_lost_its_memory_gets_its_entries_back() -> Ran {
    let mut etcd = Etcd::start().await?;
    etcd.put("/chassis/services/stock/ghost", r#"{"id":"ghost","addresses":{"grpc":"h:1"}}"#).await;
    for _ in 0..20 {
        etcd.put("/x", "x").await; // its revisions are higher than those after the loss
    }
    let _a = registry(&etcd).register(stock("a")).await.unwrap();
    let mut watcher = registry(&etcd).watch("stock").await.unwrap();
    until(&mut watcher, &["a", "ghost"]).await;
    etcd.wipe().await;
    etcd.run().await;
    let back = Instant::now();
    until(&mut watcher, &["a"]).await;
    assert!(back.elapsed() <= SOON, "{:?}", back.elapsed());
    Ok(())
}

/// etcd comes back with other data whose revision is higher than the one that a watch has seen: nothing in an answer
/// shows that.
async fn a_server_that_lost_its_memory_and_is_ahead_is_read_anew() -> Ran {
    let mut etcd = Etcd::start().await?;
    let proxy = Proxy::start(&etcd.address).await.unwrap();
    let instance = |id: &str| format!(r#"{{"id":"{id}","addresses":{{"grpc":"h:1"}}}}"#);
    etcd.put("/chassis/services/stock/ghost", &instance("ghost")).await;
    let reader = EtcdRegistry::new(EtcdConfig::at([proxy.address()])).unwrap();
    let mut watcher = reader.watch("stock").await.unwrap();
    until(&mut watcher, &["ghost"]).await;
    proxy.cut();
    let cut = Instant::now();
    etcd.wipe().await;
    etcd.run().await;
    etcd.put("/chassis/services/stock/new", &instance("new")).await;
    for _ in 0..20 {
        etcd.put("/x", "x").await;
    }
    tokio::time::sleep_until(cut + SOON).await; // the fault itself
    proxy.heal();
    let back = Instant::now();
    until(&mut watcher, &["new"]).await;
    assert!(back.elapsed() <= SOON, "{:?}", back.elapsed());
    Ok(())
}

async fn another_member_takes_over() -> Ran {
    let mut members = Etcd::cluster(3).await?;
    let endpoints: Vec<_> = members.iter().map(|member| member.address.clone()).collect();
    let registry = || EtcdRegistry::new(EtcdConfig::at(endpoints.clone())).unwrap();
    let (ours, others) = (registry(), registry());
    let _a = ours.register(stock("a")).await.unwrap();
    let mut watcher = others.watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    // Each member stops and returns, including the leader and the watched ones.
    for (n, member) in members.iter_mut().enumerate() {
        member.kill().await;
        let id = format!("b{n}");
        let begun = Instant::now();
        let registration = loop {
            match ours.register(stock(&id)).await {
                Ok(registration) => break registration,
                // There is no leader yet.
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
            }
        };
        until(&mut watcher, &["a", &id]).await;
        println!("etcd: without member {n} a change is seen after {:?}", begun.elapsed());
        drop(registration);
        until(&mut watcher, &["a"]).await;
        member.run().await;
    }
    Ok(())
}
