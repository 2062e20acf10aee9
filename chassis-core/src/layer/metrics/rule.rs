//! The metrics of an operation. State: the handles of its series, by operation.
use std::sync::Arc;

use super::CallMetrics;
use crate::rule::{Binding, Of};

/// The handles of the operation in `binding`.
pub(crate) fn rule(binding: &mut Binding<'_>) -> Arc<CallMetrics> {
    let Binding { side, service, operation, environment, .. } = *binding;
    let make = || CallMetrics::new(&environment.metrics, side, service, operation);
    binding.state(Of::Operation, "metrics", make)
}
