//! The services of a port. gRPC and REST are distinguished by content-type.
use std::sync::Arc;

use chassis_core::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};

use super::{body::ServerBody, received::Received};
use crate::{Problem, net::Peer, wire::GRPC_MEDIA_TYPE};

/// The future of an answer.
pub type Answer = BoxFuture<'static, Response<ServerBody>>;

/// Answers requests. Every `Fn(Request<Received>) -> Answer` implements it.
pub trait HttpService: Send + Sync + 'static {
    /// Answers a request. After a panic the caller gets 500, and the connection is kept.
    fn call(&self, request: Request<Received>) -> Answer;
}

/// The services that answer on one port.
///
/// ```
/// use std::sync::Arc;
/// use chassis_http::server::{Answer, Mux, ServerBody};
///
/// let hello = |_request| -> Answer {
///     Box::pin(async { http::Response::new(ServerBody::from("hello")) })
/// };
/// let mux = Mux { http: Some(Arc::new(hello)), ..Mux::default() };
/// assert!(mux.grpc.is_none());
/// ```
#[derive(Clone, Default)]
pub struct Mux {
    /// Requests whose content-type begins with `application/grpc`.
    pub grpc: Option<Arc<dyn HttpService>>,
    /// All others.
    pub http: Option<Arc<dyn HttpService>>,
}

/// The peer and the port of a request: an extension of each request.
#[derive(Clone, Debug)]
pub struct Connected(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    peer: Peer,
    port: Arc<str>,
    max_body: usize,
}

impl<F: Fn(Request<Received>) -> Answer + Send + Sync + 'static> HttpService for F {
    fn call(&self, request: Request<Received>) -> Answer {
        self(request)
    }
}

// === impl Mux ===

impl Mux {
    pub(crate) fn call(&self, request: Request<Received>, is_grpc: bool) -> Answer {
        match (is_grpc, &self.grpc, &self.http) {
            (true, Some(grpc), _) => grpc.call(request),
            (false, _, Some(http)) => http.call(request),
            (is_grpc, ..) => unmatched(is_grpc, request.method()),
        }
    }
}

/// Whether a request with these headers is a gRPC request.
pub(crate) fn is_grpc(head: &HeaderMap) -> bool {
    head.get(CONTENT_TYPE).is_some_and(names_grpc)
}

/// Whether `content_type` is one of gRPC's.
pub(crate) fn names_grpc(content_type: &HeaderValue) -> bool {
    content_type.as_bytes().starts_with(GRPC_MEDIA_TYPE.as_bytes())
}

fn unmatched(is_grpc: bool, method: &Method) -> Answer {
    let problem = match is_grpc {
        true => Problem::new(StatusCode::NOT_FOUND).detail("no gRPC is spoken on this port"),
        false if method == Method::POST => {
            Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE).detail("only gRPC is spoken on this port")
        }
        false => Problem::new(StatusCode::NOT_FOUND).detail("only gRPC is spoken on this port"),
    };
    Box::pin(std::future::ready(problem.into_http().map(ServerBody::from)))
}

// === impl Connected ===

impl Connected {
    pub(crate) fn new(peer: Peer, port: Arc<str>, max_body: usize) -> Self {
        Connected(Arc::new(Inner { peer, port, max_body }))
    }

    /// The sender of the request.
    pub fn peer(&self) -> &Peer {
        &self.0.peer
    }

    /// The port's name in the settings, such as `grpc` or `http`.
    pub fn port(&self) -> &str {
        &self.0.port
    }

    /// The limit of bytes of a REST request's body here.
    pub fn max_body(&self) -> usize {
        self.0.max_body
    }
}
