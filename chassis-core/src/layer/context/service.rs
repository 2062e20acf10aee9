//! The layer and its service.
use std::{
    pin::Pin,
    task::{self, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::layer::{forward_ready, plain_layer};
use crate::{
    call::{Invocation, Reply},
    context::{CallSettings, CarriedHeaders, Context, RetriesExhausted, Scoped, within},
    types::{
        BoxBody, Error,
        wire::{BAGGAGE, LONGEST_CARRIED, contains},
    },
};

plain_layer! {
    /// Sets the [`Context`] that the handler runs in.
    ContextLayer => WithContext
}

pin_project! {
    /// The handler, in its context.
    pub(crate) struct ContextFuture<S: Service<Invocation>> {
        #[pin]
        inner: Scoped<Handling<S>>,
    }
}

pin_project! {
    /// A handler that is called at the first poll, because it may make calls before it returns a future.
    #[project = HandlingProjection]
    enum Handling<S: Service<Invocation>> {
        Before { start: Option<(S, Invocation)> },
        Under { #[pin] way: S::Future },
    }
}

/// The stream of an answer: the handler's code that makes its parts runs in the handler's context.
struct InContext {
    body: BoxBody,
    context: Option<Context>,
}

impl<S> Service<Invocation> for WithContext<S>
where
    S: Service<Invocation, Response = Reply, Error = Error> + Clone,
{
    type Response = Reply;
    type Error = Error;
    type Future = ContextFuture<S>;

    forward_ready!();

    fn call(&mut self, call: Invocation) -> Self::Future {
        let context = Context {
            deadline: call.deadline,
            trace: call.trace.clone(),
            headers: carried(&call),
            is_retry: call.previous_attempts > 0,
            retries_exhausted: RetriesExhausted::default(),
            settings: CallSettings::of(&call.policy),
        };
        let handling = Handling::Before { start: Some((self.inner.clone(), call)) };
        ContextFuture { inner: context.scoped(handling) }
    }
}

/// The headers that are carried on along a chain of hops: those named in the settings, and baggage.
fn carried(call: &Invocation) -> CarriedHeaders {
    let named = call.policy.common.carried.any();
    let baggage = contains(&call.metadata, &BAGGAGE);
    if !named && !baggage {
        return CarriedHeaders::default();
    }
    let mut headers = HeaderMap::new();
    call.policy.common.carried.each(|name| {
        for value in call.metadata.get_all(name) {
            headers.append(name.clone(), value.clone());
        }
    });
    if baggage && !headers.contains_key(BAGGAGE) {
        let baggage = call.metadata.get_all(BAGGAGE);
        let length: usize = baggage.iter().map(|value| value.len()).sum();
        if length <= LONGEST_CARRIED {
            headers.extend(baggage.iter().map(|value| (BAGGAGE, value.clone())));
        }
    }
    headers.into()
}

// === impl ContextFuture ===

impl<S> Future for ContextFuture<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
{
    type Output = Result<Reply, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let mut inner = self.project().inner;
        let mut answer = task::ready!(inner.as_mut().poll(cx));
        let Ok(reply) = &mut answer else { return Poll::Ready(answer) };
        let has_failed = reply.verdict().is_some_and(|verdict| !verdict.is_success());
        if has_failed || reply.body.is_streaming() {
            let context = inner.take_context();
            if has_failed && context.as_ref().is_some_and(|context| context.retries_exhausted.is_set()) {
                let protocol = reply.protocol;
                protocol.forbid_retry(&mut reply.metadata);
            }
            let body = std::mem::take(&mut reply.body);
            reply.body = body.wrap(|body| InContext { body, context });
        }
        Poll::Ready(answer)
    }
}

// === impl Handling ===

impl<S: Service<Invocation>> Future for Handling<S> {
    type Output = Result<S::Response, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        loop {
            match self.as_mut().project() {
                HandlingProjection::Under { way } => return way.poll(cx),
                HandlingProjection::Before { start } => {
                    // Taken once: from here on it runs.
                    let (mut handler, call) = start.take().expect("a handler is called once");
                    let way = handler.call(call);
                    self.set(Handling::Under { way });
                }
            }
        }
    }
}

// === impl InContext ===

impl HttpBody for InContext {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let InContext { body, context } = &mut *self;
        within(context, || body.as_mut().poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
