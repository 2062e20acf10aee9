//! Builds calls, and reads answers to their end.
use std::{future::poll_fn, pin::pin, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body::Body as _;
use tower_service::Service;

use super::TEST;
use crate::{
    call::{CallOptions, Invocation, Reply, RequestExt},
    pipeline::Pipeline,
    plugin::protocol::Protocol,
    types::{Body, Error, Operation, Target},
};

/// Builds a call. Its time starts with [`build`](Self::build).
///
/// ```
/// use chassis_core::testing::CallBuilder;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let call = CallBuilder::post("stock", "Reserve").header("x-canary", "true").body("seven").build();
/// assert_eq!(call.target.operation.as_str(), "Reserve");
/// # }
/// ```
pub struct CallBuilder {
    protocol: &'static dyn Protocol,
    service: Arc<str>,
    operation: Operation,
    method: Method,
    uri: http::Uri,
    metadata: HeaderMap,
    options: CallOptions,
    body: Body,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub struct Answered {
    /// Its status.
    pub status: StatusCode,
    /// Its metadata.
    pub metadata: HeaderMap,
    /// Its whole body.
    pub body: Bytes,
    /// Its trailers, if it had any.
    pub trailers: Option<HeaderMap>,
    /// The address of the node that answered; `None` if no node did.
    pub address: Option<String>,
}

/// Sends `call`, and reads the answer to its end. An incomplete answer is an error.
pub async fn run(pipeline: &Pipeline, call: Invocation) -> Result<Answered, Error> {
    read(pipeline.clone().call(call).await?).await
}

/// Reads an answer to the end.
pub async fn read(reply: Reply) -> Result<Answered, Error> {
    let (status, metadata) = (reply.status, reply.metadata.clone());
    let address = reply.node().map(|node| node.address().to_owned());
    let (mut bytes, mut trailers) = (BytesMut::new(), None);
    let mut body = pin!(reply.into_body());
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        match frame?.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok(Answered { status, metadata, body: bytes.freeze(), trailers, address })
}

// === impl CallBuilder ===

impl CallBuilder {
    /// An idempotent call.
    pub fn get(service: &str, operation: &'static str) -> Self {
        CallBuilder { method: Method::GET, ..Self::post(service, operation) }
    }

    /// A call that is not idempotent.
    pub fn post(service: &str, operation: &'static str) -> Self {
        CallBuilder {
            protocol: &TEST,
            service: service.into(),
            operation: Operation::from_static(operation),
            method: Method::POST,
            uri: http::Uri::from_static("/"),
            metadata: HeaderMap::new(),
            options: CallOptions::default(),
            body: Body::empty(),
        }
    }

    /// The protocol of the call. Default: [`TEST`].
    pub fn protocol(mut self, protocol: &'static dyn Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Path and query. Default `/`.
    pub fn uri(mut self, uri: &'static str) -> Self {
        self.uri = http::Uri::from_static(uri);
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        let value = HeaderValue::from_str(value).expect("a value of visible characters");
        self.metadata.append(HeaderName::from_static(name), value);
        self
    }

    /// The body. Default: none.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Body::full(body);
        self
    }

    /// A streaming body. Default: none.
    pub fn streaming(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    /// The call; its time starts now.
    pub fn build(self) -> Invocation {
        let mut call = Invocation::new(self.protocol, Target::new(self.service, self.operation));
        call.method = self.method;
        call.uri = self.uri;
        call.metadata = self.metadata;
        call.options = self.options;
        call.body = self.body;
        call
    }
}

impl RequestExt for CallBuilder {
    fn options_mut(&mut self) -> &mut CallOptions {
        &mut self.options
    }
}

// === impl Answered ===

impl Answered {
    /// The body as text; invalid UTF-8 is replaced.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }
}
