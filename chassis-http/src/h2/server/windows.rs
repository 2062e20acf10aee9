//! The windows of an HTTP/2 connection, as far as a server knows them without asking h2.
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

/// How much the peer of an HTTP/2 connection takes for certain, without a look at what h2 knows.
#[derive(Debug)]
pub(crate) struct Windows {
    /// Bytes of each stream, to begin with.
    stream: AtomicU32,
    /// Bytes of all streams together, so far.
    granted: AtomicU64,
    /// Bytes that h2 was given; those of streams that were reset, too.
    handed: AtomicU64,
    /// How many of them it no longer held when it had last written all that it could.
    written: AtomicU64,
    /// Bytes that it may hold, and be given more without a look.
    untold: u64,
}

/// The window of a new connection, and of a stream before the first settings.
const WINDOW: u32 = 65_535;
/// Bytes at the beginning of a stream that h2 is given without a look: all of most answers. A peer that takes back a
/// window that it has opened holds up no more.
const MOST_UNTOLD: u32 = 1024 * 1024;

// === impl Windows ===

impl Windows {
    pub(crate) fn new(untold: usize) -> Self {
        Windows {
            stream: AtomicU32::new(WINDOW),
            granted: AtomicU64::new(WINDOW.into()),
            handed: AtomicU64::new(0),
            written: AtomicU64::new(0),
            untold: untold as u64,
        }
    }

    /// Says what the peer's settings say of a new stream.
    pub(crate) fn set_stream(&self, bytes: u32) {
        self.stream.store(bytes, Relaxed);
    }

    /// More may be sent on all streams together.
    pub(crate) fn grant(&self, bytes: u32) {
        self.granted.fetch_add(bytes.into(), Relaxed);
    }

    /// Gives `bytes` to h2, on a stream that had `sent` before, if the peer takes all of them for certain, and h2 does
    /// not hold too much.
    pub(crate) fn take(&self, sent: u64, bytes: usize) -> bool {
        let bytes = bytes as u64;
        if sent + bytes > u64::from(self.stream.load(Relaxed).min(MOST_UNTOLD)) {
            return false;
        }
        let most = self.written.load(Relaxed).saturating_add(self.untold).min(self.granted.load(Relaxed));
        let has_room = self.handed.fetch_add(bytes, Relaxed) + bytes <= most;
        if !has_room {
            self.handed.fetch_sub(bytes, Relaxed);
        }
        has_room
    }

    /// Gives `bytes` to h2, which has room for them.
    pub(crate) fn hand(&self, bytes: usize) {
        self.handed.fetch_add(bytes as u64, Relaxed);
    }

    /// Bytes that h2 was given so far.
    pub(crate) fn handed(&self) -> u64 {
        self.handed.load(Relaxed)
    }

    /// h2 has written all that it was given by the time at which `handed` bytes had been.
    pub(crate) fn set_written(&self, handed: u64) {
        self.written.store(handed, Relaxed);
    }
}
