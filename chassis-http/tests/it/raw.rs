//! Hand-written HTTP/2, for messages that no library would send.
use chassis_http::connector::Stream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RESET: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const ACK: u8 = 1;

/// GET, http, / of the static table.
pub(crate) const GET: [u8; 3] = [0x82, 0x86, 0x84];
pub(crate) const CANCEL: [u8; 4] = 8u32.to_be_bytes();

/// An incoming frame.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The settings with these numbers.
pub(crate) fn settings(pairs: &[(u16, u32)]) -> Vec<u8> {
    let payload = pairs.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
    frame(SETTINGS, 0, 0, &payload.collect::<Vec<u8>>())
}

pub(crate) fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RESET, 0, stream, &code.to_be_bytes())
}

pub(crate) fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

/// A header list in as many frames as it needs, its fields as literals.
pub(crate) fn headers(stream: u32, fields: &[(&str, &str)], end: bool) -> Vec<u8> {
    let literal = |text: &str| [&varint(text.len())[..], text.as_bytes()].concat();
    let field = |(name, value): &(&str, &str)| [&[0][..], &literal(name), &literal(value)].concat();
    let block: Vec<u8> = fields.iter().flat_map(field).collect();
    let mut parts = block.chunks(16_384).enumerate().peekable();
    let mut frames = Vec::new();
    while let Some((n, part)) = parts.next() {
        let last = if parts.peek().is_none() { END_HEADERS } else { 0 };
        let (kind, end) = if n == 0 { (HEADERS, u8::from(end)) } else { (CONTINUATION, 0) };
        frames.extend(frame(kind, last | end, stream, part));
    }
    frames
}

/// A number as HPACK writes lengths of strings.
fn varint(n: usize) -> Vec<u8> {
    if n < 127 {
        return vec![n as u8];
    }
    let (mut out, mut rest) = (vec![127], n - 127);
    while rest >= 128 {
        out.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    out.push(rest as u8);
    out
}

/// The next frame. Settings and pings are acknowledged.
pub(crate) async fn read(stream: &mut Stream) -> Option<Frame> {
    let mut header = [0; 9];
    stream.read_exact(&mut header).await.ok()?;
    let [a, b, c, kind, flags, id @ ..] = header;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    if matches!(kind, SETTINGS | PING) && flags & 1 == 0 {
        let answer = if kind == PING { &payload[..] } else { &[] };
        stream.write_all(&frame(kind, 1, 0, answer)).await.ok()?;
    }
    Some(Frame { kind, flags, stream: u32::from_be_bytes(id), payload })
}

/// The next frame of this kind; `None` if the peer closed.
pub(crate) async fn read_until(stream: &mut Stream, kind: u8) -> Option<Frame> {
    loop {
        let frame = read(stream).await?;
        if frame.kind == kind {
            return Some(frame);
        }
    }
}

/// The server's side: reads the preface, and sends its settings.
pub(crate) async fn greet(stream: &mut Stream, pairs: &[(u16, u32)]) {
    stream.write_all(&settings(pairs)).await.unwrap();
    stream.read_exact(&mut [0; 24]).await.unwrap();
}

/// The client's side: sends the preface and its settings.
pub(crate) async fn open(stream: &mut Stream, pairs: &[(u16, u32)]) {
    stream.write_all(&[&PREFACE[..], &settings(pairs)].concat()).await.unwrap();
}

/// The stream number of the `call`th call, from 0.
pub(crate) fn stream(call: usize) -> u32 {
    2 * call as u32 + 1
}

/// The next frame, without any reaction to it.
pub(crate) async fn receive(from: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let mut header = [0; 9];
    from.read_exact(&mut header).await.ok()?;
    let [a, b, c, kind, flags, id @ ..] = header;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    from.read_exact(&mut payload).await.ok()?;
    Some(Frame { kind, flags, stream: u32::from_be_bytes(id), payload })
}

/// Reads to the end; returns the error code of the last GOAWAY.
pub(crate) async fn goodbye(from: &mut (impl AsyncRead + Unpin)) -> Option<u32> {
    let mut code = None;
    while let Some(frame) = receive(from).await {
        if frame.kind == GOAWAY {
            code = Some(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()));
        }
    }
    code
}
