//! Names on the wire that all protocols have in common, and looking for headers in the few that a call has.
//!
//! A protocol's own names are in the `wire` of its crate.
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{FORWARDED, VIA},
};

/// Who calls, with its labels: `orders;track=stable`.
pub const CALLER: HeaderName = HeaderName::from_static("x-chassis-caller");
/// Attempts made before this one, where a protocol has no name of its own for it.
pub const ATTEMPT: HeaderName = HeaderName::from_static("x-chassis-attempt");
/// Milliseconds that remain of the deadline, where a protocol has no name of its own for it.
pub const TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");
/// The trace, and the span that calls.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Further tracers' words on the trace.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// What applications want handed on, with a trace or without one.
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// What proxies write of themselves. Not all of them name the client: Envoy writes `x-forwarded-for` only with
/// `use_remote_address`, and nginx often gets `x-real-ip` in its place.
pub(crate) const FORWARDED_BY: [HeaderName; 7] = [
    VIA,
    FORWARDED,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms"),
];

/// Longer baggage and trace state are not handed on: W3C's bound, so that no caller makes us carry more.
pub(crate) const LONGEST_CARRIED: usize = 8192;

/// With more names than these, hashing one is quicker than comparing some.
const FEW: usize = 16;

/// The first value of `name`.
pub fn find<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    match headers.keys_len() {
        // Mostly it is not there, which the names tell sooner than names and values do.
        0..=FEW if !contains(headers, name) => None,
        0..=FEW => headers.iter().find(|(key, _)| *key == name).map(|(_, value)| value),
        _ => headers.get(name),
    }
}

/// Is there one of this name?
#[inline]
pub fn contains(headers: &HeaderMap, name: &HeaderName) -> bool {
    match headers.keys_len() {
        0..=FEW => headers.keys().any(|key| key == name),
        _ => headers.contains_key(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_there_among_few_and_many() {
        for count in [0, 1, FEW - 1, FEW, FEW + 1, 100] {
            let mut headers = HeaderMap::new();
            for i in 0..count {
                headers.insert(HeaderName::try_from(format!("x-{i}")).unwrap(), HeaderValue::from(i));
            }
            let name = HeaderName::from_static("traceparent");
            assert!(!contains(&headers, &name) && find(&headers, &name).is_none());
            headers.append(&name, HeaderValue::from_static("first"));
            headers.append(&name, HeaderValue::from_static("second"));
            assert!(contains(&headers, &name));
            assert_eq!(find(&headers, &name).unwrap(), "first");
        }
    }
}
