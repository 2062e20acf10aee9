//! Deadlines: for the head, for the whole answer, and along a chain of hops.
use std::{sync::Arc, time::Duration};

use chassis_core::{
    Code, Context, Error, Reason, RequestExt,
    clock::Instant,
    layer::breaker::State,
    testing::{Answer, CallBuilder, STATUS, feed},
};
use http::HeaderMap;
use serde_json::json;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn timeout_bounds_the_head_and_does_not_travel() {
    let bench = Bench::new(|_| Answer::hang());
    bench.stock(json!({ "timeout": "300ms", "retry": "off" }));
    let began = Instant::now();
    check(&bench.get().await, Code::DeadlineExceeded, Reason::DeadlineExceeded);
    assert_eq!(began.elapsed().as_millis(), 300);
    let arrival = bench.upstream.last();
    assert_eq!((arrival.deadline, arrival.metadata.get("x-request-timeout-ms")), (None, None));
}

#[tokio::test(start_paused = true)]
async fn the_default_is_five_seconds() {
    let bench = Bench::new(|_| Answer::hang());
    let began = Instant::now();
    check(&bench.get().await, Code::DeadlineExceeded, Reason::DeadlineExceeded);
    assert_eq!(began.elapsed(), 5 * S);
    bench.stock(json!({ "timeout": "off" }));
    let call = tokio::time::timeout(100_000 * S, bench.get());
    assert!(call.await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_holds_to_the_end_of_the_body_and_travels() {
    for call in [get().timeout(500 * MS), get()] {
        let bench = Bench::new(|_| {
            let (fed, body) = feed();
            tokio::spawn(async move {
                while fed.send("tick") {
                    tokio::time::sleep(100 * MS).await;
                }
            });
            Answer::streaming(body)
        });
        bench.stock(json!({ "timeout": "100ms", "total_timeout": "500ms" }));
        let began = Instant::now();
        let mut body = bench.send(call).await.unwrap().into_body();
        let mut ticks = 0;
        let error = loop {
            match frame(&mut body).await.unwrap() {
                Ok(_) => ticks += 1,
                Err(error) => break error,
            }
        };
        assert_eq!((error.reason(), began.elapsed(), ticks), (Reason::DeadlineExceeded, 500 * MS, 5));
        assert!(frame(&mut body).await.is_none());
        assert_eq!(bench.upstream.last().metadata["x-request-timeout-ms"], "500");
        let node = bench.node("a");
        assert_eq!((node.calls, node.successes, node.in_flight), (1, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_stream_that_never_waits() {
    let (fed, body) = feed();
    (0..1_000).for_each(|_| assert!(fed.send("more")));
    let body = std::sync::Mutex::new(Some(body));
    let bench = Bench::new(move |_| Answer::streaming(body.lock().unwrap().take().unwrap()));
    let mut body = bench.send(get().timeout(100 * MS)).await.unwrap().into_body();
    for _ in 0..10 {
        frame(&mut body).await.unwrap().unwrap().unwrap();
        tokio::time::sleep(10 * MS).await; // a slow reader
    }
    assert_eq!(frame(&mut body).await.unwrap().unwrap_err().reason(), Reason::DeadlineExceeded);
    assert!(fed.is_closed());
}

#[tokio::test(start_paused = true)]
async fn zero_and_late_never_leave() {
    let bench = Bench::new(|_| Answer::ok(""));
    let late = bench.get().await.unwrap();
    assert_eq!(late.text(), "");
    check(&bench.run(get().timeout(Duration::ZERO)).await, Code::DeadlineExceeded, Reason::DeadlineExceeded);
    let mut call = get().build();
    call.shorten_deadline(Instant::now());
    let refused = run(&bench.pipeline, call).await;
    check(&refused, Code::DeadlineExceeded, Reason::DeadlineExceeded);
    let error = refused.unwrap_err();
    assert_eq!((error.origin(), error.maybe_executed()), (chassis_core::Origin::Local, false));
    assert_eq!(bench.upstream.total(), 1);
}

#[tokio::test(start_paused = true)]
async fn no_length_of_time_is_too_long() {
    let bench = Bench::new(|_| Answer::ok(""));
    bench.run(get().timeout(Duration::MAX)).await.unwrap();
    bench.stock(json!({ "timeout": "8000h", "total_timeout": "8000h", "retry": { "per_try": "8000h" } }));
    bench.get().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_is_what_is_left() {
    // Of 1,000 ms: 200 for a fault's delay, 100 for a user's layer, 300 waiting for a connection.
    let mut stages = chassis_core::Stages::default();
    stages.add_fn(chassis_core::Stage::Attempt, "slow", None, |call, next| async move {
        tokio::time::sleep(100 * MS).await;
        next.run(call).await
    });
    let upstream = chassis_core::testing::Upstream::new(|_| Answer::ok("").after(50 * MS));
    let upstream = upstream.begin_as(chassis_core::Connection::Connecting);
    let bench = Bench::build(upstream, |builder| builder.stages(stages));
    bench.registry.put("stock", ["a"]);
    bench.apply(json!({ "faults": [{ "name": "slow", "to": "stock", "delay": "200ms" }] }));
    let call = bench.spawn(get().timeout(S));
    tokio::time::sleep(600 * MS).await;
    bench.upstream.connect("memory:a", chassis_core::Connection::Ready);
    call.await.unwrap().unwrap();
    assert_eq!(bench.upstream.last().metadata["x-request-timeout-ms"], "400");
    let p50 = bench.node("a").p50.unwrap();
    assert!(p50 < 60 * MS, "the node's own latency is 50 ms: {p50:?}");
}

#[tokio::test(start_paused = true)]
async fn what_users_layers_wait_is_gone_too() {
    is_gone_at(chassis_core::Stage::Call).await;
    is_gone_at(chassis_core::Stage::Attempt).await;
}

async fn is_gone_at<E: chassis_core::CallError>(stage: chassis_core::Stage<E>) {
    let mut stages = chassis_core::Stages::default();
    stages.add_fn(stage, "slow", None, |call, next| async move {
        tokio::time::sleep(100 * MS).await;
        next.run(call).await
    });
    let upstream = chassis_core::testing::Upstream::new(|_| Answer::ok(""));
    let bench = Bench::build(upstream, |builder| builder.stages(stages));
    bench.registry.put("stock", ["a"]);
    settle().await; // the node is there: the call waits for nothing else
    bench.run(get().timeout(S)).await.unwrap();
    assert_eq!(bench.upstream.last().metadata["x-request-timeout-ms"], "900", "{stage:?}");
}

#[tokio::test(start_paused = true)]
async fn every_hop_sees_less_and_nothing_works_on_after_it() {
    // front -> middle -> back, whose handler never answers.
    let back = Bench::new(|_| Answer::hang());
    let back = Arc::new(back);
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let middle = {
        let (back, seen) = (back.clone(), seen.clone());
        server(&back.runtime.clone(), move |call| {
            let (back, seen) = (back.clone(), seen.clone());
            async move {
                seen.lock().unwrap().push(call.deadline().unwrap());
                let answer = run(&back.pipeline, post().build()).await;
                Err(call.refuse(answer.unwrap_err()))
            }
        })
    };
    let began = Instant::now();
    let mut call = post().build();
    call.shorten_deadline(began + 100 * MS);
    let result = run(&middle, call).await;
    check(&result, Code::DeadlineExceeded, Reason::DeadlineExceeded);
    assert!(began.elapsed() <= 100 * MS);
    let last = back.upstream.last().deadline.unwrap();
    assert!(last < seen.lock().unwrap()[0], "a margin for the way back");
    assert_eq!(last, began + 95 * MS);
    assert_eq!(back.node("a").in_flight, 0);
}

/// Calls `stock` within a handler that has `deadline` left.
async fn inherited(deadline: Option<Duration>, call: impl FnOnce() -> CallBuilder) -> Option<Duration> {
    let bench = Bench::new(|_| Answer::ok(""));
    let now = Instant::now();
    let mut context = Context::default();
    context.deadline = deadline.map(|left| now + left);
    let call = call();
    context.scope(bench.run(call)).await.unwrap();
    bench.upstream.last().deadline.map(|at| at - now)
}

#[tokio::test(start_paused = true)]
async fn inherited_deadlines_shrink_by_a_margin() {
    assert_eq!(inherited(Some(S), get).await, Some(995 * MS));
    assert_eq!(inherited(Some(20 * MS), get).await, Some(19 * MS));
    assert_eq!(inherited(None, get).await, None);
    assert_eq!(inherited(Some(S), || get().timeout(100 * MS)).await, Some(100 * MS));
    assert_eq!(inherited(Some(S), || get().timeout(5 * S)).await, Some(995 * MS));
    assert_eq!(inherited(Some(S), || get().detached()).await, None);
    assert_eq!(inherited(Some(S), || get().detached().timeout(5 * S)).await, Some(5 * S));
}

#[tokio::test(start_paused = true)]
async fn servers_end_calls_too() {
    let bench = Bench::new(|_| Answer::ok(""));
    bench.apply(json!({ "inbound": { "timeout": "200ms",
        "operations": { "Slow": { "timeout": "off", "total_timeout": "1s" } } } }));
    let server = server(&bench.runtime, |_| std::future::pending());
    let began = Instant::now();
    let result = run(&server, post().build()).await;
    check(&result, Code::DeadlineExceeded, Reason::DeadlineExceeded);
    assert_eq!(began.elapsed(), 200 * MS);
    let result = run(&server, CallBuilder::post("orders", "Slow").build()).await;
    check(&result, Code::DeadlineExceeded, Reason::DeadlineExceeded);
    assert_eq!(began.elapsed(), 1200 * MS);
}

#[tokio::test(start_paused = true)]
async fn a_servers_bound_on_the_head_is_its_own() {
    // The handler answers at once, streams for long, and makes further calls meanwhile.
    let bench = Arc::new(Bench::new(|_| Answer::ok("")));
    bench.apply(json!({ "inbound": { "timeout": "200ms" } }));
    let server = {
        let bench = bench.clone();
        server(&bench.runtime.clone(), move |call| {
            let bench = bench.clone();
            async move {
                let (fed, body) = feed();
                let context = Context::current();
                tokio::spawn(context.scope(async move {
                    tokio::time::sleep(10 * S).await;
                    let answer = bench.get().await;
                    fed.send(if answer.is_ok() { "well" } else { "failed" });
                }));
                Ok(call.answered(http::StatusCode::OK, Default::default(), body))
            }
        })
    };
    let mut server = server;
    let reply = tower_service::Service::call(&mut server, post().build()).await.unwrap();
    assert_eq!(read(reply).await.unwrap().text(), "well");
    assert_eq!(bench.upstream.last().deadline, None);
}

/// The server observes the same deadline, and may end the call a moment before the local timer fires.
/// Regression: it was CANCELLED then, which no breaker counts.
#[tokio::test(start_paused = true)]
async fn what_breaks_off_at_the_deadline_is_late_and_not_cancelled() {
    let ends = [
        (Some(Reason::Cancelled), Code::Cancelled),
        (Some(Reason::Internal), Code::Internal),
        (Some(Reason::ConnectionLost), Code::Unavailable),
        (None, Code::Cancelled), // that is its answer
    ];
    for retry in [json!("off"), json!({ "attempts": 2 }), json!({ "attempts": 2, "per_try": "1s" })] {
        for (reset, early) in ends {
            for (after, code) in [(99 * MS, early), (100 * MS, Code::DeadlineExceeded)] {
                let end = move || match reset {
                    Some(reason) => Answer::error(Error::remote(reason, "the stream was reset")),
                    None => Answer::status(499),
                };
                let bench = Bench::new(move |_| end().after(after));
                let breaker = json!({ "min_calls": 1, "failures": ["deadline"] });
                bench.stock(json!({ "retry": retry, "breaker": breaker }));
                let began = Instant::now();
                let ended = bench.run(post().timeout(100 * MS)).await;
                let code_seen = match &ended {
                    Err(error) => error.code(),
                    Ok(answered) => Code::from_http(answered.status),
                };
                assert_eq!(
                    (code_seen, began.elapsed()),
                    (code, after),
                    "{early} after {after:?}, retry {retry}"
                );
                let opened = bench.runtime.inspect().circuits[0].state == State::Open;
                assert_eq!(opened, code == Code::DeadlineExceeded, "{early} after {after:?}, retry {retry}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_off_at_its_deadline_is_late() {
    for (after, code) in [(99 * MS, Code::Cancelled), (100 * MS, Code::DeadlineExceeded)] {
        for by_trailers in [false, true] {
            let bench = Bench::new(move |_| {
                let (fed, body) = feed();
                assert!(fed.send("tick"));
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    match by_trailers {
                        true => {
                            fed.end_with(HeaderMap::from_iter([(STATUS, Code::Cancelled.number().into())]))
                        }
                        false => fed.fail(Error::remote(Reason::Cancelled, "reset")),
                    }
                });
                Answer::streaming(body)
            });
            bench.stock(json!({ "breaker": { "min_calls": 1, "failures": ["deadline"] } }));
            let mut body = bench.send(post().timeout(100 * MS)).await.unwrap().into_body();
            frame(&mut body).await.unwrap().unwrap().unwrap();
            let code_seen = match frame(&mut body).await.unwrap() {
                Err(error) => {
                    assert!(error.maybe_executed());
                    error.code()
                }
                Ok(frame) => Code::from_number(frame.unwrap_err()[STATUS].to_str().unwrap().parse().unwrap()),
            };
            assert_eq!(code_seen, code, "{after:?}, by trailers: {by_trailers}");
            drop(body);
            let opened = bench.runtime.inspect().circuits[0].state == State::Open;
            assert_eq!(opened, code == Code::DeadlineExceeded, "{after:?}, by trailers: {by_trailers}");
        }
    }
}
