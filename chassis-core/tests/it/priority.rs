//! Instances of a lower number of `priority` come first; the next ones take the calls that those can not.
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use chassis_core::{
    Connection::{self, Connecting, Idle, Ready, TransientFailure},
    Event, RequestExt,
    layer::balance::{Candidates, Picker, PickerFactory, Subset},
    registry::{Instance, Membership, Status},
    testing::{Answer, Arrival, ScriptedRegistry, Upstream, feed},
};
use serde_json::{Value, json};

use crate::support::*;

/// Picks the last node that is available, and states which nodes it was built for.
struct LastOf(Vec<String>);

struct Last;

impl PickerFactory for Last {
    fn build(&self, subset: &Subset) -> Arc<dyn Picker> {
        Arc::new(LastOf(subset.nodes().iter().map(|node| node.id().to_owned()).collect()))
    }
}

impl Picker for LastOf {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        let ids: Vec<_> = candidates.nodes().iter().map(|node| node.id().to_owned()).collect();
        assert_eq!(ids, self.0, "it picks among the nodes that it was built for");
        let available = (0..ids.len()).rev().find(|index| candidates.is_available(*index));
        available.unwrap_or(0)
    }
}

fn at(id: &str, priority: u32) -> Instance {
    ScriptedRegistry::instance("stock", id).with_priority(priority)
}

/// Nodes with priorities, such as `a0 b0 c1`.
fn put(bench: &Bench, nodes: &str) {
    let one = |text: &str| at(&text[..1], text[1..].parse().unwrap());
    bench.registry.set("stock", Membership::known(nodes.split(' ').map(one)));
}

fn bench(nodes: &str, stock: Value) -> Bench {
    let bench = Bench::build(Upstream::new(|_| Answer::ok("")), |b| b.picker("last", Arc::new(Last)));
    put(&bench, nodes);
    bench.stock(stock);
    bench
}

fn connect(bench: &Bench, ids: &str, connection: Connection) {
    ids.chars().for_each(|id| bench.upstream.connect(&format!("memory:{id}"), connection));
}

/// The calls of so many that each node gets, in percent, as in `a50 c50`; nodes that get none are left out.
async fn shares(bench: &Bench, calls: usize) -> Vec<(char, f64)> {
    let count = |id: char| bench.upstream.calls(&format!("memory:{id}"));
    let before: Vec<_> = ('a'..='f').map(count).collect();
    for _ in 0..calls {
        bench.get().await.unwrap();
    }
    let share = |(id, before)| (id, (count(id) - before) as f64 * 100.0 / calls as f64);
    ('a'..='f').zip(before).map(share).filter(|(_, share)| *share > 0.0).collect()
}

fn of(shares: &[(char, f64)], ids: &str) -> f64 {
    shares.iter().filter(|(id, _)| ids.contains(*id)).map(|(_, share)| share).sum()
}

const PICKERS: [&str; 4] = ["p2c", "random", "round_robin", "last"];

#[tokio::test(start_paused = true)]
async fn the_first_priority_gets_all_calls_while_enough_of_it_is_healthy() {
    for picker in PICKERS {
        let bench = bench("c1 a0 b0 d7", json!({ "balance": picker }));
        let all = shares(&bench, 200).await;
        assert_eq!(of(&all, "ab"), 100.0, "{picker}: {all:?}");
        assert!(
            picker == "last" || all.iter().all(|(_, share)| (35.0..65.0).contains(share)),
            "{picker}: {all:?}"
        );
    }
    // Three of four are 75 %: more than 1 / 1.4.
    let bench = bench("a0 b0 c0 d0 e1", json!({}));
    bench.get().await.unwrap();
    connect(&bench, "a", TransientFailure);
    let all = shares(&bench, 300).await;
    assert_eq!(of(&all, "bcd"), 100.0, "{all:?}");
}

#[tokio::test(start_paused = true)]
async fn the_next_priority_takes_what_the_first_one_can_not() {
    for picker in PICKERS {
        let bench = bench("a0 b0 c1 d1 e2", json!({ "balance": picker }));
        bench.get().await.unwrap();
        connect(&bench, "a", TransientFailure);
        let all = shares(&bench, 4_000).await;
        // Half of it is healthy: 1.4 × 50 %.
        assert!((67.0..73.0).contains(&of(&all, "b")), "{picker}: {all:?}");
        assert!((27.0..33.0).contains(&of(&all, "cd")), "{picker}: {all:?}");
        assert_eq!(of(&all, "e"), 0.0);
        connect(&bench, "b", TransientFailure);
        let all = shares(&bench, 200).await;
        assert_eq!(of(&all, "cd"), 100.0, "{picker}: {all:?}");
        connect(&bench, "cd", TransientFailure);
        let all = shares(&bench, 200).await;
        assert_eq!(of(&all, "e"), 100.0, "{picker}: {all:?}");
        // Back at once.
        connect(&bench, "ab", Ready);
        let all = shares(&bench, 200).await;
        assert_eq!(of(&all, "ab"), 100.0, "{picker}: {all:?}");
    }
}

/// Envoy normalizes: half of the calls to each of two priorities that are healthy to a quarter.
#[tokio::test(start_paused = true)]
async fn priorities_that_are_all_unhealthy_share_the_calls() {
    let bench = bench("a0 b0 c1 d1", json!({}));
    bench.get().await.unwrap();
    let weights = |id: &str, priority, weight| at(id, priority).with_weight(weight);
    bench.registry.set(
        "stock",
        Membership::known([weights("a", 0, 1), weights("b", 0, 3), weights("c", 1, 1), weights("d", 1, 3)]),
    );
    bench.settle().await;
    connect(&bench, "bd", TransientFailure);
    let all = shares(&bench, 4_000).await;
    assert!((47.0..53.0).contains(&of(&all, "a")) && (47.0..53.0).contains(&of(&all, "c")), "{all:?}");
    connect(&bench, "abcd", TransientFailure);
    let refused = bench.get().await.unwrap_err();
    assert!(refused.message().contains("can be connected to"), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn open_circuits_are_lost_health_and_no_reason_to_panic() {
    let is_well = Arc::new(AtomicBool::new(false));
    let well = is_well.clone();
    let script = move |call: &Arrival| match call.address.as_str() {
        "memory:a" | "memory:b" if !well.load(Relaxed) => Answer::status(500),
        _ => Answer::ok(""),
    };
    let bench = Bench::build(Upstream::new(script), |builder| builder);
    put(&bench, "a0 b0 c1");
    let breaker = json!({ "scope": "endpoint", "consecutive": 3, "open": "30s" });
    bench.stock(json!({ "breaker": breaker, "retry": "off", "balance": "round_robin" }));
    for _ in 0..40 {
        let _ = bench.get().await;
    }
    let failing = bench.upstream.calls("memory:a") + bench.upstream.calls("memory:b");
    let all = shares(&bench, 200).await;
    assert_eq!(of(&all, "c"), 100.0, "{all:?}");
    assert!(failing < 20, "{failing}");
    assert_eq!(bench.count_events(|event| matches!(event, Event::PanicPick { .. })), 0);
    // Once the open time is over, calls come back, although nothing has happened to a node.
    is_well.store(true, Relaxed);
    tokio::time::sleep(60 * S).await;
    let _ = shares(&bench, 200).await;
    let all = shares(&bench, 200).await;
    assert_eq!(of(&all, "ab"), 100.0, "{all:?}");
}

/// The first priority cannot be connected to, and all circuits of the next one are open.
#[tokio::test(start_paused = true)]
async fn circuits_are_ignored_if_all_priorities_together_are_short() {
    let bench = Bench::build(Upstream::new(|_| Answer::status(500)), |builder| builder);
    put(&bench, "a0 b1 c1");
    let breaker = json!({ "scope": "endpoint", "consecutive": 3, "open": "30s" });
    bench.stock(json!({ "breaker": breaker, "retry": "off", "balance": "round_robin" }));
    let _ = bench.get().await;
    connect(&bench, "a", TransientFailure);
    connect(&bench, "bc", Ready);
    let calls = || bench.upstream.calls("memory:b") + bench.upstream.calls("memory:c");
    let before = calls();
    for _ in 0..100 {
        let _ = bench.get().await;
    }
    assert_eq!(calls() - before, 100, "no call is refused");
    assert_eq!(bench.count_events(|event| matches!(event, Event::PanicPick { .. })), 1);
}

#[tokio::test(start_paused = true)]
async fn subsets_have_priorities_of_their_own() {
    let labelled = |id: &str, priority, track: &str| at(id, priority).with_label("track", track);
    for picker in PICKERS {
        let stock = json!({ "balance": picker, "routes": [
            { "name": "canary", "match": { "header": { "x-canary": "true" } }, "to": { "track": "canary" } },
        ] });
        let bench = bench("a0", stock);
        bench.registry.set(
            "stock",
            Membership::known([
                labelled("a", 0, "stable"),
                labelled("b", 1, "stable"),
                labelled("c", 3, "canary"),
                labelled("d", 5, "canary"),
            ]),
        );
        let canary = async || bench.run(get().header("x-canary", "true")).await.unwrap().address.unwrap();
        for _ in 0..20 {
            assert_eq!(canary().await, "memory:c");
            assert_eq!(bench.get().await.unwrap().address.unwrap(), "memory:a");
        }
        connect(&bench, "ac", TransientFailure);
        for _ in 0..20 {
            assert_eq!(canary().await, "memory:d");
            assert_eq!(bench.get().await.unwrap().address.unwrap(), "memory:b");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn another_attempt_goes_to_the_next_priority_rather_than_to_the_same_node() {
    let script = |call: &Arrival| match call.address.as_str() {
        "memory:a" => Answer::status(503),
        _ => Answer::ok(""),
    };
    let bench = Bench::build(Upstream::new(script), |builder| builder);
    put(&bench, "a0 b1");
    bench.stock(json!({ "retry": { "attempts": 2 } }));
    for _ in 0..5 {
        assert_eq!(bench.get().await.unwrap().address.unwrap(), "memory:b");
    }
    assert_eq!(bench.upstream.calls("memory:a"), 5);
}

/// A node of a later priority that is connected is better than to wait; one that is not is not connected for that.
#[tokio::test(start_paused = true)]
async fn a_call_does_not_wait_while_another_priority_is_ready() {
    let bench = bench("a0 b1", json!({}));
    bench.get().await.unwrap();
    connect(&bench, "a", Connecting);
    let all = shares(&bench, 20).await;
    assert_eq!(of(&all, "b"), 100.0, "{all:?}");
    connect(&bench, "ab", Idle);
    let call = bench.spawn(get());
    bench.settle().await;
    assert!(!call.is_finished() && bench.upstream.wakes("memory:a") > 0);
    assert_eq!(bench.upstream.wakes("memory:b"), 0);
    connect(&bench, "a", TransientFailure);
    bench.settle().await;
    assert!(!call.is_finished() && bench.upstream.wakes("memory:b") > 0);
    connect(&bench, "b", Ready);
    assert_eq!(call.await.unwrap().unwrap().address.unwrap(), "memory:b");
}

/// Instances that were taken out count: four fifths of the calls are not sent to the last fifth.
#[tokio::test(start_paused = true)]
async fn instances_out_of_service_are_lost_health() {
    let bench = bench("a0", json!({}));
    let out = |id: &str| at(id, 0).with_status(Status::OutOfService);
    bench
        .registry
        .set("stock", Membership::known([at("a", 0), out("b"), out("c"), out("d"), out("e"), at("f", 1)]));
    bench.settle().await;
    let all = shares(&bench, 4_000).await;
    assert!((25.0..31.0).contains(&of(&all, "a")) && (69.0..75.0).contains(&of(&all, "f")), "{all:?}");
    // Weight 0 is part of no capacity.
    let none = |id: &str| at(id, 0).with_weight(0);
    bench.registry.set("stock", Membership::known([at("a", 0), none("b"), none("c"), at("f", 1)]));
    bench.settle().await;
    let all = shares(&bench, 200).await;
    assert_eq!(of(&all, "a"), 100.0, "{all:?}");
    bench.registry.set("stock", Membership::known([none("a"), none("b"), at("f", 1)]));
    bench.settle().await;
    let all = shares(&bench, 200).await;
    assert_eq!(of(&all, "f"), 100.0, "{all:?}");
}

/// Calls with one key stay at one priority, and keys are divided as calls are.
#[tokio::test(start_paused = true)]
async fn a_key_stays_at_its_priority() {
    let bench = bench("a0 b0 c1", json!({}));
    bench.get().await.unwrap();
    connect(&bench, "a", TransientFailure);
    let mut spilled = 0;
    for user in 0..400 {
        let mut places = Vec::new();
        for _ in 0..5 {
            places.push(bench.run(get().hash_key(format!("user-{user}"))).await.unwrap().address.unwrap());
        }
        assert!(places.iter().all(|place| *place == places[0]), "{user}: {places:?}");
        spilled += usize::from(places[0] == "memory:c");
    }
    assert!((80..160).contains(&spilled), "{spilled} of 400");
}

/// Divides the keys among the nodes in their order, as a ring with one part for each node does.
struct Parts;

impl PickerFactory for Parts {
    fn build(&self, _: &Subset) -> Arc<dyn Picker> {
        Arc::new(Parts)
    }
}

impl Picker for Parts {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        let key = candidates.hash_key().map_or(0, |key| u64::from(key.get()));
        ((key * candidates.nodes().len() as u64) >> 32) as usize
    }
}

/// The choice of the priority leaves each priority keys of all parts of a ring.
#[tokio::test(start_paused = true)]
async fn keys_are_divided_among_all_nodes_of_a_later_priority() {
    let bench = Bench::build(Upstream::new(|_| Answer::ok("")), |b| b.picker("parts", Arc::new(Parts)));
    put(&bench, "a0 b0 c1 d1");
    bench.stock(json!({ "balance": "parts" }));
    bench.get().await.unwrap();
    connect(&bench, "a", TransientFailure);
    let mut counts = [0; 4];
    for user in 0..1_000 {
        let address = bench.run(get().hash_key(format!("user-{user}"))).await.unwrap().address.unwrap();
        counts[usize::from(address.as_bytes()["memory:".len()] - b'a')] += 1;
    }
    assert!((100..200).contains(&counts[2]) && (100..200).contains(&counts[3]), "{counts:?}");
}

/// Priorities change under many callers, streams among them: no call fails, and nodes keep what was seen of them.
#[tokio::test(start_paused = true)]
async fn priorities_change_while_calls_are_in_flight() {
    let (feed, stream) = feed();
    let stream = Mutex::new(Some(stream));
    let script = move |call: &Arrival| match call.metadata.contains_key("x-stream") {
        true => Answer::streaming(stream.lock().unwrap().take().unwrap()),
        false => Answer::ok("").after(3 * MS),
    };
    let bench = Bench::build(Upstream::new(script), |builder| builder);
    put(&bench, "a0 b1 c2");
    let streamed = bench.send(get().header("x-stream", "1")).await.unwrap();
    let bench = Arc::new(bench);
    let callers: Vec<_> = (0..64)
        .map(|_| {
            let bench = bench.clone();
            tokio::spawn(async move {
                for _ in 0..40 {
                    bench.get().await.unwrap();
                }
            })
        })
        .collect();
    for round in 0..20 {
        put(&bench, ["a1 b0 c0", "a0 b0 c0", "a2 b1 c0", "a0 b1 c2"][round % 4]);
        connect(&bench, "a", if round % 3 == 0 { TransientFailure } else { Ready });
        tokio::time::sleep(5 * MS).await;
    }
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(bench.upstream.total(), 64 * 40 + 1);
    assert!(feed.send("still"), "a stream goes on at the node that it began at");
    drop(streamed);
    assert_eq!(["a", "b", "c"].map(|id| bench.upstream.closes(&format!("memory:{id}"))), [0; 3]);
    let calls: u64 = ["a", "b", "c"].iter().map(|id| bench.node(id).calls).sum();
    assert_eq!(calls, 64 * 40);
    put(&bench, "a1 b0 c0");
    bench.settle().await;
    let all = shares(&bench, 100).await;
    assert_eq!(of(&all, "bc"), 100.0, "{all:?}");
}
