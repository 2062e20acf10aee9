//! The layer and its service: one attempt after another, as the rules of the call allow.
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

use super::{
    RetryConfig, When,
    backoff::{delay, pushed_back},
    config::MOST_ATTEMPTS,
};
use crate::{
    Error,
    call::{Body, Call, Headers, Invocation, Replay, Reply, Returned, Verdict},
    clock::Instant,
    context::Context as Handled,
    event::Event,
    layer::{balance::has_another, breaker::ended, forward_ready},
    protocol::Pushback,
};

/// Tries again what the policy of a call lets be tried again.
#[derive(Clone, Copy, Debug)]
pub struct RetryLayer {
    comes_back: bool,
}

/// The service of [`RetryLayer`].
#[derive(Debug)]
pub struct Retry<S> {
    inner: S,
    with: RetryLayer,
    /// For further attempts. Calls take a reference along, which is counted here and not in what `inner` is
    /// made of: every clone has one of its own.
    again: Arc<S>,
}

pin_project! {
    /// One attempt after another.
    #[project = RetryProjection]
    pub struct RetryFuture<S, F> {
        again: Arc<S>,
        #[pin]
        attempt: Option<F>,
        // What the next attempt is made of; `None` where there will be none.
        held: Option<Box<Held>>,
        // What the last attempt failed with, if there is to be another: after the pause, and once the
        // body can be read again.
        failed: Option<Error>,
        pause: Option<Pin<Box<Sleep>>>,
        attempts: u32,
        resent: bool,
        // May an earlier attempt have been executed? Then that is so whatever the last one says.
        executed: bool,
    }
}

/// What is held of a call that is being attempted, so that it can be attempted again.
struct Held {
    /// The call itself: while a twin of it is sent, and between attempts.
    call: Option<Invocation>,
    /// Else it is lent to attempts, and comes back with their outcome.
    by_twins: bool,
    headers: Headers,
    source: BodySource,
}

enum BodySource {
    /// All there: as often as one likes.
    Whole(Body),
    /// As far as it has been kept.
    Stream(Replay),
}

impl RetryLayer {
    /// `comes_back`: whatever becomes of a call below, it comes back with the answer or with the error, so nothing
    /// there may replace one of these or drop the call. Where that is not so, a twin of the call is sent.
    pub fn new(comes_back: bool) -> Self {
        RetryLayer { comes_back }
    }
}

impl<S: Clone> Layer<S> for RetryLayer {
    type Service = Retry<S>;
    fn layer(&self, inner: S) -> Retry<S> {
        Retry { again: Arc::new(inner.clone()), inner, with: *self }
    }
}

impl<S: Clone> Clone for Retry<S> {
    fn clone(&self) -> Self {
        self.with.layer(self.inner.clone())
    }
}

impl<S> Service<Invocation> for Retry<S>
where
    S: Service<Invocation, Response = Reply, Error = Error> + Clone,
{
    type Response = Reply;
    type Error = Error;
    type Future = RetryFuture<S, S::Future>;

    forward_ready!();

    fn call(&mut self, mut call: Invocation) -> Self::Future {
        let mut held = None;
        if let Some(retries) = &call.policy.retry {
            retries.budget.deposit(call.attempt_started());
            let most = retries.config.replay_bytes.on().map_or(0, |size| size.get());
            // What outlasts the time of an attempt is dropped.
            let by_twins = !self.with.comes_back || retries.config.per_try.on().is_some();
            // Else only what never left is resent; that needs no copy where the transport gives it back.
            if !call.options.no_retry && retries.config.attempts.get() > 1 {
                let source = match std::mem::take(&mut call.body) {
                    body if !body.is_streaming() => BodySource::Whole(body),
                    body => BodySource::Stream(Replay::new(body, most)),
                };
                if let Some(body) = source.body() {
                    held = Some(Held::of(&mut call, by_twins, source));
                    call.body = body;
                }
            }
        }
        let attempt = Some(self.inner.call(call));
        let again = self.again.clone();
        let (failed, pause) = (None, None);
        RetryFuture { again, attempt, held, failed, pause, attempts: 1, resent: false, executed: false }
    }
}

impl<S> Future for RetryFuture<S, S::Future>
where
    S: Service<Invocation, Response = Reply, Error = Error> + Clone,
{
    type Output = Result<Reply, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            if this.failed.is_some() {
                if let Some(pause) = this.pause {
                    std::task::ready!(pause.as_mut().poll(cx));
                    *this.pause = None;
                }
                let next = match this.held {
                    Some(held) => std::task::ready!(held.poll_attempt(cx)),
                    None => None,
                };
                match (next, this.failed.take()) {
                    (Some(next), _) => this.attempt.set(Some(S::clone(this.again).call(next))),
                    // So much of the body was still read meanwhile that it can't be sent again.
                    (None, Some(error)) => return Poll::Ready(Err(give_up(this.held, error))),
                    (None, None) => {}
                }
            }
            let Some(attempt) = this.attempt.as_mut().as_pin_mut() else { return Poll::Pending };
            let answer = std::task::ready!(attempt.poll(cx));
            // Gone before anything else: it holds what it has not sent of the body.
            this.attempt.set(None);
            let last = match answer {
                Ok(reply) => match reply.verdict() {
                    Some(verdict) if !verdict.is_success() => this.failing(reply, verdict),
                    _ => Some(Ok(reply)),
                },
                Err(error) => this.failed(error).map(Err),
            };
            match last {
                None => {}
                Some(Ok(mut reply)) => {
                    if let Some(held) = this.held.take() {
                        reply.won(held.call);
                    }
                    return Poll::Ready(Ok(reply));
                }
                Some(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl<S> RetryProjection<'_, S, S::Future>
where
    S: Service<Invocation, Response = Reply, Error = Error> + Clone,
{
    /// What is returned after an answer that says `verdict`; `None` if there is to be another attempt.
    #[cold]
    fn failing(&mut self, mut reply: Reply, verdict: Verdict) -> Option<Result<Reply, Error>> {
        let Some(held) = self.held else { return Some(Ok(reply)) };
        let pushback = reply.protocol.pushback(&reply.metadata);
        let node = reply.node().cloned();
        let call = held.call.as_deref_mut().unwrap_or(&mut reply);
        call.tried.extend(node);
        let Some(pause) = may_retry(call, &held.source, &verdict, pushback, self.attempts) else {
            return Some(Ok(reply));
        };
        *self.executed |= verdict.maybe_executed;
        *self.failed = reply.as_error();
        *self.pause = Some(Box::pin(tokio::time::sleep(pause)));
        match held.by_twins {
            true => reply.discard(),
            false => held.call = Some(reply.lost(verdict)),
        }
        None
    }

    /// The same after an error.
    #[cold]
    fn failed(&mut self, mut error: Error) -> Option<Error> {
        let untouched = match (error.take_call(), self.held.as_mut()) {
            (Some(returned), Some(held)) => held.came_back(returned),
            (Some(Returned::Untouched(call)), None) => Some(call),
            _ => None,
        };
        if error.unsent() && !std::mem::replace(self.resent, true) {
            match (untouched, self.held.as_mut()) {
                (Some(mut call), _) => {
                    call.fail_attempt(&error); // by a leaf that has not done so
                    call.begin_attempt(Instant::now());
                    let attempt = S::clone(self.again).call(call);
                    self.attempt.set(Some(attempt));
                }
                (None, Some(held)) => {
                    held.was_at(&error);
                    *self.failed = Some(error);
                }
                (None, None) => return Some(error),
            }
            return None;
        }
        if let Some(call) = untouched {
            error = call.refuse(error);
            if let (Some(Returned::Used(call)), Some(held)) = (error.take_call(), self.held.as_mut()) {
                held.call = Some(call);
            }
        }
        let pushback = error.retry_after().map_or(Pushback::None, Pushback::After);
        let verdict = Verdict::of(&error);
        let pause = self.held.as_mut().and_then(|held| {
            held.was_at(&error);
            may_retry(held.call.as_mut()?, &held.source, &verdict, pushback, self.attempts)
        });
        let error = error.with_maybe_executed(verdict.maybe_executed || *self.executed);
        let Some(pause) = pause else { return Some(give_up(self.held, error)) };
        *self.executed = error.maybe_executed();
        *self.failed = Some(error);
        *self.pause = Some(Box::pin(tokio::time::sleep(pause)));
        None
    }
}

/// Whoever called what is being handled here is not to try again either.
fn in_vain() {
    Handled::with(|handled| handled.in_vain.set());
}

fn give_up(held: &mut Option<Box<Held>>, error: Error) -> Error {
    match held.take().and_then(|held| held.call) {
        Some(call) => call.take_back(error),
        None => error,
    }
}

/// The pause before another attempt at `call`, which then counts; or `None` if there is to be none.
fn may_retry(
    call: &mut Call,
    source: &BodySource,
    verdict: &Verdict,
    pushback: Pushback,
    attempts: &mut u32,
) -> Option<Duration> {
    let policy = call.policy().clone();
    let retries = policy.retry.as_ref()?;
    let config = &retries.config;
    if verdict.origin == crate::Origin::Local || !config.on.contains(ended(verdict)) {
        return None;
    }
    if *attempts >= config.attempts.get().min(MOST_ATTEMPTS) {
        if *attempts > 1 {
            in_vain();
        }
        return None;
    }
    let counted = |outcome: &str| retries.site.metrics.retry(&policy.service, outcome);
    if !is_safe(call, verdict, config) {
        counted("unsafe");
        return None;
    }
    if call.below_retry && !config.chained {
        counted("chained");
        return None;
    }
    if !source.can_repeat() {
        counted("not_replayable");
        return None;
    }
    let now = Instant::now();
    let pause = match pushback {
        Pushback::Never => {
            counted("pushed_back");
            in_vain();
            return None;
        }
        // Where there is another node, that has not said so.
        Pushback::After(after) if !has_another(call, now) => {
            let left = call.bound().map(|bound| bound.saturating_duration_since(now));
            pushed_back(after, config.backoff.get(), left, &policy.common.random)
        }
        Pushback::After(_) | Pushback::None => {
            Some(delay(config.backoff.get(), *attempts, &policy.common.random))
        }
    };
    let at = pause.and_then(|pause| now.checked_add(pause));
    if at.is_none_or(|at| call.bound().is_some_and(|bound| at >= bound)) {
        counted("too_late");
        return None;
    }
    if let Some(bounds) = &retries.bounds
        && !retries.budget.withdraw(now, bounds)
    {
        counted("budget");
        in_vain();
        retries.site.pulse(now, || Event::RetryBudgetExhausted { service: policy.service.clone() });
        return None;
    }
    counted("retried");
    *attempts += 1;
    call.previous_attempts += 1;
    pause
}

fn is_safe(call: &Call, verdict: &Verdict, config: &RetryConfig) -> bool {
    config.when == When::Always
        || !verdict.maybe_executed
        || call.options.idempotent
        || call.policy.idempotent
        || call.protocol.is_idempotent(&call.method)
}

// === impl Held ===

impl Held {
    /// Takes `call`, which goes on as the first attempt, or whose twin does.
    fn of(call: &mut Invocation, by_twins: bool, source: BodySource) -> Box<Self> {
        let mut held = Box::new(Held { call: None, by_twins, headers: Headers::new(), source });
        held.headers.keep(&call.metadata);
        match by_twins {
            true => held.call = Some(call.stay()),
            false => call.lend(),
        }
        held
    }

    /// A call that came back with an error, if all of it is there.
    fn came_back(&mut self, call: Returned) -> Option<Invocation> {
        match call {
            Returned::Untouched(call) => {
                if let Some(home) = &mut self.call {
                    home.tried.clone_from(&call.tried);
                }
                Some(call)
            }
            Returned::Used(call) => {
                self.call = Some(call);
                None
            }
        }
    }

    /// The attempt that ended with `error` went to a node.
    fn was_at(&mut self, error: &Error) {
        if let Some(call) = &mut self.call {
            call.tried.extend(error.node().cloned());
        }
    }

    /// The next attempt, once the last one has let go of the body; `None` if that can't be sent again.
    fn poll_attempt(&mut self, cx: &mut Context<'_>) -> Poll<Option<Invocation>> {
        let Some(body) = std::task::ready!(self.source.poll_body(cx)) else { return Poll::Ready(None) };
        let now = Instant::now();
        Poll::Ready(match self.by_twins {
            true => self.call.as_ref().map(|call| call.send_twin(&self.headers, body, now)),
            false => self.call.take().map(|call| call.again(&self.headers, body, now)),
        })
    }
}

impl BodySource {
    fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Option<Body>> {
        match self {
            BodySource::Whole(body) => Poll::Ready(body.try_clone()),
            BodySource::Stream(replay) => replay.poll_attempt(cx),
        }
    }

    /// For the first attempt, when nobody reads it yet.
    fn body(&self) -> Option<Body> {
        match self {
            BodySource::Whole(body) => body.try_clone(),
            BodySource::Stream(replay) => replay.attempt(),
        }
    }

    fn can_repeat(&self) -> bool {
        match self {
            BodySource::Whole(_) => true,
            BodySource::Stream(replay) => replay.is_possible(),
        }
    }
}
