//! A connector of our own: what it opens, a test measures and breaks, at any byte or all at once.
use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker, ready},
};

use chassis::http::connector::{Connector, Network, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Opens connections by a network, and has them in hand. Clones share it.
#[derive(Clone)]
pub(crate) struct Links {
    network: Network,
    book: Arc<Mutex<Book>>,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer = 0,
    ToClient = 1,
}

/// What went over all connections, and where the next of them breaks.
#[derive(Default)]
struct Book {
    opened: u64,
    bytes: [usize; 2],
    /// Once so many bytes have gone this way, the connection that carries more of them breaks.
    cut: Option<(Way, usize)>,
    /// Connections with a number below this are broken.
    broken_below: u64,
    /// Who reads a connection, by its number.
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

    /// The next connection that carries anything beyond `after` bytes this way breaks there.
    pub(crate) fn cut(&self, way: Way, after: usize) {
        self.book().cut = Some((way, after));
    }

    /// Nothing breaks any more. Had it come to the cut?
    pub(crate) fn mend(&self) -> bool {
        self.book().cut.take().is_none()
    }

    /// Breaks every connection there is.
    pub(crate) fn break_all(&self) {
        let mut book = self.book();
        book.broken_below = book.opened;
        book.readers.drain().for_each(|(_, reader)| reader.wake());
    }

    /// How many bytes went this way.
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
    /// How many of `most` bytes may go this way; `None`: it comes to the cut.
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
    /// The connection, unless it is broken.
    fn stream(&mut self) -> io::Result<Pin<&mut Stream>> {
        if self.number < self.book.lock().unwrap().broken_below {
            self.stream = None;
        }
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::ConnectionReset.into())
    }

    /// Breaks it: the other side sees its end.
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
                // One byte more than may come shows that there is one: silence breaks nothing.
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
