//! The edge of a gRPC server: converts requests to calls, and their answers to responses.
use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use chassis_core::{
    Body, BoxError, BoxFuture, Error, Invocation, Reason, Reply, Runtime, Target,
    pipeline::{self, Pipeline},
    wire::CALLER,
};
use chassis_http::server::{Answer as HttpAnswer, Connected, HttpService, Received};
use http::{
    HeaderMap, Method, Request, Response, StatusCode, Version,
    header::{ALLOW, HeaderValue},
    request::Parts,
    uri::PathAndQuery,
};
use http_body::Body as HttpBody;
use tonic::Status;
use tower_service::Service;

use crate::{
    body::ResponseBody,
    channel::trailers_only,
    details::Reader,
    protocol::{GRPC, is_grpc, names_grpc},
    services::{GrpcServices, Malformed},
    status::Answer,
    timeout,
    wire::{ATTEMPTS, GRPC_TIMEOUT},
};

/// Answers gRPC requests with the services of a server, through its pipeline.
///
/// - The operation is the path, if the service is known and its descriptors, if given, contain the method.
/// - `grpc-timeout` becomes the deadline. A malformed one is refused as in grpc-go: HTTP 400 with INTERNAL
///   and a message that names the expected form.
/// - A request that is not gRPC is refused in HTTP: 415 for another content-type, 405 for another method than
///   POST.
/// - A gRPC request that is not supported is refused in both: HTTP 415 with UNIMPLEMENTED for messages in
///   another encoding than protobuf (`application/grpc+json`), HTTP 505 with UNIMPLEMENTED over HTTP/1.1.
#[derive(Clone)]
pub struct GrpcServer {
    service: Arc<str>,
    services: GrpcServices,
    pipeline: Pipeline,
}

/// The future of an answer.
pub struct ServerFuture(State);

enum State {
    Called(BoxFuture<'static, Result<Reply, Error>>),
    NotGrpc(Option<Response<ResponseBody>>),
}

/// The headers that the pipeline needs, collected in one pass over the head.
#[derive(Default)]
struct Said<'a> {
    timeout: Option<&'a HeaderValue>,
    caller: Option<&'a HeaderValue>,
    attempts: Option<&'a HeaderValue>,
}

// === impl GrpcServer ===

impl GrpcServer {
    /// Puts the server pipeline of `runtime` before `services`. Its listener is called `grpc` in the settings.
    pub fn new(runtime: &Runtime, services: GrpcServices) -> Self {
        let services = services.finished();
        let pipeline = pipeline::server_at(runtime, Some("grpc"), services.clone());
        GrpcServer { service: runtime.service().clone(), services, pipeline }
    }

    /// The services of this server.
    pub fn services(&self) -> &GrpcServices {
        &self.services
    }

    pub(crate) fn answer<B>(&self, request: Request<B>) -> ServerFuture
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let (head, body) = request.into_parts();
        ServerFuture(match not_grpc(&head) {
            Some(response) => State::NotGrpc(Some(response)),
            None => {
                let call = self.invocation(head, Body::eager(body, |error| of_inbound(error.into())));
                State::Called(self.pipeline.run(call))
            }
        })
    }

    fn invocation(&self, head: Parts, body: Body) -> Invocation {
        let said = Said::of(&head.headers);
        const ROOT: PathAndQuery = PathAndQuery::from_static("/");
        let operation = self.services.operation(head.uri.path_and_query().unwrap_or(&ROOT));
        let mut target = Target::new(self.service.clone(), operation);
        target.caller = said.caller.cloned();
        let timeout = said.timeout.map(timeout::read).transpose();
        let previous_attempts = said.attempts.and_then(number).unwrap_or(0);
        let mut call = Invocation::from_parts(&GRPC, target, head.uri, head.headers, body);
        call.previous_attempts = previous_attempts;
        call.peer = head.extensions.get().and_then(|at: &Connected| at.peer().ip());
        call.extensions = head.extensions;
        match timeout {
            Ok(Some(timeout)) => call.end_within(timeout),
            Ok(None) => {}
            Err(words) => drop(call.extensions.insert(Malformed(words.into()))),
        }
        call
    }
}

impl<B> Service<Request<B>> for GrpcServer
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = ServerFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ServerFuture {
        self.answer(request)
    }
}

impl HttpService for GrpcServer {
    fn call(&self, request: Request<Received>) -> HttpAnswer {
        if request.version() < Version::HTTP_2 {
            return Box::pin(std::future::ready(needs_http2().map(ResponseBody::served)));
        }
        let answer = self.answer(request);
        Box::pin(async {
            let Ok(response) = answer.await;
            response.map(ResponseBody::served)
        })
    }
}

impl std::fmt::Debug for GrpcServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcServer").field("services", &self.services).finish_non_exhaustive()
    }
}

// === impl Said ===

impl<'a> Said<'a> {
    /// Takes the first value of each header.
    fn of(head: &'a HeaderMap) -> Self {
        let (timeout, caller, attempts) = (&GRPC_TIMEOUT, &CALLER, &ATTEMPTS);
        let mut said = Said::default();
        for (name, value) in head {
            let known = match name {
                name if name == timeout => &mut said.timeout,
                name if name == caller => &mut said.caller,
                name if name == attempts => &mut said.attempts,
                _ => continue,
            };
            known.get_or_insert(value);
        }
        said
    }
}

// === impl ServerFuture ===

impl Future for ServerFuture {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(match &mut self.0 {
            State::Called(call) => match ready!(call.as_mut().poll(cx)) {
                Ok(reply) => response(reply),
                Err(error) => trailers_only(Answer::of(&error, Reader::There)),
            },
            State::NotGrpc(response) => response.take().expect("a future is not polled after its end"),
        }))
    }
}

fn response(mut reply: Reply) -> Response<ResponseBody> {
    let (status, metadata) = (reply.status, std::mem::take(&mut reply.metadata));
    let extensions = std::mem::take(&mut reply.extensions);
    let mut response = Response::new(ResponseBody::read_there(reply.into_body()));
    *response.status_mut() = status;
    *response.headers_mut() = metadata;
    *response.extensions_mut() = extensions;
    response
}

/// The HTTP refusal of a request that is not gRPC; `None` for gRPC.
fn not_grpc(head: &Parts) -> Option<Response<ResponseBody>> {
    let is_grpc = is_grpc(&head.headers);
    if is_grpc && head.method == Method::POST {
        return None;
    }
    if let Some(named) = names_grpc(&head.headers).filter(|_| !is_grpc) {
        let words = format!("messages are protobuf here: application/grpc+proto, not {named:?}");
        return Some(refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, words));
    }
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = match is_grpc {
        true => StatusCode::METHOD_NOT_ALLOWED,
        false => StatusCode::UNSUPPORTED_MEDIA_TYPE,
    };
    if is_grpc {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    }
    Some(response)
}

/// Over HTTP/1.1 the status of an answer cannot be sent.
#[cold]
pub(crate) fn needs_http2() -> Response<ResponseBody> {
    let words = "gRPC needs HTTP/2; this request came over HTTP/1.1";
    refused(StatusCode::HTTP_VERSION_NOT_SUPPORTED, words.to_owned())
}

/// Answers a gRPC caller with UNIMPLEMENTED, and with an HTTP status for proxies in between.
#[cold]
fn refused(status: StatusCode, words: String) -> Response<ResponseBody> {
    let mut response = trailers_only(Answer::from(Status::unimplemented(words)));
    *response.status_mut() = status;
    response
}

fn number(value: &HeaderValue) -> Option<u32> {
    value.to_str().ok()?.parse().ok()
}

/// Recovers an error of a chassis transport, which reports its errors as `Error`.
fn of_inbound(error: BoxError) -> Error {
    // HTTP layers put it into a box of axum's.
    let error = error.downcast::<axum::Error>().map_or_else(|error| error, |error| error.into_inner());
    match error.downcast() {
        Ok(error) => *error,
        Err(error) => Error::remote(Reason::Cancelled, "the caller broke off its request").with_source(error),
    }
}
