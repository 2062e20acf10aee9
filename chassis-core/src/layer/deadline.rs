//! Enforces when a call is over: the deadline to the end of the body, `timeout` to its head.
//!
//! Route works both out; this is the one place that acts on them. Every wait, delay and backoff
//! below is dropped when the time is up, and whoever listens hears that it was. The part behind the
//! head is enforced by [`ReplyBody`](crate::call::ReplyBody), which knows when the body ends.
use std::{
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower_service::Service;

use super::{forward_ready, plain_layer};
use crate::{
    Error, Reason,
    call::{Invocation, Reply},
};

plain_layer! {
    /// Ends calls whose time is up.
    DeadlineLayer => Deadline
}

pin_project! {
    /// Resolves with the answer or, at `bound`, without.
    #[project = DeadlineProjection]
    pub struct DeadlineFuture<F> {
        #[pin]
        inner: Option<F>,
        bound: Option<Instant>,
        // Made when the inner future is first pending: a call answered at once needs no timer.
        #[pin]
        timer: Option<Sleep>,
        error: Option<Error>,
    }
}

impl<S> Service<Invocation> for Deadline<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = DeadlineFuture<S::Future>;

    forward_ready!();

    fn call(&mut self, mut call: Invocation) -> Self::Future {
        let bound = call.bound();
        if let Some(bound) = bound {
            if call.started >= bound {
                let error = call.refuse(Error::local(
                    Reason::DeadlineExceeded,
                    "the deadline had passed before the call began",
                ));
                return DeadlineFuture { inner: None, bound: None, timer: None, error: Some(error) };
            }
            call.expires(bound);
        }
        DeadlineFuture { inner: Some(self.inner.call(call)), bound, timer: None, error: None }
    }
}

impl<F: Future<Output = Result<Reply, Error>>> Future for DeadlineFuture<F> {
    type Output = Result<Reply, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else {
            // Taken once: a future is not polled again after it has resolved.
            return Poll::Ready(Err(this.error.take().expect("polled after it was ready")));
        };
        if let Poll::Ready(answer) = inner.poll(cx) {
            return Poll::Ready(answer);
        }
        let Some(bound) = *this.bound else { return Poll::Pending };
        if this.timer.is_none() {
            this.timer.set(Some(tokio::time::sleep_until(bound)));
        }
        if let Some(timer) = this.timer.as_mut().as_pin_mut() {
            std::task::ready!(timer.poll(cx));
        }
        this.inner.set(None); // whoever listens below hears now that the time was up
        Poll::Ready(Err(Error::remote(Reason::DeadlineExceeded, "no answer before the deadline")))
    }
}
