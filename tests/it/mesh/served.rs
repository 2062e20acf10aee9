//! The operations of an instance, over gRPC and over REST.
use std::{pin::Pin, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use chassis::Problem;
use chassis_protos::echo::{EchoReply, EchoRequest, echo_server};
use http::HeaderMap;
use http_body_util::BodyExt;
use tokio_stream::{Stream, StreamExt};
use tonic::{Status, Streaming};

use super::{
    Act, Echo, Failure, Op, Seen, Wire,
    echo::{INSTANCE, Working},
};

/// The text of one part of a download.
fn part(message: &str, number: u32) -> String {
    format!("{message} {number}")
}

// === gRPC ===

/// The gRPC service.
#[derive(Clone)]
pub(super) struct Served(pub(super) Arc<Echo>);

type Replies = Pin<Box<dyn Stream<Item = Result<EchoReply, Status>> + Send>>;

impl Served {
    fn respond(&self, reply: EchoReply) -> tonic::Response<EchoReply> {
        let mut response = tonic::Response::new(reply);
        response.metadata_mut().insert(INSTANCE, self.0.id.parse().unwrap());
        response
    }

    async fn unary(
        &self,
        op: Op,
        request: tonic::Request<EchoRequest>,
    ) -> Result<tonic::Response<EchoReply>, Status> {
        let (metadata, _, request) = request.into_parts();
        let reply = self.0.answer(Wire::Grpc, op, request.message, &metadata.into_headers()).await?;
        Ok(self.respond(reply))
    }
}

#[tonic::async_trait]
impl echo_server::Echo for Served {
    async fn call(&self, request: tonic::Request<EchoRequest>) -> Result<tonic::Response<EchoReply>, Status> {
        self.unary(Op::Call, request).await
    }

    async fn safe(&self, request: tonic::Request<EchoRequest>) -> Result<tonic::Response<EchoReply>, Status> {
        self.unary(Op::Safe, request).await
    }

    type DownloadStream = Replies;

    async fn download(
        &self,
        request: tonic::Request<EchoRequest>,
    ) -> Result<tonic::Response<Replies>, Status> {
        let (metadata, _, request) = request.into_parts();
        let headers = metadata.into_headers();
        let (seen, act, working) = self.0.begin(Wire::Grpc, Op::Download, &request.message, &headers);
        if request.repeat == 0 {
            self.0.perform(act.clone(), &seen).await?;
        }
        let parts = parts(self.0.clone(), seen, act, working, request.repeat);
        let parts = parts.map(|part| {
            part.map(|message| EchoReply { message, ..EchoReply::default() }).map_err(Status::from)
        });
        Ok(tonic::Response::new(Box::pin(parts)))
    }

    async fn upload(
        &self,
        request: tonic::Request<Streaming<EchoRequest>>,
    ) -> Result<tonic::Response<EchoReply>, Status> {
        let (metadata, _, mut requests) = request.into_parts();
        let (seen, act, _working) = self.0.begin(Wire::Grpc, Op::Upload, "", &metadata.into_headers());
        let mut all = Vec::new();
        while let Some(request) = requests.message().await? {
            all.push(request.message);
        }
        self.0.perform(act, &seen).await?;
        Ok(self.respond(uploaded(&self.0.id, &all)))
    }

    type ChatStream = Replies;

    async fn chat(
        &self,
        request: tonic::Request<Streaming<EchoRequest>>,
    ) -> Result<tonic::Response<Replies>, Status> {
        let (metadata, _, requests) = request.into_parts();
        let (seen, act, working) = self.0.begin(Wire::Grpc, Op::Chat, "", &metadata.into_headers());
        let mut count = 0;
        let replies = chat(self.0.clone(), seen, act, working, requests).map(move |message| {
            count += 1;
            Ok(EchoReply { message: message??.message, count, ..EchoReply::default() })
        });
        Ok(tonic::Response::new(Box::pin(replies)))
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Grpc(status) => status,
            Failure::Rest(problem) => Status::unknown(problem.to_string()),
        }
    }
}

/// The parts of a download. Before the second, the handler performs its act.
fn parts(
    echo: Arc<Echo>,
    seen: Seen,
    act: Act,
    working: Working,
    count: u32,
) -> impl Stream<Item = Result<String, Failure>> + Send {
    let working = Arc::new(working);
    tokio_stream::iter(1..=count).then(move |number| {
        let (echo, seen, act, working) = (echo.clone(), seen.clone(), act.clone(), working.clone());
        async move {
            if number == 2 {
                echo.perform(act, &seen).await?;
            }
            drop(working); // the stream holds another
            Ok(part(&seen.message, number))
        }
    })
}

/// The messages of a chat, one by one. Before the second, the handler performs its act.
fn chat<T: Send>(
    echo: Arc<Echo>,
    seen: Seen,
    act: Act,
    working: Working,
    messages: impl Stream<Item = T> + Send,
) -> impl Stream<Item = Result<T, Failure>> + Send {
    let (working, mut number) = (Arc::new(working), 0);
    messages.then(move |message| {
        number += 1;
        let (echo, seen, act, working) = (echo.clone(), seen.clone(), act.clone(), working.clone());
        async move {
            if number == 2 {
                echo.perform(act, &seen).await?;
            }
            drop(working); // the stream holds another
            Ok(message)
        }
    })
}

fn uploaded(id: &str, all: &[String]) -> EchoReply {
    let (message, instance, count) = (all.concat(), id.to_owned(), all.len() as u32);
    EchoReply { message, instance, count, ..EchoReply::default() }
}

// === REST ===

/// A reply as JSON.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Reply {
    message: String,
    instance: String,
    count: u32,
    hops: Vec<String>,
    remaining_ms: u64,
}

#[derive(serde::Deserialize)]
struct Said {
    message: String,
}

#[derive(serde::Deserialize)]
struct Repeat {
    repeat: u32,
}

impl From<EchoReply> for Reply {
    fn from(reply: EchoReply) -> Self {
        let EchoReply { message, instance, count, hops, remaining_ms, .. } = reply;
        Reply { message, instance, count, hops, remaining_ms }
    }
}

impl From<Reply> for EchoReply {
    fn from(reply: Reply) -> Self {
        let Reply { message, instance, count, hops, remaining_ms } = reply;
        EchoReply { message, instance, count, hops, remaining_ms, ..EchoReply::default() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Failure::Rest(problem) => problem.into_response(),
            Failure::Grpc(status) => chassis::grpc::problem(&status).into_response(),
        }
    }
}

/// The routes of an instance.
pub(super) fn router(echo: &Arc<Echo>) -> Router {
    Router::new()
        .route("/echo", post(post_echo))
        .route("/echo/{message}", get(get_echo))
        .route("/safe/{message}", get(get_echo))
        .route("/download/{message}", get(get_download))
        .route("/upload", post(post_upload))
        .route("/chat", post(post_chat))
        .with_state(echo.clone())
}

async fn post_echo(State(echo): State<Arc<Echo>>, headers: HeaderMap, Json(said): Json<Said>) -> Response {
    respond(&echo, Op::Call, said.message, headers).await
}

async fn get_echo(
    State(echo): State<Arc<Echo>>,
    Path(message): Path<String>,
    headers: HeaderMap,
) -> Response {
    respond(&echo, Op::Safe, message, headers).await
}

async fn respond(echo: &Arc<Echo>, op: Op, message: String, headers: HeaderMap) -> Response {
    let answer = echo.answer(Wire::Rest, op, message, &headers).await;
    ([(INSTANCE, echo.id.clone())], answer.map(|reply| Json(Reply::from(reply)))).into_response()
}

async fn get_download(
    State(echo): State<Arc<Echo>>,
    Path(message): Path<String>,
    Query(Repeat { repeat }): Query<Repeat>,
    headers: HeaderMap,
) -> Result<axum::body::Body, Failure> {
    let (seen, act, working) = echo.begin(Wire::Rest, Op::Download, &message, &headers);
    if repeat == 0 {
        echo.perform(act.clone(), &seen).await?;
    }
    let lines = parts(echo, seen, act, working, repeat).map(|part| match part {
        Ok(part) => Ok(Bytes::from(part + "\n")),
        Err(failure) => Err(std::io::Error::other(format!("{failure:?}"))),
    });
    Ok(axum::body::Body::from_stream(lines))
}

async fn post_upload(
    State(echo): State<Arc<Echo>>,
    headers: HeaderMap,
    body: axum::body::Body,
) -> Result<Json<Reply>, Failure> {
    let (seen, act, _working) = echo.begin(Wire::Rest, Op::Upload, "", &headers);
    let whole = body.collect().await.map_err(|error| {
        Failure::Rest(Problem::new(http::StatusCode::BAD_REQUEST).detail(error.to_string()))
    })?;
    let whole = whole.to_bytes();
    let all: Vec<_> = std::str::from_utf8(&whole).unwrap().lines().map(str::to_owned).collect();
    echo.perform(act, &seen).await?;
    Ok(Json(uploaded(&echo.id, &all).into()))
}

async fn post_chat(
    State(echo): State<Arc<Echo>>,
    headers: HeaderMap,
    body: axum::body::Body,
) -> axum::body::Body {
    let (seen, act, working) = echo.begin(Wire::Rest, Op::Chat, "", &headers);
    let chunks = chat(echo, seen, act, working, body.into_data_stream()).map(|chunk| match chunk {
        Ok(chunk) => chunk.map_err(std::io::Error::other),
        Err(failure) => Err(std::io::Error::other(format!("{failure:?}"))),
    });
    axum::body::Body::from_stream(chunks)
}
