//! Answers of fallbacks over gRPC.
use chassis_core::{Body, layer::fallback::Answer};
use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE};
use prost::Message;

use crate::wire::{CONTENT_TYPE_GRPC, GRPC_STATUS};

/// Encodes `message` as the answer of a fallback, with its message frame and the trailers of success.
///
/// ```
/// use chassis_core::{Error, layer::fallback::{Answer, FailedCall}};
/// # use prost_types::Timestamp as Stock;
///
/// async fn none_left(_: FailedCall) -> Result<Answer, Error> {
///     Ok(chassis_grpc::answer(&Stock::default()))
/// }
/// ```
pub fn answer<M: Message>(message: &M) -> Answer {
    encoded(&message.encode_to_vec())
}

/// The same for a message that is encoded.
pub(crate) fn encoded(message: &[u8]) -> Answer {
    // A message of 4 GiB exceeds every limit; its frame cannot be written at all.
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    let frame = [&[0], &length[..], message].concat();
    let metadata = HeaderMap::from_iter([(CONTENT_TYPE, CONTENT_TYPE_GRPC)]);
    let trailers = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static("0"))]);
    Answer { status: StatusCode::OK, metadata, body: Body::with_trailers(Some(frame.into()), trailers) }
}
