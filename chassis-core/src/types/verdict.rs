//! The outcome of a call or an attempt.
use super::{Code, Error, Origin, Reason};

/// The outcome of a call or an attempt, independent of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The canonical code.
    pub code: Code,
    /// The protocol's own number: an HTTP status, a gRPC code. 0 if there was no answer.
    pub status: u16,
    /// The mechanism that ended the call, here or at the other side; `None` for a handler's own answer.
    pub reason: Option<Reason>,
    /// The side that gave up.
    pub origin: Origin,
    /// Whether a handler may have seen the call.
    pub maybe_executed: bool,
}

// === impl Verdict ===

impl Verdict {
    /// A handler's answer with `code`, which its protocol writes as `status`.
    pub fn answered(code: Code, status: u16) -> Self {
        Verdict { code, status, reason: None, origin: Origin::Remote, maybe_executed: true }
    }

    /// A refusal of the other side before it did any work.
    pub fn refused(reason: Reason, code: Code, status: u16) -> Self {
        Verdict { code, status, reason: Some(reason), origin: Origin::Remote, maybe_executed: false }
    }

    /// No answer, because of `error`.
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

    /// Whether the call succeeded.
    pub fn is_success(&self) -> bool {
        self.code == Code::Ok
    }

    /// Whether the answer names a mechanism or is a cancellation. The caller checks such an answer again: it
    /// may be about another hop, or may be caused by the deadline.
    pub(crate) fn is_odd(&self) -> bool {
        self.reason.is_some() || self.code == Code::Cancelled
    }

    /// Whether the outcome says nothing about the called endpoint: local refusals, cancellations, panics on
    /// this side, and refusals of another chassis, which happen before any work and are about load or policy,
    /// not about health.
    pub fn blames_nobody(&self) -> bool {
        match self.status {
            0 => self.origin == Origin::Local || self.reason == Some(Reason::Panicked),
            _ => self.origin == Origin::Local || (self.reason.is_some() && !self.maybe_executed),
        }
    }
}
