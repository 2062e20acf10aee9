//! Limits on the number of calls in flight.
use chassis_core::{
    Code, Event, Invocation, Reason,
    testing::{Answer, CallBuilder, feed},
};
use http::StatusCode;
use serde_json::json;

use crate::support::*;

/// Every answer streams until its reader drops it.
fn streaming() -> Bench {
    Bench::with(["a", "b"], |_| {
        let (fed, body) = feed();
        tokio::spawn(async move { fed.closed().await });
        Answer::streaming(body)
    })
}

#[tokio::test(start_paused = true)]
async fn permits_are_held_to_the_end_of_the_body() {
    let bench = streaming();
    bench.stock(json!({ "concurrency": 2 }));
    let (one, two) = (bench.send(get()).await.unwrap(), bench.send(post()).await.unwrap().into_body());
    let refused = bench.get().await;
    check(&refused, Code::Unavailable, Reason::Overloaded);
    let error = refused.unwrap_err();
    assert_eq!((error.rule(), error.maybe_executed()), (Some("concurrency"), false));
    assert_eq!(error.message(), "stock: 2 calls are under way, the most at once");
    assert_eq!(bench.upstream.total(), 2);
    drop(one);
    let three = bench.send(get()).await.unwrap();
    assert!(bench.send(get()).await.is_err());
    drop((two, three));
    let view = &bench.runtime.inspect().concurrency[0];
    assert_eq!((view.limit, view.in_use), (2, 0));
    assert_eq!(bench.count_events(|e| matches!(e, Event::Refusing { reason: Reason::Overloaded, .. })), 1);
    assert_eq!(bench.metric("chassis_rejected_total", &[("side", "client"), ("reason", "OVERLOADED")]), 2.0);
}

#[tokio::test(start_paused = true)]
async fn every_way_a_call_ends_gives_its_permit_back() {
    let bench = Bench::new(|arrival| match arrival.nth % 5 {
        0 => Answer::ok("x"),
        1 => Answer::status(500),
        2 => Answer::lost(),
        3 => Answer::hang(),
        _ => Answer::unsent(),
    });
    bench.stock(json!({ "concurrency": 1, "timeout": "1s", "breaker": "off" }));
    for i in 0..200 {
        let call = if i % 2 == 0 { get() } else { post() };
        let waited = tokio::time::timeout([MS, 10 * S][i / 7 % 2], bench.run(call)).await;
        if let Ok(Err(error)) = waited {
            assert_ne!(error.reason(), Reason::Overloaded, "call {i}");
        }
    }
    assert_eq!((bench.runtime.inspect().concurrency[0].in_use, bench.node("a").in_flight), (0, 0));
    assert_eq!(bench.metric("chassis_in_flight", &[("side", "client")]), 0.0);
}

#[tokio::test(start_paused = true)]
async fn operations_are_counted_apart() {
    let other = || CallBuilder::get("stock", "Other");
    for stock in [
        json!({ "concurrency": { "limit": 1, "scope": "operation" } }),
        json!({ "operations": { "Get": { "concurrency": 1 }, "Other": { "concurrency": 1 } } }),
    ] {
        let bench = streaming();
        bench.stock(stock);
        let _one = bench.send(get()).await.unwrap();
        let _two = bench.send(other()).await.unwrap();
        assert!(bench.send(get()).await.is_err() && bench.send(other()).await.is_err());
    }
    let bench = streaming();
    bench.stock(json!({ "concurrency": 1, "operations": { "Other": { "concurrency": "off" } } }));
    let _one = bench.send(get()).await.unwrap();
    let _two = bench.send(other()).await.unwrap();
    assert!(bench.send(post()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_changed_limit_keeps_the_count() {
    let bench = streaming();
    bench.stock(json!({ "concurrency": 3 }));
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(bench.send(get()).await.unwrap());
    }
    bench.stock(json!({ "concurrency": 2 }));
    open.pop();
    assert!(bench.send(get()).await.is_err(), "two of two are out");
    bench.stock(json!({ "concurrency": 4 }));
    open.push(bench.send(get()).await.unwrap());
    open.push(bench.send(get()).await.unwrap());
    assert!(bench.send(get()).await.is_err());
    bench.stock(json!({ "concurrency": "off" }));
    bench.send(get()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn retries_take_no_second_permit() {
    let bench = Bench::new(|arrival| if arrival.nth == 0 { Answer::lost() } else { Answer::ok("") });
    bench.stock(json!({ "concurrency": 1 }));
    bench.get().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn servers_bound_what_comes_in() {
    let bench = streaming();
    bench.apply(json!({ "inbound": { "concurrency": 1, "operations": { "Own": { "concurrency": 1 } } } }));
    let server = server(&bench.runtime, |call: Invocation| async {
        let (fed, body) = feed();
        tokio::spawn(async move { fed.closed().await });
        Ok(call.answered(StatusCode::OK, Default::default(), body))
    });
    let call = |operation| CallBuilder::post("orders", operation).build();
    let send = |operation| tower_service::Service::call(&mut server.clone(), call(operation));
    let one = send("Put").await.unwrap();
    check(&run(&server, call("Get")).await, Code::Unavailable, Reason::Overloaded);
    let _own = send("Own").await.unwrap();
    assert!(send("Own").await.is_err());
    drop(one);
    send("Get").await.unwrap();
    let endpoint = json!({ "inbound": { "concurrency": { "limit": 1, "scope": "endpoint" } } });
    let problems = bench.try_apply(endpoint).unwrap_err();
    assert_eq!(problems[0].path, "inbound.concurrency.scope");
}
