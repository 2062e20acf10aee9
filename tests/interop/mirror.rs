//! Echoes metadata of a request in its answer: some in its head, some in its trailers.
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame};
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

/// Wraps a tonic service: handlers cannot add trailers to a successful answer of one message.
#[derive(Clone)]
pub(crate) struct Mirror<S> {
    inner: S,
    /// Prefix of the metadata names that are echoed in the head.
    head: &'static str,
    /// The same for trailers.
    trailers: &'static str,
}

/// Adds trailers to those of the body within.
struct Ending {
    body: Body,
    more: HeaderMap,
}

// === impl Mirror ===

impl<S> Mirror<S> {
    pub(crate) fn new(inner: S, head: &'static str, trailers: &'static str) -> Self {
        Mirror { inner, head, trailers }
    }
}

impl<S> Service<Request<Body>> for Mirror<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let [head, more] = [self.head, self.trailers].map(|prefix| these(request.headers(), prefix));
        let answer = self.inner.call(request);
        Box::pin(async {
            let mut response = answer.await?;
            response.headers_mut().extend(head);
            Ok(response.map(|body| Body::new(Ending { body, more })))
        })
    }
}

impl<S: NamedService> NamedService for Mirror<S> {
    const NAME: &'static str = S::NAME;
}

fn these(metadata: &HeaderMap, prefix: &str) -> HeaderMap {
    let all = metadata.iter().filter(|(name, _)| name.as_str().starts_with(prefix));
    all.fold(HeaderMap::new(), |mut these, (name, value)| {
        these.append(name, value.clone());
        these
    })
}

// === impl Ending ===

impl HttpBody for Ending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            trailers.extend(std::mem::take(&mut self.more));
        }
        polled
    }
}
