//! Every listener gets the outcome of a call exactly once.
use std::sync::Arc;

use chassis_core::{
    Code, Error, Invocation, Reason, Reply, RequestExt, Stage, Stages,
    testing::{Answer, Arrival, CallBuilder, Upstream, feed},
};
use serde_json::json;
use tower_service::Service;

use crate::support::*;

/// Sends a call to which `call` listens, and to each of whose attempts `attempt` listens.
async fn listen(bench: &Bench, builder: CallBuilder, call: &Arc<Recorder>) -> Result<Reply, Error> {
    let mut invocation = builder.build();
    invocation.listen(call.clone(), 7);
    bench.pipeline.clone().call(invocation).await
}

/// A bench with `recorder` as a listener of its attempts.
fn attempts(recorder: &Arc<Recorder>, upstream: Upstream) -> Bench {
    let mut stages = Stages::default();
    let recorder = recorder.clone();
    stages.add_fn(Stage::Attempt, "recorder", None, move |mut call: Invocation, next| {
        call.listen_attempt(recorder.clone(), u64::from(call.previous_attempts));
        next.run(call)
    });
    let bench = Bench::build(upstream, |builder| builder.stages(stages));
    bench.registry.put("stock", ["a", "b"]);
    bench
}

#[tokio::test(start_paused = true)]
async fn a_failing_head_is_judged_at_once_and_ends_with_the_body() {
    let (fed, body) = feed();
    let body = std::sync::Mutex::new(Some(body));
    let bench = Bench::new(move |_| match body.lock().unwrap().take() {
        Some(body) => Answer::streaming(body).with(chassis_core::testing::RETRY_AFTER, "never"),
        None => Answer::status(500),
    });
    let recorder = Recorder::new();
    let reply = listen(&bench, post(), &recorder).await.unwrap();
    recorder.assert_recorded(&[], 0); // a success is provisional until its body ends
    drop(reply);
    recorder.assert_recorded(&[(Code::Cancelled, Some(Reason::Cancelled))], 1);
    assert!(fed.is_closed());
    let recorder = Recorder::new();
    let reply = listen(&bench, post(), &recorder).await.unwrap();
    recorder.assert_recorded(&[(Code::Internal, None)], 0);
    drop(reply);
    recorder.assert_recorded(&[(Code::Internal, None)], 1);
    assert_eq!(*recorder.ended.lock().unwrap(), [7]);
}

#[tokio::test(start_paused = true)]
async fn what_is_all_there_is_judged_with_the_head() {
    let bench = Bench::new(|arrival| match arrival.nth {
        0 => Answer::ok("hello"),
        1 => Answer::trailers("hello", Code::NotFound),
        _ => Answer::ok(""),
    });
    for expected in [Code::Ok, Code::NotFound, Code::Ok] {
        let recorder = Recorder::new();
        let reply = listen(&bench, post(), &recorder).await.unwrap();
        recorder.assert_recorded(&[(expected, None)], 0);
        read(reply).await.unwrap();
        recorder.assert_recorded(&[(expected, None)], 1);
    }
}

#[tokio::test(start_paused = true)]
async fn streams_are_judged_by_trailers_errors_or_their_end() {
    for (how, expected) in [
        ("trailers", (Code::DataLoss, None)),
        ("end", (Code::Ok, None)),
        ("error", (Code::Unavailable, Some(Reason::ConnectionLost))),
    ] {
        let (fed, body) = feed();
        let body = std::sync::Mutex::new(Some(body));
        let bench = Bench::new(move |_| Answer::streaming(body.lock().unwrap().take().unwrap()));
        let recorder = Recorder::new();
        let reply = listen(&bench, post(), &recorder).await.unwrap();
        let mut body = reply.into_body();
        fed.send("one");
        assert_eq!(frame(&mut body).await.unwrap().unwrap().unwrap(), "one");
        recorder.assert_recorded(&[], 0);
        match how {
            "trailers" => {
                let trailers = http::HeaderMap::from_iter([(chassis_core::testing::STATUS, 15u16.into())]);
                fed.end_with(trailers);
                assert!(frame(&mut body).await.unwrap().unwrap().is_err());
            }
            "end" => {
                drop(fed);
                assert!(frame(&mut body).await.is_none());
            }
            _ => {
                fed.fail(Error::remote(Reason::ConnectionLost, "reset"));
                assert!(frame(&mut body).await.unwrap().is_err());
            }
        }
        recorder.assert_recorded(&[expected], 1); // before the body is dropped
        assert!(frame(&mut body).await.is_none(), "{how}: nothing comes after the end");
        drop(body);
        recorder.assert_recorded(&[expected], 1);
    }
}

/// Regression: over HTTP/1.1 no reader polls after the last byte of a body with known length; each download
/// counted as cancelled by its reader.
#[tokio::test(start_paused = true)]
async fn a_reader_that_stops_at_the_length_has_the_whole_answer() {
    const CANCELLED: (Code, Option<Reason>) = (Code::Cancelled, Some(Reason::Cancelled));
    for settings in [json!({ "retry": "off" }), json!({ "retry": { "attempts": 3 } })] {
        for (length, read, expected) in [
            ("6", 2, (Code::Ok, None)),
            ("5", 2, (Code::Ok, None)),
            ("0", 0, (Code::Ok, None)),
            ("6", 1, CANCELLED),
            ("7", 2, CANCELLED),
            ("6", 0, CANCELLED),
            ("", 2, CANCELLED),
            ("many", 2, CANCELLED),
        ] {
            let (fed, body) = feed();
            let body = std::sync::Mutex::new(Some(body));
            let bench = Bench::new(move |_| {
                let answer = Answer::streaming(body.lock().unwrap().take().unwrap());
                answer.with(http::header::CONTENT_LENGTH, length)
            });
            bench.stock(settings.clone());
            let recorder = Recorder::new();
            let (_, metadata, _, mut body) = listen(&bench, get(), &recorder).await.unwrap().into_parts();
            assert_eq!(metadata["content-length"], length);
            for _ in 0..read {
                fed.send("abc");
                assert_eq!(frame(&mut body).await.unwrap().unwrap().unwrap(), "abc");
            }
            drop(body);
            recorder.assert_recorded(&[expected], 1);
            let (well, node) = (u64::from(expected.0 == Code::Ok), bench.node("a"));
            assert_eq!((node.in_flight, node.successes), (0, well), "{length} {read}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_early_counts_for_no_node() {
    let bench = Bench::new(|_| Answer::hang());
    let recorder = Recorder::new();
    let waiting = tokio::time::timeout(100 * MS, listen(&bench, post().timeout(S), &recorder));
    assert!(waiting.await.is_err());
    recorder.assert_recorded(&[(Code::Cancelled, Some(Reason::Cancelled))], 1);
    assert!(recorder.judged.lock().unwrap()[0].1.blames_nobody());
    assert_eq!((bench.node("a").calls, bench.node("a").in_flight), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn black_holes_are_blamed() {
    // Also where the attempt is a copy of the call and does not hold its deadline itself.
    for retry in [json!("off"), json!({ "attempts": 3 })] {
        for settings in
            [json!({ "timeout": "1s", "retry": retry }), json!({ "total_timeout": "1s", "retry": retry })]
        {
            let bench = Bench::new(|_| Answer::hang());
            bench.stock(settings);
            let recorder = Recorder::new();
            let error = listen(&bench, get(), &recorder).await.unwrap_err();
            assert_eq!(error.reason(), Reason::DeadlineExceeded);
            recorder.assert_recorded(&[(Code::DeadlineExceeded, Some(Reason::DeadlineExceeded))], 1);
            let node = bench.node("a");
            assert_eq!((node.calls, node.successes, node.in_flight), (1, 0, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_outlives_the_bounds_on_its_head_is_not_late() {
    let bench = Bench::new(|_| {
        let (fed, body) = feed();
        tokio::spawn(async move { fed.closed().await });
        Answer::streaming(body)
    });
    bench.stock(json!({ "timeout": "1s", "retry": { "per_try": "100ms" } }));
    for options in [get(), get().no_retry(), get().timeout(60 * S)] {
        let recorder = Recorder::new();
        let reply = listen(&bench, options, &recorder).await.unwrap();
        tokio::time::sleep(10 * S).await;
        drop(reply);
        recorder.assert_recorded(&[(Code::Cancelled, Some(Reason::Cancelled))], 1);
    }
    assert_eq!(bench.node("a").calls, 0, "no node counts a failure");
    let recorder = Recorder::new();
    let reply = listen(&bench, get().timeout(5 * S), &recorder).await.unwrap();
    tokio::time::sleep(5 * S).await;
    drop(reply);
    recorder.assert_recorded(&[(Code::DeadlineExceeded, Some(Reason::DeadlineExceeded))], 1);
}

#[tokio::test(start_paused = true)]
async fn every_attempt_and_the_call_report_their_own_end() {
    let (call, attempt) = (Recorder::new(), Recorder::new());
    let upstream = Upstream::new(|arrival| match arrival.total {
        0 => Answer::status(503),
        1 => Answer::lost(),
        _ => Answer::ok("at last"),
    });
    let bench = attempts(&attempt, upstream);
    bench.stock(json!({ "retry": { "attempts": 5 } }));
    let reply = listen(&bench, get(), &call).await.unwrap();
    let (unavailable, lost) = ((Code::Unavailable, None), (Code::Unavailable, Some(Reason::ConnectionLost)));
    attempt.assert_recorded(&[unavailable, lost, (Code::Ok, None)], 2);
    call.assert_recorded(&[(Code::Ok, None)], 0);
    read(reply).await.unwrap();
    attempt.assert_recorded(&[unavailable, lost, (Code::Ok, None)], 3);
    call.assert_recorded(&[(Code::Ok, None)], 1);
    assert_eq!(*attempt.ended.lock().unwrap(), [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn the_last_attempts_end_is_the_calls() {
    let (call, attempt) = (Recorder::new(), Recorder::new());
    let bench = attempts(&attempt, Upstream::new(|_| Answer::lost()));
    let error = listen(&bench, get(), &call).await.unwrap_err();
    assert_eq!(error.reason(), Reason::ConnectionLost);
    attempt.assert_recorded(&[(Code::Unavailable, Some(Reason::ConnectionLost)); 2], 2);
    call.assert_recorded(&[(Code::Unavailable, Some(Reason::ConnectionLost))], 1);
}

#[tokio::test(start_paused = true)]
async fn given_up_between_two_attempts() {
    let (call, attempt) = (Recorder::new(), Recorder::new());
    let bench = attempts(&attempt, Upstream::new(|_| Answer::lost()));
    bench.stock(json!({ "retry": { "attempts": 2, "backoff": "1000s" }, "timeout": "off" }));
    assert!(tokio::time::timeout(MS, listen(&bench, get(), &call)).await.is_err());
    attempt.assert_recorded(&[(Code::Unavailable, Some(Reason::ConnectionLost))], 1);
    call.assert_recorded(&[(Code::Cancelled, Some(Reason::Cancelled))], 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_returned_twice_reports_its_error() {
    for call in [get(), get().no_retry()] {
        let (recorder, attempt) = (Recorder::new(), Recorder::new());
        let bench = attempts(&attempt, Upstream::new(|_| Answer::unsent()));
        bench.stock(json!({ "retry": { "attempts": 2, "budget": { "min": "0/s", "share": "0%" } } }));
        let error = listen(&bench, call, &recorder).await.unwrap_err();
        assert_eq!((error.reason(), error.maybe_executed()), (Reason::ConnectFailed, false));
        recorder.assert_recorded(&[(Code::Unavailable, Some(Reason::ConnectFailed))], 1);
        attempt.assert_recorded(&[(Code::Unavailable, Some(Reason::ConnectFailed)); 2], 2);
        assert_eq!(bench.upstream.total(), 2, "once, and resent once");
    }
}

#[tokio::test(start_paused = true)]
async fn a_local_refusal_is_reported_too() {
    let bench = Bench::new(|_| Answer::ok(""));
    bench.stock(json!({ "rate_limits": [{ "name": "none", "rate": "0/s", "burst": 0 }] }));
    let recorder = Recorder::new();
    listen(&bench, get(), &recorder).await.unwrap_err();
    recorder.assert_recorded(&[(Code::ResourceExhausted, Some(Reason::RateLimited))], 1);
    assert!(recorder.judged.lock().unwrap()[0].1.blames_nobody());
}

#[tokio::test(start_paused = true)]
async fn listeners_get_the_outcome_of_a_call_that_was_never_sent() {
    let recorder = Recorder::new();
    let mut call = get().build();
    call.listen(recorder.clone(), 1);
    call.listen(recorder.clone(), 2);
    call.listen_attempt(recorder.clone(), 3);
    drop(call);
    recorder.assert_recorded(&[(Code::Cancelled, Some(Reason::Cancelled)); 3], 3);
    let mut ended = recorder.ended.lock().unwrap().clone();
    ended.sort_unstable();
    assert_eq!(ended, [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_ours_blames_no_endpoint() {
    let bench = Bench::new(|_| Answer::ok("hello"));
    run(&bench.pipeline, get().build()).await.unwrap();
    let pipeline = bench.pipeline.clone();
    let task = tokio::spawn(async move {
        let (_fed, body) = feed();
        let mut call = get().build();
        call.body = body; // never ends: the call is in flight
        let _sent = pipeline.clone().call(call);
        panic!("while a call is under way");
    });
    assert!(task.await.is_err());
    let node = bench.node("a");
    assert_eq!((node.calls, node.successes, node.in_flight), (1, 1, 0));
}

/// Values of `per_try`: without and with a limit on each attempt.
const WAYS: [&str; 2] = ["off", "5s"];

fn retried(per_try: &str, script: fn(&Arrival) -> Answer) -> Bench {
    let bench = Bench::with(["a", "b"], script);
    let retry = json!({ "backoff": "10s", "per_try": per_try });
    bench.stock(json!({ "timeout": "off", "concurrency": 1, "retry": retry }));
    bench
}

#[tokio::test(start_paused = true)]
async fn given_up_between_attempts_is_not_what_the_last_one_was() {
    for way in WAYS {
        let (bench, recorder) = (retried(way, |_| Answer::lost()), Recorder::new());
        let waited = tokio::time::timeout(10 * MS, listen(&bench, get(), &recorder)).await;
        assert!(waited.is_err(), "it waits for its second attempt");
        assert_eq!(bench.upstream.total(), 1);
        recorder.assert_recorded(&[(Code::Cancelled, Some(Reason::Cancelled))], 1);
        assert_eq!(bench.node("a").in_flight + bench.node("b").in_flight, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn is_what_the_last_attempt_was() {
    let good_in_the_end: [fn(&Arrival) -> Answer; 3] = [
        |arrival| if arrival.total == 0 { Answer::lost() } else { Answer::ok("good") },
        |arrival| if arrival.total == 0 { Answer::status(503) } else { Answer::ok("good") },
        |arrival| if arrival.total == 0 { Answer::unsent() } else { Answer::ok("good") },
    ];
    for way in WAYS {
        for script in good_in_the_end {
            let (bench, recorder) = (retried(way, script), Recorder::new());
            let reply = listen(&bench, get(), &recorder).await.unwrap();
            assert_eq!(read(reply).await.unwrap().text(), "good");
            recorder.assert_recorded(&[(Code::Ok, None)], 1);
            assert_eq!(bench.upstream.total(), 2);
        }
        let (bench, recorder) = (retried(way, |_| Answer::status(503)), Recorder::new());
        drop(listen(&bench, get(), &recorder).await.unwrap());
        recorder.assert_recorded(&[(Code::Unavailable, None)], 1);
        let (bench, recorder) = (retried(way, |_| Answer::lost()), Recorder::new());
        listen(&bench, get(), &recorder).await.unwrap_err();
        recorder.assert_recorded(&[(Code::Unavailable, Some(Reason::ConnectionLost))], 1);
        assert_eq!((bench.upstream.total(), bench.get().await.is_err()), (2, true), "it has given back all");
        let (bench, recorder) = (retried(way, |_| Answer::unsent()), Recorder::new());
        listen(&bench, get(), &recorder).await.unwrap_err();
        recorder.assert_recorded(&[(Code::Unavailable, Some(Reason::ConnectFailed))], 1);
        assert_eq!(bench.upstream.total(), 3, "once, resent, and retried");
    }
}

#[tokio::test(start_paused = true)]
async fn is_not_over_when_a_users_layer_drops_an_attempt() {
    let mut stages = Stages::default();
    stages.add_fn(Stage::Attempt, "impatient", None, |call: Invocation, next| async move {
        if call.previous_attempts > 0 {
            return next.run(call).await;
        }
        drop(call);
        Err(Error::remote(Reason::DeadlineExceeded, "too long for me").into())
    });
    let bench = Bench::build(Upstream::new(|_| Answer::ok("good")), |builder| builder.stages(stages));
    bench.registry.put("stock", ["a", "b"]);
    let recorder = Recorder::new();
    let reply = listen(&bench, get(), &recorder).await.unwrap();
    assert_eq!(read(reply).await.unwrap().text(), "good");
    recorder.assert_recorded(&[(Code::Ok, None)], 1);
}
