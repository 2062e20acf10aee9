//! Values with a copy for each group of threads, for data that all calls write.
//!
//! A cache line that two threads write alternately costs each of them about a tenth of a microsecond for every
//! write. So counters that every call changes, and that are read rarely, have one cell per stripe, and the
//! reader sums the cells; shared values that calls read by reference count have a copy per stripe. Threads are
//! assigned to stripes in turn. If there are more threads than stripes, some share a stripe, which costs only
//! time, because cells are atomics.
use std::{
    ops::Deref,
    sync::{
        OnceLock,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use crate::thread::THREAD;

/// The number of stripes of every striped value.
pub(crate) const STRIPES: usize = 16;

/// A value for each stripe, created when a thread of that stripe first needs it. Only a pointer before that.
#[derive(Debug)]
pub(crate) struct Striped<T>(OnceLock<Box<[OnceLock<T>; STRIPES]>>);

/// Aligned to a cache line of its own (to two, because processors fetch them in pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct CachePadded<T>(pub(crate) T);

/// Cells that are written by one stripe each; the reader sums them.
pub(crate) type StripedCells<T> = Striped<Box<CachePadded<T>>>;

/// A number that all calls change and that is read rarely: a counter, or a gauge if it is signed. Only its
/// metrics write to it.
#[derive(Debug)]
pub(crate) struct StripedAtomic<A>(StripedCells<A>);

/// The stripe of this thread: below [`STRIPES`].
#[inline]
pub(crate) fn mine() -> usize {
    let mine = THREAD.with(|thread| thread.stripe.get());
    if mine < STRIPES { mine } else { next() }
}

/// Assigns threads to the stripes in turn, in the order in which they first ask.
#[cold]
fn next() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let mine = NEXT.fetch_add(1, Relaxed) % STRIPES;
    THREAD.with(|thread| thread.stripe.set(mine));
    mine
}

// === impl Striped ===

impl<T> Striped<T> {
    /// Contains no values yet.
    pub(crate) const fn new() -> Self {
        Striped(OnceLock::new())
    }

    /// The value of this thread's stripe.
    #[inline]
    pub(crate) fn mine(&self, make: impl FnOnce() -> T) -> &T {
        self.0.get_or_init(Default::default)[mine()].get_or_init(make)
    }

    /// All values that were created so far.
    pub(crate) fn all(&self) -> impl Iterator<Item = &T> {
        self.0.get().into_iter().flat_map(|stripes| stripes.iter().filter_map(OnceLock::get))
    }
}

impl<T: Default> StripedCells<T> {
    /// The cell of this thread's stripe.
    #[inline]
    pub(crate) fn cell(&self) -> &T {
        self.mine(Box::default)
    }

    /// All cells that were created so far.
    pub(crate) fn cells(&self) -> impl Iterator<Item = &T> {
        self.all().map(|line| &line.0)
    }
}

impl<T> Default for Striped<T> {
    fn default() -> Self {
        Striped::new()
    }
}

// === impl CachePadded ===

impl<T> Deref for CachePadded<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

// === impl StripedAtomic ===

macro_rules! striped_atomic {
    ($atomic:ty, $number:ty) => {
        impl prometheus::core::Atomic for StripedAtomic<$atomic> {
            type T = $number;

            fn new(value: $number) -> Self {
                let sum = StripedAtomic(StripedCells::new());
                sum.set(value);
                sum
            }

            /// Resets the number. Call it while no thread counts.
            fn set(&self, value: $number) {
                self.0.cells().for_each(|cell| cell.store(0, Relaxed));
                if value != 0 {
                    self.0.cell().store(value, Relaxed);
                }
            }

            fn get(&self) -> $number {
                // One thread may count down what another has counted up, so a cell may be negative.
                self.0.cells().map(|cell| cell.load(Relaxed)).fold(0, <$number>::wrapping_add)
            }

            fn inc_by(&self, by: $number) {
                self.0.cell().fetch_add(by, Relaxed);
            }

            fn dec_by(&self, by: $number) {
                self.0.cell().fetch_sub(by, Relaxed);
            }
        }
    };
}

striped_atomic!(AtomicU64, u64);
striped_atomic!(AtomicI64, i64);

#[cfg(test)]
mod tests {
    use prometheus::core::Atomic;

    use super::*;

    /// More threads than stripes.
    const THREADS: usize = STRIPES + 4;

    fn on_threads(work: impl Fn(usize) + Sync) {
        std::thread::scope(|scope| {
            for i in 0..THREADS {
                let work = &work;
                scope.spawn(move || work(i));
            }
        });
    }

    #[test]
    fn no_count_is_lost_between_threads() {
        let (counter, gauge) = (StripedAtomic::<AtomicU64>::new(7), StripedAtomic::<AtomicI64>::new(0));
        on_threads(|i| {
            for _ in 0..10_000 {
                counter.inc_by(1);
                gauge.inc_by(2);
                gauge.dec_by(if i == 0 { 2 } else { 1 });
            }
        });
        assert_eq!(counter.get(), 7 + 10_000 * THREADS as u64);
        assert_eq!(gauge.get(), 10_000 * (THREADS as i64 - 1));
    }

    /// A call may begin on one thread and end on another.
    #[test]
    fn a_gauge_goes_down_on_another_thread() {
        let gauge = StripedAtomic::<AtomicI64>::new(0);
        gauge.inc_by(3);
        on_threads(|i| gauge.dec_by(i64::from(i < 3)));
        assert_eq!(gauge.get(), 0);
        gauge.set(5);
        assert_eq!(gauge.get(), 5);
    }

    #[test]
    fn a_shard_keeps_what_was_made_for_it() {
        let numbers = Striped::new();
        assert_eq!(numbers.all().count(), 0);
        on_threads(|i| {
            let first = *numbers.mine(|| i);
            assert_eq!(*numbers.mine(|| usize::MAX), first);
        });
        assert!((1..=STRIPES).contains(&numbers.all().count()));
    }

    #[test]
    fn a_cell_has_a_line_of_its_own() {
        assert_eq!((size_of::<CachePadded<u64>>(), align_of::<CachePadded<u64>>()), (128, 128));
        let cells = StripedCells::<AtomicU64>::new();
        assert!(std::ptr::eq(cells.cell(), cells.cell()));
    }
}
