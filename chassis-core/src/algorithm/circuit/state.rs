//! The states of a circuit, and the values that report them.
use std::time::Duration;

use serde::Serialize;

use super::Token;

/// The state of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Calls are admitted and counted.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls are admitted; their outcomes decide.
    HalfOpen,
}

/// A call was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admission {
    /// To be passed back with the outcome.
    pub token: Token,
    /// The transition, if admitting the call caused one.
    pub moved: Option<Transition>,
}

/// A call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// `Open`, or `HalfOpen` with all its probes under way.
    pub state: State,
    /// The time until the circuit admits a probe, if that is known.
    pub retry_after: Option<Duration>,
}

/// A change of a circuit's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transition {
    /// The state before.
    pub from: State,
    /// The state now.
    pub to: State,
}

/// A circuit's figures at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CircuitFigures {
    /// The state.
    pub state: State,
    /// Calls that ended in the window; while open, those that opened it, as far as they are still in the
    /// window.
    pub calls: u32,
    /// Failed calls among them.
    pub failures: u32,
    /// Failures in a row; 0 unless closed.
    pub consecutive: u32,
    /// Probes under way, those of earlier rounds included; 0 unless half-open.
    pub probing: u32,
    /// The time for which it still refuses; `None` unless open, or if forced open.
    pub retry_after: Option<Duration>,
}

// === impl State ===

impl State {
    /// `closed`, `open` or `half-open`.
    pub fn name(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half-open",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
