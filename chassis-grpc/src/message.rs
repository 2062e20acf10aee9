//! Messages in a body: each has a prefix of five bytes, a flag and its length. A message that is too long is
//! refused by its prefix, before any of it is buffered.
//!
//! tonic's codec checks the length too. But for this error, and for a request without a message, it uses
//! other codes than gRPC's `doc/statuscodes.md`; [`correct`] replaces them.
use bytes::Bytes;
use chassis_core::wire::find;
use http::{HeaderMap, HeaderValue};
use tonic::Code;

use crate::{
    protocol::percent_decode,
    wire::{GRPC_MESSAGE, GRPC_STATUS},
};

/// The limit of tonic and of most implementations: 4 MiB.
pub(crate) const MAX_MESSAGE: usize = 4 * 1024 * 1024;

const PREFIX: usize = 5;

/// Follows the lengths of a body's messages through its frames. A frame may end anywhere in a message.
#[derive(Debug)]
pub(crate) struct Lengths {
    limit: usize,
    /// Remaining bytes of the current message.
    left: usize,
    /// The part of a prefix that earlier frames contained.
    begun: [u8; PREFIX],
    begun_len: usize,
}

/// A message that is longer than the limit.
#[derive(Debug, PartialEq)]
pub(crate) struct TooLong {
    /// Bytes of the frame that belong to earlier messages.
    pub(crate) before: usize,
    pub(crate) length: usize,
}

/// tonic's message, its code, and the code that gRPC specifies.
const CORRECTIONS: [(&str, Code, Code); 3] = [
    ("Error, decoded message length too large", Code::OutOfRange, Code::ResourceExhausted),
    ("Error, encoded message length too large", Code::OutOfRange, Code::ResourceExhausted),
    ("Missing request message.", Code::Internal, Code::Unimplemented),
];

// === impl Lengths ===

impl Lengths {
    /// Accepts messages of up to `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Lengths { limit, left: 0, begun: [0; PREFIX], begun_len: 0 }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Checks the next bytes of the body.
    pub(crate) fn check(&mut self, data: &Bytes) -> Result<(), TooLong> {
        let mut rest = &data[..];
        loop {
            let skipped = self.left.min(rest.len());
            self.left -= skipped;
            rest = &rest[skipped..];
            if rest.is_empty() {
                return Ok(());
            }
            let before = data.len() - rest.len();
            let taken = rest.len().min(PREFIX - self.begun_len);
            self.begun[self.begun_len..self.begun_len + taken].copy_from_slice(&rest[..taken]);
            self.begun_len += taken;
            rest = &rest[taken..];
            if self.begun_len < PREFIX {
                return Ok(());
            }
            self.begun_len = 0;
            let [_, length @ ..] = self.begun;
            // No platform has a smaller `usize`; a length beyond it would be too long in any case.
            let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
            if length > self.limit {
                return Err(TooLong { before, length });
            }
            self.left = length;
        }
    }
}

// === tonic's codes ===

/// Corrects the code of a head or of trailers that tonic's codec set.
pub(crate) fn correct(metadata: &mut HeaderMap) {
    // A status of tonic's codec has a message beside it, which most answers lack.
    if metadata.len() > 1
        && let Some(status) = find(metadata, &GRPC_STATUS)
        && matches!(status.as_bytes(), b"11" | b"13")
    {
        correct_code(metadata);
    }
}

/// The code that gRPC specifies for a status of tonic's codec.
pub(crate) fn corrected(code: Code, message: &str) -> Code {
    let found = CORRECTIONS.iter().find(|(words, wrong, _)| *wrong == code && message.starts_with(words));
    found.map_or(code, |(_, _, right)| *right)
}

#[cold]
fn correct_code(metadata: &mut HeaderMap) {
    let (Some(status), Some(message)) = (metadata.get(GRPC_STATUS), metadata.get(GRPC_MESSAGE)) else {
        return;
    };
    let right = corrected(Code::from_bytes(status.as_bytes()), &percent_decode(message.as_bytes()));
    metadata.insert(GRPC_STATUS, HeaderValue::from(i32::from(right)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tonic::Status;

    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let prefix = u32::try_from(length).unwrap().to_be_bytes();
        [&[0], &prefix[..], &vec![7; length]].concat()
    }

    /// Checks a body of these messages, cut into frames of `size` bytes. Returns how many bytes were
    /// accepted.
    fn passed(lengths: &[usize], limit: usize, size: usize) -> Result<usize, (usize, usize)> {
        let body: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
        let mut checked = Lengths::new(limit);
        let mut passed = 0;
        for frame in body.chunks(size) {
            match checked.check(&Bytes::copy_from_slice(frame)) {
                Ok(()) => passed += frame.len(),
                Err(beyond) => return Err((passed + beyond.before, beyond.length)),
            }
        }
        Ok(passed)
    }

    #[test]
    fn the_limit_itself_passes() {
        assert_eq!(passed(&[10], 10, 100), Ok(15));
        assert_eq!(passed(&[11], 10, 100), Err((0, 11)));
        assert_eq!(passed(&[0, 0], 0, 100), Ok(10));
        assert_eq!(passed(&[1], 0, 100), Err((0, 1)));
    }

    #[test]
    fn what_came_before_the_long_one_passes() {
        assert_eq!(passed(&[3, 0, 10, 11, 1], 10, 100), Err((28, 11)));
    }

    #[test]
    fn four_gigabytes_are_too_long() {
        let mut checked = Lengths::new(MAX_MESSAGE);
        let said = checked.check(&Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]));
        assert_eq!(said, Err(TooLong { before: 0, length: 0xffff_ffff }));
    }

    proptest! {
        #[test]
        fn frames_cut_anywhere(
            lengths in proptest::collection::vec(0..40_usize, 0..8), limit in 0..40_usize, size in 1..60_usize,
        ) {
            let bytes: usize = lengths.iter().map(|length| PREFIX + length).sum();
            match lengths.iter().position(|length| *length > limit) {
                None => prop_assert_eq!(passed(&lengths, limit, size), Ok(bytes)),
                Some(at) => {
                    let before: usize = lengths[..at].iter().map(|length| PREFIX + length).sum();
                    let (passed, length) = passed(&lengths, limit, size).unwrap_err();
                    // A prefix may have begun in the frame before, which was accepted already.
                    prop_assert!((before..before + PREFIX).contains(&passed), "{} and {}", before, passed);
                    prop_assert_eq!(length, lengths[at]);
                }
            }
        }
    }

    #[track_caller]
    fn check_correction(status: Status, right: Code) {
        let mut head = HeaderMap::new();
        status.add_header(&mut head).unwrap();
        correct(&mut head);
        assert_eq!(Status::from_header_map(&head).unwrap().code(), right, "{status:?}");
        assert_eq!(Status::from_header_map(&head).unwrap().message(), status.message());
    }

    #[test]
    fn only_what_tonic_says_is_put_right() {
        let long = "Error, decoded message length too large: found 11 bytes, the limit is: 10 bytes";
        check_correction(Status::out_of_range(long), Code::ResourceExhausted);
        check_correction(Status::internal(long), Code::Internal);
        check_correction(Status::out_of_range("page 9 of 8"), Code::OutOfRange);
        check_correction(Status::out_of_range(""), Code::OutOfRange);
        check_correction(Status::internal("Missing request message."), Code::Unimplemented);
        check_correction(Status::internal("the handler's own"), Code::Internal);
        check_correction(Status::ok(""), Code::Ok);
    }
}
