//! The figures of an operation. State: the handles of its series, by operation.
use std::sync::Arc;

use crate::{
    metrics::CallMetrics,
    rule::{Binding, Of},
};

/// The handles of the operation in `binding`.
pub(crate) fn rule(binding: &mut Binding<'_>) -> Arc<CallMetrics> {
    let Binding { side, service, operation, environment, .. } = *binding;
    binding.state(Of::Operation, "metrics", || environment.metrics.call(side, service, operation))
}
