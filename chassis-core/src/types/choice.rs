//! Where a call may go, as its route or its caller chose.
use std::sync::Arc;

use super::LabelSet;

/// Where a call goes whose rule finds no instance.
#[derive(Clone, Debug)]
pub enum Fallback {
    /// To any instance.
    Any,
    /// Nowhere.
    None,
    /// To the first of these that has instances.
    Sets(Arc<[Arc<LabelSet>]>),
}

/// What a rule, or the caller, chose for a call.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The rule's name; `pinned` for the caller's own choice.
    pub rule: Arc<str>,
    /// Only instances with these.
    pub labels: Arc<LabelSet>,
    /// And if there are none?
    pub fallback: Fallback,
}
