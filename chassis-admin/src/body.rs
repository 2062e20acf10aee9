//! The body of an answer.
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use chassis_core::BoxError;
use http_body::{Body, Frame, SizeHint};

use crate::events::{Feed, Step};

/// The body of an answer: bytes, or a stream of events.
pub struct AdminBody(Kind);

enum Kind {
    Bytes(Option<Bytes>),
    /// `None`: it has ended.
    Events(Option<Step>),
}

// === impl AdminBody ===

impl AdminBody {
    pub(crate) fn events(feed: Feed) -> Self {
        AdminBody(Kind::Events(Some(feed.step())))
    }
}

impl Default for AdminBody {
    fn default() -> Self {
        AdminBody(Kind::Bytes(None))
    }
}

impl From<Bytes> for AdminBody {
    fn from(bytes: Bytes) -> Self {
        AdminBody(Kind::Bytes((!bytes.is_empty()).then_some(bytes)))
    }
}

impl fmt::Debug for AdminBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminBody").field("size", &self.size_hint()).finish_non_exhaustive()
    }
}

impl Body for AdminBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.get_mut().0 {
            Kind::Bytes(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Events(step) => {
                let Some(next) = step else { return Poll::Ready(None) };
                let next = ready!(next.as_mut().poll(cx));
                *step = None;
                Poll::Ready(next.map(|(bytes, rest)| {
                    *step = Some(rest.step());
                    Ok(Frame::data(bytes))
                }))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Kind::Bytes(None) | Kind::Events(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Bytes(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Events(_) => SizeHint::default(),
        }
    }
}
