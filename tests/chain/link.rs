//! A test connector: it counts bytes and breaks connections, at any byte or all at once.
use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker, ready},
};

use chassis::http::connector::{Connector, Network, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Opens connections through a network and keeps control of them. Clones share it.
#[derive(Clone)]
pub(crate) struct Links {
    network: Network,
    book: Arc<Mutex<Book>>,
}

/// The direction of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer = 0,
    ToClient = 1,
}

/// The bytes of all connections, and where the next of them breaks.
#[derive(Default)]
struct Book {
    opened: u64,
    bytes: [usize; 2],
    /// After so many bytes in this direction, the connection that carries more of them breaks.
    cut: Option<(Way, usize)>,
    /// Connections with a number below this are broken.
    broken_below: u64,
    /// The waiting reader of each connection, by number.
    readers: HashMap<u64, Waker>,
}

/// One connection.
struct Link {
    stream: Option<Stream>,
    number: u64,
    book: Arc<Mutex<Book>>,
}

// === impl Links ===

impl Links {
    pub(crate) fn over(network: &Network) -> Self {
        Links { network: network.clone(), book: Arc::default() }
    }

    /// Breaks the next connection that carries more than `after` bytes in this direction.
    pub(crate) fn cut(&self, way: Way, after: usize) {
        self.book().cut = Some((way, after));
    }

    /// Cancels the break. Returns whether it had happened.
    pub(crate) fn mend(&self) -> bool {
        self.book().cut.take().is_none()
    }

    /// Breaks every open connection.
    pub(crate) fn break_all(&self) {
        let mut book = self.book();
        book.broken_below = book.opened;
        book.readers.drain().for_each(|(_, reader)| reader.wake());
    }

    /// The number of bytes in this direction.
    pub(crate) fn bytes(&self, way: Way) -> usize {
        self.book().bytes[way as usize]
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }
}

#[async_trait::async_trait]
impl Connector for Links {
    async fn connect(&self, address: &str) -> io::Result<Stream> {
        let stream = self.network.connect(address).await?;
        let peer = stream.peer().clone();
        let mut book = self.book();
        book.opened += 1;
        let link = Link { stream: Some(stream), number: book.opened - 1, book: self.book.clone() };
        Ok(Stream::new(link, peer))
    }
}

// === impl Book ===

impl Book {
    /// How many of `most` bytes may pass in this direction; `None` at the break.
    fn admit(&mut self, way: Way, most: usize) -> Option<usize> {
        match self.cut {
            Some((of, 0)) if of == way => {
                self.cut = None;
                None
            }
            Some((of, left)) if of == way => Some(most.min(left)),
            _ => Some(most),
        }
    }

    fn count(&mut self, way: Way, bytes: usize) {
        self.bytes[way as usize] += bytes;
        if let Some((of, left)) = &mut self.cut
            && *of == way
        {
            *left = left.saturating_sub(bytes);
        }
    }
}

// === impl Link ===

impl Link {
    /// The stream, unless it is broken.
    fn stream(&mut self) -> io::Result<Pin<&mut Stream>> {
        if self.number < self.book.lock().unwrap().broken_below {
            self.stream = None;
        }
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::ConnectionReset.into())
    }

    /// Breaks the connection: the other side sees its end.
    fn cut(&mut self) -> io::Error {
        self.stream = None;
        io::ErrorKind::ConnectionReset.into()
    }
}

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let room = {
            let mut book = this.book.lock().unwrap();
            book.readers.insert(this.number, cx.waker().clone());
            match book.cut {
                // Allows one byte more than the limit, to see that there is one: silence breaks nothing.
                Some((Way::ToClient, left)) => to.remaining().min(left.max(1)),
                _ => to.remaining(),
            }
        };
        let mut bytes = vec![0; room];
        let mut read = ReadBuf::new(&mut bytes);
        ready!(this.stream()?.poll_read(cx, &mut read))?;
        let read = read.filled();
        if !read.is_empty() {
            let admitted = this.book.lock().unwrap().admit(Way::ToClient, read.len());
            if admitted.is_none() {
                return Poll::Ready(Err(this.cut()));
            }
            this.book.lock().unwrap().count(Way::ToClient, read.len());
        }
        to.put_slice(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let admitted = this.book.lock().unwrap().admit(Way::ToServer, bytes.len());
        let Some(most) = admitted else { return Poll::Ready(Err(this.cut())) };
        let written = ready!(this.stream()?.poll_write(cx, &bytes[..most]))?;
        this.book.lock().unwrap().count(Way::ToServer, written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.book.lock().unwrap().readers.remove(&self.number);
    }
}
