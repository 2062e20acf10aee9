//! A protocol's own words: how it reads a verdict, how it writes a refusal. It knows neither calls nor connections;
//! its edge makes the calls, and its [transport](super::transport) sends them.
use std::{borrow::Cow, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::types::{
    Answer, Body, CallLabels, Code, DurationFamilies, Error, FixedAnswer, Hop, InvalidAnswer, Verdict, wire,
};

/// A protocol's own words, as far as the pipeline needs them.
pub trait Protocol: Send + Sync + 'static {
    /// `grpc`, `http`: its name in an instance's addresses, in metrics and logs.
    fn name(&self) -> &'static str;

    /// The verdict, where the head alone gives it: a failing status, a refusal. `None` otherwise: a
    /// success is known only at its end.
    fn judge_head(&self, status: StatusCode, metadata: &HeaderMap) -> Option<Verdict>;

    /// The verdict at the end of the body, with its trailers if it had any.
    fn judge_end(&self, status: StatusCode, trailers: Option<&HeaderMap>) -> Verdict;

    /// How many bytes `body` has, the body of an answer with this head to a call by `method`, where its last byte is
    /// its end and its status has said how it went: a reader may stop there. `None`, the default: only the end of the
    /// body, or its trailers, show where it ends.
    fn length(
        &self,
        _method: &Method,
        _status: StatusCode,
        _metadata: &HeaderMap,
        _body: &Body,
    ) -> Option<u64> {
        None
    }

    /// Reads on through `chunk`, a part of a body, to where a message begins: so many bytes of it come before. It has
    /// read the first byte of the message then, and goes on with the next byte. `None`, also the default: none
    /// begins in it, and all of it was read. `position` is 0 at the start of a body; between the chunks the protocol
    /// keeps there what it needs to know.
    ///
    /// To be implemented by protocols whose bodies are streams of messages, so that these can be bounded.
    fn next_message(&self, _position: &mut u64, _chunk: &[u8]) -> Option<usize> {
        None
    }

    /// Writes a refusal: what the other side gets instead of an answer. That nothing was executed it may say
    /// only together with the [hop](Error::hop) that this is true of.
    fn refuse(&self, error: &Error) -> (StatusCode, HeaderMap, Body);

    /// The answer that a fallback in the settings gives in place of a failed call; `None` if `written` says nothing
    /// that this protocol can answer with, and the call keeps its own error. Default: none. Protocols whose bodies
    /// are plain bytes answer with [`FixedAnswer::plain`].
    ///
    /// Settings are checked by it when they are loaded, if the protocol was
    /// [registered](crate::RuntimeBuilder::protocol).
    ///
    /// # Errors
    /// The key whose value the protocol cannot answer with; the settings are refused there.
    fn fixed_answer(&self, _written: &FixedAnswer) -> Result<Option<Answer>, InvalidAnswer> {
        Ok(None)
    }

    /// What a failing answer says in words.
    fn message(&self, _metadata: &HeaderMap) -> Option<String> {
        None
    }

    /// What a failing answer says about trying again.
    fn pushback(&self, _metadata: &HeaderMap) -> Pushback {
        Pushback::None
    }

    /// Takes out of the head, or of the trailers, of an answer what a service says there of another hop than
    /// `hop`, and tells whether it did. An answer that says so much passed through somebody else's hands, which
    /// may have worked for the call: what is left of it is an answer like any other. `None`: of any hop.
    ///
    /// Asked only of answers whose verdict names a reason. To be implemented by protocols whose refusals
    /// may be passed on by what does not know them.
    fn strip_foreign(&self, _metadata: &mut HeaderMap, _hop: Option<&Hop>) -> bool {
        false
    }

    /// Writes into the head of a failing answer that the call is not to be retried.
    fn forbid_retry(&self, _metadata: &mut HeaderMap) {}

    /// May a call by this method be executed twice without harm?
    fn is_idempotent(&self, _method: &Method) -> bool {
        false
    }

    /// Where the number of attempts made before travels.
    fn attempts_header(&self) -> HeaderName {
        wire::ATTEMPT
    }

    /// Writes what remains of the deadline.
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
    /// Protocols that give the same names share the families.
    fn durations(&self) -> &'static DurationFamilies {
        &DurationFamilies::NEUTRAL
    }

    /// The values of the labels of these histograms for one kind of outcome, in the order of
    /// [`DurationFamilies::labels`]. Values have to be from closed sets: each set of values is a series.
    fn label_values<'a>(&self, call: &CallLabels<'a>) -> Vec<Cow<'a, str>> {
        call.neutral(self.name())
    }

    /// Does this verdict count as an error of the server, in its metrics and spans?
    fn is_server_error(&self, verdict: &Verdict) -> bool {
        use Code::{DataLoss, DeadlineExceeded, Internal, Unavailable, Unimplemented, Unknown};
        matches!(verdict.code, Unknown | DeadlineExceeded | Unimplemented | Internal | Unavailable | DataLoss)
    }
}

/// What a failing answer says about trying again (`Retry-After`, `grpc-retry-pushback-ms`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// Nothing.
    None,
    /// Not before this has passed.
    After(Duration),
    /// Not at all.
    Never,
}
