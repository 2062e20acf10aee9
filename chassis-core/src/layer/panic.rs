//! Turns a handler's panic into an error of that one call: 500, or INTERNAL.
//!
//! What a panic says stays in the log; the caller learns only that there was one.
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    Error, Reason,
    call::{Hop, Invocation, Reply, while_panicked},
    event::{Event, Events},
    metrics::Metrics,
};

/// Guards against panics of what is inside.
#[derive(Clone)]
pub struct PanicLayer {
    shared: Arc<(Events, Metrics)>,
}

/// The service of [`PanicLayer`].
#[derive(Clone)]
pub struct PanicGuard<S> {
    inner: S,
    shared: Arc<(Events, Metrics)>,
}

pin_project! {
    /// Resolves with the answer, or with an error if the handler panicked.
    pub struct PanicFuture<F> {
        #[pin]
        inner: Option<F>,
        operation: Arc<str>,
        // The call itself is lost with what panicked.
        hop: Option<Hop>,
        shared: Arc<(Events, Metrics)>,
    }
}

impl PanicLayer {
    /// Panics are told to `events` and counted in `metrics`.
    pub fn new(events: Events, metrics: Metrics) -> Self {
        PanicLayer { shared: Arc::new((events, metrics)) }
    }
}

impl<S> tower_layer::Layer<S> for PanicLayer {
    type Service = PanicGuard<S>;
    fn layer(&self, inner: S) -> PanicGuard<S> {
        PanicGuard { inner, shared: self.shared.clone() }
    }
}

impl<S> Service<Invocation> for PanicGuard<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = PanicFuture<S::Future>;

    super::forward_ready!();

    fn call(&mut self, call: Invocation) -> Self::Future {
        let (operation, hop) = (call.policy.operation.clone(), Hop::by_caller(&call));
        let inner = catch_unwind(AssertUnwindSafe(|| self.inner.call(call))).ok();
        PanicFuture { inner, operation, hop, shared: self.shared.clone() }
    }
}

impl<F: Future<Output = Result<Reply, Error>>> Future for PanicFuture<F> {
    type Output = Result<Reply, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(inner) = this.inner.as_mut().as_pin_mut()
            && let Ok(polled) = catch_unwind(AssertUnwindSafe(|| inner.poll(cx)))
        {
            return polled;
        }
        // A future that panicked is not polled again; dropping it must not panic a second time.
        let _ = catch_unwind(AssertUnwindSafe(|| while_panicked(|| this.inner.set(None))));
        let (events, metrics) = &**this.shared;
        metrics.handler_panicked();
        events.emit(Event::HandlerPanicked { operation: this.operation.to_string() });
        let error = Error::remote(Reason::Panicked, "the handler panicked");
        Poll::Ready(Err(error.of_hop(|| this.hop.take())))
    }
}
