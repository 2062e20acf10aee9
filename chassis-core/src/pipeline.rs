//! The order of the layers, outermost first, with the reason for each place. The order is code, the numbers are
//! settings.
use std::{
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
};

use tower::ServiceBuilder;
use tower_service::Service;

use crate::{
    BoxFuture,
    call::{Failed, Invocation, Reply},
    layer::{
        attempt::AttemptLayer,
        balance::BalanceLayer,
        breaker::BreakerLayer,
        concurrency::ConcurrencyLayer,
        context::ContextLayer,
        deadline::DeadlineLayer,
        fallback::FallbackLayer,
        fault::{At, FaultLayer},
        metrics::MetricsLayer,
        panic::PanicLayer,
        rate_limit::RateLimitLayer,
        retry::RetryLayer,
        route::RouteLayer,
        trace::TraceLayer,
    },
    plugin::transport::{Leaf, Transport},
    runtime::Runtime,
    stage::{Next, Stage},
    types::{Error, Reason, Side},
};

/// A whole pipeline with erased types: always ready, cheap to clone.
#[derive(Clone, Debug)]
pub struct Pipeline(Next);

/// The pipeline of calls from a caller to an endpoint of `service`.
pub fn client<T: Transport>(runtime: &Runtime, service: &str, transport: &Arc<T>) -> Pipeline {
    let cluster = runtime.cluster(service, transport);
    let stages = runtime.stages();

    let node = ServiceBuilder::new()
        // below balance: it marks and measures one attempt at one node
        .layer(AttemptLayer)
        .service(stages.at(Stage::Node, service, None, Connect::<T::Leaf>(PhantomData)));
    let attempt = ServiceBuilder::new()
        // above balance: an injected answer counts against no node
        .layer(FaultLayer::new(At::Attempt))
        // below retry: each attempt picks again, and knows the nodes tried before
        .layer(BalanceLayer::new(cluster))
        .service(node);
    let call = ServiceBuilder::new()
        // above everything that can fail, below metrics, which keep the true outcome
        .layer(FallbackLayer)
        // above every layer that waits: one deadline for limits, faults, pauses and attempts together
        .layer(DeadlineLayer)
        // above breaker and retry: a refused call reaches no node and costs no attempt
        .layer(RateLimitLayer)
        .layer(ConcurrencyLayer { side: Side::Client })
        // above retry: the limits cover all attempts of a call; below the layers that refuse a call unread
        .layer(crate::layer::message_limits::MessageLimitsLayer)
        // above retry, which would hide it; below limits, which must apply to it too
        .layer(FaultLayer::new(At::Call))
        // above retry: it judges the final outcome, and an open circuit costs no attempts
        .layer(BreakerLayer)
        // above balance: another attempt goes to another node
        .layer(RetryLayer)
        .service(stages.at(Stage::Attempt, service, None, attempt));
    let client = ServiceBuilder::new()
        // first: everything below reads the values that it sets
        .layer(RouteLayer::new(Side::Client, runtime.policies().clone()))
        // above retry: one span around all attempts
        .layer(TraceLayer::new(Side::Client))
        // above every layer that refuses: refusals are counted too
        .layer(MetricsLayer)
        .service(stages.at(Stage::Call, service, None, call));
    Pipeline(Next::new(client))
}

/// The pipeline of incoming calls to `handler`.
pub fn server<S>(runtime: &Runtime, handler: S) -> Pipeline
where
    S: Service<Invocation, Response = Reply, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    server_at(runtime, None, handler)
}

/// The same for calls that come in at `listener`, by its name in the settings.
pub fn server_at<S>(runtime: &Runtime, listener: Option<&str>, handler: S) -> Pipeline
where
    S: Service<Invocation, Response = Reply, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    let listener: Option<Arc<str>> = listener.map(Into::into);
    let (stages, service) = (runtime.stages(), runtime.service());
    let call = ServiceBuilder::new()
        // above all code of chassis and of the user that runs for this call
        .layer(PanicLayer::new(runtime.events().clone(), runtime.metrics().clone()))
        // above every layer that waits
        .layer(DeadlineLayer)
        // before expensive work: a caller over its limit is refused at once
        .layer(RateLimitLayer)
        .layer(ConcurrencyLayer { side: Side::Server })
        // below the layers that refuse calls unread, around all that read or answer them
        .layer(crate::layer::message_limits::MessageLimitsLayer)
        // inside the limits, like the handler that it replaces
        .layer(FaultLayer::new(At::Call))
        .layer(FaultLayer::new(At::Attempt))
        // just above the handler: calls that it makes inherit deadline, trace and chosen headers
        .layer(ContextLayer)
        .service(stages.at(Stage::Handler, service, listener.as_ref(), handler));
    let server = ServiceBuilder::new()
        // first: everything below reads the values that it sets
        .layer(RouteLayer::new(Side::Server, runtime.policies().clone()))
        // above the metrics: a span around all work for the call
        .layer(TraceLayer::new(Side::Server))
        // above every layer that refuses: refusals are counted too
        .layer(MetricsLayer)
        .service(stages.at(Stage::ServerCall, service, listener.as_ref(), call));
    Pipeline(Next::new(server))
}

/// The effective order of the layers on a side, outermost first: printed at start-up.
///
/// Users' layers are in brackets, with their switch if it is off: `[audit: off]`, `[audit: off at http]`. Operations
/// with switches of their own are in [`inspect`](crate::inspect) only.
pub fn chain(runtime: &Runtime, side: Side, service: &str) -> String {
    let (stages, policies) = (runtime.stages(), runtime.policies().get());
    let policy = match side {
        Side::Client => policies.outbound_now(service),
        Side::Server => policies.inbound_now(),
    };
    let own = |layers: Vec<(Arc<str>, usize)>| {
        layers.into_iter().map(|(name, number)| match policy.layers.in_words(number).as_str() {
            "" => format!("[{name}]"),
            off => format!("[{name}: {off}]"),
        })
    };
    let mut names: Vec<String> = Vec::new();
    let mut add = |built_in: &[&str], layers| {
        names.extend(built_in.iter().map(|name| (*name).to_owned()));
        names.extend(own(layers));
    };
    match side {
        Side::Client => {
            add(&["route", "trace", "metrics"], stages.numbered(Stage::Call, service));
            let call = [
                "fallback",
                "deadline",
                "rate_limit",
                "concurrency",
                "message_limits",
                "fault(call)",
                "breaker",
                "retry",
            ];
            add(&call, stages.numbered(Stage::Attempt, service));
            add(&["fault(attempt)", "balance", "attempt"], stages.numbered(Stage::Node, service));
            add(&["connect"], Vec::new());
        }
        Side::Server => {
            let service = runtime.service();
            add(&["route", "trace", "metrics"], stages.numbered(Stage::ServerCall, service));
            add(
                &["panic", "deadline", "rate_limit", "concurrency", "message_limits", "fault", "context"],
                stages.numbered(Stage::Handler, service),
            );
            add(&["handler"], Vec::new());
        }
    }
    names.join(" → ")
}

impl Service<Invocation> for Pipeline {
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Invocation) -> Self::Future {
        self.0.run(call)
    }
}

impl Pipeline {
    /// Passes a call to the outermost layer.
    pub fn run(&self, call: Invocation) -> BoxFuture<'static, Result<Reply, Error>> {
        self.0.run(call)
    }
}

/// Only a user's layer can have lost the node of a call.
const WITHOUT_NODE: &str = "a layer at `Node` went on with a call that has no node, or one of another protocol: \
                            pass on the call that it was given, or a `try_clone` of it";

/// Passes the call to the leaf of the picked node.
struct Connect<L>(PhantomData<fn() -> L>);

impl<L> Clone for Connect<L> {
    fn clone(&self) -> Self {
        Connect(PhantomData)
    }
}

impl<L: Leaf> Service<Invocation> for Connect<L> {
    type Response = Reply;
    type Error = Failed;
    type Future = crate::layer::MaybeBoxed<L::Future, Failed>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Invocation) -> Self::Future {
        let node = call.node().cloned();
        match node.as_ref().and_then(|node| node.leaf::<L>()) {
            Some(leaf) => crate::layer::MaybeBoxed::inner(leaf.call(call)),
            None => {
                let error = Error::local(Reason::Internal, WITHOUT_NODE).with_rule("layers");
                crate::layer::MaybeBoxed::refused(call.refuse(error))
            }
        }
    }
}
