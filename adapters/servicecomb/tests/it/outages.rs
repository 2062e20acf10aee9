//! Service center is away, frozen, or has lost its memory; connections are cut.
use std::{collections::BTreeMap, time::Duration};

use chassis_core::{
    Random,
    registry::{Membership, Registration, Registry},
    testing::server::Proxy,
    units::PositiveSpan,
};
use chassis_servicecomb::{ServiceCombConfig, ServiceCombRegistry};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    center::{Center, CenterConfig, needs_stand_in},
    registry::{PATIENCE, config, ids_of, register_soon, registry, stock, until},
    trials::Ran,
};

trials! {
    a_server_that_lost_its_memory_gets_its_entries_back
    who_begins_without_service_center_finds_it_when_it_comes
    an_entry_outlives_a_server_that_was_frozen_beyond_its_time
    no_update_is_lost_over_gaps
    a_forgotten_consumer_is_registered_again
}

/// After the server is back.
const SOON: Duration = Duration::from_secs(2);

async fn a_server_that_lost_its_memory_gets_its_entries_back() -> Ran {
    needs_stand_in()?;
    let mut center = Center::start().await;
    let (ours, others) = (registry(&center), registry(&center));
    let a = ours.register(stock("a")).await.unwrap();
    let b = others.register(stock("b")).await.unwrap();
    let mut watcher = ours.watch("stock").await.unwrap();
    until(&mut watcher, &["a", "b"]).await;
    center.kill();
    let error = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap_err().to_string();
    assert!(error.contains(&center.address), "{error}");
    // A new watcher returns the known instances, and not the same error again.
    let mut watcher = ours.watch("stock").await.unwrap();
    assert_eq!(ids_of(&watcher.next().await.unwrap()), ["a", "b"]);
    assert!(timeout(Duration::from_millis(500), watcher.next()).await.is_err(), "nothing changed");
    assert!(timeout(PATIENCE, ours.register(stock("c"))).await.unwrap().is_err());
    // One goes meanwhile; a server without memory does not know of it.
    drop(b);
    center.forget();
    center.run().await;
    let back = Instant::now();
    let c = register_soon(&others, stock("c")).await;
    until(&mut watcher, &["a", "c"]).await;
    println!("servicecomb: after a restart without memory all is back after {:?}", back.elapsed());
    assert!(back.elapsed() <= SOON, "{:?}", back.elapsed());
    a.deregister().await.unwrap();
    c.deregister().await.unwrap();
    until(&mut watcher, &[]).await;
    assert!(center.entries("stock").is_empty());
    Ok(())
}

async fn who_begins_without_service_center_finds_it_when_it_comes() -> Ran {
    needs_stand_in()?;
    let mut center = Center::start().await;
    center.kill();
    let registry = registry(&center);
    let mut watcher = registry.watch("stock").await.unwrap();
    let began = Instant::now();
    assert!(timeout(PATIENCE, watcher.next()).await.unwrap().is_err(), "it says why it knows nothing");
    assert!(registry.services().await.is_empty());
    assert!(registry.register(stock("a")).await.is_err());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    center.run().await;
    let back = Instant::now();
    assert_eq!(timeout(PATIENCE, watcher.next()).await.unwrap().unwrap(), Membership::Unknown);
    assert!(back.elapsed() <= SOON, "{:?}", back.elapsed());
    Ok(())
}

async fn an_entry_outlives_a_server_that_was_frozen_beyond_its_time() -> Ran {
    needs_stand_in()?;
    let limits = CenterConfig { min_interval: 1, min_times: 1, ..CenterConfig::default() };
    let center = Center::start_with(limits).await;
    let heartbeat = PositiveSpan::from_millis(1_000);
    let config = ServiceCombConfig { heartbeat, misses: 1, ..config(&center) };
    let registration = ServiceCombRegistry::new(config).unwrap().register(stock("a")).await.unwrap();
    let mut watcher = registry(&center).watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    let frozen = center.freeze();
    sleep(Duration::from_secs(4)).await; // the fault itself: twice the time of the entry
    drop(frozen);
    let back = Instant::now();
    // It is gone for a moment at most; then it stays.
    let mut gone_at = None;
    while back.elapsed() < Duration::from_secs(4) {
        match center.entries("stock").is_empty() {
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
    let mut late = registry(&center).watch("stock").await.unwrap();
    until(&mut late, &["a"]).await;
    registration.deregister().await.unwrap();
    until(&mut late, &[]).await;
    Ok(())
}

/// The series of gaps ends after this time, and after [`GAPS`] at the latest.
const LASTS: Duration = Duration::from_secs(15);
const GAPS: usize = 200;

async fn no_update_is_lost_over_gaps() {
    let center = Center::start().await;
    let proxy = Proxy::start(&center.address).await.unwrap();
    let addresses = vec![proxy.address().to_owned()];
    let reader = ServiceCombRegistry::new(ServiceCombConfig { addresses, ..config(&center) }).unwrap();
    let writer = registry(&center);
    let mut watcher = reader.watch("stock").await.unwrap();
    let mut there: BTreeMap<String, Box<dyn Registration>> = BTreeMap::new();
    let random = Random::seeded(5);
    let (begun, mut gaps, mut longest) = (Instant::now(), 0, Duration::ZERO);
    while gaps < GAPS && begun.elapsed() < LASTS {
        match gaps % 2 {
            0 => proxy.cut(),  // every connection
            _ => center.cut(), // that of the pushes alone
        }
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
    println!("servicecomb: {gaps} gaps; all was seen after {longest:?} at most");
    assert!(longest <= SOON, "{longest:?}");
    assert!(gaps >= 20, "only {gaps}");
}

async fn a_forgotten_consumer_is_registered_again() {
    let center = Center::start().await;
    let a = registry(&center).register(stock("a")).await.unwrap();
    let refresh = PositiveSpan::from_millis(1_000);
    let reader = ServiceCombRegistry::new(ServiceCombConfig { refresh, ..config(&center) }).unwrap();
    let mut watcher = reader.watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    let consumer = |center: &Center| {
        let services = center.services();
        let consumer = services.iter().find(|service| service["serviceName"] == "chassis-consumer");
        consumer.map(|service| service["serviceId"].as_str().unwrap().to_owned())
    };
    let before = consumer(&center).unwrap();
    let path = format!("/v4/default/registry/microservices/{before}?force=1");
    let (status, _) = crate::host::ask(&center.address, "DELETE", &path, "").await;
    assert_eq!(status, 200);
    let begun = Instant::now();
    // A real one makes its id of its name.
    let is_real = needs_stand_in().is_err();
    while consumer(&center).is_none_or(|now| now == before && !is_real) {
        assert!(begun.elapsed() < PATIENCE, "it is not registered again");
        tokio::task::yield_now().await;
    }
    // And it is pushed to as before.
    let b = registry(&center).register(stock("b")).await.unwrap();
    until(&mut watcher, &["a", "b"]).await;
    a.deregister().await.unwrap();
    b.deregister().await.unwrap();
    until(&mut watcher, &[]).await;
}
