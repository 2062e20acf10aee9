//! Header names that all protocols share, and lookup in the few headers of a call.
//!
//! A protocol's own names are in the `wire` module of its crate.
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{FORWARDED, VIA},
};

/// The calling service, with its labels: `orders;track=stable`.
pub const CALLER: HeaderName = HeaderName::from_static("x-chassis-caller");
/// The number of attempts before this one, for protocols without a name of their own for it.
pub(crate) const ATTEMPT: HeaderName = HeaderName::from_static("x-chassis-attempt");
/// The remaining milliseconds until the deadline, for protocols without a name of their own for it.
pub const TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");
/// The trace and the calling span.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The trace state of other tracers.
pub(crate) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Entries that applications pass on, with or without a trace.
pub(crate) const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// Headers that proxies add. Not all of them name the client: Envoy writes `x-forwarded-for` only with
/// `use_remote_address`, and nginx is often configured to write `x-real-ip` instead.
pub(crate) const FORWARDED_BY: [HeaderName; 7] = [
    VIA,
    FORWARDED,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms"),
];

/// The longest baggage and trace state that are passed on: W3C's bound, so that no caller makes us carry more.
pub(crate) const LONGEST_CARRIED: usize = 8192;

/// With more names than this, hashing one is faster than comparing all.
const FEW: usize = 16;

/// The first value of `name`.
pub fn find<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    match headers.keys_len() {
        // In most cases the name does not exist, and comparing names only is faster than looking up values.
        0..=FEW if !contains(headers, name) => None,
        0..=FEW => headers.iter().find(|(key, _)| *key == name).map(|(_, value)| value),
        _ => headers.get(name),
    }
}

/// Whether a header has this name.
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
