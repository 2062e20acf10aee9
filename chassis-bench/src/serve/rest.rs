//! The service over REST.
use std::collections::BTreeMap;

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use chassis::Problem;
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};

use super::work::{Failure, Status, Work};
use crate::echo::Hop;

/// An answer, and the hops of its call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EchoReply {
    /// The request's payload; for `GET /call/{id}` the id.
    #[serde(default)]
    pub payload: String,
    /// The services that the call passed, outermost first.
    #[serde(default)]
    pub hops: Vec<Hop>,
}

const ATTEMPTS: &str = "x-chassis-attempt";

/// All its routes.
pub(super) fn router(work: Work) -> Router {
    Router::new()
        .route("/call", post(call))
        .route("/call/{id}", get(look))
        .route("/download/{repeat}", get(download))
        .route("/upload", post(upload))
        .route("/chat", post(chat))
        .route("/behaviour", get(status).put(change))
        .with_state(work)
}

async fn call(
    State(work): State<Work>,
    headers: HeaderMap,
    Json(request): Json<EchoReply>,
) -> Result<Json<EchoReply>, Failure> {
    Ok(Json(EchoReply { hops: hops(&work, &headers).await?, ..request }))
}

async fn look(
    State(work): State<Work>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<EchoReply>, Failure> {
    Ok(Json(EchoReply { payload: id, hops: hops(&work, &headers).await? }))
}

/// One document per line; the first one has the hops.
async fn download(
    State(work): State<Work>,
    headers: HeaderMap,
    Path(repeat): Path<u32>,
) -> Result<Body, Failure> {
    let mut hops = hops(&work, &headers).await?;
    let lines = (0..repeat).map(move |number| {
        let reply = EchoReply { payload: number.to_string(), hops: std::mem::take(&mut hops) };
        serde_json::to_string(&reply).map(|line| Bytes::from(line + "\n"))
    });
    Ok(Body::from_stream(tokio_stream::iter(lines)))
}

/// Returns the number of received bytes.
async fn upload(
    State(work): State<Work>,
    headers: HeaderMap,
    mut body: Body,
) -> Result<Json<EchoReply>, Response> {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()).into_response())?;
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
    let hops = hops(&work, &headers).await.map_err(IntoResponse::into_response)?;
    Ok(Json(EchoReply { payload: bytes.to_string(), hops }))
}

/// Sends received bytes back as they arrive.
async fn chat(State(work): State<Work>, headers: HeaderMap, body: Body) -> Result<Body, Failure> {
    hops(&work, &headers).await?;
    Ok(body)
}

async fn status(State(work): State<Work>) -> Json<Status> {
    Json(work.status())
}

async fn change(
    State(work): State<Work>,
    Json(changes): Json<BTreeMap<String, serde_json::Value>>,
) -> Response {
    match work.change(changes) {
        Ok(behaviour) => Json(behaviour).into_response(),
        Err(error) => Problem::new(StatusCode::BAD_REQUEST).detail(error.to_string()).into_response(),
    }
}

async fn hops(work: &Work, headers: &HeaderMap) -> Result<Vec<Hop>, Failure> {
    let attempt = headers.get(ATTEMPTS).and_then(|value| value.to_str().ok()?.parse().ok());
    work.work(attempt.unwrap_or(0)).await
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        Problem::new(self.code.http_status()).with_code(self.code).detail(self.message).into_response()
    }
}
