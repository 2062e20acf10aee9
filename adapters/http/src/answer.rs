//! Reads an answer: a document, no change, or why it is neither. Plain functions.
use std::time::Duration;

use chassis_core::{
    adapter::format_of,
    config::{Format, Text},
};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE, DATE, ETAG, LAST_MODIFIED, LOCATION, RETRY_AFTER},
};

use crate::url::Url;

/// A document with its version.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) text: Text,
    /// The `etag` to ask with for a later version; `None` if there is none that can be trusted.
    pub(crate) etag: Option<HeaderValue>,
}

/// Why there is no document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// For a reader: never with a secret.
    pub(crate) why: String,
    /// Did the server answer, so that it is not to be asked again at once?
    pub(crate) is_answer: bool,
    /// The time that the server asks to be left alone.
    pub(crate) retry_after: Option<Duration>,
}

/// The longest document, which is the longest one that is parsed.
pub(crate) const MAX_BODY: usize = 4 << 20;
/// The bytes of an error's text, or of a header, that are shown.
const MAX_WORDS: usize = 200;
/// A longer pause is not obeyed.
const LONGEST_RETRY_AFTER: u64 = 60;
/// A file that was modified less than this before an answer may change again within the precision of its `etag`, which
/// is a second at file servers: nginx makes it of the time and the length.
const SETTLED: Duration = Duration::from_secs(2);

// === impl Document ===

impl Document {
    /// The document in an answer with the status 200.
    ///
    /// # Errors
    /// The answer is no document, for example a page of a proxy.
    pub(crate) fn read(url: &Url, headers: &HeaderMap, body: &[u8]) -> Result<Self, Failure> {
        let encoding = header(headers, CONTENT_ENCODING.as_str()).filter(|it| *it != "identity");
        if let Some(encoding) = encoding {
            return Err(Failure::answer(format!("the answer is compressed ({}) unasked", shown(encoding))));
        }
        let format = match header(headers, CONTENT_TYPE.as_str()) {
            Some(kind) => format(kind).map_err(Failure::answer)?,
            None => None,
        };
        let etag = headers.get(ETAG);
        let revision = etag.and_then(|etag| etag.to_str().ok()).map(|etag| {
            let etag = etag.strip_prefix("W/").unwrap_or(etag);
            shown(etag.trim_matches('"'))
        });
        let text = text(url, format, body.to_vec(), revision)?;
        Ok(Document { text, etag: etag.filter(|_| is_settled(headers)).cloned() })
    }
}

/// The text of a document, unless it is empty, too long, no text, or a web page.
pub(crate) fn text(
    url: &Url,
    format: Option<Format>,
    content: Vec<u8>,
    revision: Option<String>,
) -> Result<Text, Failure> {
    if content.len() > MAX_BODY {
        return Err(Failure::answer(format!("the document has more than {MAX_BODY} bytes")));
    }
    let content = String::from_utf8(content)
        .map_err(|_| Failure::answer("the document is no text in UTF-8".to_owned()))?;
    let start = content.trim_start();
    if start.is_empty() {
        return Err(Failure::answer("the document is empty; one without settings is `{}`".to_owned()));
    }
    // No language of settings has it, but for a merge key of YAML.
    if start.starts_with('<') && !start.starts_with("<<") {
        return Err(Failure::answer("the answer is a page in HTML or XML, and no document".to_owned()));
    }
    let origin = match &revision {
        Some(revision) => format!("{}@{revision}", url.text),
        None => url.text.clone(),
    };
    let format = format.unwrap_or_else(|| format_of(url.path.path()));
    Ok(Text { content, format, origin, revision })
}

/// The format that a content type names; `None` if it may be any text.
pub(crate) fn format(content_type: &str) -> Result<Option<Format>, String> {
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let (top, sub) = kind.split_once('/').unwrap_or((&kind, ""));
    let sub = sub.strip_prefix("x-").unwrap_or(sub);
    let sub = sub.rsplit_once('+').map_or(sub, |(_, suffix)| suffix);
    match (top, sub) {
        ("application" | "text", "json") => Ok(Some(Format::Json)),
        ("application" | "text", "yaml" | "yml") => Ok(Some(Format::Yaml)),
        ("application" | "text", "toml") => Ok(Some(Format::Toml)),
        (_, "html" | "xml") => Err(format!("the answer is a page ({}), and no document", shown(&kind))),
        ("text", _) | ("application" | "binary", "octet-stream") => Ok(None),
        _ => Err(format!("the content type `{}` is none of settings", shown(&kind))),
    }
}

/// May the `etag` be trusted? RFC 9110, 8.8.2.2, with a second more for clocks of files.
fn is_settled(headers: &HeaderMap) -> bool {
    let time = |name: &str| httpdate::parse_http_date(header(headers, name)?).ok();
    let (Some(modified), Some(now)) = (time(LAST_MODIFIED.as_str()), time(DATE.as_str())) else {
        return true;
    };
    now.duration_since(modified).is_ok_and(|age| age >= SETTLED)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The beginning of a foreign text, for a message.
fn shown(text: &str) -> String {
    text.chars().take(MAX_WORDS).collect::<String>().trim().escape_debug().to_string()
}

// === impl Failure ===

impl Failure {
    /// There was no answer.
    pub(crate) fn silence(why: String) -> Self {
        Failure { why, is_answer: false, retry_after: None }
    }

    /// The server has answered, and this is wrong with it.
    pub(crate) fn answer(why: String) -> Self {
        Failure { why, is_answer: true, retry_after: None }
    }

    /// An answer with another status than 200.
    pub(crate) fn status(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let number = status.as_u16();
        let why = match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => format!("there is no document ({number})"),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                format!("it does not let this process read the document ({number})")
            }
            StatusCode::NOT_MODIFIED => "it answers 304 to a request without `if-none-match`".to_owned(),
            _ if status.is_redirection() => match header(headers, LOCATION.as_str()) {
                Some(location) => format!(
                    "it redirects ({number}) to {}; redirects are not followed: set the final URL",
                    shown(location.split(['?', '#']).next().unwrap_or_default())
                ),
                None => format!("it answers {number}"),
            },
            _ => {
                let is_page = header(headers, CONTENT_TYPE.as_str()).is_some_and(|it| it.contains("html"));
                let words = shown(&String::from_utf8_lossy(&body[..body.len().min(4 * MAX_WORDS)]));
                match is_page || words.is_empty() {
                    true => format!("it answers {number}"),
                    false => format!("it answers {number}: {words}"),
                }
            }
        };
        let seconds: Option<u64> = header(headers, RETRY_AFTER.as_str()).and_then(|it| it.parse().ok());
        let retry_after = seconds.map(|seconds| Duration::from_secs(seconds.min(LONGEST_RETRY_AFTER)));
        Failure { why, is_answer: true, retry_after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn read(path: &str, all: &[(&'static str, &str)], body: &str) -> Result<Document, String> {
        let url = Url::parse(&format!("http://a{path}"), None).unwrap();
        Document::read(&url, &headers(all), body.as_bytes()).map_err(|failure| failure.why)
    }

    #[test]
    fn the_format_is_that_of_the_content_type_or_of_the_ending() {
        for (path, kind, expected) in [
            ("/x", "application/json", Format::Json),
            ("/x.yaml", "application/vnd.shop+json; charset=utf-8", Format::Json),
            ("/x", "application/x-yaml", Format::Yaml),
            ("/x.json", "text/yaml", Format::Yaml),
            ("/x", "Application/TOML", Format::Toml),
            ("/x.toml", "text/plain", Format::Toml),
            ("/x.toml?v=1", "application/octet-stream", Format::Toml),
            ("/x.json", "binary/octet-stream", Format::Json),
            ("/x", "text/plain; charset=utf-8", Format::Yaml),
        ] {
            let read = read(path, &[("content-type", kind)], "a: 1").unwrap();
            assert_eq!(read.text.format, expected, "{path} {kind}");
        }
        assert_eq!(read("/x.toml", &[], "a = 1").unwrap().text.format, Format::Toml);
    }

    #[test]
    fn what_is_no_document_is_refused() {
        let html = [("content-type", "text/html")];
        for (all, body, why) in [
            (&html[..], "a: 1", "a page (text/html)"),
            (&[("content-type", "application/xhtml+xml")], "a: 1", "a page"),
            (&[("content-type", "image/png")], "a: 1", "`image/png`"),
            (&[("content-encoding", "gzip")], "a: 1", "compressed (gzip)"),
            (&[("content-type", "text/plain")], " \n<!DOCTYPE html><html>", "a page in HTML"),
            (&[], "", "is empty"),
            (&[], " \n", "is empty"),
        ] {
            let error = read("/x", all, body).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(read("/x", &[], "<<: { a: 1 }").is_ok());
        let url = Url::parse("http://a/x", None).unwrap();
        assert!(text(&url, None, vec![b'a', 0xff], None).is_err());
        assert!(text(&url, None, vec![b'a'; MAX_BODY + 1], None).is_err());
        assert!(text(&url, None, vec![b'a'; MAX_BODY], None).is_ok());
    }

    #[test]
    fn a_text_names_its_url_and_etag() {
        let found = read("/x.yaml", &[("etag", "W/\"12-a\"")], "a: 1").unwrap();
        assert_eq!(found.text.origin, "http://a/x.yaml@12-a");
        assert_eq!(found.text.revision.as_deref(), Some("12-a"));
        assert_eq!(found.etag.unwrap(), "W/\"12-a\"");
        let found = read("/x.yaml", &[], "a: 1").unwrap();
        assert_eq!((found.text.origin.as_str(), found.text.revision), ("http://a/x.yaml", None));
    }

    #[test]
    fn an_etag_of_a_file_that_was_just_written_is_not_trusted() {
        let of = |modified, date| {
            let all = [("etag", "\"1\""), ("last-modified", modified), ("date", date)];
            read("/x", &all, "a: 1").unwrap().etag.is_some()
        };
        assert!(!of("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 GMT"));
        assert!(!of("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:38 GMT"));
        assert!(of("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:39 GMT"));
        assert!(!of("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:30 GMT"));
        assert!(of("yesterday", "Sun, 06 Nov 1994 08:49:37 GMT"));
    }

    #[test]
    fn a_status_is_explained() {
        let of = |status: u16, all: &[(&'static str, &str)], body: &str| {
            Failure::status(StatusCode::from_u16(status).unwrap(), &headers(all), body.as_bytes())
        };
        assert_eq!(of(404, &[], "x").why, "there is no document (404)");
        assert!(of(401, &[], "").why.contains("(401)"));
        let moved = of(302, &[("location", "https://login/?secret=1")], "").why;
        assert!(moved.contains("to https://login/;") && !moved.contains("secret"), "{moved}");
        assert_eq!(of(500, &[], "a\nb").why, "it answers 500: a\\nb");
        assert_eq!(of(502, &[("content-type", "text/html")], "<html>").why, "it answers 502");
        assert_eq!(of(503, &[("retry-after", "7")], "").retry_after, Some(Duration::from_secs(7)));
        assert_eq!(of(503, &[("retry-after", "9999")], "").retry_after, Some(Duration::from_secs(60)));
        assert!(of(500, &[], &"x".repeat(10_000)).why.len() < 300);
    }
}
