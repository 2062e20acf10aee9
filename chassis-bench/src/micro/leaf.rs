//! A call as a gRPC edge creates it, and a leaf that answers it at once.
use std::{
    future::{Ready, ready},
    sync::{Arc, LazyLock},
    task::{Context, Poll},
};

use bytes::Bytes;
use chassis::{
    Body, Connection, Error, Failed, Invocation, Link, Operation, Reply, Target,
    grpc::GRPC,
    protocol::{Leaf, Protocol, Transport},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode, Uri,
    header::{CONTENT_TYPE, TE, USER_AGENT},
    uri::PathAndQuery,
};
use tower_service::Service;

use crate::layers::{
    case::{Case, Local, by_callers},
    echo::{PAYLOAD, drain},
};

/// Creates calls like those of a stub.
#[derive(Clone)]
pub struct Maker {
    service: Arc<str>,
    path: PathAndQuery,
    message: Bytes,
}

/// Answers every call at once, with a message and trailers. A transport, a leaf, and a service.
#[derive(Clone, Debug)]
pub struct AtOnce {
    message: Bytes,
}

/// The same as a service below the retries.
#[derive(Clone, Debug)]
pub struct Connected(pub AtOnce);

/// Creating a call, answering it, reading the answer: the cost outside of the pipeline.
struct Making;

const GRPC_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

// === impl Maker ===

impl Maker {
    /// Creates a maker of calls to the echo service.
    pub fn new() -> Self {
        Maker {
            service: "echo".into(),
            path: PathAndQuery::from_static("/bench.v1.Echo/Call"),
            message: message(),
        }
    }

    /// One complete call.
    pub fn call(&self) -> Invocation {
        let target = Target::new(self.service.clone(), Operation::from_path(self.path.clone()));
        let mut call = Invocation::new(&GRPC, target);
        let mut metadata = HeaderMap::with_capacity(4);
        metadata.insert(TE, HeaderValue::from_static("trailers"));
        metadata.insert(CONTENT_TYPE, GRPC_TYPE);
        metadata.insert(USER_AGENT, HeaderValue::from_static("chassis-bench"));
        call.uri = Uri::from(self.path.clone());
        call.metadata = metadata;
        call.body = Body::full(self.message.clone());
        call
    }
}

impl Default for Maker {
    fn default() -> Self {
        Maker::new()
    }
}

/// A gRPC message: not compressed, its length, and the payload as protobuf.
fn message() -> Bytes {
    let mut message = vec![0, 0, 0, 0, PAYLOAD as u8 + 3, 0x0a, 0x80, 0x01];
    message.resize(8 + PAYLOAD, 7);
    Bytes::from(message)
}

// === impl AtOnce ===

impl AtOnce {
    /// Its message is not shared, like that of a real leaf, which has one owner: threads must not contend for
    /// a reference count here.
    pub fn new() -> Self {
        static MESSAGE: LazyLock<Bytes> = LazyLock::new(message);
        AtOnce { message: Bytes::from_static(&MESSAGE) }
    }

    fn answer(&self, call: Invocation) -> Reply {
        let mut head = HeaderMap::with_capacity(2);
        head.insert(CONTENT_TYPE, GRPC_TYPE);
        let mut trailers = HeaderMap::with_capacity(2);
        trailers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"));
        call.answered(StatusCode::OK, head, Body::with_trailers(Some(self.message.clone()), trailers))
    }
}

impl Default for AtOnce {
    fn default() -> Self {
        AtOnce::new()
    }
}

impl Leaf for AtOnce {
    type Future = Ready<Result<Reply, Failed>>;

    fn call(&self, call: Invocation) -> Self::Future {
        ready(Ok(self.answer(call)))
    }
}

impl Transport for AtOnce {
    type Leaf = AtOnce;

    fn protocol(&self) -> &'static dyn Protocol {
        &GRPC
    }

    fn leaf(&self, link: Link) -> AtOnce {
        link.set(Connection::Ready);
        self.clone()
    }
}

impl Service<Invocation> for AtOnce {
    type Response = Reply;
    type Error = Error;
    type Future = Ready<Result<Reply, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Invocation) -> Self::Future {
        ready(Ok(self.answer(call)))
    }
}

impl Service<Invocation> for Connected {
    type Response = Reply;
    type Error = Failed;
    type Future = Ready<Result<Reply, Failed>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Invocation) -> Self::Future {
        Leaf::call(&self.0, call)
    }
}

// === impl Making ===

/// The part that every row of this module contains.
pub fn making() -> Box<dyn Case> {
    Box::new(Making)
}

impl Case for Making {
    fn run(&self, times: usize, callers: usize) -> Local<'_> {
        calls(times, callers, || {
            let leaf = AtOnce::new();
            move |call| Leaf::call(&leaf, call)
        })
    }
}

/// Makes calls, has each answered by the value that `caller` created for its task, and reads the answers.
pub fn calls<'a, M, F, Fut, E>(times: usize, callers: usize, caller: M) -> Local<'a>
where
    M: Fn() -> F + 'a,
    F: FnMut(Invocation) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Reply, E>> + Send,
    E: std::fmt::Debug,
{
    Box::pin(by_callers(times, callers, move |times| {
        let (maker, mut answer) = (Maker::new(), caller());
        async move {
            for _ in 0..times {
                let reply = answer(maker.call()).await.expect("it is answered at once");
                assert!(drain(reply.into_body()).await > PAYLOAD);
            }
        }
    }))
}
