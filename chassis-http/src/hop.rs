//! Header fields that concern one connection and end at each hop (RFC 9110, 7.6.1), and fields that occur once
//! in HTTP/1.1 but that HTTP/2 may split.
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, SET_COOKIE, TE, TRANSFER_ENCODING, UPGRADE,
        VIA,
    },
};

use crate::h2::headers;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const CLOSE: HeaderValue = HeaderValue::from_static("close");
const TRAILERS: &str = "trailers";

/// Whether `name` always concerns one connection, whatever `Connection` lists. It compares text, which is
/// faster than creating names to compare with.
#[inline]
pub(crate) fn is_field(name: &str) -> bool {
    matches!(name, "connection" | "transfer-encoding" | "upgrade" | "te" | "keep-alive" | "proxy-connection")
}

/// The same over HTTP/2, which allows `te: trailers`.
#[inline]
pub(crate) fn is_field_h2(name: &str, value: &HeaderValue) -> bool {
    is_field(name) && !(name == "te" && value == TRAILERS)
}

/// Removes such fields from headers that are sent over HTTP/2. They are rare: checking each name costs less
/// than looking up each of these. Returns the size of the list, by HTTP/2's count.
pub(crate) fn strip_h2(headers: &mut HeaderMap) -> usize {
    let mut is_odd = false;
    let size = headers::measure(headers, |name, value| is_odd |= is_field_h2(name, value));
    if is_odd {
        take_out(headers, true);
        return headers::size(headers);
    }
    size
}

/// Removes such fields from headers that are received or sent over HTTP/1.1.
pub(crate) fn strip_h1(headers: &mut HeaderMap) {
    if headers.keys().any(|name| is_field(name.as_str())) {
        take_out(headers, false);
    }
}

/// The same for a handler's answer: its request to close the connection stays, and with 426 the protocol that
/// it requires.
pub(crate) fn strip_answer(status: StatusCode, headers: &mut HeaderMap) {
    if headers.keys().any(|name| is_field(name.as_str())) {
        let closes = has_token(headers, &CONNECTION, "close");
        let upgrade = headers.get(UPGRADE).filter(|_| status == StatusCode::UPGRADE_REQUIRED).cloned();
        take_out(headers, false);
        if let Some(upgrade) = upgrade {
            headers.insert(UPGRADE, upgrade);
            headers.append(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        if closes {
            headers.append(CONNECTION, CLOSE);
        }
    }
}

/// Removes these fields, and the fields that `Connection` lists.
#[cold]
pub(crate) fn take_out(headers: &mut HeaderMap, keeps_te: bool) {
    let named = tokens(headers, &CONNECTION).filter_map(|token| HeaderName::from_bytes(token).ok());
    let named: Vec<_> = named.filter(|name| !is_protected(name)).collect();
    let te = headers.get(TE).filter(|te| keeps_te && *te == TRAILERS).cloned();
    named.iter().for_each(|name| drop(headers.remove(name)));
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE, TE, KEEP_ALIVE, PROXY_CONNECTION] {
        headers.remove(name);
    }
    te.into_iter().for_each(|te| drop(headers.insert(TE, te)));
}

/// Merges several fields into one where HTTP/1.1 and handlers expect only one: the parts of a cookie are joined
/// (RFC 9113, 8.2.3), the first host stays.
pub(crate) fn merge(headers: &mut HeaderMap) {
    // Hardly any head has a field twice, which two numbers show.
    if headers.len() > headers.keys_len() {
        merge_repeated(headers);
    }
}

#[cold]
fn merge_repeated(headers: &mut HeaderMap) {
    let crumbs: Vec<_> = headers.get_all(COOKIE).iter().collect();
    if crumbs.len() > 1 {
        let is_sensitive = crumbs.iter().any(|crumb| crumb.is_sensitive());
        let joined = crumbs.iter().map(|crumb| crumb.as_bytes()).collect::<Vec<_>>().join(&b"; "[..]);
        // Parts of valid header values form a valid one.
        if let Ok(mut cookie) = HeaderValue::from_bytes(&joined) {
            cookie.set_sensitive(is_sensitive);
            headers.insert(COOKIE, cookie);
        }
    }
    if headers.get_all(HOST).iter().count() > 1
        && let Some(host) = headers.remove(HOST)
    {
        headers.insert(HOST, host);
    }
}

/// The members of a list that may be in several fields.
pub(crate) fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let values = headers.get_all(name).iter();
    let parts = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    parts.map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// Whether `token` is one of them, in any case.
pub(crate) fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|one| one.eq_ignore_ascii_case(token.as_bytes()))
}

/// Whether `host` is valid as the authority of a request: a name or an address, an optional port, and no user
/// (RFC 9112, 3.2; RFC 9113, 8.3.1).
pub(crate) fn is_host(host: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    (!host.is_empty() && host.iter().all(is_plain)) || is_odd_host(host)
}

/// Checks a host with a port, an IPv6 address, or unusual characters.
fn is_odd_host(host: &[u8]) -> bool {
    let (name, port) = match host {
        [b'[', rest @ ..] => match rest.iter().position(|byte| *byte == b']') {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => return false,
        },
        _ => host.split_at(host.iter().position(|byte| *byte == b':').unwrap_or(host.len())),
    };
    let is_address = host.first() == Some(&b'[');
    let is_of_name = |byte: &u8| match byte {
        b':' => is_address,
        byte => byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(byte),
    };
    let is_port = match port {
        [] => true,
        [b':', digits @ ..] => digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    !name.is_empty() && name.iter().all(is_of_name) && is_port
}

/// Whether the field carries identity, origin or format of a message. If a caller lists such a field in
/// `Connection`, it must not be removed: a proxy before this server may have set it.
fn is_protected(name: &HeaderName) -> bool {
    const NAMES: [HeaderName; 6] = [HOST, COOKIE, SET_COOKIE, VIA, CONTENT_LENGTH, CONTENT_TYPE];
    const ENDS_TO_ENDS: [&str; 5] = ["traceparent", "tracestate", "baggage", "true-client-ip", "x-client-ip"];
    const BEGINNINGS: [&str; 5] = ["content-", "grpc-", "x-chassis-", "x-real-ip", "x-request-"];
    let text = name.as_str();
    NAMES.contains(name)
        || ENDS_TO_ENDS.contains(&text)
        || BEGINNINGS.iter().any(|beginning| text.starts_with(beginning))
        || text.contains("auth")
        || text.contains("forwarded")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        fields.iter().map(field).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        headers.keys().map(HeaderName::as_str).collect()
    }

    #[test]
    fn what_connection_names_ends_here_unless_it_says_who_somebody_is() {
        let kept =
            ["authorization", "x-forwarded-for", "forwarded", "cookie", "x-chassis-caller", "x-auth-user"];
        let mut all = headers(&[
            ("connection", "close, X-One,,Authorization, x-forwarded-for"),
            ("connection", "X-Two, Forwarded, cookie,no name, x-chassis-caller, x-auth-user, TE"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-two", "3"),
            ("x-three", "3"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("transfer-encoding", "chunked"),
        ]);
        kept.iter().for_each(|name| drop(all.insert(*name, HeaderValue::from_static("kept"))));
        strip_h1(&mut all);
        let mut left = names(&all);
        left.sort_unstable();
        let mut expected = [&kept[..], &["x-three"]].concat();
        expected.sort_unstable();
        assert_eq!(left, expected);
    }

    #[test]
    fn an_answer_may_close_its_connection_and_ask_for_another_protocol() {
        let all = [("connection", "Close, x-one, upgrade"), ("upgrade", "TLS/1.3"), ("x-one", "1")];
        let stripped = |status| {
            let mut all = headers(&all);
            strip_answer(status, &mut all);
            let said: Vec<_> =
                all.get_all(CONNECTION).iter().map(|v| v.to_str().unwrap().to_owned()).collect();
            (said.join(", "), all.contains_key(UPGRADE), all.contains_key("x-one"))
        };
        assert_eq!(stripped(StatusCode::OK), ("close".to_owned(), false, false));
        assert_eq!(stripped(StatusCode::UPGRADE_REQUIRED), ("upgrade, close".to_owned(), true, false));
    }

    #[test]
    fn crumbs_are_one_cookie_and_stay_secret() {
        let mut all = headers(&[("cookie", "a=1"), ("x-more", "1"), ("x-more", "2"), ("cookie", "b=2; c=3")]);
        all.get_mut(COOKIE).unwrap().set_sensitive(true);
        merge(&mut all);
        let cookies: Vec<_> = all.get_all(COOKIE).iter().collect();
        assert_eq!(cookies, ["a=1; b=2; c=3"]);
        assert!(cookies[0].is_sensitive());
        assert_eq!(all.get_all("x-more").iter().count(), 2);
    }

    #[test]
    fn hosts() {
        for good in ["x", "x.y-z_", "x:80", "x:", "127.0.0.1:8080", "[::1]", "[::1]:80", "%41", "a,b"] {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for bad in
            ["", ":80", "u@x", "u:p@x", "x:8a", "x/y", "x y", "x?y", "[::1", "[]:80", "::1", "[::1]x", "ä"]
        {
            assert!(!is_host(bad.as_bytes()), "{bad}");
        }
    }
}
