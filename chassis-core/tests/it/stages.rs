//! Layers of users, as tower layers and as async functions.
use std::{
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use chassis_core::{
    BoxFuture, CallError, Code, Error, Invocation, Next, Reason, Reply, RequestExt, Side, Stage, Stages,
    layer::breaker::State,
    pipeline,
    testing::{Answer, Upstream},
};
use http::StatusCode;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;
use tower_service::Service;

use crate::support::*;

type Trail = Arc<Mutex<Vec<String>>>;

/// Records a call and its outcome: a tower layer as a user writes it.
#[derive(Clone)]
struct Note(&'static str, Trail);

#[derive(Clone)]
struct Noting<S>(S, Note);

impl<S> tower_layer::Layer<S> for Note {
    type Service = Noting<S>;
    fn layer(&self, inner: S) -> Noting<S> {
        Noting(inner, self.clone())
    }
}

impl<S> Service<Invocation> for Noting<S>
where
    S: Service<Invocation, Response = Reply, Error = Error> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply, Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, call: Invocation) -> Self::Future {
        let Note(name, trail) = self.1.clone();
        trail.lock().unwrap().push(name.to_owned());
        let answer = self.0.call(call);
        Box::pin(async move {
            let answer = answer.await;
            let came =
                answer.as_ref().map_or_else(|e| e.code(), |r| r.verdict().map_or(Code::Ok, |v| v.code));
            trail.lock().unwrap().push(format!("{name}: {came}"));
            answer
        })
    }
}

/// A function that does the same.
fn note<E: CallError>(
    stages: &mut Stages,
    stage: Stage<E>,
    name: &'static str,
    service: Option<&str>,
    trail: &Trail,
) {
    let trail = trail.clone();
    stages.add_fn(stage, name, service, move |call: Invocation, next| {
        let trail = trail.clone();
        async move {
            trail.lock().unwrap().push(name.to_owned());
            next.run(call).await
        }
    });
}

fn bench(stages: Stages, script: fn(&chassis_core::testing::Arrival) -> Answer) -> Bench {
    let bench = Bench::build(Upstream::new(script), |builder| builder.stages(stages));
    bench.registry.put("stock", ["a", "b"]);
    bench
}

fn take(trail: &Trail) -> Vec<String> {
    std::mem::take(&mut trail.lock().unwrap())
}

#[tokio::test(start_paused = true)]
async fn each_stage_is_where_it_says() {
    let (trail, mut stages) = (Trail::default(), Stages::default());
    note(&mut stages, Stage::Call, "call", None, &trail);
    note(&mut stages, Stage::Attempt, "attempt", None, &trail);
    note(&mut stages, Stage::Node, "node", None, &trail);
    let bench = bench(stages, |arrival| if arrival.total == 0 { Answer::lost() } else { Answer::ok("") });
    bench.get().await.unwrap();
    assert_eq!(take(&trail), ["call", "attempt", "node", "attempt", "node"]);
    // A refusal below the layer's stage is visible there and not further inside.
    bench.stock(json!({ "rate_limits": [{ "name": "n", "rate": "0/s", "burst": 0 }] }));
    bench.get().await.unwrap_err();
    assert_eq!(take(&trail), ["call"]);
}

#[tokio::test(start_paused = true)]
async fn tower_layers_and_functions_stand_in_the_order_they_were_added() {
    let (trail, mut stages) = (Trail::default(), Stages::default());
    stages.add_layer(Stage::Call, "one", None, Note("one", trail.clone()));
    note(&mut stages, Stage::Call, "two", Some("stock"), &trail);
    note(&mut stages, Stage::Call, "not for this service", Some("billing"), &trail);
    stages.add_layer(Stage::Call, "three", None, Note("three", trail.clone()));
    let chain = |bench: &Bench, service| pipeline::chain(&bench.runtime, Side::Client, service);
    let bench =
        bench(stages, |arrival| if arrival.total == 0 { Answer::status(404) } else { Answer::lost() });
    bench.post().await.unwrap();
    assert_eq!(take(&trail), ["one", "two", "three", "three: NOT_FOUND", "one: NOT_FOUND"]);
    bench.post().await.unwrap_err();
    assert_eq!(take(&trail), ["one", "two", "three", "three: UNAVAILABLE", "one: UNAVAILABLE"]);
    let stock = "route → trace → metrics → [one] → [two] → [three] → fallback → deadline → rate_limit → \
                 concurrency → message_limits → fault(call) → breaker → retry → fault(attempt) → balance → attempt → connect";
    assert_eq!(chain(&bench, "stock"), stock);
    assert!(chain(&bench, "billing").contains("[one] → [not for this service] → [three]"));
}

#[tokio::test(start_paused = true)]
async fn servers_have_stages_too() {
    let (trail, mut stages) = (Trail::default(), Stages::default());
    stages.add_layer(Stage::ServerCall, "outer", None, Note("outer", trail.clone()));
    note(&mut stages, Stage::Handler, "inner", None, &trail);
    note(&mut stages, Stage::Call, "client only", None, &trail);
    let bench = bench(stages, |_| Answer::ok(""));
    bench.apply(json!({ "inbound": { "operations": { "Get": { "concurrency": 1 } } } }));
    let handler = server(&bench.runtime, |call: Invocation| async {
        Ok(call.answered(StatusCode::OK, Default::default(), Default::default()))
    });
    run(&handler, post().build()).await.unwrap();
    assert_eq!(take(&trail), ["outer", "inner", "outer: OK"]);
    assert_eq!(
        pipeline::chain(&bench.runtime, Side::Server, "orders"),
        "route → trace → metrics → [outer] → panic → deadline → rate_limit → concurrency → message_limits → fault → context → \
         [inner] → handler"
    );
}

#[tokio::test(start_paused = true)]
async fn a_layer_may_answer_refuse_change_and_repeat() {
    let mut stages = Stages::default();
    stages.add_fn(Stage::Call, "auth", None, |mut call: Invocation, next: Next| async move {
        match call.metadata.remove("x-user").as_ref().map(|user| user.as_bytes()) {
            None => Err(call.refuse(Error::local(Reason::Internal, "who?").with_code(Code::Unauthenticated))),
            Some(b"cache") => {
                Ok(call.answered(StatusCode::OK, Default::default(), "cached".to_owned().into_body()))
            }
            Some(_) => {
                call.metadata.insert("x-token", "t".parse().unwrap());
                next.run(call).await
            }
        }
    });
    stages.add_fn(Stage::Node, "header", None, |call: Invocation, next| async move {
        let mut reply = next.run(call).await?;
        reply.metadata.insert("x-seen", "yes".parse().unwrap());
        Ok(reply)
    });
    let bench = bench(stages, |_| Answer::ok("fresh"));
    check(&bench.get().await, Code::Unauthenticated, Reason::Internal);
    assert_eq!(bench.run(get().header("x-user", "cache")).await.unwrap().text(), "cached");
    assert_eq!(bench.upstream.total(), 0);
    let answered = bench.run(get().header("x-user", "ann")).await.unwrap();
    assert_eq!((&*answered.text(), &answered.metadata["x-seen"]), ("fresh", &"yes".parse().unwrap()));
    let arrived = bench.upstream.last().metadata;
    assert_eq!((arrived.get("x-user"), &arrived["x-token"]), (None, &"t".parse().unwrap()));
    // All of it is counted, refused or not.
    let calls = |code| bench.metric("chassis_client_call_duration_seconds", &[("code", code)]);
    assert_eq!((calls("UNAUTHENTICATED"), calls("OK")), (1.0, 2.0));
}

trait IntoBody {
    fn into_body(self) -> chassis_core::Body;
}

impl IntoBody for String {
    fn into_body(self) -> chassis_core::Body {
        chassis_core::Body::full(self)
    }
}

/// Admits one call at a time, like tower's own limit: not ready while one is inside.
#[derive(Clone)]
struct OneAtATime;

struct Gate<S> {
    inner: S,
    permits: PollSemaphore,
    permit: Option<OwnedSemaphorePermit>,
}

impl<S: Clone> Clone for Gate<S> {
    fn clone(&self) -> Self {
        // Readiness belongs to each clone.
        Gate { inner: self.inner.clone(), permits: self.permits.clone(), permit: None }
    }
}

impl<S> tower_layer::Layer<S> for OneAtATime {
    type Service = Gate<S>;
    fn layer(&self, inner: S) -> Gate<S> {
        Gate { inner, permits: PollSemaphore::new(Arc::new(Semaphore::new(1))), permit: None }
    }
}

impl<S> Service<Invocation> for Gate<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply, Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.permit.is_none() {
            self.permit = std::task::ready!(self.permits.poll_acquire(cx));
        }
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Invocation) -> Self::Future {
        let permit = self.permit.take().expect("made ready before it is called");
        let answer = self.inner.call(call);
        Box::pin(async move {
            let _permit = permit;
            answer.await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_waits_to_be_ready_is_waited_for() {
    let mut stages = Stages::default();
    stages.add_layer(Stage::Call, "gate", None, OneAtATime);
    let bench = bench(stages, |_| Answer::ok("").after(100 * MS));
    let began = tokio::time::Instant::now();
    let calls: Vec<_> = (0..3).map(|_| bench.spawn(get())).collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(began.elapsed(), 300 * MS);
}

/// A service that is never ready.
#[derive(Clone)]
struct Broken;

impl<S> tower_layer::Layer<S> for Broken {
    type Service = Broken;
    fn layer(&self, _: S) -> Broken {
        Broken
    }
}

impl Service<Invocation> for Broken {
    type Response = Reply;
    type Error = Error;
    type Future = std::future::Pending<Result<Reply, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Err(Error::local(Reason::ShuttingDown, "closed")))
    }

    fn call(&mut self, _: Invocation) -> Self::Future {
        unreachable!("it is never ready")
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_fails_to_get_ready_refuses() {
    let mut stages = Stages::default();
    stages.add_layer(Stage::Call, "broken", None, Broken);
    let bench = bench(stages, |_| Answer::ok(""));
    check(&bench.get().await, Code::Unavailable, Reason::ShuttingDown);
    assert_eq!(bench.metric("chassis_rejected_total", &[("reason", "SHUTTING_DOWN")]), 1.0);
}

/// A user's error with one of chassis beneath.
#[derive(Debug, thiserror::Error)]
#[error("the gate is shut")]
struct Shut(#[source] Error);

#[tokio::test(start_paused = true)]
async fn errors_of_any_type_keep_their_meaning() {
    use chassis_core::{BoxError, Origin};
    let converted = |error: BoxError| Error::from_layer(error);
    let limited = || Error::local(Reason::RateLimited, "too much").with_rule("mine");
    let own = converted(Box::new(limited()));
    assert_eq!((own.reason(), own.rule(), own.message()), (Reason::RateLimited, Some("mine"), "too much"));
    let beneath = converted(Box::new(Shut(limited())));
    assert_eq!((beneath.reason(), beneath.rule()), (Reason::RateLimited, Some("mine")));
    assert_eq!(std::error::Error::source(&beneath).unwrap().to_string(), "the gate is shut");
    let elapsed = tokio::time::timeout(MS, std::future::pending::<()>()).await.unwrap_err();
    let elapsed = converted(Box::new(elapsed));
    assert_eq!((elapsed.code(), elapsed.origin()), (Code::DeadlineExceeded, Origin::Remote));
    let shed = converted(Box::new(tower::load_shed::error::Overloaded::new()));
    assert_eq!((shed.reason(), shed.maybe_executed()), (Reason::Overloaded, false));
    let other = converted("no such luck".into());
    assert_eq!((other.code(), other.maybe_executed()), (Code::Internal, true));
}

#[tokio::test(start_paused = true)]
async fn a_layer_whose_errors_are_boxed_stands_anywhere() {
    let mut stages = Stages::default();
    stages.add_layer(Stage::Call, "shed", None, tower::load_shed::LoadShedLayer::new());
    stages.add_layer(Stage::Call, "gate", None, OneAtATime);
    stages.add_layer(Stage::Attempt, "impatient", None, tower::timeout::TimeoutLayer::new(50 * MS));
    let bench = bench(stages, |arrival| Answer::ok("").after(if arrival.total == 0 { S } else { MS }));
    bench.stock(json!({ "retry": { "when": "always", "on": ["deadline"], "backoff": "1ms" } }));
    bench.get().await.unwrap();
    assert_eq!(bench.upstream.total(), 2, "the attempt that took too long is tried again");
}

/// The behaviour of a layer with a call.
#[derive(Clone, Copy, Debug)]
enum Does {
    /// Continues with another call, and drops this one.
    Another,
    /// Continues with another call, and keeps this one for ever.
    AnotherAndKeeps,
    /// Continues with a copy, and drops this one.
    Clone,
    /// Continues with this one and with a copy, and returns the answer to the copy.
    Both,
    /// The same, one after the other, and keeps the first answer unread.
    BothAndKeeps,
    /// Drops the call, and answers by itself.
    Answers,
    /// Keeps the call for ever, and fails by itself.
    FailsAndKeeps,
    /// Keeps the call for ever, and never answers.
    Hangs,
    /// Answers with the reply of another pipeline.
    Asks,
    /// Keeps the call, and continues with the one that it kept before.
    Swaps,
    Panics,
}

const ALL: [Does; 11] = [
    Does::Another,
    Does::AnotherAndKeeps,
    Does::Clone,
    Does::Both,
    Does::BothAndKeeps,
    Does::Answers,
    Does::FailsAndKeeps,
    Does::Hangs,
    Does::Asks,
    Does::Swaps,
    Does::Panics,
];

/// A layer with this behaviour at `stage`, while `on` is set; it stores into `kept`, and `other` is another
/// pipeline.
fn does<E: CallError>(
    stage: Stage<E>,
    what: Does,
    other: &Bench,
    kept: &Arc<Mutex<Vec<Kept>>>,
    on: &Toggle,
) -> Stages {
    let mut stages = Stages::default();
    let (other, kept, on) = (other.pipeline.clone(), kept.clone(), on.clone());
    stages.add_fn(stage, "odd", None, move |call: Invocation, next: Next<E>| {
        let (other, kept, on) = (other.clone(), kept.clone(), on.is_on());
        async move {
            let keep = |what: Kept| kept.lock().unwrap().push(what);
            if !on {
                return next.run(call).await;
            }
            let fresh = Invocation::new(call.protocol(), call.target.clone());
            match what {
                Does::Another => {
                    drop(call);
                    next.run(fresh).await
                }
                Does::AnotherAndKeeps => {
                    keep(Kept::Call(call));
                    next.run(fresh).await
                }
                Does::Clone => {
                    let copy = call.try_clone().unwrap();
                    drop(call);
                    next.run(copy).await
                }
                Does::Both => {
                    let copy = call.try_clone().unwrap();
                    let (_, answer) = tokio::join!(next.run(call), next.run(copy));
                    answer
                }
                Does::BothAndKeeps => {
                    let copy = call.try_clone().unwrap();
                    keep(Kept::Answer(next.run(call).await.map_err(Into::into)));
                    next.run(copy).await
                }
                Does::Answers => {
                    drop(call);
                    Ok(fresh.answered(StatusCode::OK, Default::default(), "by myself".to_owned().into_body()))
                }
                Does::FailsAndKeeps => {
                    keep(Kept::Call(call));
                    Err(Error::local(Reason::Internal, "no").into())
                }
                Does::Hangs => {
                    keep(Kept::Call(call));
                    std::future::pending().await
                }
                Does::Asks => {
                    keep(Kept::Call(call));
                    other.run(get().build()).await.map_err(E::from)
                }
                Does::Swaps => {
                    let former = kept.lock().unwrap().pop();
                    keep(Kept::Call(call));
                    match former {
                        Some(Kept::Call(former)) => next.run(former).await,
                        _ => Err(Error::local(Reason::Internal, "the first").into()),
                    }
                }
                Does::Panics => panic!("as asked for"),
            }
        }
    });
    stages
}

/// A value that a layer keeps.
#[allow(dead_code)]
enum Kept {
    Call(Invocation),
    Answer(Result<Reply, Error>),
}

#[tokio::test(start_paused = true)]
async fn whatever_a_layer_does_with_a_call_all_that_was_taken_for_it_comes_back() {
    all_comes_back([Stage::Call]).await;
    all_comes_back([Stage::Attempt, Stage::Node]).await;
}

async fn all_comes_back<E: CallError, const N: usize>(stages: [Stage<E>; N]) {
    for stage in stages {
        for retry in [json!("off"), json!({ "attempts": 2, "per_try": "50ms" }), json!({ "attempts": 2 })] {
            for what in ALL {
                let about = format!("{what:?} at {stage:?}, retry {retry}");
                let other = Bench::new(|_| Answer::ok("asked"));
                other.stock(json!({ "concurrency": 1 }));
                let (kept, on) = (Arc::<Mutex<Vec<Kept>>>::default(), Toggle::default());
                on.set(true);
                let bench = bench(does(stage, what, &other, &kept, &on), |_| Answer::ok("fine"));
                let rules = |breaker| json!({ "concurrency": 2, "retry": retry, "breaker": breaker });
                bench.stock(rules(json!({ "scope": "endpoint", "min_calls": 1 })));
                // An answer that a layer keeps unread is in flight, as far as it was counted below the layer.
                let answers = || {
                    kept.lock().unwrap().iter().filter(|k| matches!(k, Kept::Answer(Ok(_)))).count() as u32
                };
                for nth in 0..5 {
                    let call = bench.spawn(get().timeout(100 * MS));
                    let abort = call.abort_handle();
                    // Above the deadline's layer no timer ends a call.
                    let answer = tokio::time::timeout(200 * MS, call).await.ok().and_then(Result::ok);
                    abort.abort();
                    settle().await;
                    let reason = answer.and_then(Result::err).map(|error| error.reason());
                    let is_full = stage == Stage::Call && answers() == 2;
                    assert!(is_full || reason != Some(Reason::Overloaded), "{about}, call {nth}");
                }
                let permits = bench.runtime.inspect().concurrency[0].in_use;
                assert_eq!(permits, if stage == Stage::Call { answers() } else { 0 }, "{about}");
                let places: u32 = ["a", "b"].iter().map(|node| bench.node(node).in_flight).sum();
                assert_eq!(places, if stage == Stage::Node { 0 } else { answers() }, "{about}");
                kept.lock().unwrap().clear();
                assert_eq!(bench.runtime.inspect().concurrency[0].in_use, 0, "{about}");
                assert_eq!(["a", "b"].map(|node| bench.node(node).in_flight), [0, 0], "{about}");
                assert_eq!(
                    other.runtime.inspect().concurrency.first().map_or(0, |view| view.in_use),
                    0,
                    "{about}"
                );
                assert_eq!(other.node("a").in_flight, 0, "{about}");
            }
        }
    }
}

/// A probe's permit is returned too: once layer and upstream behave, the circuit closes.
#[tokio::test(start_paused = true)]
async fn a_probe_that_a_layer_keeps_is_given_back() {
    for stage in [Stage::Attempt, Stage::Node] {
        for (what, scope) in ALL.into_iter().flat_map(|what| [(what, "service"), (what, "endpoint")]) {
            let about = format!("{what:?} at {stage:?}, {scope}");
            let (other, kept, odd, well) =
                (Bench::new(|_| Answer::ok("")), Arc::default(), Toggle::default(), Toggle::default());
            let (stages, up) = (does(stage, what, &other, &kept, &odd), well.clone());
            let upstream = Upstream::new(move |arrival| match up.is_on() || arrival.address == "memory:b" {
                true => Answer::ok(""),
                false => Answer::status(503),
            });
            let bench = Bench::build(upstream, |builder| builder.stages(stages));
            match scope {
                "service" => bench.registry.put("stock", ["a"]),
                _ => bench.registry.put("stock", ["a", "b"]),
            }
            let breaker =
                json!({ "scope": scope, "min_calls": 1, "failure_ratio": "10%", "open": "1s", "probes": 1 });
            bench.stock(json!({ "retry": "off", "balance": "round_robin", "breaker": breaker }));
            let state = || match scope {
                "service" => bench.runtime.inspect().circuits[0].state,
                _ => bench.node("a").circuit.unwrap(),
            };
            for _ in 0..10 {
                let _ = bench.get().await;
            }
            assert_eq!(state(), State::Open, "{about}");
            tokio::time::advance(S).await;
            odd.set(true);
            for _ in 0..4 {
                let _ = bench.spawn(get().timeout(100 * MS)).await;
            }
            odd.set(false);
            well.set(true);
            // The layer's behaviour may have counted as a failure: then it is open once more.
            tokio::time::advance(S).await;
            for _ in 0..10 {
                let _ = bench.get().await;
            }
            assert_eq!(state(), State::Closed, "{about}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_loses_the_node_of_a_call_gets_an_error() {
    let other = Bench::new(|_| Answer::ok(""));
    let on = Toggle::default();
    on.set(true);
    let bench = bench(does(Stage::Node, Does::Another, &other, &Arc::default(), &on), |_| Answer::ok(""));
    let refused = bench.get().await;
    check(&refused, Code::Internal, Reason::Internal);
    assert!(refused.unwrap_err().message().contains("went on with a call that has no node"));
}

/// A caller that cancels at its deadline counts as late, also for listeners above the layer.
#[tokio::test(start_paused = true)]
async fn above_a_layer_the_outcome_is_the_one_below_it() {
    let mut stages = Stages::default();
    stages.add_fn(
        Stage::Call,
        "slow",
        None,
        |call: Invocation, next: Next| async move { next.run(call).await },
    );
    let bench = bench(stages, |arrival| match arrival.total {
        0 => Answer::hang(),
        1 => Answer::trailers("", Code::DataLoss),
        _ => Answer::ok(""),
    });
    bench.stock(json!({ "retry": "off" }));
    let dropped = tokio::time::timeout(200 * MS, bench.send(get().timeout(100 * MS)));
    check_reply(&dropped.await.unwrap().map(|_| ()), Code::DeadlineExceeded);
    bench.get().await.unwrap();
    bench.get().await.unwrap();
    let calls = |code| bench.metric("chassis_client_call_duration_seconds", &[("code", code)]);
    assert_eq!(["DEADLINE_EXCEEDED", "DATA_LOSS", "OK"].map(calls), [1.0, 1.0, 1.0]);
}

#[track_caller]
fn check_reply(result: &Result<(), Error>, code: Code) {
    assert_eq!(result.as_ref().map_err(Error::code), Err(code));
}

/// Layers of handlers on the server may do the same.
#[tokio::test(start_paused = true)]
async fn a_servers_permits_come_back_too() {
    for stage in [Stage::ServerCall, Stage::Handler] {
        for what in ALL {
            let (other, kept, on) =
                (Bench::new(|_| Answer::ok("")), Arc::<Mutex<Vec<Kept>>>::default(), Toggle::default());
            on.set(true);
            let bench = bench(does(stage, what, &other, &kept, &on), |_| Answer::ok(""));
            bench.apply(json!({ "inbound": { "concurrency": 2 } }));
            let handler = server(&bench.runtime, |call: Invocation| async {
                Ok(call.answered(StatusCode::OK, Default::default(), Default::default()))
            });
            for _ in 0..4 {
                let handler = handler.clone();
                let call = tokio::spawn(async move { run(&handler, get().build()).await });
                let abort = call.abort_handle();
                let ended = tokio::time::timeout(S, call).await;
                abort.abort();
                settle().await;
                let reason =
                    ended.ok().and_then(Result::ok).and_then(Result::err).map(|error| error.reason());
                // An answer that is kept unread holds its permit, if the permit was taken below the layer.
                let held =
                    kept.lock().unwrap().iter().filter(|kept| matches!(kept, Kept::Answer(Ok(_)))).count();
                let is_full = stage == Stage::ServerCall && held == 2;
                assert!(is_full || reason != Some(Reason::Overloaded), "{what:?} at {stage:?}");
            }
        }
    }
}
