//! Fallbacks: an answer in place of a failed call.
use std::sync::Arc;

use chassis_core::{
    Body, Code, Error, Event, Reason,
    clock::Instant,
    layer::fallback::{Answer as Instead, FailedCall, FallbackFn},
    testing::{Answer, CallBuilder, TEST, TestProtocol, Upstream},
};
use http::{HeaderMap, StatusCode};
use serde_json::json;

use crate::support::*;

/// Speaks in messages: a plain body is no answer.
static MESSAGES: TestProtocol = TestProtocol::named("messages").with_messages();

fn instead(body: &'static str) -> Result<Instead, Error> {
    Ok(Instead { status: StatusCode::OK, metadata: HeaderMap::new(), body: Body::full(body) })
}

fn with(
    answer: impl Fn(FailedCall) -> Result<Instead, Error> + Clone + Send + Sync + 'static,
) -> Arc<FallbackFn> {
    Arc::new(move |failed| {
        let answer = answer.clone();
        Box::pin(async move { answer(failed) })
    })
}

#[tokio::test(start_paused = true)]
async fn a_function_sees_the_failure_and_answers() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let function = {
        let seen = seen.clone();
        with(move |failed| {
            let user = failed.metadata["x-user"].clone();
            seen.lock().unwrap().push((
                failed.target.operation.to_string(),
                failed.error.code(),
                failed.error.reason(),
                user,
            ));
            instead("from the cache")
        })
    };
    let upstream = Upstream::new(|arrival| match arrival.total {
        0 => Answer::lost(),
        1 => Answer::status(404),
        2 => Answer::trailers("", Code::DataLoss),
        _ => Answer::ok("fresh"),
    });
    let bench = Bench::build(upstream, |builder| builder.fallback("stock", None, function));
    bench.registry.put("stock", ["a"]);
    let call = || post().header("x-user", "ann");
    for _ in 0..3 {
        assert_eq!(bench.run(call()).await.unwrap().text(), "from the cache");
    }
    assert_eq!(bench.run(call()).await.unwrap().text(), "fresh");
    let seen: Vec<_> = seen.lock().unwrap().iter().map(|(o, c, r, _)| (o.clone(), *c, *r)).collect();
    let post = || "Post".to_owned();
    assert_eq!(
        seen,
        [
            (post(), Code::Unavailable, Reason::ConnectionLost),
            (post(), Code::NotFound, Reason::Internal),
            (post(), Code::DataLoss, Reason::Internal),
        ]
    );
    // All other observers get the real outcome. (NOT_FOUND is no failure of the node.)
    let node = bench.node("a");
    assert_eq!((node.calls, node.successes, node.in_flight), (4, 2, 0));
    let calls =
        |code| bench.metric("chassis_client_call_duration_seconds", &[("service", "stock"), ("code", code)]);
    assert_eq!(
        (calls("OK"), calls("UNAVAILABLE"), calls("NOT_FOUND"), calls("DATA_LOSS")),
        (1.0, 1.0, 1.0, 1.0)
    );
    let answered =
        |reason| bench.metric("chassis_fallbacks_total", &[("service", "stock"), ("reason", reason)]);
    assert_eq!((answered("CONNECTION_LOST"), answered("INTERNAL")), (1.0, 2.0));
    assert_eq!(bench.count_events(|e| matches!(e, Event::FellBack { .. })), 1);
}

#[tokio::test(start_paused = true)]
async fn it_answers_for_what_is_refused_here_too() {
    let bench = Bench::new(|_| Answer::hang());
    for (stock, reason) in [
        (json!({ "rate_limits": [{ "name": "n", "rate": "0/s", "burst": 0 }] }), "RATE_LIMITED"),
        (json!({ "breaker": { "force": "open" } }), "CIRCUIT_OPEN"),
        (json!({ "timeout": "1s" }), "DEADLINE_EXCEEDED"),
        (json!({ "routes": [{ "name": "r", "to": { "no": "where" }, "fallback": "none" }] }), "NO_ROUTE"),
    ] {
        let mut stock = stock;
        stock["fallback"] = json!({ "status": 203, "body": "old", "content_type": "text/plain" });
        bench.stock(stock);
        let answered = bench.get().await.unwrap();
        assert_eq!(
            (answered.status.as_u16(), &*answered.text(), &answered.metadata["content-type"]),
            (203, "old", &"text/plain".parse().unwrap())
        );
        assert_eq!(bench.metric("chassis_fallbacks_total", &[("reason", reason)]), 1.0);
    }
}

#[tokio::test(start_paused = true)]
async fn settings_choose_the_codes() {
    let bench = Bench::new(|arrival| if arrival.nth == 0 { Answer::lost() } else { Answer::status(404) });
    bench.stock(json!({ "retry": "off", "fallback": { "body": "old", "on": ["UNAVAILABLE"] } }));
    assert_eq!(bench.get().await.unwrap().text(), "old");
    assert_eq!(bench.get().await.unwrap().status, 404, "the call's own answer");
    bench.stock(json!({ "retry": "off", "fallback": { "body": "old", "on": [404] } }));
    assert_eq!(bench.get().await.unwrap().text(), "old");
    bench.stock(json!({ "fallback": { "body": "old" }, "operations": { "Post": { "fallback": "off" } } }));
    assert_eq!(bench.get().await.unwrap().text(), "old");
    assert_eq!(bench.post().await.unwrap().status, 404);
}

#[tokio::test(start_paused = true)]
async fn each_protocol_reads_a_fixed_answer_in_its_own_way() {
    let upstream = Upstream::speaking(&MESSAGES, |_| Answer::lost());
    let bench = Bench::build(upstream, |builder| builder.protocol(&MESSAGES));
    let instance = chassis_core::registry::Instance::new("stock", "a").with_address("messages", "memory:a");
    bench.registry.set("stock", chassis_core::registry::Membership::known([instance]));
    bench.stock(json!({ "fallback": { "status": 203, "body": "{}", "message": "007" } }));
    let answered = bench.run(post().protocol(&MESSAGES)).await.unwrap();
    assert_eq!((answered.status, &*answered.text()), (StatusCode::OK, "7"));
    // Calls keep their own error where the settings have no answer of their protocol.
    bench.stock(json!({ "fallback": { "status": 200, "body": "{}", "on": ["UNAVAILABLE"] } }));
    check(&bench.run(post().protocol(&MESSAGES)).await, Code::Unavailable, Reason::ConnectionLost);
}

#[tokio::test(start_paused = true)]
async fn settings_are_refused_that_a_registered_protocol_cannot_answer_with() {
    fn with<const N: usize>(protocols: [&'static TestProtocol; N]) -> Bench {
        Bench::build(Upstream::new(|_| Answer::lost()), |builder| {
            protocols.into_iter().fold(builder, |builder, protocol| builder.protocol(protocol))
        })
    }
    let problems = |bench: &Bench, fallback| {
        let settings = json!({ "outbound": { "services": { "stock": {
            "operations": { "Get": { "fallback": fallback } } } } } });
        let problems = bench.try_apply(settings).err().unwrap_or_default();
        problems.into_iter().map(|problem| (problem.path, problem.message)).collect::<Vec<_>>()
    };
    let at = |key| format!("outbound.services.stock.operations.Get.fallback.{key}");
    let both = json!({ "status": 99, "message": "seven" });
    let status = (at("status"), "99 is no HTTP status to answer with".to_owned());
    let message = (at("message"), "the message is no number: invalid digit found in string".to_owned());
    assert_eq!(problems(&with([&TEST]), both.clone()), std::slice::from_ref(&status));
    assert_eq!(problems(&with([&MESSAGES]), both.clone()), std::slice::from_ref(&message));
    assert_eq!(problems(&with([&TEST, &MESSAGES, &TEST]), both), [status, message], "each key once");
    let right = json!({ "status": 200, "message": "7" });
    assert!(problems(&with([&TEST, &MESSAGES]), right).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_protocol_that_was_not_registered_answers_what_it_can() {
    let bench = Bench::new(|_| Answer::lost());
    bench.stock(json!({ "fallback": { "status": 203, "body": "old" } }));
    assert_eq!(bench.post().await.unwrap().text(), "old");
    bench.stock(json!({ "fallback": { "status": 99 } }));
    check(&bench.post().await, Code::Unavailable, Reason::ConnectionLost);
}

#[tokio::test(start_paused = true)]
async fn operations_can_have_their_own_and_errors_pass() {
    let own = with(|_| instead("own"));
    let refusing = with(|failed| Err(failed.error.with_code(Code::Aborted)));
    let bench = Bench::build(Upstream::new(|_| Answer::lost()), |builder| {
        builder.fallback("stock", None, refusing).fallback("stock", Some("Get".into()), own)
    });
    bench.registry.put("stock", ["a"]);
    bench.stock(json!({ "fallback": { "body": "from the settings" } }));
    assert_eq!(bench.get().await.unwrap().text(), "own", "a function wins over the settings");
    check(&bench.run(CallBuilder::post("stock", "Put")).await, Code::Aborted, Reason::ConnectionLost);
    assert_eq!(bench.metric("chassis_fallbacks_total", &[]), 1.0);
}

#[tokio::test(start_paused = true)]
async fn one_that_takes_too_long_is_given_up() {
    let slow: Arc<FallbackFn> = Arc::new(|_| Box::pin(std::future::pending()));
    let upstream = Upstream::new(|a| if a.nth == 0 { Answer::lost() } else { Answer::status(404) });
    let bench = Bench::build(upstream, |builder| builder.fallback("stock", None, slow));
    bench.registry.put("stock", ["a"]);
    let began = Instant::now();
    let result = bench.post().await;
    check(&result, Code::Unavailable, Reason::ConnectionLost);
    let error = result.unwrap_err();
    assert_eq!((error.message(), error.maybe_executed(), began.elapsed()), ("the connection broke", true, S));
    assert_eq!(bench.post().await.unwrap().status, 404, "the call's own answer");
}
