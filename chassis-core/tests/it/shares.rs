//! The share of the calls of each node: by turns, by weights, with few callers and with many.
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use chassis_core::{
    RequestExt,
    pipeline::{self, Pipeline},
    registry::Membership,
    testing::{Answer, Arrival, CallBuilder, ScriptedRegistry, TestProtocol, Upstream},
};
use serde_json::json;

use crate::support::*;

/// The number of calls that arrived at each address; only attempts that `which` accepts.
fn arrived(upstream: &Upstream, which: impl Fn(&Arrival) -> bool) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for arrival in upstream.arrivals().iter().filter(|arrival| which(arrival)) {
        *all.entry(arrival.address.trim_start_matches("memory:").to_owned()).or_default() += 1;
    }
    all
}

fn is_first(arrival: &Arrival) -> bool {
    arrival.metadata.get("x-chassis-attempt").is_none()
}

fn even(ids: &[&str], each: usize) -> BTreeMap<String, usize> {
    ids.iter().map(|id| ((*id).to_owned(), each)).collect()
}

fn weighed(id: &str, weight: u32) -> chassis_core::registry::Instance {
    ScriptedRegistry::instance("stock", id).with_weight(weight)
}

/// Runs closed-loop callers, each with one call at a time, until `calls` were made; returns the answers'
/// statuses.
async fn closed_loop(
    pipeline: &Pipeline,
    callers: usize,
    calls: usize,
    call: fn() -> CallBuilder,
) -> Vec<Option<u16>> {
    let left = Arc::new(AtomicUsize::new(calls));
    let caller = || {
        let (pipeline, left) = (pipeline.clone(), left.clone());
        async move {
            let mut statuses = Vec::new();
            while left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
                statuses.push(run(&pipeline, call().build()).await.ok().map(|a| a.status.as_u16()));
            }
            statuses
        }
    };
    let running: tokio::task::JoinSet<_> = (0..callers).map(|_| caller()).collect();
    running.join_all().await.into_iter().flatten().collect()
}

/// Sends a call every two milliseconds, regardless of earlier ones; returns the answers' statuses.
async fn open_loop(pipeline: &Pipeline, calls: usize, call: fn() -> CallBuilder) -> Vec<Option<u16>> {
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..calls {
        let (pipeline, call) = (pipeline.clone(), call().build());
        running.spawn(async move { run(&pipeline, call).await.ok().map(|a| a.status.as_u16()) });
        tokio::time::sleep(2 * MS).await;
    }
    running.join_all().await
}

// === round robin ===

#[tokio::test(start_paused = true)]
async fn round_robin_is_even_within_each_subset_over_each_protocol() {
    static REST: TestProtocol = TestProtocol::named("rest");
    let bench = Bench::new(|_| Answer::ok(""));
    let other = Upstream::speaking(&REST, |_| Answer::ok(""));
    let other_way = pipeline::client(&bench.runtime, "stock", &Arc::new(other.clone()));
    let labelled = |id: &str, track| {
        let instance = ScriptedRegistry::instance("stock", id).with_label("track", track);
        instance.with_address("rest", format!("memory:{id}"))
    };
    let all = [("a", "stable"), ("b", "stable"), ("c", "canary"), ("d", "canary")];
    bench.registry.set("stock", Membership::known(all.map(|(id, track)| labelled(id, track))));
    bench.stock(json!({ "balance": "round_robin", "routes": [
        { "name": "canary", "match": { "header": { "x-canary": "true" } }, "to": { "track": "canary" } },
        { "name": "stable", "to": { "track": "stable" } },
    ] }));
    let canary = || get().header("x-canary", "true");
    for _ in 0..200 {
        bench.get().await.unwrap();
        bench.run(canary()).await.unwrap();
        run(&other_way, get().protocol(&REST).build()).await.unwrap();
    }
    assert_eq!(arrived(&bench.upstream, |_| true), even(&["a", "b", "c", "d"], 100));
    assert_eq!(arrived(&other, |_| true), even(&["a", "b"], 100));
}

#[tokio::test(start_paused = true)]
async fn retries_take_no_turns() {
    let bench = Bench::with(["a", "b"], |arrival| match &*arrival.address {
        "memory:a" => Answer::status(503),
        _ => Answer::ok(""),
    });
    bench.stock(json!({ "balance": "round_robin", "breaker": "off", "retry": { "budget": "off" } }));
    for _ in 0..1_000 {
        assert_eq!(bench.get().await.unwrap().status, 200);
    }
    assert_eq!(arrived(&bench.upstream, is_first), even(&["a", "b"], 500));
    assert_eq!(arrived(&bench.upstream, |a| !is_first(a)), even(&["b"], 500));
}

/// A resend of a call that never left takes no turn.
#[tokio::test(start_paused = true)]
async fn resent_calls_take_no_turns() {
    let bench = Bench::with(["a", "b", "c"], |arrival| match &*arrival.address {
        "memory:a" => Answer::unsent(),
        _ => Answer::ok(""),
    });
    bench.stock(json!({ "balance": "round_robin", "breaker": "off", "retry": "off" }));
    for _ in 0..900 {
        bench.post().await.unwrap();
    }
    let all = arrived(&bench.upstream, |_| true);
    assert_eq!(all["a"], 300);
    assert!(all["b"].abs_diff(450) < 45 && all["c"].abs_diff(450) < 45, "{all:?}");
}

#[tokio::test(start_paused = true)]
async fn operations_called_in_turn_reach_every_node() {
    for nodes in [&["a", "b"][..], &["a", "b", "c", "d"]] {
        let bench = Bench::new(|_| Answer::ok(""));
        bench.registry.set("stock", Membership::known(nodes.iter().map(|id| weighed(id, 1))));
        bench.stock(json!({ "balance": "round_robin" }));
        for _ in 0..1_000 {
            bench.get().await.unwrap();
            bench.run(CallBuilder::get("stock", "List")).await.unwrap();
        }
        assert_eq!(arrived(&bench.upstream, |_| true), even(nodes, 2_000 / nodes.len()));
        let of_one = arrived(&bench.upstream, |arrival| arrival.operation == "List");
        let fair = 1_000 / nodes.len();
        assert!(nodes.iter().all(|id| of_one[*id].abs_diff(fair) < fair / 5), "{of_one:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn round_robin_obeys_weights_and_spreads_them() {
    for unit in [1, 100] {
        let bench = Bench::new(|_| Answer::ok(""));
        let all = [weighed("a", 5 * unit), weighed("b", 3 * unit), weighed("c", 2 * unit), weighed("d", 0)];
        bench.registry.set("stock", Membership::known(all));
        bench.stock(json!({ "balance": "round_robin" }));
        for round in 1..=40 {
            for _ in 0..10 {
                bench.get().await.unwrap();
            }
            let expected = [("a", 5), ("b", 3), ("c", 2)];
            let expected = expected.map(|(id, share)| (id.to_owned(), share * round)).into();
            assert_eq!(arrived(&bench.upstream, |_| true), expected, "each round is exact");
        }
        let order: Vec<_> = bench.upstream.arrivals().into_iter().map(|arrival| arrival.address).collect();
        let runs = order.chunk_by(|one, next| one == next).map(<[_]>::len).max();
        assert!(runs <= Some(4), "{runs:?} turns of one node in a row");
    }
}

#[tokio::test(start_paused = true)]
async fn round_robin_goes_on_when_settings_and_members_change() {
    let bench = Bench::with(["a", "b", "c", "d"], |_| Answer::ok(""));
    for i in 0..400 {
        match i % 2 {
            0 => bench.stock(json!({ "balance": "round_robin", "timeout": format!("{}s", 1 + i % 4) })),
            _ => bench.registry.put("stock", ["a", "b", "c", "d"]),
        }
        settle().await;
        bench.get().await.unwrap();
    }
    assert_eq!(arrived(&bench.upstream, |_| true), even(&["a", "b", "c", "d"], 100));
}

#[tokio::test(start_paused = true)]
async fn the_turns_of_a_node_that_is_away_go_to_all_others() {
    let bench = Bench::with(["a", "b", "c", "d"], |_| Answer::ok(""));
    bench.stock(json!({ "balance": "round_robin" }));
    bench.settle().await;
    bench.upstream.connect("memory:b", chassis_core::Connection::TransientFailure);
    for _ in 0..300 {
        bench.get().await.unwrap();
    }
    let all = arrived(&bench.upstream, |_| true);
    assert!(all.len() == 3 && all.values().all(|n| n.abs_diff(100) <= 2), "{all:?}");
}

#[tokio::test(start_paused = true)]
async fn labels_that_callers_make_up_are_spread_too() {
    // Beyond the maximum of label sets with state, each call draws at random.
    let bench = Bench::with(["a", "b"], |_| Answer::ok(""));
    bench.settle().await;
    let names: Vec<String> = (0..1_000).map(|i| i.to_string()).collect();
    let instance = |id: &str| {
        let of = ScriptedRegistry::instance("stock", id);
        names.iter().fold(of, |instance, name| instance.with_label(name, "1"))
    };
    bench.registry.set("stock", Membership::known([instance("a"), instance("b")]));
    bench.stock(json!({ "balance": "round_robin" }));
    settle().await;
    for name in &names {
        bench.run(get().pin(name, "1")).await.unwrap();
    }
    let all = arrived(&bench.upstream, |_| true);
    assert!(all["a"].abs_diff(500) < 100, "{all:?}");
}

// === weights ===

const CALLERS: [usize; 6] = [1, 2, 10, 64, 128, 200];

#[tokio::test(start_paused = true)]
async fn weights_are_obeyed_by_few_callers_and_by_many() {
    for balance in ["p2c", "random", "round_robin"] {
        for callers in CALLERS {
            let bench = Bench::new(|_| Answer::ok("").after(10 * MS));
            bench.registry.set("stock", Membership::known([weighed("heavy", 9), weighed("light", 1)]));
            bench.stock(json!({ "balance": balance }));
            bench.settle().await;
            closed_loop(&bench.pipeline, callers, 4_000.max(30 * callers), get).await;
            let all = arrived(&bench.upstream, |_| true);
            let share = all["heavy"] as f64 / bench.upstream.total() as f64;
            assert!((0.88..=0.92).contains(&share), "{balance}, {callers} callers: {share}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn weights_among_several() {
    let weights = [("a", 8), ("b", 4), ("c", 2), ("d", 1), ("e", 1)];
    for callers in CALLERS {
        let bench = Bench::new(|_| Answer::ok("").after(10 * MS));
        bench.registry.set("stock", Membership::known(weights.map(|(id, weight)| weighed(id, weight))));
        bench.settle().await;
        let calls = 8_000.max(30 * callers);
        closed_loop(&bench.pipeline, callers, calls, get).await;
        let all = arrived(&bench.upstream, |_| true);
        for (id, weight) in weights {
            let fair = calls as f64 * f64::from(weight) / 16.0;
            let off = all[id] as f64 / fair - 1.0;
            assert!(off.abs() < 0.15, "{callers} callers, {id}: {off:+}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_heavy_node_that_is_slow_gets_less_than_its_weight() {
    let bench = Bench::new(|arrival| match &*arrival.address {
        "memory:heavy" => Answer::ok("").after(90 * MS),
        _ => Answer::ok("").after(Duration::from_millis(1)),
    });
    bench.registry.set("stock", Membership::known([weighed("heavy", 9), weighed("light", 1)]));
    bench.settle().await;
    closed_loop(&bench.pipeline, 64, 6_400, get).await;
    let all = arrived(&bench.upstream, |_| true);
    assert!(all["heavy"] < all["light"], "{all:?}");
}

// === quick failures ===

/// How the calls of a test arrive.
#[derive(Clone, Copy, Debug)]
enum Load {
    Open,
    Closed { callers: usize },
}

const LOADS: [Load; 4] =
    [Load::Open, Load::Closed { callers: 1 }, Load::Closed { callers: 20 }, Load::Closed { callers: 128 }];

impl Load {
    async fn run(self, bench: &Bench, calls: usize, call: fn() -> CallBuilder) -> Vec<Option<u16>> {
        match self {
            Load::Open => open_loop(&bench.pipeline, calls, call).await,
            Load::Closed { callers } => closed_loop(&bench.pipeline, callers, calls, call).await,
        }
    }
}

/// Three nodes, two of which answer well after `slow`; `bad` answers after a millisecond.
fn one_of_three(slow: Duration, bad: impl Fn() -> Answer + Send + Sync + 'static) -> Bench {
    Bench::with(["bad", "b", "c"], move |arrival| match &*arrival.address {
        "memory:bad" => bad().after(MS),
        _ => Answer::ok("").after(slow),
    })
}

fn share(statuses: &[Option<u16>], of: u16) -> f64 {
    statuses.iter().filter(|status| **status == Some(of)).count() as f64 / statuses.len() as f64
}

fn share_of_bad(bench: &Bench) -> f64 {
    bench.upstream.calls("memory:bad") as f64 / bench.upstream.total() as f64
}

/// From the first call on, with the default settings.
#[tokio::test(start_paused = true)]
async fn one_node_that_fails_at_once_costs_almost_no_call() {
    for load in LOADS {
        for slow in [2 * MS, 20 * MS, 300 * MS] {
            for answer in [|| Answer::status(503), Answer::lost] {
                let bench = one_of_three(slow, answer);
                let statuses = load.run(&bench, 3_000, get).await;
                let well = share(&statuses, 200);
                assert!(well >= 0.99, "{load:?}, {slow:?}: {well}");
                assert!(share_of_bad(&bench) < 0.1, "{load:?}, {slow:?}: {}", share_of_bad(&bench));
                let moved = bench.count_events(|e| matches!(e, chassis_core::Event::CircuitMoved { .. }));
                assert_eq!(moved, 0, "{load:?}, {slow:?}: its failures are its own");
            }
        }
    }
}

/// A call that may not be retried fails where it was sent, but at most the node's share of the calls does.
#[tokio::test(start_paused = true)]
async fn one_node_that_fails_at_once_does_not_open_the_services_circuit() {
    for load in LOADS {
        for nodes in [&["bad", "b"][..], &["bad", "b", "c"]] {
            let bench = Bench::new(|arrival| match &*arrival.address {
                "memory:bad" => Answer::status(503).after(MS),
                _ => Answer::ok("").after(20 * MS),
            });
            bench.registry.set("stock", Membership::known(nodes.iter().map(|id| weighed(id, 1))));
            let statuses = load.run(&bench, 3_000, post).await;
            let (well, failed) = (share(&statuses, 200), share(&statuses, 503));
            assert!(well >= 0.96, "{load:?}, {} nodes: {well}", nodes.len());
            assert!(well + failed > 0.999, "{load:?}: no call is refused");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_everywhere_still_opens_its_circuit() {
    for nodes in [&["a"][..], &["a", "b"], &["a", "b", "c", "d"]] {
        let bench = Bench::new(|_| Answer::status(503).after(MS));
        bench.registry.set("stock", Membership::known(nodes.iter().map(|id| weighed(id, 1))));
        bench.settle().await;
        let statuses = closed_loop(&bench.pipeline, 20, 1_000, post).await;
        let refused = statuses.iter().filter(|status| status.is_none()).count();
        assert!(refused > 850, "{} nodes: {refused} of 1000 were refused", nodes.len());
    }
    // The only node is not left out for its failures either.
    let bench = one_of_three(20 * MS, || Answer::status(503));
    bench.settle().await;
    for away in ["memory:b", "memory:c"] {
        bench.upstream.connect(away, chassis_core::Connection::TransientFailure);
    }
    let statuses = closed_loop(&bench.pipeline, 20, 1_000, post).await;
    assert!(share(&statuses, 503) < 0.15, "the rest was refused");
}

/// Nor does a node suffer whose peers' connections are lost or in doubt when its calls fail: then no other
/// node does well.
#[tokio::test(start_paused = true)]
async fn a_lone_node_that_loses_its_connection_opens_the_services_circuit() {
    let bench = Bench::new(|_| Answer::lost().after(10 * MS));
    bench.settle().await;
    let calls: Vec<_> = (0..30).map(|_| bench.spawn(post())).collect();
    settle().await;
    bench.upstream.connect("memory:a", chassis_core::Connection::TransientFailure);
    for call in calls {
        call.await.unwrap().unwrap_err();
    }
    check(&bench.post().await, chassis_core::Code::Unavailable, chassis_core::Reason::CircuitOpen);
}

/// A node of a wrong version or without its keys: no failure for breakers, and quick.
#[tokio::test(start_paused = true)]
async fn quick_refusals_draw_no_more_than_their_share() {
    let refusals: [fn() -> Answer; 5] = [
        || Answer::status(404),
        || Answer::status(401),
        || Answer::status(429),
        || Answer::trailers("", chassis_core::Code::Unimplemented),
        || Answer::status(503).with(chassis_core::testing::REASON, "OVERLOADED"),
    ];
    for load in LOADS {
        for slow in [20 * MS, 300 * MS] {
            for (i, refusal) in refusals.into_iter().enumerate() {
                let bench = one_of_three(slow, refusal);
                bench.stock(json!({ "retry": "off" }));
                load.run(&bench, 3_000, get).await;
                let share = share_of_bad(&bench);
                assert!(share <= 0.5, "{load:?}, {slow:?}, refusal {i}: {share} instead of a third");
                assert!(share >= 0.05, "{load:?}, {slow:?}, refusal {i}: {share}, it is no failure");
            }
        }
    }
}

/// If many calls get NOT_FOUND everywhere, no node is preferred for it.
#[tokio::test(start_paused = true)]
async fn refusals_that_all_nodes_give_change_no_share() {
    let bench = Bench::with(["a", "b", "c", "d"], |arrival| match arrival.total % 3 {
        0 => Answer::ok("").after(20 * MS),
        _ => Answer::status(404).after(MS),
    });
    closed_loop(&bench.pipeline, 64, 8_000, get).await;
    let all = arrived(&bench.upstream, |_| true);
    assert!(all.values().all(|n| n.abs_diff(2_000) < 200), "{all:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_recovers_gets_its_share_back() {
    let broken = Toggle::default();
    broken.set(true);
    let bench = {
        let broken = broken.clone();
        Bench::with(["bad", "b", "c"], move |arrival| {
            match arrival.address == "memory:bad" && broken.is_on() {
                true => Answer::status(503).after(MS),
                false => Answer::ok("").after(20 * MS),
            }
        })
    };
    open_loop(&bench.pipeline, 5_000, get).await;
    let while_broken = bench.upstream.calls("memory:bad");
    assert!(while_broken < 250, "{while_broken} of 5000, tried again every few seconds");
    broken.set(false);
    tokio::time::sleep(4 * S).await;
    open_loop(&bench.pipeline, 2_500, get).await;
    let before = bench.upstream.calls("memory:bad");
    open_loop(&bench.pipeline, 2_500, get).await;
    let share = (bench.upstream.calls("memory:bad") - before) as f64 / 2_500.0;
    assert!((0.2..0.4).contains(&share), "{share}");
}
