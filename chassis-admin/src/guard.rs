//! Refuses requests that a browser makes for another site, and decides whose requests may read.
//!
//! A page of any site can make a browser send requests to this machine, and by DNS rebinding read the answers: its name
//! then has this machine's address. Such requests have that name in `Host`, so only known names and IP addresses, which
//! cannot be rebound, are served. Requests between sites have an `Origin` or a `Sec-Fetch-Site`.
use http::{
    HeaderName, HeaderValue, Method, StatusCode,
    header::{ALLOW, HOST, ORIGIN},
    request::Parts,
    uri::Authority,
};

use crate::{config::HostPattern, problem::Refusal};

/// Who reaches a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Processes of this machine, over TCP.
    Machine,
    /// Processes that may open a Unix socket, or this process itself. No browser gets there.
    Private,
    /// Other machines.
    Network,
    /// Everybody, and only the open class is answered: `listen.probes`.
    Probes,
}

const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const DESTINATION: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Checks where the request comes from, and its method.
pub(crate) fn check(head: &Parts, reach: Reach, hosts: &[HostPattern]) -> Result<(), Refusal> {
    let host = host(head);
    if reach != Reach::Private
        && let Some(host) = host
        && !is_known(without_port(host), hosts)
    {
        let words =
            "this name is not served; use an IP address or `localhost`, or add the name to `admin.hosts`";
        return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, words));
    }
    if !is_same_site(head, host) {
        let words = "requests of pages of other sites are not answered";
        return Err(Refusal::new(StatusCode::FORBIDDEN, words));
    }
    match head.method == Method::GET || head.method == Method::HEAD {
        true => Ok(()),
        false => {
            let words = "nothing can be changed here: GET and HEAD are answered";
            let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, words);
            Err(refusal.with(ALLOW, HeaderValue::from_static("GET, HEAD")))
        }
    }
}

/// The host that the request is for, with its port.
fn host(head: &Parts) -> Option<&str> {
    let authority = head.uri.authority().map(Authority::as_str);
    authority.or_else(|| head.headers.get(HOST).map(|host| host.to_str().unwrap_or_default()))
}

fn without_port(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _)) => v6,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

fn is_known(host: &str, hosts: &[HostPattern]) -> bool {
    host.parse::<std::net::IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|pattern| pattern.matches(host))
}

/// Whether the request is none of another site's page. A link that is followed is the user's own request: the other
/// page does not see the answer.
fn is_same_site(head: &Parts, host: Option<&str>) -> bool {
    let field = |name: &HeaderName| head.headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let is_own = |origin: &str| {
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        authority.zip(host).is_some_and(|(origin, host)| origin.eq_ignore_ascii_case(host))
    };
    let is_followed = || field(&MODE) == Some("navigate") && field(&DESTINATION) == Some("document");
    field(&ORIGIN).is_none_or(is_own)
        && field(&SITE).is_none_or(|site| matches!(site, "same-origin" | "none") || is_followed())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    /// The status for a GET with these fields; 200 if it is served.
    #[track_caller]
    fn check(reach: Reach, fields: &[(&str, &str)], expected: u16) {
        let mut request = Request::builder().uri("/metrics");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let head = request.body(()).unwrap().into_parts().0;
        let hosts = ["*.shop.svc".parse().unwrap()];
        let status = super::check(&head, reach, &hosts).map_or_else(|it| it.status.as_u16(), |()| 200);
        assert_eq!(status, expected, "{fields:?}");
    }

    #[test]
    fn only_names_that_cannot_be_rebound_are_served() {
        for host in ["127.0.0.1:9900", "127.0.0.1", "[::1]:9900", "[::1]", "10.0.0.7:9900", "LocalHost:9900"]
        {
            check(Reach::Machine, &[("host", host)], 200);
        }
        check(Reach::Network, &[("host", "orders.shop.svc:9900")], 200);
        for host in [
            "evil.example",
            "evil.example:9900",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "\u{ff}",
        ] {
            check(Reach::Machine, &[("host", host)], 421);
            check(Reach::Probes, &[("host", host)], 421);
        }
        check(Reach::Private, &[("host", "admin")], 200);
        check(Reach::Machine, &[], 200); // HTTP/1.0; no browser
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let own = ("host", "localhost:9900");
        check(Reach::Machine, &[own, ("origin", "http://localhost:9900")], 200);
        for origin in
            ["http://localhost:3000", "null", "http://evil.example", "file://", "localhost:9900", ""]
        {
            check(Reach::Machine, &[own, ("origin", origin)], 403);
            check(Reach::Private, &[own, ("origin", origin)], 403);
        }
        for (site, expected) in [("same-origin", 200), ("none", 200), ("same-site", 403), ("cross-site", 403)]
        {
            check(Reach::Machine, &[own, ("sec-fetch-site", site)], expected);
        }
        let link = [own, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        check(Reach::Machine, &[&link[..], &[("sec-fetch-dest", "document")]].concat(), 200);
        check(Reach::Machine, &[&link[..], &[("sec-fetch-dest", "iframe")]].concat(), 403);
    }

    #[test]
    fn nothing_but_get_and_head() {
        for (method, expected) in [("GET", None), ("HEAD", None), ("POST", Some(405)), ("OPTIONS", Some(405))]
        {
            let request = Request::builder().method(method).uri("/metrics").body(()).unwrap();
            let refusal = super::check(&request.into_parts().0, Reach::Machine, &[]).err();
            assert_eq!(refusal.map(|it| it.status.as_u16()), expected, "{method}");
        }
    }
}
