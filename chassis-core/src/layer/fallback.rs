//! Answers instead, where a call failed: by a function of the user's, or from the settings.
//!
//! It stands below the metrics, which keep the true outcome, and above everything that refuses. It
//! never counts as the endpoint's success: whoever listens has heard the failure by then.
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD as STANDARD};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use tower_service::Service;

use super::{Decided, forward_ready};
use crate::{
    BoxFuture,
    call::{Invocation, Reply},
    event::Event,
    site::Site,
    types::{Body, Code, Ended, Error, FailureSet, Target, Verdict, ended},
};

/// An answer from the settings: `fallback: { status: 200, body: "{}" }`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FallbackConfig {
    /// The HTTP status. Default 200. Only REST calls are answered with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The `content-type`. Default `application/json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The body. Default: none. Only REST calls are answered with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The message that gRPC calls are answered with, in Base64; empty for one whose fields have their
    /// defaults. Without it, gRPC calls keep their own error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The failures it answers for: `[UNAVAILABLE, 503, connect]`. A code also fits an HTTP answer whose
    /// status stands for it. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<FailureSet>,
}

/// What a fallback is told.
#[derive(Debug)]
pub struct Failed {
    /// Whom the call was for.
    pub target: Target,
    /// Its metadata.
    pub metadata: HeaderMap,
    /// How it failed. A failing answer is told as an error too.
    pub error: Error,
}

/// What a fallback answers.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status; 200 for gRPC.
    pub status: StatusCode,
    /// HTTP headers or gRPC metadata.
    pub metadata: HeaderMap,
    /// The body: for gRPC a message with its five bytes of frame, and trailers.
    pub body: Body,
}

/// Sees the failure, and may answer instead: an error it returns is what the caller gets. One that answers every
/// failure passes `testing::contract::fallback` (feature `testing`).
pub type FallbackFn = dyn Fn(Failed) -> BoxFuture<'static, Result<Answer, Error>> + Send + Sync;

/// Where the answer of a policy comes from.
#[derive(Clone)]
pub struct Fallback {
    pub(crate) source: Source,
    pub(crate) site: Arc<Site>,
    /// Was it said that gRPC calls find no `message`?
    pub(crate) warned: Arc<AtomicBool>,
}

#[derive(Clone)]
pub(crate) enum Source {
    Function(Arc<FallbackFn>),
    Settings(Arc<FallbackConfig>),
}

/// Answers instead of calls that failed, where their policy says how.
#[derive(Clone, Copy, Debug, Default)]
pub struct FallbackLayer;

/// The service of [`FallbackLayer`].
#[derive(Clone, Debug)]
pub struct WithFallback<S> {
    inner: S,
}

/// A function that takes longer is given up; the call's own error, or failing answer, stands.
pub const TIME_LIMIT: Duration = Duration::from_secs(1);

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
    type Future = Decided<S::Future>;

    forward_ready!();

    #[inline]
    fn call(&mut self, call: Invocation) -> Self::Future {
        match call.policy.fallback.clone() {
            None => Decided::inner(self.inner.call(call)),
            Some(fallback) => self.with(fallback, call),
        }
    }
}

impl<S> WithFallback<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
    S::Future: Send + 'static,
{
    /// Has `fallback` answer where the call fails. Apart, so that a layer without one is a branch.
    #[inline(never)]
    fn with(&mut self, fallback: Fallback, call: Invocation) -> Decided<S::Future> {
        let (protocol, target, policy) = (call.protocol, call.target.clone(), call.policy.clone());
        let metadata = call.metadata.clone();
        let inner = self.inner.call(call);
        Decided::later(async move {
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
                Source::Settings(config) => match config.answer(protocol.name()) {
                    Some(answer) => Ok(answer),
                    None => {
                        fallback.warn_of_no_message(&policy.service);
                        return reply.ok_or(error);
                    }
                },
                Source::Function(function) => {
                    let kept = error.repeat();
                    let failed = Failed { target: target.clone(), metadata, error };
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
            fallback.site.metrics.fallback(&policy.service, reason);
            fallback.site.pulse(crate::clock::Instant::now(), || Event::FellBack {
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

// === impl Fallback ===

impl Fallback {
    pub(crate) fn new(source: Source, site: Arc<Site>) -> Self {
        Fallback { source, site, warned: Arc::default() }
    }

    fn answers(&self, verdict: &Verdict, code: Code) -> bool {
        match &self.source {
            Source::Function(_) => true,
            Source::Settings(config) => {
                config.on.is_none_or(|on| on.contains(ended(verdict)) || on.contains(Ended::with_code(code)))
            }
        }
    }

    /// Once for each version of the settings: an outage brings thousands of calls.
    fn warn_of_no_message(&self, service: &str) {
        if !self.warned.swap(true, Relaxed) {
            tracing::warn!(
                target: "chassis", service,
                "a fallback without `message` answers no gRPC call: these keep their own error"
            );
        }
    }
}

impl fmt::Debug for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.source {
            Source::Function(_) => "Fallback(function)",
            Source::Settings(_) => "Fallback(settings)",
        })
    }
}

// === impl FallbackConfig ===

impl FallbackConfig {
    /// Refuses what could not be answered: the key that is wrong, and why.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if let Some(status) = self.status
            && !(200..600).contains(&status)
        {
            return Err(("status", format!("{status} is no HTTP status to answer with")));
        }
        if let Some(content_type) = &self.content_type
            && http::HeaderValue::from_str(content_type).is_err()
        {
            return Err(("content_type", format!("{content_type:?} can't be the value of a header")));
        }
        match self.message.as_deref().map(|text| STANDARD.decode(text)) {
            Some(Err(why)) => Err(("message", format!("the message is no Base64: {why}"))),
            _ => Ok(()),
        }
    }

    /// What a call over `protocol` is answered; `None` if the settings say nothing that it could be.
    fn answer(&self, protocol: &str) -> Option<Answer> {
        let mut metadata = HeaderMap::new();
        let status = self.status.and_then(|s| StatusCode::from_u16(s).ok()).unwrap_or(StatusCode::OK);
        let text = self.body.as_deref().unwrap_or_default();
        if protocol == "grpc" {
            let message = STANDARD.decode(self.message.as_deref()?).ok()?;
            let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
            let frame = [&[0], &length[..], &message].concat();
            metadata.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            return Some(Answer {
                status: StatusCode::OK,
                metadata,
                body: Body::with_trailers(Some(frame.into()), trailers),
            });
        }
        let content_type = self.content_type.as_deref().unwrap_or("application/json");
        if let Ok(value) = http::HeaderValue::from_str(content_type) {
            metadata.insert(http::header::CONTENT_TYPE, value);
        }
        Some(Answer { status, metadata, body: Body::full(Bytes::copy_from_slice(text.as_bytes())) })
    }
}
