//! Servers that go, come back, forget, or are blocked.
use std::{collections::BTreeMap, time::Duration};

use chassis_core::{
    registry::{Instance, Membership, Registry, Watcher},
    testing::server::{self, PATIENCE, ids_of, stock, until},
};
use chassis_ttl::TtlServerConfig;
use tokio::time::{Instant, timeout};

use crate::{
    process::Process,
    registry::{Single, registry},
};

#[tokio::test]
async fn a_process_that_begins_without_a_server_finds_it_when_it_comes() {
    server::begun_without_it(&mut Single::start().await).await;
}

#[tokio::test]
async fn an_entry_outlives_a_server_that_was_frozen_beyond_its_lease() {
    server::frozen_beyond_its_lease(&mut Single::start().await).await;
}

#[tokio::test]
async fn no_update_is_lost_when_connections_are_cut() {
    server::gaps(&mut Single::start().await).await;
}

/// Waits until a server lists these ids.
async fn lists(server: &Process, ids: &[&str]) -> Duration {
    let begun = Instant::now();
    while server.ids().await != ids {
        assert!(begun.elapsed() < PATIENCE, "{ids:?} are not listed");
    }
    begun.elapsed()
}

#[tokio::test]
async fn a_restart_loses_nothing() {
    let mut server = Process::start().await;
    let mut registrations = Vec::new();
    for id in ["a", "b", "c"] {
        registrations.push(registry(&[&server]).register(stock(id)).await.unwrap());
    }
    let by_hand = server.put("d", 7).await;
    let mut watcher = registry(&[&server]).watch("stock").await.unwrap();
    until(&mut watcher, &["a", "b", "c", "d"]).await;
    for _ in 0..3 {
        server.kill();
        server.run().await;
        // It has them before any client has spoken to it: also one that never speaks again for now.
        assert_eq!(server.ids().await, ["a", "b", "c", "d"]);
        assert_eq!(server.ask("PUT", &format!("/v1/services/{by_hand}/heartbeat"), "").await.0, 204);
    }
    // No watcher has seen any of it go.
    server.put("e", 1).await;
    let told = timeout(PATIENCE, async {
        loop {
            match watcher.next().await {
                Ok(told) if ids_of(&told) == ["a", "b", "c", "d", "e"] => return,
                Ok(told) => assert_eq!(ids_of(&told), ["a", "b", "c", "d"]),
                Err(_) => {}
            }
        }
    });
    told.await.expect("the watcher goes on");
    for registration in registrations {
        registration.deregister().await.unwrap();
    }
    assert_eq!(server.ids().await, ["d", "e"]);
}

#[tokio::test]
async fn an_entry_that_a_server_has_lost_is_back_within_2_s() {
    let mut server = Process::start().await;
    let registration = registry(&[&server]).register(stock("a")).await.unwrap();
    let mut longest = Duration::ZERO;
    for round in 0..8_u32 {
        server.wipe();
        if !round.is_multiple_of(2) {
            std::fs::write(server.snapshot(), r#"{ "version": 1, "instances": [ 7, { "instance": {} } ] }"#)
                .unwrap();
        }
        server.run().await;
        longest = longest.max(lists(&server, &["a"]).await);
    }
    println!("ttl: an entry that was lost is back after {longest:?} at the latest");
    assert!(longest <= Duration::from_secs(2), "{longest:?}");
    registration.deregister().await.unwrap();
    assert_eq!(server.ids().await, Vec::<String>::new());
}

#[tokio::test]
async fn one_of_two_servers_may_go() {
    let (mut first, second) = (Process::start().await, Process::start().await);
    let client = registry(&[&first, &second]);
    let a = client.register(stock("a")).await.unwrap();
    lists(&first, &["a"]).await;
    lists(&second, &["a"]).await;
    let mut watcher = client.watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    // What only one of them has is in the union.
    first.put("first", 1).await;
    let lease = second.put("second", 1).await;
    until(&mut watcher, &["a", "first", "second"]).await;
    first.kill();
    // With one of them all goes on.
    let b = client.register(stock("b")).await.unwrap();
    until(&mut watcher, &["a", "b", "first", "second"]).await;
    second.delete(&lease).await;
    until(&mut watcher, &["a", "b", "first"]).await;
    b.deregister().await.unwrap();
    until(&mut watcher, &["a", "first"]).await;
    // The other one is back, and has what was registered meanwhile.
    let c = client.register(stock("c")).await.unwrap();
    first.run().await;
    let back = lists(&first, &["a", "c", "first"]).await;
    assert!(back <= Duration::from_secs(2), "{back:?}");
    until(&mut watcher, &["a", "c", "first"]).await;
    a.deregister().await.unwrap();
    c.deregister().await.unwrap();
    assert_eq!(first.ids().await, ["first"]);
}

#[tokio::test]
async fn without_any_server_all_stays_and_the_error_is_told_once() {
    let (mut first, mut second) = (Process::start().await, Process::start().await);
    let client = registry(&[&first, &second]);
    let registration = client.register(stock("a")).await.unwrap();
    let mut watcher = client.watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    lists(&second, &["a"]).await;
    first.kill();
    second.kill();
    let error = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap_err().to_string();
    assert!(error.contains(&first.address) && error.contains(&second.address), "{error}");
    drop(watcher);
    let mut watcher = client.watch("stock").await.unwrap();
    assert_eq!(ids_of(&watcher.next().await.unwrap()), ["a"]);
    assert!(client.register(stock("b")).await.is_err());
    // A service that was never asked for has no answer, rather than an empty one.
    let mut other = client.watch("other").await.unwrap();
    assert!(timeout(PATIENCE, other.next()).await.unwrap().is_err());
    second.run().await;
    let back = Instant::now();
    second.put("c", 1).await;
    until(&mut watcher, &["a", "c"]).await;
    assert_eq!(other.next().await.unwrap(), Membership::Unknown);
    assert!(back.elapsed() <= Duration::from_secs(2), "{:?}", back.elapsed());
    registration.deregister().await.unwrap();
}

#[tokio::test]
async fn a_blocked_server_is_given_up_and_taken_back() {
    let (first, second) = (Process::start().await, Process::start().await);
    let client = registry(&[&first, &second]);
    let mut watcher = client.watch("stock").await.unwrap();
    first.put("a", 1).await;
    until(&mut watcher, &["a"]).await;
    let frozen = first.freeze();
    // Registering and watching go on with the other one.
    let begun = Instant::now();
    let b = client.register(stock("b")).await.unwrap();
    until(&mut watcher, &["a", "b"]).await;
    assert!(begun.elapsed() <= Duration::from_secs(3), "{:?}", begun.elapsed());
    // A new process has its first answer, too.
    let begun = Instant::now();
    until(&mut registry(&[&first, &second]).watch("stock").await.unwrap(), &["b"]).await;
    assert!(begun.elapsed() <= Duration::from_secs(3), "{:?}", begun.elapsed());
    drop(frozen);
    lists(&first, &["a", "b"]).await;
    b.deregister().await.unwrap();
    until(&mut watcher, &["a"]).await;
}

/// The instances that are registered by hand, with their leases.
#[derive(Default)]
struct Model(BTreeMap<String, (u32, String)>);

impl Model {
    /// Some changes: each id comes, changes or goes.
    async fn change(&mut self, server: &Process, round: u32, count: u32) {
        for n in 0..count {
            let (id, weight) = (format!("i{}", (round * 5 + n * 3) % 8), round * 100 + n);
            match self.0.remove(&id) {
                Some((_, lease)) if (round + n).is_multiple_of(2) => server.delete(&lease).await,
                _ => drop(self.0.insert(id.clone(), (weight, server.put(&id, weight).await))),
            }
        }
    }

    /// Waits until the watcher reports exactly this.
    async fn is_seen(&self, watcher: &mut Box<dyn Watcher>, last: &mut Membership, round: u32) -> Duration {
        let weights = |all: &Membership| -> BTreeMap<String, u32> {
            let Membership::Known(all) = all else {
                return BTreeMap::new();
            };
            all.iter()
                .map(|instance: &std::sync::Arc<Instance>| (instance.id.clone(), instance.weight))
                .collect()
        };
        let expected: BTreeMap<_, _> = self.0.iter().map(|(id, (weight, _))| (id.clone(), *weight)).collect();
        let begun = Instant::now();
        let seen = timeout(PATIENCE, async {
            while weights(last) != expected {
                if let Ok(told) = watcher.next().await {
                    *last = told;
                }
            }
        });
        if seen.await.is_err() {
            panic!("round {round}: expected {expected:?}, told last {last:?}");
        }
        begun.elapsed()
    }
}

/// Half of the gaps are bursts of more changes than are kept, while the server is blocked for watches; half are restarts,
/// every other one with changes that no watch has heard.
#[tokio::test]
async fn nothing_is_lost_in_200_gaps() {
    let config = TtlServerConfig { max_changes: 2, ..TtlServerConfig::default() };
    let mut server = Process::start_with(config).await;
    let mut watcher = registry(&[&server]).watch("stock").await.unwrap();
    let (mut model, mut last, mut longest) = (Model::default(), Membership::Unknown, Duration::ZERO);
    for round in 0..200 {
        model.change(&server, round, 4).await;
        if round.is_multiple_of(2) {
            server.kill();
            server.run().await;
            model.change(&server, round + 1, 3).await;
        }
        longest = longest.max(model.is_seen(&mut watcher, &mut last, round).await);
    }
    println!("ttl: 200 gaps, none lost anything; a change is seen after {longest:?} at the latest");
    assert!(longest <= Duration::from_secs(2), "{longest:?}");
}
