//! Problem documents: errors as `application/problem+json` (RFC 9457).
use std::{borrow::Cow, fmt, time::Duration};

use axum::response::IntoResponse;
use bytes::Bytes;
use chassis_core::{Code, Context, Error, Origin, Reason};
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use serde::{Deserialize, Serialize};

use super::protocol::retry_after;
use crate::wire::{PROBLEM_JSON, REFUSED};

/// A problem: the error of a handler, and the content of a failing answer for its caller.
///
/// ```
/// use chassis_http::Problem;
/// use http::StatusCode;
///
/// async fn order() -> Result<String, Problem> {
///     Err(Problem::new(StatusCode::CONFLICT).detail("order 7 was paid already"))
/// }
/// # let problem = Problem::new(StatusCode::CONFLICT).detail("order 7 was paid already");
/// assert_eq!(problem.to_string(), "409 Conflict: order 7 was paid already");
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// A URI that names the kind of problem; `about:blank` adds nothing to the status.
    #[serde(rename = "type", default = "blank")]
    kind: Cow<'static, str>,
    #[serde(default)]
    title: Cow<'static, str>,
    #[serde(with = "status", default = "status::unknown")]
    pub(crate) status: StatusCode,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    detail: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rule: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) upstream: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trace_id: Option<Cow<'static, str>>,
    #[serde(skip)]
    retry_after: Option<Duration>,
}

// === impl Problem ===

impl Problem {
    /// Creates a problem with `status` alone.
    pub fn new(status: StatusCode) -> Self {
        Problem {
            kind: blank(),
            title: Cow::Borrowed(status.canonical_reason().unwrap_or("Unknown")),
            status,
            detail: None,
            code: None,
            reason: None,
            rule: None,
            upstream: None,
            trace_id: None,
            retry_after: None,
        }
    }

    /// Sets the kind: a URI, preferably of an explanation, and a title.
    pub fn kind(mut self, uri: impl Into<Cow<'static, str>>, title: impl Into<Cow<'static, str>>) -> Self {
        self.kind = uri.into();
        self.title = title.into();
        self
    }

    /// Sets the explanation of this occurrence.
    pub fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Sets the canonical code that fits best.
    pub fn with_code(mut self, code: Code) -> Self {
        self.code = Some(Cow::Borrowed(code.name()));
        self
    }

    /// Sets the trace. Default: the trace of the call that a handler answers with the problem, if the call has
    /// one.
    pub fn trace_id(mut self, id: impl Into<Cow<'static, str>>) -> Self {
        self.trace_id = Some(id.into());
        self
    }

    /// Sets the time after which a retry makes sense. Sent as `Retry-After`, in whole seconds.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Converts `error` to a problem.
    pub fn of(error: &Error) -> Self {
        let mut problem = Problem::new(status_of(error)).detail(error.message().to_owned());
        problem = problem.with_code(error.code());
        problem.reason = Some(Cow::Borrowed(error.reason().name()));
        problem.rule = error.rule().map(|rule| Cow::Owned(rule.to_owned()));
        problem.retry_after = error.retry_after();
        problem.upstream = error.service().map(|service| Cow::Owned(service.to_owned()));
        problem.trace_id = error.trace_id().map(hex);
        problem
    }

    /// Reads a failing answer: its problem document, or otherwise the meaning of its status.
    pub fn read(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let is_problem = headers
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(PROBLEM_JSON.as_bytes()));
        let read = is_problem.then(|| serde_json::from_slice::<Problem>(body).ok()).flatten();
        let mut problem = read.unwrap_or_else(|| Problem::new(status));
        problem.status = status;
        problem.retry_after = retry_after(headers);
        problem
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The kind's URI.
    pub fn kind_uri(&self) -> &str {
        &self.kind
    }

    /// The title of the kind.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The explanation, if the problem has a detail.
    pub fn detail_text(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// The canonical code: the one in the problem, or otherwise the one of its status.
    pub fn code(&self) -> Code {
        let code = self.code.as_deref().and_then(Code::from_name);
        code.unwrap_or_else(|| Code::from_http(self.status))
    }

    /// The mechanism that refused the call, if a chassis refused it.
    pub fn reason(&self) -> Option<Reason> {
        Reason::from_name(self.reason.as_deref()?)
    }

    /// The rule that caused the refusal, by its name in the settings of that service.
    pub fn rule(&self) -> Option<&str> {
        self.rule.as_deref()
    }

    /// The service that failed, if the answering service forwards the failure of its own call. Reason and rule
    /// then belong to that call. `None` if the answering service itself failed.
    pub fn upstream(&self) -> Option<&str> {
        self.upstream.as_deref()
    }

    /// The trace of the call, as 32 hexadecimal digits.
    pub fn trace(&self) -> Option<&str> {
        self.trace_id.as_deref()
    }

    /// Converts to an answer. Only the document names the mechanism that refused: a header would state that
    /// nothing was executed, and only the edge may set it.
    pub fn into_http(mut self) -> Response<Bytes> {
        if self.trace_id.is_none() {
            let trace = Context::with(|context| context.trace.as_ref().map(|trace| trace.trace_id)).flatten();
            self.trace_id = trace.map(hex);
        }
        let body = serde_json::to_vec(&self).expect("a problem holds strings and numbers only");
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(after) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_millis().div_ceil(1_000) as u64));
        }
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Problem::of(&error)
    }
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        Problem::of(error)
    }
}

/// The reverse conversion, for callers that handle only `Error`.
impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        let code = problem.code();
        let reason = problem.reason().unwrap_or(Reason::Internal);
        let error = Error::remote(reason, problem.to_string()).with_code(code).with_maybe_executed(true);
        let error = match problem.retry_after {
            Some(after) => error.with_retry_after(after),
            None => error,
        };
        match problem.rule {
            Some(rule) => error.with_rule(rule),
            None => error,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> axum::response::Response {
        self.into_http().map(axum::body::Body::from)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status.as_u16(), self.title)?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}

/// The refusal in an answer's head, if another chassis refused the call before executing it. A failing answer
/// of a handler is no refusal.
///
/// ```
/// use chassis_core::Reason;
/// use chassis_http::{REFUSED, error};
///
/// let mut response = http::Response::new(());
/// assert!(error(&response).is_none());
/// response.headers_mut().insert(REFUSED, http::HeaderValue::from_static("OVERLOADED"));
/// assert_eq!(error(&response).unwrap().reason(), Reason::Overloaded);
/// ```
pub fn error<B>(response: &Response<B>) -> Option<Error> {
    refusal(response.status(), response.headers())
}

pub(crate) fn refusal(status: StatusCode, headers: &HeaderMap) -> Option<Error> {
    let reason = Reason::from_name(headers.get(REFUSED)?.to_str().ok()?)?;
    let error = Error::remote(reason, format!("refused by the service: {}", reason.name()));
    let error = error.with_code(code_of(reason, status)).with_maybe_executed(false);
    Some(match retry_after(headers) {
        Some(after) => error.with_retry_after(after),
        None => error,
    })
}

/// The status for `error`.
pub(crate) fn status_of(error: &Error) -> StatusCode {
    match (error.reason(), error.origin()) {
        (Reason::TooLarge, Origin::Local) => StatusCode::PAYLOAD_TOO_LARGE,
        _ => error.code().http_status(),
    }
}

/// The code of `reason`, unless `status` implies another one.
pub(crate) fn code_of(reason: Reason, status: StatusCode) -> Code {
    match reason.code() {
        code if code.http_status() == status || reason == Reason::TooLarge => code,
        _ => Code::from_http(status),
    }
}

fn hex(trace_id: u128) -> Cow<'static, str> {
    Cow::Owned(format!("{trace_id:032x}"))
}

fn blank() -> Cow<'static, str> {
    Cow::Borrowed("about:blank")
}

mod status {
    use http::StatusCode;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(status: &StatusCode, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u16(status.as_u16())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<StatusCode, D::Error> {
        Ok(StatusCode::from_u16(u16::deserialize(from)?).unwrap_or_else(|_| unknown()))
    }

    pub(super) fn unknown() -> StatusCode {
        StatusCode::INTERNAL_SERVER_ERROR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_way() {
        let error = Error::local(Reason::RateLimited, "100/s is used up")
            .with_rule("per-caller")
            .with_retry_after(Duration::from_millis(1_200));
        let (head, body) = Problem::from(error).into_http().into_parts();
        assert_eq!(head.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(head.headers[RETRY_AFTER], "2");
        assert_eq!(head.headers[CONTENT_TYPE], PROBLEM_JSON);
        assert!(!head.headers.contains_key(REFUSED));
        let problem = Problem::read(head.status, &head.headers, &body);
        assert_eq!((problem.code(), problem.reason()), (Code::ResourceExhausted, Some(Reason::RateLimited)));
        assert_eq!(problem.rule(), Some("per-caller"));
        assert_eq!(problem.to_string(), "429 Too Many Requests: 100/s is used up");
        let error = Error::from(problem);
        assert_eq!(error.retry_after(), Some(Duration::from_secs(2)));
        assert!(error.maybe_executed());
    }

    #[test]
    fn is_written_as_rfc_9457_says() {
        let problem = Problem::new(StatusCode::CONFLICT).detail("it was paid already");
        assert_eq!(
            problem.into_http().body(),
            r#"{"type":"about:blank","title":"Conflict","status":409,"detail":"it was paid already"}"#
        );
    }

    #[test]
    fn anything_else_is_read_by_its_status() {
        let problem = Problem::read(StatusCode::BAD_GATEWAY, &HeaderMap::new(), b"<html>");
        assert_eq!((problem.status(), problem.code()), (StatusCode::BAD_GATEWAY, Code::Unavailable));
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        let problem =
            Problem::read(StatusCode::NOT_FOUND, &headers, br#"{"title":"Gone fishing","status":99999}"#);
        assert_eq!((problem.status(), problem.title()), (StatusCode::NOT_FOUND, "Not Found"));
    }

    #[test]
    fn a_refusal_is_read_off_the_head() {
        let mut headers = HeaderMap::new();
        assert!(refusal(StatusCode::SERVICE_UNAVAILABLE, &headers).is_none());
        headers.insert(REFUSED, HeaderValue::from_static("CIRCUIT_OPEN"));
        let refused = refusal(StatusCode::SERVICE_UNAVAILABLE, &headers).unwrap();
        assert_eq!((refused.reason(), refused.maybe_executed()), (Reason::CircuitOpen, false));
    }
}
