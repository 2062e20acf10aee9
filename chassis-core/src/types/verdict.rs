//! How a call or an attempt ended.
use super::{Code, Error, Origin, Reason};

/// How a call or an attempt ended, in words every protocol can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The canonical code.
    pub code: Code,
    /// The protocol's own number for it: an HTTP status, a gRPC code. 0 where no answer came.
    pub status: u16,
    /// Which mechanism spoke, here or over there; `None` for a handler's own answer.
    pub reason: Option<Reason>,
    /// Who gave up.
    pub origin: Origin,
    /// May a handler have seen the call?
    pub maybe_executed: bool,
}

// === impl Verdict ===

impl Verdict {
    /// A handler answered with `code`, which its protocol writes as `status`.
    pub fn answered(code: Code, status: u16) -> Self {
        Verdict { code, status, reason: None, origin: Origin::Remote, maybe_executed: true }
    }

    /// The other side refused before it did anything, and said so.
    pub fn refused(reason: Reason, code: Code, status: u16) -> Self {
        Verdict { code, status, reason: Some(reason), origin: Origin::Remote, maybe_executed: false }
    }

    /// No answer came, because of `error`.
    pub fn of(error: &Error) -> Self {
        Verdict {
            code: error.code(),
            status: 0,
            reason: Some(error.reason()),
            origin: error.origin(),
            maybe_executed: error.maybe_executed(),
        }
    }

    pub(crate) fn failed(reason: Reason, origin: Origin) -> Self {
        Verdict { code: reason.code(), status: 0, reason: Some(reason), origin, maybe_executed: true }
    }

    /// Did it go well?
    pub fn is_success(&self) -> bool {
        self.code == Code::Ok
    }

    /// Does the answer name a mechanism, or speak of a cancellation? Such an answer is looked at again: it may
    /// be about another hop, or say in other words that the time was up.
    pub(crate) fn is_odd(&self) -> bool {
        self.reason.is_some() || self.code == Code::Cancelled
    }

    /// Does it say nothing of whoever was called? Local refusals, cancellations, panics on this side, and
    /// refusals of another chassis, which are told before any work and are about load or policy, not
    /// about health.
    pub fn blames_nobody(&self) -> bool {
        match self.status {
            0 => self.origin == Origin::Local || self.reason == Some(Reason::Panicked),
            _ => self.origin == Origin::Local || (self.reason.is_some() && !self.maybe_executed),
        }
    }
}
