//! A streaming body whose frames come from a test.
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tokio::sync::mpsc;

use crate::types::{Body, Error};

/// Feeds a body; dropping it ends the body.
#[derive(Debug)]
pub struct Feed(mpsc::UnboundedSender<Result<Frame<Bytes>, Error>>);

struct Fed(mpsc::UnboundedReceiver<Result<Frame<Bytes>, Error>>);

/// A body that waits for its feed.
pub fn feed() -> (Feed, Body) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Feed(sender), Body::stream(Fed(receiver), |error| error))
}

// === impl Feed ===

impl Feed {
    /// Sends the next chunk. `false` if the body was dropped.
    pub fn send(&self, chunk: impl Into<Bytes>) -> bool {
        self.0.send(Ok(Frame::data(chunk.into()))).is_ok()
    }

    /// Sends the trailers, and ends the body.
    pub fn end_with(self, trailers: HeaderMap) -> bool {
        self.0.send(Ok(Frame::trailers(trailers))).is_ok()
    }

    /// Ends the body with an error.
    pub fn fail(self, error: Error) -> bool {
        self.0.send(Err(error)).is_ok()
    }

    /// Whether the body was dropped.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Resolves when the body was dropped.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Poll::Ready(ready!(self.0.poll_recv(cx)))
    }
}
