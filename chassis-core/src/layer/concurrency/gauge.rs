//! Counts the calls under way against a limit.
use std::sync::atomic::{
    AtomicU32,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

/// Counts permits. The limit is an argument, so that it can change while permits are in use: if it is lowered
/// below their number, no call is admitted until enough are returned.
///
/// The count is always exact: never more permits than the limit are in use, and no call is refused while fewer
/// are. That is why all threads share one counter.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Gauge {
    /// Permits in use.
    taken: AtomicU32,
}

// === impl Gauge ===

impl Gauge {
    /// Takes a permit if fewer than `limit` are in use. A limit of 0 admits no call.
    pub(crate) fn acquire(&self, limit: u32) -> bool {
        let under = |taken| (taken < limit).then(|| taken + 1);
        self.taken.fetch_update(AcqRel, Relaxed, under).is_ok()
    }

    /// Returns a permit: once for every one taken.
    pub(crate) fn release(&self) {
        // One return too many would wrap to four billion, at which no limit admits a call.
        let _ = self.taken.fetch_update(Release, Relaxed, |taken| taken.checked_sub(1));
    }

    /// The number of permits in use.
    pub(crate) fn in_use(&self) -> u32 {
        self.taken.load(Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use super::*;

    #[test]
    fn a_limit_of_0_admits_nobody() {
        assert!(!Gauge::default().acquire(0));
    }

    #[test]
    fn a_change_of_limit_keeps_the_count() {
        let gauge = Gauge::default();
        assert_eq!((0..10).filter(|_| gauge.acquire(5)).count(), 5);
        assert!(!gauge.acquire(2));
        assert_eq!((0..10).filter(|_| gauge.acquire(8)).count(), 3);
        (0..6).for_each(|_| gauge.release());
        assert!(!gauge.acquire(2));
        gauge.release();
        assert!(gauge.acquire(2));
        assert_eq!(gauge.in_use(), 2);
    }

    #[test]
    fn no_call_is_refused_while_there_is_room() {
        const LIMIT: u32 = 64;
        let gauge = Gauge::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for i in 0..20_000 {
                        let most = if i % 2 == 0 { LIMIT / 4 } else { 1 };
                        (0..most).for_each(|_| assert!(gauge.acquire(LIMIT)));
                        (0..most).for_each(|_| gauge.release());
                    }
                });
            }
        });
        assert_eq!(gauge.in_use(), 0);
    }

    #[test]
    fn a_release_too_many_is_nothing() {
        let gauge = Gauge::default();
        gauge.release();
        assert_eq!(gauge.in_use(), 0);
    }

    #[test]
    fn threads_never_hold_more_than_the_limit() {
        for limit in [3, 64] {
            let (gauge, held, admitted) = (Gauge::default(), AtomicU32::new(0), AtomicU32::new(0));
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let mut mine = 0;
                        while admitted.load(SeqCst) < 10_000 {
                            let room = gauge.acquire(limit);
                            if room {
                                admitted.fetch_add(1, SeqCst);
                                assert!(held.fetch_add(1, SeqCst) < limit);
                                mine += 1;
                            }
                            // Take permits up to half of the limit, then return them all.
                            if !room || mine > limit / 2 {
                                std::thread::yield_now();
                                held.fetch_sub(mine, SeqCst);
                                (0..mine).for_each(|_| gauge.release());
                                mine = 0;
                            }
                        }
                        held.fetch_sub(mine, SeqCst);
                        (0..mine).for_each(|_| gauge.release());
                    });
                }
            });
            assert_eq!(gauge.in_use(), 0);
        }
    }
}
