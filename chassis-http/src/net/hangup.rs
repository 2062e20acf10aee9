//! Notices that the peer of a stream has disconnected, also while its bytes are not read.
//!
//! A read reports the end too, but only after all bytes before it; and bytes that no handler wants yet are not
//! read.
use std::{
    future::pending,
    io,
    net::Shutdown,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_util::sync::CancellationToken;

use super::Io;

/// Resolves when the peer disconnects; clones watch the same peer. The default never resolves.
#[derive(Clone, Default)]
pub(crate) struct Hangup(Source);

#[derive(Clone, Default)]
enum Source {
    #[default]
    None,
    // Weak, so that watching does not keep a stream open.
    Tcp(Weak<TcpStream>),
    Unix(Weak<UnixStream>),
    Memory(Closed),
}

/// One end of a stream within the process, closed in one direction or in both.
#[derive(Clone, Debug, Default)]
pub(super) struct Closed {
    half: CancellationToken,
    whole: CancellationToken,
}

/// A stream that is shared with the tasks that wait for its peer to disconnect.
struct Watched<S>(Arc<S>);

/// The methods of tokio's streams that need no `&mut`.
trait Socket: AsFd + Send + Sync + 'static {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn read(&self, to: &mut ReadBuf<'_>) -> io::Result<usize>;
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;
    fn write_vectored(&self, bytes: &[io::IoSlice<'_>]) -> io::Result<usize>;
    fn attempt(&self, interest: Interest, io: impl FnOnce() -> io::Result<usize>) -> io::Result<usize>;
}

/// Returns `stream` and the [`Hangup`] of its peer.
pub(super) fn watch_tcp(stream: TcpStream) -> (Pin<Box<dyn Io>>, Hangup) {
    let stream = Arc::new(stream);
    let hangup = Hangup(Source::Tcp(Arc::downgrade(&stream)));
    (Box::pin(Watched(stream)), hangup)
}

/// The same for a Unix socket.
pub(super) fn watch_unix(stream: UnixStream) -> (Pin<Box<dyn Io>>, Hangup) {
    let stream = Arc::new(stream);
    let hangup = Hangup(Source::Unix(Arc::downgrade(&stream)));
    (Box::pin(Watched(stream)), hangup)
}

/// FIN and RST both end reading, and this interest reports that without a read; a reset alone is an error. The
/// socket is registered for reading and writing, so that urgent data wakes no task.
fn interest(half_close: bool) -> Interest {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if !half_close {
        return Interest::PRIORITY;
    }
    let _ = half_close;
    Interest::ERROR
}

// === impl Hangup ===

impl Hangup {
    /// A peer in this process, which disconnects when `end` is closed.
    pub(super) fn memory(end: Closed) -> Self {
        Hangup(Source::Memory(end))
    }

    /// Whether a disconnect of the peer can be noticed.
    pub(crate) fn is_known(&self) -> bool {
        !matches!(self.0, Source::None)
    }

    /// Whether a FIN is noticed. Not every system supports that, nor a user's own stream.
    pub(crate) fn notices_fin(&self) -> bool {
        match &self.0 {
            Source::None => false,
            Source::Memory(_) => true,
            Source::Tcp(_) | Source::Unix(_) => cfg!(any(target_os = "linux", target_os = "android")),
        }
    }

    /// Resolves when the peer has closed its side or reset the connection; with `half_close` only when it has
    /// reset it. Never resolves if that cannot be known.
    pub(crate) async fn wait(self, half_close: bool) {
        let interest = interest(half_close);
        let left = match self.0 {
            Source::Tcp(stream) => match stream.upgrade() {
                Some(stream) => stream.ready(interest).await.is_ok(),
                None => false,
            },
            Source::Unix(stream) => match stream.upgrade() {
                Some(stream) => stream.ready(interest).await.is_ok(),
                None => false,
            },
            Source::Memory(end) => {
                let closed = if half_close { end.whole } else { end.half };
                closed.cancelled_owned().await;
                true
            }
            Source::None => false,
        };
        if !left {
            pending().await
        }
    }
}

// === impl Closed ===

impl Closed {
    /// The peer sends no more.
    pub(super) fn half(&self) {
        self.half.cancel();
    }

    /// The peer reads no more either.
    pub(super) fn whole(&self) {
        self.half.cancel();
        self.whole.cancel();
    }
}

// === impl Watched ===

impl<S: Socket> Watched<S> {
    /// Runs `io`, for which `whole` bytes are a complete operation. As in tokio's own streams, a smaller result
    /// shows that nothing is left to read, or no room to write, and saves the call that would find this out.
    fn attempt(
        &self,
        interest: Interest,
        whole: usize,
        io: impl FnOnce() -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut part = None;
        let done = self.0.attempt(interest, || match io() {
            Ok(n) if 0 < n && n < whole => {
                part = Some(n);
                Err(io::ErrorKind::WouldBlock.into())
            }
            done => done,
        });
        part.map_or(done, Ok)
    }

    fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        whole: usize,
        write: impl Fn(&S) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_writable(cx))?;
            match self.attempt(Interest::WRITABLE, whole, || write(&self.0)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

impl<S: Socket> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_readable(cx))?;
            match self.attempt(Interest::READABLE, to.remaining(), || self.0.read(to)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done.map(drop)),
            }
        }
    }
}

impl<S: Socket> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, bytes.len(), |stream| stream.write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // tokio shuts down only streams that it owns. Another descriptor refers to the same socket.
        let socket = self.0.as_fd().try_clone_to_owned()?;
        Poll::Ready(shut_down(socket))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let whole = bytes.iter().map(|slice| slice.len()).sum();
        self.poll_write_with(cx, whole, |stream| stream.write_vectored(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

fn shut_down(socket: OwnedFd) -> io::Result<()> {
    match std::net::TcpStream::from(socket).shutdown(Shutdown::Write) {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        done => done,
    }
}

macro_rules! socket {
    ($stream:ty) => {
        impl Socket for $stream {
            fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_read_ready(cx)
            }
            fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_write_ready(cx)
            }
            fn read(&self, to: &mut ReadBuf<'_>) -> io::Result<usize> {
                self.try_read_buf(to)
            }
            fn write(&self, bytes: &[u8]) -> io::Result<usize> {
                self.try_write(bytes)
            }
            fn write_vectored(&self, bytes: &[io::IoSlice<'_>]) -> io::Result<usize> {
                self.try_write_vectored(bytes)
            }
            fn attempt(
                &self,
                interest: Interest,
                io: impl FnOnce() -> io::Result<usize>,
            ) -> io::Result<usize> {
                self.try_io(interest, io)
            }
        }
    };
}

socket!(TcpStream);
socket!(UnixStream);
