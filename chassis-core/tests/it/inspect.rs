//! The inspection of a running process.
use chassis_core::{
    layer::breaker::State,
    registry::Membership,
    testing::{Answer, CallBuilder, ScriptedRegistry},
};
use serde_json::json;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn everything_is_there_and_can_be_written_down() {
    let bench = Bench::new(|arrival| match arrival.nth {
        0..10 => Answer::ok("").after(8 * MS),
        _ => Answer::status(500),
    });
    let a = ScriptedRegistry::instance("stock", "a").with_label("track", "stable");
    let a = a.with_version("1.4").with_zone("eu-1");
    let idle = ScriptedRegistry::instance("stock", "idle").with_weight(0);
    bench.registry.set("stock", Membership::known([a, idle]));
    bench.apply(json!({
        "inbound": { "rate_limits": [{ "name": "in", "rate": "100/s", "burst": 5, "key": "peer" }] },
        "outbound": { "services": { "stock": {
            "retry": "off",
            "breaker": { "consecutive": 5, "open": "5s" },
            "concurrency": 7,
            "rate_limits": [{ "name": "out", "rate": "1/s", "burst": 100 }],
            "routes": [{ "name": "stable", "to": { "track": "stable" } }],
            "operations": { "Own": { "breaker": { "min_calls": 3 }, "concurrency": 2 } },
        } } },
    }));
    for _ in 0..15 {
        bench.get().await.unwrap();
    }
    bench.run(CallBuilder::get("stock", "Own")).await.unwrap();
    let seen = bench.runtime.inspect();
    assert_eq!((&*seen.service, seen.version, &*seen.hash), ("orders", 1, "hash"));
    let stock = &seen.services[0];
    assert_eq!((&*stock.name, stock.protocol, stock.nodes.len()), ("stock", "test", 2));
    let node = &stock.nodes[0];
    assert_eq!(
        (&*node.id, &*node.address, &*node.connection, node.circuit),
        ("a", "memory:a", "ready", None)
    );
    assert_eq!((node.calls, node.successes, node.in_flight), (16, 10, 0));
    let labels: Vec<_> = node.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["track=stable", "version=1.4", "zone=eu-1"]);
    assert!(node.p50.is_some() && node.p99.unwrap() >= 7 * MS && node.failure_share > 0.0);
    assert_eq!((stock.nodes[1].weight, stock.nodes[1].calls), (0, 0), "also who takes no calls");
    assert_eq!((&*stock.rules[0].name, stock.rules[0].hits), ("stable", 16));
    let circuit = |of: &str| seen.circuits.iter().find(|c| c.of == of).unwrap();
    assert_eq!((circuit("stock").state, circuit("stock").failures), (State::Open, 5));
    assert!(circuit("stock").retry_after > Some(4_400 * MS) && circuit("stock").retry_after <= Some(5 * S));
    assert_eq!((circuit("Own").state, circuit("Own").calls), (State::Closed, 1));
    assert_eq!(seen.circuits.len(), 2, "one for each, however many operations share it");
    let limits: Vec<_> =
        seen.limits.iter().map(|l| (&*l.service, &*l.rule, &*l.rate, l.burst, l.available, l.keys)).collect();
    assert_eq!(
        limits,
        [("orders", "in", "100/s", 5, None, Some(0)), ("stock", "out", "1/s", 100, Some(84), None)]
    );
    let mut bounds: Vec<_> = seen.concurrency.iter().map(|c| (c.limit, c.in_use)).collect();
    bounds.sort_unstable();
    assert_eq!(bounds, [(2, 0), (7, 0)]);
    let written = serde_json::to_value(&seen).unwrap();
    assert_eq!((&written["services"][0]["nodes"][0]["id"], &written["circuits"][0]["of"]).0, "a");
}

#[tokio::test(start_paused = true)]
async fn of_nothing_there_is_nothing() {
    let runtime = chassis_core::Runtime::builder("orders").build().unwrap();
    let seen = runtime.inspect();
    assert_eq!((seen.version, seen.services.len(), seen.limits.len(), seen.circuits.len()), (0, 0, 0, 0));
}
