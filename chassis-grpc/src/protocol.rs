//! The gRPC protocol for the pipeline: where the status of a call is, and how a refusal is written.
use std::{borrow::Cow, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use chassis_core::{
    Body, Code, Error, Hop, Reason, Verdict,
    protocol::{
        Answer, CallLabels, DurationFamilies, Family, FixedAnswer, InvalidAnswer, Protocol, Pushback,
    },
    wire::find,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE};

use crate::{
    answer,
    details::{self, Reader, Refusal},
    status, timeout,
    wire::{ATTEMPTS, GRPC_MEDIA_TYPE, GRPC_MESSAGE, GRPC_STATUS, GRPC_TIMEOUT, PUSHBACK},
};

/// gRPC over HTTP/2, as specified in `doc/PROTOCOL-HTTP2.md` of the gRPC project.
///
/// - The verdict is `grpc-status`, in the head (trailers-only) or in the trailers. Without one it is UNKNOWN,
///   or follows from the HTTP status by the table of `doc/http-grpc-status-mapping.md`.
/// - A refusal is a trailers-only answer whose `grpc-status-details-bin` holds an `ErrorInfo` of the domain
///   `chassis`.
/// - The remaining time until the deadline is sent as `grpc-timeout`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Grpc;

/// The shared instance of `Grpc`, which has no state.
pub static GRPC: Grpc = Grpc;

/// After OpenTelemetry's semantic conventions for RPC, in their Prometheus spelling.
static RPC: DurationFamilies = DurationFamilies {
    client: Family { name: "rpc_client_call_duration_seconds", help: "Duration of outgoing RPCs." },
    server: Family { name: "rpc_server_call_duration_seconds", help: "Duration of incoming RPCs." },
    labels: &["rpc_system_name", "rpc_method", "rpc_status_code", "error_type"],
    service: None,
};

// === impl Grpc ===

impl Protocol for Grpc {
    fn name(&self) -> &'static str {
        "grpc"
    }

    fn judge_head(&self, status: StatusCode, metadata: &HeaderMap) -> Option<Verdict> {
        match grpc_status(metadata) {
            Some(code) => Some(judge(code, metadata)),
            None => not_grpc(status, metadata).map(|code| Verdict::answered(code, code.number())),
        }
    }

    fn judge_end(&self, _status: StatusCode, trailers: Option<&HeaderMap>) -> Verdict {
        match trailers.and_then(|trailers| Some((grpc_status(trailers)?, trailers))) {
            Some((code, trailers)) => judge(code, trailers),
            None => Verdict::answered(Code::Unknown, Code::Unknown.number()),
        }
    }

    /// Messages begin with their prefix: a byte of flags, four of the length.
    fn next_message(&self, position: &mut u64, chunk: &[u8]) -> Option<usize> {
        next_message(position, chunk)
    }

    fn refuse(&self, error: &Error) -> (StatusCode, HeaderMap, Body) {
        let (status, headers) = status::Answer::of(error, Reader::There).into_head();
        (status, headers, Body::empty())
    }

    /// An answer of `message`, an encoded message in Base64; the other keys say nothing to gRPC.
    fn fixed_answer(&self, written: &FixedAnswer) -> Result<Option<Answer>, InvalidAnswer> {
        let Some(message) = &written.message else { return Ok(None) };
        match BASE64_STANDARD.decode(message) {
            Ok(message) => Ok(Some(answer::encoded(&message))),
            Err(error) => Err(InvalidAnswer::new("message", format!("the message is no Base64: {error}"))),
        }
    }

    fn message(&self, metadata: &HeaderMap) -> Option<String> {
        metadata.get(GRPC_MESSAGE).map(|value| percent_decode(value.as_bytes()))
    }

    fn pushback(&self, metadata: &HeaderMap) -> Pushback {
        let mut said = metadata.get_all(PUSHBACK).iter();
        match (said.next(), said.next()) {
            (Some(value), None) => millis(value).map_or(Pushback::Never, Pushback::After),
            (Some(_), Some(_)) => Pushback::Never,
            (None, _) => details::read_retry_after(metadata).map_or(Pushback::None, Pushback::After),
        }
    }

    fn strip_foreign(&self, metadata: &mut HeaderMap, hop: Option<&Hop>) -> bool {
        details::strip_foreign(metadata, hop)
    }

    fn forbid_retry(&self, metadata: &mut HeaderMap) {
        metadata.insert(PUSHBACK, HeaderValue::from_static("-1"));
    }

    fn attempts_header(&self) -> HeaderName {
        ATTEMPTS
    }

    fn write_deadline(&self, metadata: &mut HeaderMap, remaining: Duration) {
        metadata.insert(GRPC_TIMEOUT, timeout::format(remaining));
    }

    fn status_label(&self, verdict: &Verdict) -> String {
        verdict.code.name().to_owned()
    }

    fn durations(&self) -> &'static DurationFamilies {
        &RPC
    }

    fn label_values<'a>(&self, call: &CallLabels<'a>) -> Vec<Cow<'a, str>> {
        vec!["grpc".into(), call.operation.into(), call.status.into(), call.error.into()]
    }
}

/// Implements [`Protocol::next_message`]. The low half of `position` is the part of the length read so far, then the
/// remaining bytes of the message. The high half is the number of prefix bytes read, 0 between messages.
fn next_message(position: &mut u64, chunk: &[u8]) -> Option<usize> {
    const PREFIX: u64 = 5;
    let mut at = 0;
    loop {
        let (read, mut length) = (*position >> 32, *position as u32);
        match read {
            0 => {
                chunk.get(at)?;
                *position = 1 << 32;
                return Some(at);
            }
            PREFIX => {
                let step = (chunk.len() - at).min(length as usize);
                (at, length) = (at + step, length - step as u32);
                *position = if length == 0 { 0 } else { PREFIX << 32 | u64::from(length) };
                if length > 0 {
                    return None;
                }
            }
            _ => {
                length = length << 8 | u32::from(*chunk.get(at)?);
                at += 1;
                let is_empty = read + 1 == PREFIX && length == 0;
                *position = if is_empty { 0 } else { (read + 1) << 32 | u64::from(length) };
            }
        }
    }
}

/// The code of a head or of trailers, if there is one. An unknown value counts as UNKNOWN.
pub(crate) fn grpc_status(metadata: &HeaderMap) -> Option<Code> {
    let number = match find(metadata, &GRPC_STATUS)?.as_bytes() {
        b"0" => Some(0),
        digits => std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()),
    };
    Some(number.map_or(Code::Unknown, Code::from_number))
}

/// The code of an answer that is not gRPC: from a proxy or a web server on the way.
pub(crate) fn not_grpc(status: StatusCode, metadata: &HeaderMap) -> Option<Code> {
    match status.as_u16() {
        200 if is_grpc(metadata) => None,
        400 => Some(Code::Internal),
        401 => Some(Code::Unauthenticated),
        403 => Some(Code::PermissionDenied),
        404 => Some(Code::Unimplemented),
        429 | 502 | 503 | 504 => Some(Code::Unavailable),
        _ => Some(Code::Unknown),
    }
}

/// Whether it is gRPC with protobuf messages: `application/grpc`, or `application/grpc+proto`, with or
/// without parameters. (gRPC-Web is another protocol, and JSON another encoding.)
pub(crate) fn is_grpc(metadata: &HeaderMap) -> bool {
    match find(metadata, &CONTENT_TYPE).map(HeaderValue::as_bytes) {
        Some(value) if value == GRPC_MEDIA_TYPE.as_bytes() => true,
        Some(value) => subtype(value).is_some_and(|subtype| {
            let subtype = subtype.split(|byte| matches!(byte, b';' | b' ')).next().unwrap_or_default();
            subtype.is_empty() || subtype.eq_ignore_ascii_case(b"+proto")
        }),
        None => false,
    }
}

/// The content-type, if it is gRPC's, with any encoding of messages.
pub(crate) fn names_grpc(metadata: &HeaderMap) -> Option<&HeaderValue> {
    find(metadata, &CONTENT_TYPE).filter(|value| subtype(value.as_bytes()).is_some())
}

/// The part after `application/grpc` in a content-type: nothing, `+` and an encoding, or parameters.
fn subtype(content_type: &[u8]) -> Option<&[u8]> {
    let (start, rest) = content_type.split_at_checked(GRPC_MEDIA_TYPE.len())?;
    let is_grpc = start.eq_ignore_ascii_case(GRPC_MEDIA_TYPE.as_bytes());
    (is_grpc && matches!(rest.first(), None | Some(b'+' | b';' | b' '))).then_some(rest)
}

/// The HTTP status is 200 for every gRPC status, except for malformed requests: there it is 400, as in
/// grpc-go.
pub(crate) fn http_status(reason: Reason) -> StatusCode {
    match reason {
        Reason::Malformed => StatusCode::BAD_REQUEST,
        _ => StatusCode::OK,
    }
}

fn judge(code: Code, metadata: &HeaderMap) -> Verdict {
    let answered = Verdict::answered(code, code.number());
    match (code != Code::Ok).then(|| Refusal::read(metadata)).flatten() {
        Some(said) if !said.maybe_executed => Verdict::refused(said.reason, code, code.number()),
        Some(said) => Verdict { reason: Some(said.reason), ..answered },
        None => answered,
    }
}

/// A number of milliseconds from 0 to 2³¹−1, as in gRFC A6. `None` if it is negative or not a number.
fn millis(value: &HeaderValue) -> Option<Duration> {
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
    let millis = digits.parse().ok().filter(|millis| *millis <= u64::from(i32::MAX.unsigned_abs()))?;
    Some(Duration::from_millis(millis))
}

/// Decodes `grpc-message`; invalid encoding stays as it is.
pub(crate) fn percent_decode(text: &[u8]) -> String {
    percent_encoding::percent_decode(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use chassis_core::{Invocation, Operation, Origin, Target};
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs.map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    #[track_caller]
    fn check_head(status: u16, pairs: &[(&'static str, &'static str)], expected: Option<Code>) {
        let verdict = Grpc.judge_head(StatusCode::from_u16(status).unwrap(), &headers(pairs));
        assert_eq!(verdict.map(|v| v.code), expected, "{status} {pairs:?}");
        if let Some(verdict) = verdict {
            assert_eq!((verdict.status, verdict.origin), (verdict.code.number(), Origin::Remote));
            assert!(verdict.maybe_executed && verdict.reason.is_none());
        }
    }

    /// Where messages of `lengths` begin, if their bytes come in chunks of `size`.
    fn begins(lengths: &[usize], size: usize) -> Vec<usize> {
        let mut bytes = Vec::new();
        for length in lengths {
            bytes.push(0);
            bytes.extend((*length as u32).to_be_bytes());
            bytes.extend(std::iter::repeat_n(7, *length));
        }
        let (mut position, mut begins) = (0, Vec::new());
        for (n, chunk) in bytes.chunks(size).enumerate() {
            let mut read = 0;
            while let Some(at) = Grpc.next_message(&mut position, &chunk[read..]) {
                begins.push(n * size + read + at);
                read += at + 1;
            }
        }
        assert_eq!(position, 0, "whole messages end between two");
        begins
    }

    #[test]
    fn messages_are_found_however_their_bytes_are_cut() {
        let lengths = [0, 1, 3, 0, 0, 70_000, 256, 5];
        let expected: Vec<usize> =
            (0..lengths.len()).map(|n| lengths[..n].iter().map(|length| 5 + length).sum()).collect();
        for size in [1, 2, 3, 4, 5, 6, 7, 11, 1_000, 16_384, 1_000_000] {
            assert_eq!(begins(&lengths, size), expected, "chunks of {size}");
        }
        assert!(begins(&[], 1).is_empty());
    }

    /// A `content-length` from a proxy does not end the call: the trailers do.
    #[test]
    fn a_length_says_nothing_of_how_a_call_went() {
        let (_fed, body) = chassis_core::testing::feed();
        let head = headers(&[("content-length", "5")]);
        assert_eq!(Grpc.length(&http::Method::POST, StatusCode::OK, &head, &body), None);
    }

    #[test]
    fn a_head_of_http_is_judged_by_the_table() {
        let table = [
            (400, Code::Internal),
            (401, Code::Unauthenticated),
            (403, Code::PermissionDenied),
            (404, Code::Unimplemented),
            (429, Code::Unavailable),
            (502, Code::Unavailable),
            (503, Code::Unavailable),
            (504, Code::Unavailable),
            (204, Code::Unknown),
            (302, Code::Unknown),
            (405, Code::Unknown),
            (500, Code::Unknown),
        ];
        for (status, code) in table {
            check_head(status, &[], Some(code));
            check_head(status, &[("content-type", "application/grpc")], Some(code));
        }
    }

    #[test]
    fn a_grpc_status_counts_whatever_http_says() {
        check_head(503, &[("grpc-status", "5")], Some(Code::NotFound));
        check_head(400, &[("grpc-status", "13"), ("content-type", "application/grpc")], Some(Code::Internal));
        for code in Code::ALL {
            let number: &'static str = code.number().to_string().leak();
            check_head(200, &[("grpc-status", number), ("content-type", "application/grpc")], Some(code));
            let trailers = headers(&[("grpc-status", number)]);
            assert_eq!(Grpc.judge_end(StatusCode::OK, Some(&trailers)).code, code);
        }
        for garbage in ["17", "-1", "", "OK", "99999999999", "1.5"] {
            check_head(200, &[("grpc-status", garbage)], Some(Code::Unknown));
        }
    }

    #[test]
    fn a_good_head_is_not_yet_a_verdict() {
        for content_type in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc+Proto; charset=utf-8",
            "application/grpc;charset=utf-8",
            "Application/GRPC",
        ] {
            check_head(200, &[("content-type", content_type)], None);
        }
        for content_type in [
            "text/html",
            "application/grpc-web",
            "application/grpc+json",
            "application/grpc+protobuf",
            "application/json",
            "application/gr",
            "",
        ] {
            check_head(200, &[("content-type", content_type)], Some(Code::Unknown));
        }
        check_head(200, &[], Some(Code::Unknown));
    }

    #[test]
    fn a_missing_status_is_unknown() {
        for trailers in [None, Some(&HeaderMap::new())] {
            let verdict = Grpc.judge_end(StatusCode::OK, trailers);
            assert_eq!((verdict.code, verdict.maybe_executed), (Code::Unknown, true));
        }
    }

    #[test]
    fn a_refusal_of_another_chassis_is_known_as_such() {
        let error = Error::local(Reason::RateLimited, "100/s is used up").with_rule("per-caller");
        let error = error.with_retry_after(Duration::from_micros(2_000_001));
        let (status, head, body) = Grpc.refuse(&error);
        assert_eq!(status, StatusCode::OK);
        assert!(http_body::Body::is_end_stream(&body));
        let verdict = Grpc.judge_head(status, &head).unwrap();
        assert_eq!(verdict, Verdict::refused(Reason::RateLimited, Code::ResourceExhausted, 8));
        assert!(verdict.blames_nobody());
        assert_eq!(Grpc.message(&head).unwrap(), "100/s is used up");
        assert_eq!(head[PUSHBACK], "2001", "never earlier than asked for");
        assert_eq!(Grpc.pushback(&head), Pushback::After(Duration::from_millis(2001)));
        assert_eq!(Grpc.judge_end(StatusCode::OK, Some(&head)), verdict);
    }

    #[test]
    fn what_may_have_been_executed_is_no_refusal() {
        let error = Error::remote(Reason::ConnectionLost, "gone");
        let (status, head, _) = Grpc.refuse(&error);
        let verdict = Grpc.judge_head(status, &head).unwrap();
        assert_eq!((verdict.code, verdict.reason), (Code::Unavailable, Some(Reason::ConnectionLost)));
        assert!(verdict.maybe_executed && !verdict.blames_nobody());
    }

    #[test]
    fn what_was_not_understood_is_refused_in_both_tongues() {
        let (status, head, _) = Grpc.refuse(&Error::local(Reason::Malformed, "malformed grpc-timeout"));
        assert_eq!((status, grpc_status(&head)), (StatusCode::BAD_REQUEST, Some(Code::Internal)));
    }

    #[test]
    fn pushback() {
        let after = |millis| Pushback::After(Duration::from_millis(millis));
        let table = [
            ("0", after(0)),
            ("150", after(150)),
            ("2147483647", after(2_147_483_647)),
            ("2147483648", Pushback::Never),
            ("-1", Pushback::Never),
            ("", Pushback::Never),
            ("soon", Pushback::Never),
            ("+5", Pushback::Never),
        ];
        for (value, expected) in table {
            let metadata = headers(&[("grpc-retry-pushback-ms", value)]);
            assert_eq!(Grpc.pushback(&metadata), expected, "{value:?}");
        }
        assert_eq!(Grpc.pushback(&HeaderMap::new()), Pushback::None);
        let twice = headers(&[("grpc-retry-pushback-ms", "1"), ("grpc-retry-pushback-ms", "2")]);
        assert_eq!(Grpc.pushback(&twice), Pushback::Never);
    }

    #[tokio::test]
    async fn a_fixed_answer_is_a_framed_message_with_the_trailers_of_success() {
        let written = FixedAnswer {
            status: Some(203),
            body: Some("{}".to_owned()),
            message: Some("CAc=".to_owned()),
            ..FixedAnswer::default()
        };
        let answer = Grpc.fixed_answer(&written).unwrap().unwrap();
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(Grpc.judge_head(answer.status, &answer.metadata), None, "the trailers decide");
        let call = Invocation::new(&GRPC, Target::new("stock", Operation::OTHER));
        let reply = call.answered(answer.status, answer.metadata, answer.body);
        let answered = chassis_core::testing::read(reply).await.unwrap();
        assert_eq!(&answered.body[..], [0, 0, 0, 0, 2, 8, 7]);
        assert_eq!(answered.trailers.unwrap()["grpc-status"], "0");
    }

    #[test]
    fn a_fixed_answer_needs_a_message_in_base64() {
        let written = |message: Option<&str>| FixedAnswer {
            status: Some(200),
            body: Some("{}".to_owned()),
            message: message.map(str::to_owned),
            ..FixedAnswer::default()
        };
        assert!(Grpc.fixed_answer(&written(None)).unwrap().is_none());
        assert!(Grpc.fixed_answer(&written(Some(""))).unwrap().is_some(), "a message of defaults");
        let refused = Grpc.fixed_answer(&written(Some("no Base64"))).unwrap_err();
        assert_eq!(refused.key, "message");
        assert!(refused.message.starts_with("the message is no Base64: "), "{refused:?}");
    }

    #[test]
    fn writes_what_remains() {
        let mut metadata = headers(&[("grpc-timeout", "1H")]);
        Grpc.write_deadline(&mut metadata, Duration::from_millis(80));
        assert_eq!(metadata.get_all("grpc-timeout").iter().collect::<Vec<_>>(), ["80000000n"]);
    }

    #[test]
    fn names_codes_in_metrics() {
        assert_eq!(Grpc.status_label(&Verdict::answered(Code::NotFound, 5)), "NOT_FOUND");
        assert_eq!(Grpc.status_label(&Verdict::answered(Code::Ok, 0)), "OK");
    }

    #[test]
    fn decodes_messages() {
        let table = [("a%20b", "a b"), ("%E2%82%AC", "€"), ("100%", "100%"), ("%4", "%4"), ("%zz", "%zz")];
        for (encoded, expected) in table {
            assert_eq!(percent_decode(encoded.as_bytes()), expected);
        }
    }

    proptest! {
        #[test]
        fn any_message_survives(message in any::<String>()) {
            let (_, head, _) = Grpc.refuse(&Error::local(Reason::Internal, message.clone()));
            prop_assert_eq!(Grpc.message(&head).unwrap_or_default(), message);
        }

        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            percent_decode(&bytes);
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                for name in [GRPC_STATUS, PUSHBACK, CONTENT_TYPE, GRPC_MESSAGE] {
                    let metadata = HeaderMap::from_iter([(name, value.clone())]);
                    Grpc.judge_head(StatusCode::OK, &metadata);
                    Grpc.pushback(&metadata);
                    Grpc.message(&metadata);
                }
            }
        }
    }
}
