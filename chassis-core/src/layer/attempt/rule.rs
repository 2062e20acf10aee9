//! The metrics of attempts. State: the handles of their series, by service.
use std::sync::Arc;

use crate::{
    metrics::{CallCounter, Metrics},
    rule::{Binding, Of},
    types::{Code, Side, Verdict},
};

/// The counters of a service's attempts, by their outcome.
pub(crate) struct AttemptMetrics([CallCounter; 17]);

/// The handles of the service in `binding`; none for incoming calls, which have no attempts.
pub(crate) fn rule(binding: &mut Binding<'_>) -> Option<Arc<AttemptMetrics>> {
    let (side, service, metrics) = (binding.side, binding.service, &binding.environment.metrics);
    (side == Side::Client)
        .then(|| binding.state(Of::Service, "attempts", || AttemptMetrics::new(metrics, service)))
}

// === impl AttemptMetrics ===

impl AttemptMetrics {
    fn new(metrics: &Metrics, service: &str) -> Self {
        AttemptMetrics(Code::ALL.map(|code| metrics.attempts(service, code)))
    }

    /// Counts an attempt that ended with `verdict`.
    pub(super) fn count(&self, verdict: &Verdict) {
        self.0[usize::from(verdict.code.number())].inc();
    }
}
