//! The contract of [`Connector`], as a suite that any implementation runs.
use std::{future::poll_fn, io, task::Poll, time::Duration};

use chassis_core::tasks::caught;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{Connector, Listener, Stream};

/// The time after which the suite fails an operation: far above the need of any connector.
const CAP: Duration = Duration::from_secs(60);
/// The time that the caller of [`Connector::connect_within`] waits, in the suite.
const BUDGET: Duration = Duration::from_secs(5);
/// More than the buffers between two ends normally hold.
const LARGE: usize = 8 << 20;
/// Addresses that are malformed, or without a listener.
const NOWHERE: [&str; 9] = [
    "",
    ":",
    "nonsense",
    "127.0.0.1:99999",
    "[::1",
    "unix:",
    "unix:/no/such/socket",
    "memory:",
    "\u{0}:\u{e9}",
];

/// Checks that a connector does what [`Connector`] promises. `listener` is at an address that it reaches.
///
/// Each stream transfers bytes in both directions at the same time, complete and in order, and to its own peer.
/// If one end is shut down, the peer sees the end and may still write; a peer that disconnects is noticed. An
/// abandoned connection attempt has no effect on others. An unreachable address is an error in time, never a
/// panic.
///
/// # Panics
/// If a promise is broken; the message names it.
pub async fn connector(connector: &dyn Connector, mut listener: Box<dyn Listener>) {
    let address = listener.address();

    // Two at a time, each to its own peer.
    let (mut one, mut its) = pair(connector, &mut *listener, &address).await;
    let (mut other, mut theirs) = pair(connector, &mut *listener, &address).await;
    for (client, server, said) in [(&mut other, &mut theirs, b"other"), (&mut one, &mut its, b"first")] {
        client.write_all(said).await.expect("a stream takes bytes");
        client.flush().await.expect("a stream is flushed");
        let mut got = [0; 5];
        bounded("bytes", server.read_exact(&mut got)).await.expect("bytes arrive");
        assert_eq!(&got, said, "bytes arrive at their own peer");
    }
    drop((other, theirs));

    // In both directions at once, more than the buffers hold.
    let (client, server) = tokio::join!(exchange(one, b'c', b's'), exchange(its, b's', b'c'));
    drop((client, server));

    // One direction ends, the other continues.
    let (mut client, mut server) = pair(connector, &mut *listener, &address).await;
    client.write_all(b"ask").await.expect("a stream takes bytes");
    client.shutdown().await.expect("a stream is shut down");
    let mut got = Vec::new();
    bounded("the end of what was shut down", server.read_to_end(&mut got)).await.expect("an end is no error");
    assert_eq!(got, b"ask", "what was written before the end arrives");
    server.write_all(b"answer").await.expect("the other way is open");
    // With TLS, an end that was not announced is an error: bytes may be missing.
    server.shutdown().await.expect("a stream is shut down");
    drop(server);
    got.clear();
    bounded("the end of a peer that left", client.read_to_end(&mut got)).await.expect("an end is no error");
    assert_eq!(got, b"answer", "the other way is open until it ends too");

    // A peer that disconnects is noticed, by the reader and by the writer.
    let (mut client, server) = pair(connector, &mut *listener, &address).await;
    drop(server);
    assert!(is_over(&mut client).await, "a client notices that its server left");
    let written = bounded("the failure of writes to a peer that left", async {
        while client.write_all(&[0; 1024]).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    written.await;
    let (client, mut server) = pair(connector, &mut *listener, &address).await;
    drop(client);
    assert!(is_over(&mut server).await, "a server notices that its client left");

    // Attempts that are abandoned.
    for _ in 0..3 {
        let mut begun = connector.connect(&address);
        poll_fn(|cx| Poll::Ready(begun.as_mut().poll(cx).is_ready())).await;
    }
    let (mut client, ours) = (connect(connector, &address).await, b"still well");
    client.write_all(ours).await.expect("a stream takes bytes");
    loop {
        // The abandoned ones may have been accepted, and have ended.
        let mut server = bounded("a connection after some that were given up", listener.accept()).await;
        let server = server.as_mut().expect("a listener accepts");
        let mut got = [0; 10];
        match bounded("bytes, or the end", server.read_exact(&mut got)).await {
            Ok(_) => break assert_eq!(&got, ours),
            Err(_) => continue,
        }
    }

    // There is no listener.
    drop(listener);
    let reached = attempt(connector, &address).await;
    assert!(reached.is_err(), "an address without a listener is an error");
    for address in NOWHERE {
        let _ = attempt(connector, address).await; // it may lead somewhere, by what it is made of
    }
}

async fn connect(connector: &dyn Connector, address: &str) -> Stream {
    attempt(connector, address).await.unwrap_or_else(|why| panic!("no stream to {address}: {why}"))
}

/// A stream, or an error, within the allowed time.
async fn attempt(connector: &dyn Connector, address: &str) -> io::Result<Stream> {
    let within = connector.connect_within(address, BUDGET);
    let reached = bounded("a stream, or an error", caught(within)).await;
    reached.unwrap_or_else(|why| panic!("a connector does not panic at {address:?}: {why}"))
}

async fn pair(connector: &dyn Connector, listener: &mut dyn Listener, address: &str) -> (Stream, Stream) {
    let (client, server) =
        tokio::join!(connect(connector, address), bounded("a connection to accept", listener.accept()));
    (client, server.expect("a listener accepts"))
}

/// Writes and reads a large amount at the same time.
async fn exchange(stream: Stream, ours: u8, theirs: u8) -> Stream {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        writer.write_all(&vec![ours; LARGE]).await.expect("a stream takes bytes while it is read");
        writer.flush().await.expect("a stream is flushed");
    };
    let read = async {
        let mut got = vec![0; LARGE];
        reader.read_exact(&mut got).await.expect("all bytes arrive");
        assert!(got.iter().all(|byte| *byte == theirs), "bytes arrive as they were sent");
    };
    bounded("a large exchange", async { tokio::join!(write, read) }).await;
    reader.unsplit(writer)
}

/// Whether a read finds that the peer disconnected.
async fn is_over(stream: &mut Stream) -> bool {
    match timeout(CAP, stream.read(&mut [0; 16])).await {
        Ok(read) => read.is_err() || read.is_ok_and(|bytes| bytes == 0),
        Err(_) => false,
    }
}

async fn bounded<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(CAP, future).await.unwrap_or_else(|_| panic!("{what} did not come within {CAP:?}"))
}
