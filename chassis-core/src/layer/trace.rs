//! Carries W3C trace context in and out, and opens a span for each call and each attempt.
//!
//! Headers are parsed and formatted here, directly: a general propagator costs several times as much.
//! A trace that came in goes on; a new one is begun only for the sampled share of calls, so that calls
//! nobody traces carry no header.
use std::{
    fmt::Write,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::forward_ready;
use crate::{
    Error,
    call::{Invocation, Reply},
    event::Side,
    headers,
    random::{Random, mix},
};

/// The trace a call is part of, and the span that calls made for it are children of.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceContext {
    /// The whole trace; never 0.
    pub trace_id: u128,
    /// The current span; never 0.
    pub span_id: u64,
    /// The flags of `traceparent` that are known: bit 0 says sampled, bit 1 that the trace's id is random.
    pub flags: u8,
    /// What other tracers want handed on.
    pub state: Option<HeaderValue>,
}

/// Opens spans, and takes trace context in.
#[derive(Clone, Copy, Debug)]
pub struct TraceLayer {
    side: Side,
}

/// The service of [`TraceLayer`].
#[derive(Clone, Debug)]
pub struct Trace<S> {
    inner: S,
    with: TraceLayer,
}

pin_project! {
    /// The inner future, in its span.
    pub struct TraceFuture<F> {
        #[pin]
        inner: F,
        // Boxed, as hardly any call has one and the future is moved.
        span: Option<Box<tracing::Span>>,
        // 0: none.
        trace_id: u128,
    }
}

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// What applications want handed on, with a trace or without one.
pub(super) const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// Sampled (0x01) and random (0x02). What else may come to mean something is not ours to say (W3C: zero).
const KNOWN_FLAGS: u8 = 0x03;

/// Longer baggage and state are not handed on: W3C's bound, so that no caller makes us carry more.
pub(super) const LONGEST: usize = 8192;

// === impl TraceLayer ===

impl TraceLayer {
    /// Traces one side.
    pub fn new(side: Side) -> Self {
        TraceLayer { side }
    }

    /// Makes `call` part of the trace that its headers name, of the one it inherits, or of a new one.
    #[inline]
    fn stamp(call: &mut Invocation) {
        let call = &mut **call;
        let common = &call.policy.common;
        // Hardly any call has one.
        let comes = headers::contains(&call.metadata, &TRACEPARENT);
        let parent = if comes { TraceContext::take(&mut call.metadata) } else { None };
        let trace = match (parent, &call.trace) {
            (Some(parent), _) => parent.child(&common.random),
            (None, Some(parent)) => parent.child(&common.random),
            (None, None) if common.begins_trace() => TraceContext::root(&common.random),
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
            // Who is told of it may look for the trace.
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.with_trace_id(*this.trace_id))),
            polled => polled,
        }
    }
}

/// Opens the span of an attempt, if anybody looks at it, and writes the headers that name it.
#[inline]
pub(crate) fn attempt_span(call: &mut Invocation) -> Option<Box<tracing::Span>> {
    let call = &mut **call;
    let span = tracing::debug_span!(
        target: "chassis::attempt", "attempt", number = call.previous_attempts,
        node = call.node().map(|node| node.address()), span_id = tracing::field::Empty,
    );
    if let Some(trace) = &call.trace {
        // Each attempt is a span of its own; its id follows from the call's and the attempt's number.
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

// === impl TraceContext ===

impl TraceContext {
    /// A new, sampled trace.
    pub fn root(random: &Random) -> Self {
        let trace_id = u128::from(random.next_u64()) << 64 | u128::from(random.next_u64().max(1));
        TraceContext { trace_id, span_id: random.next_u64().max(1), flags: 1, state: None }
    }

    /// A span below this one.
    pub fn child(&self, random: &Random) -> Self {
        TraceContext { span_id: random.next_u64().max(1), ..self.clone() }
    }

    /// From `traceparent` and `tracestate`; a malformed parent is no parent, as W3C has it, and of several none is.
    pub fn read(metadata: &HeaderMap) -> Option<Self> {
        let (trace_id, span_id, flags) = parse(headers::find(metadata, &TRACEPARENT)?.as_bytes())?;
        let is_repeated = || metadata.get_all(TRACEPARENT).iter().count() > 1;
        if metadata.len() > metadata.keys_len() && is_repeated() {
            return None;
        }
        Some(TraceContext { trace_id, span_id, flags: flags & KNOWN_FLAGS, state: state(metadata) })
    }

    /// The same; what is no parent goes no further, nor does the state that belongs to it.
    fn take(metadata: &mut HeaderMap) -> Option<Self> {
        let parent = TraceContext::read(metadata);
        if parent.is_none() {
            metadata.remove(TRACEPARENT);
            metadata.remove(TRACESTATE);
        }
        parent
    }

    /// Writes the headers, `span_id` being the span of the attempt.
    pub fn write(&self, span_id: u64, metadata: &mut HeaderMap) {
        let mut text = String::with_capacity(55);
        // Writing to a string does not fail, and hex digits make a header value.
        let _ = write!(text, "00-{:032x}-{span_id:016x}-{:02x}", self.trace_id, self.flags);
        if let Ok(value) = HeaderValue::try_from(text) {
            metadata.insert(TRACEPARENT, value);
        }
        if let Some(state) = &self.state {
            metadata.insert(TRACESTATE, state.clone());
        }
    }
}

/// Several headers are one list.
fn state(metadata: &HeaderMap) -> Option<HeaderValue> {
    let mut all = metadata.get_all(TRACESTATE).iter();
    let (first, more) = (all.next()?, all.map(HeaderValue::as_bytes));
    let whole = std::iter::once(first.as_bytes()).chain(more).collect::<Vec<_>>().join(&b","[..]);
    (whole.len() <= LONGEST).then(|| HeaderValue::from_bytes(&whole).ok()).flatten()
}

/// `00-<32 hex>-<16 hex>-<2 hex>`; later versions may have more behind.
fn parse(value: &[u8]) -> Option<(u128, u64, u8)> {
    let hex = |part: &[u8]| {
        let lower = part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        lower.then(|| u128::from_str_radix(std::str::from_utf8(part).ok()?, 16).ok()).flatten()
    };
    let dashes = value.len() >= 55 && [2, 35, 52].iter().all(|i| value[*i] == b'-');
    if !dashes {
        return None;
    }
    let version = hex(&value[..2])?;
    let whole = version != 0xff && (value.len() == 55 || (version > 0 && value[55] == b'-'));
    let (trace, span, flags) = (hex(&value[3..35])?, hex(&value[36..52])? as u64, hex(&value[53..55])? as u8);
    (whole && trace != 0 && span != 0).then_some((trace, span, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_parents_are_parents() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(
            parse(good.as_bytes()),
            Some((0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7, 1))
        );
        assert!(parse(good.replacen("00", "01", 1).as_bytes()).is_some());
        for bad in [
            "",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn of_several_parents_none_is_and_unknown_flags_end_here() {
        const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-";
        let read = |flags: &[&str]| {
            let parents = flags.iter().map(|f| HeaderValue::try_from(format!("{PARENT}{f}")).unwrap());
            let mut metadata: HeaderMap = parents.map(|parent| (TRACEPARENT, parent)).collect();
            metadata.insert(TRACESTATE, HeaderValue::from_static("a=1"));
            let flags = TraceContext::take(&mut metadata).map(|parent| parent.flags);
            (flags, metadata.len())
        };
        for (said, known) in [("00", 0), ("01", 1), ("02", 2), ("03", 3), ("ff", 3), ("fc", 0), ("05", 1)] {
            assert_eq!(read(&[said]), (Some(known), 2), "{said}");
        }
        assert_eq!(read(&["01", "01"]), (None, 0));
        assert_eq!(read(&["01-more"]), (None, 0));
    }

    #[test]
    fn states_are_one_list_of_a_bounded_length() {
        let read = |states: &[&str]| {
            let states = states.iter().map(|s| (TRACESTATE, HeaderValue::from_str(s).unwrap()));
            state(&states.collect()).map(|state| state.to_str().unwrap().to_owned())
        };
        assert_eq!(read(&[]), None);
        assert_eq!(read(&["a=1", "b=2"]).as_deref(), Some("a=1,b=2"));
        assert_eq!(read(&["a=1", &"b".repeat(LONGEST)]), None);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let random = Random::seeded(1);
        let mut root = TraceContext::root(&random);
        root.state = Some(HeaderValue::from_static("a=b"));
        let mut metadata = HeaderMap::new();
        root.write(7, &mut metadata);
        assert_eq!(TraceContext::read(&metadata), Some(TraceContext { span_id: 7, ..root }));
    }
}
