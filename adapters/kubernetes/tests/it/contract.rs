//! The promises of registries and watchers, as far as they concern one that is only read: the test writes the slices.
//!
//! The suite of core writes by the registry itself, and states more of an instance than a slice does.
use std::{collections::BTreeMap, time::Duration};

use chassis_core::{
    Random,
    registry::{Membership, Registry, Watcher},
};
use tokio::time::{Instant, timeout};

use crate::{
    registry::{hosts, ids_of, registry, until},
    server::{Api, PATIENCE, shared},
    trials::Ran,
};

trials! {
    the_first_answer_comes_at_once
    every_watcher_sees_every_change
    snapshots_follow_a_model
    a_dropped_future_loses_nothing
    services_do_not_mix
}

/// Another Service of the namespace.
const OTHER: &str = "orders";

/// Puts up an instance of a service, in a slice of its own.
async fn put(api: &Api, namespace: &str, service: &str, host: u8) {
    let name = format!("{service}-{host}");
    let mut slice =
        crate::server::slice(&name, serde_json::json!([{ "addresses": [format!("192.0.2.{host}")] }]));
    slice["metadata"]["labels"]["kubernetes.io/service-name"] = service.into();
    api.write_slice(namespace, &name, &slice).await;
}

async fn remove(api: &Api, namespace: &str, service: &str, host: u8) {
    api.delete_slice(namespace, &format!("{service}-{host}")).await;
}

async fn next(watcher: &mut Box<dyn Watcher>) -> Membership {
    timeout(PATIENCE, watcher.next()).await.expect("an answer").unwrap()
}

async fn the_first_answer_comes_at_once() -> Ran {
    let api = shared().await?;
    let namespace = api.namespace().await;
    let registry = registry(api.config(&namespace));
    assert!(!registry.name().is_empty());
    for _ in 0..2 {
        assert_eq!(next(&mut registry.watch("stock").await.unwrap()).await, Membership::Unknown);
    }
    put(&api, &namespace, "stock", 1).await;
    until(&mut registry.watch("stock").await.unwrap(), &hosts(&[1])).await;
    // Once another watcher has seen it, it is the first answer.
    assert_eq!(ids_of(&next(&mut registry.watch("stock").await.unwrap()).await), hosts(&[1]));
    remove(&api, &namespace, "stock", 1).await;
    until(&mut registry.watch("stock").await.unwrap(), &[]).await;
    assert_eq!(next(&mut registry.watch("stock").await.unwrap()).await, Membership::Known(Vec::new()));
    Ok(())
}

async fn every_watcher_sees_every_change() -> Ran {
    let api = shared().await?;
    let namespace = api.namespace().await;
    let registry = registry(api.config(&namespace));
    let mut watchers = Vec::new();
    for _ in 0..3 {
        watchers.push(registry.watch("stock").await.unwrap());
    }
    put(&api, &namespace, "stock", 1).await;
    for watcher in &mut watchers {
        until(watcher, &hosts(&[1])).await;
    }
    put(&api, &namespace, "stock", 2).await;
    let mut late = registry.watch("stock").await.unwrap();
    remove(&api, &namespace, "stock", 1).await;
    for watcher in watchers.iter_mut().chain([&mut late]) {
        until(watcher, &hosts(&[2])).await;
    }
    watchers.truncate(1); // others go on without those that are dropped
    put(&api, &namespace, "stock", 1).await;
    until(&mut watchers[0], &hosts(&[1, 2])).await;
    Ok(())
}

/// Instances come and go at random, and the last answer equals the model.
async fn snapshots_follow_a_model() -> Ran {
    let api = shared().await?;
    let namespace = api.namespace().await;
    let registry = registry(api.config(&namespace));
    let random = Random::seeded(7);
    let services = ["stock", OTHER];
    let mut model: BTreeMap<&str, Vec<u8>> = services.map(|service| (service, Vec::new())).into();
    let mut watchers = Vec::new();
    for service in services {
        watchers.push((service, registry.watch(service).await.unwrap(), Vec::new()));
    }
    for step in 0..100 {
        let service = services[usize::from(random.below(2) == 1)];
        let host = u8::try_from(1 + random.below(6)).unwrap();
        let there = model.get_mut(service).unwrap();
        match there.iter().position(|known| *known == host) {
            Some(at) => {
                there.remove(at);
                remove(&api, &namespace, service, host).await;
            }
            None => {
                there.push(host);
                put(&api, &namespace, service, host).await;
            }
        }
        if random.below(4) == 0 || step == 99 {
            for (service, watcher, last) in &mut watchers {
                let (begun, expected) = (Instant::now(), hosts(&model[service]));
                // A service that has not changed has no new answer.
                while *last != expected {
                    assert!(begun.elapsed() < PATIENCE, "expected {expected:?}, last answer {last:?}");
                    let answer = next(watcher).await;
                    let all = if let Membership::Known(all) = &answer { &all[..] } else { &[] };
                    assert!(all.iter().all(|one| one.service == *service && one.check().is_ok()), "{all:?}");
                    *last = ids_of(&answer).into_iter().map(str::to_owned).collect();
                }
            }
        }
    }
    Ok(())
}

async fn a_dropped_future_loses_nothing() -> Ran {
    let api = shared().await?;
    let namespace = api.namespace().await;
    let mut watcher = registry(api.config(&namespace)).watch("stock").await.unwrap();
    next(&mut watcher).await;
    for host in 1..6 {
        put(&api, &namespace, "stock", host).await;
        let (begun, expected) = (Instant::now(), hosts(&(1..=host).collect::<Vec<_>>()));
        loop {
            match timeout(Duration::from_micros(100), watcher.next()).await {
                Ok(found) if ids_of(found.as_ref().unwrap()) == expected => break,
                _ => assert!(begun.elapsed() < PATIENCE, "{expected:?} are not seen"),
            }
        }
    }
    Ok(())
}

async fn services_do_not_mix() -> Ran {
    let api = shared().await?;
    let namespace = api.namespace().await;
    let registry = registry(api.config(&namespace));
    let long = "x".repeat(63);
    let names = ["stock", "stock2", "stock-v1", &long];
    for (service, host) in names.into_iter().zip(1..) {
        put(&api, &namespace, service, host).await;
    }
    for (service, host) in names.into_iter().zip(1..) {
        until(&mut registry.watch(service).await.unwrap(), &hosts(&[host])).await;
    }
    let mut services = registry.services().await;
    services.sort();
    assert_eq!(services, ["stock", "stock-v1", "stock2", &long]);
    Ok(())
}
