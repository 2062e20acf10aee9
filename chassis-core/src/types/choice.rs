//! The endpoints a call may go to, as its route or its caller chose.
use std::sync::Arc;

use super::LabelSet;

/// The action for a call whose rule finds no instance.
#[derive(Clone, Debug)]
pub(crate) enum Fallback {
    /// The call goes to any instance.
    Any,
    /// The call fails.
    None,
    /// The call goes to the first of these label sets that has instances.
    Sets(Arc<[Arc<LabelSet>]>),
}

/// The choice of a rule, or of the caller, for a call.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    /// The rule's name; `pinned` if the caller chose.
    pub rule: Arc<str>,
    /// Only instances with these labels.
    pub labels: Arc<LabelSet>,
    /// The action if there are none.
    pub fallback: Fallback,
}
