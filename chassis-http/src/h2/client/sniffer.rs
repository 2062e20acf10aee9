//! Observes the frames of a client's HTTP/2 connection in both directions.
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::{
    h2::{
        flood::FrameBudget,
        frames::{FrameEvent, FrameParser},
        read_budget::ReadBudget,
    },
    wire::PREFACE,
};

/// A stream whose frames are observed, in both directions.
///
/// If h2 refuses a request because the connection has just ended, the request's headers are lost. So h2 is
/// shown the end of a connection (a GOAWAY, the end of the bytes, an error) only after the [`FrameObserver`]
/// has seen it, and while no request is being passed to h2.
pub(super) struct FrameSniffer<S, L> {
    stream: S,
    frames: FrameParser,
    sent: Sent,
    observer: L,
    read_budget: ReadBudget,
    budget: FrameBudget,
    /// The limit of encoded bytes of a header list.
    most_encoded: usize,
    /// The result of the last read that is held back from h2.
    held: Option<io::Result<Bytes>>,
}

/// Observes the frames of one connection.
pub(super) trait FrameObserver: Unpin {
    /// `event` came in.
    fn on_event(&mut self, event: FrameEvent);
    /// The head of this stream was sent.
    fn on_head_sent(&mut self, stream: u32);
    /// No more bytes come in.
    fn on_end(&mut self);
    /// Whether the connection has ended while a request is being passed to h2 that does not know this yet.
    fn must_hold(&self) -> bool;
}

/// Finds the heads of requests in the outgoing bytes.
#[derive(Debug)]
struct Sent {
    header: [u8; HEADER],
    /// The number of bytes of the next frame's header that are present.
    kept: usize,
    /// Bytes to skip before that.
    skip: usize,
}

const HEADER: usize = 9;
const HEADERS: u8 = 1;

// === impl FrameSniffer ===

impl<S, L: FrameObserver> FrameSniffer<S, L> {
    /// A header list of more than `most_encoded` bytes ends the connection.
    pub(super) fn new(stream: S, observer: L, read_budget: ReadBudget, most_encoded: usize) -> Self {
        let sent = Sent { header: [0; HEADER], kept: 0, skip: PREFACE.len() };
        let budget = FrameBudget::new(Instant::now());
        FrameSniffer {
            stream,
            frames: FrameParser::default(),
            sent,
            observer,
            read_budget,
            budget,
            most_encoded,
            held: None,
        }
    }

    /// Parses the part of `bytes` that was written.
    fn wrote(
        &mut self,
        cx: &Context<'_>,
        written: io::Result<usize>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Ok(mut left) = written else { return self.failed(cx, written) };
        self.budget.earn(left);
        for slice in bytes {
            let part = &slice[..left.min(slice.len())];
            left -= part.len();
            self.sent.read(part, |stream| self.observer.on_head_sent(stream));
        }
        Poll::Ready(written)
    }

    #[cold]
    fn failed(&mut self, cx: &Context<'_>, written: io::Result<usize>) -> Poll<io::Result<usize>> {
        self.observer.on_end();
        if self.observer.must_hold() {
            cx.waker().wake_by_ref();
            return Poll::Pending; // it fails again
        }
        Poll::Ready(written)
    }

    /// Returns the result that was held back.
    #[cold]
    fn give(&mut self, held: io::Result<Bytes>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut bytes = held?;
        let now = bytes.split_to(bytes.len().min(to.remaining()));
        to.put_slice(&now);
        self.held = bytes.has_remaining().then_some(Ok(bytes));
        Poll::Ready(Ok(()))
    }

    /// Holds back the last read until no request is being passed to h2: a very short time.
    #[cold]
    fn hold(
        &mut self,
        cx: &Context<'_>,
        read: io::Result<()>,
        to: &mut ReadBuf<'_>,
        before: usize,
    ) -> Poll<io::Result<()>> {
        self.held = Some(read.map(|()| Bytes::copy_from_slice(&to.filled()[before..])));
        to.set_filled(before);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin, L: FrameObserver> AsyncRead for FrameSniffer<S, L> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.held.is_some() && this.observer.must_hold() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(held) = this.held.take() {
            return this.give(held, to);
        }
        let before = to.filled().len();
        if this.read_budget.is_spent(cx) {
            return Poll::Pending;
        }
        let mut read = ready!(Pin::new(&mut this.stream).poll_read(cx, to));
        let bytes = &to.filled()[before..];
        if read.is_err() || bytes.is_empty() {
            this.observer.on_end();
        } else {
            this.observer.on_event(FrameEvent::Bytes);
            let (observer, budget, mut paid) = (&mut this.observer, &mut this.budget, Ok(()));
            let frames = this.frames.read(bytes, &mut |event| {
                if let FrameEvent::Frame(frame) = &event {
                    paid = paid.and_then(|()| budget.spend(frame, Instant::now));
                }
                observer.on_event(event);
            });
            this.read_budget.spend_read(bytes.len(), frames);
            if let Err(abuse) = paid {
                observer.on_event(FrameEvent::Abuse(abuse));
                read = Err(io::Error::other(format!("the server was cut off: {}", abuse.name())));
            }
            if this.frames.list() > this.most_encoded {
                let words = format!("a list of headers of more than {} bytes", this.most_encoded);
                read = Err(io::Error::new(io::ErrorKind::InvalidData, words));
                this.observer.on_end();
            }
        }
        if this.observer.must_hold() {
            return this.hold(cx, read, to, before);
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin, L: FrameObserver> AsyncWrite for FrameSniffer<S, L> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes));
        this.wrote(cx, written, &[IoSlice::new(bytes)])
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, bytes));
        this.wrote(cx, written, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

// === impl Sent ===

impl Sent {
    fn read(&mut self, mut bytes: &[u8], mut sent: impl FnMut(u32)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            // A frame's header is mostly complete.
            if self.kept == 0
                && let Some((header, rest)) = bytes.split_first_chunk::<HEADER>()
            {
                bytes = rest;
                self.skip = frame(header, &mut sent);
                continue;
            }
            if bytes.is_empty() {
                return;
            }
            let taken = (HEADER - self.kept).min(bytes.len());
            self.header[self.kept..self.kept + taken].copy_from_slice(&bytes[..taken]);
            self.kept += taken;
            bytes = &bytes[taken..];
            if self.kept < HEADER {
                return;
            }
            self.skip = frame(&self.header, &mut sent);
            self.kept = 0;
        }
    }
}

/// The number of bytes that follow the header of a frame. Calls `sent` with the stream of a HEADERS frame.
#[inline]
fn frame(header: &[u8; HEADER], sent: &mut impl FnMut(u32)) -> usize {
    let [a, b, c, kind, _, stream @ ..] = *header;
    if kind == HEADERS {
        sent(u32::from_be_bytes(stream));
    }
    u32::from_be_bytes([0, a, b, c]) as usize
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    };

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    #[test]
    fn finds_the_heads_that_left_in_pieces_of_any_size() {
        let frames = [
            &[b'P'; PREFACE.len()][..],
            &[0, 0, 0, 4, 0, 0, 0, 0, 0],
            &[0, 0, 3, HEADERS, 4, 0, 0, 0, 1, 1, 1, 1],
            &[0, 0, 2, 0, 1, 0, 0, 0, 1, HEADERS, HEADERS],
            &[0, 1, 0, HEADERS, 4, 0, 0, 1, 3],
            &[HEADERS; 256],
        ]
        .concat();
        for size in 1..=frames.len() {
            let (mut found, mut watched) =
                (Vec::new(), Sent { header: [0; HEADER], kept: 0, skip: PREFACE.len() });
            frames.chunks(size).for_each(|piece| watched.read(piece, |stream| found.push(stream)));
            assert_eq!(found, [1, 259], "in pieces of {size}");
        }
    }

    /// Behaves as if a request were being handed over, until `entered` is false.
    struct Busy {
        ends: bool,
        entered: Arc<AtomicBool>,
    }

    impl FrameObserver for Busy {
        fn on_event(&mut self, event: FrameEvent) {
            self.ends |= matches!(event, FrameEvent::GoAway { .. });
        }
        fn on_head_sent(&mut self, _: u32) {}
        fn on_end(&mut self) {
            self.ends = true;
        }
        fn must_hold(&self) -> bool {
            self.ends && self.entered.load(SeqCst)
        }
    }

    /// The end of a connection reaches h2 only once the request that is being handed over has been.
    async fn check_held(peer: impl AsyncFnOnce(DuplexStream), expected: &[u8]) {
        let (ours, mut theirs) = duplex(1024);
        theirs.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let entered = Arc::new(AtomicBool::new(true));
        let observer = Busy { ends: false, entered: entered.clone() };
        let mut stream = FrameSniffer::new(ours, observer, ReadBudget::default(), 1024);
        assert_eq!(stream.read(&mut [0; 64]).await.unwrap(), 9);
        peer(theirs).await;
        let read = tokio::spawn(async move {
            let mut read = Vec::new();
            stream.read_to_end(&mut read).await.unwrap();
            read
        });
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!read.is_finished());
        entered.store(false, SeqCst);
        assert_eq!(read.await.unwrap(), expected);
    }

    #[tokio::test]
    async fn a_goodbye_waits_for_the_request_that_is_being_handed_over() {
        let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        check_held(async move |mut theirs| theirs.write_all(&goaway).await.unwrap(), &goaway).await;
        check_held(async |theirs| drop(theirs), &[]).await;
    }
}
