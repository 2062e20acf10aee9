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
    task::{Context, Poll},
};

/// Breaks off when a turn has brought enough: that is begun, and what waits is written. Shared by a stream
/// and the task that polls its connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Arc<AtomicUsize>);

/// How much a turn may bring: four reads of large frames, or one or two full of small calls. Little enough
/// that the peer soon has something to do, and enough that writes are worth their while: with four times as
/// much two processors do half as many small calls, with a quarter large messages cost a fifth more.
const TURN: usize = 64;
const READ: usize = 16;
/// What a frame adds to the read that brought it, and a call that was begun.
const FRAME: usize = 1;
const CALL: usize = 2;

// === impl Turns ===

impl Turns {
    /// The task is polled anew.
    pub(crate) fn begin(&self) {
        self.0.store(0, Relaxed);
    }

    /// Reads, unless it is the turn of something else; then the task is polled again soon.
    pub(crate) fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        read: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if self.0.load(Relaxed) >= TURN {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.brought(READ);
        read(cx)
    }

    /// So many frames came.
    pub(crate) fn frames(&self, count: usize) {
        self.brought(count * FRAME);
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

    #[test]
    fn who_never_stops_is_broken_off_until_the_next_turn() {
        let (woken, turns) = (Arc::new(Count::default()), Turns::default());
        let waker = Waker::from(woken.clone());
        let cx = &mut Context::from_waker(&waker);
        for round in 1..=3 {
            turns.begin();
            for _ in 0..TURN / READ {
                assert!(turns.poll(cx, |_| Poll::Ready(())).is_ready());
            }
            assert!(turns.poll(cx, |_| -> Poll<()> { panic!("not its turn") }).is_pending());
            assert_eq!(woken.0.load(SeqCst), round);
        }
    }

    #[test]
    fn a_read_that_brings_much_is_the_last_of_its_turn() {
        let cx = &mut Context::from_waker(Waker::noop());
        let bringing: [fn(&Turns); 2] =
            [|turns| turns.frames(TURN / FRAME), |turns| (0..TURN / CALL).for_each(|_| turns.call())];
        for bring in bringing {
            let turns = Turns::default();
            turns.begin();
            assert!(turns.poll(cx, |_| Poll::Ready(())).is_ready());
            bring(&turns);
            assert!(turns.poll(cx, |_| -> Poll<()> { panic!("not its turn") }).is_pending());
        }
    }
}
