//! The size of a header list, by HTTP/2's count, and how a list is kept within its reader's limit.
//!
//! A list that is too large fails its own call and no other: this side reads more than it allows, so that h2
//! does not close the connection, and writes no more than the peer allows.
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use crate::{
    hop,
    wire::{GRPC_DETAILS, GRPC_MESSAGE, GRPC_STATUS},
};

/// Bytes of one list up to which only its own call fails, in any case.
const ALONE: u32 = 64 * 1024;

/// Bytes of the list that ends a gRPC answer. Most peers and proxies accept at least 8 KiB, whatever limit they
/// announce.
const MOST_OF_STATUS: usize = 8_000;

/// Bytes that each field counts in addition to its name and its value (RFC 9113, 6.5.2).
const FIELD: usize = 32;
/// The pseudo-header of an answer, `:status`.
const STATUS_LINE: usize = FIELD + ":status".len() + 3;
/// The four pseudo-headers of a request, without their values.
const REQUEST_LINE: usize = 4 * FIELD + ":method:scheme:authority:path".len();

/// Bytes of a list up to which h2 reads all fields, if `most` are allowed. Above that it omits fields; above
/// four times as much it closes the connection.
pub(crate) fn read(most: u32) -> u32 {
    most.max(ALONE).saturating_mul(2)
}

/// Encoded bytes of one list above which a client closes the connection: h2 may have omitted fields of such a
/// list silently. Encoding saves at most three eighths of a text.
pub(crate) fn most_encoded(most: u32) -> usize {
    most.max(ALONE) as usize
}

/// The size of a list without pseudo-headers, such as trailers.
pub(crate) fn size(list: &HeaderMap) -> usize {
    measure(list, |_, _| {})
}

/// The same, and passes each field to `look`, for callers that need the fields anyway.
#[inline]
pub(crate) fn measure<'a>(list: &'a HeaderMap, mut look: impl FnMut(&'a str, &'a HeaderValue)) -> usize {
    let mut size = 0;
    for (name, value) in list {
        let name = name.as_str();
        look(name, value);
        size += FIELD + name.len() + value.len();
    }
    size
}

/// The size of an answer's head whose fields have `fields` bytes.
pub(crate) fn size_of_answer(fields: usize) -> usize {
    STATUS_LINE + fields
}

/// The size of a request's head whose fields have `fields` bytes.
pub(crate) fn size_of_request(method: &Method, uri: &Uri, fields: usize) -> usize {
    let path = uri.path_and_query().map_or(1, |path| path.as_str().len());
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    let scheme = uri.scheme_str().map_or(0, str::len);
    REQUEST_LINE + method.as_str().len() + scheme + authority + path + fields
}

/// Whether a list of this size is too large for a peer that accepts `most`. h2, which many peers use, does not
/// accept a list of exactly that size.
pub(crate) fn is_too_large(size: usize, most: u32) -> bool {
    most != u32::MAX && size >= most as usize
}

/// Whether an answer's head with `fields` bytes of fields must be checked, for a peer that accepts `most`.
pub(crate) fn is_large(fields: usize, most: u32) -> bool {
    size_of_answer(fields) >= MOST_OF_STATUS.min(most as usize)
}

/// Shortens the head of an answer for a peer that accepts `most` bytes; `false` if that is impossible.
///
/// A gRPC status is shortened; other fields of a handler are never omitted from a head.
#[cold]
pub(crate) fn fit_head(head: &mut HeaderMap, most: u32) -> bool {
    if !head.contains_key(GRPC_STATUS) {
        return !is_too_large(size_of_answer(size(head)), most);
    }
    cut(head, MOST_OF_STATUS.min(most as usize).saturating_sub(STATUS_LINE + 1));
    true
}

/// Shortens trailers for a peer that accepts `most` bytes; `false` if that is impossible. Removes
/// connection-specific fields too, because h2 would fail the call for them.
pub(crate) fn fit_trailers(trailers: &mut HeaderMap, most: u32) -> bool {
    let size = hop::strip_h2(trailers);
    size < MOST_OF_STATUS.min(most as usize) || fit_large_trailers(trailers, size, most)
}

#[cold]
fn fit_large_trailers(trailers: &mut HeaderMap, size: usize, most: u32) -> bool {
    if !trailers.contains_key(GRPC_STATUS) {
        return !is_too_large(size, most);
    }
    cut(trailers, MOST_OF_STATUS.min(most as usize).saturating_sub(1));
    true
}

/// Shortens the list that ends a gRPC answer to `most` bytes: first the message, between characters; then the
/// details, as a whole; then the trailers of the handler, the largest first. The code always stays.
fn cut(list: &mut HeaderMap, most: usize) {
    let message = list.get(&GRPC_MESSAGE).map_or(0, HeaderValue::len);
    if size(list) - message > most {
        list.remove(&GRPC_DETAILS);
    }
    while size(list) - message > most {
        let Some(name) = largest(list) else { break };
        list.remove(name);
    }
    let room = most.saturating_sub(size(list) - message);
    if let Some(value) = list.get_mut(&GRPC_MESSAGE)
        && value.len() > room
    {
        let whole = value.as_bytes();
        // A part of a valid header value is valid.
        *value = HeaderValue::from_bytes(&whole[..boundary(whole, room)]).unwrap_or_else(|_| value.clone());
    }
    tracing::debug!(most, "the status of an answer was cut to what its reader takes");
}

/// The largest field that is not part of the protocol.
fn largest(list: &HeaderMap) -> Option<HeaderName> {
    let users = list.keys().filter(|name| {
        let name = name.as_str();
        !name.starts_with("grpc-") && name != "content-type" && name != "date"
    });
    let size = |name: &&HeaderName| -> usize {
        list.get_all(*name).iter().map(|value| FIELD + name.as_str().len() + value.len()).sum()
    };
    users.max_by_key(size).cloned()
}

/// The last place at or before `at` where a percent-encoded text can be cut: neither within an escape nor
/// within a multi-byte character of UTF-8.
fn boundary(text: &[u8], at: usize) -> usize {
    let (mut here, mut found) = (0, 0);
    while here <= at && here < text.len() {
        let hex = |byte: u8| char::from(byte).to_digit(16);
        let escaped = match text[here..] {
            [b'%', high, low, ..] => hex(high).zip(hex(low)).map(|(high, low)| (high * 16 + low) as u8),
            _ => None,
        };
        let (byte, length) = escaped.map_or((text[here], 1), |byte| (byte, 3));
        if byte & 0xC0 != 0x80 {
            found = here;
        }
        here += length;
    }
    if here == text.len() && here <= at { here } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(fields: &[(&'static str, String)]) -> HeaderMap {
        let value = |text: &String| HeaderValue::from_str(text).unwrap();
        fields.iter().map(|(name, text)| (HeaderName::from_static(name), value(text))).collect()
    }

    fn status(message: usize, details: usize, user: usize) -> HeaderMap {
        list(&[
            ("grpc-status", "13".into()),
            ("grpc-message", "m".repeat(message)),
            ("grpc-status-details-bin", "d".repeat(details)),
            ("x-small", "s".repeat(10)),
            ("x-user", "u".repeat(user)),
        ])
    }

    /// Compares the remaining message, details, and the two trailers of the handler.
    #[track_caller]
    fn check(mut list: HeaderMap, most: u32, expected: [Option<usize>; 4]) {
        assert!(fit_trailers(&mut list, most));
        let left = ["grpc-message", "grpc-status-details-bin", "x-small", "x-user"];
        assert_eq!(left.map(|name| list.get(name).map(HeaderValue::len)), expected);
        assert_eq!(list["grpc-status"], "13");
        assert!(size(&list) < (most as usize).min(MOST_OF_STATUS), "{}", size(&list));
    }

    /// The names, the 32 bytes of each of the five fields, and the values of the code and of `x-small`.
    const REST: usize = 5 * 32 + 11 + 12 + 23 + 7 + 6 + 2 + 10;

    #[test]
    fn first_the_message_then_the_details_then_the_largest_trailers_go() {
        let all = |message, details, user| [Some(message), Some(details), Some(10), Some(user)];
        check(status(100, 200, 300), u32::MAX, all(100, 200, 300));
        check(status(7_999 - REST, 0, 0), u32::MAX, all(7_999 - REST, 0, 0));
        check(status(17_000, 500, 500), u32::MAX, all(6_999 - REST, 500, 500));
        check(status(17_000, 500, 500), 4_000, all(2_999 - REST, 500, 500));
        let without_details = 7_999 - (REST - 55) - 500;
        check(status(17_000, 9_000, 500), u32::MAX, [Some(without_details), None, Some(10), Some(500)]);
        check(status(50, 9_000, 500), u32::MAX, [Some(50), None, Some(10), Some(500)]);
        check(status(50, 90, 9_000), u32::MAX, [Some(50), None, Some(10), None]);
        check(status(5_000, 90, 40), 151, [Some(150 - 45 - 44 - 49), None, Some(10), None]);
    }

    #[test]
    fn the_code_stays_whatever_the_peer_takes() {
        let mut trailers = status(5_000, 90, 40);
        assert!(fit_trailers(&mut trailers, 0));
        assert_eq!((&trailers["grpc-status"], trailers["grpc-message"].len()), (&"13".parse().unwrap(), 0));
    }

    #[test]
    fn what_is_no_status_is_never_cut() {
        let mut plain = list(&[("x-user", "u".repeat(9_000))]);
        assert!(fit_trailers(&mut plain, 16_384) && fit_head(&mut plain, 16_384));
        assert!(!fit_trailers(&mut plain, 9_000) && !fit_head(&mut plain, 9_000));
        assert_eq!(plain["x-user"].len(), 9_000);
    }

    #[track_caller]
    fn check_boundary(text: &str, expected: &[usize]) {
        let found: Vec<_> = (0..=text.len()).map(|at| boundary(text.as_bytes(), at)).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn cuts_between_characters() {
        check_boundary("abc", &[0, 1, 2, 3]);
        check_boundary("a%20b", &[0, 1, 1, 1, 4, 5]);
        check_boundary("%E2%82%AC!", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 10]);
        check_boundary("100%", &[0, 1, 2, 3, 4]);
        check_boundary("%zz", &[0, 1, 2, 3]);
    }

    #[test]
    fn what_is_encoded_in_few_enough_bytes_is_read_whole() {
        for most in [1, 16 << 10, 64 << 10, 1 << 20, u32::MAX / 2] {
            assert!(most_encoded(most) as u64 * 8 / 5 <= u64::from(read(most)));
            assert!(read(most) > most);
        }
    }

    #[test]
    fn counts_as_the_protocol_does() {
        let (uri, fields) = (Uri::from_static("http://stock/items"), list(&[("a", "bc".into())]));
        let counted = [(":method", "GET"), (":scheme", "http"), (":authority", "stock"), (":path", "/items")];
        let counted: usize =
            counted.iter().chain(&[("a", "bc")]).map(|(name, value)| name.len() + value.len() + 32).sum();
        assert_eq!(size_of_request(&Method::GET, &uri, size(&fields)), counted);
        assert_eq!(size_of_answer(size(&fields)), 35 + 42);
    }
}
