//! The body of a request, which is read to its end even if its handler has dropped it.
//!
//! A refused call is often answered before its message has arrived. If the message were dropped then, h2 would
//! reset the stream. h2 remembers up to 50 such streams; it treats later frames of older ones as errors of the
//! connection, and after 1,024 of these closes it with all its calls. So an overloaded server would break its
//! connections by refusing calls. The number of discarded bytes is bounded; beyond it the stream is reset.
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use chassis_core::BoxError;
use h2::RecvStream;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{runtime::Handle, time::timeout};

use crate::h2::Inbound;

/// The body of a request as a server receives it.
#[derive(Debug)]
pub struct Received(Kind);

#[derive(Debug)]
enum Kind {
    /// No body, or no more of it.
    None,
    /// Over HTTP/1.1, where hyper itself closes the connection or reads on.
    H1(Incoming),
    H2(Inbound),
}

/// The time for the rest of a dropped body. A message that follows its head arrives soon; a client that still
/// sends after that gets a reset.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);
/// The bytes that are read and discarded: the message of most calls.
const DISCARD_BYTES: usize = 64 * 1024;

// === impl Received ===

impl Received {
    pub(crate) fn h1(body: Incoming) -> Self {
        Received(Kind::H1(body))
    }

    /// The body after a head that declares `length`; its trailers may have `most` bytes.
    pub(crate) fn h2(body: RecvStream, length: Option<u64>, most: u32) -> Self {
        Received(Kind::H2(Inbound::new(body, length, most)))
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::None => Poll::Ready(None),
            Kind::H1(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Kind::H2(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::None => true,
            Kind::H1(body) => body.is_end_stream(),
            Kind::H2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::None => SizeHint::with_exact(0),
            Kind::H1(body) => body.size_hint(),
            Kind::H2(body) => body.size_hint(),
        }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let Kind::H2(body) = std::mem::replace(&mut self.0, Kind::None) else { return };
        // The task ends by itself, and with its connection at the latest.
        if !body.is_end_stream()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(timeout(DISCARD_TIMEOUT, read_on(body)));
        }
    }
}

async fn read_on(mut body: Inbound) {
    let mut left = DISCARD_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(less) => left = less,
            None => return,
        }
    }
}
