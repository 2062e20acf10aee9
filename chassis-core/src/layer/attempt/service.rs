//! The layer and its service.
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::HeaderValue;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_service::Service;

use super::AttemptMetrics;
use crate::{
    call::{BuiltIn, CallError, Failed, Invocation, Listener, Outcome, Reply},
    clock::Instant,
    cluster::Node,
    layer::{forward_ready, plain_layer, trace::attempt_span},
    types::{Error, Reason, wire::CALLER},
};

plain_layer! {
    /// Bounds, counts and marks every attempt.
    AttemptLayer => Attempt
}

pin_project! {
    #[allow(missing_docs)]
    /// Resolves with the answer, or with an error at `bound`.
    #[project = AttemptProjection]
    pub(crate) enum AttemptFuture<F> {
        /// Without a limit of its own, and without a span.
        Plain { #[pin] inner: F },
        /// With a time limit, or in a span.
        Watched {
            #[pin]
            inner: F,
            // The end of its time, and the node that a timeout then counts against.
            bound: Option<(Instant, Option<Arc<Node>>)>,
            timer: Option<Pin<Box<Sleep>>>,
            span: Option<Box<tracing::Span>>,
        },
        /// The time was up.
        Over,
    }
}

impl<S> Service<Invocation> for Attempt<S>
where
    S: Service<Invocation, Response = Reply, Error = Failed>,
{
    type Response = Reply;
    type Error = Failed;
    type Future = AttemptFuture<S::Future>;

    forward_ready!();

    fn call(&mut self, mut call: Invocation) -> Self::Future {
        let started = call.attempt_started();
        let bound = call
            .policy
            .retry
            .as_ref()
            .and_then(|retry| retry.config.per_try.on())
            .and_then(|per| started.checked_add(per.get()));
        if let Some(bound) = bound {
            call.attempt_expires(bound);
        }
        if call.policy.attempts.is_some() {
            call.listen_attempt_built_in(BuiltIn::Attempts);
        }
        if let Some(caller) = call.target.caller.clone() {
            call.metadata.insert(CALLER, caller);
        }
        // The first attempt for an incoming retry is marked as a retry too; otherwise services further down
        // would retry it.
        let before = call.attempt_number();
        if before > 0 {
            let name = call.protocol.attempts_header();
            call.metadata.insert(name, HeaderValue::from(before));
        }
        if let Some(deadline) = call.deadline {
            let (protocol, left) = (call.protocol, deadline.saturating_duration_since(started));
            protocol.write_deadline(&mut call.metadata, left);
        }
        let bound = bound.map(|at| (at, call.node().cloned()));
        let span = attempt_span(&mut call);
        if bound.is_none() && span.is_none() {
            return AttemptFuture::Plain { inner: self.inner.call(call) };
        }
        let inner = match &span {
            None => self.inner.call(call),
            Some(span) => span.in_scope(|| self.inner.call(call)),
        };
        AttemptFuture::Watched { inner, bound, timer: None, span }
    }
}

impl<F: Future<Output = Result<Reply, Failed>>> Future for AttemptFuture<F> {
    type Output = Result<Reply, Failed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let node = match self.as_mut().project() {
            AttemptProjection::Plain { inner } => return inner.poll(cx),
            AttemptProjection::Watched { inner, bound, timer, span } => {
                let _entered = span.as_ref().map(|span| span.enter());
                if let Poll::Ready(answer) = inner.poll(cx) {
                    return Poll::Ready(answer);
                }
                let Some((bound, node)) = bound else { return Poll::Pending };
                let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until((*bound).into())));
                std::task::ready!(timer.as_mut().poll(cx));
                node.take()
            }
            AttemptProjection::Over => return Poll::Pending,
        };
        self.set(AttemptFuture::Over);
        let error = Error::remote(Reason::DeadlineExceeded, "no answer within `per_try`");
        Poll::Ready(Err(Failed::at(error, node)))
    }
}

// === impl AttemptMetrics ===

impl Listener for AttemptMetrics {
    fn judged(&self, _: u64, outcome: &Outcome<'_>) {
        self.count(&outcome.verdict);
    }

    fn ended(&self, _: u64) {}
}
