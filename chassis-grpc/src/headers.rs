//! Looking for a header where there are hardly any.
use http::{HeaderMap, HeaderName, HeaderValue};

/// Up to so many headers it costs less to look at each than to hash a name.
const FEW: usize = 4;

/// The first value of `name`. Heads and trailers of answers have two or three headers, and are asked
/// for names that are not among them most of the time.
pub(crate) fn find<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    match headers.len() {
        0 => None,
        1..=FEW => headers.iter().find(|(one, _)| *one == name).map(|(_, value)| value),
        _ => headers.get(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_among_few_and_many() {
        let name = HeaderName::from_static("grpc-status");
        let mut headers = HeaderMap::new();
        for others in 0..8 {
            assert_eq!(find(&headers, &name), None, "{others}");
            let mut with = headers.clone();
            with.append(&name, HeaderValue::from_static("5"));
            with.append(&name, HeaderValue::from_static("6"));
            assert_eq!(find(&with, &name).unwrap(), "5", "{others}");
            headers.insert(HeaderName::try_from(format!("x-{others}")).unwrap(), HeaderValue::from(others));
        }
    }
}
