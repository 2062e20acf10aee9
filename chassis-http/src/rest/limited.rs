//! A request's body with a limit of bytes, and a flag that it was exceeded.
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::*},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use chassis_core::{Body, Error, Reason};
use http_body::{Frame, SizeHint};

/// Yields an error once more bytes than the limit have arrived.
pub(crate) struct Limited {
    body: Body,
    left: usize,
    most: usize,
    over: Over,
}

/// Whether the body exceeded its limit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Over(Arc<AtomicBool>);

// === impl Limited ===

impl Limited {
    pub(crate) fn new(body: Body, most: usize) -> (Self, Over) {
        let over = Over::default();
        (Limited { body, left: most, most, over: over.clone() }, over)
    }
}

impl http_body::Body for Limited {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            let size = frame.data_ref().map_or(0, Bytes::len);
            match this.left.checked_sub(size) {
                Some(left) => this.left = left,
                None => {
                    this.over.0.store(true, Release);
                    this.body = Body::empty();
                    return Poll::Ready(Some(Err(Over::error(this.most))));
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl Over ===

impl Over {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Acquire)
    }

    /// The error that the caller gets.
    #[cold]
    pub(crate) fn error(most: usize) -> Error {
        let words = format!("the request's body is over `server.max_body`, which is {most} bytes");
        Error::local(Reason::TooLarge, words).with_rule("server.max_body")
    }
}
