//! The windows of an HTTP/2 connection, as far as a server knows them without asking h2.
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

/// The bytes that the peer of an HTTP/2 connection certainly accepts, computed without asking h2.
#[derive(Debug)]
pub(crate) struct Windows {
    /// The initial window of each stream, in bytes.
    stream: AtomicU32,
    /// The sum of all windows of the connection so far, in bytes.
    granted: AtomicU64,
    /// Bytes that were given to h2, including those of reset streams.
    handed: AtomicU64,
    /// The part of them that h2 had written when it last wrote everything it could.
    written: AtomicU64,
    /// Bytes that h2 may hold when it is given more without a check.
    untold: u64,
}

/// The window of a new connection, and of a stream before the first settings.
const WINDOW: u32 = 65_535;
/// Bytes at the beginning of a stream that h2 is given without a check: all of most answers. A peer that
/// reduces a window after opening it delays no more than that.
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

    /// Stores the initial stream window of the peer's settings.
    pub(crate) fn set_stream(&self, bytes: u32) {
        self.stream.store(bytes, Relaxed);
    }

    /// Adds to the window of the connection.
    pub(crate) fn grant(&self, bytes: u32) {
        self.granted.fetch_add(bytes.into(), Relaxed);
    }

    /// Records `bytes` as given to h2, on a stream that has `sent` before, if the peer certainly accepts all of
    /// them and h2 does not hold too much. Returns whether it did.
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

    /// Records `bytes` as given to h2, which has room for them.
    pub(crate) fn hand(&self, bytes: usize) {
        self.handed.fetch_add(bytes as u64, Relaxed);
    }

    /// Bytes that were given to h2 so far.
    pub(crate) fn handed(&self) -> u64 {
        self.handed.load(Relaxed)
    }

    /// Records that h2 has written everything it had at the time when `handed` bytes had been given to it.
    pub(crate) fn set_written(&self, handed: u64) {
        self.written.store(handed, Relaxed);
    }
}
