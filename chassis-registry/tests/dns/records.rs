//! The records that Knot serves, and the delay until a watcher sees their changes.
use std::{collections::BTreeMap, time::Duration};

use chassis_core::{
    registry::{Instance, Membership, Registry, Watcher},
    units::{PositiveSpan, Span},
};
use chassis_registry::{DnsConfig, DnsRegistry, DnsService, Family};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, timeout};

use crate::{knot::Knot, trials::Ran};

trials! {
    addresses_of_a_host_are_instances
    srv_records_are_instances
    a_change_is_seen_once_the_ttl_is_over
    what_is_gone_is_gone_and_what_never_was_is_unknown
    a_failure_of_the_server_takes_nothing_away
    a_frozen_server_takes_nothing_away
    hundreds_of_records_come_over_tcp
    snapshots_follow_a_model
    a_dropped_future_loses_nothing
    services_may_change_while_they_are_watched
    registering_changes_nothing
}

/// A limit for each wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Hosts at `{service}.test`, with a port for each protocol.
pub(crate) fn config(server: &str) -> DnsConfig {
    DnsConfig {
        servers: vec![server.to_owned()],
        host: "{service}.test".into(),
        ports: [
            ("grpc".to_owned(), 50051.try_into().unwrap()),
            ("http".to_owned(), 8080.try_into().unwrap()),
        ]
        .into(),
        ..DnsConfig::default()
    }
}

/// The same; names without a TTL are queried again at once.
pub(crate) fn quick(server: &str) -> DnsConfig {
    DnsConfig {
        min_ttl: PositiveSpan::from_millis(10),
        jitter: Span(Duration::ZERO),
        family: Family::Ipv4,
        ..config(server)
    }
}

fn srv(server: &str) -> DnsConfig {
    let name = ("grpc".to_owned(), "_grpc._tcp.{service}.test".to_owned());
    DnsConfig { ports: BTreeMap::new(), srv: [name].into(), ..config(server) }
}

pub(crate) async fn watch(config: DnsConfig, service: &str) -> Box<dyn Watcher> {
    DnsRegistry::new(config).unwrap().watch(service).await.unwrap()
}

pub(crate) async fn next(watcher: &mut Box<dyn Watcher>) -> Membership {
    timeout(PATIENCE, watcher.next()).await.expect("an answer comes").unwrap()
}

/// Waits until the watcher returns these ids; errors are ignored.
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

async fn addresses_of_a_host_are_instances() -> Ran {
    let records = ["stock A 127.0.0.5", "stock A 127.0.0.6", "stock AAAA fd00::5", "alias CNAME stock"];
    let knot = Knot::start(&records).await?;
    let of = |service: &str, ip: &str, host: &str| {
        let instance = Instance::new(service, ip);
        instance.with_address("grpc", format!("{host}:50051")).with_address("http", format!("{host}:8080"))
    };
    let (a, b) = (of("stock", "127.0.0.5", "127.0.0.5"), of("stock", "127.0.0.6", "127.0.0.6"));
    let c = of("stock", "fd00::5", "[fd00::5]");
    let found = next(&mut watch(config(&knot.address), "stock").await).await;
    assert_eq!(found, Membership::known([a, b, c.clone()]));

    let ipv6 = DnsConfig { family: Family::Ipv6, ..config(&knot.address) };
    assert_eq!(next(&mut watch(ipv6, "stock").await).await, Membership::known([c]));
    let found = next(&mut watch(config(&knot.address), "alias").await).await;
    assert_eq!(ids_of(&found), ["127.0.0.5", "127.0.0.6", "fd00::5"]);
    Ok(())
}

async fn srv_records_are_instances() -> Ran {
    let first = ["_grpc._tcp.stock 1 SRV 10 3 50051 a", "_grpc._tcp.stock 1 SRV 10 0 50051 b"];
    let others = [
        "_grpc._tcp.stock 1 SRV 20 1 50052 b",
        "_grpc._tcp.stock 1 SRV 5 1 50053 nothing",
        "a A 127.0.0.5",
        "b A 127.0.0.6",
        "b AAAA fd00::6",
        "_grpc._tcp.resting SRV 0 0 0 .",
    ];
    let mut knot = Knot::start(&[&first[..], &others].concat()).await?;
    let mut watcher = watch(srv(&knot.address), "stock").await;
    let of = |address: &str, weight, priority, host| {
        let instance = Instance::new("stock", address).with_address("grpc", address);
        instance.with_weight(weight).with_priority(priority).with_hostname(host)
    };
    let all = [
        of("127.0.0.5:50051", 3, 10, "a.test"),
        of("127.0.0.6:50051", 1, 10, "b.test"),
        of("127.0.0.6:50052", 1, 20, "b.test"),
        of("[fd00::6]:50051", 1, 10, "b.test"),
        of("[fd00::6]:50052", 1, 20, "b.test"),
    ];
    assert_eq!(next(&mut watcher).await, Membership::known(all));
    assert_eq!(next(&mut watch(srv(&knot.address), "resting").await).await, Membership::Known(Vec::new()));
    // Those of the other priority stay.
    knot.write(&others).await;
    until(&mut watcher, &["127.0.0.6:50052", "[fd00::6]:50052"]).await;
    Ok(())
}

async fn a_change_is_seen_once_the_ttl_is_over() -> Ran {
    let mut knot = Knot::start(&["stock 1 A 127.0.0.1"]).await?;
    let mut watcher = watch(config(&knot.address), "stock").await;
    until(&mut watcher, &["127.0.0.1"]).await;
    let mut longest = Duration::ZERO;
    for round in 2..8 {
        let ip = format!("127.0.0.{round}");
        knot.write(&[&format!("stock 1 A {ip}")]).await;
        let changed = Instant::now();
        until(&mut watcher, &[&ip]).await;
        longest = longest.max(changed.elapsed());
    }
    println!("dns: a change is seen after {longest:?} at the latest, with a TTL of 1 s");
    assert!(longest <= Duration::from_secs(2), "{longest:?}");
    // A longer TTL is obeyed: what changes meanwhile is not seen.
    knot.write(&["stock 3 A 127.0.1.1"]).await;
    until(&mut watcher, &["127.0.1.1"]).await;
    let seen = Instant::now();
    knot.write(&["stock 3 A 127.0.1.2"]).await;
    until(&mut watcher, &["127.0.1.2"]).await;
    let after = seen.elapsed();
    assert!(after > Duration::from_millis(2_500) && after <= Duration::from_secs(4), "{after:?}");
    Ok(())
}

async fn what_is_gone_is_gone_and_what_never_was_is_unknown() -> Ran {
    let mut knot = Knot::start(&["stock 1 A 127.0.0.1", "text 1 TXT hello"]).await?;
    assert_eq!(next(&mut watch(config(&knot.address), "never").await).await, Membership::Unknown);
    assert_eq!(next(&mut watch(config(&knot.address), "text").await).await, Membership::Known(Vec::new()));
    assert_eq!(next(&mut watch(config(&knot.address), "a..b").await).await, Membership::Unknown);
    let mut watcher = watch(config(&knot.address), "stock").await;
    until(&mut watcher, &["127.0.0.1"]).await;
    knot.write(&[]).await;
    let gone = Instant::now();
    assert_eq!(next(&mut watcher).await, Membership::Known(Vec::new()));
    assert!(gone.elapsed() <= Duration::from_secs(2), "{:?}", gone.elapsed());
    knot.write(&["stock 1 A 127.0.0.2", "never 1 A 127.0.0.2"]).await;
    until(&mut watcher, &["127.0.0.2"]).await;
    until(&mut watch(config(&knot.address), "never").await, &["127.0.0.2"]).await;
    Ok(())
}

async fn a_failure_of_the_server_takes_nothing_away() -> Ran {
    let mut knot = Knot::start(&["stock 1 A 127.0.0.1"]).await?;
    let registry = DnsRegistry::new(config(&knot.address)).unwrap();
    let mut watcher = registry.watch("stock").await.unwrap();
    until(&mut watcher, &["127.0.0.1"]).await;
    knot.lose_zone().await;
    let error = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("`stock.test.`: Server Failure"), "{error}");
    assert!(error.contains(&knot.address), "{error}");
    // A watcher that is begun anew finds what was known, and the failure is reported once.
    drop(watcher);
    let mut watcher = registry.watch("stock").await.unwrap();
    assert_eq!(ids_of(&next(&mut watcher).await), ["127.0.0.1"]);
    // One that knew nothing reports the error, not that there is nothing.
    let mut other = registry.watch("other").await.unwrap();
    assert!(timeout(PATIENCE, other.next()).await.unwrap().is_err());
    knot.kill().await;
    knot.write_zone(&["stock 1 A 127.0.0.2", "other 1 A 127.0.0.3"]);
    knot.run().await;
    let back = Instant::now();
    until(&mut watcher, &["127.0.0.2"]).await;
    until(&mut other, &["127.0.0.3"]).await;
    assert!(back.elapsed() <= Duration::from_secs(5), "{:?}", back.elapsed());
    Ok(())
}

async fn a_frozen_server_takes_nothing_away() -> Ran {
    let mut knot = Knot::start(&["stock 1 A 127.0.0.1"]).await?;
    let mut watcher = watch(config(&knot.address), "stock").await;
    until(&mut watcher, &["127.0.0.1"]).await;
    knot.signal("STOP").await;
    let error = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("timed out") || error.contains("in time"), "{error}");
    knot.signal("CONT").await;
    let back = Instant::now();
    knot.write(&["stock 1 A 127.0.0.2"]).await;
    until(&mut watcher, &["127.0.0.2"]).await;
    println!("dns: a change is seen {:?} after a frozen server is back", back.elapsed());
    assert!(back.elapsed() <= Duration::from_secs(5), "{:?}", back.elapsed());
    Ok(())
}

async fn hundreds_of_records_come_over_tcp() -> Ran {
    let hosts = (1..=200).map(|n| format!("many A 127.0.1.{n}"));
    let srv_records =
        (1..=100).map(|n| format!("_grpc._tcp.many SRV 0 1 {} host{n}\nhost{n} A 127.0.2.{n}", 50_000 + n));
    let records: Vec<_> = hosts.chain(srv_records).collect();
    let knot = Knot::start(&records.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let found = next(&mut watch(config(&knot.address), "many").await).await;
    let Membership::Known(all) = found else { panic!("{found:?}") };
    assert_eq!(all.len(), 200);
    let found = next(&mut watch(srv(&knot.address), "many").await).await;
    let Membership::Known(all) = found else { panic!("{found:?}") };
    assert_eq!(all.len(), 100, "the first answer is whole");
    assert!(all.iter().any(|one| one.addresses.get("grpc") == Some("127.0.2.100:50100")));
    Ok(())
}

/// Records come and go at random; the last answer equals the model, and none has what never was.
async fn snapshots_follow_a_model() -> Ran {
    let mut knot = Knot::start(&[]).await?;
    let registry = DnsRegistry::new(quick(&knot.address)).unwrap();
    let mut random = StdRng::seed_from_u64(0x5eed);
    let mut model: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut watchers = Vec::new();
    for service in ["stock", "orders"] {
        watchers.push((service, registry.watch(service).await.unwrap()));
    }
    for step in 0..60 {
        let service = ["stock", "orders"][random.random_range(0..2)];
        let (ip, ips) = (format!("127.0.0.{}", random.random_range(1..7)), model.entry(service).or_default());
        match ips.iter().position(|known| *known == ip) {
            Some(at) => drop(ips.remove(at)),
            None => ips.push(ip),
        }
        ips.sort();
        let of = |(service, ips): (&&str, &Vec<String>)| -> Vec<String> {
            ips.iter().map(|ip| format!("{service} 0 A {ip}")).collect()
        };
        let records: Vec<_> = model.iter().flat_map(of).collect();
        knot.write(&records.iter().map(String::as_str).collect::<Vec<_>>()).await;
        if step % 4 == 3 {
            for (service, watcher) in &mut watchers {
                let expected = model.get(*service).cloned().unwrap_or_default();
                let last = timeout(PATIENCE, registry.watch(service)).await.unwrap().unwrap();
                drop(std::mem::replace(watcher, last));
                until(watcher, &expected.iter().map(String::as_str).collect::<Vec<_>>()).await;
            }
        }
    }
    Ok(())
}

async fn a_dropped_future_loses_nothing() -> Ran {
    let mut knot = Knot::start(&[]).await?;
    let mut watcher = watch(quick(&knot.address), "stock").await;
    next(&mut watcher).await;
    for round in 1..6 {
        let ip = format!("127.0.0.{round}");
        knot.write(&[&format!("stock 0 A {ip}")]).await;
        let begun = Instant::now();
        loop {
            match timeout(Duration::from_micros(100), watcher.next()).await {
                Ok(found) if ids_of(found.as_ref().unwrap()) == [ip.as_str()] => break,
                _ => assert!(begun.elapsed() < PATIENCE, "{ip} is not seen"),
            }
        }
    }
    Ok(())
}

async fn services_may_change_while_they_are_watched() -> Ran {
    let knot = Knot::start(&["stock A 127.0.0.1", "other A 127.0.0.2"]).await?;
    let registry = DnsRegistry::new(config(&knot.address)).unwrap();
    let mut watcher = registry.watch("stock").await.unwrap();
    until(&mut watcher, &["127.0.0.1"]).await;
    let other = DnsService { host: Some("other.test".into()), ..DnsService::default() };
    let services = [("stock".to_owned(), other)].into();
    registry.set(DnsConfig { services, ..config(&knot.address) }).unwrap();
    until(&mut watcher, &["127.0.0.2"]).await;
    assert_eq!(registry.services().await, ["stock"]);
    assert!(registry.set(DnsConfig { host: String::new(), ..config(&knot.address) }).is_err());
    registry.set(config(&knot.address)).unwrap();
    until(&mut watcher, &["127.0.0.1"]).await;
    Ok(())
}

async fn registering_changes_nothing() -> Ran {
    let knot = Knot::start(&[]).await?;
    let registry = DnsRegistry::new(config(&knot.address)).unwrap();
    let here = Instance::new("stock", "a").with_address("grpc", "127.0.0.1:50051");
    let registration = registry.register(here).await.unwrap();
    assert_eq!(next(&mut registry.watch("stock").await.unwrap()).await, Membership::Unknown);
    registration.deregister().await.unwrap();
    Ok(())
}
