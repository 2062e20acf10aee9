//! A call and its attempts: ownership of bodies, headers and permits, and when they are freed.
use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
};

use chassis_core::{
    Body, Code, Connection, Error, Failed, Invocation, Next, Reason, Reply, Stage, Stages,
    testing::{Answer, Arrival, STATUS, Upstream, feed},
};
use http::{HeaderMap, HeaderValue};
use serde_json::json;
use tower_service::Service;

use crate::support::*;

/// The first attempt gets a failure, the second one is lost, the third one succeeds; each of them after 10
/// ms.
fn third_time_lucky(arrival: &Arrival) -> Answer {
    match arrival.total {
        0 => Answer::status(503).after(10 * MS),
        1 => Answer::lost().after(10 * MS),
        _ => Answer::ok("good").after(10 * MS),
    }
}

/// A user's layer around each attempt, which takes 3 ms.
fn slow(stages: &mut Stages) {
    stages.add_fn(Stage::Attempt, "slow", None, |call, next| async move {
        tokio::time::sleep(3 * MS).await;
        next.run(call).await
    });
}

/// A bench whose calls wait for a node, the delay of a fault, a user's layer, the upstream, and backoffs.
async fn waiting(per_try: &str, is_users: bool) -> Bench {
    let mut stages = Stages::default();
    if is_users {
        slow(&mut stages);
    }
    let upstream = Upstream::new(third_time_lucky).begin_as(Connection::Connecting);
    let bench = Bench::build(upstream, |builder| builder.stages(stages));
    bench.registry.put("stock", ["a", "b"]);
    bench.apply(json!({
        "faults": [{ "name": "slow", "to": "stock", "delay": "5ms", "at": "attempt" }],
        "outbound": { "services": { "stock": {
            "concurrency": 1, "breaker": { "scope": "endpoint" }, "timeout": "1s",
            "retry": { "attempts": 3, "backoff": "10ms", "per_try": per_try },
        } } },
    }));
    settle().await;
    let upstream = bench.upstream.clone();
    tokio::spawn(async move {
        tokio::time::sleep(20 * MS).await;
        ["memory:a", "memory:b"].iter().for_each(|node| upstream.connect(node, Connection::Ready));
    });
    bench
}

/// Polls `future` at most `most` times, each time after a wake-up. `None` if it has not resolved by then.
async fn polled<T>(mut future: Pin<&mut impl Future<Output = T>>, most: usize) -> Option<T> {
    let mut polls = 0;
    std::future::poll_fn(|cx| {
        if polls == most {
            return Poll::Ready(None);
        }
        polls += 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

/// A call that is dropped at any await point is settled exactly once: as cancelled, or as late if its
/// deadline had passed.
#[tokio::test(start_paused = true)]
async fn a_call_is_settled_once_wherever_it_is_dropped() {
    for (per_try, is_users, is_late) in [
        ("off", false, false),
        ("off", false, true),
        ("5s", false, false),
        ("off", true, true),
        ("5s", true, false),
    ] {
        let mut most = 0;
        loop {
            let about = format!("per_try {per_try}, a user's layer {is_users}, late {is_late}, {most} polls");
            let bench = waiting(per_try, is_users).await;
            let recorder = Recorder::new();
            let mut call = get().build();
            call.listen(recorder.clone(), 7);
            let mut pipeline = bench.pipeline.clone();
            let mut running = Box::pin(pipeline.call(call));
            if let Some(answer) = polled(running.as_mut(), most).await {
                assert_eq!(read(answer.unwrap()).await.unwrap().text(), "good", "{about}");
                recorder.assert_recorded(&[(Code::Ok, None)], 1);
                break;
            }
            recorder.assert_recorded(&[], 0);
            if is_late {
                tokio::time::advance(2 * S).await; // it is not polled meanwhile
            }
            drop(running);
            let expected = if is_late { Reason::DeadlineExceeded } else { Reason::Cancelled };
            assert_eq!(recorder.judged.lock().unwrap()[0].1.reason, Some(expected), "{about}");
            recorder.assert_recorded(&[(expected.code(), Some(expected))], 1);
            assert_eq!(bench.runtime.inspect().concurrency[0].in_use, 0, "{about}");
            assert_eq!(["a", "b"].map(|node| bench.node(node).in_flight), [0, 0], "{about}");
            most += 1;
        }
        assert!(most >= 6, "it waits for more than that: {most}");
    }
}

/// The late answer of a failed attempt, or the late drop of it, does not change the call's outcome.
#[tokio::test(start_paused = true)]
async fn a_loser_that_ends_late_changes_nothing() {
    // A layer keeps the answer of the first attempt and reports a failure; later it reads that answer on.
    let kept = Arc::<Mutex<Option<Reply>>>::default();
    let mut stages = Stages::default();
    let keeps = kept.clone();
    stages.add_fn(Stage::Attempt, "keeps", None, move |call: Invocation, next: Next<Failed>| {
        let kept = keeps.clone();
        async move {
            let is_first = call.previous_attempts == 0;
            let reply = next.run(call).await?;
            match is_first {
                true => {
                    *kept.lock().unwrap() = Some(reply);
                    Err(Error::remote(Reason::ConnectionLost, "or so it seems").into())
                }
                false => Ok(reply),
            }
        }
    });
    let (down, late) = feed();
    let late = Mutex::new(Some(late));
    let upstream = Upstream::new(move |_| match late.lock().unwrap().take() {
        Some(late) => Answer::streaming(late),
        None => Answer::ok("good"),
    });
    let bench = Bench::build(upstream, |builder| builder.stages(stages));
    bench.registry.put("stock", ["a", "b"]);
    bench.stock(json!({ "concurrency": 1 }));
    let recorder = Recorder::new();
    let mut call = get().build();
    call.listen(recorder.clone(), 7);
    let reply = bench.pipeline.clone().call(call).await.unwrap();
    recorder.assert_recorded(&[(Code::Ok, None)], 0);
    let loser = kept.lock().unwrap().take().unwrap();
    assert_eq!(bench.upstream.total(), 2);
    down.end_with(HeaderMap::from_iter([(STATUS, HeaderValue::from(15u16))]));
    read(loser).await.unwrap();
    recorder.assert_recorded(&[(Code::Ok, None)], 0);
    assert_eq!(bench.runtime.inspect().concurrency[0].in_use, 1, "the call is under way");
    read(reply).await.unwrap();
    recorder.assert_recorded(&[(Code::Ok, None)], 1);
    assert_eq!(bench.runtime.inspect().concurrency[0].in_use, 0);
}

/// A long answer does not keep the request in memory, as far as it was kept for further attempts.
#[tokio::test(start_paused = true)]
async fn headers_and_body_are_freed_once_an_attempt_has_won() {
    for streams in [false, true] {
        for fails_first in [false, true] {
            let about = format!("streams {streams}, fails first {fails_first}");
            let hangs = Arc::<Mutex<Vec<chassis_core::testing::Feed>>>::default();
            let feeds = hangs.clone();
            let upstream = Upstream::new(move |arrival| {
                if fails_first && arrival.total == 0 {
                    return Answer::lost();
                }
                let (down, body) = feed();
                feeds.lock().unwrap().push(down);
                Answer::streaming(body)
            });
            // The upstream records the requests it receives, so this layer passes none of the body on.
            let mut stages = Stages::default();
            stages.add_fn(Stage::Node, "hide", None, |mut call: Invocation, next| {
                call.metadata.remove("x-own");
                next.run(call)
            });
            let bench = Bench::build(upstream, |builder| builder.stages(stages));
            bench.registry.put("stock", ["a", "b"]);
            let (value, header) = watched("a header");
            let (chunk, body) = watched("a body");
            let mut call = get().build();
            call.metadata.insert("x-own", HeaderValue::from_maybe_shared(value).unwrap());
            call.body = match streams {
                false => Body::full(chunk),
                true => {
                    let (up, body) = feed();
                    up.send(chunk);
                    body
                }
            };
            let reply = bench.pipeline.clone().call(call).await.unwrap();
            assert_eq!(bench.upstream.total(), 1 + usize::from(fails_first), "{about}");
            assert_eq!(body.strong_count(), 0, "{about}: the body");
            assert_eq!(header.strong_count(), 0, "{about}: the headers");
            drop(reply);
        }
    }
}

#[derive(Clone)]
struct Mark(#[allow(dead_code)] Arc<()>);

#[derive(Clone)]
struct Tag;

/// Each attempt has the caller's extension values; values that one attempt adds stay its own.
#[tokio::test(start_paused = true)]
async fn every_attempt_has_extensions_of_its_own() {
    let seen = Arc::<AtomicUsize>::default();
    let mut stages = Stages::default();
    let count = seen.clone();
    stages.add_fn(Stage::Attempt, "tag", None, move |mut call: Invocation, next| {
        assert!(call.extensions.get::<Mark>().is_some(), "the caller's");
        assert!(call.extensions.insert(Tag).is_none(), "of an attempt before");
        count.fetch_add(1, SeqCst);
        next.run(call)
    });
    let bench = Bench::build(Upstream::new(third_time_lucky), |builder| builder.stages(stages));
    bench.registry.put("stock", ["a", "b"]);
    bench.stock(json!({ "retry": { "attempts": 3 } }));
    let mark = Arc::new(());
    let mut call = get().build();
    call.extensions.insert(Mark(mark.clone()));
    let reply = bench.pipeline.clone().call(call).await.unwrap();
    assert_eq!(seen.load(SeqCst), 3);
    assert!(reply.extensions.get::<Tag>().is_some(), "the winner's");
    assert_eq!(Arc::strong_count(&mark), 2, "the others are gone");
}

/// After an upgrade the connection is the caller's, so nothing can be sent again.
#[tokio::test(start_paused = true)]
async fn an_upgrade_is_never_retried() {
    let bench = Bench::with(["a", "b"], |_| Answer::status(101));
    bench.stock(json!({ "retry": { "attempts": 3, "when": "always", "on": ["UNAVAILABLE", "connect"] } }));
    assert_eq!(bench.post().await.unwrap().status, 101);
    assert_eq!(bench.upstream.total(), 1);
}

/// Layers that pass calls on in different ways: tower's own with its boxed errors, built-in ones, an async
/// function, and one that returns another error.
fn in_between(stages: &mut Stages, stage: Stage<Failed>, how: &str) {
    let service = Some("stock");
    match how {
        "tower" => stages.add_layer(stage, how, service, tower::timeout::TimeoutLayer::new(S)),
        "function" => stages.add_fn(stage, how, service, |call, next| async move { next.run(call).await }),
        "map" => stages.add_fn(stage, how, service, |call, next| async move {
            next.run(call).await.map_err(|failed| failed.map(|error| error.with_rule("in other words")))
        }),
        _ => {}
    }
}

/// A stream cannot be sent again from a copy. If nothing of it was sent, it is resent nevertheless, because the
/// leaf gives it back, through any layer in between.
#[tokio::test(start_paused = true)]
async fn a_refused_stream_is_resent_through_layers_of_the_users() {
    for (how, stage) in [("none", Stage::Node), ("tower", Stage::Attempt), ("tower", Stage::Node)]
        .into_iter()
        .chain([("function", Stage::Attempt), ("function", Stage::Node), ("map", Stage::Node)])
    {
        for retry in [json!("off"), json!({ "attempts": 1 }), json!({ "replay_bytes": "off" }), json!({})] {
            let about = format!("{how} at {stage:?}, retry {retry}");
            let (recorder, mut stages) = (Recorder::new(), Stages::default());
            in_between(&mut stages, stage, how);
            let upstream =
                Upstream::new(|a| if a.total == 0 { Answer::unsent() } else { Answer::ok("well") });
            let bench = Bench::build(upstream, |builder| builder.stages(stages));
            bench.registry.put("stock", ["a", "b"]);
            bench.stock(json!({ "retry": retry, "concurrency": 1 }));
            let (up, body) = feed();
            let mut call = post().streaming(body).build();
            call.listen(recorder.clone(), 7);
            let sending = tokio::spawn(async move {
                tokio::time::sleep(MS).await; // while the first attempt is over
                up.send("all of it")
            });
            let reply = within("an answer", bench.pipeline.clone().call(call)).await.unwrap();
            assert!(sending.await.unwrap(), "{about}");
            assert_eq!(read(reply).await.unwrap().text(), "well", "{about}");
            let arrivals = bench.upstream.arrivals();
            assert_eq!((arrivals.len(), &arrivals[1].body[..]), (2, &b"all of it"[..]), "{about}");
            assert_ne!(arrivals[0].address, arrivals[1].address, "{about}: it knows where it was");
            recorder.assert_recorded(&[(Code::Ok, None)], 1);
            assert_eq!(bench.runtime.inspect().concurrency[0].in_use, 0, "{about}");
            assert_eq!(["a", "b"].map(|node| bench.node(node).in_flight), [0, 0], "{about}");
        }
    }
}

/// An error keeps the node of its last attempt, and nodes that were tried are skipped, with any layer in
/// between.
#[tokio::test(start_paused = true)]
async fn an_error_keeps_the_address_of_its_last_node() {
    let answers: [fn() -> Answer; 4] = [Answer::lost, Answer::unsent, Answer::refused, Answer::hang];
    for (answer, how) in
        answers.into_iter().flat_map(|answer| ["none", "tower", "map"].map(|how| (answer, how)))
    {
        for attempts in [1, 3] {
            let mut stages = Stages::default();
            in_between(&mut stages, Stage::Node, how);
            let bench = Bench::build(Upstream::new(move |_| answer()), |builder| builder.stages(stages));
            bench.registry.put("stock", ["a", "b", "c", "d"]);
            let retry = json!({ "attempts": attempts, "per_try": "100ms", "budget": "off" });
            bench.stock(json!({ "breaker": "off", "retry": retry }));
            let error = bench.get().await.unwrap_err();
            let arrivals: Vec<_> = bench.upstream.arrivals().into_iter().map(|a| a.address).collect();
            assert_eq!(error.endpoint(), arrivals.last().map(String::as_str), "{how}, {error:?}");
            let visited: std::collections::BTreeSet<_> = arrivals.iter().collect();
            assert_eq!(visited.len(), arrivals.len(), "{how}, {error:?}: {arrivals:?}");
        }
    }
}

/// A layer may give back a call that it did not receive, or one that nothing has ended: no permit of a node is
/// lost.
#[tokio::test(start_paused = true)]
async fn whichever_call_is_given_back_all_that_was_taken_comes_back() {
    for (stage, is_copy) in
        [(Stage::Attempt, false), (Stage::Attempt, true), (Stage::Node, false), (Stage::Node, true)]
    {
        let mut stages = Stages::default();
        stages.add_fn(stage, "gives back", None, move |call: Invocation, next: Next<Failed>| async move {
            if !call.tried().is_empty() {
                return next.run(call).await;
            }
            let given = if is_copy { call.try_clone().unwrap() } else { call };
            Err(Failed::from(Error::remote(Reason::StreamRefused, "not here")).returning(given))
        });
        let bench = Bench::build(Upstream::new(|_| Answer::ok("well")), |builder| builder.stages(stages));
        bench.registry.put("stock", ["a", "b"]);
        settle().await;
        for retry in [json!("off"), json!({})] {
            bench.stock(json!({ "retry": retry, "concurrency": 1, "breaker": { "scope": "endpoint" } }));
            let _ = bench.get().await;
            assert_eq!(bench.runtime.inspect().concurrency[0].in_use, 0, "{stage:?} {is_copy} {retry}");
            assert_eq!(
                ["a", "b"].map(|node| bench.node(node).in_flight),
                [0, 0],
                "{stage:?} {is_copy} {retry}"
            );
        }
    }
}
