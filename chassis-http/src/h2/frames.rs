//! The frames of an HTTP/2 connection, for events that h2 does not report: the first frame of a server, its settings,
//! windows, GOAWAY. A connection's sniffer parses the frames that come in.
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use super::flood::Abuse;

/// An event of the incoming frames of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameEvent {
    /// Bytes, of any kind.
    Bytes,
    /// A frame has begun.
    Frame(FrameHead),
    /// The peer's window grows: of a stream, or (0) of the whole connection.
    WindowUpdate { stream: u32, by: u32 },
    /// The peer sent more than its limits allow: the connection must be closed.
    Abuse(Abuse),
    /// The peer's settings; `None` if they do not change a value.
    Settings { max_streams: Option<u32>, max_header_list: Option<u32>, stream_window: Option<u32> },
    /// The peer accepts no more streams; `code` is the error code.
    GoAway { code: u32 },
    /// The first frame is not the one that HTTP/2 begins with.
    NotHttp2,
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHead {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) length: u32,
    /// 0 for the connection.
    pub(crate) stream: u32,
}

/// Parses frames from the bytes, which arrive in pieces of any size.
#[derive(Debug, Default)]
pub(crate) struct FrameParser {
    /// The current frame's header, then the needed part of its payload.
    kept: Vec<u8>,
    /// Bytes of the current frame that are skipped.
    skip: usize,
    /// Encoded bytes of the most recent header list.
    list: usize,
    /// The kind of the frame that is being skipped, or of the last one.
    kind: u8,
    /// Whether a header list has begun and not ended.
    in_list: bool,
    /// The number of frame headers so far.
    count: u64,
    begun: bool,
    lost: bool,
}

/// The bytes of one header list that a peer accepts: any number, until its settings limit it. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct HeaderLimit(Arc<AtomicU32>);

/// The missing part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfinished {
    Nothing,
    /// Bytes of a message, as far as is known.
    Data,
    /// The rest of another frame, or of a header list.
    Other,
}

const HEADER: usize = 9;
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RESET: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_HEADER_LIST_SIZE: u16 = 6;
/// Several times more settings than exist.
const KEEP: usize = 256;

/// The code of a GOAWAY without an error.
pub(crate) const NO_ERROR: u32 = 0;
/// The code of a GOAWAY from a gRPC server to a client that pings too often.
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

// === impl FrameHead ===

impl FrameHead {
    pub(crate) fn is_ack(&self) -> bool {
        self.flags & ACK != 0
    }

    pub(crate) fn ends_stream(&self) -> bool {
        self.flags & END_STREAM != 0
    }

    /// HTTP/2 does not define these kinds: they are ignored.
    pub(crate) fn is_unknown(kind: u8) -> bool {
        kind > CONTINUATION
    }
}

// === impl FrameParser ===

impl FrameParser {
    /// Continues with `bytes`; returns the number of frames that begin in them.
    pub(crate) fn read(&mut self, mut bytes: &[u8], emit: &mut impl FnMut(FrameEvent)) -> usize {
        let mut begun = 0;
        while !bytes.is_empty() && !self.lost {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            // Mostly a header and the needed part of its payload arrive together.
            if self.kept.is_empty()
                && let Some((header, rest)) = bytes.split_first_chunk::<HEADER>()
                && let Some((payload, rest)) = rest.split_at_checked(wanted_payload(header))
            {
                self.begins(header, payload, emit);
                begun += 1;
                bytes = rest;
                continue;
            }
            let wanted = self.wanted();
            let taken = (wanted - self.kept.len()).min(bytes.len());
            self.kept.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.kept.len() == wanted && self.wanted() == wanted {
                let mut kept = std::mem::take(&mut self.kept);
                if let Some((header, payload)) = kept.split_first_chunk::<HEADER>() {
                    self.begins(header, payload, emit);
                }
                kept.clear();
                self.kept = kept;
                begun += 1;
            }
        }
        begun
    }

    /// Encoded bytes of the most recent header list, as far as its frames have begun.
    pub(crate) fn list(&self) -> usize {
        self.list
    }

    /// Whether a header list has begun and not ended.
    pub(crate) fn is_in_list(&self) -> bool {
        self.in_list
    }

    /// The number of frames that have begun to arrive.
    pub(crate) fn count(&self) -> u64 {
        self.count + u64::from(!self.kept.is_empty())
    }

    /// Whether the peer has stopped within a frame or a header list.
    pub(crate) fn unfinished(&self) -> Unfinished {
        match self.kept.get(3) {
            _ if self.in_list => Unfinished::Other,
            Some(kind) if *kind != DATA => Unfinished::Other,
            Some(_) => Unfinished::Data,
            None if self.skip > 0 && self.kind != DATA => Unfinished::Other,
            None if self.skip > 0 || !self.kept.is_empty() => Unfinished::Data,
            None => Unfinished::Nothing,
        }
    }

    /// The bytes of the current frame to keep, as far as is known.
    fn wanted(&self) -> usize {
        HEADER + self.kept.first_chunk::<HEADER>().map_or(0, wanted_payload)
    }

    /// Handles the begin of a frame with this header and the needed part of its payload.
    fn begins(&mut self, header: &[u8; HEADER], payload: &[u8], emit: &mut impl FnMut(FrameEvent)) {
        let [a, b, c, kind, flags, stream @ ..] = *header;
        if !std::mem::replace(&mut self.begun, true) && kind != SETTINGS {
            self.lost = true;
            return emit(FrameEvent::NotHttp2);
        }
        let (length, stream) = (u32::from_be_bytes([0, a, b, c]), number(stream));
        emit(FrameEvent::Frame(FrameHead { kind, flags, length, stream }));
        let length = length as usize;
        match kind {
            HEADERS | CONTINUATION => {
                let before = if kind == HEADERS { 0 } else { self.list };
                self.list = before.saturating_add(length);
                self.in_list = flags & END_HEADERS == 0;
            }
            SETTINGS if flags & ACK == 0 => emit(FrameEvent::Settings {
                max_streams: setting(payload, MAX_CONCURRENT_STREAMS),
                max_header_list: setting(payload, MAX_HEADER_LIST_SIZE),
                stream_window: setting(payload, INITIAL_WINDOW_SIZE),
            }),
            WINDOW_UPDATE => {
                if let Ok(by) = payload.try_into() {
                    emit(FrameEvent::WindowUpdate { stream, by: number(by) });
                }
            }
            GOAWAY => {
                if let Some([_, _, _, _, code @ ..]) = payload.first_chunk::<8>() {
                    emit(FrameEvent::GoAway { code: u32::from_be_bytes(*code) });
                }
            }
            _ => {}
        }
        self.count += 1;
        self.kind = kind;
        self.skip = length - payload.len();
    }
}

/// The number of payload bytes that are parsed.
fn wanted_payload(header: &[u8; HEADER]) -> usize {
    match header[3] {
        SETTINGS | GOAWAY | WINDOW_UPDATE => length(header).min(KEEP),
        _ => 0,
    }
}

fn length(header: &[u8; HEADER]) -> usize {
    let [a, b, c, ..] = *header;
    u32::from_be_bytes([0, a, b, c]) as usize
}

fn setting(settings: &[u8], id: u16) -> Option<u32> {
    let one = |setting: &[u8]| {
        let [high, low, value @ ..] = *setting.first_chunk::<6>()?;
        (u16::from_be_bytes([high, low]) == id).then(|| u32::from_be_bytes(value))
    };
    settings.chunks_exact(6).filter_map(one).next_back()
}

/// A number of 31 bits: the first bit is reserved.
fn number(bytes: [u8; 4]) -> u32 {
    u32::from_be_bytes(bytes) & (u32::MAX >> 1)
}

// === impl HeaderLimit ===

impl HeaderLimit {
    pub(crate) fn get(&self) -> u32 {
        self.0.load(Relaxed)
    }

    /// Stores the value of the peer's settings, if they contain it.
    pub(crate) fn set(&self, said: Option<u32>) {
        said.into_iter().for_each(|most| self.0.store(most, Relaxed));
    }
}

impl Default for HeaderLimit {
    fn default() -> Self {
        HeaderLimit(Arc::new(AtomicU32::new(u32::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    const EMPTY: [u8; 9] = [0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];
    const ACKED: [u8; 9] = [0, 0, 0, SETTINGS, ACK, 0, 0, 0, 0];
    const HUNDRED: [u8; 15] = [0, 0, 6, SETTINGS, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100];
    const CALM: [u8; 20] = [0, 0, 11, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 11, b'h', b'i', b'!'];

    /// The events are the same for pieces of any size.
    #[track_caller]
    fn check(frames: &[&[u8]], expected: &[FrameEvent]) {
        let bytes = frames.concat();
        for size in 1..=bytes.len() {
            let (mut parser, mut seen) = (FrameParser::default(), Vec::new());
            let pieces = bytes.chunks(size);
            let mut heads = 0;
            let emit = &mut |one| match one {
                FrameEvent::Frame(_) => heads += 1,
                one => seen.push(one),
            };
            let begun: usize = pieces.map(|piece| parser.read(piece, emit)).sum();
            assert_eq!(seen, expected, "in pieces of {size}");
            assert_eq!(begun, if parser.lost { 1 } else { frames.len() });
            assert_eq!(heads, if parser.lost { 0 } else { frames.len() });
        }
    }

    #[test]
    fn finds_settings_and_goaway() {
        let settings =
            |max_streams| FrameEvent::Settings { max_streams, max_header_list: None, stream_window: None };
        check(&[&EMPTY, &ACKED], &[settings(None)]);
        check(&[&HUNDRED, &PING, &EMPTY], &[settings(Some(100)), settings(None)]);
        check(
            &[&EMPTY, &PING, &CALM, &PING],
            &[settings(None), FrameEvent::GoAway { code: ENHANCE_YOUR_CALM }],
        );
    }

    #[test]
    fn tells_what_is_not_http2() {
        check(&[b"HTTP/1.1 400 Bad Request\r\n\r\n"], &[FrameEvent::NotHttp2]);
        check(&[&PING, &EMPTY], &[FrameEvent::NotHttp2]);
    }

    #[test]
    fn a_large_frame_is_skipped() {
        let data = [&[0, 1, 0, 0, 0, 0, 0, 0, 1][..], &[SETTINGS; 256][..]].concat();
        let seen =
            |max_streams| FrameEvent::Settings { max_streams, max_header_list: None, stream_window: None };
        check(&[&EMPTY, &data, &HUNDRED], &[seen(None), seen(Some(100))]);
        let settings = [&[0, 4, 0, SETTINGS, 0, 0, 0, 0, 0][..], &[9; 1024][..]].concat();
        check(&[&settings, &HUNDRED], &[seen(None), seen(Some(100))]);
    }

    #[test]
    fn tells_how_large_a_list_the_peer_takes() {
        let both = [0, 0, 12, SETTINGS, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100, 0, 6, 0, 0, 0x20, 0];
        check(
            &[&both],
            &[FrameEvent::Settings {
                max_streams: Some(100),
                max_header_list: Some(8192),
                stream_window: None,
            }],
        );
    }

    #[test]
    fn measures_a_list_over_all_its_frames() {
        let mut frames = FrameParser::default();
        let mut read = |bytes: &[u8]| {
            frames.read(bytes, &mut |_| {});
            frames.list()
        };
        assert_eq!(read(&EMPTY), 0);
        assert_eq!(read(&[&[0, 0, 2, HEADERS, 0, 0, 0, 0, 1, 7, 7][..], &PING].concat()), 2);
        assert_eq!(read(&[0, 0x40, 0, HEADERS, 0, 0, 0, 0, 3]), 0x4000);
        assert_eq!(read(&vec![7; 0x4000]), 0x4000);
        assert_eq!(read(&[0, 0, 9, CONTINUATION, 4, 0, 0, 0, 3]), 0x4009);
    }

    #[test]
    fn tells_windows() {
        let window = [0, 0, 6, SETTINGS, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0];
        let more = [0, 0, 4, WINDOW_UPDATE, 0, 0, 0, 0, 3, 0x80, 0, 1, 0];
        check(
            &[&window, &more],
            &[
                FrameEvent::Settings {
                    max_streams: None,
                    max_header_list: None,
                    stream_window: Some(1 << 16),
                },
                FrameEvent::WindowUpdate { stream: 3, by: 256 },
            ],
        );
    }

    #[test]
    fn tells_what_a_peer_has_not_finished() {
        let headers = [0, 0, 3, HEADERS, 0, 0, 0, 0, 1, 0x83, 0x86, 0x84];
        let more = [0, 0, 1, CONTINUATION, END_HEADERS, 0, 0, 0, 1, 0x88];
        let data = [0, 0, 2, DATA, 0, 0, 0, 0, 1, 7, 7];
        let bytes = [&EMPTY[..], &headers, &more, &data, &PING].concat();
        let mut frames = FrameParser::default();
        let unfinished = bytes.iter().map(|byte| {
            frames.read(&[*byte], &mut |_| {});
            match frames.unfinished() {
                Unfinished::Nothing => '.',
                Unfinished::Data => 'd',
                Unfinished::Other => 'o',
            }
        });
        let states: String = unfinished.collect();
        // The fourth byte of a frame is its kind; between HEADERS and CONTINUATION the list goes on.
        assert_eq!(
            states,
            ["dddooooo.", "dddooooooooo", "ooooooooo.", "dddddddddd.", "dddooooooooooooo."].concat()
        );
    }
}
