//! Calls to a REST service by its name.
mod request;
mod response;
mod template;

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use chassis_core::{
    Body, BoxError, BoxFuture, CallOptions, Error, Invocation, Operation, Reason, ReplyBody, Target,
    pipeline::Pipeline,
};
use http::{Method, Request, header::HOST};
use tower_service::Service;

pub use self::{request::RequestBuilder, response::Response};
use crate::{ClientConfig, HTTP};

/// Calls one service by its logical name; always ready, cheap to clone.
///
/// ```no_run
/// # async fn with(runtime: &chassis_core::Runtime, transport: &std::sync::Arc<chassis_http::HttpTransport>)
/// # -> Result<(), Box<dyn std::error::Error>> {
/// use chassis_http::HttpClient;
///
/// let stock = HttpClient::new("stock", chassis_core::pipeline::client(runtime, "stock", transport));
/// let parts: Vec<String> = stock.get("/stock/{id}/parts").param("id", 42).send().await?.ok().await?.json().await?;
/// # Ok(())
/// # }
/// ```
///
/// It is also a `tower::Service` of `http::Request`. There the operation's name is the [`Operation`] among the
/// request's extensions, or `_OTHER` without one; [`CallOptions`] are taken from the extensions too. Of the URI
/// it uses path and query; it sends the service's name in place of its authority or a `Host` header, so an
/// incoming request can be forwarded unchanged.
#[derive(Clone)]
pub struct HttpClient {
    service: Arc<str>,
    pipeline: Pipeline,
    max_body: usize,
}

// === impl HttpClient ===

impl HttpClient {
    /// Creates a client of `service`, by its name in the registry, through its client pipeline.
    pub fn new(service: impl Into<Arc<str>>, pipeline: Pipeline) -> Self {
        HttpClient { service: service.into(), pipeline, max_body: ClientConfig::default().max_body.get() }
    }

    /// Sets the limit of bytes of an answer that is read into memory at once. Default 4 MiB.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// The called service.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// A GET of `template`, as in `/stock/{id}`.
    pub fn get(&self, template: impl Into<String>) -> RequestBuilder {
        self.request(Method::GET, template)
    }

    /// A HEAD of `template`.
    pub fn head(&self, template: impl Into<String>) -> RequestBuilder {
        self.request(Method::HEAD, template)
    }

    /// A POST to `template`.
    pub fn post(&self, template: impl Into<String>) -> RequestBuilder {
        self.request(Method::POST, template)
    }

    /// A PUT to `template`.
    pub fn put(&self, template: impl Into<String>) -> RequestBuilder {
        self.request(Method::PUT, template)
    }

    /// A PATCH of `template`.
    pub fn patch(&self, template: impl Into<String>) -> RequestBuilder {
        self.request(Method::PATCH, template)
    }

    /// A DELETE of `template`.
    pub fn delete(&self, template: impl Into<String>) -> RequestBuilder {
        self.request(Method::DELETE, template)
    }

    /// A request of any method. The template, not the path made from it, names the operation.
    pub fn request(&self, method: Method, template: impl Into<String>) -> RequestBuilder {
        RequestBuilder::new(self.clone(), method, template.into())
    }

    async fn send(mut self, call: Invocation) -> Result<Response, Error> {
        let reply = self.pipeline.call(call).await.map_err(|error| error.of_service(&self.service))?;
        Ok(Response::new(reply, self.max_body))
    }
}

impl<B> Service<Request<B>> for HttpClient
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Response = http::Response<ReplyBody>;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Self::Response, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        let operation = head.extensions.remove().unwrap_or(Operation::OTHER);
        let mut call = Invocation::new(&HTTP, Target::new(self.service.clone(), operation));
        call.options = head.extensions.remove::<CallOptions>().unwrap_or_default();
        call.method = head.method;
        call.uri = head.uri;
        call.metadata = head.headers;
        call.metadata.remove(HOST);
        call.extensions = head.extensions;
        call.body = Body::eager(body, of_body);
        let sent = self.clone().send(call);
        Box::pin(async { Ok(sent.await?.into_http()) })
    }
}

impl std::fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpClient").field("service", &self.service).finish_non_exhaustive()
    }
}

/// The error of a call whose request body failed.
fn of_body(error: impl Into<BoxError>) -> Error {
    Error::local(Reason::Cancelled, "the request's body broke off").with_source(error)
}
