//! Byte streams, by address: the base of connections for clients and servers, below HTTP.
//!
//! TLS is added here: as a [`Connector`] around another one on the client, as an [`Acceptor`] on the server.
pub(crate) mod backoff;
#[cfg(feature = "testing")]
pub mod contract;
mod eyeballs;
mod hangup;
mod memory;
mod network;
mod tls;
pub(crate) mod write_rate;

use std::{
    any::Any,
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

pub(crate) use self::hangup::Hangup;
pub use self::{
    memory::{Fate, MemoryListener, MemoryNetwork},
    network::Network,
    tls::{Pem, TlsConfig},
};

/// Opens a stream to an address. Object-safe; must be cancel-safe: the caller bounds the time.
/// Every implementation passes `connector::contract` (feature `testing`).
///
/// ```
/// use std::io;
/// use chassis_http::connector::{Connector, Network, Stream};
///
/// /// Leads every connection to one place.
/// struct Always(Network, String);
///
/// #[async_trait::async_trait]
/// impl Connector for Always {
///     async fn connect(&self, _address: &str) -> io::Result<Stream> {
///         self.0.connect(&self.1).await
///     }
/// }
/// ```
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Opens a stream to `address`: `host:port`, `unix:/path`, `memory:name`, or another form that it supports.
    async fn connect(&self, address: &str) -> io::Result<Stream>;

    /// The same for a caller that waits no longer than `budget`; if `address` stands for several, that is the
    /// time for all of them together. Default: [`connect`](Self::connect).
    async fn connect_within(&self, address: &str, budget: Duration) -> io::Result<Stream> {
        let _ = budget;
        self.connect(address).await
    }

    /// Are its streams encrypted? Then requests over HTTP/2 have the scheme `https`. Default `false`.
    fn is_secure(&self) -> bool {
        false
    }
}

/// Accepts incoming streams.
#[async_trait]
pub trait Listener: Send + 'static {
    /// The next stream. Must be cancel-safe. After an error the next call may succeed.
    async fn accept(&mut self) -> io::Result<Stream>;

    /// The bound address, in the form that a [`Connector`] accepts.
    fn address(&self) -> String;
}

/// Converts an accepted stream into the one that HTTP uses: TLS, a PROXY header. It runs in the connection's
/// own task, and the server bounds its time.
#[async_trait]
pub trait Acceptor: Send + Sync + 'static {
    /// The stream to use HTTP on.
    async fn accept(&self, stream: Stream) -> io::Result<Stream>;
}

/// No TLS: returns the stream unchanged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

/// The bytes of a connection, and its peer.
pub struct Stream {
    io: Kind,
    peer: Peer,
    hangup: Hangup,
}

enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
    Other(Pin<Box<dyn Io>>),
}

/// The other end of a connection. On a server, an extension of each request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// By TCP.
    Tcp(SocketAddr),
    /// By a Unix socket, which has no addresses.
    Unix,
    /// Within this process, by name.
    Memory(Arc<str>),
}

/// The bytes of a [`Stream`].
pub trait Io: AsyncRead + AsyncWrite + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + 'static> Io for T {}

// === impl Plain ===

#[async_trait]
impl Acceptor for Plain {
    async fn accept(&self, stream: Stream) -> io::Result<Stream> {
        Ok(stream)
    }
}

// === impl Stream ===

impl Stream {
    /// Creates a stream of `io` with `peer` at its other end. For tokio's `TcpStream` and `UnixStream`
    /// themselves, a server notices also while it does not read that the peer has disconnected; likewise for
    /// streams that an [`Acceptor`] makes from them.
    pub fn new<T: Io>(io: T, peer: Peer) -> Self {
        let mut io = Some(io);
        let any: &mut dyn Any = &mut io;
        if let Some(stream) = any.downcast_mut().and_then(Option::take) {
            return Stream::tcp(stream, peer);
        }
        if let Some(stream) = any.downcast_mut().and_then(Option::take) {
            return Stream { peer, ..Stream::unix(stream) };
        }
        let io: Pin<Box<dyn Io>> = match io {
            Some(io) => Box::pin(io),
            // Only the two types above are taken out.
            None => Box::pin(tokio::io::empty()),
        };
        Stream { io: Kind::Other(io), peer, hangup: Hangup::default() }
    }

    fn tcp(stream: TcpStream, peer: Peer) -> Self {
        Stream { io: Kind::Tcp(stream), peer, hangup: Hangup::default() }
    }

    fn unix(stream: UnixStream) -> Self {
        Stream { io: Kind::Unix(stream), peer: Peer::Unix, hangup: Hangup::default() }
    }

    /// The same stream, whose [`hangup`](Self::hangup) resolves when the peer disconnects. Reads and writes
    /// take one more indirection.
    pub(crate) fn watched(self) -> Self {
        let Stream { io, peer, hangup } = self;
        let (io, hangup) = match io {
            Kind::Tcp(stream) => hangup::watch_tcp(stream),
            Kind::Unix(stream) => hangup::watch_unix(stream),
            Kind::Other(io) => (io, hangup),
        };
        Stream { io: Kind::Other(io), peer, hangup }
    }

    /// Resolves when the peer disconnects, where the system reports that without a read.
    pub(crate) fn hangup(&self) -> Hangup {
        self.hangup.clone()
    }

    /// The same stream with the `hangup` of the stream below it.
    pub(crate) fn with_hangup(self, hangup: Hangup) -> Self {
        Stream { hangup, ..self }
    }

    /// The other end of the connection.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    fn io(&mut self) -> Pin<&mut dyn Io> {
        match &mut self.io {
            Kind::Tcp(stream) => Pin::<&mut TcpStream>::new(stream),
            Kind::Unix(stream) => Pin::<&mut UnixStream>::new(stream),
            Kind::Other(io) => io.as_mut(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, to)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Kind::Tcp(stream) => stream.is_write_vectored(),
            Kind::Unix(stream) => stream.is_write_vectored(),
            Kind::Other(io) => io.is_write_vectored(),
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("peer", &self.peer).finish_non_exhaustive()
    }
}

// === impl Peer ===

impl Peer {
    /// The address without the port, if there is one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Peer::Tcp(address) => Some(address.ip()),
            Peer::Unix | Peer::Memory(_) => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(f),
            Peer::Unix => f.write_str("unix"),
            Peer::Memory(name) => write!(f, "memory:{name}"),
        }
    }
}
