//! Rate limits of outgoing and incoming calls.
use std::{net::IpAddr, time::Duration};

use chassis_core::{
    Code, Error, Event, Invocation, Origin, Reason, RequestExt,
    clock::Instant,
    pipeline::Pipeline,
    testing::{Answer, CallBuilder},
};
use http::StatusCode;
use serde_json::{Value, json};

use crate::support::*;

fn out(limits: Value) -> Bench {
    let bench = Bench::new(|_| Answer::ok(""));
    bench.stock(json!({ "rate_limits": limits }));
    bench
}

/// The number of `calls` calls that are admitted now.
async fn through(bench: &Bench, calls: usize) -> usize {
    let mut through = 0;
    for _ in 0..calls {
        match bench.get().await {
            Ok(_) => through += 1,
            Err(error) => assert_eq!(error.reason(), Reason::RateLimited),
        }
    }
    through
}

#[tokio::test(start_paused = true)]
async fn lets_the_burst_out_and_then_the_rate() {
    let bench = out(json!([{ "name": "all", "rate": "10/s", "burst": 20 }]));
    assert_eq!(through(&bench, 50).await, 20);
    tokio::time::sleep(S).await;
    assert_eq!(through(&bench, 50).await, 10);
    let refused = bench.get().await;
    check(&refused, Code::ResourceExhausted, Reason::RateLimited);
    let error = refused.unwrap_err();
    assert_eq!((error.rule(), error.retry_after()), (Some("all"), Some(100 * MS)));
    assert_eq!((error.origin(), error.maybe_executed()), (Origin::Local, false));
    assert_eq!(error.message(), "rate limit `all` of 10/s, burst 20, is used up");
    assert_eq!(bench.upstream.total(), 30);
    let decided = |decision| {
        bench.metric(
            "chassis_rate_limit_decisions_total",
            &[("side", "client"), ("rule", "all"), ("decision", decision)],
        )
    };
    assert_eq!((decided("allowed"), decided("refused")), (30.0, 71.0));
    let events = bench.count_events(
        |e| matches!(e, Event::Refusing { reason: Reason::RateLimited, rule, .. } if rule == "all"),
    );
    assert_eq!(events, 2, "at most one a second");
}

#[tokio::test(start_paused = true)]
async fn nothing_gets_out_at_0() {
    for (rate, burst) in [("0/s", 10), ("10/s", 0)] {
        let bench = out(json!([{ "name": "none", "rate": rate, "burst": burst, "max_wait": "1h" }]));
        assert_eq!(through(&bench, 3).await, 0);
        let error = bench.get().await.unwrap_err();
        assert_eq!(error.retry_after(), None);
        assert_eq!(error.message(), format!("rate limit `none` admits nothing ({rate}, burst {burst})"));
    }
}

#[tokio::test(start_paused = true)]
async fn any_window_admits_no_more_than_burst_and_rate() {
    let bench = out(json!([{ "name": "all", "rate": "50/s", "burst": 10 }]));
    let random = chassis_core::Random::seeded(3);
    let began = Instant::now();
    let mut admitted = Vec::new();
    while began.elapsed() < 10 * S {
        if bench.get().await.is_ok() {
            admitted.push(began.elapsed());
        }
        tokio::time::sleep(random.between(Duration::ZERO, 12 * MS)).await;
    }
    for (i, from) in admitted.iter().enumerate() {
        for (n, to) in admitted[i..].iter().enumerate() {
            let most = 10.0 + 50.0 * (*to - *from).as_secs_f64() + 0.01;
            assert!((n + 1) as f64 <= most, "{} within {:?}", n + 1, *to - *from);
        }
    }
    assert!((480..=510).contains(&admitted.len()), "{}", admitted.len());
}

#[tokio::test(start_paused = true)]
async fn calls_may_wait_for_their_turn() {
    let bench = out(json!([{ "name": "all", "rate": "10/s", "burst": 1, "max_wait": "250ms" }]));
    let began = Instant::now();
    let calls: Vec<_> = (0..5).map(|_| bench.spawn(get())).collect();
    let mut took = Vec::new();
    for call in calls {
        took.push(call.await.unwrap().map(|_| began.elapsed().as_millis() / 10 * 10).map_err(|e| e.reason()));
    }
    let late = Err(Reason::RateLimited);
    assert_eq!(took, [Ok(0), Ok(100), Ok(200), late, late]);
    assert_eq!(bench.node("a").in_flight, 0);
    // No longer than its deadline: refused at once rather than late.
    let (began, timeout) = (Instant::now(), 50 * MS);
    check(&bench.run(get().timeout(timeout)).await, Code::ResourceExhausted, Reason::RateLimited);
    assert!(began.elapsed().is_zero());
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_waiting_gives_its_turn_back() {
    let bench = out(json!([{ "name": "all", "rate": "1/s", "burst": 1, "max_wait": "10s" }]));
    bench.stock(json!({ "timeout": "off", "rate_limits": [{ "name": "all", "rate": "1/s", "burst": 1, "max_wait": "10s" }] }));
    bench.get().await.unwrap();
    for _ in 0..20 {
        assert!(tokio::time::timeout(10 * MS, bench.get()).await.is_err());
    }
    let began = Instant::now();
    bench.get().await.unwrap();
    assert!(began.elapsed() < S, "no other call waits: {:?}", began.elapsed());
    // With other calls waiting behind, no token is returned, or two would go out at once.
    let (first, second) = (bench.spawn(get()), bench.spawn(get()));
    settle().await;
    first.abort();
    let third = bench.spawn(get());
    second.await.unwrap().unwrap();
    let at = Instant::now();
    third.await.unwrap().unwrap();
    assert!(at.elapsed() >= 990 * MS, "{:?}", at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn all_rules_that_match_have_to_admit() {
    let bench = out(json!([
        { "name": "service", "rate": "1/m", "burst": 10 },
        { "name": "each", "rate": "1/m", "burst": 2, "key": { "header": "x-user" } },
        { "name": "writes", "rate": "1/m", "burst": 1, "match": { "operation": "Post" } },
    ]));
    let of = |user: &str| get().header("x-user", user);
    let mut refused = Vec::new();
    for user in ["ann", "ann", "ann", "ann", "bob", "bob", "bob"] {
        refused.extend(bench.run(of(user)).await.err().map(|e| e.rule().unwrap().to_owned()));
    }
    assert_eq!(refused, ["each"; 3]);
    bench.post().await.unwrap();
    assert_eq!(bench.post().await.unwrap_err().rule(), Some("writes"));
    assert_eq!(bench.run(post().header("x-user", "eve")).await.unwrap_err().rule(), Some("writes"));
    // Tokens that earlier rules took for calls that later ones refused are returned: of 10, 4 and 1 are gone.
    let mut left = 0;
    while bench.run(of(&format!("user {left}"))).await.is_ok() {
        left += 1;
    }
    assert_eq!(left, 5);
    assert_eq!(bench.run(of("another")).await.unwrap_err().rule(), Some("service"));
}

#[tokio::test(start_paused = true)]
async fn a_changed_rate_keeps_the_level() {
    for key in [json!("global"), json!("operation")] {
        let limits = |rate, burst| json!([{ "name": "all", "rate": rate, "burst": burst, "key": key }]);
        let bench = out(limits("1/s", 100));
        assert_eq!(through(&bench, 90).await, 90);
        bench.stock(json!({ "rate_limits": limits("1000/s", 100) }));
        assert_eq!(through(&bench, 50).await, 10, "the bucket is as it was");
        bench.stock(json!({ "rate_limits": limits("1/s", 50) }));
        assert_eq!(through(&bench, 50).await, 0);
        bench.stock(json!({ "timeout": "1s", "rate_limits": limits("10/s", 50) }));
        tokio::time::sleep(S).await;
        // Emptied to -50 of 50 by the smaller burst, it fills up from there.
        assert_eq!(through(&bench, 50).await, 0);
        tokio::time::sleep(9 * S).await;
        assert_eq!(through(&bench, 100).await, 50);
    }
}

/// A server under `inbound` limits, whose handler always answers.
fn inside(inbound: Value) -> (Bench, Pipeline) {
    let bench = Bench::new(|_| Answer::ok(""));
    bench.apply(json!({ "inbound": inbound }));
    let server = server(&bench.runtime, |call: Invocation| async {
        Ok(call.answered(StatusCode::OK, Default::default(), Default::default()))
    });
    (bench, server)
}

type Change = fn(&mut Invocation);

async fn arrive(server: &Pipeline, change: impl FnOnce(&mut Invocation)) -> Result<(), Error> {
    let mut call = CallBuilder::post("orders", "Put").build();
    change(&mut call);
    run(server, call).await.map(drop)
}

#[tokio::test(start_paused = true)]
async fn servers_limit_callers_operations_headers_and_peers_separately() {
    let peer = |last: u8| Some(IpAddr::from([10, 0, 0, last]));
    let limit =
        |key: Value| json!({ "rate_limits": [{ "name": "l", "rate": "1/m", "burst": 1, "key": key }] });
    let keys: [(Value, Change, Change); 4] = [
        (
            json!("caller"),
            |call| call.target.caller = Some("billing;track=stable".parse().unwrap()),
            |call| call.target.caller = Some("stock".parse().unwrap()),
        ),
        (json!("operation"), |_| {}, |call| call.target.operation = "Get".into()),
        (
            json!({ "header": "x-user" }),
            |call| drop(call.metadata.insert("x-user", "ann".parse().unwrap())),
            |call| drop(call.metadata.insert("x-user", "bob".parse().unwrap())),
        ),
        (
            json!("peer"),
            |call| call.peer = Some([10, 0, 0, 1].into()),
            |call| call.peer = Some([10, 0, 0, 2].into()),
        ),
    ];
    for (key, one, other) in keys {
        let (bench, server) = inside(limit(key.clone()));
        arrive(&server, one).await.unwrap();
        let refused = arrive(&server, one).await.unwrap_err();
        assert_eq!((refused.reason(), refused.rule()), (Reason::RateLimited, Some("l")), "{key}");
        arrive(&server, other).await.unwrap();
        assert_eq!(bench.runtime.inspect().limits[0].keys, Some(2), "{key}");
    }
    // A caller with other labels is still the same caller.
    let (_bench, server) = inside(limit(json!("caller")));
    arrive(&server, |call| call.target.caller = Some("billing;track=a".parse().unwrap())).await.unwrap();
    arrive(&server, |call| call.target.caller = Some("billing;track=b".parse().unwrap())).await.unwrap_err();
    let (bench, server) = inside(limit(json!("global")));
    arrive(&server, |call| call.peer = peer(1)).await.unwrap();
    arrive(&server, |call| call.peer = peer(2)).await.unwrap_err();
    assert_eq!(
        bench.metric("chassis_rejected_total", &[("side", "server"), ("reason", "RATE_LIMITED")]),
        1.0
    );
}

#[tokio::test(start_paused = true)]
async fn keys_are_bounded() {
    let (bench, server) = inside(json!({ "rate_limits": [
        { "name": "l", "rate": "1/m", "burst": 1, "key": "peer", "max_keys": 32 },
    ] }));
    let mut through = 0;
    for n in 0..1_000u32 {
        let peer = IpAddr::from(n.to_be_bytes());
        through += usize::from(arrive(&server, |call| call.peer = Some(peer)).await.is_ok());
    }
    assert!(bench.runtime.inspect().limits[0].keys.unwrap() <= 32);
    assert!((17..=32 + 64).contains(&through), "those beyond the bound share 64 buckets: {through}");
}

#[tokio::test(start_paused = true)]
async fn operations_have_limits_of_their_own() {
    let (_bench, server) = inside(json!({
        "rate_limits": [{ "name": "all", "rate": "1/m", "burst": 1 }],
        "operations": { "Get": { "rate_limits": [] }, "Put": { "rate_limits": [{ "name": "puts", "rate": "1/m", "burst": 2 }] } },
    }));
    let arrive = async |operation: &'static str| {
        run(&server, CallBuilder::post("orders", operation).build())
            .await
            .map_err(|e| e.rule().unwrap().to_owned())
    };
    for _ in 0..5 {
        arrive("Get").await.unwrap();
    }
    arrive("Put").await.unwrap();
    arrive("Put").await.unwrap();
    assert_eq!(arrive("Put").await.unwrap_err(), "puts");
    arrive("Other").await.unwrap();
    assert_eq!(arrive("Another").await.unwrap_err(), "all");
}

#[tokio::test(start_paused = true)]
async fn what_makes_no_sense_is_refused_with_its_path() {
    let bench = out(json!([]));
    for (limits, path) in [
        (json!([{ "name": "a", "rate": "1/s", "burst": 1, "key": { "header": "no header" } }]), "[0].key"),
        (
            json!([{ "name": "a", "rate": "1/s", "burst": 1 }, { "name": "a", "rate": "2/s", "burst": 1 }]),
            "[1].name",
        ),
    ] {
        for (document, prefix) in [
            (
                json!({ "outbound": { "services": { "stock": { "rate_limits": limits } } } }),
                "outbound.services.stock",
            ),
            (json!({ "inbound": { "rate_limits": limits } }), "inbound"),
        ] {
            let problems = bench.try_apply(document).unwrap_err();
            assert_eq!(problems[0].path, format!("{prefix}.rate_limits{path}"), "{problems:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_makes_keys_up_shuts_no_other_out() {
    let (bench, server) = inside(json!({ "rate_limits": [
        { "name": "l", "rate": "1/m", "burst": 1, "key": { "header": "x-tenant" }, "max_keys": 3200 },
    ] }));
    let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
    let from = async |peer: &str, tenant: String| {
        let set = |call: &mut Invocation| {
            call.peer = ip(peer);
            call.metadata.insert("x-tenant", tenant.parse().unwrap());
        };
        arrive(&server, set).await.is_ok()
    };
    // One /64 of IPv6 is one peer.
    for n in 0..2_000 {
        from(&format!("2001:db8::{n:x}"), format!("made-up-{n}")).await;
    }
    // A quarter, which is 50 in each of 16 parts: a peer of 50 keys never needs more of one part.
    assert!(bench.runtime.inspect().limits[0].keys.unwrap() <= 800);
    for n in 0..50 {
        assert!(from("10.0.0.1", format!("tenant-{n}")).await, "{n} has a bucket of its own");
        assert!(!from("10.0.0.1", format!("tenant-{n}")).await);
    }
}
