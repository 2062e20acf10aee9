//! One call on a connection: its request goes out, its answer comes in.
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use chassis_core::{Abort, Aborted, Body, Failure, tasks::Tasks};
use h2::{Reason, SendStream};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::endpoint::Slot;
use crate::h2::{
    halves::{Broken, Inbound, Paced, Pump},
    headers,
    unsent::Unsent,
};

/// The body of an answer, whose stream is in use until it ends.
pub(super) struct Answer {
    /// `None` once it is dropped.
    body: Option<Inbound>,
    /// Of the request, where not all of it had been sent when the answer began.
    request: Option<Failure>,
    slot: Slot,
}

/// A request of which not all is there yet.
struct Sending {
    pump: Pump<Body>,
    aborted: Aborted,
}

/// Sends `body` at once if all of it is there. Otherwise it is sent in the background, until it or the
/// stream ends, or `Abort` ends it; a stream ends with its connection, which `tasks` own. The peer takes `most`
/// bytes of trailers.
pub(super) fn send(to: SendStream<Bytes>, body: Body, most: u32, tasks: &Tasks) -> Option<Abort> {
    if !body.is_streaming() {
        // An error means that the stream is over: the answer reports why.
        let _ = send_ready(to, body, most);
        return None;
    }
    let (abort, aborted) = Abort::pair();
    tasks.spawn_dependent(Sending { pump: Pump::new(to, body, Reason::CANCEL, most), aborted });
    Some(abort)
}

fn send_ready(mut to: SendStream<Bytes>, mut body: Body, most: u32) -> Result<(), h2::Error> {
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
            Err(frame) => {
                let mut trailers = frame.into_trailers().unwrap_or_default();
                if headers::fit_trailers(&mut trailers, most) {
                    return to.send_trailers(trailers);
                }
                to.send_reset(Reason::CANCEL);
                return Ok(());
            }
        }
    }
}

/// A request lasts as long as its caller waits. The first bytes are sent at once, however many they are: with h2 they
/// take no more memory than here.
impl Paced for Body {
    fn take(&self, sent: u64, _: usize) -> bool {
        sent == 0
    }
    fn hand(&self, _: usize) {}
    fn unsent(&self) -> Option<&Arc<Unsent>> {
        None
    }
    fn min_rate(&self) -> Option<u32> {
        None
    }
    fn is_too_slow(&self) {}
}

// === impl Sending ===

impl Future for Sending {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Also while it waits for room.
        match self.aborted.poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => self.pump.poll(cx).map(|ended| {
                if let Err(error) = ended {
                    self.aborted.fail(error);
                }
            }),
        }
    }
}

// === impl Answer ===

impl Answer {
    pub(super) fn new(body: Inbound, request: Option<Failure>, slot: Slot) -> Self {
        Answer { body: Some(body), request, slot }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let failed = |request: &mut Option<Failure>| request.take().and_then(|request| request.take());
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        match Pin::new(body).poll_frame(cx) {
            Poll::Ready(Some(Err(broken))) => {
                let error = failed(&mut self.request).map_or(broken, Broken::Request);
                Poll::Ready(Some(Err(error)))
            }
            polled => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(stream) = self.body.take().and_then(Inbound::into_read) {
            self.slot.leave(stream);
        }
    }
}
