//! Values of the call being handled that the handler's own calls inherit.
use std::sync::Arc;

use chassis_core::{
    BoxFuture, Context, Error, Invocation, Next, Reply, Stage, Stages, TraceContext, pipeline,
    testing::{Answer, CallBuilder, RETRY_AFTER, Upstream},
    units::Ratio,
};
use http::{HeaderName, StatusCode};
use serde_json::json;
use tower_service::Service;

use crate::support::*;

/// A server whose handler calls `stock` and returns its answer.
fn calling(bench: &Arc<Bench>) -> pipeline::Pipeline {
    let bench = bench.clone();
    server(&bench.runtime.clone(), move |call| {
        let bench = bench.clone();
        async move {
            match bench.get().await {
                Ok(_) => Ok(call.answered(StatusCode::OK, Default::default(), Default::default())),
                Err(error) => Err(call.refuse(error)),
            }
        }
    })
}

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test(start_paused = true)]
async fn deadline_trace_and_chosen_headers_go_on() {
    let bench = Arc::new(Bench::new(|_| Answer::ok("")));
    bench.runtime.set_carried(vec![HeaderName::from_static("x-tenant")]);
    let mut call = post()
        .header("traceparent", PARENT)
        .header("tracestate", "a=b")
        .header("baggage", "k=v")
        .header("x-tenant", "one")
        .header("x-tenant", "two")
        .header("x-other", "stays")
        .build();
    let began = call.started();
    call.shorten_deadline(began + S);
    run(&calling(&bench), call).await.unwrap();
    let arrived = bench.upstream.last();
    assert_eq!(arrived.deadline, Some(began + 995 * MS));
    let tenants: Vec<_> = arrived.metadata.get_all("x-tenant").iter().collect();
    assert_eq!(tenants, ["one", "two"]);
    assert!(!arrived.metadata.contains_key("x-other"));
    let trace = TraceContext::read(&arrived.metadata).unwrap();
    let parent = TraceContext::read(&post().header("traceparent", PARENT).build().metadata).unwrap();
    assert_eq!((trace.trace_id, trace.flags), (parent.trace_id, 1));
    assert_ne!(trace.span_id, parent.span_id, "a span of its own");
    assert_eq!(
        (&arrived.metadata["tracestate"], &arrived.metadata["baggage"]),
        (&"a=b".parse().unwrap(), &"k=v".parse().unwrap())
    );
    // Outside of a handler nothing is inherited.
    bench.get().await.unwrap();
    let arrived = bench.upstream.last();
    assert!(arrived.deadline.is_none() && !arrived.metadata.contains_key("x-tenant"));
    assert!(!arrived.metadata.contains_key("traceparent"), "not sampled");
}

#[tokio::test(start_paused = true)]
async fn what_the_call_says_itself_wins() {
    let bench = Arc::new(Bench::new(|_| Answer::ok("")));
    let headers = [("x-tenant", "inherited")].map(|(k, v)| (HeaderName::from_static(k), v.parse().unwrap()));
    let context = Context::default().with_headers(http::HeaderMap::from_iter(headers));
    context.scope(bench.run(get().header("x-tenant", "own"))).await.unwrap();
    let arrived = bench.upstream.last();
    assert_eq!(arrived.metadata.get_all("x-tenant").iter().collect::<Vec<_>>(), ["own"]);
}

#[tokio::test(start_paused = true)]
async fn a_retry_below_is_known_as_one() {
    let bench = Arc::new(Bench::new(|_| Answer::lost()));
    for (previous, attempts) in [(0, 2), (1, 1)] {
        let before = bench.upstream.total();
        let mut call = post().build();
        call.previous_attempts = previous;
        run(&calling(&bench), call).await.unwrap_err();
        assert_eq!(bench.upstream.total() - before, attempts);
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_are_spans_of_one_trace() {
    let bench = Bench::new(|arrival| if arrival.nth == 0 { Answer::lost() } else { Answer::ok("") });
    bench.runtime.set_sample(Ratio::percent(100));
    bench.get().await.unwrap();
    let traces: Vec<_> =
        bench.upstream.arrivals().iter().map(|a| TraceContext::read(&a.metadata).unwrap()).collect();
    assert_eq!(traces[0].trace_id, traces[1].trace_id);
    assert_ne!(traces[0].span_id, traces[1].span_id);
    assert_eq!(traces[0].flags, 1);
}

#[tokio::test(start_paused = true)]
async fn spawned_work_takes_it_along_and_detached_work_without_the_deadline() {
    let bench = Arc::new(Bench::new(|_| Answer::ok("")));
    let mut context = Context::default();
    context.deadline = Some(chassis_core::clock::Instant::now() + S);
    context.is_retry = true;
    context
        .scope(async {
            let (plain, taken, detached) = (bench.clone(), bench.clone(), bench.clone());
            tokio::spawn(async move { plain.get().await }).await.unwrap().unwrap();
            assert_eq!(bench.upstream.last().deadline, None);
            tokio::spawn(Context::current().scope(async move { taken.get().await })).await.unwrap().unwrap();
            assert!(bench.upstream.last().deadline.is_some());
            let detached = Context::current().detached().scope(async move { detached.get().await });
            tokio::spawn(detached).await.unwrap().unwrap();
            assert_eq!(bench.upstream.last().deadline, None);
        })
        .await;
}

/// Makes its call before its future is first polled.
#[derive(Clone)]
struct Eager(pipeline::Pipeline);

impl Service<Invocation> for Eager {
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply, Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Invocation) -> Self::Future {
        let below = self.0.call(get().build());
        Box::pin(async move {
            below.await?;
            Ok(call.answered(StatusCode::OK, Default::default(), Default::default()))
        })
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_there_from_a_handlers_first_line() {
    let bench = Bench::new(|_| Answer::ok(""));
    bench.apply(json!({ "inbound": { "total_timeout": "1s" } }));
    let server = pipeline::server(&bench.runtime, Eager(bench.pipeline.clone()));
    run(&server, post().build()).await.unwrap();
    assert!(bench.upstream.last().deadline.is_some());
}

/// An answer that fails because a call below it must not be retried forbids retries, also where that call passes layers
/// of the user, which have a context of their own.
#[tokio::test(start_paused = true)]
async fn a_layer_does_not_hide_that_retries_are_exhausted() {
    for with_layer in [false, true] {
        let mut stages = Stages::default();
        if with_layer {
            let go_on = |call: Invocation, next: Next| async move { next.run(call).await };
            stages.add_fn(Stage::Call, "mine", None, go_on);
        }
        let upstream = Upstream::new(|_| Answer::status(503).with(RETRY_AFTER, "never"));
        let bench = Arc::new(Bench::build(upstream, |builder| builder.stages(stages)));
        bench.registry.put("stock", ["a"]);
        let handler = server(&bench.runtime.clone(), move |call| {
            let bench = bench.clone();
            async move {
                bench.get().await.unwrap();
                let unavailable = StatusCode::SERVICE_UNAVAILABLE;
                Ok::<_, Error>(call.answered(unavailable, Default::default(), Default::default()))
            }
        });
        let answered = run(&handler, CallBuilder::post("orders", "Put").build()).await.unwrap();
        let forbidden = answered.metadata.get(RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(forbidden.as_deref(), Some("never"), "{with_layer}");
    }
}
