//! The body of an answer.
use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use chassis_core::BoxError;
use http_body::{Body, Frame, SizeHint};

/// The body of an answer: its bytes.
#[derive(Debug, Default)]
pub struct AdminBody(Option<Bytes>);

// === impl AdminBody ===

impl From<Bytes> for AdminBody {
    fn from(bytes: Bytes) -> Self {
        AdminBody((!bytes.is_empty()).then_some(bytes))
    }
}

impl Body for AdminBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
