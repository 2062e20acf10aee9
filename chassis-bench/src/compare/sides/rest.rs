//! Requests and answers of REST sides.
use std::net::SocketAddr;

use axum::{
    Json, Router,
    extract::Path,
    routing::{get, post},
    serve::ListenerExt,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::Result;

/// The document that is sent and returned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Document {
    pub id: u64,
    pub customer: String,
    pub items: Vec<String>,
    pub total: f64,
}

/// A document about as long as in other published measurements.
pub fn document() -> Document {
    let items = ["drill", "hammer", "nails"].map(str::to_owned).to_vec();
    Document { id: 42, customer: "the quick brown fox".to_owned(), items, total: 129.5 }
}

/// The routes that all sides serve.
pub(super) fn router() -> Router {
    const TEXT: &str = "the quick brown fox jumps over the lazy dog, twice";
    Router::new()
        .route("/call/{id}", get(|Path(id): Path<u64>| async move { format!("{id}: {TEXT}") }))
        .route("/call", post(|Json(document): Json<Document>| async move { Json(document) }))
}

/// `axum::serve`, on a port of its own.
pub async fn axum_serve() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    // An error means that the connection is already closed.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    tokio::spawn(async move { axum::serve(listener, router()).await });
    Ok(address)
}

/// Checks that the answer is the expected one.
pub fn check(is_get: bool, status: http::StatusCode, body: &Bytes) -> Result {
    match is_get {
        _ if status != http::StatusCode::OK => Err(format!("answered {status}").into()),
        true if body.len() > 50 => Ok(()),
        true => Err("a short answer came back".into()),
        false => match serde_json::from_slice::<Document>(body)?.id {
            42 => Ok(()),
            _ => Err("another document came back".into()),
        },
    }
}
