//! Which mechanism spoke, and who gave up.
use std::fmt;

use super::Code;

/// Which mechanism spoke. Closed, so that it can be a metric label and be branched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// A rate limit is used up.
    RateLimited,
    /// A bound on concurrent calls is reached.
    Overloaded,
    /// A circuit is open.
    CircuitOpen,
    /// There is no endpoint to send to, or none that could be reached.
    NoEndpoint,
    /// The rule that matched leads nowhere.
    NoRoute,
    /// Nobody has heard of the service.
    UnknownService,
    /// The time was up.
    DeadlineExceeded,
    /// A fault was injected.
    FaultInjected,
    /// No connection came about: the call never left.
    ConnectFailed,
    /// The other side refused the request before it looked at it (REFUSED_STREAM, GOAWAY).
    StreamRefused,
    /// The connection broke with the call on it.
    ConnectionLost,
    /// The caller gave up.
    Cancelled,
    /// A handler panicked.
    Panicked,
    /// A message, a body or its headers are over a limit.
    TooLarge,
    /// What came does not follow its protocol.
    Malformed,
    /// The process is draining.
    ShuttingDown,
    /// Anything else.
    Internal,
}

/// Who gave up. Retries, breakers and balancers ask before they blame an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// This process refused: a limit, an open circuit, no route, an injected fault.
    Local,
    /// The endpoint, or the network on the way.
    Remote,
}

// === impl Reason ===

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 17] = [
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

    /// By its name on the wire.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }

    /// The canonical code it is told with, unless the error says otherwise.
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
