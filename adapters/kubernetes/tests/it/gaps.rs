//! A watcher that was cut off finds everything that happened meanwhile, slices that went too.
use std::{collections::BTreeSet, time::Duration};

use chassis_core::{Random, registry::Registry, testing::server::Proxy};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    registry::{hosts, registry, until},
    server::Server,
    trials::Ran,
};

trials! {
    no_update_is_lost_over_gaps
    a_restart_of_the_server_is_no_loss
}

/// The series of gaps ends after this time, and after [`GAPS`] at the latest.
const LASTS: Duration = Duration::from_secs(40);
const GAPS: usize = 200;

/// Connections are cut, the server is frozen, and the versions of the watch are compacted away, so that it ends by 410.
async fn no_update_is_lost_over_gaps() -> Ran {
    let server = Server::start(&["--watch-cache=false"]).await?;
    let api = &server.api;
    api.make_namespace("shop").await;
    let proxy = Proxy::start(&api.address).await.unwrap();
    let reader = registry(api.config_at(proxy.address(), "shop"));
    let mut watcher = reader.watch("stock").await.unwrap();
    let random = Random::seeded(5);
    let mut there: BTreeSet<u8> = BTreeSet::new();
    let (begun, mut gaps, mut compacted, mut longest) = (Instant::now(), 0, 0, Duration::ZERO);
    while gaps < GAPS && begun.elapsed() < LASTS {
        proxy.cut();
        for _ in 0..1 + random.below(4) {
            let host = u8::try_from(random.below(20)).unwrap();
            match there.remove(&host) {
                true => api.delete_slice("shop", &format!("s{host}")).await,
                false => {
                    api.put("shop", &format!("s{host}"), &[host]).await;
                    there.insert(host);
                }
            }
        }
        if gaps % 2 == 1 {
            // Of another object: etcd before 3.5.15 loses a delete at the very revision of a compaction.
            api.put_config_map("shop", json!({ "gap": gaps.to_string() })).await;
            server.etcd.compact().await;
            compacted += 1;
        }
        if gaps % 10 == 9 {
            server.signal("STOP").await;
        }
        proxy.heal();
        if gaps % 10 == 9 {
            server.signal("CONT").await;
        }
        let healed = Instant::now();
        let ids: Vec<_> = there.iter().copied().collect();
        until(&mut watcher, &hosts(&ids)).await;
        longest = longest.max(healed.elapsed());
        gaps += 1;
    }
    println!(
        "kubernetes: {gaps} gaps, {compacted} with a compaction; all was seen after {longest:?} at most"
    );
    assert!(gaps >= 20, "only {gaps}");
    Ok(())
}

/// After a restart the cache of the server has no older versions.
async fn a_restart_of_the_server_is_no_loss() -> Ran {
    let mut server = Server::start(&[]).await?;
    server.api.make_namespace("shop").await;
    server.api.put("shop", "a", &[1]).await;
    server.api.put("shop", "b", &[2]).await;
    let mut watcher = registry(server.api.config("shop")).watch("stock").await.unwrap();
    until(&mut watcher, &hosts(&[1, 2])).await;
    server.kill().await;
    server.run().await;
    server.api.delete_slice("shop", "a").await;
    let back = Instant::now();
    until(&mut watcher, &hosts(&[2])).await;
    println!("kubernetes: a change is seen {:?} after the server is back", back.elapsed());
    assert!(back.elapsed() <= Duration::from_secs(5), "{:?}", back.elapsed());
    Ok(())
}
