//! A call that may be attempted again: what the retries own of it, and whether they may go on.
use std::time::Duration;

use super::{
    RetryConfig, When,
    backoff::{delay, pushed_back},
    config::MOST_ATTEMPTS,
};
use crate::{
    call::{Call, Headers, Invocation, Reply},
    clock::Instant,
    context::Context as Handled,
    event::Event,
    layer::balance::has_another,
    protocol::Pushback,
    types::{Body, Reader, Replay, Verdict, ended},
};

/// A call that may be attempted again, and what its attempts are made of. It is settled here, whatever becomes of
/// them: by the reply that is returned, the last error, or the drop of the future.
pub(super) struct Owned {
    pub(super) call: Call,
    headers: Headers,
    source: BodySource,
    /// How the attempt under way reads the body, if that is a stream.
    reader: Option<Reader>,
    attempts: u32,
    /// May an earlier attempt have been executed? Then that is so whatever the last one says.
    pub(super) executed: bool,
}

enum BodySource {
    /// All there: as often as one likes.
    Whole(Body),
    /// As far as it has been kept.
    Stream(Replay),
}

/// Tells the call that is being handled here that one made for it was retried without success: the answer to it
/// then says that it is not to be retried either.
fn retries_exhausted() {
    Handled::with(|handled| handled.retries_exhausted.set());
}

fn is_safe(call: &Call, verdict: &Verdict, config: &RetryConfig) -> bool {
    config.when == When::Always
        || !verdict.maybe_executed
        || call.options.idempotent
        || call.policy.idempotent
        || call.protocol.is_idempotent(&call.method)
}

// === impl Owned ===

impl Owned {
    /// Takes the call out of `attempt`, which goes on as its first one; keeps up to `most` bytes of a stream.
    pub(super) fn take(attempt: &mut Invocation, most: usize) -> Box<Self> {
        let source = match std::mem::take(&mut attempt.body) {
            body if !body.is_streaming() => BodySource::Whole(body),
            body => BodySource::Stream(Replay::new(body, most)),
        };
        // There is one: no attempt has read any of it.
        let (body, reader) = source.body().unwrap_or_default();
        attempt.body = body;
        let headers = Headers::of(&attempt.metadata);
        let call = attempt.begin_first_attempt();
        Box::new(Owned { call, headers, source, reader, attempts: 1, executed: false })
    }

    /// The call ends as the attempt of `reply` does.
    pub(super) fn commit(mut self: Box<Self>, reply: &mut Reply) {
        reply.commit(&mut self.call);
        if let (BodySource::Stream(replay), Some(reader)) = (self.source, self.reader) {
            replay.commit(reader);
        }
    }

    /// The pause before another attempt, which then counts; or `None` if there is to be none.
    pub(super) fn may_retry(&mut self, verdict: &Verdict, pushback: Pushback) -> Option<Duration> {
        let Owned { call, source, attempts, .. } = self;
        let policy = call.policy().clone();
        let retries = policy.retry.as_ref()?;
        let config = &retries.config;
        if verdict.origin == crate::types::Origin::Local || !config.on.contains(ended(verdict)) {
            return None;
        }
        if *attempts >= config.attempts.get().min(MOST_ATTEMPTS) {
            if *attempts > 1 {
                retries_exhausted();
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
                retries_exhausted();
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
            retries_exhausted();
            retries.site.pulse(now, || Event::RetryBudgetExhausted { service: policy.service.clone() });
            return None;
        }
        if !self.abandon() {
            counted("not_replayable"); // read on just now, by a transport that still had it
            return None;
        }
        counted("retried");
        self.attempts += 1;
        self.call.previous_attempts += 1;
        pause
    }

    /// Cuts the attempt off from the body, so that another one can be made; `false` if that can't be.
    pub(super) fn abandon(&mut self) -> bool {
        match (&self.source, self.reader) {
            (BodySource::Stream(replay), Some(reader)) => replay.abandon(reader),
            _ => true,
        }
    }

    /// The next attempt; `None` if the body can't be sent again.
    pub(super) fn begin_attempt(&mut self) -> Option<Invocation> {
        let (body, reader) = self.source.body()?;
        self.reader = reader;
        Some(self.call.begin_attempt(&self.headers, body, Instant::now()))
    }
}

// === impl BodySource ===

impl BodySource {
    /// For one more attempt; `None` if it can't be sent again.
    fn body(&self) -> Option<(Body, Option<Reader>)> {
        match self {
            BodySource::Whole(body) => body.try_clone().map(|body| (body, None)),
            BodySource::Stream(replay) => replay.attempt().map(|(body, reader)| (body, Some(reader))),
        }
    }

    fn can_repeat(&self) -> bool {
        match self {
            BodySource::Whole(_) => true,
            BodySource::Stream(replay) => replay.is_possible(),
        }
    }
}
