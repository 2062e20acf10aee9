//! A watcher that was cut off finds everything that happened meanwhile, entries that went too.
use std::{collections::BTreeMap, time::Duration};

use chassis_consul::{ConsulConfig, ConsulRegistry, ConsulSource, ConsulSourceConfig};
use chassis_core::{
    Random,
    config::ConfigSource,
    registry::{Registration, Registry},
};
use tokio::time::{Instant, timeout};

use crate::{
    proxy::Proxy,
    registry::{registry, stock, until},
    server::Consul,
    trials::Ran,
};

trials! {
    no_update_is_lost_over_gaps
    a_config_watcher_loses_nothing_over_gaps
}

/// The series of gaps ends after this time, and after [`GAPS`] at the latest.
const LASTS: Duration = Duration::from_secs(15);
const GAPS: usize = 200;

async fn no_update_is_lost_over_gaps() -> Ran {
    let consul = Consul::start().await?;
    let proxy = Proxy::start(&consul.address).await;
    let reader = ConsulRegistry::new(ConsulConfig::at(&proxy.address)).unwrap();
    let writer = registry(&consul);
    let mut watcher = reader.watch("stock").await.unwrap();
    let mut there: BTreeMap<String, Box<dyn Registration>> = BTreeMap::new();
    let random = Random::seeded(5);
    let (begun, mut gaps, mut longest) = (Instant::now(), 0, Duration::ZERO);
    while gaps < GAPS && begun.elapsed() < LASTS {
        proxy.cut();
        for _ in 0..1 + random.below(10) {
            let id = format!("i{:02}", random.below(20));
            match there.remove(&id) {
                Some(registration) => registration.deregister().await.unwrap(),
                None => drop(there.insert(id.clone(), writer.register(stock(&id)).await.unwrap())),
            }
        }
        proxy.heal();
        let healed = Instant::now();
        let ids: Vec<_> = there.keys().map(String::as_str).collect();
        until(&mut watcher, &ids).await;
        longest = longest.max(healed.elapsed());
        gaps += 1;
    }
    println!("consul: {gaps} gaps; all was seen after {longest:?} at most");
    assert!(longest <= Duration::from_secs(2), "{longest:?}");
    assert!(gaps >= 20, "only {gaps}");
    Ok(())
}

async fn a_config_watcher_loses_nothing_over_gaps() -> Ran {
    let consul = Consul::start().await?;
    let proxy = Proxy::start(&consul.address).await;
    consul.put("c.yaml", "a: -1").await;
    let source = ConsulSource::new(ConsulSourceConfig::key(&proxy.address, "c.yaml")).unwrap();
    let mut watcher = source.watch().await.unwrap();
    for n in 0..10 {
        proxy.cut();
        let content = format!("a: {n}");
        consul.put("c.yaml", &content).await;
        proxy.heal();
        let seen = timeout(Duration::from_secs(2), async {
            while watcher.next().await.ok().is_none_or(|text| text.content != content) {}
        });
        seen.await.unwrap_or_else(|_| panic!("{content} is not seen"));
    }
    Ok(())
}
