//! A budget of reads for one poll of an HTTP/2 connection, so that it writes in between.
//!
//! h2 writes only when there is nothing more to read. Under load that is late: tokio's cooperative budget
//! pauses a task after 128 reads and writes, and then all of these are reads. A busy connection would read
//! everything that its peer has sent before it writes the first answer; with such a connection at either end,
//! one side waits while the other works. One read can contain dozens of small calls, so the price of a read
//! grows with its content: with few calls in one poll, two processors work on both ends at once.
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Context,
};

/// Makes `poll_read` return `Pending` once this poll has read enough, so that h2 starts the calls and writes. A
/// stream shares it with the task that polls its connection. It counts what was spent.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReadBudget(Arc<AtomicUsize>);

/// The budget of one poll: sixteen reads of large frames, four of others, one or two that are full of small
/// calls. It is small enough that the peer soon gets work, and large enough that each write is worth its cost:
/// with four times as much, two processors do half as many small calls.
const BUDGET: usize = 64;
const READ: usize = 16;
/// The price of a read with many bytes in few frames. A large message takes several reads, and a separate write
/// after each costs a quarter more.
const LARGE_READ: usize = 4;
/// A read is large if it has at least this many bytes for each frame.
const LARGE: usize = 2048;
/// The price that each frame adds to its read.
const FRAME: usize = 1;
/// The price of a call that begins.
const CALL: usize = 2;
/// The value that means "spent until the next refill", with room for further spending.
const PAUSED: usize = usize::MAX / 2;

// === impl ReadBudget ===

impl ReadBudget {
    /// Fills the budget, at the beginning of a poll.
    pub(crate) fn refill(&self) {
        self.0.store(0, Relaxed);
    }

    /// Spends the whole remaining budget.
    pub(crate) fn exhaust(&self) {
        self.0.store(BUDGET, Relaxed);
    }

    /// Spends the whole remaining budget until the next refill, without waking the task.
    pub(crate) fn pause(&self) {
        self.0.store(PAUSED, Relaxed);
    }

    /// Whether the budget is spent. Then the task is woken, to be polled again soon, unless it pauses.
    pub(crate) fn is_spent(&self, cx: &mut Context<'_>) -> bool {
        let spent = self.0.load(Relaxed);
        if (BUDGET..PAUSED).contains(&spent) {
            cx.waker().wake_by_ref();
        }
        spent >= BUDGET
    }

    /// Pays for a read of `bytes` in which `frames` frames begin.
    pub(crate) fn spend_read(&self, bytes: usize, frames: usize) {
        let large = bytes >= LARGE * frames.max(1);
        self.spend(if large { LARGE_READ } else { READ } + frames * FRAME);
    }

    /// Pays for a call that begins.
    pub(crate) fn spend_call(&self) {
        self.spend(CALL);
    }

    /// Only one task at a time reads and begins calls, so that a load and a store suffice.
    fn spend(&self, price: usize) {
        self.0.store(self.0.load(Relaxed) + price, Relaxed);
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

    /// Compares how many times `spend` fits into one poll.
    #[track_caller]
    fn check(expected: usize, spend: impl Fn(&ReadBudget)) {
        let cx = &mut Context::from_waker(Waker::noop());
        let budget = ReadBudget::default();
        budget.refill();
        let spent = (0..1_000).take_while(|_| !budget.is_spent(cx)).inspect(|_| spend(&budget)).count();
        assert_eq!(spent, expected);
    }

    #[test]
    fn a_task_that_has_to_pause_is_polled_again() {
        let (woken, budget) = (Arc::new(Count::default()), ReadBudget::default());
        let waker = Waker::from(woken.clone());
        let cx = &mut Context::from_waker(&waker);
        for round in 1..=3 {
            budget.refill();
            for _ in 0..BUDGET / READ {
                assert!(!budget.is_spent(cx));
                budget.spend_read(100, 1);
            }
            assert!(budget.is_spent(cx));
            assert_eq!(woken.0.load(SeqCst), round);
        }
    }

    #[test]
    fn a_task_that_pauses_is_not_woken() {
        let (woken, budget) = (Arc::new(Count::default()), ReadBudget::default());
        let waker = Waker::from(woken.clone());
        let cx = &mut Context::from_waker(&waker);
        budget.refill();
        budget.pause();
        budget.spend_call();
        assert!(budget.is_spent(cx));
        assert_eq!(woken.0.load(SeqCst), 0);
        budget.refill();
        assert!(!budget.is_spent(cx));
    }

    #[test]
    fn a_read_costs_by_what_it_brings() {
        check(4, |budget| budget.spend_read(0, 0));
        check(4, |budget| budget.spend_read(500, 1));
        check(1, |budget| budget.spend_read(8 << 10, 60)); // full of small messages
        check(1, |budget| (0..BUDGET / CALL).for_each(|_| budget.spend_call()));
        check(16, |budget| budget.spend_read(8 << 10, 0)); // from within a large frame
        check(13, |budget| budget.spend_read(16 << 10, 1));
    }
}
