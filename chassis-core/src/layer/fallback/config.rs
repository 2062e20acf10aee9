//! The settings of fallbacks, and fallback functions.
use std::{collections::HashMap, sync::Arc};

use http::HeaderMap;
use serde::{Deserialize, Serialize};

use crate::{
    BoxFuture,
    plugin::protocol::Protocol,
    types::{Answer, Error, FailureSet, FixedAnswer, Target},
};

/// An answer from the settings: `fallback: { status: 200, body: "{}" }`.
///
/// Each protocol answers with the keys that it has a meaning for
/// ([`Protocol::fixed_answer`](crate::protocol::Protocol::fixed_answer)). A call whose protocol finds nothing to
/// answer with keeps its own error.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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

/// The failed call that a fallback function gets.
#[derive(Debug)]
pub struct FailedCall {
    /// The service and the operation of the call.
    pub target: Target,
    /// Its metadata.
    pub metadata: HeaderMap,
    /// How the call failed. A failing answer is an error here, too.
    pub error: Error,
}

/// Gets the failure, and may return an answer; an error that it returns goes to the caller. A function that
/// answers every failure passes `testing::contract::fallback` (feature `testing`).
pub type FallbackFn = dyn Fn(FailedCall) -> BoxFuture<'static, Result<Answer, Error>> + Send + Sync;

/// Fallback functions by service, or by service and operation.
#[derive(Clone, Default)]
pub(crate) struct Fallbacks(pub(crate) HashMap<(String, Option<String>), Arc<FallbackFn>>);

/// The protocols that check answers from the settings.
#[derive(Clone, Default)]
pub(crate) struct Protocols(pub(crate) Vec<&'static dyn Protocol>);

impl FallbackConfig {
    /// The part of it that protocols read.
    pub(super) fn answer(&self) -> FixedAnswer {
        let FallbackConfig { status, content_type, body, message, on: _ } = self.clone();
        FixedAnswer { status, content_type, body, message }
    }
}
