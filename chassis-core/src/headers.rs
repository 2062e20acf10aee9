//! Looking for headers in the few that a call has: comparing some names is quicker than hashing one.
use http::{HeaderMap, HeaderName, HeaderValue};

/// With more names than these, hashing is quicker.
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
