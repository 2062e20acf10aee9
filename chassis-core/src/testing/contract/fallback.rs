//! The contract of fallbacks: of a [`FallbackFn`], or of settings.
use std::{sync::Arc, time::Duration};

use http::HeaderValue;
use tokio::time::{Instant, timeout};

use crate::{
    call::RequestExt,
    layer::fallback::{FallbackConfig, FallbackFn, TIME_LIMIT},
    pipeline::{self, Pipeline},
    plugin::protocol::Protocol,
    plugin::registry::{Instance, Membership},
    policy::Settings,
    runtime::Runtime,
    testing::{Answer, CallBuilder, ScriptedRegistry, Upstream, read},
    types::{Error, Reason, units::Switch},
};

/// The time limit of the suite's calls: less than a function may take.
const BOUND: Duration = Duration::from_millis(500);
/// Operations of the suite's upstream, each of which fails in its own way.
const FAILING: [&str; 5] = ["Lost", "Internal", "Refused", "Unavailable", "Silent"];

/// Checks a fallback function of `protocol`.
///
/// It leaves successes alone. For every failure, of any origin and of any call, it returns an answer that the
/// protocol reads as a success and that ends: in time, each time, and for many calls at once.
///
/// A function that answers only some failures does not pass.
///
/// # Panics
/// If a promise is broken, with its name.
pub async fn function(answer: Arc<FallbackFn>, protocol: &'static dyn Protocol) {
    fallback(Some(answer), None, protocol).await;
}

/// Checks an answer from the settings in the same way. One for some failures only (`on`) does not pass.
///
/// # Panics
/// If a promise is broken, with its name.
pub async fn settings(config: FallbackConfig, protocol: &'static dyn Protocol) {
    fallback(None, Some(config), protocol).await;
}

async fn fallback(
    function: Option<Arc<FallbackFn>>,
    config: Option<FallbackConfig>,
    protocol: &'static dyn Protocol,
) {
    let upstream = Upstream::speaking(protocol, |arrival| match &*arrival.operation {
        "Lost" => Answer::lost(),
        "Internal" => Answer::error(Error::remote(Reason::Internal, "no")),
        "Refused" => Answer::refused(),
        "Unavailable" => Answer::status(503),
        "Silent" => Answer::hang(),
        _ => Answer::ok("fresh"),
    });
    let registry = ScriptedRegistry::new();
    let node = Instance::new("stock", "a").with_address(protocol.name(), "memory:a");
    registry.set("stock", Membership::known([node]));
    let mut builder = Runtime::builder("contract").protocol(protocol).registry(Arc::new(registry));
    if let Some(function) = function {
        builder = builder.fallback("stock", None, function);
    }
    let runtime = builder.build().expect("a registry of metrics of its own");
    let mut settings = Settings::default();
    settings.outbound.defaults.fallback = config.map(Switch::On);
    runtime.apply(&settings, 1, "contract").expect("the settings of the fallback are valid");
    let stock = pipeline::client(&runtime, "stock", &Arc::new(upstream));

    let reply = send(&stock, protocol, "Well").await.expect("the upstream answers");
    let fresh = read(reply).await.expect("the upstream answers");
    assert_eq!(fresh.text(), "fresh", "a fallback leaves a success alone");
    for failure in FAILING.into_iter().chain(FAILING) {
        answers(&stock, protocol, failure).await;
    }
    let many: Vec<_> = (0..16)
        .map(|_| {
            let stock = stock.clone();
            tokio::spawn(async move { answers(&stock, protocol, "Lost").await })
        })
        .collect();
    for one in many {
        one.await.expect("a fallback answers many at once");
    }
}

async fn answers(stock: &Pipeline, protocol: &'static dyn Protocol, failure: &'static str) {
    let begun = Instant::now();
    let reply = send(stock, protocol, failure).await;
    let reply =
        reply.unwrap_or_else(|error| panic!("a fallback answers a call that ends so: {failure}, {error:?}"));
    assert!(begun.elapsed() < BOUND + TIME_LIMIT, "a fallback answers in time");
    if let Some(error) = reply.as_error() {
        panic!("a fallback answers `{failure}` with a success: {error:?}");
    }
    let answered = timeout(TIME_LIMIT, read(reply)).await.expect("the answer of a fallback ends");
    let answered = answered.unwrap_or_else(|error| panic!("the answer of a fallback is whole: {error:?}"));
    assert_eq!(answered.address, None, "the answer of a fallback is no node's");
    let verdict = protocol.judge_head(answered.status, &answered.metadata);
    let verdict = verdict.unwrap_or_else(|| protocol.judge_end(answered.status, answered.trailers.as_ref()));
    assert!(verdict.is_success(), "the answer of a fallback ends well: {verdict:?}");
}

async fn send(
    stock: &Pipeline,
    protocol: &'static dyn Protocol,
    operation: &'static str,
) -> Result<crate::call::Reply, Error> {
    let mut call = CallBuilder::post("stock", operation).protocol(protocol).timeout(BOUND).no_retry().build();
    call.metadata.insert("x-odd", HeaderValue::from_bytes(b"\xff\xfe").expect("no control characters"));
    stock.run(call).await
}
