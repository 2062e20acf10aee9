//! What a layer checks of an answer before anything hears how the call ended.
//!
//! The answer is judged where it is made: by the node's leaf, or by the handler, below every layer. A layer that
//! refuses answers above that would come too late, for the call would have been counted as one that went well. So
//! it leaves a check with the call, which goes along to every attempt.
use std::sync::Arc;

use super::{Call, Invocation, Reply};
use crate::types::{Error, Verdict};

/// A layer's check of the answer to a call.
pub(crate) trait CallCheck: Send + Sync + 'static {
    /// Refuses the answer by an error of this process, or lets it pass; may put another body in the place of its
    /// body, to refuse it later.
    fn check_answer(&self, answer: &mut Call) -> Result<(), Error>;

    /// The verdict on a call that is dropped now, if the layer drops it for a reason of its own; else `None`.
    fn verdict_of_drop(&self) -> Option<Verdict> {
        None
    }
}

/// The checks of a call, and what came of them.
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
    /// Has `check` look at the answer, whichever attempt it comes from, before it is judged.
    pub(crate) fn check_by(&mut self, check: Arc<dyn CallCheck>) {
        self.0.checks.get_or_insert_default().by.push(check);
    }
}

impl Reply {
    /// Why a [`CallCheck`] refused the answer, for the layer that left it; once. Whatever does not ask finds an
    /// answer that says the same in its protocol's words.
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

    /// How a check says that the call ends if it is dropped now.
    pub(super) fn checked_drop(&self) -> Option<Verdict> {
        self.checks.as_ref()?.by.iter().find_map(|check| check.verdict_of_drop())
    }
}
