//! The outcome of a call: exactly one of five classes.
use chassis::{Code, Error, Reason};
use serde::Serialize;

use crate::echo::Hop;

/// The class of a call's outcome, from the caller's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Answered successfully.
    Ok,
    /// A mechanism refused it, local or remote, before any handler saw it.
    RefusedBeforeWork,
    /// It failed on its way, and provably no handler saw it.
    FailedNotExecuted,
    /// It failed, and a handler saw it or may have seen it.
    MaybeExecuted,
    /// No answer 100 ms after its deadline.
    Hang,
}

/// The outcome of a call.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The class of the outcome.
    pub class: Class,
    /// The gRPC status code.
    pub code: Code,
    /// The mechanism that refused or failed, if there is one.
    pub reason: Option<Reason>,
    /// The instances that the call passed, if it succeeded.
    pub hops: Vec<Hop>,
    /// The error message, if it did not succeed.
    pub message: String,
}

// === impl Class ===

impl Class {
    /// All five.
    pub const ALL: [Class; 5] =
        [Class::Ok, Class::RefusedBeforeWork, Class::FailedNotExecuted, Class::MaybeExecuted, Class::Hang];

    fn of(error: &Error) -> Self {
        use Reason::*;
        match error.reason() {
            _ if error.maybe_executed() => Class::MaybeExecuted,
            RateLimited | Overloaded | CircuitOpen | NoEndpoint | NoRoute | UnknownService
            | FaultInjected | ShuttingDown => Class::RefusedBeforeWork,
            _ => Class::FailedNotExecuted,
        }
    }
}

// === impl Outcome ===

impl Outcome {
    /// A success that passed these services.
    pub fn ok(hops: Vec<Hop>) -> Self {
        Outcome { class: Class::Ok, code: Code::Ok, reason: None, hops, message: String::new() }
    }

    /// No answer in time, and no error either.
    pub fn hang() -> Self {
        let message = "no answer, and no error".to_owned();
        Outcome { class: Class::Hang, code: Code::DeadlineExceeded, reason: None, hops: Vec::new(), message }
    }

    /// A failure that a handler returned.
    pub fn failed(code: Code, message: impl Into<String>) -> Self {
        let message = message.into();
        Outcome { class: Class::MaybeExecuted, code, reason: None, hops: Vec::new(), message }
    }
}

impl From<&Error> for Outcome {
    fn from(error: &Error) -> Self {
        let reason = Some(error.reason());
        let mut message = error.message().to_owned();
        let mut source = std::error::Error::source(error);
        while let Some(beneath) = source {
            message = format!("{message}: {beneath}");
            source = beneath.source();
        }
        Outcome { class: Class::of(error), code: error.code(), reason, hops: Vec::new(), message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: Error, class: Class) {
        assert_eq!(Outcome::from(&error).class, class);
    }

    #[test]
    fn every_failure_is_in_the_right_class() {
        check(Error::local(Reason::CircuitOpen, ""), Class::RefusedBeforeWork);
        check(Error::remote(Reason::Overloaded, "").with_maybe_executed(false), Class::RefusedBeforeWork);
        check(Error::remote(Reason::ConnectFailed, ""), Class::FailedNotExecuted);
        check(Error::local(Reason::DeadlineExceeded, ""), Class::FailedNotExecuted);
        check(Error::remote(Reason::DeadlineExceeded, ""), Class::MaybeExecuted);
        check(Error::remote(Reason::ConnectionLost, ""), Class::MaybeExecuted);
    }
}
