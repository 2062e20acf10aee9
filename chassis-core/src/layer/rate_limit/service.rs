//! The layer and its service.

use std::time::Duration;

use smallvec::SmallVec;
use tower_service::Service;

use super::{Buckets, Key, Limit, Wait, keys::network};
use crate::layer::{MaybeBoxed, forward_ready};
use crate::{
    call::{Invocation, Reply},
    clock::Instant,
    event::Event,
    types::{Error, Reason},
};

/// Refuses or delays calls above the rates of their policy.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RateLimitLayer;

/// The service of [`RateLimitLayer`].
#[derive(Clone, Debug)]
pub(crate) struct RateLimit<S> {
    inner: S,
}

/// A waiting call; it returns its tokens if it is dropped.
struct Waiting {
    call: Option<Invocation>,
    taken: Taken,
}

/// The limits that admitted a call, by index, and the wait of each.
type Taken = SmallVec<[(usize, Duration); 2]>;

impl<S> tower_layer::Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;
    fn layer(&self, inner: S) -> RateLimit<S> {
        RateLimit { inner }
    }
}

impl<S> Service<Invocation> for RateLimit<S>
where
    S: Service<Invocation, Response = Reply, Error = Error> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Reply;
    type Error = Error;
    type Future = MaybeBoxed<S::Future>;

    forward_ready!();

    #[inline]
    fn call(&mut self, call: Invocation) -> Self::Future {
        match call.policy.rate_limits.is_empty() {
            true => MaybeBoxed::inner(self.inner.call(call)),
            false => self.limited(call),
        }
    }
}

impl<S> RateLimit<S>
where
    S: Service<Invocation, Response = Reply, Error = Error> + Clone + Send + 'static,
    S::Future: Send,
{
    /// Passes the call on when the limits admit it. Not inlined: keeps the disabled path to one branch.
    #[inline(never)]
    fn limited(&mut self, call: Invocation) -> MaybeBoxed<S::Future> {
        // The usual case: one limit, which admits the call at once, so there is nothing to return.
        let alone = match &*call.policy.rate_limits {
            [limit] if limit.is_about(&call) => Some(limit.take(&call)),
            [_] => Some(Ok(Duration::ZERO)),
            _ => None,
        };
        let (wait, taken) = match alone {
            Some(Ok(Duration::ZERO)) => return MaybeBoxed::inner(self.inner.call(call)),
            Some(Ok(wait)) => (wait, Taken::from_iter([(0, wait)])),
            Some(Err(error)) => return MaybeBoxed::refused(call.refuse(error)),
            None => match take_all(&call) {
                Ok((Duration::ZERO, _)) => return MaybeBoxed::inner(self.inner.call(call)),
                Ok(waits) => waits,
                Err(error) => return MaybeBoxed::refused(call.refuse(error)),
            },
        };
        // The deadline layer is above: it drops a wait beyond the deadline.
        let mut inner = self.inner.clone();
        MaybeBoxed::boxed(async move {
            let mut waiting = Waiting { call: Some(call), taken };
            tokio::time::sleep(wait).await;
            let mut call = waiting.call.take().expect("taken only here");
            call.attempt_waited(Instant::now());
            inner.call(call).await
        })
    }
}

/// Takes from all limits that match the call, or from none; returns the longest wait and the taken tokens.
fn take_all(call: &Invocation) -> Result<(Duration, Taken), Error> {
    let (limits, mut longest, mut taken) = (&*call.policy.rate_limits, Duration::ZERO, Taken::new());
    for (i, limit) in limits.iter().enumerate() {
        if !limit.is_about(call) {
            continue;
        }
        match limit.take(call) {
            Ok(wait) => {
                longest = longest.max(wait);
                taken.push((i, wait));
            }
            Err(error) => {
                give_back(&taken, call, call.started);
                return Err(error);
            }
        }
    }
    Ok((longest, taken))
}

/// Returns the tokens of a call that is not sent.
fn give_back(taken: &Taken, call: &Invocation, now: Instant) {
    let waited = now.saturating_duration_since(call.started);
    for (i, wait) in taken {
        call.policy.rate_limits[*i].give_back(call, now, wait.saturating_sub(waited));
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(call) = &self.call {
            give_back(&self.taken, call, Instant::now());
        }
    }
}

// === impl Limit ===

impl Limit {
    fn is_about(&self, call: &Invocation) -> bool {
        self.matcher.is_any() || self.matcher.matches(&call.subject())
    }

    /// The time to wait, usually zero.
    fn take(&self, call: &Invocation) -> Result<Duration, Error> {
        let (rate, burst) = (self.config.rate, self.config.burst);
        // The remaining time bounds the wait: a call that is admitted after its deadline is useless.
        let left = || call.bound().map(|bound| bound.saturating_duration_since(call.started));
        let bound = match self.config.max_wait.0 {
            Duration::ZERO => Duration::ZERO,
            most => left().map_or(most, |left| left.min(most)),
        };
        let taken = match &*self.buckets {
            Buckets::One(bucket) => bucket.reserve(call.started, rate, burst, 1, bound),
            Buckets::Keyed(keyed) => {
                keyed.reserve(self.key(call).as_ref(), call.peer, call.started, rate, burst, 1, bound)
            }
        };
        match taken {
            Ok(wait) => {
                self.counters[0].inc();
                Ok(wait)
            }
            Err(wait) => {
                self.counters[1].inc();
                Err(self.error(call, wait))
            }
        }
    }

    fn give_back(&self, call: &Invocation, now: Instant, left: Duration) {
        match &*self.buckets {
            Buckets::One(bucket) => bucket.give_back(now, self.config.burst, 1, left),
            Buckets::Keyed(keyed) => {
                keyed.give_back(self.key(call).as_ref(), call.peer, now, self.config.burst, 1, left);
            }
        }
    }

    fn key<'a>(&self, call: &'a Invocation) -> std::borrow::Cow<'a, str> {
        match (&self.config.key, &self.header) {
            (Key::Caller, _) => call.target.caller_name().unwrap_or("").into(),
            (Key::Operation, _) => call.target.operation.as_str().into(),
            (Key::Peer, _) => call.peer.map(|ip| network(ip).to_string()).unwrap_or_default().into(),
            (Key::Header(_), Some(name)) => {
                call.metadata.get(name).map_or("".into(), |value| String::from_utf8_lossy(value.as_bytes()))
            }
            _ => "".into(),
        }
    }

    fn error(&self, call: &Invocation, wait: Wait) -> Error {
        let (name, rate, burst) = (&self.config.name, self.config.rate, self.config.burst);
        self.reporter.emit_throttled(call.started, || Event::Refusing {
            side: self.side,
            service: call.policy.service.clone(),
            reason: Reason::RateLimited,
            rule: name.clone(),
        });
        let message = match wait.retry_after {
            None => format!("rate limit `{name}` admits nothing ({rate}, burst {burst})"),
            Some(_) => format!("rate limit `{name}` of {rate}, burst {burst}, is used up"),
        };
        let error = Error::local(Reason::RateLimited, message).with_rule(name.clone());
        match wait.retry_after {
            Some(after) => error.with_retry_after(after),
            None => error,
        }
    }
}
