//! How many are under way.
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use crate::shard::Cells;

/// Counts permits. The limit is an argument, so that it can change while permits are out: lowered below
/// what is out, it admits nobody until enough came back.
///
/// Never more than the limit are out, and nobody is refused while fewer are; but for a moment in which the
/// limit was lowered and two threads take back what others keep: then one may be. Far below the limit a thread
/// keeps a few permits that came back for its next calls, so that threads need not take the count from each
/// other; where there is no other left, they are used by whoever needs them.
///
/// ```
/// use chassis_core::layer::concurrency::Gauge;
///
/// let gauge = Gauge::default();
/// assert!(gauge.acquire(1) && !gauge.acquire(1));
/// gauge.release();
/// assert!(gauge.acquire(1));
/// ```
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Gauge {
    /// Permits that are out, and those that are kept.
    taken: AtomicU32,
    /// The limit that was last asked for.
    limit: AtomicU32,
    kept: Cells<Kept>,
}

/// Permits that a shard keeps, 32 bits; above them how often one was put there.
#[derive(Debug, Default)]
struct Kept(AtomicU64);

/// A shard keeps this share of the limit; so many shards as there are keep a quarter of it.
const KEEPS: u32 = 4 * crate::shard::SHARDS as u32;

const PUT: u64 = 1 << 32;

// === impl Gauge ===

impl Gauge {
    /// Takes a permit if fewer than `limit` are out. A limit of 0 admits nobody.
    pub fn acquire(&self, limit: u32) -> bool {
        if self.limit.load(Relaxed) != limit {
            self.limit.store(limit, Relaxed);
        }
        let kept = limit >= KEEPS && self.taken.load(Relaxed) <= limit && self.kept.cell().take();
        kept || self.take(limit)
    }

    /// Returns a permit. Once for every one taken.
    pub fn release(&self) {
        let (limit, taken) = (self.limit.load(Relaxed), self.taken.load(Relaxed));
        let keep = limit >= KEEPS && (1..=limit / 2).contains(&taken);
        if !keep || !self.kept.cell().put(limit / KEEPS) {
            // One too many would wrap to four billion: a limit that admits nobody any more.
            let _ = self.taken.fetch_update(SeqCst, SeqCst, |taken| taken.checked_sub(1));
        }
    }

    /// One that nobody has, or else one that a thread keeps.
    fn take(&self, limit: u32) -> bool {
        let under = |taken| (taken < limit).then(|| taken + 1);
        let over = |taken| (taken > limit).then(|| taken - 1);
        loop {
            if self.taken.fetch_update(SeqCst, SeqCst, under).is_ok() {
                return true;
            }
            let puts = self.puts();
            while self.kept.cells().any(Kept::take) {
                // It goes back where the limit was lowered below all that are taken.
                if self.taken.fetch_update(SeqCst, SeqCst, over).is_err() {
                    return true;
                }
            }
            // None is kept, and none was put there since: all that are taken are out.
            if self.taken.load(SeqCst) >= limit && self.puts() == puts {
                return false;
            }
        }
    }

    /// How many permits are out.
    pub fn in_use(&self) -> u32 {
        let kept = self.kept.cells().map(|kept| kept.0.load(SeqCst) as u32).sum();
        self.taken.load(SeqCst).saturating_sub(kept)
    }

    fn puts(&self) -> u64 {
        self.kept.cells().map(|kept| kept.0.load(SeqCst) >> 32).sum()
    }
}

// === impl Kept ===

impl Kept {
    #[inline]
    fn take(&self) -> bool {
        self.0.fetch_update(SeqCst, SeqCst, |kept| (kept as u32 > 0).then(|| kept - 1)).is_ok()
    }

    #[inline]
    fn put(&self, most: u32) -> bool {
        let put = |kept: u64| ((kept as u32) < most).then(|| kept.wrapping_add(PUT + 1));
        self.0.fetch_update(SeqCst, SeqCst, put).is_ok()
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
    fn permits_that_a_thread_keeps_are_there_for_all() {
        let gauge = Gauge::default();
        let on_a_thread = |work: &(dyn Fn() + Sync)| {
            std::thread::scope(|scope| scope.spawn(work).join().unwrap());
        };
        for limit in [64, 1_000, 100] {
            for _ in 0..20 {
                on_a_thread(&|| {
                    (0..limit / 2).for_each(|_| assert!(gauge.acquire(limit)));
                    (0..limit / 2).for_each(|_| gauge.release());
                });
                assert_eq!(gauge.in_use(), 0);
            }
            (0..limit).for_each(|i| assert!(gauge.acquire(limit), "{i} of {limit}"));
            assert!(!gauge.acquire(limit));
            assert_eq!(gauge.in_use(), limit);
            on_a_thread(&|| (0..limit).for_each(|_| gauge.release()));
            assert_eq!(gauge.in_use(), 0);
        }
    }

    #[test]
    fn nobody_is_refused_while_there_is_room() {
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
                            // As many as there are, up to half, then none.
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
