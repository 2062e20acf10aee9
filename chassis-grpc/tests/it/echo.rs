//! The echo service that the tests call.
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use chassis_core::Context;
use chassis_protos::echo::{EchoReply, EchoRequest, echo_server};
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status, Streaming};

/// Answers as the proto describes; a test can observe calls and change answers.
#[derive(Clone, Default)]
pub(crate) struct Echo {
    /// The failure in place of an answer; called for each call.
    pub(crate) fails: Option<Fails>,
    /// If set, the answer gets the metadata of the request.
    pub(crate) mirrors: bool,
    /// Counts the messages that downloads were asked for.
    pub(crate) asked: Arc<AtomicUsize>,
}

pub(crate) type Fails = Arc<dyn Fn() -> Option<Status> + Send + Sync>;

type Replies = Pin<Box<dyn Stream<Item = Result<EchoReply, Status>> + Send>>;

fn reply(request: EchoRequest, count: u32) -> EchoReply {
    EchoReply { message: request.message, payload: request.payload, count, ..EchoReply::default() }
}

fn failure(request: &EchoRequest) -> Option<Status> {
    let code = Code::from_i32(i32::try_from(request.fail_code).unwrap_or(2));
    (request.fail_code != 0).then(|| Status::new(code, request.fail_message.clone()))
}

#[tonic::async_trait]
impl echo_server::Echo for Echo {
    async fn call(&self, request: Request<EchoRequest>) -> Result<Response<EchoReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        if let Some(status) = self.fails.as_ref().and_then(|fails| fails()) {
            return Err(status);
        }
        if message.message == "panic" {
            panic!("as asked for");
        }
        if let Some(status) = failure(&message) {
            return Err(status);
        }
        let started = chassis_core::clock::Instant::now();
        let deadline = Context::current().deadline;
        let remaining = deadline.map_or(0, |at| at.saturating_duration_since(started).as_millis());
        tokio::time::sleep(Duration::from_millis(message.delay_ms.into())).await;
        let mut response = Response::new(reply(message, 1));
        response.get_mut().remaining_ms = u64::try_from(remaining).unwrap_or(u64::MAX);
        if self.mirrors {
            *response.metadata_mut() = metadata;
        }
        Ok(response)
    }

    async fn safe(&self, request: Request<EchoRequest>) -> Result<Response<EchoReply>, Status> {
        self.call(request).await
    }

    type DownloadStream = Replies;

    async fn download(&self, request: Request<EchoRequest>) -> Result<Response<Replies>, Status> {
        let request = request.into_inner();
        let last = self.fails.as_ref().and_then(|fails| fails()).or(failure(&request)).map(Err);
        let asked = self.asked.clone();
        let replies = (1..=request.repeat).map(move |n| {
            asked.fetch_add(1, SeqCst);
            assert!(n != 2 || request.message != "panic", "as asked for");
            Ok(reply(request.clone(), n))
        });
        let replies = replies.chain(last);
        Ok(Response::new(Box::pin(tokio_stream::iter(replies))))
    }

    async fn upload(&self, request: Request<Streaming<EchoRequest>>) -> Result<Response<EchoReply>, Status> {
        let mut requests = request.into_inner();
        let mut all = EchoReply::default();
        while let Some(request) = requests.message().await? {
            all.message += &request.message;
            all.payload.extend_from_slice(&request.payload);
            all.count += 1;
        }
        Ok(Response::new(all))
    }

    type ChatStream = Replies;

    async fn chat(&self, request: Request<Streaming<EchoRequest>>) -> Result<Response<Replies>, Status> {
        let mut count = 0;
        let replies = request.into_inner().map(move |request| {
            count += 1;
            let request = request?;
            failure(&request).map_or_else(|| Ok(reply(request, count)), Err)
        });
        Ok(Response::new(Box::pin(replies)))
    }
}

/// A message without special wishes.
pub(crate) fn says(message: &str) -> EchoRequest {
    EchoRequest { message: message.to_owned(), ..EchoRequest::default() }
}
