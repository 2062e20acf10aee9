//! Why a call failed, in words every protocol can say.
use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{BoxError, call::Invocation, cluster::Node};

/// Why no answer came. An answer, also a failing one, is a [`Reply`](crate::call::Reply).
///
/// ```
/// use chassis_core::{Error, Reason};
///
/// let error = Error::local(Reason::RateLimited, "stock: 100/s is used up").with_rule("per-caller");
/// assert_eq!(error.rule(), Some("per-caller"));
/// assert!(!error.maybe_executed());
/// ```
pub struct Error(Box<Inner>);

/// The canonical codes of gRPC, which every protocol maps to and from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[repr(u8)]
pub enum Code {
    /// Answered well.
    Ok = 0,
    /// The caller gave up.
    Cancelled = 1,
    /// Nobody knows.
    Unknown = 2,
    /// The request makes no sense, whatever the state of the system.
    InvalidArgument = 3,
    /// The time was up.
    DeadlineExceeded = 4,
    /// What was asked for is not there.
    NotFound = 5,
    /// What was to be made is there already.
    AlreadyExists = 6,
    /// The caller is known, and may not.
    PermissionDenied = 7,
    /// A quota or a resource is used up.
    ResourceExhausted = 8,
    /// The system is not in the state that the call needs.
    FailedPrecondition = 9,
    /// The call lost a race.
    Aborted = 10,
    /// The request is past the valid range.
    OutOfRange = 11,
    /// There is no such operation.
    Unimplemented = 12,
    /// An invariant is broken.
    Internal = 13,
    /// Not now; trying again may help.
    Unavailable = 14,
    /// Data is lost for good.
    DataLoss = 15,
    /// The caller is not known.
    Unauthenticated = 16,
}

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

struct Inner {
    code: Code,
    reason: Reason,
    origin: Origin,
    maybe_executed: bool,
    message: Cow<'static, str>,
    rule: Option<Cow<'static, str>>,
    retry_after: Option<Duration>,
    details: Option<crate::call::Details>,
    /// 0: none.
    trace_id: u128,
    source: Option<BoxError>,
    call: Option<Invocation>,
    node: Option<Arc<Node>>,
    service: Option<Arc<str>>,
    hop: Option<crate::call::Hop>,
}

// === impl Error ===

impl Error {
    /// This process refused, before the call went anywhere.
    pub fn local(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(reason.code(), reason, Origin::Local, false, message.into())
    }

    /// The endpoint or the network failed; `maybe_executed` unless the call provably never left.
    pub fn remote(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        let unsent = matches!(reason, Reason::ConnectFailed | Reason::StreamRefused);
        Self::new(reason.code(), reason, Origin::Remote, !unsent, message.into())
    }

    fn new(
        code: Code,
        reason: Reason,
        origin: Origin,
        maybe_executed: bool,
        message: Cow<'static, str>,
    ) -> Self {
        let (rule, retry_after, details, source, call, node, hop, service) =
            (None, None, None, None, None, None, None, None);
        Error(Box::new(Inner {
            code,
            reason,
            origin,
            maybe_executed,
            message,
            rule,
            retry_after,
            details,
            trace_id: 0,
            source,
            call,
            node,
            hop,
            service,
        }))
    }

    /// What the error of a user's tower layer says.
    ///
    /// An `Error` is taken out again, from below other errors too. A time-out of tower's or tokio's is
    /// [`Reason::DeadlineExceeded`], a refusal of tower's `LoadShed` is [`Reason::Overloaded`], anything else
    /// [`Reason::Internal`]; each keeps the layer's error as its source. Unless the layer refused, the handler
    /// may have seen the call.
    ///
    /// ```
    /// use chassis_core::{BoxError, Code, Error, Reason};
    ///
    /// let error: BoxError = Box::new(Error::local(Reason::RateLimited, "100/s is used up"));
    /// assert_eq!(Error::from_layer(error).reason(), Reason::RateLimited);
    ///
    /// let error = Error::from_layer(tower::timeout::error::Elapsed::new());
    /// assert_eq!((error.code(), error.maybe_executed()), (Code::DeadlineExceeded, true));
    ///
    /// let error = Error::from_layer(std::io::Error::other("the disk is full"));
    /// assert_eq!(error.code(), Code::Internal);
    /// assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "the disk is full");
    /// ```
    pub fn from_layer(error: impl Into<BoxError>) -> Self {
        let error = match error.into().downcast::<Error>() {
            Ok(error) => return *error,
            Err(other) => other,
        };
        let mut beneath = error.source();
        while let Some(source) = beneath {
            if let Some(own) = source.downcast_ref::<Error>() {
                return own.repeat().with_source(error);
            }
            beneath = source.source();
        }
        if error.is::<tower::timeout::error::Elapsed>() || error.is::<tokio::time::error::Elapsed>() {
            // As where chassis' own time is up: whoever was waited for gave no answer.
            let elapsed = Error::remote(Reason::DeadlineExceeded, "no answer within the time of a layer");
            return elapsed.with_source(error);
        }
        if error.is::<tower::load_shed::error::Overloaded>() {
            return Error::local(Reason::Overloaded, "a layer sheds load").with_source(error);
        }
        Error::local(Reason::Internal, "a layer failed").with_maybe_executed(true).with_source(error)
    }

    /// The same, with another code than the reason's own.
    pub fn with_code(mut self, code: Code) -> Self {
        self.0.code = code;
        self
    }

    /// The same, naming the rule that spoke: its name in the configuration.
    pub fn with_rule(mut self, rule: impl Into<Cow<'static, str>>) -> Self {
        self.0.rule = Some(rule.into());
        self
    }

    /// The same, with the time after which trying again makes sense.
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// The same, with the answer a fault wants to be given in its protocol's own words.
    pub fn with_details(mut self, details: crate::call::Details) -> Self {
        self.0.details = Some(details);
        self
    }

    /// The same, with the trace that the call is part of; 0 is none.
    pub fn with_trace_id(mut self, trace_id: u128) -> Self {
        self.0.trace_id = trace_id;
        self
    }

    /// The same, of a call to `service`: whoever passes the error on says whose it is.
    pub fn of_service(mut self, service: &Arc<str>) -> Self {
        self.0.service.get_or_insert_with(|| service.clone());
        self
    }

    /// The same, with what lies beneath.
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The same, saying whether the handler may have seen the call.
    pub fn with_maybe_executed(mut self, maybe: bool) -> Self {
        self.0.maybe_executed = maybe;
        self
    }

    /// The same, giving the untouched call back, so that it can go to another endpoint.
    pub fn returning(mut self, call: Invocation) -> Self {
        self.0.call = Some(call);
        self
    }

    /// The same, naming the node that the attempt went to, if it went to one.
    pub(crate) fn at(mut self, node: Option<Arc<Node>>) -> Self {
        self.0.node = self.0.node.or(node);
        self
    }

    /// The same, about the hop that a call came in by, unless it is about another one already.
    pub(crate) fn of_hop(mut self, hop: impl FnOnce() -> Option<crate::call::Hop>) -> Self {
        self.0.hop = self.0.hop.or_else(hop);
        self
    }

    /// The canonical code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The mechanism that spoke.
    pub fn reason(&self) -> Reason {
        self.0.reason
    }

    /// Who gave up.
    pub fn origin(&self) -> Origin {
        self.0.origin
    }

    /// May the handler have seen the call? `false` only where that is certain.
    pub fn maybe_executed(&self) -> bool {
        self.0.maybe_executed
    }

    /// This level in words; what lies beneath is the [source](std::error::Error::source).
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The rule that spoke, by its name in the configuration.
    pub fn rule(&self) -> Option<&str> {
        self.0.rule.as_deref()
    }

    /// The address of the endpoint that the last attempt went to, where it went to one.
    pub fn endpoint(&self) -> Option<&str> {
        self.0.node.as_ref().map(|node| node.address())
    }

    /// The service that was called, where this is the failure of a call that this process made.
    pub fn service(&self) -> Option<&str> {
        self.0.service.as_deref()
    }

    /// When trying again makes sense.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The hop that it is true of: what the attempt was sent with that it ended. `None` for an error that is
    /// about no call, or about one whose caller has no name.
    pub fn hop(&self) -> Option<&crate::call::Hop> {
        self.0.hop.as_ref()
    }

    /// What a fault wants to be answered.
    pub fn details(&self) -> Option<&crate::call::Details> {
        self.0.details.as_ref()
    }

    /// The trace that the call is part of, where it is part of one.
    pub fn trace_id(&self) -> Option<u128> {
        Some(self.0.trace_id).filter(|id| *id != 0)
    }

    /// Did the call provably never reach a handler over there, though it was sent that way?
    pub fn unsent(&self) -> bool {
        self.0.origin == Origin::Remote && !self.0.maybe_executed
    }

    pub(crate) fn node(&self) -> Option<&Arc<Node>> {
        self.0.node.as_ref()
    }

    /// The same words once more, without what lies beneath and without the call.
    pub(crate) fn repeat(&self) -> Self {
        let Inner {
            code,
            reason,
            origin,
            maybe_executed,
            message,
            rule,
            retry_after,
            details,
            node,
            hop,
            service,
            ..
        } = &*self.0;
        Error(Box::new(Inner {
            code: *code,
            reason: *reason,
            origin: *origin,
            maybe_executed: *maybe_executed,
            message: message.clone(),
            rule: rule.clone(),
            retry_after: *retry_after,
            details: details.clone(),
            trace_id: self.0.trace_id,
            source: None,
            call: None,
            node: node.clone(),
            hop: hop.clone(),
            service: service.clone(),
        }))
    }

    /// Takes the untouched call back, if the transport gave it back.
    pub fn take_unsent(&mut self) -> Option<Invocation> {
        self.0.call.take()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &self.0;
        let mut out = f.debug_struct("Error");
        out.field("code", &e.code).field("reason", &e.reason).field("origin", &e.origin);
        out.field("maybe_executed", &e.maybe_executed).field("message", &e.message);
        if let Some(rule) = &e.rule {
            out.field("rule", rule);
        }
        if let Some(endpoint) = self.endpoint() {
            out.field("endpoint", &endpoint);
        }
        if let Some(source) = &e.source {
            out.field("source", source);
        }
        out.finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|s| s as _)
    }
}

// === impl Code ===

impl Code {
    /// All seventeen, in the order of their numbers.
    pub const ALL: [Code; 17] = [
        Code::Ok,
        Code::Cancelled,
        Code::Unknown,
        Code::InvalidArgument,
        Code::DeadlineExceeded,
        Code::NotFound,
        Code::AlreadyExists,
        Code::PermissionDenied,
        Code::ResourceExhausted,
        Code::FailedPrecondition,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unimplemented,
        Code::Internal,
        Code::Unavailable,
        Code::DataLoss,
        Code::Unauthenticated,
    ];

    /// By its number on the wire; anything else is [`Code::Unknown`].
    pub fn from_number(number: u16) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Code::Unknown)
    }

    /// By its name, as in `DEADLINE_EXCEEDED`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.name() == name)
    }

    /// Its number on the wire.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// Its name, as in `DEADLINE_EXCEEDED`.
    pub fn name(self) -> &'static str {
        match self {
            Code::Ok => "OK",
            Code::Cancelled => "CANCELLED",
            Code::Unknown => "UNKNOWN",
            Code::InvalidArgument => "INVALID_ARGUMENT",
            Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Code::NotFound => "NOT_FOUND",
            Code::AlreadyExists => "ALREADY_EXISTS",
            Code::PermissionDenied => "PERMISSION_DENIED",
            Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Code::FailedPrecondition => "FAILED_PRECONDITION",
            Code::Aborted => "ABORTED",
            Code::OutOfRange => "OUT_OF_RANGE",
            Code::Unimplemented => "UNIMPLEMENTED",
            Code::Internal => "INTERNAL",
            Code::Unavailable => "UNAVAILABLE",
            Code::DataLoss => "DATA_LOSS",
            Code::Unauthenticated => "UNAUTHENTICATED",
        }
    }

    /// The HTTP status that says the same, after google.rpc.Code's comments.
    pub fn http_status(self) -> http::StatusCode {
        let status = match self {
            Code::Ok => 200,
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
            Code::Unauthenticated => 401,
            Code::PermissionDenied => 403,
            Code::NotFound => 404,
            Code::AlreadyExists | Code::Aborted => 409,
            Code::ResourceExhausted => 429,
            Code::Cancelled => 499,
            Code::Unknown | Code::Internal | Code::DataLoss => 500,
            Code::Unimplemented => 501,
            Code::Unavailable => 503,
            Code::DeadlineExceeded => 504,
        };
        http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The code that says the same as an HTTP status: the way back of [`Code::http_status`].
    pub fn from_http(status: http::StatusCode) -> Self {
        match status.as_u16() {
            100..400 => Code::Ok,
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 | 410 => Code::NotFound,
            405 | 501 => Code::Unimplemented,
            408 | 504 => Code::DeadlineExceeded,
            409 => Code::Aborted,
            412 => Code::FailedPrecondition,
            416 => Code::OutOfRange,
            429 => Code::ResourceExhausted,
            499 => Code::Cancelled,
            400..=499 => Code::InvalidArgument,
            502 | 503 => Code::Unavailable,
            _ => Code::Internal,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
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
