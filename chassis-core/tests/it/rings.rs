//! A hash ring of a header as a user's own picker: what it prepares is built once for each subset, and again when the
//! subset changes.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use chassis_core::{
    HashKey, RequestExt, RuntimeBuilder,
    layer::balance::{Candidates, Picker, PickerFactory, Subset},
    pipeline::{self, Pipeline},
    registry::{Instance, Membership},
    testing::{Answer, Arrival, CallBuilder, ScriptedRegistry, TestProtocol, Upstream},
};
use serde_json::{Value, json};

use crate::support::*;

/// Builds rings, and records the nodes of each. Clones share the record.
#[derive(Clone, Default)]
struct Rings(Arc<Mutex<Vec<String>>>);

/// The points of the nodes on a circle, in order, each with the index of its node.
struct Ring(Vec<(u32, usize)>);

impl PickerFactory for Rings {
    fn build(&self, subset: &Subset) -> Arc<dyn Picker> {
        let ids: Vec<_> = subset.nodes().iter().map(|node| node.id()).collect();
        self.0.lock().unwrap().push(ids.join(" "));
        let points = subset.nodes().iter().enumerate().flat_map(|(index, node)| {
            let count = 100 * node.instance().weight;
            (0..count).map(move |n| (HashKey::of(format!("{}-{n}", node.id())).get(), index))
        });
        let mut ring: Vec<_> = points.collect();
        ring.sort_unstable();
        Arc::new(Ring(ring))
    }
}

impl Picker for Ring {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        let user = candidates.subject().metadata.get("x-user");
        let key = candidates.hash_key().or_else(|| user.map(HashKey::of));
        let Some(key) = key.map(HashKey::get) else { return candidates.draw() };
        let (before, after) = self.0.split_at(self.0.partition_point(|(point, _)| *point < key));
        let mut nodes = after.iter().chain(before).map(|(_, index)| *index);
        nodes.find(|index| candidates.is_available(*index)).unwrap_or_else(|| candidates.draw())
    }
}

// === impl Rings ===

impl Rings {
    /// The nodes of each ring that was built since this was last asked, in alphabetical order.
    fn take(&self) -> Vec<String> {
        let mut built = std::mem::take(&mut *self.0.lock().unwrap());
        built.sort();
        built
    }
}

const USERS: usize = 300;

fn user(n: usize) -> String {
    format!("user-{n}")
}

fn stable(id: &str) -> Instance {
    ScriptedRegistry::instance("stock", id).with_label("track", "stable")
}

fn canary(id: &str) -> Instance {
    ScriptedRegistry::instance("stock", id).with_label("track", "canary")
}

/// Balances by rings, and sends calls with `x-canary` to canaries and others to stable nodes.
fn by_track() -> Value {
    json!({ "balance": "ring", "breaker": "off", "routes": [
        { "name": "canary", "match": { "header": { "x-canary": "true" } }, "to": { "track": "canary" } },
        { "name": "stable", "to": { "track": "stable" } },
    ] })
}

fn bench(rings: &Rings, script: impl Fn(&Arrival) -> Answer + Send + Sync + 'static) -> Bench {
    Bench::build(Upstream::new(script), |b| b.picker("ring", Arc::new(rings.clone())))
}

/// The node of each user, by its id.
async fn homes(pipeline: &Pipeline, call: impl Fn() -> CallBuilder) -> BTreeMap<String, String> {
    let mut homes = BTreeMap::new();
    for user in (0..USERS).map(user) {
        let answered = run(pipeline, call().header("x-user", &user).build()).await.unwrap();
        let node = answered.address.unwrap().trim_start_matches("memory:").to_owned();
        homes.insert(user, node);
    }
    homes
}

fn nodes(homes: &BTreeMap<String, String>) -> BTreeSet<&str> {
    homes.values().map(String::as_str).collect()
}

#[tokio::test(start_paused = true)]
async fn a_ring_is_built_once_for_each_subset_and_again_when_it_changes() {
    static REST: TestProtocol = TestProtocol::named("rest");
    let rings = Rings::default();
    let bench = bench(&rings, |_| Answer::ok(""));
    let other = Upstream::speaking(&REST, |_| Answer::ok(""));
    let other_way = pipeline::client(&bench.runtime, "stock", &Arc::new(other));
    let put = |all: &[Instance]| {
        let rest = |it: &Instance| it.clone().with_address("rest", format!("memory:{}", it.id));
        bench.registry.set("stock", Membership::known(all.iter().map(rest)));
    };
    let all = [stable("a"), stable("b"), stable("c"), stable("d"), canary("x"), canary("y")];
    put(&all);
    bench.stock(by_track());
    let to_canary = || get().header("x-canary", "true");
    let over_rest = || get().protocol(&REST);

    let (of_stable, of_canary) = (homes(&bench.pipeline, get).await, homes(&bench.pipeline, to_canary).await);
    assert_eq!(rings.take(), ["a b c d", "x y"], "one ring for each subset");
    assert_eq!((nodes(&of_stable).len(), nodes(&of_canary).len()), (4, 2));
    assert_eq!(homes(&other_way, over_rest).await, of_stable);
    assert_eq!(rings.take(), ["a b c d"], "and one for each protocol");

    // Neither calls nor other settings nor the same instances once more build any.
    bench.stock(json!({ "timeout": "7s", "balance": "ring", "routes": by_track()["routes"] }));
    put(&all);
    settle().await;
    assert_eq!(homes(&bench.pipeline, get).await, of_stable);
    assert_eq!(rings.take(), [""; 0]);

    // A node leaves: its users move, all others stay. The other subset has the ring that it had.
    put(&[stable("a"), stable("b"), stable("d"), canary("x"), canary("y")]);
    settle().await;
    assert_eq!(rings.take(), ["a b d", "a b d"], "before any call, over both protocols");
    let without = homes(&bench.pipeline, get).await;
    assert_eq!(nodes(&without), ["a", "b", "d"].into());
    for (user, home) in of_stable.iter().filter(|(_, home)| *home != "c") {
        assert_eq!(&without[user], home, "{user}");
    }
    assert_eq!(homes(&bench.pipeline, to_canary).await, of_canary);
    assert_eq!(homes(&other_way, over_rest).await, without);
    assert_eq!(rings.take(), [""; 0]);

    // It is back, with its users.
    put(&all);
    settle().await;
    assert_eq!(homes(&bench.pipeline, get).await, of_stable);
    assert_eq!(homes(&other_way, over_rest).await, of_stable);
    assert_eq!(rings.take(), ["a b c d", "a b c d"]);

    // A weight changes, or a label that is not part of the choice.
    for changed in [canary("x").with_weight(9), canary("x").with_label("zone", "1")] {
        put(&[stable("a"), stable("b"), stable("c"), stable("d"), changed, canary("y")]);
        settle().await;
        homes(&bench.pipeline, to_canary).await;
        assert_eq!(rings.take(), ["x y"]);
    }
}

/// A subset that no call used since the last snapshot is built when a call needs it.
#[tokio::test(start_paused = true)]
async fn a_ring_that_is_not_used_is_not_built() {
    let rings = Rings::default();
    let bench = bench(&rings, |_| Answer::ok(""));
    bench.registry.put("stock", ["a", "b", "c"]);
    bench.stock(json!({ "balance": "ring" }));
    homes(&bench.pipeline, get).await;
    assert_eq!(rings.take(), ["a b c"]);
    for (nodes, expected) in
        [(["a", "b", "d"], &["a b d"][..]), (["a", "b", "e"], &[]), (["a", "b", "f"], &[])]
    {
        bench.registry.put("stock", nodes);
        settle().await;
        assert_eq!(rings.take(), expected);
    }
    homes(&bench.pipeline, get).await;
    assert_eq!(rings.take(), ["a b f"]);
    bench.stock(json!({ "balance": "p2c" }));
    homes(&bench.pipeline, get).await;
    bench.registry.put("stock", ["a", "b"]);
    settle().await;
    bench.registry.put("stock", ["b", "a"]);
    settle().await;
    homes(&bench.pipeline, get).await;
    assert_eq!(rings.take(), ["a b"], "only for the snapshot after the last call that used it");
}

#[tokio::test(start_paused = true)]
async fn a_retry_goes_to_the_next_node_of_the_ring() {
    let rings = Rings::default();
    let bench = bench(&rings, |arrival| match &*arrival.address {
        "memory:a" => Answer::status(503),
        _ => Answer::ok(""),
    });
    bench.registry.put("stock", ["a", "b", "c"]);
    bench.stock(json!({ "balance": "ring", "breaker": "off", "retry": { "budget": "off" } }));
    let with_failures = homes(&bench.pipeline, get).await;
    let first = |arrival: &Arrival| arrival.metadata.get("x-chassis-attempt").is_none();
    let to_a = bench.upstream.arrivals().iter().filter(|arrival| arrival.address == "memory:a").count();
    assert!(to_a > USERS / 6, "{to_a}");
    assert!(bench.upstream.arrivals().iter().filter(|a| a.address == "memory:a").all(first));
    bench.registry.put("stock", ["b", "c"]);
    settle().await;
    assert_eq!(homes(&bench.pipeline, get).await, with_failures, "where its users move if it leaves");
}

#[tokio::test(start_paused = true)]
async fn a_hash_key_takes_the_place_of_the_header() {
    let bench = bench(&Rings::default(), |_| Answer::ok(""));
    bench.registry.put("stock", ["a", "b", "c"]);
    bench.stock(json!({ "balance": "ring" }));
    for (user, home) in homes(&bench.pipeline, get).await {
        let call = post().hash_key(user).build();
        assert_eq!(run(&bench.pipeline, call).await.unwrap().address, Some(format!("memory:{home}")));
    }
}

/// Callers in four threads, of two subsets, and a node that leaves meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_callers_share_each_ring_and_a_swap_moves_only_the_users_of_the_node_that_left() {
    let rings = Rings::default();
    let bench = bench(&rings, |_| Answer::ok(""));
    let before = [stable("a"), stable("b"), stable("c"), stable("d"), canary("x"), canary("y")];
    bench.registry.set("stock", Membership::known(before));
    bench.stock(by_track());
    let is_over = Arc::new(AtomicBool::new(false));
    let callers = 32;
    // All begin at the same moment, so that many calls need the rings at once; `moved` ends the second phase.
    let (begin, swap) =
        (Arc::new(tokio::sync::Barrier::new(callers)), Arc::new(tokio::sync::Barrier::new(callers + 1)));
    let caller = |n: usize| {
        let (pipeline, is_over) = (bench.pipeline.clone(), is_over.clone());
        let (begin, swap) = (begin.clone(), swap.clone());
        async move {
            let call = || {
                let call = get().header("x-user", &user(n));
                if n.is_multiple_of(4) { call.header("x-canary", "true") } else { call }
            };
            let home = async || run(&pipeline, call().build()).await.unwrap().address.unwrap();
            begin.wait().await;
            let first = home().await;
            for _ in 0..100 {
                assert_eq!(home().await, first);
            }
            swap.wait().await;
            // Each caller moves at most once, from the old ring to the new one.
            let mut homes = vec![first];
            let mut is_last = false;
            while !is_last {
                // A call that is answered at once never gives way to the task that follows the registry.
                tokio::task::yield_now().await;
                is_last = is_over.load(SeqCst);
                let home = home().await;
                if homes.last() != Some(&home) {
                    homes.push(home);
                }
            }
            homes
        }
    };
    let callers: Vec<_> = (0..callers).map(|n| tokio::spawn(caller(n))).collect();
    within("the first ring", swap.wait()).await;
    assert_eq!(rings.take(), ["a b c d", "x y"], "one ring for each subset, though all needed it at once");
    let after = [stable("a"), stable("b"), stable("d"), canary("x"), canary("y")];
    bench.registry.set("stock", Membership::known(after));
    let left = |event: &chassis_core::Event| matches!(event, chassis_core::Event::InstanceLeft { .. });
    while bench.count_events(left) == 0 {
        tokio::task::yield_now().await;
    }
    is_over.store(true, SeqCst);
    let mut moved = 0;
    for caller in callers {
        match within("the end of a caller", caller).await.unwrap().as_slice() {
            [home] => assert_ne!(home, "memory:c"),
            [from, to] => {
                assert!(from == "memory:c" && to != "memory:c", "{from} -> {to}");
                moved += 1;
            }
            homes => panic!("a user moved more than once: {homes:?}"),
        }
    }
    assert!(moved > 0, "no user of the node that left");
    assert_eq!(rings.take(), ["a b d"], "one ring for the subset that has changed");
}

/// The number of threads that need a ring at once.
const THREADS: usize = 3;

/// Builds a ring only once all threads have begun their calls.
#[derive(Clone, Default)]
struct Slow {
    rings: Rings,
    begun: Arc<AtomicUsize>,
}

impl PickerFactory for Slow {
    fn build(&self, subset: &Subset) -> Arc<dyn Picker> {
        while self.begun.load(SeqCst) < THREADS {
            std::thread::yield_now();
        }
        // Gives the other threads the time to find that there is no ring.
        (0..200).for_each(|_| std::thread::yield_now());
        self.rings.build(subset)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_need_a_ring_at_once_wait_for_the_same_one() {
    // Each round has a picker of its own, so that it begins without a ring.
    let rounds: Vec<_> = (0..50).map(|round| (format!("slow-{round}"), Slow::default())).collect();
    let bench = Bench::build(Upstream::new(|_| Answer::ok("")), |builder| {
        let add = |builder: RuntimeBuilder, (name, slow): &(String, Slow)| {
            builder.picker(name.clone(), Arc::new(slow.clone()))
        };
        rounds.iter().fold(builder, add)
    });
    bench.registry.put("stock", ["a", "b"]);
    bench.get().await.unwrap(); // the nodes are there
    for (name, slow) in &rounds {
        bench.stock(json!({ "balance": name }));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    slow.begun.fetch_add(1, SeqCst);
                    runtime.block_on(run(&bench.pipeline, get().build())).unwrap();
                });
            }
        });
        assert_eq!(slow.rings.take(), ["a b"], "{name}");
    }
}

/// Label sets that callers make up: the subsets beyond the maximum are not kept, and no call builds a ring for itself.
#[tokio::test(start_paused = true)]
async fn no_call_builds_a_ring_for_itself() {
    let rings = Rings::default();
    let bench = bench(&rings, |_| Answer::ok(""));
    let names: Vec<String> = (0..1_000).map(|i| i.to_string()).collect();
    let instance = |id: &str| {
        let of = ScriptedRegistry::instance("stock", id);
        names.iter().fold(of, |instance, name| instance.with_label(name, "1"))
    };
    bench.registry.set("stock", Membership::known([instance("a"), instance("b")]));
    bench.stock(json!({ "balance": "ring" }));
    bench.settle().await;
    for name in names.iter().chain(&names) {
        bench.run(get().pin(name, "1").header("x-user", "ada")).await.unwrap();
    }
    assert_eq!(rings.take().len(), 256);
    let drawn = ["a", "b"].map(|id| bench.upstream.calls(&format!("memory:{id}")));
    assert!(drawn.iter().all(|count| *count > 500), "the others are drawn: {drawn:?}");
    // In the next snapshot those that are in use have room, whatever was used before.
    bench.registry.set("stock", Membership::known([instance("a"), instance("b"), instance("c")]));
    settle().await;
    assert_eq!(rings.take().len(), 256);
    bench.registry.set("stock", Membership::known([instance("b"), instance("c")]));
    settle().await;
    for _ in 0..10 {
        bench.run(get().pin(&names[999], "1").header("x-user", "ada")).await.unwrap();
    }
    assert_eq!(rings.take(), ["b c"]);
}

/// Panics for more than two nodes.
struct Broken(Rings);

impl PickerFactory for Broken {
    fn build(&self, subset: &Subset) -> Arc<dyn Picker> {
        let ring = self.0.build(subset);
        assert!(subset.nodes().len() <= 2, "more than two nodes");
        ring
    }
}

#[tokio::test(start_paused = true)]
async fn a_picker_that_cannot_be_built_is_replaced_by_a_draw() {
    let rings = Rings::default();
    let bench = Bench::build(Upstream::new(|_| Answer::ok("")), |b| {
        b.picker("broken", Arc::new(Broken(rings.clone())))
    });
    bench.stock(json!({ "balance": "broken" }));
    let ada = || get().header("x-user", "ada");
    for (ids, expected) in [(&["a", "b"][..], "a b"), (&["a", "b", "c"], "a b c"), (&["a", "b"], "a b")] {
        let before = bench.upstream.total();
        bench.registry.set("stock", Membership::known(ids.iter().map(|id| stable(id))));
        settle().await;
        for _ in 0..100 {
            bench.run(ada()).await.unwrap();
        }
        assert_eq!(rings.take(), [expected], "it is not asked again");
        let arrivals = bench.upstream.arrivals();
        let reached: BTreeSet<_> =
            arrivals[before..].iter().map(|arrival| arrival.address.as_str()).collect();
        assert_eq!(reached.len(), if ids.len() > 2 { 3 } else { 1 }, "{reached:?}");
    }
}
