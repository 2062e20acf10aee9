//! The Echo service of the tests, as its proto describes it.
use std::{pin::Pin, time::Duration};

use chassis::{Context, clock::Instant};
use chassis_protos::echo::{
    EchoReply, EchoRequest,
    echo_server::{self, EchoServer},
};
use tokio::time::sleep;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::mirror::Mirror;

/// Answers as the proto describes; for the message `panic` the handler panics.
#[derive(Clone, Copy)]
pub(crate) struct Echo;

type Replies = Pin<Box<dyn Stream<Item = Result<EchoReply, Status>> + Send>>;

/// The service to serve.
pub(crate) fn service() -> Mirror<EchoServer<Echo>> {
    Mirror::new(EchoServer::new(Echo), "x-echo-", "x-trail-")
}

/// A request without special wishes.
pub(crate) fn says(message: &str) -> EchoRequest {
    EchoRequest { message: message.to_owned(), ..EchoRequest::default() }
}

#[tonic::async_trait]
impl echo_server::Echo for Echo {
    async fn call(&self, request: Request<EchoRequest>) -> Result<Response<EchoReply>, Status> {
        let remaining = remaining();
        let request = request.into_inner();
        assert!(request.message != "panic", "as asked for");
        wait_or_fail(&request).await?;
        Ok(Response::new(EchoReply { remaining_ms: remaining, ..reply(request, 0) }))
    }

    async fn safe(&self, request: Request<EchoRequest>) -> Result<Response<EchoReply>, Status> {
        self.call(request).await
    }

    type DownloadStream = Replies;

    async fn download(&self, request: Request<EchoRequest>) -> Result<Response<Replies>, Status> {
        let request = request.into_inner();
        sleep(Duration::from_millis(request.delay_ms.into())).await;
        let last = failure(&request).map(Err);
        let replies = (1..=request.repeat).map(move |count| Ok(reply(request.clone(), count)));
        Ok(Response::new(Box::pin(tokio_stream::iter(replies.chain(last)))))
    }

    async fn upload(&self, request: Request<Streaming<EchoRequest>>) -> Result<Response<EchoReply>, Status> {
        let mut requests = request.into_inner();
        let mut all = EchoReply::default();
        while let Some(request) = requests.message().await? {
            wait_or_fail(&request).await?;
            all.message += &request.message;
            all.payload.extend_from_slice(&request.payload);
            all.count += 1;
        }
        Ok(Response::new(all))
    }

    type ChatStream = Replies;

    async fn chat(&self, request: Request<Streaming<EchoRequest>>) -> Result<Response<Replies>, Status> {
        let mut count = 0;
        let replies = request.into_inner().then(move |request| {
            count += 1;
            async move {
                let request = request?;
                wait_or_fail(&request).await?;
                Ok(reply(request, count))
            }
        });
        Ok(Response::new(Box::pin(replies)))
    }
}

async fn wait_or_fail(request: &EchoRequest) -> Result<(), Status> {
    sleep(Duration::from_millis(request.delay_ms.into())).await;
    failure(request).map_or(Ok(()), Err)
}

fn failure(request: &EchoRequest) -> Option<Status> {
    let code = Code::from_i32(request.fail_code.try_into().unwrap());
    (request.fail_code != 0).then(|| Status::new(code, request.fail_message.clone()))
}

fn reply(request: EchoRequest, count: u32) -> EchoReply {
    EchoReply { message: request.message, payload: request.payload, count, ..EchoReply::default() }
}

/// The remaining time until the caller's deadline, in milliseconds.
fn remaining() -> u64 {
    let deadline = Context::current().deadline;
    deadline.map_or(0, |at| (at - Instant::now()).as_millis().try_into().unwrap())
}
