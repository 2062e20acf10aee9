//! The edge of a REST server: an axum router, each of whose routes is called through the pipeline.
//!
//! The pipeline is placed where the route is known, so that operations have names from a closed set: `GET
//! /orders/{id}`. Requests that match no route are `_OTHER`, and pass the pipeline too; 404 and 405, which axum
//! sends without a body, become problem documents.
use std::{
    convert::Infallible,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request},
    response::Response,
};
use chassis_core::{
    Body, BoxFuture, Code, Error, Events, Invocation, Operation, Reason, Reply, Runtime, Target,
    pipeline::{self, Pipeline},
    protocol::Protocol,
    wire::{CALLER, contains, find},
};
use http::{
    HeaderMap, HeaderName, Method, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body::Body as _;
use tower::{Layer, Service};

use super::{
    limited::{Limited, Over},
    protocol::{has_no_body, take_refusal},
};
use crate::{
    HTTP, Problem, ServerConfig,
    server::{Answer, Connected, HttpService, Received, ServerBody},
    wire::{REFUSED, TIMEOUT},
};

/// Puts the server's pipeline around every route of a router.
///
/// ```
/// # use axum::{Router, routing::get};
/// # use chassis_core::Runtime;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # let runtime = Runtime::builder("orders").build().unwrap();
/// use chassis_http::RestLayer;
///
/// let orders = Router::new().route("/orders/{id}", get(|| async { "paid" }));
/// let service = RestLayer::new(&runtime).serve(orders); // for `Mux::http`
/// # }
/// ```
#[derive(Clone)]
pub struct RestLayer {
    runtime: Runtime,
    timeout_header: HeaderName,
    listener: Arc<str>,
}

/// The service of [`RestLayer`], around one route.
#[derive(Clone)]
pub struct RestEdge(Arc<Edge>);

/// One shared value, because axum clones the service for each call.
struct Edge {
    pipeline: Pipeline,
    service: Arc<str>,
    timeout_header: HeaderName,
    events: Events,
    /// A route mostly has one method and one path, so its name is computed once.
    name: OnceLock<(Method, MatchedPath, Operation)>,
}

/// The future of an answer.
pub struct RestFuture(Result<BoxFuture<'static, Result<Reply, Error>>, Option<Error>>);

/// A router behind the pipeline.
#[derive(Clone)]
pub struct RestService(Router);

/// The route itself, at the inner end of the pipeline. The layers are cloned for each call, and a reference is
/// cheaper to clone than a route.
struct Handler<S>(Arc<S>);

/// Up to this limit axum's own bound on bodies accepts at least what this crate's bound accepts.
const AXUMS_BOUND: u64 = 2 * 1024 * 1024;

// === impl RestLayer ===

impl RestLayer {
    /// Creates a layer for the server of `runtime`.
    pub fn new(runtime: &Runtime) -> Self {
        RestLayer { runtime: runtime.clone(), timeout_header: TIMEOUT, listener: "http".into() }
    }

    /// The header with the caller's remaining time in milliseconds. Default `x-request-timeout-ms`.
    pub fn timeout_header(mut self, name: HeaderName) -> Self {
        self.timeout_header = name;
        self
    }

    /// The name of the listener in the settings. Default `http`.
    pub fn listener(mut self, name: &str) -> Self {
        self.listener = name.into();
        self
    }

    /// Puts each route of `router` behind the pipeline.
    pub fn serve(self, router: Router) -> RestService {
        self.serve_within(router, |router| router)
    }

    /// The same with the HTTP layers of `wrap` around it, which see every request and every answer, also those
    /// that the pipeline refuses.
    pub fn serve_within(self, router: Router, wrap: impl FnOnce(Router) -> Router) -> RestService {
        // With its state set, axum builds each route and the layer around it once, otherwise for each call.
        RestService(wrap(router.layer(self)).with_state(()))
    }
}

impl<S> Layer<S> for RestLayer
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    type Service = RestEdge;

    fn layer(&self, route: S) -> RestEdge {
        RestEdge(Arc::new(Edge {
            pipeline: pipeline::server_at(&self.runtime, Some(&self.listener), Handler(Arc::new(route))),
            service: self.runtime.service().clone(),
            timeout_header: self.timeout_header.clone(),
            events: self.runtime.events().clone(),
            name: OnceLock::new(),
        }))
    }
}

// === impl Edge ===

impl Edge {
    fn invocation(&self, request: Request) -> Result<Invocation, Error> {
        let (head, body) = request.into_parts();
        let operation = self.operation(&head.method, head.extensions.get());
        let mut target = Target::new(self.service.clone(), operation);
        target.caller = find(&head.headers, &CALLER).cloned();
        let mut call = Invocation::new(&HTTP, target);
        if let Some(allowed) = allowed(&head.headers, &self.timeout_header)? {
            call.end_within(allowed);
        }
        let attempts = find(&head.headers, &HTTP.attempts_header());
        call.previous_attempts = attempts.and_then(|n| n.to_str().ok()?.parse().ok()).unwrap_or(0);
        call.peer = head.extensions.get().and_then(|at: &Connected| at.peer().ip());
        call.method = head.method;
        call.uri = head.uri;
        call.metadata = head.headers;
        call.extensions = head.extensions;
        if head.version != http::Version::HTTP_11 {
            call.extensions.insert(head.version);
        }
        call.body = Body::eager(body, of_inbound);
        Ok(call)
    }

    /// `GET /orders/{id}`. Only standard methods have a name: the number of others is unbounded.
    fn operation(&self, method: &Method, path: Option<&MatchedPath>) -> Operation {
        let Some(path) = path.filter(|_| is_known(method)) else { return Operation::OTHER };
        let name = || Operation::from(format!("{method} {}", path.as_str()).as_str());
        let (known_method, known_path, known) =
            self.name.get_or_init(|| (method.clone(), path.clone(), name()));
        match known_method == method && known_path.as_str() == path.as_str() {
            true => known.clone(),
            false => name(),
        }
    }
}

// === impl RestEdge ===

impl Service<Request> for RestEdge {
    type Response = Response;
    type Error = Infallible;
    type Future = RestFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> RestFuture {
        match self.0.invocation(request) {
            Ok(call) => RestFuture(Ok(self.0.pipeline.run(call))),
            Err(error) => {
                let name = self.0.name.get().map(|(.., operation)| operation.as_str());
                self.0.events.refused(name.unwrap_or(Operation::OTHER.as_str()), &error);
                RestFuture(Err(Some(error)))
            }
        }
    }
}

fn is_known(method: &Method) -> bool {
    matches!(method.as_str(), "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS" | "TRACE")
}

/// The timeout that the caller sent, in whole milliseconds.
fn allowed(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Duration>, Error> {
    let Some(value) = find(headers, name) else { return Ok(None) };
    match value.to_str().ok().and_then(|text| text.trim().parse().ok()) {
        Some(millis) => Ok(Some(Duration::from_millis(millis))),
        None => {
            let words = format!("{name} is no number of milliseconds; write 250");
            Err(Error::local(Reason::Malformed, words).with_code(Code::InvalidArgument))
        }
    }
}

/// A caller that ends its request early has cancelled the call.
fn of_inbound(error: axum::Error) -> Error {
    Error::remote(Reason::Cancelled, "the caller broke off its request").with_source(error)
}

// === impl RestFuture ===

impl Future for RestFuture {
    type Output = Result<Response, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = match &mut self.0 {
            Ok(call) => ready!(call.as_mut().poll(cx)),
            Err(error) => Err(error.take().expect("a future is not polled after its end")),
        };
        Poll::Ready(Ok(match result {
            Ok(reply) => respond(reply),
            Err(error) => {
                let (status, headers, body) = HTTP.refuse(&error);
                let mut response = Response::new(axum::body::Body::new(body));
                *response.status_mut() = status;
                *response.headers_mut() = headers;
                response
            }
        }))
    }
}

fn respond(reply: Reply) -> Response {
    let (status, headers, extensions, body) = reply.into_parts();
    let mut response = Response::new(axum::body::Body::new(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    *response.extensions_mut() = extensions;
    response
}

// === impl RestService ===

impl HttpService for RestService {
    fn call(&self, request: http::Request<Received>) -> Answer {
        let body = |received: Received| match received.is_end_stream() {
            true => axum::body::Body::empty(),
            false => axum::body::Body::new(received),
        };
        let answer = self.0.clone().call(request.map(body));
        Box::pin(async {
            let Ok(response) = answer.await;
            response.map(ServerBody::from)
        })
    }
}

// === impl Handler ===

impl<S> Clone for Handler<S> {
    fn clone(&self) -> Self {
        Handler(self.0.clone())
    }
}

impl<S> Service<Invocation> for Handler<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut call: Invocation) -> Self::Future {
        let default = || ServerConfig::default().max_body.get();
        let most = call.extensions.get().map_or_else(default, Connected::max_body);
        if call.body.size_hint().lower() > most as u64 {
            return Box::pin(std::future::ready(Err(call.refuse(Over::error(most)))));
        }
        let is_unmatched = call.extensions.get::<MatchedPath>().is_none();
        let (request, over) = request(&mut call, most);
        let mut route = S::clone(&self.0);
        Box::pin(async move {
            let Ok(()) = poll_fn(|cx| route.poll_ready(cx)).await;
            let Ok(response) = route.call(request).await;
            if over.is_some_and(|over| over.is_set()) {
                return Err(call.refuse(Over::error(most).with_maybe_executed(true)));
            }
            let (mut head, body) = response.into_parts();
            if contains(&head.headers, &REFUSED) {
                take_refusal(&mut head.headers);
            }
            let body = if is_nobodys(is_unmatched, &head, &call.method) && body.is_end_stream() {
                explain(&mut head)
            } else if call.method != Method::HEAD && has_no_body(&call.method, head.status) {
                Body::empty()
            } else if head.status.is_client_error() && is_plain_text(&head) {
                of_extractor(&mut head, body).await
            } else {
                // For an answer to HEAD axum needs the length that its body would have.
                Body::eager(body, of_handler)
            };
            let mut reply = call.answered(head.status, head.headers, body);
            reply.extensions = head.extensions;
            Ok(reply)
        })
    }
}

/// Whether the answer is axum's own, because no route or no method matched.
fn is_nobodys(is_unmatched: bool, head: &http::response::Parts, method: &Method) -> bool {
    let is_nobodys = (is_unmatched && head.status == StatusCode::NOT_FOUND)
        || head.status == StatusCode::METHOD_NOT_ALLOWED;
    is_nobodys && method != Method::HEAD
}

/// Writes the meaning of the status into a problem document.
fn explain(head: &mut http::response::Parts) -> Body {
    let problem = Problem::new(head.status).with_code(Code::from_http(head.status));
    let (problem, body) = problem.into_http().into_parts();
    head.headers.remove(CONTENT_LENGTH);
    head.headers.extend(problem.headers);
    Body::full(body)
}

/// The beginnings of the texts with which axum's extractors refuse a request.
const REJECTIONS: [&str; 10] = [
    "Invalid URL: ",
    "Failed to deserialize query string",
    "Failed to deserialize form",
    "Form requests must have `Content-Type: ",
    "Failed to parse the request body as JSON",
    "Failed to deserialize the JSON body into the target type",
    "Expected request with `Content-Type: ",
    "Failed to buffer the request body",
    "Request body didn't contain valid UTF-8",
    "Invalid `boundary` for `multipart/form-data` request",
];
/// No text of an extractor is longer, apart from its quotations.
const LONGEST_REJECTION: u64 = 16 * 1024;

fn is_plain_text(head: &http::response::Parts) -> bool {
    find(&head.headers, &CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/plain"))
}

/// The body of a failing answer in plain text. The text of an extractor that refused the request becomes a
/// problem document, like all refusals; a handler's own text stays unchanged.
#[cold]
async fn of_extractor(head: &mut http::response::Parts, body: axum::body::Body) -> Body {
    if body.size_hint().exact().is_none_or(|size| size > LONGEST_REJECTION) {
        return Body::eager(body, of_handler);
    }
    let bytes = match http_body_util::BodyExt::collect(body).await {
        Ok(collected) => collected.to_bytes(),
        Err(error) => return Body::eager(axum::body::Body::new(Broken(Some(error))), of_handler),
    };
    match std::str::from_utf8(&bytes).ok().filter(|text| REJECTIONS.iter().any(|it| text.starts_with(it))) {
        None => Body::full(bytes),
        Some(text) => {
            let code = match head.status {
                StatusCode::PAYLOAD_TOO_LARGE => Code::ResourceExhausted,
                _ => Code::InvalidArgument,
            };
            let problem = Problem::new(head.status).detail(text.to_owned()).with_code(code);
            let (problem, body) = problem.into_http().into_parts();
            head.headers.remove(CONTENT_LENGTH);
            head.headers.extend(problem.headers);
            Body::full(body)
        }
    }
}

/// A body that fails at once.
struct Broken(Option<axum::Error>);

impl http_body::Body for Broken {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, axum::Error>>> {
        Poll::Ready(self.0.take().map(Err))
    }
}

/// Moves the request out of `call`. The limit of a streamed body replaces axum's own.
fn request(call: &mut Invocation, most: usize) -> (Request, Option<Over>) {
    let body = std::mem::take(&mut call.body);
    let is_bounded = !body.is_streaming() && body.size_hint().lower() <= AXUMS_BOUND;
    let (body, over) = match is_bounded {
        true if body.is_end_stream() => (axum::body::Body::empty(), None),
        true => (axum::body::Body::new(body), None),
        false => {
            let (body, over) = Limited::new(body, most);
            (axum::body::Body::new(body), Some(over))
        }
    };
    let mut request = Request::new(body);
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = std::mem::take(&mut call.uri);
    *request.headers_mut() = std::mem::take(&mut call.metadata);
    *request.extensions_mut() = std::mem::take(&mut call.extensions);
    if let Some(version) = request.extensions_mut().remove() {
        *request.version_mut() = version;
    }
    if over.is_some() {
        DefaultBodyLimit::disable().apply(&mut request);
    }
    (request, over)
}

fn of_handler(error: axum::Error) -> Error {
    Error::local(Reason::Internal, "the handler's answer broke off")
        .with_maybe_executed(true)
        .with_source(error)
}
