//! The layer and its service: attempts one after the other, as the policy of the call allows.
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_layer::Layer;
use tower_service::Service;

use super::owned::Owned;
use crate::{
    call::{Failed, Invocation, Reply},
    clock::Instant,
    plugin::protocol::Pushback,
    types::{Error, Reason, Verdict},
};

/// Retries calls as their policy allows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RetryLayer;

/// The service of [`RetryLayer`].
#[derive(Debug)]
pub(crate) struct Retry<S> {
    inner: S,
    /// The service of further attempts. Calls take a reference to it: it is counted here and not in the parts
    /// of `inner`, because every clone has its own counter.
    again: Arc<S>,
}

pin_project! {
    /// Attempts one after the other.
    #[project = RetryProjection]
    pub(crate) struct RetryFuture<S, F> {
        again: Arc<S>,
        #[pin]
        attempt: Option<F>,
        pause: Option<Pin<Box<Sleep>>>,
        // `None` if the call is not retried: then it is sent itself.
        owned: Option<Box<Owned>>,
        resent: bool,
    }
}

/// The step after the outcome of an attempt.
enum Next {
    /// Another attempt, at once.
    Attempt(Invocation),
    /// Another attempt, later.
    Pause(Duration),
    /// The end of the call.
    End(Result<Reply, Error>),
}

impl<S: Clone> Layer<S> for RetryLayer {
    type Service = Retry<S>;
    fn layer(&self, inner: S) -> Retry<S> {
        Retry { again: Arc::new(inner.clone()), inner }
    }
}

impl<S: Clone> Clone for Retry<S> {
    fn clone(&self) -> Self {
        RetryLayer.layer(self.inner.clone())
    }
}

impl<S> Service<Invocation> for Retry<S>
where
    S: Service<Invocation, Response = Reply, Error: Into<Failed>> + Clone,
{
    type Response = Reply;
    type Error = Error;
    type Future = RetryFuture<S, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(|error| Into::<Failed>::into(error).into_error())
    }

    fn call(&mut self, mut call: Invocation) -> Self::Future {
        let mut owned = None;
        if let Some(retries) = &call.policy.retry {
            retries.budget.deposit(call.attempt_started());
            // Otherwise only a call that was not sent is resent, which needs no copy if the transport gives it
            // back.
            if !call.options.no_retry && retries.config.attempts.get() > 1 {
                let most = retries.config.replay_bytes.on().map_or(0, |size| size.get());
                owned = Some(Owned::take(&mut call, most));
            }
        }
        let attempt = Some(self.inner.call(call));
        RetryFuture { again: self.again.clone(), attempt, pause: None, owned, resent: false }
    }
}

impl<S> Future for RetryFuture<S, S::Future>
where
    S: Service<Invocation, Response = Reply, Error: Into<Failed>> + Clone,
{
    type Output = Result<Reply, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            if let Some(pause) = this.pause {
                std::task::ready!(pause.as_mut().poll(cx));
                *this.pause = None;
                match this.owned.as_mut().and_then(|owned| owned.begin_attempt()) {
                    Some(next) => this.attempt.set(Some(S::clone(this.again).call(next))),
                    // The condition cannot occur after `abandon`; an error is better than waiting for ever.
                    None => return Poll::Ready(Err(this.give_up(cannot_repeat()))),
                }
            }
            let Some(attempt) = this.attempt.as_mut().as_pin_mut() else { return Poll::Pending };
            let outcome = std::task::ready!(attempt.poll(cx));
            this.attempt.set(None); // first of all: it holds the unsent part of the body
            let next = match outcome {
                Ok(reply) => match reply.verdict() {
                    Some(verdict) if !verdict.is_success() => this.after_failing(reply, verdict),
                    _ => this.commit(reply),
                },
                Err(error) => this.after_failure(error.into()),
            };
            match next {
                Next::Attempt(next) => this.attempt.set(Some(S::clone(this.again).call(next))),
                Next::Pause(pause) => *this.pause = Some(Box::pin(tokio::time::sleep(pause))),
                Next::End(end) => return Poll::Ready(end),
            }
        }
    }
}

impl<S> RetryProjection<'_, S, S::Future>
where
    S: Service<Invocation, Response = Reply, Error: Into<Failed>> + Clone,
{
    /// Ends the call together with this attempt, and frees the data kept for other attempts.
    fn commit(&mut self, mut reply: Reply) -> Next {
        if let Some(owned) = self.owned.take() {
            owned.commit(&mut reply);
        }
        Next::End(Ok(reply))
    }

    /// Decides after an answer with the failing `verdict`.
    #[cold]
    fn after_failing(&mut self, reply: Reply, verdict: Verdict) -> Next {
        let Some(owned) = self.owned else { return self.commit(reply) };
        let pushback = reply.protocol.pushback(&reply.metadata);
        owned.call.tried.extend(reply.node().cloned());
        match owned.may_retry(&verdict, pushback) {
            Some(pause) => {
                owned.executed |= verdict.maybe_executed;
                reply.discard();
                Next::Pause(pause)
            }
            None => self.commit(reply),
        }
    }

    /// Decides after an attempt without an answer.
    #[cold]
    fn after_failure(&mut self, mut failed: Failed) -> Next {
        let untouched = failed.take_unsent();
        if let Some(owned) = self.owned {
            owned.call.tried.extend(failed.node().cloned());
        }
        if failed.unsent() && !std::mem::replace(self.resent, true) {
            let next = match (untouched, self.owned.as_mut()) {
                (Some(mut attempt), owned) => {
                    match owned {
                        Some(owned) => attempt.tried.clone_from(&owned.call.tried),
                        None => attempt.tried.extend(failed.node().cloned()),
                    }
                    attempt.begin_attempt(Instant::now());
                    Some(attempt)
                }
                (None, Some(owned)) => owned.abandon().then(|| owned.begin_attempt()).flatten(),
                (None, None) => None,
            };
            return match next {
                Some(next) => Next::Attempt(next),
                None => Next::End(Err(self.give_up(failed.into_error()))),
            };
        }
        let Some(owned) = self.owned else {
            let error = failed.into_error();
            return Next::End(Err(match untouched {
                Some(call) => call.refuse(error),
                None => error,
            }));
        };
        let pushback = failed.retry_after().map_or(Pushback::None, Pushback::After);
        match owned.may_retry(&Verdict::of(&failed), pushback) {
            Some(pause) => {
                owned.executed |= failed.maybe_executed();
                Next::Pause(pause)
            }
            None => Next::End(Err(self.give_up(failed.into_error()))),
        }
    }

    /// Ends the call with the error of its last attempt.
    fn give_up(&mut self, error: Error) -> Error {
        match self.owned.take() {
            Some(mut owned) => {
                let executed = error.maybe_executed() || owned.executed;
                owned.call.fail(error.with_maybe_executed(executed)).0
            }
            None => error,
        }
    }
}

#[cold]
fn cannot_repeat() -> Error {
    Error::remote(Reason::Internal, "the body of the request can't be sent again")
}
