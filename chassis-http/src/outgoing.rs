//! A call as it is sent, and back into a call if it was not.
use chassis_core::call::{Abort, Body, Invocation};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE},
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body as _;

use crate::{ClientConfig, settings::TIMEOUT};

/// How requests to one endpoint are written.
#[derive(Clone, Debug)]
pub(crate) struct Form {
    authority: Authority,
    /// The same as HTTP/1.1 says it.
    host: HeaderValue,
    sized: bool,
    /// Where the deadline travels, if not where the protocol writes it.
    timeout_header: Option<HeaderName>,
}

/// What is sent over HTTP/1.1, and what ends its body early; dropped before the answer has come, it does.
pub(crate) struct Outgoing {
    pub(crate) request: Request<Body>,
    pub(crate) abort: Option<Abort>,
}

/// The same over HTTP/2.
pub(crate) struct OutgoingH2 {
    pub(crate) head: Request<()>,
    pub(crate) body: Body,
    /// The head is all there is. Not so for gRPC, which wants a DATA frame at the end.
    pub(crate) is_whole: bool,
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

// === impl Form ===

impl Form {
    /// For `service`, whose logical name goes out as the authority: it, not an address, is what
    /// certificates and virtual hosts go by.
    pub(crate) fn new(service: &str, sized: bool, config: &ClientConfig) -> Self {
        let authority = Authority::try_from(service).unwrap_or_else(|_| Authority::from_static("invalid"));
        let timeout_header = Some(config.timeout_header.0.clone()).filter(|name| *name != TIMEOUT);
        let host = HeaderValue::from_str(authority.as_str());
        let host = host.unwrap_or_else(|_| HeaderValue::from_static("invalid"));
        Form { authority, host, sized, timeout_header }
    }

    /// Do requests and answers say how long their bodies are?
    pub(crate) fn is_sized(&self) -> bool {
        self.sized
    }

    /// Moves headers and body out of `call`, as HTTP/2 has them.
    pub(crate) fn write_h2(&self, call: &mut Invocation) -> OutgoingH2 {
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(self.authority.clone());
        uri.path_and_query = Some(path_of(&call.uri));
        let uri = Uri::from_parts(uri).expect("scheme, authority and path are a URI");
        self.rename_timeout(call);
        let body = std::mem::take(&mut call.body);
        strip(&mut call.metadata);
        if self.sized {
            set_length(call, &body);
        }
        let mut head = Request::new(());
        *head.method_mut() = call.method.clone();
        *head.uri_mut() = uri;
        *head.headers_mut() = std::mem::take(&mut call.metadata);
        OutgoingH2 { is_whole: self.sized && body.is_end_stream(), head, body }
    }

    /// The same with the URI as HTTP/1.1 has it, which needs a `Host`.
    pub(crate) fn write_origin(&self, call: &mut Invocation) -> Outgoing {
        let uri = match &call.uri {
            // As the client makes them.
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

/// Takes out the headers of HTTP/1.1 that are about one connection, which HTTP/2 does not have. Hardly
/// ever is there one: a look at each name costs less than looking for each of these.
pub(crate) fn strip(headers: &mut HeaderMap) {
    const NAMES: [HeaderName; 5] = [CONNECTION, TRANSFER_ENCODING, UPGRADE, KEEP_ALIVE, PROXY_CONNECTION];
    let is_odd = |(name, value): (&HeaderName, &HeaderValue)| match name {
        name if *name == TE => value != "trailers",
        name => NAMES.contains(name),
    };
    if headers.iter().any(is_odd) {
        NAMES.into_iter().for_each(|name| drop(headers.remove(name)));
        if headers.get(TE).is_some_and(|te| te != "trailers") {
            headers.remove(TE);
        }
    }
}

/// Says how long the body is, where that is known and not said.
fn set_length(call: &mut Invocation, body: &Body) {
    let may_have_one = matches!(call.method, Method::POST | Method::PUT | Method::PATCH);
    if let Some(length) = body.size_hint().exact().filter(|length| *length > 0 || may_have_one) {
        call.metadata.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
}

/// Puts back what was not sent.
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
    use chassis_core::call::{Operation, Target};

    #[test]
    fn only_rest_says_at_once_that_its_body_is_empty() {
        for sized in [true, false] {
            let mut call = Invocation::new(&HTTP, Target::new("stock", Operation::OTHER));
            let out = Form::new("stock", sized, &ClientConfig::default()).write_h2(&mut call);
            assert_eq!(out.is_whole, sized);
        }
    }

    #[test]
    fn over_http2_nothing_is_said_of_the_connection_and_only_rest_says_how_long_its_body_is() {
        let text = HeaderValue::from_static;
        for (sized, te, expected) in [
            (true, "gzip", &[("content-length", "5")][..]),
            (false, "gzip", &[]),
            (false, "trailers", &[("te", "trailers")]),
        ] {
            let mut call = Invocation::new(&HTTP, Target::new("stock", Operation::OTHER));
            call.metadata.insert(CONNECTION, text("close"));
            call.metadata.append(KEEP_ALIVE, text("timeout=5"));
            call.metadata.insert(TE, text(te));
            call.body = Body::full("hello");
            let out = Form::new("stock", sized, &ClientConfig::default()).write_h2(&mut call);
            let headers = out.head.headers().iter();
            let headers: Vec<_> =
                headers.map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
            assert_eq!(headers, expected);
        }
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
