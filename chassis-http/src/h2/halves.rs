//! The two halves of a stream, for clients and servers: the incoming and the outgoing body.
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, header::CONTENT_LENGTH};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    sync::futures::OwnedNotified,
    time::{Instant, Sleep, sleep_until},
};

use super::{
    headers,
    unsent::{Share, Unsent},
};
use crate::net::write_rate::{Pace, WINDOW, WriteRate};

/// The incoming body of a stream.
#[derive(Debug)]
pub(crate) struct Inbound {
    body: RecvStream,
    /// The remaining bytes, if the head declares the length.
    left: Option<u64>,
    at_trailers: bool,
    /// Whether it was read to the end of the stream.
    is_read: bool,
    /// The limit of bytes of its trailers.
    most: u32,
}

/// The reason why the body is incomplete.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The stream or its connection ended early.
    Stream(h2::Error),
    /// Its trailers have `size` bytes, more than the allowed `most`.
    Trailers { size: usize, most: u32 },
    /// This side ended it, because the request's own body failed.
    Request(chassis_core::Error),
}

/// Sends a body as it is produced and as the peer accepts it: h2 gets no more than fits its windows. If this
/// ends before the body does, also by a panic in the body, the stream is reset.
pub(crate) struct Pump<B> {
    to: SendStream<Bytes>,
    body: B,
    /// The frame that waits for a window.
    next: Option<Bytes>,
    /// Its share of the bytes that the connection holds.
    share: Option<Share>,
    /// Resolves when the connection holds fewer bytes.
    freed: Option<Pin<Box<OwnedNotified>>>,
    sent: u64,
    /// The rate at which the peer reads waiting data.
    waiting: Option<Box<Waiting>>,
    is_whole: bool,
    /// The code of the reset if the body does not end normally.
    broken: Reason,
    /// The bytes of trailers that the peer accepts.
    most: u32,
}

/// The connection of a body, from the body's point of view.
pub(crate) trait Paced {
    /// Whether `bytes` may be given to h2 without checking its windows, on a stream that has `sent` before.
    fn take(&self, sent: u64, bytes: usize) -> bool;
    /// Records that `bytes` are given to h2 after its windows were checked.
    fn hand(&self, bytes: usize);
    /// The bytes that the connection holds for its peer, if they are bounded.
    fn unsent(&self) -> Option<&Arc<Unsent>>;
    /// The bytes a second that the peer must read while data waits.
    fn min_rate(&self) -> Option<u32>;
    /// Records that the peer reads more slowly than that.
    fn is_too_slow(&self);
}

struct Waiting {
    rate: WriteRate,
    timer: Pin<Box<Sleep>>,
}

// === impl Inbound ===

impl Inbound {
    /// Creates the body after a head that declares `length`; its trailers may have `most` bytes.
    pub(crate) fn new(body: RecvStream, length: Option<u64>, most: u32) -> Self {
        Inbound { body, left: length, at_trailers: false, is_read: false, most }
    }

    /// The stream, if the body was read to its end.
    pub(crate) fn into_read(self) -> Option<RecvStream> {
        self.is_read.then_some(self.body)
    }
}

/// The length of a body, as its head declares it.
pub(crate) fn length(head: &HeaderMap) -> Option<u64> {
    head.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl HttpBody for Inbound {
    type Data = Bytes;
    type Error = Broken;

    /// Ends normally only with the end of the stream: a reset before that is an error, whatever its code. (A
    /// reset after the end concerns only the other half, and h2 reports it separately.)
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = &mut *self;
        if !this.at_trailers {
            match ready!(this.body.poll_data(cx)) {
                Some(Ok(data)) => {
                    // This fails only if the stream has ended: then the window is not needed.
                    let _ = this.body.flow_control().release_capacity(data.len());
                    this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(Broken::Stream(error)))),
                None => this.at_trailers = true,
            }
        }
        let trailers = ready!(this.body.poll_trailers(cx)).map_err(Broken::Stream).transpose();
        this.is_read = !matches!(trailers, Some(Err(_)));
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
        // The head of an answer to HEAD declares the length of a body that is not sent.
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

impl<B: HttpBody<Data = Bytes> + Paced + Unpin> Pump<B> {
    /// `broken` is the code of the reset if the body fails, `most` the bytes of trailers that the peer accepts.
    pub(crate) fn new(to: SendStream<Bytes>, body: B, broken: Reason, most: u32) -> Self {
        Pump {
            to,
            body,
            next: None,
            share: None,
            freed: None,
            sent: 0,
            waiting: None,
            is_whole: false,
            broken,
            most,
        }
    }

    /// Resolves when all is sent, or nothing more can be sent. The other half of the stream reports how the
    /// stream ended; an error here is the body's own.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), B::Error>> {
        loop {
            while let Some(mut data) = self.next.take() {
                let room = match self.body.take(self.sent, data.len()) {
                    true => {
                        self.hold(0);
                        data.len()
                    }
                    false => match self.poll_room(cx, data.len()) {
                        Poll::Ready(Some(room)) => room,
                        Poll::Ready(None) => return Poll::Ready(Ok(())),
                        Poll::Pending => {
                            self.next = Some(data);
                            return Poll::Pending;
                        }
                    },
                };
                if room < data.len() {
                    self.next = Some(data.split_off(room));
                }
                self.sent += room as u64;
                self.is_whole = self.next.is_none() && self.body.is_end_stream();
                if self.to.send_data(data, self.is_whole).is_err() || self.is_whole {
                    return Poll::Ready(Ok(()));
                }
            }
            if self.body.unsent().is_some_and(|unsent| !unsent.has_room()) && !self.has_no_data() {
                match self.poll_turn(cx) {
                    Poll::Ready(true) => {}
                    Poll::Ready(false) => return Poll::Ready(Ok(())),
                    Poll::Pending => return Poll::Pending,
                }
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                self.waiting = None;
                // While there is nothing to send, only this notices a reset.
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

    /// Resolves when there is room for some of `bytes`; `None` if the stream has ended, or the peer is too
    /// slow.
    fn poll_room(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<Option<usize>> {
        self.to.reserve_capacity(bytes);
        loop {
            let room = self.to.capacity().min(bytes);
            if room > 0 || bytes == 0 {
                self.body.hand(room);
                self.hold(bytes - room);
                self.waiting.iter_mut().for_each(|waiting| waiting.rate.took(room));
                return Poll::Ready(Some(room));
            }
            match self.to.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(None),
                Poll::Pending => {
                    self.hold(bytes);
                    ready!(self.poll_too_slow(cx));
                    self.broken = Reason::ENHANCE_YOUR_CALM;
                    self.body.is_too_slow();
                    return Poll::Ready(None);
                }
            }
        }
    }

    /// Whether only the end is left to send, which needs no window.
    fn has_no_data(&self) -> bool {
        self.body.size_hint().upper() == Some(0)
    }

    /// Stores `bytes` that wait for the peer.
    fn hold(&mut self, bytes: usize) {
        match &mut self.share {
            None if bytes == 0 => {}
            Some(_) if bytes == 0 => self.share = None,
            Some(share) => share.set(bytes),
            none => *none = self.body.unsent().map(|unsent| unsent.share(bytes)),
        }
    }

    /// Resolves when the body may produce another frame although the connection holds its maximum: when the
    /// stream has a window, or another stream released bytes. `false` if the stream has ended.
    #[cold]
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        // No bytes of this stream are held.
        self.waiting = None;
        self.to.reserve_capacity(1);
        while self.to.capacity() == 0 {
            match self.to.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => continue,
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(false),
                Poll::Pending => {}
            }
            let Some(unsent) = self.body.unsent() else { break };
            let freed = self.freed.get_or_insert_with(|| Box::pin(unsent.freed()));
            let is_freed = freed.as_mut().poll(cx).is_ready();
            if unsent.has_room() {
                break;
            }
            if !is_freed {
                return Poll::Pending;
            }
            // Another stream took the room.
            self.freed = None;
        }
        self.freed = None;
        Poll::Ready(true)
    }

    /// Resolves when the peer has read too little for too long.
    #[cold]
    fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(least) = self.body.min_rate() else { return Poll::Pending };
        let waiting = self.waiting.get_or_insert_with(|| {
            let now = Instant::now();
            Box::new(Waiting { rate: WriteRate::new(now), timer: Box::pin(sleep_until(now + WINDOW)) })
        });
        loop {
            ready!(waiting.timer.as_mut().poll(cx));
            match waiting.rate.look(Instant::now(), least) {
                Pace::TooSlow => return Poll::Ready(()),
                Pace::Wait(at) => waiting.timer.as_mut().reset(at),
            }
        }
    }
}

impl<B> Drop for Pump<B> {
    fn drop(&mut self) {
        if !self.is_whole {
            self.to.send_reset(self.broken);
        }
    }
}
