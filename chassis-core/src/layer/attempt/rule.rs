//! The figures of attempts. State: the handles of their series, by service.
use std::sync::Arc;

use crate::{
    metrics::AttemptMetrics,
    rule::{Binding, Of},
    types::Side,
};

/// The handles of the service in `binding`; there are no attempts at calls that come in.
pub(crate) fn rule(binding: &mut Binding<'_>) -> Option<Arc<AttemptMetrics>> {
    let (side, service, metrics) = (binding.side, binding.service, &binding.environment.metrics);
    (side == Side::Client)
        .then(|| binding.state(Of::Service, "attempts", || AttemptMetrics::new(metrics, service)))
}
