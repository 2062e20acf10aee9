//! A call that may be attempted again: the parts that the retries own, and the decision to continue.
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
    plugin::protocol::Pushback,
    types::{Body, Reader, Replay, Verdict, ended},
};

/// A call that may be attempted again, and the parts from which its attempts are made. It is settled here in
/// every case: by the reply that is returned, by the last error, or by the drop of the future.
pub(super) struct Owned {
    /// Includes the body if it is complete: then it can be sent any number of times.
    pub(super) call: Call,
    headers: Headers,
    /// A streaming body, as far as it was kept.
    stream: Option<Replay>,
    /// The current attempt's reader of `stream`.
    reader: Option<Reader>,
    /// At most [`MOST_ATTEMPTS`].
    attempts: u8,
    /// Whether an earlier attempt may have been executed; this then holds for the call, whatever the last
    /// attempt reports.
    pub(super) executed: bool,
}

/// Records in the call that is being handled that one of its own calls was retried without success: its answer
/// then forbids retries too.
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
    /// Takes the call out of `attempt`, which becomes its first attempt; keeps up to `most` bytes of a stream.
    pub(super) fn take(attempt: &mut Invocation, most: usize) -> Box<Self> {
        // Allocated first, so that the value is copied only once: every call that may be retried pays for it.
        let place = Box::new_uninit();
        let mut owned = Box::write(
            place,
            Owned {
                call: attempt.copy(),
                headers: Headers::of(&attempt.metadata),
                stream: None,
                reader: None,
                attempts: 1,
                executed: false,
            },
        );
        attempt.begin_first_attempt(&mut owned.call);
        match attempt.body.try_clone() {
            Some(body) => owned.call.body = body,
            None => owned.keep_stream(&mut attempt.body, most),
        }
        owned
    }

    /// Ends the call together with the attempt of `reply`.
    pub(super) fn commit(mut self: Box<Self>, reply: &mut Reply) {
        reply.commit(&mut self.call);
        if let (Some(stream), Some(reader)) = (self.stream.take(), self.reader) {
            stream.commit(reader);
        }
    }

    /// The pause before another attempt, which is then counted; `None` if there must be none.
    pub(super) fn may_retry(&mut self, verdict: &Verdict, pushback: Pushback) -> Option<Duration> {
        let Owned { call, stream, attempts, .. } = self;
        let policy = call.policy().clone();
        let retries = policy.retry.as_ref()?;
        let config = &retries.config;
        if verdict.origin == crate::types::Origin::Local || !config.on.contains(ended(verdict)) {
            return None;
        }
        if u32::from(*attempts) >= config.attempts.get().min(MOST_ATTEMPTS) {
            if *attempts > 1 {
                retries_exhausted();
            }
            return None;
        }
        let counted = |outcome: &str| retries.reporter.metrics.retry(&policy.service, outcome);
        if !is_safe(call, verdict, config) {
            counted("unsafe");
            return None;
        }
        if call.below_retry && !config.chained {
            counted("chained");
            return None;
        }
        if stream.as_ref().is_some_and(|stream| !stream.is_possible()) {
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
            // Another node is available, and it did not request a delay.
            Pushback::After(after) if !has_another(call, now) => {
                let left = call.bound().map(|bound| bound.saturating_duration_since(now));
                pushed_back(after, config.backoff.get(), left, &policy.common.random)
            }
            Pushback::After(_) | Pushback::None => {
                Some(delay(config.backoff.get(), (*attempts).into(), &policy.common.random))
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
            retries
                .reporter
                .emit_throttled(now, || Event::RetryBudgetExhausted { service: policy.service.clone() });
            return None;
        }
        if !self.abandon() {
            counted("not_replayable"); // read just now, by a transport that still held it
            return None;
        }
        counted("retried");
        self.attempts += 1;
        self.call.previous_attempts += 1;
        pause
    }

    /// Cuts the attempt off from the body, so that another one can be made; `false` if that is impossible.
    pub(super) fn abandon(&mut self) -> bool {
        match (&self.stream, self.reader) {
            (Some(stream), Some(reader)) => stream.abandon(reader),
            _ => true,
        }
    }

    /// The next attempt; `None` if the body cannot be sent again.
    pub(super) fn begin_attempt(&mut self) -> Option<Invocation> {
        let body = match &self.stream {
            None => self.call.body.try_clone()?,
            Some(stream) => {
                let (body, reader) = stream.attempt()?;
                self.reader = Some(reader);
                body
            }
        };
        Some(self.call.begin_attempt(&self.headers, body, Instant::now()))
    }

    /// Keeps the parts of `body` that attempts read; `body` becomes the reader of the first attempt.
    fn keep_stream(&mut self, body: &mut Body, most: usize) {
        let stream = Replay::new(std::mem::take(body), most);
        // There is a reader, because no attempt has read anything yet.
        if let Some((first, reader)) = stream.attempt() {
            *body = first;
            self.reader = Some(reader);
        }
        self.stream = Some(stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For blocks of up to 1032 bytes, glibc has a cache of freed blocks for each thread. Every call that may
    /// be retried has one of these values, and the allocation of a larger one takes three times as long.
    #[test]
    fn is_small_enough_for_the_cache_of_a_thread() {
        assert!(size_of::<Owned>() <= 1032, "{} bytes", size_of::<Owned>());
    }
}
