//! The layer and its service.
use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http_body::Body as _;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    Bound, MessageLimits,
    body::{Metered, measure},
    cut::Cut,
    rule::Direction,
};
use crate::{
    call::{Call, CallCheck, Invocation, Reply},
    layer::{forward_ready, plain_layer},
    types::{Error, Verdict},
};

plain_layer! {
    /// Ends calls that exceed the bounds of their policy.
    MessageLimitsLayer => LimitMessages
}

pin_project! {
    #[allow(missing_docs)]
    /// Resolves with the answer, or with an error once a bound cuts off the call.
    #[project = LimitProjection]
    pub(crate) enum MessageLimitsFuture<F> {
        /// Without bounds.
        Unbounded { #[pin] inner: F },
        /// The answer is bounded, and the request if it is a stream.
        Bounded {
            // `None` once the request was cut off.
            #[pin]
            inner: Option<F>,
            watch: Arc<Watch>,
        },
        /// The request exceeded a bound before any of it was sent.
        Refused { error: Option<Error> },
    }
}

/// Checks a call against its bounds.
pub(crate) struct Watch {
    limits: Arc<MessageLimits>,
    /// `None` if the request is complete.
    cut: Option<Arc<Cut>>,
}

impl<S> Service<Invocation> for LimitMessages<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = MessageLimitsFuture<S::Future>;

    forward_ready!();

    #[inline]
    fn call(&mut self, call: Invocation) -> Self::Future {
        match call.policy.message_limits.is_none() {
            true => MessageLimitsFuture::Unbounded { inner: self.inner.call(call) },
            false => self.bounded(call),
        }
    }
}

impl<S> LimitMessages<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
{
    /// Not inlined: keeps the disabled path to one branch.
    #[inline(never)]
    fn bounded(&mut self, mut call: Invocation) -> MessageLimitsFuture<S::Future> {
        let Some(limits) = call.policy.message_limits.clone() else {
            return MessageLimitsFuture::Unbounded { inner: self.inner.call(call) };
        };
        let (bounds, protocol) = (limits.bounds(Direction::Request), call.protocol);
        let mut cut = None;
        if bounds.is_on() && call.body.is_streaming() {
            let (body, shared) = (mem::take(&mut call.body), Arc::<Cut>::default());
            call.body =
                Metered::wrap(body, Direction::Request, limits.clone(), protocol, Some(shared.clone()));
            cut = Some(shared);
        } else if bounds.is_on()
            && let Some(over) = measure(&call.body, &bounds, protocol)
        {
            let error = limits.over(Direction::Request, over.bound).with_maybe_executed(false);
            return MessageLimitsFuture::Refused { error: Some(call.refuse(error)) };
        }
        let watch = Arc::new(Watch { limits, cut });
        call.check_by(watch.clone());
        MessageLimitsFuture::Bounded { inner: Some(self.inner.call(call)), watch }
    }
}

impl<F: Future<Output = Result<Reply, Error>>> Future for MessageLimitsFuture<F> {
    type Output = Result<Reply, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (mut inner, watch) = match self.project() {
            LimitProjection::Unbounded { inner } => return inner.poll(cx),
            LimitProjection::Bounded { inner, watch } => (inner, watch),
            LimitProjection::Refused { error } => {
                // Taken once: a future is not polled again after it has resolved.
                return Poll::Ready(Err(error.take().expect("polled after it was ready")));
            }
        };
        if let Some(cut) = &watch.cut
            && let Poll::Ready(error) = cut.poll(cx)
        {
            inner.set(None); // the verdict of `watch` is the reason of the drop
            return Poll::Ready(Err(error));
        }
        let Some(inner) = inner.as_pin_mut() else { return Poll::Pending };
        let mut answer = ready!(inner.poll(cx));
        match answer.as_mut().ok().and_then(Reply::take_refusal) {
            Some(error) => Poll::Ready(Err(error)),
            None => Poll::Ready(answer),
        }
    }
}

// === impl Watch ===

impl CallCheck for Watch {
    fn check_answer(&self, answer: &mut Call) -> Result<(), Error> {
        // The request was cut off, whatever the handler answered.
        if let Some(error) = self.cut.as_ref().and_then(|cut| cut.take()) {
            return Err(error);
        }
        let (bounds, protocol) = (self.limits.bounds(Direction::Answer), answer.protocol);
        if bounds.bytes.is_some_and(|most| answer.body.size_hint().lower() > most) {
            return Err(self.limits.over(Direction::Answer, Bound::Bytes));
        }
        let is_metered = match answer.body.is_streaming() {
            true => bounds.is_on() || self.cut.is_some(),
            false => bounds.counts_messages() && measure(&answer.body, &bounds, protocol).is_some(),
        };
        if is_metered {
            let (body, limits, cut) = (mem::take(&mut answer.body), self.limits.clone(), self.cut.clone());
            answer.body = Metered::wrap(body, Direction::Answer, limits, protocol, cut);
        }
        Ok(())
    }

    fn verdict_of_drop(&self) -> Option<Verdict> {
        self.cut.as_ref().and_then(|cut| cut.verdict())
    }
}
