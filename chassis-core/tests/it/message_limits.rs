//! Limits of one call: bytes of its answer, number and rate of its messages. Messages of the test protocol are
//! lines.
use std::sync::Arc;

use chassis_core::{
    Body, Code, Error, Event, Invocation, Origin, Reason, Reply,
    pipeline::Pipeline,
    testing::{Answer, CallBuilder, Feed, feed},
};
use http::StatusCode;
use serde_json::{Value, json};

use crate::support::*;

/// A node whose answers have the body that `answer` creates.
fn bench(limits: Value, answer: impl Fn() -> Body + Send + Sync + 'static) -> Bench {
    let bench = Bench::new(move |_| Answer::streaming(answer()));
    bench.stock(json!({ "message_limits": limits }));
    bench
}

/// A body that streams these chunks and ends.
fn stream(chunks: &[&'static str]) -> Body {
    let (fed, body) = feed();
    chunks.iter().for_each(|chunk| assert!(fed.send(*chunk)));
    body
}

/// Sends `call` and reads its answer; returns the part that arrived, and the error that ended it.
async fn read_until(pipeline: &Pipeline, call: Invocation) -> (String, Option<Error>) {
    let mut read = String::new();
    let reply = match within("a head", tower_service::Service::call(&mut pipeline.clone(), call)).await {
        Ok(reply) => reply,
        Err(error) => return (read, Some(error)),
    };
    let mut body = reply.into_body();
    loop {
        match frame(&mut body).await {
            None => return (read, None),
            Some(Ok(Ok(chunk))) => read.push_str(std::str::from_utf8(&chunk).unwrap()),
            Some(Ok(Err(_))) => {}
            Some(Err(error)) => return (read, Some(error)),
        }
    }
}

/// Checks that this process refused, by the rule of this key.
#[track_caller]
fn cut(error: Option<Error>, reason: Reason, key: &str) {
    let error = error.expect("it is cut off");
    assert_eq!((error.code(), error.reason()), (Code::ResourceExhausted, reason), "{error:?}");
    assert_eq!((error.origin(), error.maybe_executed()), (Origin::Local, true), "{error:?}");
    assert_eq!(error.rule(), Some(&*format!("message_limits.{key}")));
}

#[tokio::test(start_paused = true)]
async fn an_answer_has_no_more_bytes_than_the_bound_says() {
    for (chunks, passes) in [(&["12", "345"][..], true), (&["12", "345", "6"], false), (&["123456"], false)] {
        let bench = bench(json!({ "answer_bytes": 5 }), move || stream(chunks));
        let recorder = Recorder::new();
        let mut call = get().build();
        call.listen(recorder.clone(), 0);
        let (read, error) = read_until(&bench.pipeline, call).await;
        if passes {
            assert_eq!((&*read, error.is_none()), ("12345", true));
            recorder.assert_recorded(&[(Code::Ok, None)], 1);
            continue;
        }
        assert!(read.len() <= 5, "{read}");
        cut(error, Reason::TooLarge, "answer_bytes");
        recorder.assert_recorded(&[(Code::ResourceExhausted, Some(Reason::TooLarge))], 1);
        let rejected = [("side", "client"), ("service", "stock"), ("reason", "TOO_LARGE")];
        assert_eq!(bench.metric("chassis_rejected_total", &rejected), 1.0);
        let refusals = |e: &Event| matches!(e, Event::Refusing { reason: Reason::TooLarge, .. });
        assert_eq!(bench.count_events(refusals), 1);
        let (node, view) = (bench.node("a"), &bench.runtime.inspect().message_limits[0]);
        assert_eq!((node.in_flight, node.failure_share), (0, 0.0), "no node is blamed");
        assert_eq!(view.answer_bytes.as_deref(), Some("5"));
        assert_eq!((view.cut_requests, view.cut_answers), (0, 1));
        assert_eq!(bench.upstream.total(), 1, "and none is asked again");
    }
}

/// Regression: it was judged with its head, and counted as a success.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_all_there_is_refused_before_it_is_judged() {
    let bench = Bench::new(|_| Answer::ok("123456"));
    bench.stock(json!({ "message_limits": { "answer_bytes": 5 } }));
    for operation in [get, post] {
        let recorder = Recorder::new();
        let mut call = operation().build();
        call.listen(recorder.clone(), 0);
        let (read, error) = read_until(&bench.pipeline, call).await;
        assert_eq!(read, "");
        cut(error, Reason::TooLarge, "answer_bytes");
        recorder.assert_recorded(&[(Code::ResourceExhausted, Some(Reason::TooLarge))], 1);
    }
    assert_eq!((bench.upstream.total(), bench.node("a").failure_share), (2, 0.0));
    bench.stock(json!({ "message_limits": { "answer_bytes": 6 } }));
    assert_eq!(bench.get().await.unwrap().body, "123456");
}

#[tokio::test(start_paused = true)]
async fn as_many_messages_of_an_answer_pass_as_the_bound_says() {
    for chunks in [&["a\nb\nc\n"][..], &["a", "\nb", "\n", "c\n"], &["a\n", "b\n", "c\n"]] {
        let bench = bench(json!({ "answer_messages": 2 }), move || stream(chunks));
        let (read, error) = read_until(&bench.pipeline, get().build()).await;
        assert_eq!(read, "a\nb\n", "{chunks:?}");
        cut(error, Reason::TooLarge, "answer_messages");
    }
    // The same holds for a complete answer, and for one that ends in time.
    let bench = Bench::new(|_| Answer::ok("a\nb\nc\n"));
    bench.stock(json!({ "message_limits": { "answer_messages": 2 } }));
    let (read, error) = read_until(&bench.pipeline, get().build()).await;
    assert_eq!(read, "a\nb\n");
    cut(error, Reason::TooLarge, "answer_messages");
    bench.stock(json!({ "message_limits": { "answer_messages": 3 } }));
    assert_eq!(bench.get().await.unwrap().body, "a\nb\nc\n");
}

#[tokio::test(start_paused = true)]
async fn messages_of_an_answer_come_no_quicker_than_the_rate_says() {
    let feeds: Arc<std::sync::Mutex<Vec<Feed>>> = Arc::default();
    let kept = feeds.clone();
    let bench = bench(json!({ "answer_rate": "2/s" }), move || {
        let (fed, body) = feed();
        kept.lock().unwrap().push(fed);
        body
    });
    let mut body = bench.send(get()).await.unwrap().into_body();
    let fed = feeds.lock().unwrap().pop().unwrap();
    for _ in 0..20 {
        assert!(fed.send("a\n"));
        assert_eq!(frame(&mut body).await.unwrap().unwrap().unwrap(), "a\n");
        tokio::time::sleep(500 * MS).await;
    }
    // Two at once, which is the amount of one second, and one more.
    assert!(fed.send("a\nb\nc\n"));
    assert_eq!(frame(&mut body).await.unwrap().unwrap().unwrap(), "a\nb\n");
    cut(frame(&mut body).await.unwrap().err(), Reason::RateLimited, "answer_rate");
    assert!(fed.is_closed(), "nothing more is read");
    assert!(frame(&mut body).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_over_its_bounds_ends_the_call() {
    // The node reads the whole request and never answers.
    let bench = Bench::new(|_| Answer::hang().reading(usize::MAX));
    bench.stock(
        json!({ "timeout": "off", "message_limits": { "request_messages": 2, "request_rate": "100/s" } }),
    );
    let recorder = Recorder::new();
    let (fed, body) = feed();
    let mut call = post().streaming(body).build();
    call.listen(recorder.clone(), 0);
    let pipeline = bench.pipeline.clone();
    let waits = tokio::spawn(async move { read_until(&pipeline, call).await });
    for message in ["a\n", "b\n"] {
        assert!(fed.send(message));
        settle().await;
        assert!(!waits.is_finished());
    }
    fed.send("c\n");
    let (_, error) = within("the end", waits).await.unwrap();
    cut(error, Reason::TooLarge, "request_messages");
    recorder.assert_recorded(&[(Code::ResourceExhausted, Some(Reason::TooLarge))], 1);
    assert_eq!((bench.node("a").in_flight, bench.node("a").failure_share), (0, 0.0));
    assert_eq!(bench.upstream.total(), 1);
    assert!(fed.is_closed());
    assert_eq!(bench.runtime.inspect().message_limits[0].cut_requests, 1);
    // A complete request is refused before any of it is sent.
    let refused = bench.run(post().body("a\nb\nc\n")).await.unwrap_err();
    assert_eq!((refused.reason(), refused.maybe_executed()), (Reason::TooLarge, false));
    assert_eq!(bench.upstream.total(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_cut_off_ends_an_answer_that_has_begun() {
    for (limits, reason, key) in [
        (json!({ "request_messages": 2 }), Reason::TooLarge, "request_messages"),
        (json!({ "request_rate": "2/s" }), Reason::RateLimited, "request_rate"),
    ] {
        let bench = Bench::new(|_| Answer::ok(""));
        bench.apply(json!({ "inbound": { "message_limits": limits } }));
        // Reads while it answers, and never ends its answer.
        let server = server(&bench.runtime, |mut call: Invocation| async move {
            let (fed, answer) = feed();
            let request = std::mem::take(&mut call.body);
            tokio::spawn(async move {
                let _ = drain(request).await;
                fed.closed().await;
            });
            Ok::<Reply, Error>(call.answered(StatusCode::OK, Default::default(), answer))
        });
        let recorder = Recorder::new();
        let (fed, body) = feed();
        let mut call = CallBuilder::post("orders", "Chat").streaming(body).build();
        call.listen(recorder.clone(), 0);
        fed.send("a\nb\n");
        let reply = within("a head", tower_service::Service::call(&mut server.clone(), call)).await;
        let mut body = reply.unwrap().into_body();
        let reads = tokio::spawn(async move { frame(&mut body).await.unwrap().err() });
        settle().await;
        assert!(!reads.is_finished());
        recorder.assert_recorded(&[], 0);
        fed.send("c\n");
        cut(within("the end", reads).await.unwrap(), reason, key);
        recorder.assert_recorded(&[(Code::ResourceExhausted, Some(reason))], 1);
        assert!(fed.is_closed());
    }
}

/// A handler that reads its request as far as it arrives, and answers with `ok` in any case.
fn forgiving(bench: &Bench) -> Pipeline {
    server(&bench.runtime, |mut call: Invocation| async move {
        let read = drain(std::mem::take(&mut call.body)).await;
        let body = if read.is_ok() { "whole" } else { "cut off" };
        Ok::<Reply, Error>(call.answered(StatusCode::OK, Default::default(), Body::full(body)))
    })
}

#[tokio::test(start_paused = true)]
async fn a_server_ends_a_call_whose_request_is_over_whatever_its_handler_says() {
    let bench = Bench::new(|_| Answer::ok(""));
    bench.apply(json!({ "inbound": { "message_limits": { "request_messages": 2 } } }));
    let server = forgiving(&bench);
    let call = || CallBuilder::post("orders", "Read");
    assert_eq!(read_until(&server, call().streaming(stream(&["a\n", "b\n"])).build()).await.0, "whole");
    let recorder = Recorder::new();
    let mut over = call().streaming(stream(&["a\n", "b\n", "c\n"])).build();
    over.listen(recorder.clone(), 0);
    let (read, error) = read_until(&server, over).await;
    assert_eq!(read, "");
    cut(error, Reason::TooLarge, "request_messages");
    recorder.assert_recorded(&[(Code::ResourceExhausted, Some(Reason::TooLarge))], 1);
    let rejected = [("side", "server"), ("service", "orders"), ("reason", "TOO_LARGE")];
    assert_eq!(bench.metric("chassis_rejected_total", &rejected), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_server_bounds_its_answers() {
    let bench = Bench::new(|_| Answer::ok(""));
    bench.apply(json!({ "inbound": { "message_limits": { "answer_bytes": 4, "answer_messages": 2 } } }));
    for (body, passes, key) in [
        (&["a\n", "b\n"][..], "a\nb\n", None),
        (&["a\n", "b", "\n", "c"], "a\nb\n", Some("answer_bytes")),
        (&["\n\n", "\n"], "\n\n", Some("answer_messages")),
    ] {
        let answer = move |call: Invocation| async move {
            Ok::<Reply, Error>(call.answered(StatusCode::OK, Default::default(), stream(body)))
        };
        let server = server(&bench.runtime, answer);
        let (read, error) = read_until(&server, CallBuilder::post("orders", "Get").build()).await;
        assert_eq!(read, passes);
        match key {
            None => assert!(error.is_none(), "{error:?}"),
            Some(key) => cut(error, Reason::TooLarge, key),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bounds_are_inherited_key_by_key_and_can_be_lifted() {
    let bench = Bench::new(|_| Answer::ok("123456"));
    let apply = |of_service: Value, of_operation: Value| {
        bench.apply(json!({ "outbound": {
            "defaults": { "message_limits": { "answer_bytes": 5 } },
            "services": { "stock": { "message_limits": of_service, "operations": { "Get": { "message_limits": of_operation } } } },
        } }));
    };
    let well = async || (bench.get().await.is_ok(), bench.post().await.is_ok());
    apply(json!({}), json!({}));
    assert_eq!(well().await, (false, false));
    apply(json!({ "answer_messages": 7 }), json!({ "answer_bytes": "off" }));
    assert_eq!(well().await, (true, false));
    apply(json!("off"), json!({ "answer_bytes": 5 }));
    assert_eq!(well().await, (false, true));
    let views = bench.runtime.inspect().message_limits;
    assert!(views.iter().any(|view| (&*view.service, &*view.operation) == ("stock", "Get")), "{views:?}");
    // Invalid settings are refused with their path.
    for (written, path, message) in [
        (
            json!({ "request_rate": "0/s" }),
            "outbound.services.stock.message_limits.request_rate",
            "write `off`",
        ),
        (
            json!({ "answer_rate": "0/m" }),
            "outbound.services.stock.message_limits.answer_rate",
            "write `off`",
        ),
    ] {
        let document = json!({ "outbound": { "services": { "stock": { "message_limits": written } } } });
        let problems = bench.try_apply(document).unwrap_err();
        assert_eq!(problems[0].path, path);
        assert!(problems[0].message.contains(message), "{}", problems[0].message);
    }
}

#[tokio::test(start_paused = true)]
async fn a_swap_in_the_midst_leaves_calls_under_way_their_bounds_and_keeps_the_figures() {
    let (fed, body) = feed();
    let body = std::sync::Mutex::new(Some(body));
    let bench = bench(json!({ "answer_messages": 3 }), move || {
        body.lock().unwrap().take().unwrap_or_else(|| stream(&["1\n2\n3\n4\n"]))
    });
    let mut under_way = bench.send(get()).await.unwrap().into_body();
    fed.send("a\n");
    assert_eq!(frame(&mut under_way).await.unwrap().unwrap().unwrap(), "a\n");
    for most in [1, 2, 100] {
        bench.stock(json!({ "message_limits": { "answer_messages": most } }));
    }
    bench.stock(json!({ "message_limits": { "answer_messages": 1 } }));
    let (read, error) = read_until(&bench.pipeline, get().build()).await;
    assert_eq!(read, "1\n");
    cut(error, Reason::TooLarge, "answer_messages");
    // The older call keeps the three that it began with.
    fed.send("b\nc\nd\n");
    assert_eq!(frame(&mut under_way).await.unwrap().unwrap().unwrap(), "b\nc\n");
    cut(frame(&mut under_way).await.unwrap().err(), Reason::TooLarge, "answer_messages");
    assert_eq!(bench.runtime.inspect().message_limits[0].cut_answers, 2, "of both versions");
    bench.stock(json!({}));
    assert!(bench.runtime.inspect().message_limits.is_empty());
    assert!(read_until(&bench.pipeline, get().build()).await.1.is_none());
}

#[tokio::test(start_paused = true)]
async fn many_callers_at_once_have_bounds_of_their_own() {
    let bench =
        bench(json!({ "answer_messages": 2, "answer_bytes": "1KiB" }), || stream(&["a\n", "b\n", "c\n"]));
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let pipeline = bench.pipeline.clone();
            tokio::spawn(async move { read_until(&pipeline, get().build()).await })
        })
        .collect();
    for call in calls {
        let (read, error) = call.await.unwrap();
        assert_eq!(read, "a\nb\n");
        cut(error, Reason::TooLarge, "answer_messages");
    }
    assert_eq!(bench.runtime.inspect().message_limits[0].cut_answers, 200);
    assert_eq!((bench.node("a").in_flight, bench.metric("chassis_in_flight", &[])), (0, 0.0));
}
