//! Tries again where that is safe and may help: at another node, after a pause, within a budget.
//!
//! What provably never left is resent once, free of budget. Everything else is retried only if its
//! settings say so for how it ended, and if executing it twice does no harm (`when`). The first frame
//! of an answer is looked at if it is already there, never waited for.
mod backoff;
mod budget;

use std::{
    num::NonZeroU32,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use serde::{Deserialize, Serialize};
use tokio::time::Sleep;
use tower_layer::Layer;
use tower_service::Service;

use self::backoff::delay;
pub use self::budget::{Budget, BudgetConfig, BudgetPatch};
use super::{
    breaker::{FailureSet, ended},
    forward_ready,
};
use crate::{
    Code, Error,
    call::{Body, Invocation, Kept, Replay, Reply, Verdict},
    clock::Instant,
    context::Context as Handled,
    event::Event,
    policy::Site,
    protocol::Pushback,
    settings,
    units::{Patch, PositiveSpan, Switch},
};

settings! {
    /// When and how often a call is tried again: the `retry` table of a service or an operation.
    pub struct RetryConfig, RetryPatch {
        /// The most attempts at a call, the first included, from 1 to 5. Default 2.
        pub attempts: NonZeroU32 = const { NonZeroU32::new(2).expect("2 is not 0") },
        /// Which calls may be tried again. Default `safe`.
        pub when: When = When::Safe,
        /// How long one attempt may take to the head of its answer. Default `off`: as long as the call.
        pub per_try: Switch<PositiveSpan> = Switch::Off,
        /// The pause before the first retry is drawn from nothing to this, before later ones from twice
        /// as much each, up to ten times this. Default `25ms`.
        pub backoff: PositiveSpan = PositiveSpan::from_millis(25),
        /// How an attempt has to end to be retried: codes, statuses, `connect`, `deadline` (its own).
        /// Default: UNAVAILABLE, 502, 503, 504, connect, deadline.
        pub on: FailureSet = default_on(),
        /// What all retries of a service may add to its load; `off` for no bound.
        pub budget: Switch<BudgetPatch> = Switch::On(BudgetPatch::default()),
        /// The most bytes of a streaming request that are kept to be sent again. Default 65,536; 0 keeps
        /// none.
        pub replay_bytes: u32 = 65_536,
        /// Retry also while handling a call that is a retry itself? Default no: layers multiply.
        pub chained: bool = false,
    }
}

/// Which calls may be tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Those not executed, by an idempotent HTTP method, or declared idempotent.
    #[default]
    Safe,
    /// All: the handlers over there can take a call twice.
    Always,
}

/// The retries of one policy: their numbers, and the budget they share.
#[derive(Clone)]
pub struct Retries {
    /// What is in force.
    pub config: Arc<RetryConfig>,
    /// The numbers of the budget; `None` for no bound.
    pub bounds: Option<BudgetConfig>,
    /// One for all retries of a service, across versions.
    pub budget: Arc<Budget>,
    pub(crate) site: Arc<Site>,
}

/// Tries again what the policy of a call lets be tried again.
#[derive(Clone, Copy, Debug, Default)]
pub struct RetryLayer;

/// The service of [`RetryLayer`].
#[derive(Debug)]
pub struct Retry<S> {
    inner: S,
    /// For further attempts. Calls take a reference along, which is counted here and not in what `inner` is
    /// made of: every clone has one of its own.
    again: Arc<S>,
}

pin_project! {
    /// One attempt after another.
    pub struct RetryFuture<S, F> {
        again: Arc<S>,
        #[pin]
        attempt: Option<F>,
        // What the next attempt is made of; `None` where there will be none.
        held: Option<Held>,
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

/// A call that is being attempted, kept so that it can be attempted again.
struct Held {
    kept: Box<Kept>,
    source: BodySource,
}

enum BodySource {
    /// All there: as often as one likes.
    Whole(Body),
    /// As far as it has been kept.
    Stream(Replay),
}

/// gRFC A6 bounds attempts at five, whatever the settings say.
const MOST_ATTEMPTS: u32 = 5;

fn default_on() -> FailureSet {
    FailureSet::NONE
        .with_codes([Code::Unavailable])
        .with_statuses([502, 503, 504])
        .with_connect()
        .with_deadline()
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
            let most = retries.config.replay_bytes as usize;
            // Else only what never left is resent; that needs no copy where the transport gives it back.
            if !call.options.no_retry && retries.config.attempts.get() > 1 {
                let source = match std::mem::take(&mut call.body) {
                    body if !body.is_streaming() => BodySource::Whole(body),
                    body => BodySource::Stream(Replay::new(body, most)),
                };
                if let Some(body) = source.body() {
                    held = Some(Held { kept: Kept::of(&mut call), source });
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
            match answer {
                Err(mut error) => {
                    let returned = error.take_unsent();
                    if let (Some(held), Some(call)) = (this.held.as_mut(), &returned) {
                        held.kept.tried.clone_from(&call.tried);
                    }
                    if error.unsent() && !std::mem::replace(this.resent, true) {
                        match (returned, this.held.as_mut()) {
                            (Some(mut call), _) => {
                                call.fail_attempt(&error); // by a leaf that has not done so
                                call.begin_attempt(Instant::now());
                                this.attempt.set(Some(S::clone(this.again).call(call)));
                            }
                            (None, Some(held)) => {
                                held.kept.tried.extend(error.node().cloned());
                                *this.failed = Some(error);
                            }
                            (None, None) => return Poll::Ready(Err(error)),
                        }
                        continue;
                    }
                    let error = match returned {
                        Some(call) => call.refuse(error),
                        None => error,
                    };
                    let pushback = error.retry_after().map_or(Pushback::None, Pushback::After);
                    let verdict = Verdict::of(&error);
                    let pause = this.held.as_mut().and_then(|held| {
                        held.kept.tried.extend(error.node().cloned());
                        held.may_retry(&verdict, pushback, this.attempts)
                    });
                    let error = error.with_maybe_executed(verdict.maybe_executed || *this.executed);
                    let Some(pause) = pause else { return Poll::Ready(Err(give_up(this.held, error))) };
                    *this.executed = error.maybe_executed();
                    *this.failed = Some(error);
                    *this.pause = Some(Box::pin(tokio::time::sleep(pause)));
                }
                Ok(mut reply) => {
                    let failed = reply.verdict().filter(|verdict| !verdict.is_success());
                    let pause = failed.and_then(|verdict| {
                        let pushback = reply.protocol.pushback(&reply.metadata);
                        let held = this.held.as_mut()?;
                        held.kept.tried.extend(reply.node().cloned());
                        held.may_retry(&verdict, pushback, this.attempts)
                    });
                    if let Some(pause) = pause {
                        *this.executed |= failed.is_some_and(|verdict| verdict.maybe_executed);
                        *this.failed = reply.as_error();
                        *this.pause = Some(Box::pin(tokio::time::sleep(pause)));
                        reply.discard();
                        continue;
                    }
                    if let Some(mut held) = this.held.take() {
                        reply.adopt(&mut held.kept);
                    }
                    return Poll::Ready(Ok(reply));
                }
            }
        }
    }
}

/// Whoever called what is being handled here is not to try again either.
fn in_vain() {
    Handled::with(|handled| handled.in_vain.set());
}

fn give_up(held: &mut Option<Held>, error: Error) -> Error {
    match held.take() {
        Some(held) => held.kept.refuse(error),
        None => error,
    }
}

// === impl Held ===

impl Held {
    /// The pause before another attempt, which then counts; or `None` if there is to be none.
    fn may_retry(&mut self, verdict: &Verdict, pushback: Pushback, attempts: &mut u32) -> Option<Duration> {
        let policy = self.kept.policy.clone();
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
        if !self.is_safe(verdict, config) {
            counted("unsafe");
            return None;
        }
        if self.kept.below_retry && !config.chained {
            counted("chained");
            return None;
        }
        if !self.source.can_repeat() {
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
            Pushback::After(pause) => pause,
            Pushback::None => delay(config.backoff.get(), *attempts, &policy.common.random),
        };
        let at = now.checked_add(pause);
        if at.is_none_or(|at| self.kept.bound().is_some_and(|bound| at >= bound)) {
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
        self.kept.previous_attempts += 1;
        Some(pause)
    }

    fn is_safe(&self, verdict: &Verdict, config: &RetryConfig) -> bool {
        let call = &self.kept;
        config.when == When::Always
            || !verdict.maybe_executed
            || call.options.idempotent
            || call.policy.idempotent
            || call.protocol.is_idempotent(&call.method)
    }

    /// The next attempt, once the last one has let go of the body; `None` if that can't be sent again.
    fn poll_attempt(&self, cx: &mut Context<'_>) -> Poll<Option<Invocation>> {
        let Some(body) = std::task::ready!(self.source.poll_body(cx)) else { return Poll::Ready(None) };
        Poll::Ready(Some(self.kept.attempt(Instant::now(), body)))
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

// === impl RetryConfig ===

impl RetryConfig {
    /// Refuses numbers that make no sense together.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.attempts.get() {
            n if n > MOST_ATTEMPTS => {
                Err(format!("{n} attempts are too many; it goes from 1 to {MOST_ATTEMPTS}"))
            }
            _ => Ok(()),
        }
    }

    /// The numbers of the budget; `None` for no bound.
    pub(crate) fn bounds(&self) -> Option<BudgetConfig> {
        self.budget.on().map(|patch| {
            let mut bounds = BudgetConfig::default();
            patch.apply(&mut bounds);
            bounds
        })
    }
}
