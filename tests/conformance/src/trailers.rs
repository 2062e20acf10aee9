//! Trailers of a successful answer: tonic's handlers cannot set them.
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame};
use tonic::{Status, body::Body, server::NamedService};
use tower_service::Service;

/// An extension of a response: its trailers besides the status.
#[derive(Clone)]
pub(crate) struct Trailers(pub(crate) HeaderMap);

/// Wraps a tonic service: sends the [`Trailers`] of its responses.
#[derive(Clone)]
pub(crate) struct WithTrailers<S>(pub(crate) S);

struct Ending {
    body: Body,
    more: HeaderMap,
}

// === impl WithTrailers ===

impl<S> Service<Request<Body>> for WithTrailers<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async {
            let mut response = answer.await?;
            Ok(match response.extensions_mut().remove() {
                Some(Trailers(more)) => response.map(|body| Body::new(Ending { body, more })),
                None => response,
            })
        })
    }
}

impl<S: NamedService> NamedService for WithTrailers<S> {
    const NAME: &'static str = S::NAME;
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
