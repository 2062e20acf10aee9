//! The TestService that all implementations of gRPC use for interoperability tests, served by chassis.
use std::{pin::Pin, time::Duration};

use chassis_protos::interop::{
    EchoStatus, Empty, Payload, ResponseParameters, SimpleRequest, SimpleResponse, StreamingInputCallRequest,
    StreamingInputCallResponse, StreamingOutputCallRequest, StreamingOutputCallResponse,
    test_service_server::{TestService, TestServiceServer},
};
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::mirror::Mirror;

/// As in gRPC's `doc/interop-test-descriptions.md`, "Server".
#[derive(Clone, Copy)]
pub(crate) struct Interop;

type Replies = Pin<Box<dyn Stream<Item = Result<StreamingOutputCallResponse, Status>> + Send>>;

/// Metadata that the server echoes in the head of an answer.
pub(crate) const INITIAL: &str = "x-grpc-test-echo-initial";
/// Metadata that the server echoes in its trailers.
pub(crate) const TRAILING: &str = "x-grpc-test-echo-trailing-bin";

/// The service to serve.
pub(crate) fn service() -> Mirror<TestServiceServer<Interop>> {
    Mirror::new(TestServiceServer::new(Interop), INITIAL, TRAILING)
}

/// A payload of `size` zeros.
pub(crate) fn zeros(size: i32) -> Option<Payload> {
    Some(Payload { body: vec![0; size.try_into().unwrap()], ..Payload::default() })
}

#[tonic::async_trait]
impl TestService for Interop {
    async fn empty_call(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        Ok(Response::new(Empty {}))
    }

    async fn unary_call(&self, request: Request<SimpleRequest>) -> Result<Response<SimpleResponse>, Status> {
        let request = request.into_inner();
        as_asked(request.response_status)?;
        Ok(Response::new(SimpleResponse {
            payload: zeros(request.response_size),
            ..SimpleResponse::default()
        }))
    }

    async fn cacheable_unary_call(
        &self,
        request: Request<SimpleRequest>,
    ) -> Result<Response<SimpleResponse>, Status> {
        self.unary_call(request).await
    }

    type StreamingOutputCallStream = Replies;

    async fn streaming_output_call(
        &self,
        request: Request<StreamingOutputCallRequest>,
    ) -> Result<Response<Replies>, Status> {
        let request = request.into_inner();
        as_asked(request.response_status)?;
        Ok(Response::new(Box::pin(replies(request.response_parameters))))
    }

    async fn streaming_input_call(
        &self,
        request: Request<Streaming<StreamingInputCallRequest>>,
    ) -> Result<Response<StreamingInputCallResponse>, Status> {
        let (mut requests, mut sum) = (request.into_inner(), 0);
        while let Some(request) = requests.message().await? {
            sum += request.payload.map_or(0, |payload| payload.body.len());
        }
        let aggregated_payload_size = sum.try_into().unwrap();
        Ok(Response::new(StreamingInputCallResponse { aggregated_payload_size }))
    }

    type FullDuplexCallStream = Replies;

    async fn full_duplex_call(
        &self,
        request: Request<Streaming<StreamingOutputCallRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let mut requests = request.into_inner();
        let (send, receive) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let ended = async {
                while let Some(request) = requests.message().await? {
                    as_asked(request.response_status)?;
                    let mut replies = Box::pin(replies(request.response_parameters));
                    while let Some(reply) = replies.next().await {
                        if send.send(reply).await.is_err() {
                            return Ok(());
                        }
                    }
                }
                Ok(())
            };
            if let Err(status) = ended.await {
                let _ = send.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receive))))
    }

    type HalfDuplexCallStream = Replies;

    async fn half_duplex_call(
        &self,
        request: Request<Streaming<StreamingOutputCallRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let (mut requests, mut wanted) = (request.into_inner(), Vec::new());
        while let Some(request) = requests.message().await? {
            as_asked(request.response_status)?;
            wanted.extend(request.response_parameters);
        }
        Ok(Response::new(Box::pin(replies(wanted))))
    }

    async fn unimplemented_call(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("as every server answers"))
    }
}

fn as_asked(status: Option<EchoStatus>) -> Result<(), Status> {
    match status {
        Some(status) if status.code != 0 => Err(Status::new(Code::from_i32(status.code), status.message)),
        _ => Ok(()),
    }
}

fn replies(
    wanted: Vec<ResponseParameters>,
) -> impl Stream<Item = Result<StreamingOutputCallResponse, Status>> + Send {
    tokio_stream::iter(wanted).then(|wanted| async move {
        tokio::time::sleep(Duration::from_micros(wanted.interval_us.try_into().unwrap())).await;
        Ok(StreamingOutputCallResponse { payload: zeros(wanted.size) })
    })
}
