//! The layer and its service.
use std::{
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_service::Service;

use crate::layer::{forward_ready, plain_layer};
use crate::{
    call::{Invocation, Reply},
    clock::Instant,
    types::{Error, Reason},
};

plain_layer! {
    /// Ends calls at their deadline.
    DeadlineLayer => Deadline
}

pin_project! {
    #[allow(missing_docs)]
    /// Resolves with the answer, or with an error at `bound`.
    #[project = DeadlineProjection]
    pub(crate) enum DeadlineFuture<F> {
        /// Without a time limit.
        Unbounded { #[pin] inner: F },
        /// With a time limit.
        Bounded {
            #[pin]
            inner: F,
            bound: Instant,
            // Made when the inner future is first pending: a call that is answered at once needs no timer.
            #[pin]
            timer: Option<Sleep>,
        },
        /// The deadline passed.
        Over { error: Option<Error> },
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

    #[inline]
    fn call(&mut self, mut call: Invocation) -> Self::Future {
        let Some(bound) = call.bound() else {
            return DeadlineFuture::Unbounded { inner: self.inner.call(call) };
        };
        if call.started >= bound {
            let message = "the deadline had passed before the call began";
            let error = call.refuse(Error::local(Reason::DeadlineExceeded, message));
            return DeadlineFuture::Over { error: Some(error) };
        }
        call.expires(bound);
        DeadlineFuture::Bounded { inner: self.inner.call(call), bound, timer: None }
    }
}

impl<F: Future<Output = Result<Reply, Error>>> Future for DeadlineFuture<F> {
    type Output = Result<Reply, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.as_mut().project() {
            DeadlineProjection::Unbounded { inner } => return inner.poll(cx),
            DeadlineProjection::Bounded { inner, bound, mut timer } => {
                if let Poll::Ready(answer) = inner.poll(cx) {
                    return Poll::Ready(answer);
                }
                if timer.is_none() {
                    timer.set(Some(tokio::time::sleep_until((*bound).into())));
                }
                if let Some(timer) = timer.as_pin_mut() {
                    std::task::ready!(timer.poll(cx));
                }
            }
            DeadlineProjection::Over { error } => {
                // Taken once: a future is not polled again after it has resolved.
                return Poll::Ready(Err(error.take().expect("polled after it was ready")));
            }
        }
        // The drop notifies the listeners below that the deadline passed.
        self.set(DeadlineFuture::Over { error: None });
        Poll::Ready(Err(Error::remote(Reason::DeadlineExceeded, "no answer before the deadline")))
    }
}
