//! A service with a fixed capacity on any machine: calls take turns at slots.
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until},
};

/// A number of slots, each working on one call at a time.
///
/// A call that leaves the queue while it waits costs nothing. A call that has begun is processed to its end:
/// work for callers that have gone is what keeps an overloaded service down. A slot that finishes late, as
/// timers do by up to a millisecond, starts the next call earlier, so that the capacity is exact.
#[derive(Clone)]
pub struct Slots(Arc<Inner>);

struct Inner {
    permits: Arc<Semaphore>,
    /// When each idle slot had finished its last call.
    free_since: Mutex<Vec<Instant>>,
}

// === impl Slots ===

impl Slots {
    /// This many slots.
    pub fn new(count: u32) -> Self {
        let count = count as usize;
        let free_since = Mutex::new(vec![Instant::now(); count]);
        Slots(Arc::new(Inner { permits: Arc::new(Semaphore::new(count)), free_since }))
    }

    /// Waits for a slot, and then until the work of `latency` is done.
    pub async fn work(&self, latency: Duration) {
        let arrived = Instant::now();
        let Ok(permit) = self.0.permits.clone().acquire_owned().await else { return };
        let free_since = self.free_since().pop().unwrap_or(arrived);
        let done = free_since.max(arrived) + latency;
        let slots = self.clone();
        let work = tokio::spawn(async move {
            sleep_until(done).await;
            slots.free_since().push(done);
            drop(permit);
        });
        // It cannot fail: it neither panics nor is it aborted.
        let _ = work.await;
    }

    fn free_since(&self) -> std::sync::MutexGuard<'_, Vec<Instant>> {
        self.0.free_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_slots_do_two_at_a_time() {
        let (slots, start) = (Slots::new(2), Instant::now());
        let calls: Vec<_> = (0..10)
            .map(|_| {
                let slots = slots.clone();
                tokio::spawn(async move { slots.work(Duration::from_millis(10)).await })
            })
            .collect();
        for call in calls {
            call.await.unwrap();
        }
        assert_eq!(start.elapsed(), Duration::from_millis(50));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_began_goes_on_without_its_caller() {
        let (slots, start) = (Slots::new(1), Instant::now());
        let left =
            tokio::time::timeout(Duration::from_millis(1), slots.work(Duration::from_millis(10))).await;
        assert!(left.is_err());
        slots.work(Duration::from_millis(10)).await;
        assert_eq!(start.elapsed(), Duration::from_millis(20));
    }
}
