//! The reporter of a mechanism: metrics and events.
use crate::{
    clock::Instant,
    event::{Event, Events, Pulse},
    metrics::Metrics,
};

/// Reports for one rule: metrics, events, and at most one event a second.
pub(crate) struct Reporter {
    /// The metrics.
    pub metrics: Metrics,
    /// The events.
    pub events: Events,
    epoch: Instant,
    pulse: Pulse,
}

// === impl Reporter ===

impl Reporter {
    /// Creates a reporter that has emitted no event yet.
    pub(crate) fn new(metrics: Metrics, events: Events) -> Self {
        Reporter { metrics, events, epoch: Instant::now(), pulse: Pulse::default() }
    }

    /// Emits the event that `event` creates, unless this reporter emitted one within the last second.
    pub(crate) fn pulse(&self, now: Instant, event: impl FnOnce() -> Event) {
        if self.pulse.beat(now, self.epoch) {
            self.events.emit(event());
        }
    }
}
