//! The reporter of a mechanism: metrics and events.
use crate::{
    clock::Instant,
    event::{Event, Events, LogThrottle},
    metrics::Metrics,
};

/// Reports for one rule: metrics, events, and at most one event a second.
pub(crate) struct Reporter {
    /// The metrics.
    pub metrics: Metrics,
    /// The events.
    pub events: Events,
    epoch: Instant,
    throttle: LogThrottle,
}

// === impl Reporter ===

impl Reporter {
    /// Creates a reporter that has emitted no event yet.
    pub(crate) fn new(metrics: Metrics, events: Events) -> Self {
        Reporter { metrics, events, epoch: Instant::now(), throttle: LogThrottle::default() }
    }

    /// Emits the event that `event` creates, unless this reporter emitted one within the last second.
    pub(crate) fn emit_throttled(&self, now: Instant, event: impl FnOnce() -> Event) {
        if self.throttle.allow(now, self.epoch) {
            self.events.emit(event());
        }
    }
}
