//! Injected faults: which calls they match, their share, their effect, and their end.
use chassis_core::{
    Code, Error, Event, Invocation, Origin, Reason, RequestExt,
    clock::Instant,
    layer::breaker::State,
    protocol::Protocol,
    testing::{Answer, CallBuilder, TEST},
};
use http::StatusCode;
use serde_json::{Value, json};

use crate::support::*;

fn bench(faults: Value) -> Bench {
    let bench = Bench::with(["a", "b"], |_| Answer::ok(""));
    bench.apply(json!({ "faults": faults, "outbound": { "defaults": { "breaker": "off" } } }));
    bench
}

#[tokio::test(start_paused = true)]
async fn aborts_with_code_message_and_details() {
    for (abort, code, status, body) in [
        (json!({}), Code::Unavailable, 503, "injected by fault `f`"),
        (json!({ "code": "DATA_LOSS", "message": "gone" }), Code::DataLoss, 500, "gone"),
        (json!({ "status": 404 }), Code::NotFound, 404, "injected by fault `f`"),
        (json!({ "status": 418, "code": "ABORTED", "body": "tea" }), Code::Aborted, 418, "tea"),
    ] {
        let bench = bench(json!([{ "name": "f", "to": "stock", "abort": abort }]));
        let refused = bench.get().await;
        check(&refused, code, Reason::FaultInjected);
        let error = refused.unwrap_err();
        assert_eq!((error.rule(), error.origin(), error.maybe_executed()), (Some("f"), Origin::Local, false));
        let (status_sent, _, text) = TEST.refuse(&error); // in the form that a server's edge writes it
        assert_eq!((status_sent.as_u16(), drain(text).await.unwrap().0), (status, body.as_bytes().to_vec()));
        assert_eq!(bench.upstream.total(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn delays_are_fixed_or_from_a_range_and_end_with_the_call() {
    let bench = bench(json!([{ "name": "f", "to": "stock", "delay": "200ms" }]));
    let began = Instant::now();
    bench.get().await.unwrap();
    assert_eq!(began.elapsed(), 200 * MS);
    bench.apply(
        json!({ "faults": [{ "name": "f", "to": "stock", "delay": { "from": "100ms", "to": "300ms" } }] }),
    );
    let (mut least, mut most) = (S, MS);
    for _ in 0..200 {
        let began = Instant::now();
        bench.get().await.unwrap();
        (least, most) = (least.min(began.elapsed()), most.max(began.elapsed()));
    }
    assert!(
        least >= 100 * MS && least < 110 * MS && most > 290 * MS && most <= 301 * MS,
        "{least:?} {most:?}"
    );
    let began = Instant::now();
    let late = bench.run(get().timeout(50 * MS)).await;
    check(&late, Code::DeadlineExceeded, Reason::DeadlineExceeded);
    assert_eq!(began.elapsed(), 50 * MS);
    let calls = bench.upstream.total();
    bench.apply(json!({ "faults": [{ "name": "f", "to": "stock", "delay": "10ms", "abort": {} }] }));
    let began = Instant::now();
    check(&bench.get().await, Code::Unavailable, Reason::FaultInjected);
    assert_eq!((began.elapsed(), bench.upstream.total()), (10 * MS, calls), "first held up, then ended");
}

#[tokio::test(start_paused = true)]
async fn shares_are_drawn_independently() {
    let bench = bench(json!([{ "name": "f", "to": "stock", "share": "30%",
        "delay": { "from": "1s", "to": "1s", "share": "50%" }, "abort": { "code": "ABORTED" } }]));
    let (mut delayed, mut aborted, mut both) = (0, 0, 0);
    for _ in 0..2_000 {
        let began = Instant::now();
        let failed = bench.get().await.is_err();
        let late = began.elapsed() >= S;
        delayed += i32::from(late);
        aborted += i32::from(failed);
        both += i32::from(late && failed);
    }
    // Three standard deviations of 1000, 600 and 300.
    assert!(
        (933..1067).contains(&delayed) && (538..662).contains(&aborted) && (252..348).contains(&both),
        "{delayed} {aborted} {both}"
    );
    let count = |kind| bench.metric("chassis_faults_injected_total", &[("rule", "f"), ("kind", kind)]) as i32;
    assert_eq!((count("delay"), count("abort")), (delayed, aborted));
    assert!(bench.count_events(|e| matches!(e, Event::FaultInjected { .. })) > 0);
    for (share, expected) in [("0%", 0), ("100%", 100)] {
        let bench = self::bench(json!([{ "name": "f", "to": "stock", "share": share, "abort": {} }]));
        let mut failed = 0;
        for _ in 0..100 {
            failed += i32::from(bench.get().await.is_err());
        }
        assert_eq!(failed, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn only_calls_that_match_are_hit() {
    let bench = bench(json!([
        { "name": "ops", "to": "stock", "match": { "operation": "Slow*" }, "abort": {} },
        { "name": "vip", "to": "stock", "match": { "header": { "x-vip": "true" } }, "abort": { "code": "ABORTED" } },
        { "name": "other", "to": "billing", "abort": {} },
        { "name": "in", "abort": {} },
    ]));
    bench.get().await.unwrap();
    assert_eq!(bench.run(CallBuilder::get("stock", "SlowGet")).await.unwrap_err().rule(), Some("ops"));
    let both = bench.run(CallBuilder::get("stock", "SlowGet").header("x-vip", "true")).await;
    assert_eq!(both.unwrap_err().rule(), Some("ops"), "the first to abort does");
    assert_eq!(bench.run(get().header("x-vip", "true")).await.unwrap_err().rule(), Some("vip"));
}

#[tokio::test(start_paused = true)]
async fn at_the_call_retries_hide_nothing() {
    let bench =
        bench(json!([{ "name": "f", "to": "stock", "abort": { "code": "UNAVAILABLE" }, "share": "50%" }]));
    let mut failed = 0;
    for _ in 0..400 {
        failed += u32::from(bench.get().await.is_err());
    }
    assert!((160..240).contains(&failed), "{failed}");
    assert_eq!(bench.metric("chassis_retry_attempts_total", &[]), 0.0);
}

#[tokio::test(start_paused = true)]
async fn at_the_attempt_it_is_judged_like_the_upstreams_answer() {
    let fault = json!([{ "name": "f", "to": "stock", "abort": { "code": "UNAVAILABLE" }, "share": "50%", "at": "attempt" }]);
    let bench = bench(fault.clone());
    bench.apply(json!({ "faults": fault, "outbound": { "defaults":
        { "breaker": "off", "retry": { "attempts": 5, "budget": "off", "backoff": "1us" } } } }));
    let mut failed = 0;
    for _ in 0..400 {
        failed += u32::from(bench.get().await.is_err());
    }
    assert!((4..25).contains(&failed), "each attempt draws anew, one in 32 fails: {failed}");
    assert_eq!((bench.node("a").calls + bench.node("b").calls) as usize, bench.upstream.total());
    assert_eq!(bench.upstream.total() as u32, 400 - failed);
    // A call that must not be executed twice is not retried: the attempt may have been executed.
    let error = loop {
        if let Err(error) = bench.post().await {
            break error;
        }
    };
    assert_eq!((error.origin(), error.maybe_executed()), (Origin::Remote, true));
    bench.apply(json!({ "faults": [{ "name": "f", "to": "stock", "abort": { "code": "UNAVAILABLE" }, "at": "attempt" }],
        "outbound": { "defaults": { "retry": "off", "breaker": { "consecutive": 3, "scope": "service" } } } }));
    for _ in 0..3 {
        let _ = bench.get().await;
    }
    check(&bench.get().await, Code::Unavailable, Reason::CircuitOpen);
    assert_eq!(bench.runtime.inspect().circuits[0].state, State::Open);
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_it_is_to_end_through_any_number_of_versions() {
    let faults = |n: u32| {
        json!({ "faults": [
        { "name": "f", "to": "stock", "abort": {}, "until": "1h" },
        { "name": format!("other {n}"), "to": "stock", "delay": "1us" },
    ] })
    };
    let bench = bench(json!([]));
    bench.apply(faults(0));
    for n in 1..6 {
        tokio::time::sleep(599 * S).await;
        check(&bench.get().await, Code::Unavailable, Reason::FaultInjected);
        bench.apply(faults(n)); // the history is kept
    }
    tokio::time::sleep(606 * S).await;
    bench.get().await.unwrap();
    bench.apply(
        json!({ "faults": [{ "name": "f", "to": "stock", "abort": {}, "until": "2020-01-01T00:00:00Z" }] }),
    );
    bench.get().await.unwrap();
    bench.apply(
        json!({ "faults": [{ "name": "f", "to": "stock", "abort": {}, "until": "2999-01-01T00:00:00Z" }] }),
    );
    check(&bench.get().await, Code::Unavailable, Reason::FaultInjected);
}

#[tokio::test(start_paused = true)]
async fn servers_inject_them_too() {
    let bench = bench(json!([
        { "name": "in", "match": { "operation": "Put" }, "abort": { "code": "INTERNAL" } },
        { "name": "slow", "match": { "operation": "Get" }, "delay": "100ms", "at": "attempt" },
        { "name": "out", "to": "stock", "abort": {} },
    ]));
    let server = server(&bench.runtime, |call: Invocation| async {
        Ok::<_, Error>(call.answered(StatusCode::OK, Default::default(), Default::default()))
    });
    let send = |operation| run(&server, CallBuilder::post("orders", operation).build());
    assert_eq!(send("Put").await.unwrap_err().rule(), Some("in"));
    let began = Instant::now();
    send("Get").await.unwrap();
    assert_eq!(began.elapsed(), 100 * MS);
    send("Other").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_makes_no_sense_is_refused_with_its_path() {
    let bench = bench(json!([]));
    for (faults, path) in [
        (json!([{ "name": "f" }]), "faults[0]"),
        (json!([{ "name": "f", "delay": { "from": "2s", "to": "1s" } }]), "faults[0]"),
        (json!([{ "name": "f", "abort": { "status": 99 } }]), "faults[0]"),
        (json!([{ "name": "f", "abort": {} }, { "name": "f", "abort": {} }]), "faults[1].name"),
        (json!([{ "name": "f", "abort": {}, "match": "no-match" }]), "faults[0].match"),
    ] {
        let problems = bench.try_apply(json!({ "faults": faults })).unwrap_err();
        assert_eq!(problems[0].path, path, "{problems:?}");
    }
}
