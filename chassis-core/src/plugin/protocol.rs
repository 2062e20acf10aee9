//! The port for protocols: reading a verdict, writing a refusal. It depends neither on calls nor on
//! connections; the protocol's edge creates the calls, and its [transport](super::transport) sends them.
use std::{borrow::Cow, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::types::{
    Answer, Body, CallLabels, Code, DurationFamilies, Error, FixedAnswer, Hop, InvalidAnswer, Verdict, wire,
};

/// The parts of a protocol that the pipeline needs.
pub trait Protocol: Send + Sync + 'static {
    /// The name in an instance's addresses, in metrics and logs: `grpc`, `http`.
    fn name(&self) -> &'static str;

    /// The verdict, if the head alone determines it: a failing status, a refusal. `None` otherwise: a success
    /// is known only at the end.
    fn judge_head(&self, status: StatusCode, metadata: &HeaderMap) -> Option<Verdict>;

    /// The verdict at the end of the body, with its trailers if there are any.
    fn judge_end(&self, status: StatusCode, trailers: Option<&HeaderMap>) -> Verdict;

    /// The length of `body` in bytes, if the answer is complete with its last byte and its status has
    /// determined the verdict: a reader may stop there. The body belongs to an answer with this head to a call
    /// by `method`. `None`, the default: only the end of the body, or its trailers, show where it ends.
    fn length(
        &self,
        _method: &Method,
        _status: StatusCode,
        _metadata: &HeaderMap,
        _body: &Body,
    ) -> Option<u64> {
        None
    }

    /// Scans `chunk`, a part of a body, for the begin of a message; returns the number of bytes before it. The
    /// scan has then consumed the first byte of the message, and the next call continues after that byte.
    /// `None`, also the default: no message begins in the chunk, and all of it was scanned. `position` is 0 at
    /// the start of a body; between chunks the protocol stores its state there.
    ///
    /// Implement it for protocols whose bodies are streams of messages, so that messages can be limited.
    fn next_message(&self, _position: &mut u64, _chunk: &[u8]) -> Option<usize> {
        None
    }

    /// Writes a refusal: the answer that the other side gets instead. It may state that nothing was executed
    /// only together with the [hop](Error::hop) for which that is true.
    fn refuse(&self, error: &Error) -> (StatusCode, HeaderMap, Body);

    /// The answer for a fallback in the settings, in place of a failed call; `None` if `written` contains no
    /// answer for this protocol, and the call keeps its own error. Default: none. Protocols whose bodies are
    /// plain bytes answer with [`FixedAnswer::plain`].
    ///
    /// Settings are checked with it when they are loaded, if the protocol was
    /// [registered](crate::RuntimeBuilder::protocol).
    ///
    /// # Errors
    /// The key whose value is invalid for the protocol; the settings are refused with it.
    fn fixed_answer(&self, _written: &FixedAnswer) -> Result<Option<Answer>, InvalidAnswer> {
        Ok(None)
    }

    /// The message of a failing answer.
    fn message(&self, _metadata: &HeaderMap) -> Option<String> {
        None
    }

    /// The instruction of a failing answer about retries.
    fn pushback(&self, _metadata: &HeaderMap) -> Pushback {
        Pushback::None
    }

    /// Removes statements about another hop than `hop` from the head, or from the trailers, of an answer, and
    /// returns whether there were any. Such an answer was forwarded by another service, which may have executed
    /// the call: the rest of it is an answer like any other. `None`: removes statements about every hop.
    ///
    /// Only called for answers whose verdict has a reason. Implement it for protocols whose refusals may be
    /// forwarded by services that do not recognise them.
    fn strip_foreign(&self, _metadata: &mut HeaderMap, _hop: Option<&Hop>) -> bool {
        false
    }

    /// Writes into the head of a failing answer that the call must not be retried.
    fn forbid_retry(&self, _metadata: &mut HeaderMap) {}

    /// Whether a call by this method may be executed twice without harm.
    fn is_idempotent(&self, _method: &Method) -> bool {
        false
    }

    /// The header with the number of previous attempts.
    fn attempts_header(&self) -> HeaderName {
        wire::ATTEMPT
    }

    /// Writes the remaining time until the deadline.
    fn write_deadline(&self, metadata: &mut HeaderMap, remaining: Duration) {
        let millis = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX);
        metadata.insert(wire::TIMEOUT, HeaderValue::from(millis));
    }

    /// The label of an operation's own code in metrics: an HTTP status, a gRPC code's name.
    fn status_label(&self, verdict: &Verdict) -> String {
        match verdict.status {
            0 => verdict.code.name().to_owned(),
            status => status.to_string(),
        }
    }

    /// The histograms that count the durations of its calls. Default: `chassis_client_call_duration_seconds`
    /// and `chassis_server_call_duration_seconds`, by protocol, service, operation and code.
    ///
    /// Protocols with the same names share the families.
    fn durations(&self) -> &'static DurationFamilies {
        &DurationFamilies::NEUTRAL
    }

    /// The values of the labels of these histograms for one kind of outcome, in the order of
    /// [`DurationFamilies::labels`]. Values must be from closed sets: each combination of values is a series.
    fn label_values<'a>(&self, call: &CallLabels<'a>) -> Vec<Cow<'a, str>> {
        call.neutral(self.name())
    }

    /// Whether this verdict counts as an error of the server, in its metrics and spans.
    fn is_server_error(&self, verdict: &Verdict) -> bool {
        use Code::{DataLoss, DeadlineExceeded, Internal, Unavailable, Unimplemented, Unknown};
        matches!(verdict.code, Unknown | DeadlineExceeded | Unimplemented | Internal | Unavailable | DataLoss)
    }
}

/// The instruction of a failing answer about retries (`Retry-After`, `grpc-retry-pushback-ms`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// No instruction.
    None,
    /// Retry only after this time.
    After(Duration),
    /// Do not retry.
    Never,
}
