//! Raw bytes over TCP, and HTTP/2 frames, valid or not.
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::peer::PATIENCE;

/// The preface of every HTTP/2 connection.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Kinds of frames.
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

// Their flags.
pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// A frame with its true length.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The headers of `GET /hello/you`, in HPACK: two from the static table, two as literals.
pub(crate) fn get() -> Vec<u8> {
    let mut block = vec![0x82, 0x86]; // :method GET, :scheme http
    block.extend(b"\x04\x0a/hello/you"); // :path
    block.extend(b"\x01\x01x"); // :authority
    block
}

/// The start of a connection, and then these frames.
pub(crate) fn http2(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frames.concat()].concat()
}

/// Sends `bytes` and closes the write side. Returns the bytes received until the other side closed, which it
/// must do.
pub(crate) async fn exchange(address: &str, bytes: &[u8]) -> Vec<u8> {
    let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
    let sending = async {
        // The other side may close before it has read all.
        let _ = write.write_all(bytes).await;
        let _ = write.shutdown().await;
    };
    let (_, said) = tokio::join!(sending, to_the_end(&mut read));
    said
}

/// The bytes received until the other side closes.
pub(crate) async fn to_the_end(read: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut said = Vec::new();
    // A reset is an end too.
    let _ = timeout(PATIENCE, read.read_to_end(&mut said)).await.expect("the connection is never closed");
    said
}
