//! A body that is measured as it is read.
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::{Bounds, MessageLimits, Meter, Over, cut::Cut, rule::Direction};
use crate::{
    clock::Instant,
    plugin::protocol::Protocol,
    types::{Body, Error},
};

/// Passes data within the bounds, then fails. Nothing is buffered.
pub(super) struct Metered {
    body: Body,
    meter: Meter,
    bounds: Bounds,
    direction: Direction,
    limits: Arc<MessageLimits>,
    protocol: &'static dyn Protocol,
    /// For a request: notified when it is cut off. For an answer: polled for that.
    cut: Option<Arc<Cut>>,
    /// The body exceeds a bound, and the next read returns this error.
    error: Option<Error>,
}

// === impl Metered ===

impl Metered {
    pub(super) fn wrap(
        body: Body,
        direction: Direction,
        limits: Arc<MessageLimits>,
        protocol: &'static dyn Protocol,
        cut: Option<Arc<Cut>>,
    ) -> Body {
        let (meter, bounds) = (Meter::new(Instant::now()), limits.bounds(direction));
        let metered = Metered { body, meter, bounds, direction, limits, protocol, cut, error: None };
        Body::stream(metered, |error| error)
    }

    /// Stops reading.
    fn stop(&mut self, over: Over) -> Error {
        let error = self.limits.over(self.direction, over.bound);
        self.body = Body::empty();
        if let (Direction::Request, Some(cut)) = (self.direction, &self.cut) {
            cut.set(error.repeat());
        }
        error
    }
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Some(error) = this.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if let (Direction::Answer, Some(cut)) = (this.direction, &this.cut)
            && let Poll::Ready(error) = cut.poll(cx)
        {
            this.body = Body::empty();
            return Poll::Ready(Some(Err(error)));
        }
        let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            end => return Poll::Ready(end),
        };
        let Some(data) = frame.data_ref() else { return Poll::Ready(Some(Ok(frame))) };
        let protocol = this.protocol;
        let mut next = |position: &mut u64, chunk: &[u8]| protocol.next_message(position, chunk);
        match this.meter.admit(data, &this.bounds, Instant::now, &mut next) {
            Ok(()) => Poll::Ready(Some(Ok(frame))),
            Err(over) => {
                let within = data.slice(..over.within);
                let error = this.stop(over);
                if within.is_empty() {
                    return Poll::Ready(Some(Err(error)));
                }
                this.error = Some(error);
                Poll::Ready(Some(Ok(Frame::data(within))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.error.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The bound that a complete body exceeds, if any.
pub(super) fn measure(body: &Body, bounds: &Bounds, protocol: &'static dyn Protocol) -> Option<Over> {
    let mut body = body.try_clone()?;
    let mut meter = Meter::new(Instant::now());
    let mut next = |position: &mut u64, chunk: &[u8]| protocol.next_message(position, chunk);
    let cx = &mut Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(cx) {
        if let Some(data) = frame.data_ref()
            && let Err(over) = meter.admit(data, bounds, Instant::now, &mut next)
        {
            return Some(over);
        }
    }
    None
}
