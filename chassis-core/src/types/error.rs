//! Why a call failed, independent of the protocol.
use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use super::{Code, Hop, Origin, Reason};
use crate::BoxError;

/// Why a call has no answer. An answer, also a failing one, is a [`Reply`](crate::call::Reply).
///
/// ```
/// use chassis_core::{Error, Reason};
///
/// let error = Error::local(Reason::RateLimited, "stock: 100/s is used up").with_rule("per-caller");
/// assert_eq!(error.rule(), Some("per-caller"));
/// assert!(!error.maybe_executed());
/// ```
pub struct Error(Box<Inner>);

/// The protocol's own parts of an answer that a fault makes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// HTTP status, if it is not the code's own.
    pub status: Option<u16>,
    /// HTTP body, or the details' text over gRPC.
    pub body: Option<String>,
}

struct Inner {
    code: Code,
    reason: Reason,
    origin: Origin,
    maybe_executed: bool,
    message: Cow<'static, str>,
    rule: Option<Cow<'static, str>>,
    retry_after: Option<Duration>,
    details: Option<Details>,
    /// 0 means none.
    trace_id: u128,
    source: Option<BoxError>,
    /// The address of the endpoint that the last attempt went to.
    endpoint: Option<Box<str>>,
    service: Option<Arc<str>>,
    hop: Option<Hop>,
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
        let (rule, retry_after, details, source, endpoint, hop, service) =
            (None, None, None, None, None, None, None);
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
            endpoint,
            hop,
            service,
        }))
    }

    /// Converts the error of a user's tower layer.
    ///
    /// An `Error` is extracted, also from below other errors. A time-out of tower or tokio becomes
    /// [`Reason::DeadlineExceeded`], a refusal of tower's `LoadShed` [`Reason::Overloaded`], any other error
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
            // As for chassis' own deadline: the endpoint gave no answer.
            let elapsed = Error::remote(Reason::DeadlineExceeded, "no answer within the time of a layer");
            return elapsed.with_source(error);
        }
        if error.is::<tower::load_shed::error::Overloaded>() {
            return Error::local(Reason::Overloaded, "a layer sheds load").with_source(error);
        }
        Error::local(Reason::Internal, "a layer failed").with_maybe_executed(true).with_source(error)
    }

    /// Replaces the reason's code.
    pub fn with_code(mut self, code: Code) -> Self {
        self.0.code = code;
        self
    }

    /// Adds the name of the rule that refused, as in the configuration.
    pub fn with_rule(mut self, rule: impl Into<Cow<'static, str>>) -> Self {
        self.0.rule = Some(rule.into());
        self
    }

    /// Adds the time after which a retry makes sense.
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// Adds the protocol's own parts of the answer that a fault makes.
    pub fn with_details(mut self, details: Details) -> Self {
        self.0.details = Some(details);
        self
    }

    /// Adds the trace of the call; 0 means none.
    pub(crate) fn with_trace_id(mut self, trace_id: u128) -> Self {
        self.0.trace_id = trace_id;
        self
    }

    /// Adds the called service, when the error is passed on to another caller.
    pub fn of_service(mut self, service: &Arc<str>) -> Self {
        self.0.service.get_or_insert_with(|| service.clone());
        self
    }

    /// Adds the error that caused this one.
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Sets whether the handler may have seen the call.
    pub fn with_maybe_executed(mut self, maybe: bool) -> Self {
        self.0.maybe_executed = maybe;
        self
    }

    /// Adds the address of the attempt's endpoint, unless it has one.
    pub(crate) fn with_endpoint(mut self, address: &str) -> Self {
        self.0.endpoint.get_or_insert_with(|| address.into());
        self
    }

    /// Adds the hop that the call came in by, unless it has one.
    pub(crate) fn of_hop(mut self, hop: impl FnOnce() -> Option<Hop>) -> Self {
        self.0.hop = self.0.hop.or_else(hop);
        self
    }

    /// The canonical code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The mechanism that refused or failed.
    pub fn reason(&self) -> Reason {
        self.0.reason
    }

    /// The side that gave up.
    pub fn origin(&self) -> Origin {
        self.0.origin
    }

    /// Whether the handler may have seen the call. `false` only if it certainly has not.
    pub fn maybe_executed(&self) -> bool {
        self.0.maybe_executed
    }

    /// The message of this level; its cause is the [source](std::error::Error::source).
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The rule that refused, by its name in the configuration.
    pub fn rule(&self) -> Option<&str> {
        self.0.rule.as_deref()
    }

    /// The address of the endpoint of the last attempt, if there was one.
    pub fn endpoint(&self) -> Option<&str> {
        self.0.endpoint.as_deref()
    }

    /// The called service, if this is the failure of a call that this process made.
    pub fn service(&self) -> Option<&str> {
        self.0.service.as_deref()
    }

    /// The time after which a retry makes sense.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The hop that this refusal is true of: the headers that its attempt was sent with. `None` for an error
    /// without a call, or without a caller's name.
    pub fn hop(&self) -> Option<&Hop> {
        self.0.hop.as_ref()
    }

    /// The protocol's own parts of the answer that a fault makes.
    pub fn details(&self) -> Option<&Details> {
        self.0.details.as_ref()
    }

    /// The trace of the call, if it has one.
    pub fn trace_id(&self) -> Option<u128> {
        Some(self.0.trace_id).filter(|id| *id != 0)
    }

    /// Whether the call was sent and provably never reached a handler.
    pub fn unsent(&self) -> bool {
        self.0.origin == Origin::Remote && !self.0.maybe_executed
    }

    /// A copy without the source.
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
            endpoint,
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
            endpoint: endpoint.clone(),
            hop: hop.clone(),
            service: service.clone(),
        }))
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
