//! A channel for tonic's stubs: each call goes through the client pipeline of its service.
use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use chassis_core::{
    Body, BoxFuture, Error, Invocation, Operation, Reason, Reply, Target, pipeline::Pipeline, wire::find,
};
use http::{HeaderValue, Request, Response, Uri, header::USER_AGENT, uri::PathAndQuery};
use tonic::{GrpcMethod, Status};
use tower_service::Service;

use crate::{
    body::{ResponseBody, of_a_message},
    details::{self, Reader},
    message::MAX_MESSAGE,
    protocol::{GRPC, grpc_status, not_grpc},
    status::Answer,
    timeout,
    wire::GRPC_TIMEOUT,
};

/// Calls one service by its logical name, for any stub that tonic generates, unary and streaming.
///
/// It is always ready, cheap to clone, and its calls never fail with an error of its own: a refusal of the
/// pipeline reaches the stub as a `tonic::Status` with details, which [`error`](crate::error) reads. The
/// request's timeout (`set_timeout`) covers the call up to the end of the answer and is sent on as a
/// deadline. [`RequestExt`](crate::RequestExt) has all options of a call; of two timeouts the shorter one holds.
///
/// ```no_run
/// # mod stub {
/// #     pub struct StockClient<T>(T);
/// #     impl<T> StockClient<T> { pub fn new(channel: T) -> Self { StockClient(channel) } }
/// # }
/// # use stub::StockClient;
/// # fn with(runtime: &chassis_core::Runtime, transport: &std::sync::Arc<chassis_grpc::GrpcTransport>) {
/// let pipeline = chassis_core::pipeline::client(runtime, "stock", transport);
/// let stock = StockClient::new(chassis_grpc::Channel::new("stock", pipeline));
/// # }
/// ```
#[derive(Clone)]
pub struct Channel {
    service: Arc<str>,
    pipeline: Pipeline,
    max_message: usize,
}

/// The future of an answer.
pub struct ResponseFuture {
    state: State,
    service: Arc<str>,
    max_message: usize,
}

enum State {
    Called(BoxFuture<'static, Result<Reply, Error>>),
    /// Refused before it became a call; empty once the future has returned the error.
    Refused(Option<Error>),
}

/// In the form that the protocol recommends: language, implementation, version.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("grpc-rust-chassis/", env!("CARGO_PKG_VERSION")));

// === impl Channel ===

impl Channel {
    /// Creates a channel to `service`, by its name in the registry, through its client pipeline.
    pub fn new(service: impl Into<Arc<str>>, pipeline: Pipeline) -> Self {
        Channel { service: service.into(), pipeline, max_message: MAX_MESSAGE }
    }

    /// Maximum bytes of one message of an answer. Default 4 MiB, or `client.max_message` of the settings. A
    /// longer message fails with RESOURCE_EXHAUSTED and is not buffered.
    ///
    /// A stub has a limit of its own with the same default; beyond it a call fails with OUT_OF_RANGE. To read
    /// longer messages raise both limits:
    ///
    /// ```
    /// # struct StockClient<T>(T);
    /// # impl<T> StockClient<T> {
    /// #     fn new(channel: T) -> Self { StockClient(channel) }
    /// #     fn max_decoding_message_size(self, _: usize) -> Self { self }
    /// # }
    /// # fn with(channel: chassis_grpc::Channel) {
    /// let limit = 64 * 1024 * 1024;
    /// let stock = StockClient::new(channel.max_message(limit)).max_decoding_message_size(limit);
    /// # }
    /// ```
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.max_message = bytes;
        self
    }

    /// The service that the channel calls.
    pub fn service(&self) -> &str {
        &self.service
    }

    fn invocation(&self, request: Request<tonic::body::Body>) -> Result<Invocation, Error> {
        let (mut head, body) = request.into_parts();
        let malformed = |words| Error::local(Reason::Malformed, words);
        let timeout = find(&head.headers, &GRPC_TIMEOUT).map(timeout::read).transpose().map_err(malformed)?;
        let path = head.uri.into_parts().path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let target = Target::new(self.service.clone(), Operation::from_path(path.clone()));
        if timeout.is_some() {
            // Written again for each attempt, with the time that remains then.
            head.headers.remove(GRPC_TIMEOUT);
        }
        head.headers.entry(USER_AGENT).or_insert(AGENT);
        let body = Body::eager(body, of_a_message);
        let mut call = Invocation::from_parts(&GRPC, target, Uri::from(path), head.headers, body);
        // Stubs put it there for interceptors; the target has the same information.
        let has_method = head.extensions.get::<GrpcMethod<'static>>().is_some();
        if head.extensions.len() > usize::from(has_method) {
            head.extensions.remove::<GrpcMethod<'static>>();
            call.options = head.extensions.remove().unwrap_or_default();
            call.extensions = head.extensions;
        }
        call.options.timeout = [call.options.timeout, timeout].into_iter().flatten().min();
        Ok(call)
    }
}

impl Service<Request<tonic::body::Body>> for Channel {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> ResponseFuture {
        let state = match self.invocation(request) {
            Ok(call) => State::Called(self.pipeline.run(call)),
            Err(error) => State::Refused(Some(error)),
        };
        ResponseFuture { state, service: self.service.clone(), max_message: self.max_message }
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("service", &self.service).finish_non_exhaustive()
    }
}

// === impl ResponseFuture ===

impl Future for ResponseFuture {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = match &mut self.state {
            State::Called(call) => ready!(call.as_mut().poll(cx)),
            State::Refused(error) => Err(error.take().expect("a future is not polled after its end")),
        };
        Poll::Ready(Ok(match answer {
            Ok(reply) => response(reply, self.max_message),
            Err(error) => trailers_only(Answer::of(&error.of_service(&self.service), Reader::Here)),
        }))
    }
}

/// Converts a reply to the response that a stub reads.
fn response(mut reply: Reply, max_message: usize) -> Response<ResponseBody> {
    let mut metadata = std::mem::take(&mut reply.metadata);
    let is_well = reply.verdict().is_some_and(|verdict| verdict.is_success());
    if !is_well && grpc_status(&metadata).is_some() {
        details::write_upstream(&mut metadata, &reply.target.service);
    } else if !is_well && let Some(code) = not_grpc(reply.status, &metadata) {
        let code = tonic::Code::from_i32(i32::from(code.number()));
        let content_type = metadata.get(http::header::CONTENT_TYPE);
        let words =
            format!("not an answer of gRPC: HTTP status {}, content-type {content_type:?}", reply.status);
        return trailers_only(Answer::from(Status::new(code, words)));
    }
    details::sanitize(&mut metadata);
    let (status, extensions) = (reply.status, std::mem::take(&mut reply.extensions));
    let mut response = Response::new(ResponseBody::read_here(reply.into_body(), max_message));
    *response.status_mut() = status;
    *response.headers_mut() = metadata;
    *response.extensions_mut() = extensions;
    response
}

/// An answer that consists of its status only.
pub(crate) fn trailers_only(answer: Answer) -> Response<ResponseBody> {
    let (status, head) = answer.into_head();
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = status;
    *response.headers_mut() = head;
    response
}
