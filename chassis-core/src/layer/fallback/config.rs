//! The settings of fallbacks, and fallback functions.
use std::{collections::HashMap, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD as STANDARD};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use crate::{
    BoxFuture,
    types::{Body, Error, FailureSet, Target},
};

/// An answer from the settings: `fallback: { status: 200, body: "{}" }`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FallbackConfig {
    /// The HTTP status. Default 200. Only for REST calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The `content-type`. Default `application/json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The body. Default: none. Only for REST calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The message for gRPC calls, in Base64; empty for one whose fields have their defaults. Without it, gRPC
    /// calls keep their own error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The failures that it replaces: `[UNAVAILABLE, 503, connect]`. A code also covers an HTTP answer whose
    /// status has its meaning. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<FailureSet>,
}

/// The failure that a fallback function gets.
#[derive(Debug)]
pub struct Failed {
    /// The service and the operation of the call.
    pub target: Target,
    /// Its metadata.
    pub metadata: HeaderMap,
    /// How the call failed. A failing answer is an error here, too.
    pub error: Error,
}

/// The answer of a fallback.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status; 200 for gRPC.
    pub status: StatusCode,
    /// HTTP headers or gRPC metadata.
    pub metadata: HeaderMap,
    /// The body: for gRPC a message with its five bytes of frame, and trailers.
    pub body: Body,
}

/// Gets the failure, and may return an answer; an error that it returns goes to the caller. A function that
/// answers every failure passes `testing::contract::fallback` (feature `testing`).
pub type FallbackFn = dyn Fn(Failed) -> BoxFuture<'static, Result<Answer, Error>> + Send + Sync;

/// Fallback functions by service, or by service and operation.
#[derive(Clone, Default)]
pub(crate) struct Fallbacks(pub(crate) HashMap<(String, Option<String>), Arc<FallbackFn>>);

impl FallbackConfig {
    /// Refuses an answer that can't be sent: returns the wrong key and the reason.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
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

    /// The answer for a call over `protocol`; `None` if the settings have none for it.
    pub(super) fn answer(&self, protocol: &str) -> Option<Answer> {
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
