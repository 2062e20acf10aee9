//! Normalizes the head of a request before any service sees it: one authority, one cookie, no
//! connection-specific fields. A head for which that is impossible, or that another parser may read
//! differently, is refused.
use std::borrow::Cow;

use chassis_core::Code;
use http::{
    HeaderValue, Method, Response, StatusCode, Version,
    header::{CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE},
    request::Parts,
    uri::{Authority, Scheme},
};

use super::body::ServerBody;
use crate::{h2::refusal, hop};

/// The reason why a request is not served.
#[derive(Debug, PartialEq)]
pub(crate) struct Refused {
    status: StatusCode,
    words: Cow<'static, str>,
}

// === impl Refused ===

impl Refused {
    fn malformed(words: &'static str) -> Self {
        Refused { status: StatusCode::BAD_REQUEST, words: Cow::Borrowed(words) }
    }

    fn unknown(words: impl Into<Cow<'static, str>>) -> Self {
        Refused { status: StatusCode::NOT_IMPLEMENTED, words: words.into() }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn words(&self) -> &str {
        &self.words
    }

    /// The response in the form of HTTP or gRPC. Over HTTP/1.1 the connection ends with it: a proxy that reads
    /// this head differently may also read further requests after it differently.
    pub(crate) fn into_response(self, is_grpc: bool) -> Response<ServerBody> {
        let code = match self.status {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Code::ResourceExhausted,
            // As in gRPC's table.
            StatusCode::BAD_REQUEST => Code::Internal,
            _ => Code::Unimplemented,
        };
        let mut response = refusal(self.status, code.number(), self.words.into_owned(), is_grpc);
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

/// The limit of hyper over HTTP/1.1; each part of a cookie counts.
const MAX_FIELDS: usize = 100;
const SWITCH: &str = "this server does not switch to another protocol: it speaks HTTP/1.1 and HTTP/2";

/// The response in place of a handler's 1xx: a switch to another protocol is not supported here.
pub(crate) fn switches_no_protocol() -> Response<ServerBody> {
    Refused::unknown(SWITCH).into_response(false)
}

/// Normalizes a head that arrived over HTTP/1.1.
pub(crate) fn tidy_h1(head: &mut Parts) -> Result<(), Refused> {
    let (mut hosts, mut is_plain) = (0, true);
    for (name, value) in &head.headers {
        match name.as_str() {
            "host" => {
                hosts += 1;
                is_plain &= hop::is_host(value.as_bytes());
            }
            name => is_plain &= !hop::is_field(name),
        }
    }
    let is_repeated = head.headers.len() > head.headers.keys_len();
    match is_plain && hosts == 1 && !is_repeated && head.uri.authority().is_none() {
        true => Ok(()),
        false => tidy_odd_h1(head),
    }
}

/// Normalizes a head that arrived over HTTP/2, perhaps with a `Host`. h2 itself refuses connection-specific
/// fields.
pub(crate) fn tidy_h2(head: &mut Parts, has_host: bool) -> Result<(), Refused> {
    let is_repeated = head.headers.len() > head.headers.keys_len();
    let has_user = head.uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    let is_odd = is_repeated || has_user || has_host || head.headers.len() > MAX_FIELDS;
    match is_odd || head.method == Method::CONNECT {
        true => tidy_odd_h2(head),
        false => Ok(()),
    }
}

#[cold]
fn tidy_odd_h1(head: &mut Parts) -> Result<(), Refused> {
    refuse_codings(head)?;
    refuse_tunnels(head)?;
    refuse_hosts(head, head.version > Version::HTTP_10)?;
    let is_switch = hop::has_token(&head.headers, &CONNECTION, "upgrade");
    if is_switch && hop::has_token(&head.headers, &UPGRADE, "websocket") {
        return Err(Refused::unknown("WebSocket is not spoken here; ask without `Upgrade: websocket`"));
    }
    // A request with an absolute URI is for its authority, whatever `Host` contains (RFC 9112, 3.2.2).
    if let Some(authority) = head.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        head.headers.insert(HOST, host);
    }
    hop::strip_h1(&mut head.headers);
    hop::merge(&mut head.headers);
    Ok(())
}

#[cold]
fn tidy_odd_h2(head: &mut Parts) -> Result<(), Refused> {
    if head.headers.len() > MAX_FIELDS {
        let words =
            format!("the request has {} header fields, and may have {MAX_FIELDS}", head.headers.len());
        return Err(Refused { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, words: words.into() });
    }
    refuse_tunnels(head)?;
    refuse_hosts(head, false)?;
    if let (Some(host), Some(authority)) = (head.headers.get(HOST), head.uri.authority())
        && !is_same(host.as_bytes(), authority, head.uri.scheme())
    {
        return Err(Refused::malformed("`host` and `:authority` differ"));
    }
    hop::merge(&mut head.headers);
    Ok(())
}

/// A proxy that supports another coding than this server would see other requests.
fn refuse_codings(head: &Parts) -> Result<(), Refused> {
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let codings = || hop::tokens(&head.headers, &TRANSFER_ENCODING);
    if codings().filter(|coding| is_chunked(coding)).count() > 1 {
        return Err(Refused::malformed("`Transfer-Encoding` has `chunked` more than once"));
    }
    match codings().find(|coding| !is_chunked(coding)) {
        Some(coding) => {
            let coding = String::from_utf8_lossy(coding);
            Err(Refused::unknown(format!("the transfer coding `{coding}` is not known here; `chunked` is")))
        }
        None => Ok(()),
    }
}

fn refuse_tunnels(head: &Parts) -> Result<(), Refused> {
    match head.method == Method::CONNECT {
        true => Err(Refused::unknown("this server opens no tunnels: CONNECT is not served")),
        false => Ok(()),
    }
}

fn refuse_hosts(head: &Parts, needs_host: bool) -> Result<(), Refused> {
    let mut hosts = head.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => return Err(Refused::malformed("the request has more than one `Host`")),
        (Some(host), None) if !hop::is_host(host.as_bytes()) => {
            return Err(Refused::malformed("`Host` is no host, with or without a port"));
        }
        (None, _) if needs_host => return Err(Refused::malformed("the request has no `Host`")),
        _ => {}
    }
    match head.uri.authority().is_none_or(|authority| hop::is_host(authority.as_str().as_bytes())) {
        true => Ok(()),
        false => Err(Refused::malformed("the URI's authority is no host, with or without a port")),
    }
}

/// Compares without regard to case, and to the default port of the scheme.
fn is_same(host: &[u8], authority: &Authority, scheme: Option<&Scheme>) -> bool {
    let port: &[u8] = if scheme == Some(&Scheme::HTTPS) { b":443" } else { b":80" };
    let bare = |host| <[u8]>::strip_suffix(host, port).unwrap_or(host).to_ascii_lowercase();
    bare(host) == bare(authority.as_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn tidy_any_h2(head: &mut Parts) -> Result<(), Refused> {
        let has_host = head.headers.contains_key(HOST);
        tidy_h2(head, has_host)
    }

    type Tidy = fn(&mut Parts) -> Result<(), Refused>;

    fn head(uri: &str, version: Version, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri).version(version);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[track_caller]
    fn check(tidy: Tidy, mut head: Parts, expected: Result<&[(&str, &str)], u16>) {
        let tidied = tidy(&mut head).map_err(|refused| refused.status.as_u16());
        let mut left: Vec<_> = head.headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        left.sort_unstable();
        assert_eq!(tidied.map(|()| &left[..]), expected);
    }

    #[test]
    fn heads_of_http1() {
        let h1 = |fields, expected| check(tidy_h1, head("/x", Version::HTTP_11, fields), expected);
        h1(&[("host", "x")], Ok(&[("host", "x")]));
        h1(&[], Err(400));
        h1(&[("host", "x"), ("host", "x")], Err(400));
        h1(&[("host", "")], Err(400));
        h1(&[("host", "user@x")], Err(400));
        h1(&[("host", "x"), ("transfer-encoding", "chunked")], Ok(&[("host", "x")]));
        h1(&[("host", "x"), ("transfer-encoding", "gzip, chunked")], Err(501));
        h1(&[("host", "x"), ("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")], Err(501));
        h1(&[("host", "x"), ("transfer-encoding", "chunked,Chunked")], Err(400));
        h1(&[("host", "x"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], Err(400));
        h1(&[("host", "x"), ("connection", "Upgrade"), ("upgrade", "WebSocket")], Err(501));
        h1(&[("host", "x"), ("upgrade", "websocket")], Ok(&[("host", "x")]));
        let h2c =
            [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABk")];
        let h2c = [&[("host", "x")], &h2c[..]].concat();
        check(tidy_h1, head("/x", Version::HTTP_11, &h2c), Ok(&[("host", "x")]));
        h1(
            &[("cookie", "a=1"), ("host", "x"), ("cookie", "b=2")],
            Ok(&[("cookie", "a=1; b=2"), ("host", "x")]),
        );
        check(tidy_h1, head("/x", Version::HTTP_10, &[]), Ok(&[]));
        check(tidy_h1, head("/x", Version::HTTP_10, &[("host", "x"), ("host", "y")]), Err(400));
        let whole = head("http://elsewhere/x", Version::HTTP_11, &[("host", "x")]);
        check(tidy_h1, whole, Ok(&[("host", "elsewhere")]));
        check(tidy_h1, head("http://u@elsewhere/x", Version::HTTP_11, &[("host", "x")]), Err(400));
        let mut tunnel = head("elsewhere:443", Version::HTTP_11, &[("host", "elsewhere:443")]);
        tunnel.method = Method::CONNECT;
        check(tidy_h1, tunnel, Err(501));
    }

    #[test]
    fn grpc_has_codes_for_it() {
        for (refused, status, code) in
            [(Refused::malformed("no"), 400, "13"), (Refused::unknown("no"), 200, "12")]
        {
            let response = refused.into_response(true);
            assert_eq!(
                (response.status().as_u16(), &response.headers()["grpc-status"]),
                (status, &code.parse().unwrap())
            );
        }
    }

    #[test]
    fn heads_of_http2() {
        let h2 = |fields, expected| {
            check(tidy_any_h2, head("http://Shop.example/x", Version::HTTP_2, fields), expected)
        };
        h2(&[("te", "trailers")], Ok(&[("te", "trailers")]));
        h2(&[("host", "shop.Example:80")], Ok(&[("host", "shop.Example:80")]));
        h2(&[("host", "shop.example:443")], Err(400));
        h2(&[("host", "other.example")], Err(400));
        h2(&[("host", "shop.example"), ("host", "shop.example")], Err(400));
        h2(&[("host", "")], Err(400));
        let crumbs = [("cookie", "session=abc"), ("cookie", "theme=dark"), ("cookie", "lang=de")];
        h2(&crumbs, Ok(&[("cookie", "session=abc; theme=dark; lang=de")]));
        check(tidy_any_h2, head("http://u@x/x", Version::HTTP_2, &[]), Err(400));
        check(tidy_any_h2, head("/x", Version::HTTP_2, &[]), Ok(&[]));
        check(tidy_any_h2, head("/x", Version::HTTP_2, &[("host", "x")]), Ok(&[("host", "x")]));
    }
}
