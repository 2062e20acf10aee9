//! A server's stream: it yields again the bytes from which the version was read, and observes all incoming
//! bytes.
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::oneshot,
    time::{sleep, timeout},
};

use super::activity::Activity;
use crate::{h2::FrameMonitor, net::Stream, wire::PREFACE};

/// The version of HTTP at the begin of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    H1,
    H2,
}

/// The first bytes of a connection.
pub(crate) struct Opening {
    bytes: [u8; PREFACE.len()],
    read: usize,
    /// The number of them that were passed on.
    given: usize,
}

/// A stream that begins with its opening again, and that is returned at the end.
pub(crate) struct Opened {
    stream: Option<Stream>,
    opening: Opening,
    observer: Observer,
    /// Whether the last write has to wait.
    blocked: bool,
    back: Option<oneshot::Sender<Stream>>,
}

/// Observes the incoming bytes.
pub(crate) enum Observer {
    /// Over HTTP/1.1: measures slow heads.
    Http1(Arc<Activity>),
    /// Over HTTP/2: observes the frames.
    Http2(FrameMonitor),
}

/// Receives the returned stream.
pub(crate) struct ReturnedStream(oneshot::Receiver<Stream>);

/// Bytes that are read and discarded at a connection's end: a peer that sends more continues to send.
const DISCARD_BYTES: usize = 2 * 1024 * 1024;
/// The bytes that are read from a cut-off peer between two pauses; all in less than a second. While the peer
/// waits, it does not flood another connection.
const BEFORE_PAUSE: usize = 16 * 1024;
const CUT_OFF_PAUSE: Duration = Duration::from_millis(5);
/// The size of a small read: some twenty calls.
const LITTLE: usize = 2048;

// === impl Opening ===

impl Opening {
    pub(crate) fn new() -> Self {
        Opening { bytes: [0; PREFACE.len()], read: 0, given: 0 }
    }

    /// Reads until the version is known. `None` if the peer closed without sending anything.
    pub(crate) async fn read(&mut self, stream: &mut Stream) -> io::Result<Option<Version>> {
        while self.read < PREFACE.len() {
            let n = stream.read(&mut self.bytes[self.read..]).await?;
            if n == 0 && self.read == 0 {
                return Ok(None);
            }
            self.read += n;
            if n == 0 || !PREFACE.starts_with(&self.bytes[..self.read]) {
                return Ok(Some(Version::H1));
            }
        }
        Ok(Some(Version::H2))
    }
}

// === impl Opened ===

impl Opened {
    pub(crate) fn new(stream: Stream, opening: Opening, observer: Observer) -> (Self, ReturnedStream) {
        let (back, returned) = oneshot::channel();
        (
            Opened { stream: Some(stream), opening, observer, blocked: false, back: Some(back) },
            ReturnedStream(returned),
        )
    }

    fn stream(&mut self) -> Pin<&mut Stream> {
        Pin::new(self.stream.as_mut().expect("only taken out when dropped"))
    }

    fn wrote(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(bytes)) => {
                if let Observer::Http2(monitor) = &mut self.observer {
                    monitor.wrote(*bytes);
                }
                if self.blocked {
                    self.activity().wrote(*bytes);
                }
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.block(),
        }
        written
    }

    #[cold]
    fn block(&mut self) {
        if !std::mem::replace(&mut self.blocked, true) {
            self.activity().write_blocked();
        }
    }

    fn activity(&self) -> &Activity {
        match &self.observer {
            Observer::Http1(activity) => activity,
            Observer::Http2(monitor) => monitor.activity(),
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let (Some(stream), Some(back)) = (self.stream.take(), self.back.take()) {
            let _ = back.send(stream);
        }
    }
}

impl AsyncRead for Opened {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let opening = &mut this.opening;
        if opening.given < opening.read {
            let end = opening.read.min(opening.given + to.remaining());
            to.put_slice(&opening.bytes[opening.given..end]);
            opening.given = end;
            return Poll::Ready(Ok(()));
        }
        let before = to.filled().len();
        let stream = Pin::new(this.stream.as_mut().expect("only taken out when dropped"));
        if let Observer::Http2(monitor) = &this.observer
            && monitor.is_spent(cx)
        {
            return Poll::Pending;
        }
        match &this.observer {
            Observer::Http2(monitor) if monitor.is_slow() => ready!(read_little(stream, cx, to))?,
            _ => ready!(stream.poll_read(cx, to))?,
        }
        let read = &to.filled()[before..];
        match &mut this.observer {
            _ if read.is_empty() => {}
            Observer::Http1(activity) => activity.head_bytes(),
            Observer::Http2(monitor) => monitor.read(read),
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Opened {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.stream().poll_write(cx, bytes);
        self.wrote(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Both hyper and h2 flush once nothing is left to write.
        match self.stream().poll_flush(cx) {
            Poll::Ready(flushed) => {
                if std::mem::take(&mut self.blocked) {
                    self.activity().write_unblocked();
                }
                Poll::Ready(flushed)
            }
            Poll::Pending => {
                self.block();
                Poll::Pending
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream().poll_write_vectored(cx, bytes);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.is_write_vectored())
    }
}

// === impl ReturnedStream ===

impl ReturnedStream {
    /// Closes the stream once the peer has closed it, or `bound` has passed; a peer that was cut off is read
    /// slowly.
    ///
    /// Closing with unread bytes resets the connection: then the peer may never receive the last frames, in
    /// particular which of its streams were not started.
    pub(crate) async fn close(mut self, bound: Duration, is_cut_off: bool) {
        if let Ok(mut stream) = self.0.try_recv() {
            let pause = is_cut_off.then_some(CUT_OFF_PAUSE);
            let _ = timeout(bound, finish(&mut stream, pause)).await;
        }
    }
}

/// Reads at most [`LITTLE`] bytes.
#[cold]
fn read_little(stream: Pin<&mut Stream>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
    let mut bytes = [0; LITTLE];
    let mut little = ReadBuf::new(&mut bytes[..LITTLE.min(to.remaining())]);
    ready!(stream.poll_read(cx, &mut little))?;
    to.put_slice(little.filled());
    Poll::Ready(Ok(()))
}

/// Shuts down the write side, and reads on until the peer does the same, or has sent what may have been in
/// flight.
///
/// `pause` follows each [`BEFORE_PAUSE`] bytes.
pub(crate) async fn finish(stream: &mut Stream, pause: Option<Duration>) -> io::Result<()> {
    stream.shutdown().await?;
    let (mut ignored, mut read, mut next) = ([0; 4096], 0, BEFORE_PAUSE);
    while read < DISCARD_BYTES {
        match stream.read(&mut ignored).await? {
            0 => break,
            n => read += n,
        }
        if let Some(pause) = pause.filter(|_| read >= next) {
            next = read + BEFORE_PAUSE;
            sleep(pause).await;
        }
    }
    Ok(())
}
