//! The protocol HTTP for the pipeline: verdicts by status, refusals as problem documents.
use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use chassis_core::{
    Body, Code, Error, Hop, Origin, Reason, Side, Verdict,
    protocol::{
        Answer, CallLabels, DurationFamilies, Family, FixedAnswer, InvalidAnswer, Protocol, Pushback,
    },
    wire::find,
};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use http_body::Body as _;

use super::problem::{Problem, code_of};
use crate::{
    h2,
    wire::{HOP, JSON, REFUSED, RETRY},
};

/// REST over HTTP, in any version.
#[derive(Clone, Copy, Debug, Default)]
pub struct Http;

/// The shared instance of `Http`, which has no state.
pub static HTTP: Http = Http;

/// After OpenTelemetry's semantic conventions for HTTP, in their Prometheus spelling.
static REQUESTS: DurationFamilies = DurationFamilies {
    client: Family {
        name: "http_client_request_duration_seconds",
        help: "Duration of outgoing HTTP requests.",
    },
    server: Family {
        name: "http_server_request_duration_seconds",
        help: "Duration of incoming HTTP requests.",
    },
    labels: &[
        "http_request_method",
        "http_route",
        "http_response_status_code",
        "error_type",
        "server_address",
    ],
    service: Some("server_address"),
};

impl Protocol for Http {
    fn name(&self) -> &'static str {
        "http"
    }

    fn judge_head(&self, status: StatusCode, metadata: &HeaderMap) -> Option<Verdict> {
        if let Some(refused) = find(metadata, &REFUSED)
            && let Some(reason) = refused.to_str().ok().and_then(Reason::from_name)
        {
            return Some(Verdict::refused(reason, code_of(reason, status), status.as_u16()));
        }
        (status.as_u16() >= 400).then(|| self.judge_end(status, None))
    }

    fn judge_end(&self, status: StatusCode, _trailers: Option<&HeaderMap>) -> Verdict {
        Verdict::answered(Code::from_http(status), status.as_u16())
    }

    /// The length in the head, or otherwise of the body itself.
    fn length(&self, method: &Method, status: StatusCode, metadata: &HeaderMap, body: &Body) -> Option<u64> {
        match has_no_body(method, status) {
            true => Some(0),
            false => h2::length(metadata).or_else(|| body.size_hint().exact()),
        }
    }

    fn refuse(&self, error: &Error) -> (StatusCode, HeaderMap, Body) {
        let (mut head, body) = match error.details() {
            Some(details) => fault(error, details),
            None => Problem::of(error).into_http().into_parts(),
        };
        // An injected fault must look like the failure that it simulates.
        let before_work = error.origin() == Origin::Local && !error.maybe_executed();
        if before_work
            && error.reason() != Reason::FaultInjected
            && let Some(hop) = error.hop().filter(|hop| hop.is_whole()).and_then(Hop::text)
            && let Ok(hop) = HeaderValue::try_from(hop)
        {
            head.headers.insert(REFUSED, HeaderValue::from_static(error.reason().name()));
            head.headers.insert(HOP, hop);
        }
        (head.status, head.headers, Body::full(body))
    }

    /// An answer of `status`, `content_type` and `body`; HTTP does not use `message`.
    fn fixed_answer(&self, written: &FixedAnswer) -> Result<Option<Answer>, InvalidAnswer> {
        written.plain().map(Some)
    }

    fn strip_foreign(&self, metadata: &mut HeaderMap, hop: Option<&Hop>) -> bool {
        let is_foreign = {
            let mut reasons = metadata.get_all(REFUSED).iter();
            let mut hops = metadata.get_all(HOP).iter();
            let is_ours =
                |said: &HeaderValue| said.to_str().is_ok_and(|said| hop.is_some_and(|hop| hop.is(said)));
            match (reasons.next(), reasons.next(), hops.next(), hops.next()) {
                (None, ..) => return false,
                (Some(_), None, Some(said), None) => !is_ours(said),
                _ => true,
            }
        };
        if is_foreign {
            take_refusal(metadata);
        }
        is_foreign
    }

    fn pushback(&self, metadata: &HeaderMap) -> Pushback {
        match metadata.get(RETRY) {
            Some(value) if value == "never" => Pushback::Never,
            _ => retry_after(metadata).map_or(Pushback::None, Pushback::After),
        }
    }

    fn forbid_retry(&self, metadata: &mut HeaderMap) {
        metadata.insert(RETRY, HeaderValue::from_static("never"));
    }

    /// After RFC 9110, 9.2.2.
    fn is_idempotent(&self, method: &Method) -> bool {
        method.is_idempotent()
    }

    /// 5xx; 4xx are errors of the caller. A client that disconnected is no error of the server, but its call
    /// has not succeeded either.
    fn is_server_error(&self, verdict: &Verdict) -> bool {
        match verdict.status {
            _ if verdict.reason == Some(Reason::Cancelled) => true,
            0 => verdict.code != Code::Cancelled && !verdict.is_success(),
            status => status >= 500,
        }
    }

    fn durations(&self) -> &'static DurationFamilies {
        &REQUESTS
    }

    fn label_values<'a>(&self, call: &CallLabels<'a>) -> Vec<Cow<'a, str>> {
        let (method, route) = call.operation.split_once(' ').unwrap_or(("_OTHER", call.operation));
        let status = match (call.verdict.status, call.side) {
            (0, Side::Client) => String::new(),
            (0, Side::Server) => answered_status(&call.verdict).to_string(),
            _ => call.status.to_owned(),
        };
        vec![method.into(), route.into(), status.into(), call.error.into(), call.service.into()]
    }
}

/// Whether an answer ends with its head, even if the head declares a body (RFC 9110, 6.4.1).
pub(crate) fn has_no_body(method: &Method, status: StatusCode) -> bool {
    method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// The status that a caller gets if no handler answers; 499 for a caller that disconnected.
fn answered_status(verdict: &Verdict) -> u16 {
    match (verdict.reason, verdict.origin) {
        (Some(Reason::TooLarge), Origin::Local) => 413,
        _ => verdict.code.http_status().as_u16(),
    }
}

/// Removes the header that declares the call as refused.
pub(crate) fn take_refusal(headers: &mut HeaderMap) {
    headers.remove(REFUSED);
    headers.remove(HOP);
}

/// The status and the body of an injected fault.
fn fault(error: &Error, details: &chassis_core::Details) -> (http::response::Parts, bytes::Bytes) {
    let status = details.status.and_then(|status| StatusCode::from_u16(status).ok());
    let (mut head, mut body) = Problem::of(error).into_http().into_parts();
    if let Some(status) = status {
        (head, body) = Problem::new(status).detail(error.message().to_owned()).into_http().into_parts();
    }
    if let Some(text) = &details.body {
        let kind = match serde_json::from_str::<serde::de::IgnoredAny>(text) {
            Ok(_) => JSON,
            Err(_) => "text/plain; charset=utf-8",
        };
        head.headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        body = text.clone().into();
    }
    (head, body)
}

/// `Retry-After`, in seconds or as a date; a date in the past means at once.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use chassis_core::{Invocation, Operation, Target};
    use http::{HeaderName, header::HOST};

    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn failures_are_known_by_the_head() {
        let judge =
            |status, headers: &HeaderMap| HTTP.judge_head(StatusCode::from_u16(status).unwrap(), headers);
        let none = HeaderMap::new();
        assert_eq!(judge(200, &none), None);
        assert_eq!(judge(304, &none), None);
        assert_eq!(judge(404, &none), Some(Verdict::answered(Code::NotFound, 404)));
        assert_eq!(judge(503, &none), Some(Verdict::answered(Code::Unavailable, 503)));
        let refused = headers(REFUSED, "OVERLOADED");
        assert_eq!(judge(503, &refused), Some(Verdict::refused(Reason::Overloaded, Code::Unavailable, 503)));
        assert_eq!(judge(200, &headers(REFUSED, "whatever")), None);
    }

    #[test]
    fn refusals_say_that_nothing_was_done_only_if_so() {
        let refuse = |error: &Error| HTTP.refuse(error);
        // The call has the headers of an incoming call from `orders`.
        let of_a_call = |error: Error| {
            let mut call = Invocation::new(&HTTP, Target::new("stock", Operation::OTHER));
            call.target.caller = Some(HeaderValue::from_static("orders"));
            call.metadata.insert(HOST, HeaderValue::from_static("stock"));
            call.refuse(error)
        };
        let limited = || Error::local(Reason::RateLimited, "used up");
        let (status, head, _) = refuse(&of_a_call(limited()));
        assert_eq!((status.as_u16(), head[REFUSED].as_bytes()), (429, &b"RATE_LIMITED"[..]));
        assert_eq!(head[HOP], "0 stock orders");
        let panicked = Error::local(Reason::Panicked, "boom").with_maybe_executed(true);
        for error in
            [panicked, Error::remote(Reason::ConnectFailed, "no"), Error::local(Reason::FaultInjected, "no")]
        {
            assert!(!refuse(&of_a_call(error)).1.contains_key(REFUSED));
        }
        assert!(!refuse(&limited()).1.contains_key(REFUSED), "of an unknown call");
        assert_eq!(refuse(&Error::local(Reason::TooLarge, "big")).0, StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[test]
    fn a_refusal_of_another_hop_is_taken_off() {
        let mut call = Invocation::new(&HTTP, Target::new("stock", Operation::OTHER));
        call.target.caller = Some(HeaderValue::from_static("orders"));
        for (reasons, hops, is_foreign) in [
            (&["OVERLOADED"][..], &["0 stock orders"][..], false),
            (&["OVERLOADED"], &["0 127.0.0.1:80 orders"], true),
            (&["OVERLOADED"], &["0 stock gateway"], true),
            (&["OVERLOADED"], &["1 stock orders"], true),
            (&["OVERLOADED"], &[], true),
            (&["OVERLOADED", "OVERLOADED"], &["0 stock orders"], true),
            (&["OVERLOADED"], &["0 stock orders", "0 stock orders"], true),
        ] {
            let said = |name: HeaderName, values: &[&'static str]| {
                values.iter().map(|value| (name.clone(), HeaderValue::from_static(value))).collect::<Vec<_>>()
            };
            let mut sent = Invocation::new(&HTTP, call.target.clone());
            sent.previous_attempts = 0;
            let mut head = HeaderMap::new();
            said(REFUSED, reasons).into_iter().chain(said(HOP, hops)).for_each(|(name, value)| {
                head.append(name, value);
            });
            let reply = sent.answered(StatusCode::SERVICE_UNAVAILABLE, head, Body::empty());
            assert_eq!(reply.metadata.is_empty(), is_foreign, "{reasons:?} {hops:?}");
            let verdict = reply.verdict().unwrap();
            assert_eq!(
                (verdict.maybe_executed, verdict.blames_nobody()),
                (is_foreign, !is_foreign),
                "{hops:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_fault_says_what_it_was_told_to() {
        let details =
            chassis_core::Details { status: Some(418), body: Some(String::from("short and stout")) };
        let error = Error::local(Reason::FaultInjected, "teapot").with_details(details);
        let (status, head, body) = HTTP.refuse(&error);
        assert_eq!(status, StatusCode::IM_A_TEAPOT);
        assert_eq!(head[CONTENT_TYPE], "text/plain; charset=utf-8");
        let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
        assert_eq!(body, "short and stout");
    }

    #[test]
    fn retry_after_in_both_forms() {
        let read = |value: &str| retry_after(&headers(RETRY_AFTER, value));
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!((98..=100).contains(&read(&soon).unwrap().as_secs()));
        assert_eq!(read("soon"), None);
        assert_eq!(read("-1"), None);
    }

    #[test]
    fn idempotent_methods() {
        let idempotent = ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"];
        for method in idempotent.iter().chain(&["POST", "PATCH", "CONNECT"]) {
            let expected = idempotent.contains(method);
            assert_eq!(HTTP.is_idempotent(&method.parse().unwrap()), expected, "{method}");
        }
    }
}
