//! The forms of an answer that a request accepts (RFC 9110, chapter 12.5).
use http::{
    HeaderMap, HeaderName,
    header::{ACCEPT, ACCEPT_ENCODING},
};

/// The form of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exposition {
    /// Prometheus' text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

// === impl Exposition ===

impl Exposition {
    /// OpenMetrics, if the request names it and does not prefer text. Without any acceptable form it is text.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let (mut open, mut text) = (0.0, 0.0);
        for range in ranges(headers, &ACCEPT) {
            let version = range.parameter("version");
            match range.name {
                "application/openmetrics-text" if version.is_none_or(|it| it == "1.0.0") => {
                    open = range.weight.max(open);
                }
                "text/plain" if version.is_none_or(|it| it == "0.0.4") => text = range.weight.max(text),
                _ => {}
            }
        }
        match open > 0.0 && open >= text {
            true => Exposition::OpenMetrics,
            false => Exposition::Text,
        }
    }
}

/// Whether the request names JSON.
pub(crate) fn wants_json(headers: &HeaderMap) -> bool {
    let weight = |names: &[&str]| {
        let of = ranges(headers, &ACCEPT).filter(|range| names.contains(&range.name));
        of.fold(0.0, |most: f32, range| range.weight.max(most))
    };
    let json = weight(&["application/json"]);
    json > 0.0 && json >= weight(&["text/plain", "text/*"])
}

/// Whether an answer may be compressed by gzip.
pub(crate) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let weight =
        |name: &str| ranges(headers, &ACCEPT_ENCODING).find(|it| it.name == name).map(|it| it.weight);
    weight("gzip").or_else(|| weight("*")).is_some_and(|weight| weight > 0.0)
}

/// One form that is accepted.
struct Range<'a> {
    name: &'a str,
    parameters: &'a str,
    /// From 0 to 1.
    weight: f32,
}

// === impl Range ===

impl<'a> Range<'a> {
    fn of(text: &'a str) -> Self {
        let (name, parameters) = text.split_once(';').unwrap_or((text, ""));
        let range = Range { name: name.trim(), parameters, weight: 1.0 };
        let weight = range.parameter("q").map_or(1.0, |q| q.parse().unwrap_or(0.0));
        Range { weight, ..range }
    }

    fn parameter(&self, name: &str) -> Option<&'a str> {
        let mut all = self.parameters.split(';').filter_map(|one| one.split_once('='));
        all.find(|(key, _)| key.trim().eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().trim_matches('"'))
    }
}

fn ranges<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = Range<'a>> {
    let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(Range::of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[track_caller]
    fn check(accept: &str, expected: Exposition) {
        assert_eq!(Exposition::of(&headers(ACCEPT, accept)), expected, "{accept}");
    }

    #[test]
    fn open_metrics_is_negotiated() {
        use Exposition::*;
        assert_eq!(Exposition::of(&HeaderMap::new()), Text);
        // As Prometheus 3 and 2 ask.
        check(
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            OpenMetrics,
        );
        check(
            "application/openmetrics-text; version=1.0.0, text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            OpenMetrics,
        );
        check("text/plain;version=0.0.4;q=0.9,application/openmetrics-text;version=1.0.0;q=0.1", Text);
        check("application/openmetrics-text", OpenMetrics);
        check("application/openmetrics-text;q=0", Text);
        check("application/openmetrics-text;q=many", Text);
        check("application/openmetrics-text; version=\"0.0.1\"", Text);
        check("*/*", Text);
        check("application/json", Text);
        check(";;;,,q=,=;", Text);
    }

    #[test]
    fn gzip_is_negotiated() {
        for (value, expected) in [
            ("gzip", true),
            ("deflate, gzip;q=1.0, *;q=0.5", true),
            ("*", true),
            ("gzip;q=0, *", false),
            ("identity", false),
            ("gzip;q=0.000", false),
        ] {
            assert_eq!(accepts_gzip(&headers(ACCEPT_ENCODING, value)), expected, "{value}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    #[test]
    fn json_is_negotiated() {
        assert!(wants_json(&headers(ACCEPT, "application/json")));
        assert!(!wants_json(&headers(ACCEPT, "*/*")));
        assert!(!wants_json(&headers(ACCEPT, "text/plain, application/json;q=0.5")));
    }
}
