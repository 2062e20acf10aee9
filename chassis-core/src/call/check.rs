//! Checks of an answer by layers, before listeners are notified of the outcome.
//!
//! An answer is judged where it is created: by the node's leaf, or by the handler, below every layer. A layer
//! above that refuses answers would be too late, because the call would already count as a success. So the
//! layer adds a check to the call, which every attempt carries.
use std::sync::Arc;

use super::{Call, Invocation, Reply};
use crate::types::{Error, Verdict};

/// A layer's check of the answer to a call.
pub(crate) trait CallCheck: Send + Sync + 'static {
    /// Refuses the answer with an error of this process, or accepts it; may replace its body, to refuse it
    /// later.
    fn check_answer(&self, answer: &mut Call) -> Result<(), Error>;

    /// The verdict on a call that is dropped now, if the layer drops it for a reason of its own; otherwise
    /// `None`.
    fn verdict_of_drop(&self) -> Option<Verdict> {
        None
    }
}

/// The checks of a call, and their result.
#[derive(Default)]
pub(super) struct Checks {
    by: Vec<Arc<dyn CallCheck>>,
    refusal: Option<Error>,
}

// === impl Checks ===

impl Checks {
    /// The same checks, for another attempt.
    pub(super) fn again(&self) -> Self {
        Checks { by: self.by.clone(), refusal: None }
    }
}

// === impl Invocation, Reply, Call ===

impl Invocation {
    /// Adds `check`, which checks the answer of every attempt before it is judged.
    pub(crate) fn check_by(&mut self, check: Arc<dyn CallCheck>) {
        self.0.checks.get_or_insert_default().by.push(check);
    }
}

impl Reply {
    /// The reason why a [`CallCheck`] refused the answer, for the layer that added it; returned once. If it is
    /// not taken, the answer contains the same reason in the form of its protocol.
    pub(crate) fn take_refusal(&mut self) -> Option<Error> {
        self.0.checks.as_mut()?.refusal.take()
    }
}

impl Call {
    /// The verdict on an answer that a check refused.
    #[cold]
    pub(super) fn check_answer(&mut self) -> Option<Verdict> {
        let by = self.checks.as_ref()?.by.clone();
        let error = by.iter().find_map(|check| check.check_answer(self).err())?;
        let verdict = Verdict::of(&error);
        (self.status, self.metadata, self.body) = self.protocol.refuse(&error);
        self.checks.as_mut()?.refusal = Some(error);
        Some(verdict)
    }

    /// The verdict of a check for the case that the call is dropped now.
    pub(super) fn checked_drop(&self) -> Option<Verdict> {
        self.checks.as_ref()?.by.iter().find_map(|check| check.verdict_of_drop())
    }
}
