//! Routes: the first rule that matches decides.
use chassis_core::{
    Code, Reason, RequestExt,
    registry::{Instance, Membership},
    testing::{Answer, CallBuilder, ScriptedRegistry},
};
use serde_json::json;

use crate::support::*;

/// Three stable instances of version 1, and one canary of version 2.
fn bench() -> Bench {
    let bench = Bench::new(|arrival| Answer::ok(arrival.address.clone()));
    bench.registry.set(
        "stock",
        Membership::known([
            instance("s1", "stable", "1"),
            instance("s2", "stable", "1"),
            instance("s3", "stable", "1"),
            instance("c1", "canary", "2"),
        ]),
    );
    bench
}

fn instance(id: &str, track: &str, version: &str) -> Instance {
    let instance = ScriptedRegistry::instance("stock", id).with_label("track", track);
    instance.with_version(version)
}

/// The number of `calls` calls that went to the canary.
async fn canaries(bench: &Bench, calls: usize, call: impl Fn() -> CallBuilder) -> usize {
    let mut canaries = 0;
    for _ in 0..calls {
        let answered = bench.run(call()).await.unwrap();
        canaries += usize::from(answered.address.unwrap() == "memory:c1");
    }
    canaries
}

fn hits(bench: &Bench) -> Vec<(String, u64)> {
    let stock = bench.runtime.inspect().services.remove(0);
    stock.rules.into_iter().map(|rule| (rule.name, rule.hits)).collect()
}

#[tokio::test(start_paused = true)]
async fn rules_are_tried_in_order_and_counted() {
    let bench = bench();
    bench.apply(json!({
        "matches": { "beta": { "header": { "x-canary": "true" } } },
        "outbound": { "services": { "stock": { "routes": [
            { "name": "beta", "match": "beta", "to": { "track": "canary" } },
            { "name": "old", "match": { "operation": "Old*" }, "to": { "version": "1" } },
            { "name": "rest", "to": { "track": "stable" } },
            { "name": "never", "to": { "track": "canary" } },
        ] } } },
    }));
    assert_eq!(canaries(&bench, 10, || get().header("x-canary", "true")).await, 10);
    assert_eq!(
        canaries(&bench, 10, || CallBuilder::get("stock", "OldGet").header("x-canary", "true")).await,
        10
    );
    assert_eq!(canaries(&bench, 10, || CallBuilder::get("stock", "OldGet")).await, 0);
    assert_eq!(canaries(&bench, 10, || get().header("x-canary", "false")).await, 0);
    let expected = [("beta", 20), ("old", 10), ("rest", 10), ("never", 0)].map(|(n, h)| (n.to_owned(), h));
    assert_eq!(hits(&bench), expected);
    assert_eq!(bench.metric("chassis_route_decisions_total", &[("service", "stock"), ("rule", "old")]), 10.0);
}

#[tokio::test(start_paused = true)]
async fn without_a_match_calls_go_anywhere() {
    let bench = bench();
    bench.stock(json!({ "routes": [
        { "name": "beta", "match": { "header": { "x-canary": "true" } }, "to": { "track": "canary" } },
    ] }));
    let canaries = canaries(&bench, 400, get).await;
    assert!((60..140).contains(&canaries), "{canaries} of 400 over four nodes");
}

#[tokio::test(start_paused = true)]
async fn splits_follow_their_shares() {
    // Within three standard deviations; the weights need not sum to 100.
    for (stable, canary, calls, off) in [
        (95, 5, 10_000, 0.7),
        (19, 1, 2_000, 1.5),
        (50, 50, 2_000, 3.4),
        (1, 3, 2_000, 2.9),
        (0, 7, 100, 0.0),
    ] {
        let bench = bench();
        bench.stock(json!({ "routes": [
            { "name": "split", "split": { "stable": stable, "canary": canary }, "by": "track" },
        ] }));
        let share = canaries(&bench, calls, get).await as f64 * 100.0 / calls as f64;
        let expected = f64::from(canary) * 100.0 / f64::from(stable + canary);
        assert!((share - expected).abs() <= off, "{stable}:{canary} gave {share} %");
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_subset_follows_its_fallback() {
    let bench = bench();
    let route = |fallback: serde_json::Value| {
        json!({ "routes": [
            { "name": "gone", "to": { "track": "gone" }, "fallback": fallback },
            { "name": "lost", "to": { "track": "lost" } },
            { "name": "canary", "to": { "track": "canary" } },
        ] })
    };
    bench.stock(route(json!("any")));
    assert!((1..100).contains(&canaries(&bench, 100, get).await));
    bench.stock(route(json!(["lost", "canary"])));
    assert_eq!(canaries(&bench, 20, get).await, 20);
    for none in [json!("none"), json!(["lost"]), json!([])] {
        bench.stock(route(none));
        let refused = bench.get().await;
        check(&refused, Code::Unavailable, Reason::NoRoute);
        let error = refused.unwrap_err();
        assert_eq!(error.rule(), Some("gone"));
        assert_eq!(error.message(), "stock: no instance has track=gone");
    }
    let stock = route(json!("any"));
    bench.stock(json!({ "routes": [{ "name": "gone", "to": { "track": "gone" } }] }));
    assert!(bench.get().await.is_ok(), "any is the default: {stock}");
}

#[tokio::test(start_paused = true)]
async fn subsets_follow_the_registry() {
    let bench = bench();
    bench.stock(json!({ "routes": [{ "name": "c", "to": { "track": "canary" }, "fallback": "none" }] }));
    assert_eq!(canaries(&bench, 10, get).await, 10);
    let stable = |id| instance(id, "stable", "1");
    bench.registry.set("stock", Membership::known(["s1", "s2", "s3"].map(stable)));
    settle().await;
    check(&bench.get().await, Code::Unavailable, Reason::NoRoute);
    let canary = instance("s1", "canary", "1");
    bench.registry.set("stock", Membership::known([canary, stable("s2"), stable("s3")]));
    settle().await;
    assert_eq!(bench.get().await.unwrap().address.unwrap(), "memory:s1");
}

#[tokio::test(start_paused = true)]
async fn callers_can_pin_labels() {
    let bench = bench();
    bench.stock(json!({ "routes": [{ "name": "rest", "to": { "track": "stable" } }] }));
    assert_eq!(canaries(&bench, 10, || get().pin("track", "canary")).await, 10);
    assert_eq!(canaries(&bench, 10, || get().pin("track", "canary").pin("version", "2")).await, 10);
    let refused = bench.run(get().pin("track", "canary").pin("version", "1")).await;
    check(&refused, Code::Unavailable, Reason::NoRoute);
    assert_eq!(refused.unwrap_err().rule(), Some("pinned"));
    assert_eq!(hits(&bench), [("rest".to_owned(), 0)]);
}

#[tokio::test(start_paused = true)]
async fn rules_of_the_defaults_hold_for_services_not_named() {
    let bench = bench();
    bench.apply(json!({
        "matches": { "beta": { "header": { "x-canary": "true" } } },
        "outbound": { "defaults": {
            "routes": [
                { "name": "beta", "match": "beta", "to": { "track": "canary" } },
                { "name": "rest", "to": { "track": "stable" } },
            ],
            "operations": { "Slow": { "timeout": "1ms" } },
        } },
    }));
    assert_eq!(canaries(&bench, 10, || get().header("x-canary", "true")).await, 10);
    assert_eq!(canaries(&bench, 10, get).await, 0);
    let policy = bench.runtime.policies().get().outbound(&"stock".into(), "Slow");
    assert_eq!(policy.timeout(), Some(MS));
}

#[tokio::test(start_paused = true)]
async fn the_caller_is_named_with_its_labels() {
    let labels = chassis_core::LabelSet::from_iter([("track", "stable"), ("zone", "eu")]);
    let upstream = chassis_core::testing::Upstream::new(|_| Answer::ok(""));
    let bench = Bench::build(upstream, |builder| builder.labels(labels));
    bench.registry.put("stock", ["a"]);
    bench.get().await.unwrap();
    assert_eq!(bench.upstream.last().metadata["x-chassis-caller"], "orders;track=stable;zone=eu");
}

#[tokio::test(start_paused = true)]
async fn what_makes_no_sense_is_refused_with_its_path() {
    let bench = bench();
    let route = |rule: serde_json::Value| json!({ "routes": [{ "name": "a", "to": { "x": "y" } }, rule] });
    for (rule, path, message) in [
        (
            json!({ "name": "a", "to": { "x": "y" } }),
            "[1].name",
            "a second rule is called `a`; each rule needs its own name",
        ),
        (json!({ "name": "b" }), "[1]", "missing `to` or `split`: where the rule leads"),
        (
            json!({ "name": "b", "split": { "x": 1 } }),
            "[1]",
            "missing `by`: the label that the split is about",
        ),
        (
            json!({ "name": "b", "split": {}, "by": "x" }),
            "[1].split",
            "a split needs a share above 0, as in { stable: 95, canary: 5 }",
        ),
        (
            json!({ "name": "b", "split": { "x": 0 }, "by": "x" }),
            "[1].split",
            "a split needs a share above 0, as in { stable: 95, canary: 5 }",
        ),
        (
            json!({ "name": "b", "to": { "x": "y" }, "split": { "x": 1 }, "by": "x" }),
            "[1].to",
            "a rule has either `to`, or `split` with `by`",
        ),
        (
            json!({ "name": "b", "to": { "x": "y" }, "fallback": ["c"] }),
            "[1].fallback",
            "no rule is called `c`; there are a, b",
        ),
    ] {
        let problems =
            bench.try_apply(json!({ "outbound": { "services": { "stock": route(rule) } } })).unwrap_err();
        let first = (problems[0].path.as_str(), problems[0].message.as_str());
        assert_eq!(
            (problems.len(), first),
            (1, (&*format!("outbound.services.stock.routes{path}"), message))
        );
    }
    let unknown = route(json!({ "name": "b", "match": "beta", "to": { "x": "y" } }));
    let problems = bench.try_apply(json!({ "outbound": { "services": { "stock": unknown } } })).unwrap_err();
    assert!(problems[0].path.starts_with("outbound.services.stock.routes[1].match"), "{problems:?}");
}
