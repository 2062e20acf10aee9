//! HTTP layers around a gRPC server, above its pipeline.
use std::{
    convert::Infallible,
    future::{Ready, poll_fn, ready},
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use chassis_core::{BoxError, BoxFuture, Error, Reason, layer::panic::caught};
use chassis_http::server::{Answer as HttpAnswer, HttpService, Received, ServerBody};
use http::{Request, Response, StatusCode, Version};
use http_body::Body as HttpBody;
use tonic::{Status, body::Body as TonicBody};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    body::ResponseBody,
    channel::trailers_only,
    details::Reader,
    protocol::names_grpc,
    server::{GrpcServer, needs_http2},
    status::Answer,
};

/// A gRPC server with HTTP layers around it: an access log, request ids, gRPC-Web.
///
/// The layers stand above the pipeline: they see every request and every answer, also those that the pipeline
/// refuses. A refusal is an answer without a body and with `grpc-status` in its headers; other answers have
/// their status in the trailers, the last frame of the body.
///
/// As a [`Service`] it accepts requests with bodies of axum and of tonic, and answers with the same type.
/// Layers of tower-http work on both, axum's middleware and tonic's layers on their own type.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # let runtime = chassis_core::Runtime::builder("orders").build().unwrap();
/// use chassis_grpc::{GrpcEdge, GrpcServer, GrpcServices};
/// use tower::util::MapRequestLayer;
///
/// let log = MapRequestLayer::new(|request: http::Request<axum::body::Body>| {
///     println!("{}", request.uri().path());
///     request
/// });
/// let server = GrpcServer::new(&runtime, GrpcServices::default());
/// let service = GrpcEdge::new(server).layer(log); // for `Mux::grpc`
/// # let _ = service;
/// # }
/// ```
#[derive(Clone)]
pub struct GrpcEdge(Arc<dyn Inner>);

/// A layered service of any type, with its type erased once per layer.
trait Inner: Send + Sync {
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Response<Body>>;
}

struct Layered<S>(S);

/// Marks a gRPC request that arrived over HTTP/1.1. (gRPC-Web may.)
#[derive(Clone)]
struct OverHttp1;

// === impl GrpcEdge ===

impl GrpcEdge {
    /// A server without layers.
    pub fn new(server: GrpcServer) -> Self {
        GrpcEdge(Arc::new(server))
    }

    /// Adds `layer`; the last one added is outermost. An error of the layer becomes the status that it is or
    /// contains, otherwise UNKNOWN; a panic becomes INTERNAL.
    ///
    /// Each layer has its own boxed future and body; several layers combined by a `tower::ServiceBuilder`
    /// share one.
    pub fn layer<L, B>(self, layer: L) -> Self
    where
        L: Layer<GrpcEdge>,
        L::Service: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request<Body>>>::Error: Into<BoxError>,
        <L::Service as Service<Request<Body>>>::Future: Send,
        B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        GrpcEdge(Arc::new(Layered(layer.layer(self))))
    }
}

impl Service<Request<Body>> for GrpcEdge {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async { Ok(answer.await) })
    }
}

impl Service<Request<TonicBody>> for GrpcEdge {
    type Response = Response<TonicBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<TonicBody>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<TonicBody>) -> Self::Future {
        let answer = self.0.call(request.map(body));
        Box::pin(async { Ok(answer.await.map(TonicBody::new)) })
    }
}

impl HttpService for GrpcEdge {
    fn call(&self, mut request: Request<Received>) -> HttpAnswer {
        let is_grpc = names_grpc(request.headers()).is_some();
        if is_grpc && request.version() < Version::HTTP_2 {
            request.extensions_mut().insert(OverHttp1);
        }
        let mut answer = self.0.call(request.map(body));
        Box::pin(async move {
            let answered = poll_fn(|cx| match caught(|| answer.as_mut().poll(cx)) {
                Ok(polled) => polled.map(Ok),
                Err(words) => Poll::Ready(Err(words)),
            });
            let response = answered.await.unwrap_or_else(|words| panicked(&words, is_grpc));
            response.map(ServerBody::from)
        })
    }
}

impl std::fmt::Debug for GrpcEdge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcEdge").finish_non_exhaustive()
    }
}

// === impl Inner ===

impl Inner for GrpcServer {
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        if request.extensions().get::<OverHttp1>().is_some() {
            return at_once(needs_http2());
        }
        let answer = self.answer(request);
        Box::pin(async {
            let Ok(response) = answer.await;
            response.map(body)
        })
    }
}

impl<S, B> Inner for Layered<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        let mut service = self.0.clone();
        Box::pin(async move {
            if let Err(error) = poll_fn(|cx| service.poll_ready(cx)).await.map_err(Into::into) {
                return failed(error).map(body);
            }
            match service.call(request).await {
                Ok(response) => response.map(body),
                Err(error) => failed(error.into()).map(body),
            }
        })
    }
}

fn at_once(response: Response<ResponseBody>) -> BoxFuture<'static, Response<Body>> {
    let answer: Ready<_> = ready(response.map(body));
    Box::pin(answer)
}

/// Boxes a body, unless it is empty or already boxed.
fn body<B>(body: B) -> Body
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    if body.is_end_stream() { Body::empty() } else { Body::new(body) }
}

/// The answer in place of one that a layer failed to give.
#[cold]
fn failed(error: BoxError) -> Response<ResponseBody> {
    trailers_only(match error.downcast::<Error>() {
        Ok(error) => Answer::of(&error, Reader::There),
        Err(error) => Answer::from(Status::from_error(error)),
    })
}

#[cold]
fn panicked(words: &str, is_grpc: bool) -> Response<Body> {
    tracing::error!("a layer of HTTP around gRPC panicked: {words}");
    let error = Error::local(Reason::Panicked, "a layer of HTTP panicked").with_maybe_executed(true);
    let mut response = failed(error.into()).map(body);
    if !is_grpc {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    response
}
