//! Makes a call's deadline, trace, baggage and chosen headers those of the calls its handler makes.
//!
//! And the other way: where such a call was retried in vain, a failing answer tells the caller not to
//! retry. Of a chain of services only the one above what fails tries again, instead of each.
use std::{
    pin::Pin,
    task::{self, Poll},
};

use http::{HeaderMap, HeaderName};
use pin_project_lite::pin_project;
use tokio::task::futures::TaskLocalFuture;
use tower_service::Service;

use super::{
    forward_ready,
    trace::{BAGGAGE, LONGEST},
};
use crate::{
    Error, Live,
    call::{Invocation, Reply},
    context::{Context, InVain},
};

/// Sets the [`Context`] that the handler runs in.
#[derive(Clone)]
pub struct ContextLayer {
    carried: Live<Vec<HeaderName>>,
}

/// The service of [`ContextLayer`].
#[derive(Clone)]
pub struct WithContext<S> {
    inner: S,
    carried: Live<Vec<HeaderName>>,
}

pin_project! {
    /// The handler, in its context.
    pub struct ContextFuture<F> {
        #[pin]
        inner: TaskLocalFuture<Context, F>,
    }
}

// === impl ContextLayer ===

impl ContextLayer {
    /// `carried` are the headers that go on along a chain of hops.
    pub fn new(carried: Live<Vec<HeaderName>>) -> Self {
        ContextLayer { carried }
    }
}

impl<S> tower_layer::Layer<S> for ContextLayer {
    type Service = WithContext<S>;
    fn layer(&self, inner: S) -> WithContext<S> {
        WithContext { inner, carried: self.carried.clone() }
    }
}

impl<S> Service<Invocation> for WithContext<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = ContextFuture<S::Future>;

    forward_ready!();

    fn call(&mut self, call: Invocation) -> Self::Future {
        let mut headers = HeaderMap::new();
        self.carried.with(|names| {
            for name in names.iter() {
                for value in call.metadata.get_all(name) {
                    headers.append(name.clone(), value.clone());
                }
            }
        });
        let baggage = call.metadata.get_all(BAGGAGE);
        let length: usize = baggage.iter().map(|value| value.len()).sum();
        if length <= LONGEST && !headers.contains_key(BAGGAGE) {
            headers.extend(baggage.iter().map(|value| (BAGGAGE, value.clone())));
        }
        let context = Context {
            deadline: call.deadline,
            trace: call.trace.clone(),
            headers,
            is_retry: call.previous_attempts > 0,
            in_vain: InVain::default(),
        };
        // A handler may make calls before it is first polled.
        let inner = context.clone().enter(|| self.inner.call(call));
        ContextFuture { inner: context.scope(inner) }
    }
}

// === impl ContextFuture ===

impl<F: Future<Output = Result<Reply, Error>>> Future for ContextFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<F::Output> {
        let mut inner = self.project().inner;
        let mut answer = task::ready!(inner.as_mut().poll(cx));
        if let Ok(reply) = &mut answer
            && reply.verdict().is_some_and(|verdict| !verdict.is_success())
            && inner.take_value().is_some_and(|context| context.in_vain.is_set())
        {
            let protocol = reply.protocol;
            protocol.forbid_retry(&mut reply.metadata);
        }
        Poll::Ready(answer)
    }
}
