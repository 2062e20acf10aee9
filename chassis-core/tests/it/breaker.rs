//! Circuits above the retries, of services and operations. (Circuits of nodes: `balance`.)
use std::sync::{Arc, Mutex};

use chassis_core::{
    Code, Error, Event, Origin, Reason, ReplyBody,
    layer::breaker::State,
    testing::{Answer, Answered, Arrival, CallBuilder, Feed, REASON, Upstream, feed},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::*;

/// Fails while the test's toggle is set.
fn bench(breaker: Value) -> (Bench, Toggle) {
    let toggle = Toggle::default();
    let bench = {
        let toggle = toggle.clone();
        Bench::new(move |_| if toggle.is_on() { Answer::status(500) } else { Answer::ok("") })
    };
    bench.stock(json!({ "retry": "off", "breaker": breaker }));
    (bench, toggle)
}

fn state(bench: &Bench, of: &str) -> State {
    let circuits = bench.runtime.inspect().circuits;
    circuits.iter().find(|circuit| circuit.of == of).unwrap_or_else(|| panic!("{of}: {circuits:?}")).state
}

#[tokio::test(start_paused = true)]
async fn opens_refuses_probes_and_closes() {
    let (bench, failing) =
        bench(json!({ "min_calls": 10, "failure_ratio": "50%", "open": "5s", "probes": 2 }));
    for i in 0..10 {
        failing.set(i % 2 == 1);
        bench.get().await.unwrap();
    }
    assert_eq!(state(&bench, "stock"), State::Open);
    tokio::time::sleep(S).await;
    let refused = bench.get().await;
    check(&refused, Code::Unavailable, Reason::CircuitOpen);
    let error = refused.unwrap_err();
    // Up to a tenth of the five seconds less, because of jitter.
    let after = error.retry_after().unwrap();
    assert!(error.rule() == Some("breaker") && after > 3_400 * MS && after <= 4 * S, "{after:?}");
    assert_eq!((error.origin(), error.maybe_executed()), (Origin::Local, false));
    let message = error.message();
    assert!(message.starts_with("stock: circuit open for 3"), "{message}");
    assert!(message.ends_with(" more (opened as 5 of 10 calls had failed)"), "{message}");
    assert_eq!(bench.upstream.total(), 10, "the upstream was not reached");
    failing.set(false);
    tokio::time::sleep(4 * S).await;
    bench.get().await.unwrap();
    assert_eq!(state(&bench, "stock"), State::HalfOpen);
    bench.get().await.unwrap();
    assert_eq!(state(&bench, "stock"), State::Closed);
    let moves: Vec<_> = bench
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Event::CircuitMoved { of, from, to, .. } if &*of == "stock" => Some((from, to)),
            _ => None,
        })
        .collect();
    use State::{Closed, HalfOpen, Open};
    assert_eq!(moves, [(Closed, Open), (Open, HalfOpen), (HalfOpen, Closed)]);
    let labels = [("service", "stock"), ("scope", "service")];
    assert_eq!(bench.metric("chassis_breaker_transitions_total", &labels), 3.0);
    assert_eq!(bench.metric("chassis_breaker_open", &labels), 0.0);
    let refusing = |e: &Event| matches!(e, Event::Refusing { reason: Reason::CircuitOpen, .. });
    assert_eq!(bench.count_events(refusing), 1);
}

#[tokio::test(start_paused = true)]
async fn one_failing_probe_opens_it_again() {
    let (bench, failing) = bench(json!({ "consecutive": 3, "open": "5s" }));
    failing.set(true);
    for _ in 0..3 {
        bench.get().await.unwrap();
    }
    for _ in 0..3 {
        tokio::time::sleep(5 * S).await;
        assert_eq!(bench.get().await.unwrap().status, 500);
        check(&bench.get().await, Code::Unavailable, Reason::CircuitOpen);
    }
    assert_eq!(bench.upstream.total(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_probe_gives_its_place_back() {
    let bench = Bench::new(|arrival| match arrival.nth {
        0 => Answer::status(500),
        1 | 2 => Answer::hang(),
        _ => Answer::ok(""),
    });
    bench.stock(json!({ "retry": "off", "timeout": "off", "breaker": { "consecutive": 1, "open": "1s", "probes": 1 } }));
    bench.get().await.unwrap();
    tokio::time::sleep(S).await;
    let probe = bench.spawn(get());
    settle().await;
    let refused = bench.get().await;
    check(&refused, Code::Unavailable, Reason::CircuitOpen);
    assert_eq!(refused.unwrap_err().message(), "stock: circuit half-open, all 1 probes are out");
    probe.abort();
    settle().await;
    assert!(tokio::time::timeout(MS, bench.get()).await.is_err(), "a second probe, given up as well");
    bench.get().await.unwrap();
    assert_eq!(state(&bench, "stock"), State::Closed);
}

/// Fails until its circuit is open, then answers with streams; returns them, each with its feed.
async fn with_streams_as_probes(stock: Value, scope: &str) -> (Bench, Vec<(Feed, ReplyBody)>) {
    let feeds: Arc<Mutex<Vec<Feed>>> = Arc::default();
    let bench = {
        let feeds = feeds.clone();
        Bench::new(move |arrival| match arrival.nth {
            0 | 1 => Answer::status(500),
            2..5 => {
                let (fed, body) = feed();
                feeds.lock().unwrap().push(fed);
                Answer::streaming(body)
            }
            _ => Answer::ok(""),
        })
    };
    let breaker = json!({ "consecutive": 2, "open": "5s", "probes": 3, "scope": scope });
    let mut settings = stock;
    settings["breaker"] = breaker;
    bench.stock(settings);
    for _ in 0..2 {
        bench.get().await.unwrap();
    }
    tokio::time::sleep(5 * S).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let body = bench.send(get()).await.unwrap().into_body();
        streams.push((feeds.lock().unwrap().pop().unwrap(), body));
    }
    (bench, streams)
}

/// Retry settings: off, the default, and with a limit on each attempt.
fn all_retries() -> [Value; 3] {
    [json!({ "retry": "off" }), json!({}), json!({ "retry": { "per_try": "4s" } })]
}

#[tokio::test(start_paused = true)]
async fn long_streams_as_probes_do_not_hold_it_half_open() {
    for stock in all_retries() {
        for scope in ["service", "operation", "endpoint"] {
            let (bench, streams) = with_streams_as_probes(stock.clone(), scope).await;
            for _ in 0..20 {
                bench.get().await.unwrap();
            }
            let open = bench.metric("chassis_breaker_open", &[("scope", scope)]);
            assert_eq!(
                (open, bench.metric("chassis_panic_picks_total", &[])),
                (0.0, 0.0),
                "{scope}, {stock}"
            );
            assert_eq!(bench.node("a").in_flight, 3);
            drop(streams);
            assert_eq!(bench.node("a").in_flight, 0);
        }
    }
}

/// A stream that breaks off afterwards counts as one failure, and two of them make a row.
#[tokio::test(start_paused = true)]
async fn the_rest_of_a_probes_stream_is_judged_apart() {
    for stock in all_retries() {
        let (bench, streams) = with_streams_as_probes(stock.clone(), "service").await;
        for (i, (fed, mut body)) in streams.into_iter().enumerate() {
            assert_eq!(state(&bench, "stock"), [State::Closed, State::Closed, State::Open][i], "{stock}");
            fed.fail(Error::remote(Reason::ConnectionLost, "reset"));
            frame(&mut body).await.unwrap().unwrap_err();
        }
        check(&bench.get().await, Code::Unavailable, Reason::CircuitOpen);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_whole_or_given_up_after_it_was_a_probe_counts_for_nothing() {
    for stock in all_retries() {
        let (bench, mut streams) = with_streams_as_probes(stock.clone(), "service").await;
        drop(streams.pop());
        let (fed, mut body) = streams.pop().unwrap();
        drop(fed);
        assert!(frame(&mut body).await.is_none());
        let circuits = bench.runtime.inspect().circuits;
        assert_eq!((circuits[0].state, circuits[0].calls), (State::Closed, 0), "{stock}");
    }
}

/// The way in which a call stays without an outcome.
#[derive(Clone, Copy, Debug)]
enum Without {
    /// One message, and no answer.
    Answer,
    /// A stream of messages, and no answer until it ends.
    End,
    /// Messages in both directions, and no response head.
    Head,
}

/// A call in flight without an outcome.
struct Held {
    call: JoinHandle<Result<Answered, Error>>,
    feed: Option<Feed>,
}

impl Without {
    const ALL: [Without; 3] = [Without::Answer, Without::End, Without::Head];

    fn begin(self, bench: &Bench) -> Held {
        let (fed, body) = feed();
        let (call, feed) = match self {
            Without::Answer => (get_of("Hang"), None),
            Without::End => (CallBuilder::post("stock", "Upload").streaming(body), Some(fed)),
            Without::Head => (CallBuilder::post("stock", "Hang").streaming(body), Some(fed)),
        };
        Held { call: bench.spawn(call), feed }
    }
}

fn get_of(operation: &'static str) -> CallBuilder {
    CallBuilder::get("stock", operation)
}

/// `Bad` fails, `Hang` never answers, `Upload` answers after all of its messages, and others at once.
fn held_bench(breaker: Value, retry: &Value) -> Bench {
    let bench = Bench::new(|arrival| match &*arrival.operation {
        "Bad" => Answer::status(500),
        "Hang" => Answer::hang(),
        _ => Answer::ok(""),
    });
    bench.stock(json!({ "timeout": "off", "retry": retry, "breaker": breaker }));
    bench
}

/// Opens the circuit, waits until its open time is over, and sends three calls without outcome as probes.
async fn held_probes(bench: &Bench, without: Without) -> Vec<Held> {
    for _ in 0..2 {
        bench.run(CallBuilder::post("stock", "Bad")).await.unwrap();
    }
    tokio::time::sleep(5 * S).await;
    let held = (0..3).map(|_| without.begin(bench)).collect();
    settle().await;
    assert_eq!(bench.upstream.total(), 5);
    held
}

async fn is_refused(bench: &Bench) -> bool {
    match bench.post().await {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.reason(), Reason::CircuitOpen, "{error:?}");
            true
        }
    }
}

/// Regression: they kept it half-open for a minute, and every other call was refused meanwhile.
#[tokio::test(start_paused = true)]
async fn calls_without_outcome_as_probes_give_way_to_others() {
    for without in Without::ALL {
        for retry in [json!("off"), json!({ "attempts": 2 })] {
            for scope in ["service", "endpoint"] {
                let breaker = json!({ "consecutive": 2, "open": "5s", "probes": 3, "scope": scope });
                let bench = held_bench(breaker, &retry);
                let held = held_probes(&bench, without).await;
                tokio::time::sleep(4 * S).await;
                for _ in 0..50 {
                    assert!(is_refused(&bench).await, "{without:?}, {scope}: the first round is young");
                }
                tokio::time::sleep(S).await;
                for n in 0..20 {
                    assert!(
                        !is_refused(&bench).await,
                        "{without:?}, {scope}, {n}: three succeed, and it is closed"
                    );
                }
                assert_eq!(bench.metric("chassis_breaker_open", &[("scope", scope)]), 0.0);
                assert_eq!(bench.node("a").in_flight, 3, "{without:?}: they live on");
                held.into_iter().for_each(|held| held.call.abort());
                settle().await;
                assert_eq!(bench.node("a").in_flight, 0);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_lost_its_place_counts_when_it_ends() {
    let breaker = json!({ "consecutive": 2, "open": "5s", "probes": 3 });
    for retry in [json!("off"), json!({})] {
        let bench = held_bench(breaker.clone(), &retry);
        let mut first = held_probes(&bench, Without::End).await;
        tokio::time::sleep(5 * S).await;
        let mut second: Vec<_> = (0..3).map(|_| Without::End.begin(&bench)).collect();
        settle().await;
        assert!(is_refused(&bench).await);
        // In any mix of the rounds: three that succeed close it.
        for held in [first.pop().unwrap(), second.pop().unwrap(), first.pop().unwrap()] {
            assert_eq!(state(&bench, "stock"), State::HalfOpen);
            drop(held.feed);
            held.call.await.unwrap().unwrap();
        }
        assert_eq!(state(&bench, "stock"), State::Closed, "{retry}");
        // A probe that its caller cancels counts neither way; then as before.
        first.pop().unwrap().call.abort();
        second.pop().unwrap().call.abort();
        settle().await;
        assert_eq!(bench.runtime.inspect().circuits[0].failures, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_lost_its_place_opens_the_circuit_when_it_fails() {
    let bench = Bench::new(|arrival| match &*arrival.operation {
        "Bad" => Answer::status(500),
        "Late" => Answer::lost().after(12 * S),
        _ => Answer::hang(),
    });
    let breaker = json!({ "consecutive": 2, "open": "5s", "probes": 2 });
    bench.stock(json!({ "timeout": "off", "retry": "off", "breaker": breaker }));
    for _ in 0..2 {
        bench.run(get_of("Bad")).await.unwrap();
    }
    tokio::time::sleep(5 * S).await;
    let late = [bench.spawn(get_of("Late")), bench.spawn(get_of("Hang"))];
    tokio::time::sleep(5 * S).await;
    let next = [bench.spawn(get_of("Hang")), bench.spawn(get_of("Hang"))];
    settle().await;
    assert_eq!((state(&bench, "stock"), bench.upstream.total()), (State::HalfOpen, 6));
    tokio::time::sleep(4 * S).await;
    assert_eq!(
        state(&bench, "stock"),
        State::HalfOpen,
        "before the late one fails, the second round is young"
    );
    tokio::time::sleep(3 * S + MS).await;
    assert_eq!(state(&bench, "stock"), State::Open);
    late.into_iter().chain(next).for_each(|call| call.abort());
}

/// A thousand callers of a service that answers none of them and then all.
#[tokio::test(start_paused = true)]
async fn many_callers_get_a_round_at_a_time() {
    let working = Toggle::default();
    let bench = {
        let working = working.clone();
        Bench::new(move |arrival| match &*arrival.operation {
            "Bad" => Answer::status(500),
            _ if working.is_on() => Answer::ok(""),
            _ => Answer::hang(),
        })
    };
    let breaker = json!({ "consecutive": 2, "open": "5s", "probes": 3 });
    bench.stock(json!({ "timeout": "off", "retry": "off", "breaker": breaker }));
    for _ in 0..2 {
        bench.run(get_of("Bad")).await.unwrap();
    }
    tokio::time::sleep(5 * S).await;
    let began = bench.upstream.total();
    let mut calls = Vec::new();
    for second in 0..180 {
        for _ in 0..10 {
            calls.push(bench.spawn(get()));
        }
        settle().await;
        let admitted = bench.upstream.total() - began;
        let rounds = match second {
            0..50 => second / 5 + 1,
            _ => 10 + (second - 45) / 60,
        };
        assert_eq!(admitted, 3 * rounds, "after {second} s");
        assert_eq!(bench.node("a").in_flight as usize, admitted);
        tokio::time::sleep(S).await;
    }
    // Callers that cancel make room at once.
    calls.iter().for_each(|call| call.abort());
    settle().await;
    assert_eq!((bench.node("a").in_flight, state(&bench, "stock")), (0, State::HalfOpen));
    working.set(true);
    tokio::time::sleep(5 * S).await;
    for _ in 0..100 {
        bench.get().await.unwrap();
    }
    assert_eq!(state(&bench, "stock"), State::Closed);
}

/// If three of four calls are long uploads, the others decide within ten rounds.
#[tokio::test(start_paused = true)]
async fn few_calls_with_an_outcome_close_it() {
    let bench = held_bench(json!({ "consecutive": 2, "open": "5s", "probes": 3 }), &json!("off"));
    let mut held = held_probes(&bench, Without::End).await;
    let began = tokio::time::Instant::now();
    let random = chassis_core::Random::seeded(3);
    while state(&bench, "stock") != State::Closed {
        match random.below(4) {
            0 => drop(bench.spawn(get())),
            _ => held.push(Without::End.begin(&bench)),
        }
        tokio::time::sleep(100 * MS).await;
    }
    assert!(began.elapsed() <= 50 * S, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn settings_that_change_while_probes_are_out_leak_none() {
    let breaker = |with: Value| {
        let mut all = json!({ "consecutive": 2, "open": "5s", "probes": 3 });
        all.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
        json!({ "timeout": "off", "retry": "off", "breaker": all })
    };
    let swaps = [
        breaker(json!({ "probes": 1 })),
        breaker(json!({ "probes": 5 })),
        breaker(json!({ "open": "1s" })),
        breaker(json!({ "open": "1h" })),
        breaker(json!({ "scope": "operation" })),
        breaker(json!({ "scope": "endpoint" })),
        breaker(json!({ "force": "open" })),
        breaker(json!({ "force": "closed" })),
        json!({ "timeout": "off", "retry": "off", "breaker": "off" }),
    ];
    for swap in swaps {
        let bench = held_bench(json!({}), &json!("off"));
        bench.stock(breaker(json!({})));
        let held = held_probes(&bench, Without::End).await;
        bench.stock(swap.clone());
        let mut others: Vec<_> = (0..8).map(|_| Without::End.begin(&bench)).collect();
        tokio::time::sleep(3 * S).await;
        others.extend((0..8).map(|_| Without::End.begin(&bench)));
        settle().await;
        bench.stock(breaker(json!({})));
        // Some are cancelled, some end.
        let mut ended = 0;
        for (n, held) in held.into_iter().chain(others).enumerate() {
            match n % 2 {
                0 => held.call.abort(),
                _ => {
                    drop(held.feed);
                    ended += usize::from(held.call.await.unwrap().is_ok());
                }
            }
        }
        settle().await;
        assert_eq!(bench.node("a").in_flight, 0, "{swap}");
        assert!(ended > 0, "{swap}");
        // In any state of the circuit, three calls close it within one round.
        tokio::time::sleep(5 * S).await;
        for _ in 0..10 {
            bench.get().await.unwrap();
        }
        assert_eq!(state(&bench, "stock"), State::Closed, "{swap}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_has_a_circuit_of_its_own() {
    let upstream = |arrival: &Arrival| match &*arrival.operation {
        "Bad" => Answer::status(500),
        _ => Answer::ok(""),
    };
    let bad = || CallBuilder::get("stock", "Bad");
    // By scope, and with breaker settings of one operation's own.
    for stock in [
        json!({ "retry": "off", "breaker": { "scope": "operation", "consecutive": 2 } }),
        json!({ "retry": "off", "operations": { "Bad": { "breaker": { "consecutive": 2 } } } }),
    ] {
        let bench = Bench::new(upstream);
        bench.stock(stock);
        for _ in 0..2 {
            bench.run(bad()).await.unwrap();
        }
        check(&bench.run(bad()).await, Code::Unavailable, Reason::CircuitOpen);
        bench.get().await.unwrap();
        assert_eq!((bench.upstream.total(), state(&bench, "Bad")), (3, State::Open));
    }
    let bench = Bench::new(upstream);
    bench.stock(json!({ "retry": "off", "breaker": { "consecutive": 2 } }));
    for _ in 0..2 {
        bench.run(bad()).await.unwrap();
    }
    check(&bench.get().await, Code::Unavailable, Reason::CircuitOpen); // one for the service
}

#[tokio::test(start_paused = true)]
async fn held_by_hand_and_off() {
    let (bench, failing) = bench(json!({ "force": "open" }));
    let refused = bench.get().await;
    check(&refused, Code::Unavailable, Reason::CircuitOpen);
    assert_eq!(refused.unwrap_err().message(), "stock: circuit forced open");
    failing.set(true);
    for breaker in [json!({ "force": "closed", "consecutive": 1 }), json!("off")] {
        bench.stock(json!({ "retry": "off", "breaker": breaker }));
        for _ in 0..30 {
            assert_eq!(bench.get().await.unwrap().status, 500);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_counts_is_adjustable() {
    let failures = [
        (json!(["UNAVAILABLE"]), Answer::lost as fn() -> Answer, true),
        (json!(["connect"]), Answer::lost, false),
        (json!(["connect"]), Answer::unsent, true),
        (json!(["503"]), || Answer::status(503), true),
        (json!(["5xx"]), || Answer::status(404), false),
        (json!(["4xx"]), || Answer::status(404), true),
        (json!(["deadline"]), Answer::hang, true),
        (json!([]), || Answer::status(500), false),
        (json!(["DATA_LOSS"]), || Answer::trailers("", Code::DataLoss), true),
        (json!(["INTERNAL"]), || Answer::trailers("", Code::DataLoss), false),
    ];
    for (failures, answer, opens) in failures {
        let bench = Bench::new(move |_| answer());
        let breaker = json!({ "consecutive": 2, "failures": failures });
        bench.stock(json!({ "retry": "off", "timeout": "1s", "breaker": breaker }));
        for _ in 0..2 {
            let _ = bench.get().await;
        }
        assert_eq!(state(&bench, "stock") == State::Open, opens, "{failures}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_says_nothing_of_health_counts_for_nothing() {
    // Refused locally, refused by the server before any work, cancelled.
    let bench = Bench::new(|arrival| match arrival.nth % 2 {
        0 => Answer::status(503).with(REASON, "OVERLOADED"),
        _ => Answer::hang(),
    });
    bench.apply(json!({
        "outbound": { "services": { "stock": {
            "retry": "off", "breaker": { "consecutive": 1, "min_calls": 1 },
            "routes": [{ "name": "x", "match": { "operation": "Lost" }, "to": { "x": "y" }, "fallback": "none" }],
        } } },
        "faults": [{ "name": "f", "to": "stock", "match": { "operation": "Faulty" }, "abort": { "code": "INTERNAL" } }],
    }));
    for _ in 0..5 {
        bench.get().await.unwrap();
        assert!(tokio::time::timeout(MS, bench.get()).await.is_err());
        check(&bench.run(CallBuilder::get("stock", "Lost")).await, Code::Unavailable, Reason::NoRoute);
        let faulty = bench.run(CallBuilder::get("stock", "Faulty")).await;
        check(&faulty, Code::Internal, Reason::FaultInjected);
    }
    assert_eq!(state(&bench, "stock"), State::Closed);
    let node = bench.node("a");
    assert_eq!((node.calls, node.in_flight), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn faults_at_the_attempt_open_the_services_circuit_and_blame_no_node() {
    let bench = Bench::new(|_| Answer::ok(""));
    bench.apply(json!({
        "outbound": { "services": { "stock": { "retry": "off", "breaker": { "consecutive": 2 } } } },
        "faults": [{ "name": "f", "to": "stock", "abort": { "code": "UNAVAILABLE" }, "at": "attempt" }],
    }));
    for _ in 0..2 {
        check(&bench.get().await, Code::Unavailable, Reason::FaultInjected);
    }
    check(&bench.get().await, Code::Unavailable, Reason::CircuitOpen);
    settle().await;
    assert_eq!(bench.node("a").calls, 0);
}

#[tokio::test(start_paused = true)]
async fn it_judges_what_the_caller_sees() {
    // Every first attempt fails and every retry succeeds: no circuit opens.
    let bench = Bench::new(|arrival| match arrival.nth % 2 {
        0 => Answer::error(Error::remote(Reason::ConnectionLost, "reset")),
        _ => Answer::ok(""),
    });
    bench.stock(json!({ "retry": { "budget": "off" }, "breaker": { "consecutive": 2, "min_calls": 4 } }));
    for _ in 0..50 {
        bench.get().await.unwrap();
    }
    assert_eq!(state(&bench, "stock"), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_circuit_that_is_gone_is_not_counted_as_open() {
    let bench = Bench::build(Upstream::new(|_| Answer::status(500)), |builder| builder);
    bench.registry.put("stock", ["a", "b"]);
    bench.stock(json!({ "retry": "off", "breaker": { "scope": "endpoint", "consecutive": 1 } }));
    for _ in 0..20 {
        bench.get().await.unwrap();
    }
    assert_eq!(bench.metric("chassis_breaker_open", &[("scope", "endpoint")]), 2.0);
    bench.registry.put("stock", ["b"]);
    settle().await;
    assert_eq!(bench.metric("chassis_breaker_open", &[("scope", "endpoint")]), 1.0);
    bench.stock(json!({ "retry": "off", "breaker": { "consecutive": 1 } }));
    bench.get().await.unwrap();
    assert_eq!(bench.metric("chassis_breaker_open", &[("scope", "service")]), 1.0);
    bench.stock(json!({ "breaker": "off" }));
    settle().await;
    assert_eq!(bench.metric("chassis_breaker_open", &[("scope", "service")]), 0.0);
}
