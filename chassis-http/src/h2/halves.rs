//! The two halves of a stream, on either side of a connection: what comes in, and what goes out.
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, header::CONTENT_LENGTH};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::headers;

/// What comes in on a stream.
#[derive(Debug)]
pub(crate) struct Inbound {
    body: RecvStream,
    /// What is still to come, where the head has told the whole.
    left: Option<u64>,
    at_trailers: bool,
    /// Bytes that its trailers may have.
    most: u32,
}

/// Why not all of it came.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The stream or its connection ended before.
    Stream(h2::Error),
    /// Its trailers have `size` bytes, and may have `most`.
    Trailers { size: usize, most: u32 },
    /// We ended it, because the request's own body failed.
    Request(chassis_core::Error),
}

/// Sends a body as it comes, and as the peer takes it. What is there first is sent at once, however long
/// it is: with h2 it takes no more memory than here. Where this ends before the body does, also by a
/// panic of whoever makes that, the stream is reset.
pub(crate) struct Pump<B> {
    to: SendStream<Bytes>,
    body: B,
    /// Waits for room.
    next: Option<Bytes>,
    begun: bool,
    is_whole: bool,
    /// What the peer is told where it is not.
    broken: Reason,
    /// Bytes that the peer takes as trailers.
    most: u32,
}

// === impl Inbound ===

impl Inbound {
    /// Behind a head that says `length` of it; its trailers may have `most` bytes.
    pub(crate) fn new(body: RecvStream, length: Option<u64>, most: u32) -> Self {
        Inbound { body, left: length, at_trailers: false, most }
    }
}

/// What a head says of the length of its body.
pub(crate) fn length(head: &HeaderMap) -> Option<u64> {
    head.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl HttpBody for Inbound {
    type Data = Bytes;
    type Error = Broken;

    /// Ends well only with the stream: a reset before that is an error, whatever its code. (One that comes after
    /// it concerns the other half alone, and h2 keeps it apart.)
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = &mut *self;
        if !this.at_trailers {
            match ready!(this.body.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only where the stream is over: then nobody needs the room.
                    let _ = this.body.flow_control().release_capacity(data.len());
                    this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(Broken::Stream(error)))),
                None => this.at_trailers = true,
            }
        }
        let trailers = ready!(this.body.poll_trailers(cx)).map_err(Broken::Stream).transpose();
        Poll::Ready(trailers.map(|trailers| {
            let trailers = trailers?;
            match headers::size(&trailers) {
                size if size > this.most as usize => Err(Broken::Trailers { size, most: this.most }),
                _ => Ok(Frame::trailers(trailers)),
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // The head of an answer to HEAD tells of a body that does not come.
        let left = if self.is_end_stream() { Some(0) } else { self.left };
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

// === impl Broken ===

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Broken::Stream(_) => f.write_str("the stream ended before its body"),
            Broken::Trailers { size, most } => {
                write!(f, "the trailers have {size} bytes, and may have {most}")
            }
            Broken::Request(_) => f.write_str("the request's body failed"),
        }
    }
}

impl std::error::Error for Broken {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Broken::Stream(error) => Some(error),
            Broken::Request(error) => Some(error),
            Broken::Trailers { .. } => None,
        }
    }
}

// === impl Pump ===

impl<B: HttpBody<Data = Bytes> + Unpin> Pump<B> {
    /// `broken` is what the peer is told where the body breaks off, `most` how many bytes of trailers it takes.
    pub(crate) fn new(to: SendStream<Bytes>, body: B, broken: Reason, most: u32) -> Self {
        Pump { to, body, next: None, begun: false, is_whole: false, broken, most }
    }

    /// Resolves when all is sent, or nothing more can be. Whoever drops it then is told by the stream's
    /// other half how it ended; an error is the body's own.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), B::Error>> {
        loop {
            if self.next.is_some() && ready!(self.poll_room(cx)).is_none() {
                return Poll::Ready(Ok(()));
            }
            if let Some(data) = self.next.take() {
                self.is_whole = self.body.is_end_stream();
                if self.to.send_data(data, self.is_whole).is_err() || self.is_whole {
                    return Poll::Ready(Ok(()));
                }
                self.begun = true;
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                // Nobody but this hears of a reset while there is nothing to send.
                return self.to.poll_reset(cx).map(|_| Ok(()));
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.next = Some(data),
                Some(Ok(Err(frame))) => {
                    let mut trailers = frame.into_trailers().unwrap_or_default();
                    self.is_whole = headers::fit_trailers(&mut trailers, self.most);
                    if self.is_whole {
                        let _ = self.to.send_trailers(trailers);
                    }
                    return Poll::Ready(Ok(()));
                }
                None => {
                    self.is_whole = true;
                    let _ = self.to.send_data(Bytes::new(), true);
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Resolves when there is room for another chunk; `None` when the stream is over.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Option<()>> {
        if self.begun {
            self.to.reserve_capacity(1);
            while self.to.capacity() == 0 {
                match ready!(self.to.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Poll::Ready(None),
                }
            }
        }
        Poll::Ready(Some(()))
    }
}

impl<B> Drop for Pump<B> {
    fn drop(&mut self) {
        if !self.is_whole {
            self.to.send_reset(self.broken);
        }
    }
}
