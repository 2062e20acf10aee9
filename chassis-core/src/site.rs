//! Where a mechanism reports what it does.
use crate::{
    clock::Instant,
    event::{Event, Events, Pulse},
    metrics::Metrics,
};

/// Where something speaks up: figures, events, and at most one event a second.
pub(crate) struct Site {
    /// The figures.
    pub metrics: Metrics,
    /// The events.
    pub events: Events,
    epoch: Instant,
    pulse: Pulse,
}

// === impl Site ===

impl Site {
    /// A place that has said nothing yet.
    pub(crate) fn new(metrics: Metrics, events: Events) -> Self {
        Site { metrics, events, epoch: Instant::now(), pulse: Pulse::default() }
    }

    /// Emits what `event` makes, unless this place emitted something within the last second.
    pub(crate) fn pulse(&self, now: Instant, event: impl FnOnce() -> Event) {
        if self.pulse.beat(now, self.epoch) {
            self.events.emit(event());
        }
    }
}
