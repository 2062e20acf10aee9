//! The agent is away, frozen, or has lost its memory.
use std::time::Duration;

use chassis_consul::{Check, ConsulConfig, ConsulRegistry, ConsulSource, ConsulSourceConfig};
use chassis_core::{
    config::ConfigSource,
    registry::{Membership, Registry},
    units::PositiveSpan,
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    registry::{PATIENCE, ids_of, register_soon, registry, stock, until},
    server::Consul,
    trials::Ran,
};

trials! {
    an_agent_that_lost_its_memory_gets_its_entries_back
    who_begins_without_consul_finds_it_when_it_comes
    an_entry_outlives_an_agent_that_was_frozen_beyond_its_ttl
    an_index_that_goes_back_hides_no_change
}

/// After Consul is back.
const SOON: Duration = Duration::from_secs(2);

async fn an_agent_that_lost_its_memory_gets_its_entries_back() -> Ran {
    let mut consul = Consul::start().await?;
    let (ours, others) = (registry(&consul), registry(&consul));
    let a = ours.register(stock("a")).await.unwrap();
    let b = others.register(stock("b")).await.unwrap();
    let mut watcher = ours.watch("stock").await.unwrap();
    until(&mut watcher, &["a", "b"]).await;
    consul.kill().await;
    let error = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap_err().to_string();
    assert!(error.contains(&consul.address), "{error}");
    // A new watcher returns the known instances, and not the same error again.
    let mut watcher = ours.watch("stock").await.unwrap();
    assert_eq!(ids_of(&watcher.next().await.unwrap()), ["a", "b"]);
    assert!(timeout(Duration::from_millis(500), watcher.next()).await.is_err(), "nothing changed");
    assert!(timeout(PATIENCE, ours.register(stock("c"))).await.unwrap().is_err());
    // One goes meanwhile; a server without memory does not know of it.
    drop(b);
    consul.run().await;
    let back = Instant::now();
    let c = register_soon(&others, stock("c")).await;
    until(&mut watcher, &["a", "c"]).await;
    assert!(back.elapsed() <= SOON, "{:?}", back.elapsed());
    println!("consul: after a restart without memory all is back after {:?}", back.elapsed());
    a.deregister().await.unwrap();
    c.deregister().await.unwrap();
    until(&mut watcher, &[]).await;
    Ok(())
}

async fn who_begins_without_consul_finds_it_when_it_comes() -> Ran {
    let mut consul = Consul::start().await?;
    consul.kill().await;
    let registry = registry(&consul);
    let mut watcher = registry.watch("stock").await.unwrap();
    let began = Instant::now();
    assert!(timeout(PATIENCE, watcher.next()).await.unwrap().is_err(), "it says why it knows nothing");
    assert!(registry.services().await.is_empty());
    assert!(registry.register(stock("a")).await.is_err());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    consul.run().await;
    let back = Instant::now();
    assert_eq!(timeout(PATIENCE, watcher.next()).await.unwrap().unwrap(), Membership::Unknown);
    assert!(back.elapsed() <= SOON, "{:?}", back.elapsed());
    Ok(())
}

async fn an_entry_outlives_an_agent_that_was_frozen_beyond_its_ttl() -> Ran {
    let consul = Consul::start().await?;
    let ttl = PositiveSpan::from_millis(2_000);
    let config = ConsulConfig { check: Check::Ttl(ttl), ..ConsulConfig::at(&consul.address) };
    let registration = ConsulRegistry::new(config).unwrap().register(stock("a")).await.unwrap();
    let mut watcher = registry(&consul).watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    consul.signal("STOP").await;
    sleep(2 * ttl.get()).await; // the fault itself
    consul.signal("CONT").await;
    let back = Instant::now();
    // It may have been renewed before its time was found over; else it is critical for a moment.
    let path = "/v1/health/service/stock?passing";
    let mut gone_at = None;
    while back.elapsed() < 2 * ttl.get() {
        match consul.ok("GET", path, serde_json::Value::Null).await.as_array().unwrap().is_empty() {
            true => drop(gone_at.get_or_insert_with(Instant::now)),
            false => {
                if let Some(at) = gone_at.take() {
                    assert!(at.elapsed() <= SOON, "{:?}", at.elapsed());
                }
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(gone_at, None, "it is there");
    until(&mut watcher, &["a"]).await;
    registration.deregister().await.unwrap();
    until(&mut watcher, &[]).await;
    Ok(())
}

async fn an_index_that_goes_back_hides_no_change() -> Ran {
    let mut consul = Consul::start().await?;
    let source = ConsulSource::new(ConsulSourceConfig::key(&consul.address, "c.yaml")).unwrap();
    let mut before = 0;
    for n in 0..100 {
        before = consul.put("c.yaml", &format!("a: {n}")).await; // higher than those of its next life
    }
    let mut watcher = source.watch().await.unwrap();
    assert_eq!(watcher.next().await.unwrap().content, "a: 99");
    consul.kill().await;
    consul.run().await;
    for n in 0..3 {
        let content = format!("b: {n}");
        assert!(consul.put("c.yaml", &content).await < before, "this is what the test is about");
        let seen = timeout(SOON, async {
            while watcher.next().await.ok().is_none_or(|text| text.content != content) {}
        });
        seen.await.unwrap_or_else(|_| panic!("{content} is not seen"));
    }
    Ok(())
}
