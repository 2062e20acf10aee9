//! The layer and its service.
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::layer::forward_ready;
use crate::{
    call::{Invocation, Reply},
    random::mix,
    types::{
        Error, Side, TraceContext,
        wire::{TRACEPARENT, contains},
    },
};

/// Opens spans, and reads trace context.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TraceLayer {
    side: Side,
}

/// The service of [`TraceLayer`].
#[derive(Clone, Debug)]
pub(crate) struct Trace<S> {
    inner: S,
    with: TraceLayer,
}

pin_project! {
    /// The inner future, in its span.
    pub(crate) struct TraceFuture<F> {
        #[pin]
        inner: F,
        // Boxed, because few calls have one, and the future is moved.
        span: Option<Box<tracing::Span>>,
        // 0 means none.
        trace_id: u128,
    }
}

// === impl TraceLayer ===

impl TraceLayer {
    /// Traces the calls of one side.
    pub(crate) fn new(side: Side) -> Self {
        TraceLayer { side }
    }

    /// Makes `call` part of the trace in its headers, of the inherited one, or of a new one.
    #[inline]
    fn stamp(call: &mut Invocation) {
        let call = &mut **call;
        let common = &call.policy.common;
        // Few calls have one.
        let comes = contains(&call.metadata, &TRACEPARENT);
        let parent = if comes { TraceContext::take(&mut call.metadata) } else { None };
        let draw = || common.random.next_u64();
        let trace = match (parent, &call.trace) {
            (Some(parent), _) => parent.child(draw),
            (None, Some(parent)) => parent.child(draw),
            (None, None) if common.begins_trace() => TraceContext::root(draw),
            (None, None) => return,
        };
        call.trace = Some(Arc::new(trace));
    }
}

impl<S> tower_layer::Layer<S> for TraceLayer {
    type Service = Trace<S>;
    fn layer(&self, inner: S) -> Trace<S> {
        Trace { inner, with: *self }
    }
}

impl<S> Service<Invocation> for Trace<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = TraceFuture<S::Future>;

    forward_ready!();

    fn call(&mut self, mut call: Invocation) -> Self::Future {
        TraceLayer::stamp(&mut call);
        let trace_id = call.trace.as_ref().map_or(0, |trace| trace.trace_id);
        let (side, target, trace) = (self.with.side.name(), &call.target, &call.trace);
        let span = tracing::debug_span!(
            target: "chassis::call", "call", side, service = %target.service, operation = %target.operation,
            trace_id = tracing::field::Empty, span_id = tracing::field::Empty,
        );
        if span.is_disabled() {
            return TraceFuture { inner: self.inner.call(call), span: None, trace_id };
        }
        record(&span, trace);
        TraceFuture { inner: span.in_scope(|| self.inner.call(call)), span: Some(Box::new(span)), trace_id }
    }
}

impl<F: Future<Output = Result<Reply, Error>>> Future for TraceFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = this.span.as_ref().map(|span| span.enter());
        match this.inner.poll(cx) {
            // With the trace id, a caller that gets the error can find the trace.
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.with_trace_id(*this.trace_id))),
            polled => polled,
        }
    }
}

/// Opens the span of an attempt, if it is recorded, and writes its headers.
#[inline]
pub(crate) fn attempt_span(call: &mut Invocation) -> Option<Box<tracing::Span>> {
    let call = &mut **call;
    let span = tracing::debug_span!(
        target: "chassis::attempt", "attempt", number = call.previous_attempts,
        node = call.node().map(|node| node.address()), span_id = tracing::field::Empty,
    );
    if let Some(trace) = &call.trace {
        // Each attempt is a span of its own; its id is computed from the call's and the attempt's number.
        let span_id = mix(trace.span_id ^ (u64::from(call.previous_attempts) + 1)).max(1);
        if !span.is_disabled() {
            span.record("span_id", tracing::field::display(format_args!("{span_id:016x}")));
        }
        trace.write(span_id, &mut call.metadata);
    }
    (!span.is_disabled()).then(|| Box::new(span))
}

fn record(span: &tracing::Span, trace: &Option<Arc<TraceContext>>) {
    if let Some(trace) = trace {
        span.record("trace_id", tracing::field::display(format_args!("{:032x}", trace.trace_id)));
        span.record("span_id", tracing::field::display(format_args!("{:016x}", trace.span_id)));
    }
}
