//! The entries in service center, and how soon others see them.
use std::{sync::Arc, time::Duration};

use chassis_core::{
    registry::{Instance, Membership, Registration, Registry, Status, Watcher},
    testing::contract,
    units::PositiveSpan,
};
use chassis_servicecomb::{ServiceCombConfig, ServiceCombRegistry};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::{
    center::{Center, needs_stand_in},
    trials::Ran,
};

trials! {
    keeps_the_contract
    keeps_the_contract_without_pushes
    an_entry_is_readable_by_others
    entries_of_others_are_instances_too
    what_is_no_instance_is_refused_one_by_one
    a_change_is_seen_within_100_ms
    a_service_that_nobody_has_registered_is_found_when_it_comes
    what_has_not_changed_is_not_sent_again
    an_update_keeps_the_entry_where_it_can
    an_entry_that_went_is_back_with_the_next_heartbeat
    environments_and_applications_are_apart
}

/// A limit for each wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn config(center: &Center) -> ServiceCombConfig {
    ServiceCombConfig { app: center.app.clone(), ..ServiceCombConfig::at(&center.address) }
}

pub(crate) fn registry(center: &Center) -> ServiceCombRegistry {
    ServiceCombRegistry::new(config(center)).unwrap()
}

pub(crate) fn stock(id: &str) -> Instance {
    Instance::new("stock", id).with_address("grpc", "127.0.0.1:50051")
}

/// Registers with a server that is back: a connection is there again within 2 s.
pub(crate) async fn register_soon(
    registry: &ServiceCombRegistry,
    instance: Instance,
) -> Box<dyn Registration> {
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
        let answer = timeout(PATIENCE, async {
            loop {
                let answer = watcher.next().await;
                if answer.as_ref().is_ok_and(|answer| ids_of(answer) == ids) {
                    return;
                }
                last = Some(answer);
            }
        });
        if answer.await.is_err() {
            panic!("{caller}: expected {ids:?}, answer last: {last:?}");
        }
    }
}

pub(crate) fn ids_of(answer: &Membership) -> Vec<&str> {
    match answer {
        Membership::Known(all) => all.iter().map(|instance| instance.id.as_str()).collect(),
        Membership::Unknown | Membership::Deleted => Vec::new(),
    }
}

async fn contract_with(change: fn(ServiceCombConfig) -> ServiceCombConfig) {
    let centers = std::sync::Mutex::new(Vec::new());
    contract::registry::registry(async || {
        let center = Center::start().await;
        let registry = ServiceCombRegistry::new(change(config(&center))).unwrap();
        centers.lock().unwrap().push(center);
        Arc::new(registry) as _
    })
    .await;
}

async fn keeps_the_contract() {
    contract_with(|config| config).await;
}

async fn keeps_the_contract_without_pushes() {
    contract_with(|config| ServiceCombConfig {
        watch: false,
        refresh: PositiveSpan::from_millis(1_000),
        ..config
    })
    .await;
}

async fn an_entry_is_readable_by_others() {
    let center = Center::start().await;
    let properties = [("team".to_owned(), "blue".to_owned())].into();
    let config = ServiceCombConfig { properties, ..config(&center) };
    let full = stock("a b")
        .with_address("http", "10.0.0.5:8080")
        .with_label("track", "stable")
        .with_version("1.4.0-rc.1")
        .with_region("eu")
        .with_zone("eu-1a")
        .with_weight(3);
    let registration = ServiceCombRegistry::new(config).unwrap().register(full).await.unwrap();
    let [entry] = &center.entries("stock")[..] else { panic!("one entry") };
    assert_eq!(entry["endpoints"], json!(["grpc://127.0.0.1:50051", "rest://10.0.0.5:8080"]));
    assert_eq!((&entry["version"], &entry["status"]), (&json!("1.4.0"), &json!("UP")));
    assert_eq!((&entry["hostName"], &entry["properties"]["track"]), (&json!("127.0.0.1"), &json!("stable")));
    assert_eq!(entry["dataCenterInfo"], json!({ "name": "eu", "region": "eu", "availableZone": "eu-1a" }));
    assert_eq!(entry["healthCheck"], json!({ "mode": "push", "interval": 10, "times": 3 }));
    let services = center.services();
    let stock = services.iter().find(|service| service["serviceName"] == "stock").unwrap();
    assert_eq!((&stock["appId"], &stock["framework"]["name"]), (&json!(center.app), &json!("chassis")));
    assert_eq!(stock["properties"], json!({ "team": "blue" }));
    registration.deregister().await.unwrap();
    assert_eq!(center.entries("stock"), Vec::<Value>::new());
}

/// A service of others.
fn service(name: &str) -> Value {
    json!({ "appId": "default", "serviceName": name, "version": "2.0.1" })
}

async fn entries_of_others_are_instances_too() {
    let center = Center::start().await;
    let entry = json!({
        "hostName": "node-7", "status": "UP",
        "endpoints": [
            "rest://10.0.0.5:8080?sslEnabled=false", "grpc://10.0.0.5:50051/", "highway://10.0.0.5:7070?login=true",
            "rest://10.0.0.9:1", "admin://10.0.0.5:9?x=1&sslEnabled=true"],
        "properties": { "track": "canary" },
        "dataCenterInfo": { "name": "dc", "region": "eu", "availableZone": "eu-1a" } });
    let place = center.put(service("stock"), entry);
    let registry = registry(&center);
    let mut watcher = registry.watch("stock").await.unwrap();
    let expected = Instance::new("stock", &place.1)
        .with_address("http", "10.0.0.5:8080")
        .with_address("grpc", "10.0.0.5:50051")
        .with_address("highway", "10.0.0.5:7070")
        .with_label("track", "canary")
        .with_version("2.0.1")
        .with_hostname("node-7")
        .with_region("eu")
        .with_zone("eu-1a");
    assert_eq!(watcher.next().await.unwrap(), Membership::known([expected.clone()]));
    assert_eq!(registry.services().await, ["stock"]);
    // Somebody sets another status at the server.
    for (status, seen) in [
        ("OUTOFSERVICE", Status::OutOfService),
        ("DOWN", Status::Down),
        ("STARTING", Status::Starting),
        ("TESTING", Status::Up),
    ] {
        center.set_status(&place, status);
        let expected = Membership::known([expected.clone().with_status(seen)]);
        let seen = timeout(PATIENCE, async { while watcher.next().await.unwrap() != expected {} });
        seen.await.unwrap_or_else(|_| panic!("{status}"));
    }
}

async fn what_is_no_instance_is_refused_one_by_one() -> Ran {
    needs_stand_in()?;
    let center = Center::start().await;
    let entry = |endpoint: &str, properties: Value| {
        let entry = json!({ "hostName": "h", "endpoints": [endpoint], "properties": properties });
        center.put(service("stock"), entry)
    };
    let good = entry("rest://10.0.0.5:1", json!({}));
    entry("rest://10.0.0.5:0", json!({}));
    entry("rest://[fe80::1%eth0]:80", json!({}));
    entry("rest://", json!({}));
    entry("10.0.0.5:80", json!({}));
    entry("rest://h:1", json!({ "chassis-id": "g", "chassis-more": "{{" }));
    entry("rest://h:1", json!({ "chassis-id": "l", "chassis-more": "[]" }));
    entry("rest://h:1", json!({ "chassis-id": "n", "chassis-more": "{\"addresses\":7}" }));
    entry("rest://h:1", json!({ "long": "x".repeat(100_000) }));
    let mut watcher = registry(&center).watch("stock").await.unwrap();
    until(&mut watcher, &[&good.1]).await;
    // A list of any length is read whole.
    let many: Vec<_> =
        (0..500).map(|n| entry("rest://10.0.0.5:1", json!({ "n": n.to_string() })).1).collect();
    let mut ids: Vec<_> = many.iter().map(String::as_str).chain([good.1.as_str()]).collect();
    ids.sort();
    until(&mut watcher, &ids).await;
    Ok(())
}

async fn a_change_is_seen_within_100_ms() {
    let center = Center::start().await;
    let writer = registry(&center);
    let kept = writer.register(stock("z")).await.unwrap();
    // A real one pushes a registration after 0.3 s, and an end after 2.3 s.
    let (rounds, longest) = match needs_stand_in() {
        Ok(()) => (100, Duration::from_millis(100)),
        Err(_) => (5, Duration::from_secs(10)),
    };
    let refresh = PositiveSpan::from_millis(5_000);
    let reader = ServiceCombRegistry::new(ServiceCombConfig { refresh, ..config(&center) }).unwrap();
    let mut watcher = reader.watch("stock").await.unwrap();
    until(&mut watcher, &["z"]).await;
    timeout(PATIENCE, center.has_noted("stock")).await.unwrap();
    let mut taken = Vec::new();
    for round in 0..rounds {
        let id = format!("i{round}");
        let begun = Instant::now();
        let registration = writer.register(stock(&id)).await.unwrap();
        until(&mut watcher, &[&id, "z"]).await;
        taken.push(begun.elapsed());
        let begun = Instant::now();
        registration.deregister().await.unwrap();
        until(&mut watcher, &["z"]).await;
        taken.push(begun.elapsed());
    }
    taken.sort();
    let p99 = taken[taken.len() * 99 / 100];
    println!("servicecomb: a change is seen after {:?}, p99 {p99:?}", taken[taken.len() / 2]);
    assert!(p99 <= longest, "{p99:?}");
    kept.deregister().await.unwrap();
}

async fn a_service_that_nobody_has_registered_is_found_when_it_comes() {
    let center = Center::start().await;
    let mut watcher = registry(&center).watch("stock").await.unwrap();
    assert_eq!(timeout(PATIENCE, watcher.next()).await.unwrap().unwrap(), Membership::Unknown);
    let begun = Instant::now();
    let registration = registry(&center).register(stock("a")).await.unwrap();
    until(&mut watcher, &["a"]).await;
    println!("servicecomb: the first instance of a service is seen after {:?}", begun.elapsed());
    assert!(begun.elapsed() <= Duration::from_secs(2), "{:?}", begun.elapsed());
    registration.deregister().await.unwrap();
    until(&mut watcher, &[]).await;
}

async fn what_has_not_changed_is_not_sent_again() -> Ran {
    needs_stand_in()?;
    let center = Center::start().await;
    let registration = registry(&center).register(stock("a")).await.unwrap();
    let refresh = PositiveSpan::from_millis(1_000);
    let reader = ServiceCombRegistry::new(ServiceCombConfig { refresh, ..config(&center) }).unwrap();
    let mut watcher = reader.watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    center.log();
    // Three times the server is asked, and nothing is new.
    assert!(timeout(Duration::from_millis(3_500), watcher.next()).await.is_err(), "nothing has changed");
    let log = center.log();
    let asked: Vec<_> = log.iter().filter(|line| line.contains("serviceName=stock")).collect();
    assert!((2..=5).contains(&asked.len()), "{asked:?}");
    assert!(asked.iter().all(|line| line.contains("rev=")), "{asked:?}");
    registration.deregister().await.unwrap();
    Ok(())
}

async fn an_update_keeps_the_entry_where_it_can() {
    let center = Center::start().await;
    let registry = registry(&center);
    let mut registration = registry.register(stock("a")).await.unwrap();
    let id = || {
        let entries = center.entries("stock");
        let [entry] = &entries[..] else { panic!("one entry: {entries:?}") };
        (entry["instanceId"].clone(), entry["status"].clone(), entry["properties"]["track"].clone())
    };
    let (before, ..) = id();
    registration.update(stock("a").with_status(Status::OutOfService).with_label("track", "x")).await.unwrap();
    assert_eq!(id(), (before.clone(), "OUTOFSERVICE".into(), "x".into()));
    // Other addresses, and another version, need another entry.
    registration.update(stock("a").with_address("http", "10.0.0.5:1")).await.unwrap();
    let (second, status, _) = id();
    assert!(second != before && status == "UP");
    registration.update(stock("a").with_version("2.0.0")).await.unwrap();
    assert_ne!(id().0, second);
    registration.deregister().await.unwrap();
    assert!(center.entries("stock").is_empty());
}

async fn an_entry_that_went_is_back_with_the_next_heartbeat() {
    let center = Center::start().await;
    let heartbeat = PositiveSpan::from_millis(1_000);
    let config = ServiceCombConfig { heartbeat, ..config(&center) };
    let registration = ServiceCombRegistry::new(config).unwrap().register(stock("a")).await.unwrap();
    let place = |center: &Center| {
        center.entries("stock").first().map(|entry| {
            let text = |key: &str| entry[key].as_str().unwrap().to_owned();
            (text("serviceId"), text("instanceId"))
        })
    };
    let first = place(&center).unwrap();
    for _ in 0..3 {
        let begun = Instant::now();
        center.remove(&first);
        while place(&center) != Some(first.clone()) {
            assert!(begun.elapsed() <= Duration::from_secs(2), "it is not back");
            tokio::task::yield_now().await;
        }
    }
    registration.deregister().await.unwrap();
    assert_eq!(place(&center), None);
}

async fn environments_and_applications_are_apart() {
    let center = Center::start().await;
    let of = |app: &str, environment: &str| {
        let (app, environment) = (format!("{}-{app}", center.app), environment.to_owned());
        ServiceCombRegistry::new(ServiceCombConfig { app, environment, ..config(&center) }).unwrap()
    };
    let (ours, other) = (of("shop", "testing"), of("shop", "production"));
    let a = ours.register(stock("a")).await.unwrap();
    let b = other.register(stock("b")).await.unwrap();
    until(&mut ours.watch("stock").await.unwrap(), &["a"]).await;
    until(&mut other.watch("stock").await.unwrap(), &["b"]).await;
    let elsewhere = of("default", "testing");
    assert_eq!(elsewhere.watch("stock").await.unwrap().next().await.unwrap(), Membership::Unknown);
    assert_eq!(elsewhere.services().await, Vec::<String>::new());
    a.deregister().await.unwrap();
    b.deregister().await.unwrap();
}
