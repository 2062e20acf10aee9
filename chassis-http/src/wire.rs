//! The header names and media types that this crate reads and writes; those of all protocols are in
//! `chassis_core::wire`.
//!
//! gRPC's are among them as far as its transport needs them: to choose the service of a port, to refuse a
//! request before any service sees it, and to shorten headers that the peer does not accept.
pub(crate) use chassis_core::wire::TIMEOUT;
use http::HeaderName;

/// Names the [`Reason`](chassis_core::Reason) of a refusal: nothing was executed. Only the edge of a server sets it; the
/// edge removes it from answers of handlers, since a handler that passes on a refusal has itself been executed. Beside
/// it [`HOP`] repeats what the refused attempt was sent with; a client removes a refusal of another hop.
pub const REFUSED: HeaderName = HeaderName::from_static("x-chassis-refused");

/// The [`Hop`](chassis_core::Hop) for which a refusal is valid.
pub const HOP: HeaderName = HeaderName::from_static("x-chassis-hop");

/// `never`, on a failing answer: do not retry, because the callee has retried already.
pub const RETRY: HeaderName = HeaderName::from_static("x-chassis-retry");

/// Media type of an answer's problem document (RFC 9457).
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Media type of JSON.
pub const JSON: &str = "application/json";

/// The beginning of gRPC's media types.
pub const GRPC_MEDIA_TYPE: &str = "application/grpc";

/// The number of a gRPC status.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The message of a gRPC status, percent-encoded.
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The details of a gRPC status: a `google.rpc.Status` in base64.
pub const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// The time that the caller of a gRPC call still waits: at most eight digits and a unit.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The domain of the `google.rpc.ErrorInfo` that explains a refusal.
pub const ERROR_DOMAIN: &str = "chassis";

/// The reason of a gRPC status without an `ErrorInfo`, and its hop.
pub const REASON: HeaderName = HeaderName::from_static("x-chassis-reason");

/// The rule of the settings that caused such a status.
pub const RULE: HeaderName = HeaderName::from_static("x-chassis-rule");

/// Within one process: the service whose call ended with a gRPC status, for a handler that forwards the status.
pub const UPSTREAM: HeaderName = HeaderName::from_static("x-chassis-upstream");

/// The first bytes of an HTTP/2 connection.
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
