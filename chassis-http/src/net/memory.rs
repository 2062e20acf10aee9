//! Streams within the process, by name; a test can inject faults. They work on the paused clock.
use std::{
    collections::HashMap,
    fmt, io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use async_trait::async_trait;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::mpsc,
};

use super::{
    Connector, Listener, Peer, Stream,
    hangup::{Closed, Hangup},
};

/// Names and their listeners. Clones share it.
///
/// ```
/// use chassis_http::connector::{Fate, MemoryNetwork};
///
/// let network = MemoryNetwork::default();
/// // The first connection breaks after ten bytes to the server; all others work.
/// network.faults("stock", |n| match n {
///     0 => Fate::Cut { to_server: Some(10), to_client: None },
///     _ => Fate::Well,
/// });
/// ```
#[derive(Clone, Default)]
pub struct MemoryNetwork(Arc<Mutex<HashMap<String, Name>>>);

/// The fate of a connection, which a test chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// No fault.
    Well,
    /// It is refused.
    Refuse,
    /// The attempt never ends.
    Hang,
    /// The connection breaks after this many bytes in one direction; `None`: never in that direction.
    Cut {
        /// From the client to the server.
        to_server: Option<usize>,
        /// From the server to the client.
        to_client: Option<usize>,
    },
}

/// Accepts the streams opened to a name, until it is dropped.
pub struct MemoryListener {
    name: Arc<str>,
    number: u64,
    network: MemoryNetwork,
    streams: mpsc::Receiver<Stream>,
}

#[derive(Default)]
struct Name {
    listener: Option<(u64, mpsc::Sender<Stream>)>,
    faults: Option<Arc<dyn Fn(u64) -> Fate + Send + Sync>>,
    connections: u64,
}

/// One end; `None` after it broke.
struct End {
    pipe: Option<DuplexStream>,
    /// Notified when this end is closed.
    ours: Closed,
    /// The number of bytes that may still be written.
    left: Option<usize>,
    reader: Option<Waker>,
}

/// The size of a socket's buffers: enough that small writes never wait.
const BUFFER: usize = 64 * 1024;
/// The backlog of connections that are not accepted yet, as in a kernel.
const BACKLOG: usize = 1024;

// === impl MemoryNetwork ===

impl MemoryNetwork {
    /// Listens at `name`; an error if the name is taken.
    pub fn listen(&self, name: &str) -> io::Result<MemoryListener> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut names = self.names();
        let entry = names.entry(name.to_owned()).or_default();
        if entry.listener.as_ref().is_some_and(|(_, streams)| !streams.is_closed()) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("memory:{name} is taken")));
        }
        let (sender, streams) = mpsc::channel(BACKLOG);
        entry.listener = Some((number, sender));
        Ok(MemoryListener { name: name.into(), number, network: self.clone(), streams })
    }

    /// From now on `fate` decides the fault of connections to `name`, by their number from 0.
    pub fn faults(&self, name: &str, fate: impl Fn(u64) -> Fate + Send + Sync + 'static) {
        let mut names = self.names();
        let entry = names.entry(name.to_owned()).or_default();
        entry.faults = Some(Arc::new(fate));
        entry.connections = 0;
    }

    /// The number of attempts to connect to `name` since its faults were last set.
    pub fn connections(&self, name: &str) -> u64 {
        self.names().get(name).map_or(0, |entry| entry.connections)
    }

    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn names(&self) -> MutexGuard<'_, HashMap<String, Name>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Connector for MemoryNetwork {
    async fn connect(&self, name: &str) -> io::Result<Stream> {
        let name = name.strip_prefix("memory:").unwrap_or(name);
        let (fate, listener) = {
            let mut names = self.names();
            let entry = names.entry(name.to_owned()).or_default();
            let number = entry.connections;
            entry.connections += 1;
            let fate = entry.faults.clone().map_or(Fate::Well, |fate| fate(number));
            (fate, entry.listener.as_ref().map(|(_, streams)| streams.clone()))
        };
        let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, "no listener there");
        let (to_server, to_client) = match fate {
            Fate::Well => (None, None),
            Fate::Refuse => return Err(refused()),
            Fate::Hang => std::future::pending().await,
            Fate::Cut { to_server, to_client } => (to_server, to_client),
        };
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let peer = Peer::Memory(name.into());
        let (client, server) = (Closed::default(), Closed::default());
        let end = |pipe, left, ours: &Closed, theirs| {
            let end = End { pipe: Some(pipe), ours: ours.clone(), left, reader: None };
            Stream::new(end, peer.clone()).with_hangup(Hangup::memory(theirs))
        };
        let ours = end(ours, to_server, &client, server.clone());
        let theirs = end(theirs, to_client, &server, client);
        listener.ok_or_else(refused)?.send(theirs).await.map_err(|_| refused())?;
        Ok(ours)
    }
}

impl fmt::Debug for MemoryNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names().keys()).finish()
    }
}

// === impl MemoryListener ===

#[async_trait]
impl Listener for MemoryListener {
    async fn accept(&mut self) -> io::Result<Stream> {
        // This is closed only if the name was taken over, which a live listener does not allow.
        self.streams.recv().await.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn address(&self) -> String {
        format!("memory:{}", self.name)
    }
}

impl Drop for MemoryListener {
    fn drop(&mut self) {
        if let Some(entry) = self.network.names().get_mut(&*self.name) {
            entry.listener.take_if(|(number, _)| *number == self.number);
        }
    }
}

// === impl End ===

impl End {
    /// The part of `len` bytes that may still be written; 0 breaks the connection.
    fn admit(&mut self, len: usize) -> io::Result<usize> {
        match self.left {
            Some(0) if len > 0 => {
                self.pipe = None;
                self.ours.whole();
                if let Some(reader) = self.reader.take() {
                    reader.wake();
                }
                Err(io::ErrorKind::BrokenPipe.into())
            }
            Some(left) => Ok(len.min(left)),
            None => Ok(len),
        }
    }

    fn pipe(&mut self, broken: io::ErrorKind) -> io::Result<Pin<&mut DuplexStream>> {
        self.pipe.as_mut().map(Pin::new).ok_or_else(|| broken.into())
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = this.pipe(io::ErrorKind::ConnectionReset)?.poll_read(cx, to);
        if polled.is_pending() {
            this.reader = Some(cx.waker().clone());
        }
        polled
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let admitted = this.admit(bytes.len())?;
        let written = ready!(this.pipe(io::ErrorKind::BrokenPipe)?.poll_write(cx, &bytes[..admitted]))?;
        this.left = this.left.map(|left| left - written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().pipe(io::ErrorKind::BrokenPipe)?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.pipe {
            Some(pipe) => {
                this.ours.half();
                Pin::new(pipe).poll_shutdown(cx)
            }
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.ours.whole();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn pair(network: &MemoryNetwork) -> (Stream, Stream) {
        let mut listener = network.listen("a").unwrap();
        let client = network.connect("memory:a").await.unwrap();
        (client, listener.accept().await.unwrap())
    }

    #[tokio::test]
    async fn breaks_after_so_many_bytes() {
        let network = MemoryNetwork::default();
        network.faults("a", |_| Fate::Cut { to_server: Some(3), to_client: None });
        let (mut client, mut server) = pair(&network).await;
        let broken = client.write_all(b"12345").await.unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::BrokenPipe);
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"123");
        assert_eq!(client.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_waiting_reader_hears_of_the_cut() {
        let network = MemoryNetwork::default();
        network.faults("a", |_| Fate::Cut { to_server: Some(0), to_client: None });
        let (client, _server) = pair(&network).await;
        let (mut read, mut write) = tokio::io::split(client);
        let reader = tokio::spawn(async move { read.read_u8().await.unwrap_err().kind() });
        tokio::task::yield_now().await;
        write.write_all(b"1").await.unwrap_err();
        assert_eq!(reader.await.unwrap(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn refuses_when_told_and_when_nobody_listens() {
        let network = MemoryNetwork::default();
        let refused = network.connect("a").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let listener = network.listen("a").unwrap();
        assert_eq!(network.listen("a").err().unwrap().kind(), io::ErrorKind::AddrInUse);
        network.faults("a", |n| if n == 0 { Fate::Refuse } else { Fate::Well });
        assert!(network.connect("a").await.is_err());
        assert!(network.connect("a").await.is_ok());
        assert_eq!(network.connections("a"), 2);
        drop(listener);
        assert!(network.connect("a").await.is_err());
        assert!(network.listen("a").is_ok());
    }
}
