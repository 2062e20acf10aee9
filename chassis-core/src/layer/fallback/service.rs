//! The layer and its service.
use std::time::Duration;

use tower_service::Service;

use super::{FailedCall, Fallback, rule::Source};
use crate::layer::{MaybeBoxed, forward_ready};
use crate::{
    call::{Invocation, Reply},
    event::Event,
    types::{Error, Verdict},
};

/// Replaces failed calls with an answer, if their policy has one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FallbackLayer;

/// The service of [`FallbackLayer`].
#[derive(Clone, Debug)]
pub(crate) struct WithFallback<S> {
    inner: S,
}

/// A function that takes longer is dropped; the call keeps its error or its failing answer.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(1);

impl<S> tower_layer::Layer<S> for FallbackLayer {
    type Service = WithFallback<S>;
    fn layer(&self, inner: S) -> WithFallback<S> {
        WithFallback { inner }
    }
}

impl<S> Service<Invocation> for WithFallback<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = Error;
    type Future = MaybeBoxed<S::Future>;

    forward_ready!();

    #[inline]
    fn call(&mut self, call: Invocation) -> Self::Future {
        match call.policy.fallback.clone() {
            None => MaybeBoxed::inner(self.inner.call(call)),
            Some(fallback) => self.with(fallback, call),
        }
    }
}

impl<S> WithFallback<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
    S::Future: Send + 'static,
{
    /// Lets `fallback` answer if the call fails. Not inlined: keeps the disabled path to one branch.
    #[inline(never)]
    fn with(&mut self, fallback: Fallback, call: Invocation) -> MaybeBoxed<S::Future> {
        let (protocol, target, policy) = (call.protocol, call.target.clone(), call.policy.clone());
        let metadata = call.metadata.clone();
        let inner = self.inner.call(call);
        MaybeBoxed::boxed(async move {
            let (reply, error) = match inner.await {
                Err(error) => (None, error),
                Ok(reply) => match reply.as_error() {
                    None => return Ok(reply),
                    Some(error) => (Some(reply), error),
                },
            };
            let verdict = reply.as_ref().and_then(Reply::verdict).unwrap_or_else(|| Verdict::of(&error));
            if !fallback.answers(&verdict, error.code()) {
                return reply.ok_or(error);
            }
            let reason = error.reason();
            let answer = match &fallback.source {
                // Keys that the protocol refuses were reported with the settings, if it was registered by then.
                Source::Settings(fixed) => match protocol.fixed_answer(&fixed.answer) {
                    Ok(Some(answer)) => Ok(answer),
                    Ok(None) | Err(_) => {
                        fallback.warn_of_no_answer(&policy.service, protocol.name());
                        return reply.ok_or(error);
                    }
                },
                Source::Function(function) => {
                    let kept = error.repeat();
                    let failed = FailedCall { target: target.clone(), metadata, error };
                    match tokio::time::timeout(TIME_LIMIT, function(failed)).await {
                        Ok(answer) => answer,
                        Err(_) => {
                            let service = &*policy.service;
                            tracing::warn!(target: "chassis", service, "a fallback took longer than {TIME_LIMIT:?}");
                            return reply.ok_or(kept);
                        }
                    }
                }
            }?;
            fallback.reporter.metrics.fallback(&policy.service, reason);
            fallback.reporter.emit_throttled(crate::clock::Instant::now(), || Event::FellBack {
                service: policy.service.clone(),
                operation: policy.operation.clone(),
                reason,
            });
            let mut call = Invocation::new(protocol, target);
            call.set_policy(policy);
            Ok(call.answered(answer.status, answer.metadata, answer.body))
        })
    }
}

// === impl FallbackConfig ===
