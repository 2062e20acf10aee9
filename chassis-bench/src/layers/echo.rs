//! The called service and its caller: the same for all sides of a ratio.
use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt;
use tokio_stream::Stream;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    client::GrpcService,
    codegen::{Body as HttpBody, StdError},
};

use super::case::by_callers;
use crate::echo::{CallReply, CallRequest, echo_client::EchoClient, echo_server};

/// Answers with the request's payload, and does nothing else.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

/// Headers of a call besides those that gRPC requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Nothing.
    Plain,
    /// `grpc-timeout`, set by the caller.
    Timeout,
    /// `traceparent`, written by hand: another span each time, as in practice.
    Traceparent,
    /// Both.
    Both,
}

/// Bytes in each direction.
pub const PAYLOAD: usize = 128;

/// Number of spans so far: no two calls have the same.
static SPANS: AtomicU64 = AtomicU64::new(1);

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl echo_server::Echo for Echo {
    async fn call(&self, request: Request<CallRequest>) -> Reply<CallReply> {
        Ok(Response::new(CallReply { payload: request.into_inner().payload, hops: Vec::new() }))
    }

    type DownloadStream = std::pin::Pin<Box<dyn Stream<Item = Result<CallReply, Status>> + Send>>;

    async fn download(&self, request: Request<CallRequest>) -> Reply<Self::DownloadStream> {
        let CallRequest { payload, repeat } = request.into_inner();
        let reply = move |_| Ok(CallReply { payload: payload.clone(), hops: Vec::new() });
        Ok(Response::new(Box::pin(tokio_stream::iter((0..repeat).map(reply)))))
    }

    async fn upload(&self, request: Request<Streaming<CallRequest>>) -> Reply<CallReply> {
        let (mut requests, mut last) = (request.into_inner(), Bytes::new());
        while let Some(request) = requests.message().await? {
            last = request.payload;
        }
        Ok(Response::new(CallReply { payload: last, hops: Vec::new() }))
    }

    type ChatStream = Self::DownloadStream;

    async fn chat(&self, request: Request<Streaming<CallRequest>>) -> Reply<Self::ChatStream> {
        use tokio_stream::StreamExt;
        let reply = |request: Result<CallRequest, Status>| {
            request.map(|request| CallReply { payload: request.payload, hops: Vec::new() })
        };
        Ok(Response::new(Box::pin(request.into_inner().map(reply))))
    }
}

impl Wire {
    fn write(self, request: &mut Request<CallRequest>) {
        if matches!(self, Wire::Timeout | Wire::Both) {
            request.set_timeout(Duration::from_secs(60));
        }
        if matches!(self, Wire::Traceparent | Wire::Both) {
            let mut text = String::with_capacity(55);
            let number = SPANS.fetch_add(1, Ordering::Relaxed);
            let span = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let _ = write!(text, "00-{:016x}{span:016x}-{span:016x}-01", !span);
            let value = text.parse().expect("hex digits make metadata");
            request.metadata_mut().insert("traceparent", value);
        }
    }
}

/// Calls a stub `times` times, by `callers` concurrent tasks.
pub async fn call<T>(stub: &EchoClient<T>, wire: Wire, times: usize, callers: usize)
where
    T: GrpcService<Body> + Clone + Send + 'static,
    T::Error: Into<StdError>,
    T::Future: Send,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    by_callers(times, callers, |times| {
        let mut stub = stub.clone();
        let payload = Bytes::from(vec![7; PAYLOAD]);
        async move {
            for _ in 0..times {
                let mut request = Request::new(CallRequest { payload: payload.clone(), repeat: 0 });
                wire.write(&mut request);
                let reply = stub.call(request).await.expect("the echo answers");
                assert_eq!(reply.into_inner().payload.len(), PAYLOAD);
            }
        }
    })
    .await;
}

/// Reads a body to its end.
pub async fn drain<B: HttpBody<Data = Bytes> + Unpin>(mut body: B) -> usize {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
    bytes
}
