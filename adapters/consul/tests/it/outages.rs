//! The agent is away, frozen, or has lost its memory.
use std::time::Duration;

use chassis_consul::{ConsulSource, ConsulSourceConfig};
use chassis_core::{
    config::ConfigSource,
    registry::Registry,
    testing::server::{self, PATIENCE, SOON, ids_of, register_soon, stock, until},
};
use tokio::time::{Instant, timeout};

use crate::{registry::registry, server::Consul, trials::Ran};

trials! {
    an_agent_that_lost_its_memory_gets_its_entries_back
    who_begins_without_consul_finds_it_when_it_comes
    an_entry_outlives_an_agent_that_was_frozen_beyond_its_ttl
    an_index_that_goes_back_hides_no_change
}

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
    server::begun_without_it(&mut Consul::start().await?).await;
    Ok(())
}

async fn an_entry_outlives_an_agent_that_was_frozen_beyond_its_ttl() -> Ran {
    server::frozen_beyond_its_lease(&mut Consul::start().await?).await;
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
