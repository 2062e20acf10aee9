//! A minimal protocol for tests.
use std::{borrow::Cow, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header::CONTENT_LENGTH};

use crate::{
    plugin::protocol::{Protocol, Pushback},
    types::{
        Answer, Body, CallLabels, Code, DurationFamilies, Error, FixedAnswer, InvalidAnswer, Reason, Verdict,
    },
};

/// Uses HTTP statuses: an answer with a status from 400 on has failed with its head; for other answers the
/// verdict is known at the end of the body, from the [`STATUS`] trailer if there is one. GET is idempotent.
#[derive(Clone, Copy, Debug)]
pub struct TestProtocol {
    name: &'static str,
    durations: &'static DurationFamilies,
    answers_with_messages: bool,
}

/// The test protocol by its own name, `test`.
pub static TEST: TestProtocol = TestProtocol::named("test");

/// A trailer: the number of the code that ended the call.
pub const STATUS: HeaderName = HeaderName::from_static("x-status");
/// A header of refusals: the name of the [`Reason`]. A service that sends it has executed nothing.
pub const REASON: HeaderName = HeaderName::from_static("x-reason");
/// A header: the seconds before the next try, or `never`.
pub const RETRY_AFTER: HeaderName = HeaderName::from_static("retry-after");

// === impl TestProtocol ===

impl TestProtocol {
    /// The test protocol under another name, for tests of metrics and fallbacks, which depend on the name.
    pub const fn named(name: &'static str) -> Self {
        TestProtocol { name, durations: &DurationFamilies::NEUTRAL, answers_with_messages: false }
    }

    /// The same, whose fixed answers are messages and no plain bodies: the key `message`, a number in decimal.
    pub const fn with_messages(self) -> Self {
        TestProtocol { answers_with_messages: true, ..self }
    }

    /// Counts its calls in `families`: by service, status and error, if these have three labels.
    pub const fn counted_by(self, families: &'static DurationFamilies) -> Self {
        TestProtocol { durations: families, ..self }
    }
}

impl Protocol for TestProtocol {
    fn name(&self) -> &'static str {
        self.name
    }

    fn judge_head(&self, status: StatusCode, metadata: &HeaderMap) -> Option<Verdict> {
        let code = Code::from_http(status);
        let reason = metadata.get(REASON).and_then(|name| Reason::from_name(name.to_str().ok()?));
        match (status.as_u16() >= 400, reason) {
            (false, _) => None,
            (true, Some(reason)) => Some(Verdict::refused(reason, code, status.as_u16())),
            (true, None) => Some(Verdict::answered(code, status.as_u16())),
        }
    }

    fn judge_end(&self, status: StatusCode, trailers: Option<&HeaderMap>) -> Verdict {
        let code = trailers.and_then(|trailers| trailers.get(STATUS)?.to_str().ok()?.parse().ok());
        match code.map(Code::from_number) {
            Some(code) => {
                Verdict::answered(code, if code == Code::Ok { status.as_u16() } else { code.number() })
            }
            None => Verdict::answered(Code::from_http(status), status.as_u16()),
        }
    }

    /// From `content-length`.
    fn length(&self, _: &Method, _: StatusCode, metadata: &HeaderMap, _: &Body) -> Option<u64> {
        metadata.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// Messages end with a newline.
    fn next_message(&self, position: &mut u64, chunk: &[u8]) -> Option<usize> {
        for (at, byte) in chunk.iter().enumerate() {
            let begins = *position == 0;
            *position = u64::from(*byte != b'\n');
            if begins {
                return Some(at);
            }
        }
        None
    }

    fn refuse(&self, error: &Error) -> (StatusCode, HeaderMap, Body) {
        let mut metadata = HeaderMap::new();
        metadata.insert(REASON, HeaderValue::from_static(error.reason().name()));
        let details = error.details();
        let status = details.and_then(|details| StatusCode::from_u16(details.status?).ok());
        let body =
            details.and_then(|details| details.body.clone()).unwrap_or_else(|| error.message().to_owned());
        (status.unwrap_or(error.code().http_status()), metadata, Body::full(body))
    }

    /// A plain one, unless it answers [with messages](TestProtocol::with_messages).
    fn fixed_answer(&self, written: &FixedAnswer) -> Result<Option<Answer>, InvalidAnswer> {
        if !self.answers_with_messages {
            return written.plain().map(Some);
        }
        let Some(message) = &written.message else { return Ok(None) };
        match message.parse::<u64>() {
            Ok(number) => {
                let body = Body::full(number.to_string());
                Ok(Some(Answer { status: StatusCode::OK, metadata: HeaderMap::new(), body }))
            }
            Err(error) => Err(InvalidAnswer::new("message", format!("the message is no number: {error}"))),
        }
    }

    fn pushback(&self, metadata: &HeaderMap) -> Pushback {
        match metadata.get(RETRY_AFTER).and_then(|value| value.to_str().ok()) {
            None => Pushback::None,
            Some("never") => Pushback::Never,
            Some(after) => {
                after.parse().map_or(Pushback::None, |seconds| Pushback::After(Duration::from_secs(seconds)))
            }
        }
    }

    fn durations(&self) -> &'static DurationFamilies {
        self.durations
    }

    fn label_values<'a>(&self, call: &CallLabels<'a>) -> Vec<Cow<'a, str>> {
        match self.durations.labels.len() {
            3 => vec![call.service.into(), call.status.into(), call.error.into()],
            _ => call.neutral(self.name),
        }
    }

    fn forbid_retry(&self, metadata: &mut HeaderMap) {
        metadata.insert(RETRY_AFTER, HeaderValue::from_static("never"));
    }

    fn is_idempotent(&self, method: &Method) -> bool {
        *method == Method::GET
    }
}
