//! Retries: which calls are retried, how often, when, and on which node.
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use chassis_core::{
    Code,
    Connection::TransientFailure,
    Context, Error, Event, Invocation, Reason, RequestExt,
    clock::Instant,
    registry::Membership,
    testing::{Answer, Arrival, CallBuilder, REASON, RETRY_AFTER, ScriptedRegistry, Upstream, feed},
};
use http::StatusCode;
use serde_json::{Value, json};

use crate::support::*;

/// A script that always gives the same answer.
type Script = fn() -> Answer;

/// Two nodes and no breaker, with these retry settings.
fn bench(retry: Value, script: impl Fn(&Arrival) -> Answer + Send + Sync + 'static) -> Bench {
    let bench = Bench::with(["a", "b"], script);
    bench.stock(json!({ "breaker": "off", "retry": retry }));
    bench
}

fn retries(bench: &Bench, outcome: &str) -> f64 {
    bench.metric("chassis_retry_attempts_total", &[("service", "stock"), ("outcome", outcome)])
}

/// The number of attempts that reach an upstream that always gives `answer`.
async fn attempts(retry: Value, call: CallBuilder, answer: Script) -> usize {
    let bench = bench(retry, move |_| answer());
    let _ = bench.run(call).await;
    bench.upstream.total()
}

#[tokio::test(start_paused = true)]
async fn only_what_does_no_harm() {
    let refused_over_there = || Answer::status(503).with(REASON, "OVERLOADED");
    let ambiguous: [Script; 3] =
        [Answer::lost, || Answer::status(503), || Answer::trailers("", Code::Unavailable)];
    for answer in ambiguous {
        assert_eq!(attempts(json!({}), get(), answer).await, 2, "idempotent by method");
        assert_eq!(attempts(json!({}), post(), answer).await, 1, "may have been executed");
        assert_eq!(
            attempts(json!({}), post().idempotent(), answer).await,
            2,
            "the caller marked it as idempotent"
        );
        assert_eq!(attempts(json!({ "when": "always" }), post(), answer).await, 2);
        assert_eq!(attempts(json!("off"), get(), answer).await, 1);
        assert_eq!(attempts(json!({ "attempts": 1 }), get(), answer).await, 1);
        assert_eq!(attempts(json!({}), get().no_retry(), answer).await, 1);
    }
    assert_eq!(attempts(json!({}), post(), refused_over_there).await, 2, "not executed");
    let bench = bench(json!({}), |_| Answer::lost());
    bench.post().await.unwrap_err();
    assert_eq!(retries(&bench, "unsafe"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn idempotent_by_settings_and_by_declaration() {
    let bench = Bench::build(Upstream::new(|_| Answer::lost()), |builder| {
        builder.idempotent(["Declared".to_owned()])
    });
    bench.registry.put("stock", ["a", "b"]);
    bench.stock(json!({ "operations": { "Set": { "idempotent": true }, "Unset": { "idempotent": false } } }));
    for (operation, attempts) in [("Declared", 2), ("Set", 2), ("Unset", 1), ("Other", 1)] {
        let before = bench.upstream.total();
        bench.run(CallBuilder::post("stock", operation)).await.unwrap_err();
        assert_eq!(bench.upstream.total() - before, attempts, "{operation}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_is_listed() {
    let cases: [(Value, Script, usize); 8] = [
        (json!({}), || Answer::status(500), 1),
        (json!({}), || Answer::status(502), 2),
        (json!({}), || Answer::status(404), 1),
        (json!({ "on": ["500"] }), || Answer::status(500), 2),
        (json!({ "on": ["4xx"] }), || Answer::status(404), 2),
        (json!({ "on": ["DATA_LOSS"] }), || Answer::trailers("", Code::DataLoss), 2),
        (json!({ "on": ["INTERNAL"] }), || Answer::trailers("", Code::DataLoss), 1),
        (json!({ "on": [] }), Answer::lost, 1),
    ];
    for (retry, answer, expected) in cases {
        assert_eq!(attempts(retry.clone(), get(), answer).await, expected, "{retry}");
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_are_capped_and_numbered() {
    for most in 1..=5 {
        assert_eq!(attempts(json!({ "attempts": most }), get(), Answer::lost).await, most);
    }
    let bench = bench(json!({ "attempts": 4 }), |arrival| match arrival.total {
        3 => Answer::ok("well"),
        _ => Answer::status(503),
    });
    assert_eq!(bench.get().await.unwrap().text(), "well");
    let numbers: Vec<_> =
        bench.upstream.arrivals().iter().map(|a| a.metadata.get("x-chassis-attempt").cloned()).collect();
    assert_eq!(numbers, [None, Some(1.into()), Some(2.into()), Some(3.into())]);
    assert_eq!(retries(&bench, "retried"), 3.0);
    assert_eq!(bench.metric("chassis_attempts_total", &[("service", "stock")]), 4.0);
    let stock = json!({ "outbound": { "services": { "stock": { "retry": { "attempts": 6 } } } } });
    let problems = bench.try_apply(stock).unwrap_err();
    assert_eq!(problems[0].path, "outbound.services.stock.retry.attempts");
    assert_eq!(problems[0].message, "6 attempts are too many; it goes from 1 to 5");
}

#[tokio::test(start_paused = true)]
async fn the_last_answer_is_the_callers_whatever_it_is() {
    let bench = bench(json!({}), |arrival| match arrival.total {
        0 => Answer::lost(),
        _ => Answer::status(503).with(http::header::SERVER, "it"),
    });
    let answered = bench.get().await.unwrap();
    assert_eq!((answered.status.as_u16(), &answered.metadata["server"]), (503, &"it".parse().unwrap()));
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_attempt_may_have_done_stays_said() {
    for answer in [Answer::lost as Script, || Answer::status(503)] {
        let bench = Arc::new(bench(json!({ "when": "always", "backoff": "100ms" }), move |_| answer()));
        let call = bench.spawn(post());
        settle().await;
        for node in ["memory:a", "memory:b"] {
            bench.upstream.connect(node, chassis_core::Connection::TransientFailure);
        }
        let result = call.await.unwrap();
        check(&result, Code::Unavailable, Reason::NoEndpoint); // which never left the process
        assert!(result.unwrap_err().maybe_executed());
    }
}

#[tokio::test(start_paused = true)]
async fn each_try_has_its_time_and_all_of_them_theirs() {
    let hang = |_: &Arrival| Answer::hang();
    let bench = bench(json!({ "attempts": 3, "per_try": "100ms", "backoff": "1us" }), hang);
    let began = Instant::now();
    let result = bench.get().await;
    check(&result, Code::DeadlineExceeded, Reason::DeadlineExceeded);
    let error = result.unwrap_err();
    assert_eq!((error.message(), error.endpoint().is_some()), ("no answer within `per_try`", true));
    assert_eq!((bench.upstream.total(), began.elapsed().as_millis() / 10), (3, 30));
    assert_eq!(bench.node("a").calls + bench.node("b").calls, 3, "late attempts are blamed");
    // The call's own deadline is not the attempt's: no retry follows it.
    let bench = self::bench(json!({ "attempts": 5, "per_try": "100ms", "backoff": "1us" }), hang);
    let began = Instant::now();
    let result = bench.run(get().timeout(250 * MS)).await;
    check(&result, Code::DeadlineExceeded, Reason::DeadlineExceeded);
    assert_eq!((bench.upstream.total(), began.elapsed()), (3, 250 * MS));
    let left: Vec<_> =
        bench.upstream.arrivals().iter().map(|a| a.metadata["x-request-timeout-ms"].clone()).collect();
    assert_eq!(left[0], "250");
    assert!(left[2].to_str().unwrap().parse::<u64>().unwrap() <= 50, "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_and_are_never_longer_than_the_call() {
    let bench = bench(json!({ "attempts": 5, "backoff": "100ms" }), |_| Answer::lost());
    bench.stock(json!({ "breaker": "off", "timeout": "off", "retry": { "attempts": 5, "backoff": "100ms", "budget": "off" } }));
    let mut most = [Duration::ZERO; 4];
    for _ in 0..200 {
        let before = bench.upstream.total();
        bench.get().await.unwrap_err();
        let at: Vec<_> = bench.upstream.arrivals()[before..].iter().map(|a| a.at).collect();
        (0..4).for_each(|i| most[i] = most[i].max(at[i + 1] - at[i]));
    }
    for (most, bound) in most.into_iter().zip([100, 200, 400, 800]) {
        assert!(most <= (bound + 1) * MS && most > bound * MS * 9 / 10, "{most:?} of {bound} ms");
    }
    bench.stock(json!({ "breaker": "off", "timeout": "1s", "retry": { "backoff": "1000s" } }));
    let began = Instant::now();
    check(&bench.get().await, Code::Unavailable, Reason::ConnectionLost);
    assert!(began.elapsed() < S, "the answer there is, rather than none later");
    assert_eq!(retries(&bench, "too_late"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_budget_bounds_what_retries_add() {
    let bench = bench(json!({ "budget": { "share": "50%", "min": "0/s" } }), |_| Answer::lost());
    for _ in 0..100 {
        bench.get().await.unwrap_err();
    }
    assert_eq!(bench.upstream.total(), 150);
    assert_eq!((retries(&bench, "retried"), retries(&bench, "budget")), (50.0, 50.0));
    assert!(bench.count_events(|e| matches!(e, Event::RetryBudgetExhausted { .. })) > 0);
    // One budget for all operations of the service, which a new version of the settings keeps.
    bench.stock(json!({ "breaker": "off", "retry": { "budget": { "share": "50%", "min": "0/s" } },
        "operations": { "Other": { "retry": { "attempts": 5 } } } }));
    let before = bench.upstream.total();
    bench.run(CallBuilder::get("stock", "Other")).await.unwrap_err();
    assert_eq!(bench.upstream.total() - before, 1);
    bench.stock(json!({ "breaker": "off", "retry": { "budget": "off" } }));
    let before = bench.upstream.total();
    for _ in 0..100 {
        bench.get().await.unwrap_err();
    }
    assert_eq!(bench.upstream.total() - before, 200);
}

/// A streaming request costs the budget the same as any other.
#[tokio::test(start_paused = true)]
async fn a_budget_bounds_retries_of_streams_too() {
    for per_try in ["off", "1s"] {
        let retry = json!({ "budget": { "share": "50%", "min": "0/s" }, "per_try": per_try });
        let bench = bench(retry, |_| Answer::lost());
        for _ in 0..100 {
            let (up, body) = feed();
            assert!(up.send("part"));
            drop(up);
            bench.run(get().streaming(body)).await.unwrap_err();
        }
        assert_eq!(bench.upstream.total(), 150, "per_try {per_try}");
        assert_eq!((retries(&bench, "retried"), retries(&bench, "budget")), (50.0, 50.0));
    }
}

/// A server that has sent a head has worked for the call: the error that ends its answer never denies it.
#[tokio::test(start_paused = true)]
async fn what_is_reset_after_the_head_was_executed() {
    for (retry, reason) in [json!("off"), json!({ "attempts": 2 }), json!({ "attempts": 2, "per_try": "1s" })]
        .into_iter()
        .flat_map(|retry| {
            [Reason::StreamRefused, Reason::ConnectFailed, Reason::Cancelled].map(|r| (retry.clone(), r))
        })
    {
        let bench = bench(retry.clone(), move |_| {
            let (down, body) = feed();
            assert!(down.send("part"));
            tokio::spawn(async move {
                tokio::time::sleep(MS).await;
                down.fail(Error::remote(reason, "reset").with_maybe_executed(false))
            });
            Answer::streaming(body)
        });
        let mut body = bench.send(post()).await.unwrap().into_body();
        frame(&mut body).await.unwrap().unwrap().unwrap();
        let error = frame(&mut body).await.unwrap().unwrap_err();
        assert!(error.maybe_executed() && !error.unsent(), "{reason:?}, retry {retry}: {error:?}");
        assert_eq!(bench.upstream.total(), 1, "{reason:?}, retry {retry}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_backend_is_not_stormed() {
    // 500 calls a second for a minute, to a server that fails them all, by errors and by answers.
    let bench = bench(json!({}), |a| if a.total % 2 == 0 { Answer::lost() } else { Answer::status(503) });
    let began = Instant::now();
    let mut calls = 0;
    let mut running = tokio::task::JoinSet::new();
    while began.elapsed() < 60 * S {
        let (pipeline, call) = (bench.pipeline.clone(), get().build());
        running.spawn(async move { run(&pipeline, call).await.is_ok() });
        calls += 1;
        tokio::time::sleep(2 * MS).await;
        while running.try_join_next().is_some() {}
    }
    running.join_all().await;
    let ratio = bench.upstream.total() as f64 / f64::from(calls);
    assert!((29_000..=30_001).contains(&calls), "{calls}");
    assert!((1.15..=1.25).contains(&ratio), "{ratio}");
}

#[tokio::test(start_paused = true)]
async fn a_retry_goes_elsewhere() {
    for answer in
        [Answer::lost as Script, || Answer::status(503), Answer::refused, Answer::hang, Answer::unsent]
    {
        for balance in ["p2c", "round_robin", "random"] {
            let bench = Bench::with(["a", "b", "c", "d"], move |_| answer());
            let retry = json!({ "attempts": 4, "budget": "off", "per_try": "10ms" });
            bench.stock(json!({ "breaker": "off", "balance": balance, "retry": retry }));
            let _ = bench.get().await;
            let mut visited: Vec<_> = bench.upstream.arrivals().into_iter().map(|a| a.address).collect();
            let total = visited.len();
            visited.sort();
            visited.dedup();
            // A call that never left is resent once more: the fifth time there is no new node.
            assert_eq!((visited.len(), total.min(4)), (4, 4), "{balance}: {total}");
        }
    }
    let bench = Bench::new(|arrival| if arrival.nth == 0 { Answer::lost() } else { Answer::ok("") });
    bench.get().await.unwrap(); // with no other node, to the same one
}

/// One node and no breaker, with these retry settings.
fn alone(retry: Value, script: impl Fn(&Arrival) -> Answer + Send + Sync + 'static) -> Bench {
    let bench = Bench::new(script);
    bench.stock(json!({ "breaker": "off", "retry": retry }));
    bench
}

#[tokio::test(start_paused = true)]
async fn pushback_is_obeyed() {
    let bench = alone(json!({}), |arrival| match arrival.total {
        0 => Answer::status(503).with(RETRY_AFTER, "2"),
        _ => Answer::ok(""),
    });
    bench.get().await.unwrap();
    let arrivals = bench.upstream.arrivals();
    let pause = arrivals[1].at - arrivals[0].at;
    assert!(pause >= 2 * S && pause <= 2_500 * MS, "{pause:?}");
    for (after, outcome) in
        [("never", "pushed_back"), ("6", "too_late"), ("18446744073709551615", "too_late")]
    {
        let bench = alone(json!({}), move |_| Answer::status(503).with(RETRY_AFTER, after));
        assert_eq!(bench.get().await.unwrap().status, 503);
        assert_eq!((bench.upstream.total(), retries(&bench, outcome)), (1, 1.0), "{after}");
    }
    let error = || Error::remote(Reason::ConnectionLost, "busy").with_retry_after(3 * S);
    let bench = alone(json!({}), move |a| if a.total == 0 { Answer::error(error()) } else { Answer::ok("") });
    let began = Instant::now();
    bench.get().await.unwrap();
    assert!(began.elapsed() >= 3 * S && began.elapsed() <= 3_750 * MS, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn one_nodes_pushback_does_not_hold_back_a_retry_at_another() {
    let answers: [fn() -> Answer; 2] = [
        || Answer::status(503).with(RETRY_AFTER, "3"),
        || Answer::error(Error::remote(Reason::ConnectionLost, "busy").with_retry_after(3 * S)),
    ];
    for answer in answers {
        for per_try in ["off", "4s"] {
            let script = move |a: &Arrival| if a.total == 0 { answer() } else { Answer::ok("") };
            let two = bench(json!({ "per_try": per_try }), script);
            two.settle().await;
            let began = Instant::now();
            two.get().await.unwrap();
            assert!(began.elapsed() <= 25 * MS, "{:?}", began.elapsed());
            let arrivals = two.upstream.arrivals();
            assert_ne!(arrivals[0].address, arrivals[1].address);
            // If the other node is away, or excluded by the route, the call waits for the first one.
            for away in ["connection", "route"] {
                let two = bench(json!({ "per_try": per_try }), script);
                two.settle().await;
                let call = match away {
                    "connection" => {
                        two.upstream.connect("memory:b", TransientFailure);
                        get()
                    }
                    _ => {
                        let labelled =
                            |id: &str| ScriptedRegistry::instance("stock", id).with_label("id", id);
                        two.registry.set("stock", Membership::known(["a", "b"].map(labelled)));
                        settle().await;
                        get().pin("id", "a")
                    }
                };
                let began = Instant::now();
                two.run(call).await.unwrap();
                assert!(began.elapsed() >= 3 * S, "{away}: {:?}", began.elapsed());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn callers_with_the_same_requested_delay_do_not_return_together() {
    let bench = alone(json!({ "budget": "off" }), |arrival| match arrival.total {
        0..1_000 => Answer::status(503).with(RETRY_AFTER, "1"),
        _ => Answer::ok(""),
    });
    bench.settle().await;
    let began = Instant::now();
    let calls: Vec<_> = (0..1_000).map(|_| bench.spawn(get())).collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let mut by_time = std::collections::BTreeMap::<u128, usize>::new();
    for arrival in &bench.upstream.arrivals()[1_000..] {
        let after = arrival.at - began;
        assert!(after >= S, "{after:?}");
        *by_time.entry(after.as_millis() / 10).or_default() += 1;
    }
    let most = by_time.values().max().copied();
    assert!(most < Some(100) && by_time.len() > 20, "{most:?} of 1000 within ten milliseconds");
}

#[tokio::test(start_paused = true)]
async fn no_call_waits_for_an_hour() {
    for (after, waits) in [("20", true), ("31", false), ("3600", false)] {
        let bench = alone(json!({}), move |arrival| match arrival.total {
            0 => Answer::status(503).with(RETRY_AFTER, after),
            _ => Answer::ok(""),
        });
        bench.stock(json!({ "breaker": "off", "timeout": "off" }));
        let began = Instant::now();
        let status = bench.get().await.unwrap().status;
        match waits {
            true => assert!(status == 200 && began.elapsed() <= 25 * S, "{:?}", began.elapsed()),
            false => assert_eq!((status.as_u16(), began.elapsed()), (503, Duration::ZERO), "{after}"),
        }
        assert_eq!(retries(&bench, "too_late"), f64::from(u8::from(!waits)));
    }
}

#[tokio::test(start_paused = true)]
async fn bodies_are_sent_again_up_to_the_cap() {
    let script = |arrival: &Arrival| if arrival.total == 0 { Answer::lost() } else { Answer::ok("") };
    let bench = bench(json!({}), script);
    bench.run(get().body("all here")).await.unwrap();
    assert!(bench.upstream.arrivals().iter().all(|a| a.body == "all here"));
    for (cap, expected) in [(json!(8), 2), (json!(7), 1), (json!("off"), 1)] {
        let bench = self::bench(json!({ "replay_bytes": cap }), script);
        let (up, body) = feed();
        ["four", "more"].iter().for_each(|chunk| assert!(up.send(*chunk)));
        drop(up);
        let _ = bench.run(get().streaming(body)).await;
        let bodies: Vec<_> = bench.upstream.arrivals().into_iter().map(|a| a.body).collect();
        assert_eq!(bodies, vec!["fourmore"; expected], "cap {cap}");
        assert_eq!(retries(&bench, "not_replayable"), f64::from(u8::from(expected == 1)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_goes_on_where_the_first_attempt_left_it() {
    // The first attempt reads one chunk and fails, while the caller still writes.
    let bench = bench(json!({}), |arrival| match arrival.total {
        0 => Answer::lost().reading(1),
        _ => Answer::ok(""),
    });
    let (up, body) = feed();
    up.send("one ");
    let call = bench.spawn(get().streaming(body));
    tokio::time::sleep(S).await;
    assert!(up.send("two ") && up.send("three"));
    drop(up);
    call.await.unwrap().unwrap();
    let bodies: Vec<_> = bench.upstream.arrivals().into_iter().map(|a| a.body).collect();
    assert_eq!(bodies, ["one ", "one two three"]);
}

/// Regression: an attempt that waited for the drop of the previous body hung, because it held that body
/// itself.
#[tokio::test(start_paused = true)]
async fn a_stream_of_which_nothing_was_read_is_sent_again() {
    for per_try in ["off", "4s"] {
        let retry = json!({ "backoff": "1us", "per_try": per_try, "when": "always" });
        let sends = async |bench: &Bench| {
            let (up, body) = feed();
            ["who", "le"].iter().for_each(|chunk| assert!(up.send(*chunk)));
            drop(up);
            bench.run(post().streaming(body)).await
        };
        let bench = bench(retry.clone(), |a| if a.total < 2 { Answer::unsent() } else { Answer::ok("") });
        sends(&bench).await.unwrap();
        assert_eq!((bench.upstream.total(), &*bench.upstream.last().body), (3, &b"whole"[..]));
        let fault =
            json!({ "name": "f", "to": "stock", "abort": { "code": "UNAVAILABLE" }, "at": "attempt" });
        let bench = self::bench(retry.clone(), |_| Answer::ok(""));
        bench.apply(json!({ "faults": [fault],
            "outbound": { "services": { "stock": { "breaker": "off", "retry": retry } } } }));
        check(&sends(&bench).await, Code::Unavailable, Reason::FaultInjected);
        assert_eq!(retries(&bench, "retried"), 1.0);
    }
}

#[tokio::test(start_paused = true)]
async fn half_consumed_streams_are_never_replayed() {
    // Beyond the replay limit, cut after any number of chunks: only the first attempt's part ever arrives.
    for cut in 0..12 {
        let bench =
            bench(json!({ "replay_bytes": 40, "when": "always" }), move |arrival| match arrival.total {
                0 => Answer::lost().reading(cut),
                _ => Answer::ok(""),
            });
        let (up, body) = feed();
        (0..12).for_each(|i| assert!(up.send(format!("chunk {i:04};"))));
        drop(up);
        let result = bench.run(post().streaming(body)).await;
        let arrivals = bench.upstream.arrivals();
        assert_eq!(arrivals[0].body.len(), cut * 11);
        match cut {
            0..=3 => assert_eq!((result.is_ok(), arrivals[1].body.len()), (true, 132), "{cut}: kept whole"),
            _ => {
                let error = result.unwrap_err();
                assert_eq!((error.reason(), error.maybe_executed()), (Reason::ConnectionLost, true));
                assert_eq!(arrivals.len(), 1, "{cut}");
            }
        }
    }
}

/// A transport may drop the body of an attempt late or never: the next attempt reads beside it.
#[tokio::test(start_paused = true)]
async fn no_attempt_waits_for_another_to_drop_the_body() {
    for answer in [|| Answer::lost(), || Answer::refused(), || Answer::status(503)] as [Script; 3] {
        for hold in [300 * MS, Duration::MAX] {
            let bench = bench(json!({ "backoff": "1us" }), move |arrival| match arrival.total {
                0 => answer().reading(1).holding(hold),
                _ => Answer::ok(""),
            });
            let (up, body) = feed();
            ["a", "b"].iter().for_each(|chunk| assert!(up.send(*chunk)));
            drop(up);
            let began = Instant::now();
            bench.run(get().streaming(body)).await.unwrap();
            assert!(began.elapsed() < 10 * MS, "{:?}", began.elapsed());
            assert_eq!(bench.upstream.last().body, "ab");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_on_our_side_is_not_retried() {
    let bench = bench(json!({ "when": "always" }), |_| Answer::lost());
    let (up, body) = feed();
    up.fail(Error::local(Reason::Cancelled, "the source is gone"));
    bench.run(post().streaming(body)).await.unwrap_err();
    assert_eq!(bench.upstream.total(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_below_a_retry_is_not_retried_again() {
    let within = |bench: Arc<Bench>| async move {
        let mut context = Context::default();
        context.is_retry = true;
        let _ = context.scope(bench.get()).await;
        bench.upstream.total()
    };
    let plain = Arc::new(bench(json!({}), |_| Answer::lost()));
    assert_eq!(within(plain.clone()).await, 1);
    assert_eq!(retries(&plain, "chained"), 1.0);
    assert_eq!(within(Arc::new(bench(json!({ "chained": true }), |_| Answer::lost()))).await, 2);
    // A call that never left is resent in any case.
    assert_eq!(within(Arc::new(bench(json!({}), |_| Answer::unsent()))).await, 2);
}

#[tokio::test(start_paused = true)]
async fn what_never_left_is_resent_once_whatever_the_settings() {
    let no_budget = json!({ "attempts": 2, "budget": { "share": "0%", "min": "0/s" } });
    for (retry, call, answer, expected) in [
        (json!("off"), post(), Answer::unsent as Script, 2),
        (json!({ "attempts": 1 }), post(), Answer::unsent, 2),
        (json!({}), post().no_retry(), Answer::unsent, 2),
        (no_budget.clone(), post(), Answer::unsent, 2),
        (no_budget.clone(), post(), Answer::refused, 2),
        (json!({ "on": [] }), post(), Answer::refused, 2),
        // Not returned by the transport, and no copy kept.
        (json!("off"), post(), Answer::refused, 1),
        // And then the retries that the settings allow.
        (json!({ "attempts": 3 }), post(), Answer::unsent, 4),
        (json!({ "attempts": 3 }), post(), Answer::refused, 4),
    ] {
        let bench = bench(retry.clone(), move |_| answer());
        let error = bench.run(call.body("seven")).await.unwrap_err();
        assert!(!error.maybe_executed());
        assert_eq!(bench.upstream.total(), expected, "{retry}");
        let resent = &bench.upstream.arrivals()[expected.min(2) - 1];
        assert_eq!(resent.metadata.get("x-chassis-attempt"), None, "no server has seen it before");
        assert_eq!((bench.node("a").in_flight, bench.node("b").in_flight), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_never_left_is_resent_whole() {
    for retry in [json!("off"), json!({})] {
        let bench =
            bench(retry, |arrival| if arrival.total == 0 { Answer::unsent() } else { Answer::ok("") });
        let (up, body) = feed();
        ["a", "b"].iter().for_each(|chunk| assert!(up.send(*chunk)));
        drop(up);
        bench.run(post().streaming(body)).await.unwrap();
        assert_eq!(bench.upstream.last().body, "ab");
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_frame_is_looked_at_but_not_waited_for() {
    // A trailing status without a message is retried if it arrives with the head.
    let late = Arc::new(AtomicUsize::new(0));
    let bench = {
        let late = late.clone();
        bench(json!({}), move |_| {
            let (fed, body) = feed();
            let trailers = http::HeaderMap::from_iter([(chassis_core::testing::STATUS, 14u16.into())]);
            match late.load(SeqCst) {
                0 => {
                    fed.end_with(trailers);
                    Answer::streaming(chassis_core::Body::eager(body, |e| e))
                }
                _ => {
                    tokio::spawn(async move {
                        tokio::time::sleep(MS).await;
                        fed.end_with(trailers);
                    });
                    Answer::streaming(body)
                }
            }
        })
    };
    bench.get().await.unwrap();
    assert_eq!(bench.upstream.total(), 2);
    late.store(1, SeqCst);
    bench.get().await.unwrap();
    assert_eq!(bench.upstream.total(), 3, "a stream that began is not held up");
}

/// The retry header of a server whose handler forwards the failure of `stock`.
async fn said_about_retrying(retry: Value, answer: Script) -> (Option<String>, usize) {
    let bench = Arc::new(bench(retry, move |_| answer()));
    let calling = {
        let bench = bench.clone();
        move |call: Invocation| {
            let bench = bench.clone();
            async move {
                let status = bench.get().await.map_or(StatusCode::BAD_GATEWAY, |answered| answered.status);
                Ok(call.answered(status, Default::default(), Default::default()))
            }
        }
    };
    let answered = run(&server(&bench.runtime, calling), get().build()).await.unwrap();
    let said = answered.metadata.get(RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned());
    (said, bench.upstream.total())
}

/// Regression: three services with three attempts each sent 27 calls to the failing one.
#[tokio::test(start_paused = true)]
async fn what_was_retried_in_vain_is_not_retried_above() {
    let never = Some("never".to_owned());
    let failing = || Answer::status(503);
    assert_eq!(said_about_retrying(json!({}), failing).await, (never.clone(), 2));
    assert_eq!(said_about_retrying(json!({}), Answer::lost).await, (never.clone(), 2));
    let spent = json!({ "budget": { "share": "0%", "min": "0/s" } });
    assert_eq!(said_about_retrying(spent, failing).await, (never.clone(), 1));
    let never_again = || Answer::status(503).with(RETRY_AFTER, "never");
    assert_eq!(said_about_retrying(json!({}), never_again).await, (never, 1));
    // A server without retries leaves them to its callers; a success or a permanent failure sets no header.
    assert_eq!(said_about_retrying(json!("off"), failing).await, (None, 1));
    assert_eq!(said_about_retrying(json!({ "attempts": 1 }), failing).await, (None, 1));
    assert_eq!(said_about_retrying(json!({}), || Answer::ok("")).await, (None, 1));
    assert_eq!(said_about_retrying(json!({}), || Answer::status(404)).await, (None, 1));
}
