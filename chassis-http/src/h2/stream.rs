//! One call on a connection: its request goes out, its answer comes in.
use std::{
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use chassis_core::call::{Abort, Aborted, Body};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, header::CONTENT_LENGTH};
use http_body::{Body as _, Frame, SizeHint};

use super::endpoint::Slot;

/// The body of an answer, whose stream is in use until it ends.
pub(super) struct Answer {
    body: RecvStream,
    /// What is still to come, where the head has told the whole.
    left: Option<u64>,
    at_trailers: bool,
    _slot: Slot,
}

/// Sends what of a request is not there yet, as it comes and as the server takes it. Where it ends
/// before the request does, also by a panic of whoever makes that, the stream is reset.
struct Pump {
    to: SendStream<Bytes>,
    body: Body,
    aborted: Aborted,
    is_whole: bool,
}

/// Sends `body` at once if all of it is there, however long it is: with h2 it takes no more memory than
/// here. Otherwise it is sent in the background, until it or the stream ends, or `Abort` ends it.
pub(super) fn send(to: SendStream<Bytes>, body: Body) -> Option<Abort> {
    if !body.is_streaming() {
        // An error means that the stream is over: the answer will tell why.
        let _ = send_ready(to, body);
        return None;
    }
    let (abort, aborted) = Abort::pair();
    tokio::spawn(Pump { to, body, aborted, is_whole: false });
    Some(abort)
}

fn send_ready(mut to: SendStream<Bytes>, mut body: Body) -> Result<(), h2::Error> {
    let cx = &mut Context::from_waker(Waker::noop());
    loop {
        let frame = match Pin::new(&mut body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            // gRPC wants a DATA frame at the end, and grpc-go waits for it forever.
            _ => return to.send_data(Bytes::new(), true),
        };
        match frame.into_data() {
            Ok(data) if body.is_end_stream() => return to.send_data(data, true),
            Ok(data) => to.send_data(data, false)?,
            Err(frame) => return to.send_trailers(frame.into_trailers().unwrap_or_default()),
        }
    }
}

// === impl Pump ===

impl Pump {
    /// Resolves when there is room for another chunk; `None` when the stream is over.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Option<()>> {
        self.to.reserve_capacity(1);
        while self.to.capacity() == 0 {
            match ready!(self.to.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(None),
            }
        }
        // Nobody but this hears of a reset while there is nothing to send.
        match self.to.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => Poll::Ready(Some(())),
        }
    }
}

impl Future for Pump {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // Whoever waits for room is to hear of it too.
            if self.aborted.poll(cx).is_ready() || ready!(self.poll_room(cx)).is_none() {
                return Poll::Ready(());
            }
            // Where sending fails the stream is over, which whoever waits for the answer is told.
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => {
                    self.is_whole = self.body.is_end_stream();
                    let end = self.is_whole;
                    if self.to.send_data(data, end).is_err() || end {
                        return Poll::Ready(());
                    }
                }
                Some(Ok(Err(frame))) => {
                    self.is_whole = true;
                    let _ = self.to.send_trailers(frame.into_trailers().unwrap_or_default());
                    return Poll::Ready(());
                }
                None => {
                    self.is_whole = true;
                    let _ = self.to.send_data(Bytes::new(), true);
                    return Poll::Ready(());
                }
                Some(Err(_)) => return Poll::Ready(()),
            }
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        if !self.is_whole {
            self.to.send_reset(Reason::CANCEL);
        }
    }
}

// === impl Answer ===

impl Answer {
    pub(super) fn new(body: RecvStream, head: &HeaderMap, slot: Slot) -> Self {
        let length = |value: &http::HeaderValue| value.to_str().ok()?.parse().ok();
        let left = if body.is_end_stream() { Some(0) } else { head.get(CONTENT_LENGTH).and_then(length) };
        Answer { body, left, at_trailers: false, _slot: slot }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = &mut *self;
        if !this.at_trailers {
            match ready!(this.body.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only where the stream is over: then nobody needs the room.
                    let _ = this.body.flow_control().release_capacity(data.len());
                    this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                // Whoever resets without an error has said all it wanted to (RFC 9113, 8.1).
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => this.at_trailers = true,
            }
        }
        this.body.poll_trailers(cx).map(|trailers| trailers.transpose().map(|t| t.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
