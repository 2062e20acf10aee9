//! The mechanism that ended a call, and the side that gave up.
use std::fmt;

use super::Code;

/// The mechanism that ended a call. A closed set, so that it can be a metric label and be matched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// A rate limit is exceeded.
    RateLimited,
    /// A bound on concurrent calls is reached.
    Overloaded,
    /// A circuit is open.
    CircuitOpen,
    /// The service has no endpoint, or none that could be reached.
    NoEndpoint,
    /// The rule that matched has no endpoints.
    NoRoute,
    /// The service is unknown.
    UnknownService,
    /// The deadline passed.
    DeadlineExceeded,
    /// A fault was injected.
    FaultInjected,
    /// No connection could be made: the call never left.
    ConnectFailed,
    /// The other side refused the request before it read it (REFUSED_STREAM, GOAWAY).
    StreamRefused,
    /// The connection broke while the call was on it.
    ConnectionLost,
    /// The caller cancelled the call.
    Cancelled,
    /// A handler panicked.
    Panicked,
    /// A message, a body or its headers exceed a limit.
    TooLarge,
    /// The received data violates its protocol.
    Malformed,
    /// The process is draining.
    ShuttingDown,
    /// Anything else.
    Internal,
}

/// The side that gave up. Retries, breakers and balancers check it before they blame an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// This process refused: a limit, an open circuit, no route, an injected fault.
    Local,
    /// The endpoint, or the network on the way.
    Remote,
}

// === impl Reason ===

impl Reason {
    /// All reasons.
    pub const ALL: &'static [Reason] = &[
        Reason::RateLimited,
        Reason::Overloaded,
        Reason::CircuitOpen,
        Reason::NoEndpoint,
        Reason::NoRoute,
        Reason::UnknownService,
        Reason::DeadlineExceeded,
        Reason::FaultInjected,
        Reason::ConnectFailed,
        Reason::StreamRefused,
        Reason::ConnectionLost,
        Reason::Cancelled,
        Reason::Panicked,
        Reason::TooLarge,
        Reason::Malformed,
        Reason::ShuttingDown,
        Reason::Internal,
    ];

    /// Its name on the wire (`ErrorInfo.reason`, the `reason` of a problem document) and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Reason::RateLimited => "RATE_LIMITED",
            Reason::Overloaded => "OVERLOADED",
            Reason::CircuitOpen => "CIRCUIT_OPEN",
            Reason::NoEndpoint => "NO_ENDPOINT",
            Reason::NoRoute => "NO_ROUTE",
            Reason::UnknownService => "UNKNOWN_SERVICE",
            Reason::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Reason::FaultInjected => "FAULT_INJECTED",
            Reason::ConnectFailed => "CONNECT_FAILED",
            Reason::StreamRefused => "STREAM_REFUSED",
            Reason::ConnectionLost => "CONNECTION_LOST",
            Reason::Cancelled => "CANCELLED",
            Reason::Panicked => "PANICKED",
            Reason::TooLarge => "TOO_LARGE",
            Reason::Malformed => "MALFORMED",
            Reason::ShuttingDown => "SHUTTING_DOWN",
            Reason::Internal => "INTERNAL",
        }
    }

    /// The reason with this name on the wire.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.name() == name)
    }

    /// Its canonical code, unless the error has another.
    pub fn code(self) -> Code {
        match self {
            Reason::RateLimited | Reason::TooLarge => Code::ResourceExhausted,
            Reason::DeadlineExceeded => Code::DeadlineExceeded,
            Reason::Cancelled => Code::Cancelled,
            Reason::Panicked | Reason::Internal | Reason::Malformed => Code::Internal,
            Reason::Overloaded
            | Reason::CircuitOpen
            | Reason::NoEndpoint
            | Reason::NoRoute
            | Reason::UnknownService
            | Reason::FaultInjected
            | Reason::ConnectFailed
            | Reason::StreamRefused
            | Reason::ConnectionLost
            | Reason::ShuttingDown => Code::Unavailable,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
