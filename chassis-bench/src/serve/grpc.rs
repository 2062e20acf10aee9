//! The service over gRPC.
use std::pin::Pin;

use bytes::Bytes;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::work::{Failure, Work};
use crate::echo::{
    CallReply, CallRequest,
    echo_server::{self, EchoServer},
};

/// `bench.v1.Echo`.
#[derive(Clone)]
pub struct Echo(Work);

type Replies = Pin<Box<dyn Stream<Item = Result<CallReply, Status>> + Send>>;

/// The number of previous attempts, from gRFC A6.
const ATTEMPTS: &str = "grpc-previous-rpc-attempts";

// === impl Echo ===

impl Echo {
    /// The service for tonic.
    pub fn service(work: Work) -> EchoServer<Echo> {
        EchoServer::new(Echo(work))
    }

    async fn reply<T>(&self, request: &Request<T>, payload: Bytes) -> Result<CallReply, Status> {
        let attempt = request.metadata().get(ATTEMPTS).and_then(|value| value.to_str().ok()?.parse().ok());
        let hops = self.0.work(attempt.unwrap_or(0)).await?;
        Ok(CallReply { payload, hops })
    }
}

#[tonic::async_trait]
impl echo_server::Echo for Echo {
    type DownloadStream = Replies;
    type ChatStream = Replies;

    async fn call(&self, mut request: Request<CallRequest>) -> Result<Response<CallReply>, Status> {
        let payload = std::mem::take(&mut request.get_mut().payload);
        self.reply(&request, payload).await.map(Response::new)
    }

    async fn download(&self, mut request: Request<CallRequest>) -> Result<Response<Replies>, Status> {
        let CallRequest { payload, repeat } = std::mem::take(request.get_mut());
        let first = self.reply(&request, payload).await?;
        let more = CallReply { payload: first.payload.clone(), hops: Vec::new() };
        let more = std::iter::repeat_n(more, (repeat as usize).saturating_sub(1));
        let replies = std::iter::once(first).chain(more).take(repeat as usize);
        Ok(Response::new(Box::pin(tokio_stream::iter(replies.map(Ok)))))
    }

    async fn upload(
        &self,
        mut request: Request<Streaming<CallRequest>>,
    ) -> Result<Response<CallReply>, Status> {
        let mut payload = Bytes::new();
        while let Some(message) = request.get_mut().message().await? {
            payload = message.payload;
        }
        self.reply(&request, payload).await.map(Response::new)
    }

    async fn chat(&self, request: Request<Streaming<CallRequest>>) -> Result<Response<Replies>, Status> {
        let CallReply { hops, .. } = self.reply(&request, Bytes::new()).await?;
        let mut hops = Some(hops); // sent once, in the first message
        let replies = request.into_inner().map(move |message| {
            let hops = hops.take().unwrap_or_default();
            message.map(|message| CallReply { payload: message.payload, hops })
        });
        Ok(Response::new(Box::pin(replies)))
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        Status::new(tonic::Code::from_i32(failure.code.number().into()), failure.message)
    }
}
