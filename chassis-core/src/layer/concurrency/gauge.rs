//! How many are under way.
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Counts permits. The limit is an argument, so that it can change while permits are out: lowered below
/// what is out, it admits nobody until enough came back.
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
pub struct Gauge(AtomicU32);

// === impl Gauge ===

impl Gauge {
    /// Takes a permit if fewer than `limit` are out. A limit of 0 admits nobody.
    pub fn acquire(&self, limit: u32) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |out| (out < limit).then(|| out + 1)).is_ok()
    }

    /// Returns a permit. Once for every one taken.
    pub fn release(&self) {
        // One too many would wrap to four billion: a limit that admits nobody any more.
        let _ = self.0.fetch_update(Relaxed, Relaxed, |out| out.checked_sub(1));
    }

    /// How many permits are out.
    pub fn in_use(&self) -> u32 {
        self.0.load(Relaxed)
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
    fn a_release_too_many_is_nothing() {
        let gauge = Gauge::default();
        gauge.release();
        assert_eq!(gauge.in_use(), 0);
    }

    #[test]
    fn threads_never_hold_more_than_the_limit() {
        const LIMIT: u32 = 3;
        let (gauge, held, admitted) = (Gauge::default(), AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while admitted.load(SeqCst) < 2_000 {
                        if gauge.acquire(LIMIT) {
                            admitted.fetch_add(1, SeqCst);
                            assert!(held.fetch_add(1, SeqCst) < LIMIT);
                            std::thread::yield_now();
                            held.fetch_sub(1, SeqCst);
                            gauge.release();
                        }
                    }
                });
            }
        });
        assert_eq!(gauge.in_use(), 0);
    }
}
