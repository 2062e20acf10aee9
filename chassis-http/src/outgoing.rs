//! A call as hyper sends it, and back into a call if it did not.
use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use chassis_core::{
    Error,
    call::{Abort, Body, Invocation},
};
use http::{
    HeaderName, Request, Uri,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::{Frame, SizeHint};

use crate::{ClientConfig, settings::TIMEOUT};

/// How requests to one endpoint are written.
#[derive(Clone, Debug)]
pub(crate) struct Form {
    authority: Authority,
    sized: bool,
    /// Where the deadline travels, if not where the protocol writes it.
    timeout_header: Option<HeaderName>,
}

/// What is sent, and what ends its body early; dropped before the answer has come, it does.
pub(crate) struct Outgoing {
    pub(crate) request: Request<RequestBody>,
    pub(crate) abort: Option<Abort>,
}

/// The body of a request. gRPC's says nothing of its size: hyper would add a `content-length`. Nor does
/// it say at once that it is empty: gRPC wants a DATA frame at the end, and grpc-go waits for it forever.
pub(crate) struct RequestBody {
    body: Body,
    sized: bool,
    begun: bool,
}

// === impl Form ===

impl Form {
    /// For `service`, whose logical name goes out as the authority: it, not an address, is what
    /// certificates and virtual hosts go by.
    pub(crate) fn new(service: &str, sized: bool, config: &ClientConfig) -> Self {
        let authority = Authority::try_from(service).unwrap_or_else(|_| Authority::from_static("invalid"));
        let timeout_header = Some(config.timeout_header.0.clone()).filter(|name| *name != TIMEOUT);
        Form { authority, sized, timeout_header }
    }

    /// Moves what is sent out of `call`, with the URI in its absolute form.
    pub(crate) fn write_absolute(&self, call: &mut Invocation) -> Outgoing {
        let path = path_of(std::mem::take(&mut call.uri));
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(self.authority.clone());
        uri.path_and_query = Some(path);
        let uri = Uri::from_parts(uri).expect("scheme, authority and path are a URI");
        self.write(call, uri)
    }

    /// The same with the URI as HTTP/1.1 has it, which needs a `Host`.
    pub(crate) fn write_origin(&self, call: &mut Invocation) -> Outgoing {
        let uri = Uri::from(path_of(std::mem::take(&mut call.uri)));
        let mut out = self.write(call, uri);
        if let http::header::Entry::Vacant(host) = out.request.headers_mut().entry(http::header::HOST)
            && let Ok(value) = http::HeaderValue::from_str(self.authority.as_str())
        {
            host.insert(value);
        }
        out
    }

    fn write(&self, call: &mut Invocation, uri: Uri) -> Outgoing {
        let (body, abort) = std::mem::take(&mut call.body).abortable();
        let mut request = Request::new(RequestBody { body, sized: self.sized, begun: false });
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = uri;
        if let Some(name) = &self.timeout_header
            && let Some(timeout) = call.metadata.remove(TIMEOUT)
        {
            call.metadata.insert(name.clone(), timeout);
        }
        *request.headers_mut() = std::mem::take(&mut call.metadata);
        Outgoing { request, abort }
    }
}

/// Puts back what was not sent.
pub(crate) fn restore(call: &mut Invocation, request: Request<RequestBody>, abort: Option<Abort>) {
    abort.into_iter().for_each(Abort::release);
    let (head, body) = request.into_parts();
    call.uri = Uri::from(path_of(head.uri));
    call.metadata = head.headers;
    call.body = body.body;
}

fn path_of(uri: Uri) -> PathAndQuery {
    uri.into_parts().path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"))
}

// === impl RequestBody ===

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        this.begun = true;
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        (self.sized || self.begun) && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.sized {
            true => self.body.size_hint(),
            false => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use chassis_core::call::{Operation, Target};
    use http_body::Body as _;

    use super::*;
    use crate::{HTTP, Header};

    #[test]
    fn only_rest_says_at_once_that_its_body_is_empty() {
        for sized in [true, false] {
            let body = RequestBody { body: Body::empty(), sized, begun: false };
            assert_eq!(body.is_end_stream(), sized);
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
