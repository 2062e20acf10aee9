//! What h2 does not tell of an HTTP/2 connection: that the server has spoken, how many streams it
//! allows, and that it is going away. Read off the frames that come in.
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::turns::Turns;

/// A stream whose incoming frames are watched.
pub(crate) struct Watched<S, F> {
    stream: S,
    frames: Frames,
    hear: F,
    turns: Turns,
}

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Anything at all.
    Bytes,
    /// The server's settings; `None`: they leave the number of streams as it was.
    Settings { max_streams: Option<u32> },
    /// It takes no more streams, for the reason of this number.
    GoAway { code: u32 },
    /// The first frame is none that HTTP/2 begins with.
    NotHttp2,
}

/// Finds the frames in the bytes, which come in pieces of any size.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// The current frame's header, then what is kept of its payload.
    kept: Vec<u8>,
    /// Bytes of the current frame that are skipped.
    skip: usize,
    begun: bool,
    lost: bool,
}

const HEADER: usize = 9;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const MAX_CONCURRENT_STREAMS: u16 = 3;
/// More settings than exist, several times over.
const KEEP: usize = 256;

/// `ENHANCE_YOUR_CALM`: what a gRPC server says to a client that pings too often.
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

// === impl Watched ===

impl<S, F: FnMut(Seen)> Watched<S, F> {
    pub(crate) fn new(stream: S, hear: F, turns: Turns) -> Self {
        Watched { stream, frames: Frames::default(), hear, turns }
    }
}

impl<S: AsyncRead + Unpin, F: FnMut(Seen) + Unpin> AsyncRead for Watched<S, F> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = to.filled().len();
        if this.turns.is_over(cx) {
            return Poll::Pending;
        }
        ready!(Pin::new(&mut this.stream).poll_read(cx, to))?;
        let read = &to.filled()[before..];
        if !read.is_empty() {
            (this.hear)(Seen::Bytes);
        }
        let frames = this.frames.read(read, &mut this.hear);
        this.turns.read(read.len(), frames);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin, F: Unpin> AsyncWrite for Watched<S, F> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
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
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

// === impl Frames ===

impl Frames {
    /// Goes on with `bytes`; returns how many frames begin in them.
    pub(crate) fn read(&mut self, mut bytes: &[u8], hear: &mut impl FnMut(Seen)) -> usize {
        let mut begun = 0;
        while !bytes.is_empty() && !self.lost {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let wanted = self.wanted();
            let taken = (wanted - self.kept.len()).min(bytes.len());
            self.kept.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.kept.len() == wanted && self.wanted() == wanted {
                self.end(hear);
                begun += 1;
            }
        }
        begun
    }

    /// How many bytes of the current frame to keep, as far as is known.
    fn wanted(&self) -> usize {
        match self.kept.get(..HEADER) {
            Some(header) if matches!(header[3], SETTINGS | GOAWAY) => HEADER + length(header).min(KEEP),
            _ => HEADER,
        }
    }

    fn end(&mut self, hear: &mut impl FnMut(Seen)) {
        let (header, payload) = self.kept.split_at(HEADER);
        let (kind, flags) = (header[3], header[4]);
        if !std::mem::replace(&mut self.begun, true) && kind != SETTINGS {
            self.lost = true;
            return hear(Seen::NotHttp2);
        }
        match kind {
            SETTINGS if flags & ACK == 0 => hear(Seen::Settings { max_streams: max_streams(payload) }),
            GOAWAY if payload.len() >= 8 => hear(Seen::GoAway { code: number(&payload[4..8]) }),
            _ => {}
        }
        self.skip = length(header) - payload.len();
        self.kept.clear();
    }
}

fn length(header: &[u8]) -> usize {
    number(&header[..3]) as usize
}

fn max_streams(settings: &[u8]) -> Option<u32> {
    let one = |s: &[u8]| (number(&s[..2]) == u32::from(MAX_CONCURRENT_STREAMS)).then(|| number(&s[2..]));
    settings.chunks_exact(6).filter_map(one).next_back()
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |n, byte| n << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    const EMPTY: [u8; 9] = [0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];
    const ACKED: [u8; 9] = [0, 0, 0, SETTINGS, ACK, 0, 0, 0, 0];
    const HUNDRED: [u8; 15] = [0, 0, 6, SETTINGS, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100];
    const CALM: [u8; 20] = [0, 0, 11, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 11, b'h', b'i', b'!'];

    /// Whatever the pieces, the same is seen.
    #[track_caller]
    fn check(frames: &[&[u8]], expected: &[Seen]) {
        let bytes = frames.concat();
        for size in 1..=bytes.len() {
            let (mut watched, mut seen) = (Frames::default(), Vec::new());
            let pieces = bytes.chunks(size);
            let begun: usize = pieces.map(|piece| watched.read(piece, &mut |one| seen.push(one))).sum();
            assert_eq!(seen, expected, "in pieces of {size}");
            assert_eq!(begun, if watched.lost { 1 } else { frames.len() });
        }
    }

    #[test]
    fn finds_settings_and_goaway() {
        let settings = |max_streams| Seen::Settings { max_streams };
        check(&[&EMPTY, &ACKED], &[settings(None)]);
        check(&[&HUNDRED, &PING, &EMPTY], &[settings(Some(100)), settings(None)]);
        check(&[&EMPTY, &PING, &CALM, &PING], &[settings(None), Seen::GoAway { code: ENHANCE_YOUR_CALM }]);
    }

    #[test]
    fn tells_what_is_not_http2() {
        check(&[b"HTTP/1.1 400 Bad Request\r\n\r\n"], &[Seen::NotHttp2]);
        check(&[&PING, &EMPTY], &[Seen::NotHttp2]);
    }

    #[test]
    fn a_large_frame_is_skipped() {
        let data = [&[0, 1, 0, 0, 0, 0, 0, 0, 1][..], &[SETTINGS; 256][..]].concat();
        check(
            &[&EMPTY, &data, &HUNDRED],
            &[Seen::Settings { max_streams: None }, Seen::Settings { max_streams: Some(100) }],
        );
        let settings = [&[0, 4, 0, SETTINGS, 0, 0, 0, 0, 0][..], &[9; 1024][..]].concat();
        check(
            &[&settings, &HUNDRED],
            &[Seen::Settings { max_streams: None }, Seen::Settings { max_streams: Some(100) }],
        );
    }
}
