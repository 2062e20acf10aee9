//! Reading and writing in turns, on one HTTP/2 connection.
//!
//! h2 writes only once there is nothing more to read. Where much comes in, that is late: tokio has a task
//! pause after 128 reads and writes, all of which are reads then. So a busy connection would read all that
//! its peer may have on its way before it writes the first answer; and with such a connection at either
//! end, one waits while the other works.
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

/// Breaks off after some reads in a turn: what they brought is begun, and what waits is written. Shared by
/// a stream and the task that polls its connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Arc<AtomicUsize>);

/// Few enough that the peer soon has something to do, and many enough that writes are worth their while.
const MOST: usize = 16;

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
        let reads = self.0.load(Relaxed);
        if reads == MOST {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.0.store(reads + 1, Relaxed);
        read(cx)
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
            for _ in 0..MOST {
                assert!(turns.poll(cx, |_| Poll::Ready(())).is_ready());
            }
            assert!(turns.poll(cx, |_| -> Poll<()> { panic!("not its turn") }).is_pending());
            assert_eq!(woken.0.load(SeqCst), round);
        }
    }
}
