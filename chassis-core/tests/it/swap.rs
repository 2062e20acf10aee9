//! Settings that change while calls are in flight.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use chassis_core::{
    CallError, Code, Error, Invocation, Reason, Sections, Stage, Stages,
    layer::breaker::State,
    settings::Settings,
    testing::{Answer, CallBuilder, Upstream, share_state},
};
use http::StatusCode;
use serde_json::json;

use crate::support::*;

/// Two settings that always change together: the timeout is `version` seconds, and the attempts are `version`
/// modulo 5 plus 1.
fn pair(version: u64) -> serde_json::Value {
    let timeout = format!("{}s", version + 1);
    json!({
        "inbound": { "timeout": timeout, "total_timeout": timeout },
        "outbound": { "services": { "stock": {
            "timeout": timeout, "total_timeout": timeout, "retry": { "attempts": version % 5 + 1 },
        } } },
    })
}

/// Panics if a call sees two versions.
fn consistent(call: &Invocation) -> u64 {
    let policy = call.policy();
    let timeout = policy.timeout().unwrap();
    assert_eq!(policy.total_timeout(), Some(timeout), "version {}", policy.version());
    assert_eq!(policy.version(), timeout.as_secs());
    if let Some(retry) = policy.retry() {
        assert_eq!(u64::from(retry.attempts.get()), (policy.version() - 1) % 5 + 1);
    }
    assert_eq!(call.deadline(), Some(call.started() + timeout));
    policy.version()
}

/// A layer at `stage` that counts calls, and those of them which are under another version than before.
fn look<E: CallError>(stages: &mut Stages, stage: Stage<E>, [seen, torn]: [&Arc<AtomicUsize>; 2]) {
    let (seen, torn) = (seen.clone(), torn.clone());
    stages.add_fn(stage, "same", None, move |mut call: Invocation, next| {
        let (seen, torn) = (seen.clone(), torn.clone());
        async move {
            let version = consistent(&call);
            let before = call.extensions.insert(version);
            torn.fetch_add(usize::from(before.is_some_and(|before| before != version)), SeqCst);
            tokio::task::yield_now().await; // a version may be applied in between
            seen.fetch_add(1, SeqCst);
            next.run(call).await
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_versions_under_load_fail_no_call() {
    let (seen, torn) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut stages = Stages::default();
    let looks = [&seen, &torn];
    for stage in [Stage::Call, Stage::ServerCall, Stage::Handler] {
        look(&mut stages, stage, looks);
    }
    for stage in [Stage::Attempt, Stage::Node] {
        look(&mut stages, stage, looks);
    }
    // The first attempt of every third call fails.
    let upstream = Upstream::new(|arrival| match arrival.metadata.contains_key("x-chassis-attempt") {
        false if arrival.total % 3 == 0 => Answer::refused(),
        _ => Answer::ok("well"),
    });
    let bench = Arc::new(Bench::build(upstream, |builder| builder.stages(stages)));
    bench.registry.put("stock", ["a", "b", "c"]);
    bench.apply(pair(0));
    let handler = server(&bench.runtime, |call: Invocation| async move {
        consistent(&call);
        Ok::<_, Error>(call.answered(StatusCode::OK, Default::default(), Default::default()))
    });
    let over = Arc::new(AtomicBool::new(false));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (bench, handler, over) = (bench.clone(), handler.clone(), over.clone());
        callers.spawn(async move {
            let (mut calls, mut failed) = (0, Vec::new());
            while !over.load(SeqCst) {
                let policy = bench.runtime.policies().get().outbound(&"stock".into(), "Get");
                let attempts = policy.retry().unwrap().attempts;
                match bench.get().await {
                    Ok(_) => {}
                    // A refusal may reach the caller only where the settings allow no retry, after a resend.
                    Err(error) if attempts.get() > 1 => failed.push(error),
                    Err(_) => {}
                }
                failed.extend(run(&handler, CallBuilder::post("orders", "Put").build()).await.err());
                calls += 1;
            }
            (calls, failed)
        });
    }
    for version in 1..=1_000 {
        bench.apply(pair(version));
        tokio::task::yield_now().await;
    }
    over.store(true, SeqCst);
    let mut calls = 0;
    for (made, failed) in callers.join_all().await {
        calls += made;
        assert!(failed.iter().all(|e| e.reason() == Reason::StreamRefused), "{failed:?}");
    }
    assert!(calls > 100, "{calls}");
    assert!(seen.load(SeqCst) > 500);
    assert_eq!(torn.load(SeqCst), 0);
    assert_eq!(bench.runtime.inspect().version, 1_001);
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_under_the_version_it_began_with() {
    let bench = Bench::new(|arrival| if arrival.nth == 0 { Answer::hang() } else { Answer::ok("") });
    bench.stock(json!({ "timeout": "2s", "retry": "off" }));
    let call = bench.spawn(get());
    tokio::time::sleep(S).await;
    bench.stock(json!({ "timeout": "1ms", "retry": "off" }));
    tokio::time::sleep(900 * MS).await;
    assert!(!call.is_finished());
    check(&call.await.unwrap(), Code::DeadlineExceeded, Reason::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn state_outlives_versions() {
    // Circuits of service, operation and node, a bucket, a count, a budget, a failure weight, metrics: for
    // names in the settings, and for names that were only called.
    for named in [true, false] {
        let bench = Bench::with(["a", "b"], |a| match &*a.operation {
            "Bad" => Answer::status(500),
            "Hang" => Answer::hang(),
            _ => Answer::ok(""),
        });
        let settings = |n: u32, breaker: serde_json::Value| {
            let stock = json!({
                "timeout": format!("{}s", 1_000 + n),
                "breaker": breaker,
                "retry": { "attempts": 2, "budget": { "share": "0%", "min": "1/s" } },
                "concurrency": 10,
                "rate_limits": [{ "name": "all", "rate": "1/h", "burst": 1_000 + n }],
                "operations": { format!("Unrelated{n}"): { "timeout": "1s" } },
            });
            match named {
                true => json!({ "outbound": { "services": { "stock": stock, format!("other{n}"): {} } } }),
                false => {
                    json!({ "outbound": { "defaults": stock, "services": { format!("other{n}"): {} } } })
                }
            }
        };
        let by_operation =
            |open: u32| json!({ "scope": "operation", "consecutive": 3, "open": format!("{open}s") });
        bench.apply(settings(0, by_operation(100)));
        for _ in 0..3 {
            bench.run(CallBuilder::get("stock", "Bad")).await.unwrap();
        }
        bench.get().await.unwrap();
        let _hanging = bench.spawn(CallBuilder::get("stock", "Hang"));
        settle().await;
        let before = bench.runtime.inspect();
        let nodes = |i: &chassis_core::inspect::Inspection| {
            i.services[0].nodes.iter().map(|n| (n.calls, n.in_flight)).collect::<Vec<_>>()
        };
        for n in 1..=20 {
            bench.apply(settings(n, by_operation(100 + n)));
        }
        let after = bench.runtime.inspect();
        check(&bench.run(CallBuilder::get("stock", "Bad")).await, Code::Unavailable, Reason::CircuitOpen);
        let open = |i: &chassis_core::inspect::Inspection| {
            i.circuits.iter().filter(|c| c.state == State::Open).count()
        };
        assert_eq!((open(&before), open(&after)), (1, 1), "named: {named}");
        assert_eq!(nodes(&before), nodes(&after));
        assert!(after.services[0].nodes.iter().any(|n| n.failure_share > 0.01));
        let stock = |i: &chassis_core::inspect::Inspection| {
            i.limits.iter().find(|l| l.service == "stock").unwrap().available
        };
        assert_eq!((stock(&before), stock(&after)), (Some(995), Some(1_015)));
        let used = |i: &chassis_core::inspect::Inspection| {
            i.concurrency.iter().find(|c| c.service == "stock").unwrap().in_use
        };
        assert_eq!((used(&before), used(&after)), (1, 1));
        assert_eq!(bench.metric("chassis_in_flight", &[("service", "stock")]), 1.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_nodes_circuit_outlives_versions() {
    let bench =
        Bench::with(
            ["a", "b"],
            |a| if a.address == "memory:a" { Answer::status(500) } else { Answer::ok("") },
        );
    let settings = |n: u32| {
        bench.stock(json!({ "retry": "off", "timeout": format!("{}s", n + 1), "balance": "round_robin",
            "breaker": { "scope": "endpoint", "consecutive": 3, "open": "1h" } }));
    };
    settings(0);
    for _ in 0..40 {
        bench.get().await.unwrap();
        tokio::time::sleep(S).await;
    }
    for n in 1..10 {
        settings(n);
        assert_eq!(bench.node("a").circuit, Some(State::Open));
    }
    assert_eq!(bench.get().await.unwrap().address.unwrap(), "memory:b");
}

#[tokio::test(start_paused = true)]
async fn a_version_applies_whole_or_not_at_all() {
    let bench = Bench::new(|_| Answer::hang());
    bench.stock(json!({ "timeout": "1s", "retry": "off", "rate_limits": [{ "name": "l", "rate": "1/h", "burst": 2 }] }));
    let bad = json!({
        "outbound": { "services": { "stock": {
            "timeout": "9s",
            "rate_limits": [{ "name": "l", "rate": "1000/s", "burst": 1_000 }],
            "balance": "fastest",
            "routes": [{ "name": "r" }, { "name": "r", "to": {} }],
        } } },
        "faults": [{ "name": "f" }],
    });
    let problems = bench.try_apply(bad).unwrap_err();
    let mut paths: Vec<_> = problems.iter().map(|p| &*p.path).collect();
    paths.sort_unstable();
    let stock = "outbound.services.stock";
    let expected = [
        "faults[0]".to_owned(),
        format!("{stock}.balance"),
        format!("{stock}.routes[0]"),
        format!("{stock}.routes[1].name"),
    ];
    assert_eq!(paths, expected, "all that is wrong, at once");
    assert_eq!(bench.runtime.inspect().version, 1);
    let began = tokio::time::Instant::now();
    check(&bench.get().await, Code::DeadlineExceeded, Reason::DeadlineExceeded);
    assert_eq!(began.elapsed(), S);
    check(&bench.get().await, Code::DeadlineExceeded, Reason::DeadlineExceeded);
    check(&bench.get().await, Code::ResourceExhausted, Reason::RateLimited); // the bucket refills as before
}

#[tokio::test(start_paused = true)]
async fn asking_whether_settings_would_do_changes_nothing() {
    let bench = Bench::new(|_| Answer::ok(""));
    bench.stock(json!({ "timeout": "1s" }));
    let good = settings(json!({ "outbound": { "services": { "stock": { "timeout": "2s" } } } }));
    let bad = settings(json!({ "outbound": { "services": { "stock": { "balance": "x" } } } }));
    bench.runtime.check(&good).unwrap();
    assert_eq!(bench.runtime.check(&bad).unwrap_err().len(), 1);
    let policy = bench.runtime.policies().get().outbound(&"stock".into(), "Get");
    assert_eq!((policy.version(), policy.timeout()), (1, Some(Duration::from_secs(1))));
}

#[tokio::test(start_paused = true)]
async fn nothing_piles_up_over_a_thousand_versions() {
    let bench = Bench::new(|_| Answer::ok(""));
    let document = |n: u32| {
        json!({
            "inbound": { "rate_limits": [{ "name": format!("in{n}"), "rate": "1/s", "burst": 1 }] },
            "outbound": { "services": { "stock": {
                "breaker": { "scope": "operation" },
                "concurrency": { "limit": 5, "scope": "operation" },
                "rate_limits": [{ "name": format!("out{n}"), "rate": "1000/s", "burst": 1_000 }],
                "operations": { format!("Op{n}"): { "concurrency": 3 } },
            }, format!("service{n}"): { "balance": "round_robin" } } },
            "faults": [{ "name": format!("f{n}"), "delay": "1us", "until": "1s" }],
        })
    };
    for n in 0..10 {
        bench.apply(document(n));
        bench.get().await.unwrap();
    }
    let cells = bench.runtime.inspect().cells;
    for n in 10..1_000 {
        bench.apply(document(n));
        if n % 100 == 0 {
            bench.get().await.unwrap();
        }
        let mut bad = document(n);
        bad["outbound"]["services"]["stock"]["balance"] = json!(format!("bad{n}"));
        bad["outbound"]["services"]["stock"]["rate_limits"][0]["name"] = json!(format!("refused{n}"));
        bench.try_apply(bad).unwrap_err();
    }
    assert_eq!(bench.runtime.inspect().cells, cells);
    assert_eq!(
        bench.runtime.policies().get().all().iter().filter(|p| p.service().starts_with("service")).count(),
        1
    );
}

/// Calls `look` with the policy of `operation` on each of more threads than there are cache slots.
fn policies_of_threads(bench: &Bench, operation: &str) -> Vec<Arc<chassis_core::Policy>> {
    let policies = bench.runtime.policies().get();
    std::thread::scope(|scope| {
        let outbound = || policies.outbound(&"stock".into(), operation);
        (0..20).map(|_| scope.spawn(outbound).join().unwrap()).collect()
    })
}

#[tokio::test(start_paused = true)]
async fn threads_have_copies_of_a_policy_and_share_its_state() {
    let bench = Bench::new(|_| Answer::ok(""));
    bench.stock(json!({
        "concurrency": 5,
        "rate_limits": [{ "name": "all", "rate": "1000/s", "burst": 1_000 }],
        "routes": [{ "name": "all", "to": {} }],
    }));
    let all = policies_of_threads(&bench, "Get");
    assert!(all.iter().any(|policy| !Arc::ptr_eq(policy, &all[0])));
    for policy in &all {
        let [one, other] = [policy, &all[0]];
        assert_eq!(one.operation(), "Get");
        assert_eq!((one.version(), one.timeout()), (other.version(), other.timeout()));
        assert!(share_state(one, other));
        assert!(one.concurrency().is_some() && one.retry().is_some());
    }
    // Whichever copy of the rule matches, the call is counted once.
    bench.get().await.unwrap();
    assert_eq!(bench.runtime.inspect().services[0].rules[0].hits, 1);
}

#[tokio::test(start_paused = true)]
async fn copies_of_policies_are_bounded() {
    let bench = Bench::new(|_| Answer::ok(""));
    bench.stock(json!({}));
    let mut all = std::collections::HashSet::new();
    let kept: Vec<_> = (0..500).flat_map(|n| policies_of_threads(&bench, &format!("Op{n}"))).collect();
    all.extend(kept.iter().map(Arc::as_ptr));
    assert!((1_000..=500 + 1_024).contains(&all.len()), "{}", all.len());
}

/// Settings that change while a call is in flight apply to later calls: a call reads its policy once.
#[tokio::test(start_paused = true)]
async fn a_call_reads_its_settings_once() {
    use std::sync::{Arc, Mutex, OnceLock};

    use chassis_core::{
        CallError, Invocation, Runtime, Stage, Stages,
        testing::{Answer, Upstream},
    };

    /// The runtime, where in it to swap, and which versions were seen where.
    type World = (Arc<OnceLock<Runtime>>, &'static str, Arc<Mutex<Vec<(String, u64)>>>);

    fn look<E: CallError>(stages: &mut Stages, stage: Stage<E>, (runtime, swap_at, seen): &World) {
        let (runtime, swap_at, seen, stage_name) =
            (runtime.clone(), *swap_at, seen.clone(), format!("{stage:?}"));
        stages.add_fn(stage, "swap", None, move |call: Invocation, next| {
            seen.lock().unwrap().push((stage_name.clone(), call.policy().version()));
            if stage_name == swap_at {
                let other = json!({ "outbound": { "services": { "stock": { "retry": "off" } } } });
                runtime.get().unwrap().apply(&settings(other), 7, "other").unwrap();
            }
            async move { next.run(call).await }
        });
    }

    for swap_at in ["Call", "Attempt", "Node"] {
        for per_try in ["off", "1s"] {
            let world: World = (Arc::default(), swap_at, Arc::default());
            let mut stages = Stages::default();
            look(&mut stages, Stage::Call, &world);
            look(&mut stages, Stage::Attempt, &world);
            look(&mut stages, Stage::Node, &world);
            let (runtime, _, seen) = world;
            let bench =
                Bench::build(Upstream::new(|_| Answer::status(503)), |builder| builder.stages(stages));
            assert!(runtime.set(bench.runtime.clone()).is_ok());
            bench.registry.put("stock", ["a"]);
            bench.stock(
                json!({ "breaker": "off", "retry": { "attempts": 3, "budget": "off", "per_try": per_try } }),
            );
            bench.get().await.unwrap();
            // Three attempts, as in the version at its start, visible to each layer.
            let seen = std::mem::take(&mut *seen.lock().unwrap());
            let (version, attempts) = (seen[0].1, seen.iter().filter(|(stage, _)| stage == "Node").count());
            assert_eq!((attempts, bench.upstream.total()), (3, 3), "{swap_at:?}, per_try {per_try}");
            assert!(version != 7 && seen.iter().all(|(_, other)| *other == version), "{seen:?}");
            // The next call uses the new ones.
            bench.get().await.unwrap();
            assert_eq!(bench.upstream.total(), 4);
        }
    }
}

/// A section with the number of its version.
struct Numbered(u64);

fn with_section(document: serde_json::Value, number: u64) -> Settings {
    let sections = Sections::default().with("numbered", Arc::new(Numbered(number)));
    Settings { sections, ..settings(document) }
}

/// A handler takes the timeout of its call and, on either side of other work, a section that always changes with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_section_and_a_rule_are_of_one_version_throughout_a_call() {
    let bench = Arc::new(Bench::new(|_| Answer::ok("")));
    let apply = {
        let runtime = bench.runtime.clone();
        move |version| runtime.apply(&with_section(pair(version), version), version + 1, "hash").unwrap()
    };
    apply(0);
    let section = bench.runtime.section::<Numbered>("numbered").unwrap();
    let torn = Arc::new(AtomicUsize::new(0));
    let handler = {
        let (section, torn) = (section.clone(), torn.clone());
        server(&bench.runtime, move |call: Invocation| {
            let (section, torn) = (section.clone(), torn.clone());
            async move {
                let number = call.policy().timeout().unwrap().as_secs() - 1;
                for _ in 0..3 {
                    torn.fetch_add(usize::from(section.get().0 != number), SeqCst);
                    tokio::task::yield_now().await; // a version may be applied in between
                }
                Ok::<_, Error>(call.answered(StatusCode::OK, Default::default(), Default::default()))
            }
        })
    };
    let over = Arc::new(AtomicBool::new(false));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (handler, over) = (handler.clone(), over.clone());
        callers.spawn(async move {
            let mut calls = 0;
            while !over.load(SeqCst) {
                run(&handler, CallBuilder::post("orders", "Put").build()).await.unwrap();
                calls += 1;
            }
            calls
        });
    }
    for version in 1..=1_000 {
        apply(version);
        tokio::task::yield_now().await;
    }
    over.store(true, SeqCst);
    let calls: u64 = callers.join_all().await.into_iter().sum();
    assert!(calls > 100, "{calls}");
    assert_eq!((torn.load(SeqCst), section.get().0), (0, 1_000));
}

/// Two services of one program have sections of the same name and type.
#[tokio::test(start_paused = true)]
async fn a_handler_reads_the_newest_section_of_another_service() {
    let [own, other] = [(); 2].map(|()| Bench::new(|_| Answer::ok("")));
    own.runtime.apply(&with_section(json!({}), 1), 1, "hash").unwrap();
    other.runtime.apply(&with_section(json!({}), 10), 1, "hash").unwrap();
    let sections = [&own, &other].map(|bench| bench.runtime.section::<Numbered>("numbered").unwrap());
    let runtimes = [own.runtime.clone(), other.runtime.clone()];
    let handler = server(&own.runtime, move |call: Invocation| {
        let (sections, runtimes) = (sections.clone(), runtimes.clone());
        async move {
            for runtime in runtimes {
                let newer = 5 + runtime.section::<Numbered>("numbered").unwrap().newest().0;
                runtime.apply(&with_section(json!({}), newer), 2, "hash").unwrap();
            }
            assert_eq!(sections.map(|section| section.get().0), [1, 15]);
            Ok::<_, Error>(call.answered(StatusCode::OK, Default::default(), Default::default()))
        }
    });
    run(&handler, CallBuilder::post("orders", "Put").build()).await.unwrap();
}
