//! Answers in place of failed calls.
use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE};

use super::Body;

/// An answer in place of a failed call.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status; 200 for gRPC.
    pub status: StatusCode,
    /// HTTP headers or gRPC metadata.
    pub metadata: HeaderMap,
    /// The body, framed as the protocol of the call frames it; for gRPC with trailers.
    pub body: Body,
}

/// An answer as the settings write it. A protocol reads the keys that it has a meaning for
/// ([`Protocol::fixed_answer`](crate::protocol::Protocol::fixed_answer)); `None` where a key is not written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FixedAnswer {
    /// The number of a status, 200 to 599.
    pub status: Option<u16>,
    /// The media type of `body`.
    pub content_type: Option<String>,
    /// A body that is text.
    pub body: Option<String>,
    /// A message, in the protocol's own form as text.
    pub message: Option<String>,
}

/// A key of a [`FixedAnswer`] whose value a protocol cannot answer with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidAnswer {
    /// The key: `status`, `content_type`, `body` or `message`.
    pub key: &'static str,
    /// Why it is refused, as a sentence without a full stop.
    pub message: String,
}

/// The media type of a body where the settings name none.
const DEFAULT_CONTENT_TYPE: &str = "application/json";

// === impl FixedAnswer ===

impl FixedAnswer {
    /// The answer of a protocol whose bodies are plain bytes: `status` (default 200), `content_type` (default
    /// `application/json`) and the bytes of `body` (default none).
    ///
    /// # Errors
    /// A status outside of 200 to 599; a content type that cannot be the value of a header.
    pub fn plain(&self) -> Result<Answer, InvalidAnswer> {
        let status = self.status.unwrap_or(200);
        let Some(status) =
            StatusCode::from_u16(status).ok().filter(|status| (200..600).contains(&status.as_u16()))
        else {
            return Err(InvalidAnswer::new("status", format!("{status} is no HTTP status to answer with")));
        };
        let written = self.content_type.as_deref().unwrap_or(DEFAULT_CONTENT_TYPE);
        let Ok(content_type) = HeaderValue::from_str(written) else {
            let message = format!("{written:?} can't be the value of a header");
            return Err(InvalidAnswer::new("content_type", message));
        };
        let metadata = HeaderMap::from_iter([(CONTENT_TYPE, content_type)]);
        Ok(Answer { status, metadata, body: Body::full(self.body.clone().unwrap_or_default()) })
    }
}

// === impl InvalidAnswer ===

impl InvalidAnswer {
    /// The value of `key` is refused with `message`.
    pub fn new(key: &'static str, message: impl Into<String>) -> Self {
        InvalidAnswer { key, message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_answer_has_the_written_words_and_defaults() {
        let answer = FixedAnswer::default().plain().unwrap();
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.metadata[CONTENT_TYPE], DEFAULT_CONTENT_TYPE);
        let written = FixedAnswer { status: Some(599), ..FixedAnswer::default() };
        assert_eq!(written.plain().unwrap().status.as_u16(), 599);
    }

    #[test]
    fn a_plain_answer_refuses_values_that_no_head_can_have() {
        for status in [0, 99, 199, 600, 1000] {
            let written = FixedAnswer { status: Some(status), ..FixedAnswer::default() };
            assert_eq!(written.plain().unwrap_err().key, "status", "{status}");
        }
        let written = FixedAnswer { content_type: Some("text/\nplain".to_owned()), ..FixedAnswer::default() };
        assert_eq!(written.plain().unwrap_err().key, "content_type");
    }
}
