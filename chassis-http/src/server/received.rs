//! The body of a request, which is heard to its end even where nobody wants it any more.
//!
//! A call that is refused is often answered before its message has come. Dropping the message then has h2
//! reset the stream; of more than 50 such streams it forgets the eldest, takes what still comes on them for
//! errors of the connection, and after 1,024 of these closes it under everybody's calls. So an
//! overloaded server would break its connections by refusing. What is read here for nothing is bounded;
//! beyond that the stream is reset.
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{runtime::Handle, time::timeout};

/// The body of a request as a server receives it.
#[derive(Debug)]
pub struct Received {
    body: Option<Incoming>,
    /// HTTP/1.1 has the connection closed, or reads on, by itself.
    lingers: bool,
}

/// A message that follows its head is there soon; whoever still sends after that is told to stop.
const LINGER: Duration = Duration::from_secs(1);
/// The message of most calls; more is not read for nothing.
const LINGER_BYTES: usize = 64 * 1024;

// === impl Received ===

impl Received {
    pub(super) fn new(body: Incoming, version: Version) -> Self {
        Received { body: Some(body), lingers: version == Version::HTTP_2 }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| self.lingers && !body.is_end_stream()) else {
            return;
        };
        // Ends by itself, and with its connection at the latest.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(timeout(LINGER, read_on(body)));
        }
    }
}

async fn read_on(mut body: Incoming) {
    let mut left = LINGER_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(less) => left = less,
            None => return,
        }
    }
}
