//! One pass over the rules of all policies.
use std::{collections::HashSet, sync::Arc};

use crate::clock::Instant;

/// The current policy, and the states that were seen already.
pub(crate) struct Look<'a> {
    pub(crate) service: &'a str,
    pub(crate) operation: &'a str,
    pub(crate) now: Instant,
    seen: &'a mut HashSet<usize>,
}

// === impl Look ===

impl<'a> Look<'a> {
    pub(crate) fn new(
        service: &'a str,
        operation: &'a str,
        now: Instant,
        seen: &'a mut HashSet<usize>,
    ) -> Self {
        Look { service, operation, now, seen }
    }

    /// Whether this state was not seen before. Several policies may share it.
    pub(crate) fn is_first<T>(&mut self, state: &Arc<T>) -> bool {
        self.seen.insert(Arc::as_ptr(state) as usize)
    }
}
