//! The bytes that one HTTP/2 connection holds for a slow reader, with a bound that its streams share.
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::*},
};

use tokio::sync::{Notify, futures::OwnedNotified};

/// Bytes of frames that bodies have produced and that wait for the peer's windows. Above the limit a body
/// produces its next frame only while the window of its stream is open, so that no stream waits for the reader
/// of another one.
#[derive(Debug)]
pub(crate) struct Unsent {
    bytes: AtomicUsize,
    most: usize,
    /// Notified when there is room again.
    freed: Arc<Notify>,
}

/// The share of one stream; dropping it releases its bytes.
pub(crate) struct Share {
    of: Arc<Unsent>,
    bytes: usize,
}

/// Divides the bytes that a connection may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    /// For frames that wait for windows.
    pub(crate) waiting: usize,
    /// For data that h2 is given without a check of its state.
    pub(crate) untold: usize,
    /// For data that h2 holds for each stream after a check.
    pub(crate) stream: usize,
}

/// h2's own limit for a stream: more has no effect.
const MOST_OF_STREAM: usize = 400 * 1024;
/// A DATA frame of the size that all peers accept.
const LEAST_OF_STREAM: usize = 16 * 1024;

// === impl Unsent ===

impl Unsent {
    /// Creates a limit of `most` bytes, plus one frame.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Unsent { bytes: AtomicUsize::new(0), most, freed: Arc::default() })
    }

    /// Whether a body may produce a frame that has to wait.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes.load(Acquire) < self.most
    }

    /// Resolves when there is room again. Check the room after its first poll, because it notices only later
    /// changes.
    pub(crate) fn freed(&self) -> OwnedNotified {
        self.freed.clone().notified_owned()
    }

    /// Counts `bytes` until they are released.
    pub(crate) fn share(self: &Arc<Self>, bytes: usize) -> Share {
        let mut share = Share { of: self.clone(), bytes: 0 };
        share.set(bytes);
        share
    }
}

// === impl Share ===

impl Share {
    /// Sets the number of waiting bytes.
    pub(crate) fn set(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        if bytes >= before {
            self.of.bytes.fetch_add(bytes - before, AcqRel);
            return;
        }
        let all = self.of.bytes.fetch_sub(before - bytes, AcqRel);
        // Notifies once, by the share that makes room.
        if all >= self.of.most && all - (before - bytes) < self.of.most {
            self.of.freed.notify_waiters();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

// === impl Shares ===

impl Shares {
    /// Divides `bytes` for a connection with this number of `streams`.
    pub(crate) fn new(bytes: usize, streams: u32) -> Self {
        let sixth = bytes / 6;
        let stream = (bytes - 2 * sixth) / streams.max(1) as usize;
        Shares { waiting: sixth, untold: sixth, stream: stream.clamp(LEAST_OF_STREAM, MOST_OF_STREAM) }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn a_share_that_is_dropped_makes_room_and_says_so() {
        let unsent = Unsent::new(100);
        let (mut one, two) = (unsent.share(60), unsent.share(60));
        assert!(!unsent.has_room());
        let (mut freed, cx) = (Box::pin(unsent.freed()), &mut Context::from_waker(Waker::noop()));
        one.set(40);
        assert!(!unsent.has_room());
        assert_eq!(freed.as_mut().poll(cx), Poll::Pending);
        drop(two);
        assert!(unsent.has_room());
        assert_eq!(freed.as_mut().poll(cx), Poll::Ready(()));
        drop(one);
        assert_eq!(unsent.bytes.load(Relaxed), 0);
    }

    #[test]
    fn the_shares_are_no_more_than_the_whole() {
        let shares = |bytes, streams| {
            let Shares { waiting, untold, stream } = Shares::new(bytes, streams);
            (waiting, untold, stream)
        };
        const MIB: usize = 1 << 20;
        assert_eq!(shares(24 * MIB, 256), (4 * MIB, 4 * MIB, 64 * 1024));
        assert_eq!(shares(24 * MIB, 10), (4 * MIB, 4 * MIB, MOST_OF_STREAM));
        assert_eq!(shares(0, 256), (0, 0, LEAST_OF_STREAM));
    }
}
