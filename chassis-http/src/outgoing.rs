//! Converts a call to a request, and back into a call if it was not sent.
use chassis_core::{Abort, Body, Invocation};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri,
    header::{CONTENT_LENGTH, HOST},
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body as _;

use crate::{ClientConfig, h2::headers, hop, net::Connector, wire::TIMEOUT};

/// The form of requests to one endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Form {
    authority: Authority,
    /// The authority as the `Host` header of HTTP/1.1.
    host: HeaderValue,
    sized: bool,
    /// Are its connections encrypted?
    is_secure: bool,
    /// The header for the deadline, if the protocol does not write it itself.
    timeout_header: Option<HeaderName>,
}

/// A request over HTTP/1.1, and the handle that ends its body early, also if it is dropped before the answer
/// arrives.
pub(crate) struct Outgoing {
    pub(crate) request: Request<Body>,
    pub(crate) abort: Option<Abort>,
}

/// A request over HTTP/2.
pub(crate) struct OutgoingH2 {
    pub(crate) head: Request<()>,
    pub(crate) body: Body,
    /// Whether the head is the whole request. Not for gRPC, which needs a DATA frame at the end.
    pub(crate) is_whole: bool,
    /// The size of the call's metadata, by HTTP/2's count.
    size: usize,
}

// === impl OutgoingH2 ===

impl OutgoingH2 {
    /// The size of the head, if it is too large for an endpoint that accepts `most` bytes.
    pub(crate) fn is_too_large(&self, most: u32) -> Option<usize> {
        // Other fields are small; close to the limit all are counted.
        let size = headers::size_of_request(self.head.method(), self.head.uri(), self.size + ADDED);
        if headers::is_too_large(size, most) { self.count(most) } else { None }
    }

    #[cold]
    fn count(&self, most: u32) -> Option<usize> {
        let fields = headers::size(self.head.headers());
        let size = headers::size_of_request(self.head.method(), self.head.uri(), fields);
        headers::is_too_large(size, most).then_some(size)
    }
}

/// The length and the timeout add at most this to a head.
const ADDED: usize = 256;

// === impl Form ===

impl Form {
    /// Requests to `service`, whose logical name is the authority: certificates and virtual hosts use the name,
    /// not an address.
    pub(crate) fn new(service: &str, sized: bool, config: &ClientConfig) -> Self {
        let (service, _) = chassis_core::registry::split_listener(service);
        let authority = Authority::try_from(service).unwrap_or_else(|_| Authority::from_static("invalid"));
        let timeout_header = Some(config.timeout_header.0.clone()).filter(|name| *name != TIMEOUT);
        let host = HeaderValue::from_str(authority.as_str());
        let host = host.unwrap_or_else(|_| HeaderValue::from_static("invalid"));
        Form { authority, host, sized, is_secure: false, timeout_header }
    }

    /// The same over connections of `connector`, which may encrypt them.
    pub(crate) fn over(mut self, connector: &dyn Connector) -> Self {
        self.is_secure = connector.is_secure();
        self
    }

    /// Whether requests and answers declare the length of their bodies.
    pub(crate) fn is_sized(&self) -> bool {
        self.sized
    }

    /// Moves headers and body out of `call`, in the form of HTTP/2.
    pub(crate) fn write_h2(&self, call: &mut Invocation) -> OutgoingH2 {
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(if self.is_secure { Scheme::HTTPS } else { Scheme::HTTP });
        let mut is_odd = false;
        let look = |name: &str, value: &_| is_odd |= hop::is_field_h2(name, value) || name == "host";
        let size = headers::measure(&call.metadata, look);
        uri.authority = Some(match is_odd {
            true => self.tidy_h2(&mut call.metadata),
            false => self.authority.clone(),
        });
        uri.path_and_query = Some(path_of(&call.uri));
        let uri = Uri::from_parts(uri).expect("scheme, authority and path are a URI");
        self.rename_timeout(call);
        let body = std::mem::take(&mut call.body);
        if self.sized {
            set_length(call, &body);
        }
        let mut head = Request::new(());
        *head.method_mut() = call.method.clone();
        *head.uri_mut() = uri;
        std::mem::swap(head.headers_mut(), &mut call.metadata);
        OutgoingH2 { is_whole: self.sized && body.is_end_stream(), head, body, size }
    }

    /// Removes connection-specific fields, and the host, which HTTP/2 sends once, as the authority.
    #[cold]
    fn tidy_h2(&self, headers: &mut HeaderMap) -> Authority {
        hop::take_out(headers, true);
        let host = headers.remove(HOST).filter(|host| hop::is_host(host.as_bytes()));
        host.and_then(|host| Authority::try_from(host.as_bytes()).ok())
            .unwrap_or_else(|| self.authority.clone())
    }

    /// The same with the URI in the form of HTTP/1.1, which needs a `Host`.
    pub(crate) fn write_origin(&self, call: &mut Invocation) -> Outgoing {
        let uri = match &call.uri {
            // The form that the client creates.
            path if path.authority().is_none() && !path.path().is_empty() => path.clone(),
            other => Uri::from(path_of(other)),
        };
        let mut out = self.write(call, uri);
        out.request.headers_mut().entry(HOST).or_insert_with(|| self.host.clone());
        out
    }

    fn write(&self, call: &mut Invocation, uri: Uri) -> Outgoing {
        let (body, abort) = std::mem::take(&mut call.body).abortable();
        let mut request = Request::new(body);
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = uri;
        self.rename_timeout(call);
        hop::strip_h1(&mut call.metadata);
        hop::merge(&mut call.metadata);
        *request.headers_mut() = std::mem::take(&mut call.metadata);
        Outgoing { request, abort }
    }

    fn rename_timeout(&self, call: &mut Invocation) {
        if let Some(name) = &self.timeout_header
            && let Some(timeout) = call.metadata.remove(TIMEOUT)
        {
            call.metadata.insert(name.clone(), timeout);
        }
    }
}

/// Sets the length of the body, if it is known and not set.
fn set_length(call: &mut Invocation, body: &Body) {
    let may_have_one = matches!(call.method, Method::POST | Method::PUT | Method::PATCH);
    if let Some(length) = body.size_hint().exact().filter(|length| *length > 0 || may_have_one) {
        call.metadata.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
}

/// Restores a call from a request that was not sent.
pub(crate) fn restore(call: &mut Invocation, request: Request<Body>, abort: Option<Abort>) {
    abort.into_iter().for_each(Abort::release);
    let (head, body) = request.into_parts();
    call.metadata = head.headers;
    call.body = body;
}

fn path_of(uri: &Uri) -> PathAndQuery {
    uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HTTP, Header};
    use chassis_core::{Operation, Target};

    #[test]
    fn only_rest_says_at_once_that_its_body_is_empty() {
        for sized in [true, false] {
            let mut call = Invocation::new(&HTTP, Target::new("stock", Operation::OTHER));
            let out = Form::new("stock", sized, &ClientConfig::default()).write_h2(&mut call);
            assert_eq!(out.is_whole, sized);
        }
    }

    const ODD: [(&str, &str); 6] = [
        ("connection", "close, x-own"),
        ("keep-alive", "timeout=5"),
        ("x-own", "1"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("host", "shop.example:8080"),
    ];

    fn call(fields: &[(&'static str, &'static str)]) -> Invocation {
        let mut call = Invocation::new(&HTTP, Target::new("stock", Operation::OTHER));
        for (name, value) in fields {
            call.metadata.append(*name, HeaderValue::from_static(value));
        }
        call.body = Body::full("hello");
        call
    }

    fn said(headers: &HeaderMap) -> Vec<(&str, &str)> {
        let mut said: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        said.sort_unstable();
        said
    }

    #[test]
    fn over_http2_nothing_is_said_of_the_connection_and_only_rest_says_how_long_its_body_is() {
        for (sized, te, expected) in [
            (true, "gzip", &[("content-length", "5"), ("cookie", "a=1"), ("cookie", "b=2")][..]),
            (false, "gzip", &[("cookie", "a=1"), ("cookie", "b=2")]),
            (false, "trailers", &[("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")]),
        ] {
            let mut call = call(&[&ODD[..], &[("te", te)]].concat());
            let out = Form::new("stock", sized, &ClientConfig::default()).write_h2(&mut call);
            assert_eq!(said(out.head.headers()), expected);
            assert_eq!(out.head.uri().authority().unwrap(), "shop.example:8080", "it is said once");
        }
    }

    #[test]
    fn the_authority_is_the_services_name_unless_the_caller_chose_another() {
        for (hosts, expected) in [
            (&[][..], "stock"),
            (&[("host", "a.b"), ("host", "c.d")], "a.b"),
            (&[("host", "user@a.b")], "stock"),
            (&[("te", "trailers")], "stock"),
        ] {
            let out = Form::new("stock", true, &ClientConfig::default()).write_h2(&mut call(hosts));
            assert_eq!(out.head.uri().authority().unwrap(), expected);
            assert!(!out.head.headers().contains_key(HOST));
        }
    }

    #[test]
    fn over_http1_nothing_is_said_of_the_connection_and_there_is_one_cookie_and_one_host() {
        let form = Form::new("stock", true, &ClientConfig::default());
        let out =
            form.write_origin(&mut call(&[&ODD[..], &[("te", "trailers"), ("host", "other")]].concat()));
        assert_eq!(said(out.request.headers()), [("cookie", "a=1; b=2"), ("host", "shop.example:8080")]);
        let out = form.write_origin(&mut call(&[]));
        assert_eq!(said(out.request.headers()), [("host", "stock")]);
    }

    #[test]
    fn the_deadline_travels_where_the_settings_say() {
        let name = HeaderName::from_static("x-budget-ms");
        let config = ClientConfig { timeout_header: Header(name.clone()), ..ClientConfig::default() };
        let mut call = Invocation::new(&HTTP, Target::new("stock", Operation::OTHER));
        call.metadata.insert(TIMEOUT, 250.into());
        let out = Form::new("stock", true, &config).write_origin(&mut call);
        assert_eq!(out.request.headers()[name], "250");
        assert!(!out.request.headers().contains_key(TIMEOUT));
    }
}
