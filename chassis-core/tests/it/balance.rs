//! The choice of a node for a call, and the result where there is none.
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use chassis_core::{
    Code,
    Connection::{Connecting, Idle, Ready, TransientFailure},
    Error, Event, HashKey, Reason, RequestExt,
    clock::Instant,
    layer::{
        balance::{Candidates, Picker},
        breaker::State,
    },
    registry::Membership,
    testing::{Answer, Arrival, ScriptedRegistry, Upstream, feed},
};
use serde_json::json;

use crate::support::*;

const NODES: [&str; 4] = ["a", "b", "c", "d"];

fn count(bench: &Bench, id: &str) -> usize {
    bench.upstream.calls(&format!("memory:{id}"))
}

/// Sends calls, 10 ms apart, until `so` holds.
async fn until(bench: &Bench, so: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if so() {
            return;
        }
        let _ = bench.get().await;
        tokio::time::sleep(10 * MS).await;
    }
    panic!("it never was");
}

fn fails_at(bad: &'static str) -> impl Fn(&chassis_core::testing::Arrival) -> Answer {
    move |arrival| if arrival.address == bad { Answer::status(500) } else { Answer::ok("") }
}

#[tokio::test(start_paused = true)]
async fn round_robin_is_even() {
    let bench = Bench::with(NODES, |_| Answer::ok(""));
    bench.stock(json!({ "balance": "round_robin" }));
    for _ in 0..400 {
        bench.get().await.unwrap();
    }
    for node in NODES {
        assert!(count(&bench, node).abs_diff(100) <= 1, "{node}: {}", count(&bench, node));
    }
}

#[tokio::test(start_paused = true)]
async fn round_robin_starts_anywhere() {
    let mut first = std::collections::HashSet::new();
    for seed in 0..40 {
        let bench = Bench::build(Upstream::new(|_| Answer::ok("")), |builder| {
            builder.random(chassis_core::Random::seeded(seed))
        });
        bench.registry.put("stock", NODES);
        bench.stock(json!({ "balance": "round_robin" }));
        first.insert(bench.get().await.unwrap().address.unwrap());
    }
    assert_eq!(first.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn random_and_p2c_are_fair_and_follow_weights() {
    for (balance, heavy) in [("random", 1_200), ("p2c", 1_200)] {
        let bench = Bench::with(NODES, |_| Answer::ok(""));
        bench.stock(json!({ "balance": balance }));
        for _ in 0..2_000 {
            bench.get().await.unwrap();
        }
        NODES.iter().for_each(|node| assert!(count(&bench, node).abs_diff(500) < 80, "{balance} {node}"));
        let weighed = |id, weight| ScriptedRegistry::instance("stock", id).with_weight(weight);
        let all = vec![weighed("e", 6), weighed("f", 2), weighed("g", 2), weighed("h", 0)];
        bench.registry.set("stock", Membership::known(all));
        settle().await;
        for _ in 0..2_000 {
            bench.get().await.unwrap();
        }
        assert_eq!(count(&bench, "h"), 0, "weight 0 takes no calls");
        assert!(count(&bench, "e").abs_diff(heavy) < 170, "{balance}: {}", count(&bench, "e"));
    }
}

#[tokio::test(start_paused = true)]
async fn weight_0_everywhere_is_no_weight_at_all() {
    let bench = Bench::new(|_| Answer::ok(""));
    let weightless = |id| ScriptedRegistry::instance("stock", id).with_weight(0);
    bench.registry.set("stock", Membership::known([weightless("x"), weightless("y")]));
    settle().await;
    for _ in 0..100 {
        bench.get().await.unwrap();
    }
    assert!(count(&bench, "x") > 20 && count(&bench, "y") > 20);
}

#[tokio::test(start_paused = true)]
async fn p2c_prefers_the_less_loaded_to_the_end_of_the_body() {
    let bench = Bench::with(["a", "b"], |_| {
        let (fed, body) = feed();
        tokio::spawn(async move { fed.closed().await });
        Answer::streaming(body)
    });
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(bench.send(get()).await.unwrap().into_body());
    }
    assert!(count(&bench, "a").abs_diff(10) <= 1, "{} of 20", count(&bench, "a"));
    assert_eq!(bench.node("a").in_flight + bench.node("b").in_flight, 20);
    let (to_a, to_b): (Vec<_>, Vec<_>) =
        streams.into_iter().partition(|body| body.call().node().unwrap().id() == "a");
    drop(to_a);
    assert_eq!((bench.node("a").in_flight, bench.node("b").in_flight), (0, to_b.len() as u32));
    let before = count(&bench, "b");
    for _ in 0..8 {
        streams_keep(bench.send(get()).await.unwrap());
    }
    assert_eq!(count(&bench, "b"), before, "all eight went to the idle one");
}

/// Keeps a stream open for the rest of the test.
fn streams_keep(reply: chassis_core::Reply) {
    tokio::spawn(async move {
        let _reply = reply;
        std::future::pending::<()>().await
    });
}

#[tokio::test(start_paused = true)]
async fn failures_weigh() {
    // One of four fails at once: least-loaded alone would send it the most calls.
    let bench = Bench::with(NODES, |arrival| match &*arrival.address {
        "memory:a" => Answer::status(500),
        _ => Answer::ok("").after(5 * MS),
    });
    bench.stock(json!({ "breaker": "off", "retry": "off" }));
    let mut calls = Vec::new();
    for _ in 0..2_000 {
        calls.push(bench.spawn(get()));
        tokio::time::sleep(MS).await;
    }
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let share = count(&bench, "a") as f64 / 2_000.0;
    assert!(share < 0.25, "{share}");
    assert!(bench.node("a").failure_share > 0.1);
    tokio::time::sleep(60 * S).await;
    assert!(bench.node("a").failure_share < 0.02, "it fades, so that the node comes back");
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_is_not_picked_and_probed_later() {
    for balance in ["p2c", "random", "round_robin"] {
        let bench = Bench::with(NODES, |arrival| {
            let bad = arrival.address == "memory:a" && arrival.nth < 6;
            if bad { Answer::status(500) } else { Answer::ok("") }
        });
        bench.stock(json!({ "balance": balance, "retry": "off",
            "breaker": { "scope": "endpoint", "consecutive": 5, "open": "5s", "probes": 2 } }));
        until(&bench, || count(&bench, "a") == 5).await;
        assert_eq!(bench.node("a").circuit, Some(State::Open));
        for _ in 0..200 {
            bench.get().await.unwrap();
        }
        assert_eq!(count(&bench, "a"), 5, "{balance}");
        tokio::time::sleep(5 * S).await; // the sixth call there is a probe, and fails
        until(&bench, || count(&bench, "a") == 6).await;
        assert_eq!(bench.node("a").circuit, Some(State::Open));
        tokio::time::sleep(5 * S).await;
        until(&bench, || bench.node("a").circuit == Some(State::Closed)).await;
        assert_eq!(bench.metric("chassis_breaker_open", &[("service", "stock"), ("scope", "endpoint")]), 0.0);
        assert_eq!(bench.metric("chassis_panic_picks_total", &[]), 0.0);
        let moves = bench.count_events(|e| matches!(e, Event::CircuitMoved { of, .. } if of == "a"));
        assert_eq!(moves, 5, "open, half-open, open, half-open, closed");
    }
}

#[tokio::test(start_paused = true)]
async fn never_more_than_half_are_out() {
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let bench = {
        let broken = broken.clone();
        Bench::with(NODES, move |arrival| {
            let bad = ["memory:a", "memory:b", "memory:c"].contains(&&*arrival.address);
            if bad && broken.load(std::sync::atomic::Ordering::SeqCst) {
                return Answer::status(500);
            }
            Answer::ok("")
        })
    };
    bench.stock(json!({ "balance": "random", "retry": "off",
        "breaker": { "scope": "endpoint", "consecutive": 3, "open": "5s", "probes": 1 } }));
    bench.settle().await;
    let open = || NODES.iter().filter(|n| bench.node(n).circuit == Some(State::Open)).count();
    until(&bench, || open() == 2).await;
    assert_eq!(bench.metric("chassis_panic_picks_total", &[]), 0.0, "half may be out");
    until(&bench, || open() == 3).await;
    let before: Vec<_> = NODES.iter().map(|n| count(&bench, n)).collect();
    for _ in 0..400 {
        bench.get().await.unwrap();
    }
    for (node, before) in NODES.iter().zip(before) {
        assert!(count(&bench, node) - before > 60, "three of four are too many to leave out: {node}");
    }
    let ignored = bench.metric("chassis_panic_picks_total", &[("service", "stock")]);
    assert!((200.0..=400.0).contains(&ignored), "only picks of open ones are counted: {ignored}");
    assert_eq!(bench.count_events(|e| matches!(e, Event::PanicPick { .. })), 1, "at most one a second");
    // And they recover from there, although circuits are ignored: probes go out when they are due.
    broken.store(false, std::sync::atomic::Ordering::SeqCst);
    tokio::time::sleep(5 * S).await;
    for _ in 0..200 {
        bench.get().await.unwrap();
    }
    assert!(NODES.iter().all(|n| bench.node(n).circuit == Some(State::Closed)));
    assert_eq!(bench.metric("chassis_breaker_open", &[]), 0.0);
}

/// At most half of the ready nodes may be left out: at exactly half circuits still count.
#[tokio::test(start_paused = true)]
async fn circuits_are_obeyed_at_exactly_half() {
    for (weights, bad) in [([1, 1, 1, 1], &["a", "b"][..]), ([3, 1, 1, 1], &["a"]), ([1, 1, 2, 0], &["c"])] {
        for balance in ["p2c", "random", "round_robin"] {
            let failing = Toggle::default();
            let bench = {
                let failing = failing.clone();
                Bench::new(move |arrival| {
                    let is_bad = bad.contains(&arrival.address.trim_start_matches("memory:"));
                    if is_bad && failing.is_on() { Answer::status(500) } else { Answer::ok("") }
                })
            };
            let weighed = |(id, weight)| ScriptedRegistry::instance("stock", id).with_weight(weight);
            let all = NODES.into_iter().zip(weights).map(weighed);
            bench.registry.set("stock", Membership::known(all));
            bench.stock(json!({ "balance": balance, "retry": "off",
                "breaker": { "scope": "endpoint", "consecutive": 3, "open": "60s" } }));
            bench.settle().await;
            failing.set(true);
            let open = || bad.iter().all(|node| bench.node(node).circuit == Some(State::Open));
            until(&bench, open).await;
            failing.set(false); // so that a call that does go there gives no reason to leave it out
            let before: usize = bad.iter().map(|node| count(&bench, node)).sum();
            for _ in 0..200 {
                bench.get().await.unwrap();
            }
            let after: usize = bad.iter().map(|node| count(&bench, node)).sum();
            let ignored = bench.metric("chassis_panic_picks_total", &[]);
            assert_eq!((after - before, ignored), (0, 0.0), "{balance}, {weights:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_one_is_never_out() {
    let bench = Bench::new(|_| Answer::status(500));
    bench.stock(json!({ "retry": "off", "breaker": { "scope": "endpoint", "consecutive": 1 } }));
    for _ in 0..20 {
        assert_eq!(bench.get().await.unwrap().status, 500);
    }
    assert_eq!((count(&bench, "a"), bench.node("a").circuit), (20, Some(State::Open)));
    bench.stock(json!({ "retry": "off", "breaker": { "scope": "endpoint", "force": "open" } }));
    check(&bench.get().await, Code::Unavailable, Reason::CircuitOpen); // held open by an override
    assert_eq!(count(&bench, "a"), 20);
}

#[tokio::test(start_paused = true)]
async fn half_is_reckoned_within_the_routed_subset() {
    let bench = Bench::new(|arrival| {
        if arrival.address.starts_with("memory:c") { Answer::status(500) } else { Answer::ok("") }
    });
    let labelled = |id: &str, track: &str| ScriptedRegistry::instance("stock", id).with_label("track", track);
    let all = [("c1", "canary"), ("s1", "stable"), ("s2", "stable"), ("s3", "stable")];
    bench.registry.set("stock", Membership::known(all.map(|(id, track)| labelled(id, track))));
    bench.stock(json!({ "retry": "off", "breaker": { "scope": "endpoint", "consecutive": 2 },
        "routes": [{ "name": "canary", "match": { "header": { "x-canary": "true" } }, "to": { "track": "canary" } }] }));
    for _ in 0..10 {
        bench.run(get().header("x-canary", "true")).await.unwrap();
    }
    assert_eq!(count(&bench, "c1"), 10, "the only canary is never out");
    for _ in 0..100 {
        bench.get().await.unwrap();
    }
    assert_eq!(count(&bench, "c1"), 10, "among all four it is");
}

#[tokio::test(start_paused = true)]
async fn a_full_node_is_not_picked() {
    let bench = Bench::with(["a", "b"], |_| {
        let (fed, body) = feed();
        tokio::spawn(async move { fed.closed().await });
        Answer::streaming(body)
    });
    bench.stock(json!({ "balance": "random", "concurrency": { "limit": 3, "scope": "endpoint" } }));
    let mut streams = Vec::new();
    for _ in 0..6 {
        streams.push(bench.send(get()).await.unwrap());
    }
    assert_eq!((count(&bench, "a"), count(&bench, "b")), (3, 3));
    let refused = bench.get().await;
    check(&refused, Code::Unavailable, Reason::Overloaded);
    assert!(refused.unwrap_err().message().contains("full"));
    streams.remove(0);
    streams.push(bench.send(get()).await.unwrap()); // permits are returned at the end of the body
    check(&bench.get().await, Code::Unavailable, Reason::Overloaded);
}

#[tokio::test(start_paused = true)]
async fn a_failing_connection_is_not_picked() {
    let bench = Bench::with(NODES, |_| Answer::ok(""));
    bench.settle().await;
    for node in ["memory:a", "memory:b", "memory:c"] {
        bench.upstream.connect(node, TransientFailure);
    }
    for _ in 0..50 {
        bench.get().await.unwrap();
    }
    assert_eq!(count(&bench, "d"), 50);
    bench.upstream.connect("memory:a", Ready);
    for _ in 0..50 {
        bench.get().await.unwrap();
    }
    assert!(count(&bench, "a") > 0 && count(&bench, "b") == 0);
}

#[tokio::test(start_paused = true)]
async fn idle_nodes_are_woken_and_waited_for() {
    let bench = Bench::build(Upstream::new(|_| Answer::ok("")).begin_as(Idle), |builder| builder);
    bench.registry.put("stock", ["a", "b"]);
    let call = bench.spawn(get());
    settle().await;
    assert!(bench.upstream.wakes("memory:a") > 0 && bench.upstream.wakes("memory:b") > 0);
    bench.upstream.connect("memory:a", Connecting);
    bench.upstream.connect("memory:b", TransientFailure);
    tokio::time::sleep(S).await;
    assert!(!call.is_finished());
    bench.upstream.connect("memory:a", Ready);
    assert_eq!(call.await.unwrap().unwrap().address.unwrap(), "memory:a");
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_connection_is_bounded() {
    let bench = Bench::build(Upstream::new(|_| Answer::ok("")).begin_as(Connecting), |builder| builder);
    bench.registry.put("stock", ["a"]);
    let began = Instant::now();
    let refused = bench.run(post().timeout(300 * MS)).await;
    check(&refused, Code::DeadlineExceeded, Reason::NoEndpoint);
    assert!(!refused.unwrap_err().maybe_executed(), "it never left");
    assert_eq!(began.elapsed(), 300 * MS);
}

#[tokio::test(start_paused = true)]
async fn refused_at_once_when_all_are_failing() {
    let bench = Bench::build(Upstream::new(|_| Answer::ok("")).begin_as(TransientFailure), |builder| builder);
    bench.registry.put("stock", ["a", "b"]);
    let began = Instant::now();
    let refused = bench.get().await;
    check(&refused, Code::Unavailable, Reason::NoEndpoint);
    assert!(refused.unwrap_err().message().contains("memory:a"));
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_is_refused_when_hope_is_gone() {
    let bench = Bench::build(Upstream::new(|_| Answer::ok("")).begin_as(Connecting), |builder| builder);
    bench.registry.put("stock", ["a"]);
    let call = bench.spawn(get());
    tokio::time::sleep(100 * MS).await;
    bench.upstream.connect("memory:a", TransientFailure);
    let began = Instant::now();
    check(&call.await.unwrap(), Code::Unavailable, Reason::NoEndpoint);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_failing_node_is_left_out_however_it_fails() {
    // Two of four never connect: no call fails.
    let bench = Bench::with(NODES, fails_at("memory:none"));
    bench.settle().await;
    bench.upstream.connect("memory:a", Idle);
    bench.upstream.connect("memory:b", Connecting);
    for _ in 0..100 {
        bench.get().await.unwrap();
    }
    assert_eq!(count(&bench, "a") + count(&bench, "b"), 0);
    assert!(bench.upstream.wakes("memory:a") > 0, "it is woken for those to come");
}

/// A picker that always takes the first available node.
#[derive(Clone)]
struct First;

impl Picker for First {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        (0..candidates.nodes().len()).find(|i| candidates.is_available(*i)).unwrap_or(usize::MAX)
    }
}

#[tokio::test(start_paused = true)]
async fn a_picker_of_ones_own() {
    let bench = Bench::build(Upstream::new(|_| Answer::ok("")), |b| b.picker("first", Arc::new(First)));
    bench.registry.put("stock", NODES);
    bench.stock(json!({ "balance": "first" }));
    for _ in 0..10 {
        assert_eq!(bench.get().await.unwrap().address.unwrap(), "memory:a");
    }
    bench.upstream.connect("memory:a", TransientFailure);
    assert_eq!(bench.get().await.unwrap().address.unwrap(), "memory:b");
    NODES.iter().for_each(|n| bench.upstream.connect(&format!("memory:{n}"), TransientFailure));
    check(&bench.get().await, Code::Unavailable, Reason::NoEndpoint);
    let stock = json!({ "outbound": { "services": { "stock": { "balance": "frist" } } } });
    let problems = bench.try_apply(stock).unwrap_err();
    assert_eq!(problems[0].path, "outbound.services.stock.balance");
    assert_eq!(problems[0].allowed, ["p2c", "random", "round_robin", "first"]);
}

/// Picks a node by the hash key of the call, and records what it sees of the call.
#[derive(Clone, Default)]
struct ByKey(Arc<Mutex<Vec<String>>>);

impl Picker for ByKey {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        let subject = candidates.subject();
        let labels = candidates.labels().map(ToString::to_string).unwrap_or_default();
        let tried: Vec<_> = candidates.tried().iter().map(|node| node.id().to_owned()).collect();
        self.0.lock().unwrap().push(format!(
            "{} {} {} {:?} [{labels}] {:?} {tried:?}",
            subject.target.operation,
            subject.method,
            subject.uri,
            subject.metadata.get("x-user"),
            candidates.hash_key(),
        ));
        let count = candidates.nodes().len();
        let home = candidates.hash_key().map_or(0, HashKey::get) as usize % count;
        (home..home + count).map(|i| i % count).find(|i| candidates.is_available(*i)).unwrap_or(home)
    }
}

#[tokio::test(start_paused = true)]
async fn a_picker_sees_the_subject_of_each_attempt() {
    let picker = ByKey::default();
    let seen = picker.0.clone();
    let fails = |arrival: &Arrival| match &*arrival.address {
        "memory:b" => Answer::status(503),
        _ => Answer::ok(""),
    };
    let bench = Bench::build(Upstream::new(fails), |b| b.picker("by-key", Arc::new(picker)));
    let labelled = |id| ScriptedRegistry::instance("stock", id).with_label("track", "new");
    bench.registry.set("stock", Membership::known(NODES.map(labelled)));
    bench.stock(json!({ "balance": "by-key", "breaker": "off" }));
    bench.settle().await;
    let mut call = get().uri("/stock?id=1").header("x-user", "ada").pin("track", "new").build();
    call.options.hash_key = Some(HashKey::of("user-2")); // node 1 of 4
    assert_eq!(run(&bench.pipeline, call).await.unwrap().address.unwrap(), "memory:c");
    let attempt = |tried: &str| {
        format!("Get GET /stock?id=1 Some(\"ada\") [track=new] {:?} {tried}", Some(HashKey::of("user-2")))
    };
    assert_eq!(*seen.lock().unwrap(), [attempt("[]"), attempt(r#"["b"]"#)], "the retry has the same key");
    bench.post().await.unwrap();
    assert_eq!(seen.lock().unwrap()[2], "Post POST / None [] None []");
}

#[tokio::test(start_paused = true)]
async fn errors_name_the_endpoint() {
    let bench = Bench::new(|_| Answer::error(Error::remote(Reason::ConnectionLost, "reset")));
    assert_eq!(bench.post().await.unwrap_err().endpoint(), Some("memory:a"));
}

/// A node that admits a call and refuses it at its circuit keeps no permit for it, and returns none that it
/// has not taken.
#[tokio::test(start_paused = true)]
async fn a_pick_that_a_circuit_refuses_leaves_the_count_alone() {
    for balance in ["p2c", "round_robin", "random"] {
        let (hold, fail) = (Toggle::default(), Toggle::default());
        let (holds, fails) = (hold.clone(), fail.clone());
        let bench = Bench::with(["a", "b"], move |arrival| match &*arrival.address {
            _ if holds.is_on() => Answer::hang(),
            "memory:a" if fails.is_on() => Answer::status(503),
            _ => Answer::ok(""),
        });
        let breaker =
            json!({ "scope": "endpoint", "min_calls": 1, "failure_ratio": "1%", "open": "60s", "probes": 1 });
        bench.stock(json!({ "retry": "off", "timeout": "off", "balance": balance, "breaker": breaker }));
        bench.settle().await;
        // One call is in flight at each, while the circuit of `a` opens.
        hold.set(true);
        let mut held = Vec::new();
        while ["a", "b"].iter().any(|node| bench.node(node).in_flight == 0) {
            held.push(bench.spawn(post()));
            settle().await;
        }
        let before = ["a", "b"].map(|node| bench.node(node).in_flight);
        hold.set(false);
        fail.set(true);
        while bench.node("a").circuit != Some(State::Open) {
            let _ = bench.post().await;
        }
        for _ in 0..200 {
            bench.post().await.unwrap();
            assert_eq!(["a", "b"].map(|node| bench.node(node).in_flight), before, "{balance}");
        }
        held.iter().for_each(|call| call.abort());
        settle().await;
        assert_eq!(["a", "b"].map(|node| bench.node(node).in_flight), [0, 0], "{balance}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_only_node_of_a_route_opens_the_circuit_of_its_service() {
    let bench = Bench::new(|arrival| {
        if arrival.address.starts_with("memory:c") { Answer::status(500) } else { Answer::ok("") }
    });
    let labelled = |id: &str, track: &str| ScriptedRegistry::instance("stock", id).with_label("track", track);
    let all = [("c1", "canary"), ("s1", "stable"), ("s2", "stable"), ("s3", "stable")];
    bench.registry.set("stock", Membership::known(all.map(|(id, track)| labelled(id, track))));
    bench.stock(json!({ "retry": "off", "breaker": { "scope": "operation", "min_calls": 8 },
        "routes": [{ "name": "canary", "match": { "operation": "Get" }, "to": { "track": "canary" } }] }));
    let mut refused = 0;
    for _ in 0..20 {
        refused += usize::from(bench.get().await.is_err());
    }
    assert_eq!((count(&bench, "c1"), refused), (8, 12), "others do well, and the calls can't go there");
    // Calls that may go to any node succeed without it.
    for _ in 0..100 {
        bench.post().await.unwrap();
    }
}
