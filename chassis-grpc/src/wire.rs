//! The names on the wire of gRPC; those that its transport has to know are in `chassis_http::wire`.
pub(crate) use chassis_http::wire::{
    ERROR_DOMAIN, GRPC_DETAILS, GRPC_MEDIA_TYPE, GRPC_MESSAGE, GRPC_STATUS, GRPC_TIMEOUT, REASON, RULE,
    UPSTREAM,
};
use http::{HeaderName, HeaderValue};

/// The milliseconds to wait before a retry; negative: do not retry.
pub(crate) const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// The number of attempts before this one.
pub(crate) const ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// The `content-type` of requests and answers.
pub(crate) const CONTENT_TYPE_GRPC: HeaderValue = HeaderValue::from_static(GRPC_MEDIA_TYPE);

/// The key of the metadata of an `ErrorInfo` that has the hop which the error is about.
pub(crate) const HOP: &str = "hop";

/// The types of a status's details.
pub(crate) const ERROR_INFO: &str = "google.rpc.ErrorInfo";
pub(crate) const RETRY_INFO: &str = "google.rpc.RetryInfo";
pub(crate) const DEBUG_INFO: &str = "google.rpc.DebugInfo";
