//! A watcher that was cut off finds everything that happened meanwhile, slices that went too.
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use chassis_core::{Random, registry::Registry, testing::server::Proxy};
use chassis_kubernetes::KubernetesConfig;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    registry::{hosts, ids_of, registry, until},
    server::Server,
    trials::Ran,
};

trials! {
    no_update_is_lost_over_gaps
    no_update_is_lost_while_versions_expire
    no_update_is_lost_while_a_server_is_frozen
    a_restart_of_the_server_is_no_loss
}

const GAPS: usize = 200;
/// Gaps in which versions expire.
const EXPIRED: usize = 20;
/// More slices than a page of a list has.
const SLICES: usize = 530;
/// Longer than it takes to notice that a connection is dead: 5 s to a ping, and 5 s for its answer.
const FROZEN: Duration = Duration::from_secs(15);
/// The longest time until a change is seen that was made in a gap.
const SOON: Duration = Duration::from_secs(3);

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
    let (begun, mut compacted, mut longest) = (Instant::now(), 0, Duration::ZERO);
    for gaps in 0..GAPS {
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
    }
    println!(
        "kubernetes: {GAPS} gaps, {compacted} with a compaction, in {:?}; all was seen after {longest:?} at most",
        begun.elapsed()
    );
    assert!(longest <= SOON, "{longest:?}");
    Ok(())
}

/// The version of a watch is compacted away, and that of a list between two of its pages: the server ends the watch by an
/// event with the code 410, and answers 410 to the second page.
async fn no_update_is_lost_while_versions_expire() -> Ran {
    let server = Arc::new(Server::start(&["--watch-cache=false"]).await?);
    let api = &server.api;
    api.make_namespace("shop").await;
    let host = |n: usize| format!("198.51.{}.{}", 100 + n / 250, n % 250 + 1);
    let mut there = BTreeSet::new();
    for n in 0..SLICES {
        api.put_slice("shop", &format!("s{n}"), json!([{ "addresses": [host(n)] }])).await;
        there.insert(host(n));
    }
    let expiring = Expiring::start(&server).await;
    let proxy = Proxy::start(&expiring.address).await.unwrap();
    let config = api.config_at(proxy.address(), "shop");
    let config =
        KubernetesConfig { server: Some(format!("http://{}", proxy.address())), tls: None, ..config };
    let mut watcher = registry(config).watch("stock").await.unwrap();
    let ids = |there: &BTreeSet<String>| there.iter().cloned().collect::<Vec<_>>();
    until(&mut watcher, &ids(&there)).await;
    let mut longest = Duration::ZERO;
    for gap in 0..EXPIRED {
        proxy.cut();
        api.delete_slice("shop", &format!("s{gap}")).await;
        there.remove(&host(gap));
        expire(&server).await;
        expiring.is_armed.store(true, Relaxed);
        proxy.heal();
        let healed = Instant::now();
        until(&mut watcher, &ids(&there)).await;
        longest = longest.max(healed.elapsed());
    }
    let (events, answers) = (expiring.events.load(Relaxed), expiring.answers.load(Relaxed));
    println!(
        "kubernetes: {EXPIRED} gaps, {events} watches that ended by 410, {answers} pages that had expired; all was seen \
         after {longest:?} at most"
    );
    assert!(events >= EXPIRED as u64 && answers >= EXPIRED as u64, "{events} {answers}");
    // Versions that go again and again are listed with pauses of up to 2 s, two of them in a gap.
    assert!(longest <= SOON * 2, "{longest:?}");
    Ok(())
}

/// Makes a new version, and takes all older ones away.
async fn expire(server: &Server) {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let n = WRITES.fetch_add(1, Relaxed).to_string(); // a write that changes nothing makes no version
    server.api.put_config_map("shop", json!({ "n": n })).await;
    server.etcd.compact().await;
}

/// Forwards plain connections to the API server, and lets the version of a list expire between two of its pages.
struct Expiring {
    address: String,
    /// The next second page is to expire.
    is_armed: Arc<AtomicBool>,
    /// The events and the answers of the server with the code 410.
    events: Arc<AtomicU64>,
    answers: Arc<AtomicU64>,
}

impl Expiring {
    async fn start(server: &Arc<Server>) -> Expiring {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (is_armed, events, answers) = <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let expiring = Expiring { address, is_armed, events, answers };
        let (is_armed, counts) =
            (expiring.is_armed.clone(), (expiring.events.clone(), expiring.answers.clone()));
        let server = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (server, is_armed, counts) = (server.clone(), is_armed.clone(), counts.clone());
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    let Ok(there) = server.api.connect().await else { return };
                    let (mut answers, mut requests) = tokio::io::split(there);
                    let up = async {
                        let mut buffer = vec![0; 64 << 10];
                        while let Ok(count @ 1..) = from.read(&mut buffer).await {
                            let text = String::from_utf8_lossy(&buffer[..count]);
                            if text.contains("continue=") && is_armed.swap(false, Relaxed) {
                                expire(&server).await;
                            }
                            if requests.write_all(&buffer[..count]).await.is_err() {
                                return;
                            }
                            let _ = requests.flush().await;
                        }
                    };
                    let down = async {
                        let mut buffer = vec![0; 64 << 10];
                        while let Ok(count @ 1..) = answers.read(&mut buffer).await {
                            let text = String::from_utf8_lossy(&buffer[..count]);
                            counts.0.fetch_add(
                                u64::from(text.contains(r#""type":"ERROR""#) && text.contains("410")),
                                Relaxed,
                            );
                            counts.1.fetch_add(u64::from(text.contains("HTTP/1.1 410")), Relaxed);
                            if to.write_all(&buffer[..count]).await.is_err() {
                                return;
                            }
                        }
                    };
                    tokio::select! { () = up => {}, () = down => {} }
                });
            }
        });
        expiring
    }
}

/// A server of several is frozen for longer than a watch lives without a sign of life. Writers use another one.
async fn no_update_is_lost_while_a_server_is_frozen() -> Ran {
    let server = Server::start(&[]).await?;
    let other = server.beside().await;
    server.api.make_namespace("shop").await;
    for host in 0..10 {
        other.api.put("shop", &format!("s{host}"), &[host]).await;
    }
    let reader = registry(server.api.config("shop"));
    let mut watcher = reader.watch("stock").await.unwrap();
    let mut there: Vec<u8> = (0..10).collect();
    until(&mut watcher, &hosts(&there)).await;
    for round in 0..2 {
        server.signal("STOP").await;
        let frozen = Instant::now();
        // The registry keeps its instances and reports the outage.
        let error = timeout(FROZEN * 2, watcher.next()).await.expect("it notices the outage");
        assert!(error.is_err(), "{error:?}");
        for host in there.drain(..5) {
            other.api.delete_slice("shop", &format!("s{host}")).await;
        }
        for host in 0..5 {
            let host = 100 + round * 10 + host;
            other.api.put("shop", &format!("s{host}"), &[host]).await;
            there.push(host);
        }
        sleep_until(frozen + FROZEN).await; // the fault itself
        let known = reader.watch("stock").await.unwrap().next().await.unwrap();
        assert_eq!(ids_of(&known).len(), 10);
        server.signal("CONT").await;
        let back = Instant::now();
        until(&mut watcher, &hosts(&there)).await;
        println!("kubernetes: all was seen {:?} after a freeze of {:?}", back.elapsed(), frozen.elapsed());
        assert!(back.elapsed() <= SOON, "{:?}", back.elapsed());
    }
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
