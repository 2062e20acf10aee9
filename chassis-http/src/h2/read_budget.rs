//! Reading and writing in turns, on one HTTP/2 connection.
//!
//! h2 writes only once there is nothing more to read. Where much comes in, that is late: tokio has a task
//! pause after 128 reads and writes, all of which are reads then. So a busy connection would read all that
//! its peer may have on its way before it writes the first answer; and with such a connection at either
//! end, one waits while the other works. Small calls come by the dozen in one read, so turns are measured by
//! what a read brought too: with few calls in a turn, two processors do the work of both ends at once.
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Context,
};

/// Breaks off when a turn has brought enough: that is begun, and what waits is written. Shared by a stream
/// and the task that polls its connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Arc<AtomicUsize>);

/// How much a turn may bring: sixteen reads of large frames, four of others, one or two full of small calls.
/// Little enough that the peer soon has something to do, and enough that writes are worth their while: with
/// four times as much two processors do half as many small calls.
const TURN: usize = 64;
const READ: usize = 16;
/// One that brings much in few frames: a large message takes several of them, and answering each by itself
/// costs a quarter more.
const LARGE_READ: usize = 4;
/// Bytes that come with each frame of a large read, or more.
const LARGE: usize = 2048;
/// What a frame adds to the read that brought it, and a call that was begun.
const FRAME: usize = 1;
const CALL: usize = 2;

// === impl Turns ===

impl Turns {
    /// The task is polled anew.
    pub(crate) fn begin(&self) {
        self.0.store(0, Relaxed);
    }

    /// Ends the turn.
    pub(crate) fn end(&self) {
        self.0.store(TURN, Relaxed);
    }

    /// Is it the turn of something else? Then the task is polled again soon.
    pub(crate) fn is_over(&self, cx: &mut Context<'_>) -> bool {
        let over = self.0.load(Relaxed) >= TURN;
        if over {
            cx.waker().wake_by_ref();
        }
        over
    }

    /// A read brought so many bytes, in which so many frames began.
    pub(crate) fn read(&self, bytes: usize, frames: usize) {
        let large = bytes >= LARGE * frames.max(1);
        self.brought(if large { LARGE_READ } else { READ } + frames * FRAME);
    }

    /// A call was begun.
    pub(crate) fn call(&self) {
        self.brought(CALL);
    }

    /// One task at a time reads and begins calls.
    fn brought(&self, more: usize) {
        self.0.store(self.0.load(Relaxed) + more, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::Ordering::SeqCst,
        task::{Wake, Waker},
    };

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    /// How many times the same can come in one turn.
    #[track_caller]
    fn check(expected: usize, bring: impl Fn(&Turns)) {
        let cx = &mut Context::from_waker(Waker::noop());
        let turns = Turns::default();
        turns.begin();
        let came = (0..1_000).take_while(|_| !turns.is_over(cx)).inspect(|_| bring(&turns)).count();
        assert_eq!(came, expected);
    }

    #[test]
    fn who_is_broken_off_is_polled_again() {
        let (woken, turns) = (Arc::new(Count::default()), Turns::default());
        let waker = Waker::from(woken.clone());
        let cx = &mut Context::from_waker(&waker);
        for round in 1..=3 {
            turns.begin();
            for _ in 0..TURN / READ {
                assert!(!turns.is_over(cx));
                turns.read(100, 1);
            }
            assert!(turns.is_over(cx));
            assert_eq!(woken.0.load(SeqCst), round);
        }
    }

    #[test]
    fn a_turn_is_measured_by_what_it_brings() {
        check(4, |turns| turns.read(0, 0));
        check(4, |turns| turns.read(500, 1));
        check(1, |turns| turns.read(8 << 10, 60)); // full of small messages
        check(1, |turns| (0..TURN / CALL).for_each(|_| turns.call()));
        check(16, |turns| turns.read(8 << 10, 0)); // from within a large frame
        check(13, |turns| turns.read(16 << 10, 1));
    }
}
