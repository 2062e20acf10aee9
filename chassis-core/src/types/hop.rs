//! Binds a refusal to the one attempt that it is true of.
//!
//! A service that refuses a call states that it executed nothing. That is true of the hop from its caller to
//! itself, and of no other: a foreign gateway which passes the answer on has already worked for the call. So a
//! refusal repeats the headers that the attempt was sent with, and the caller believes it only if they are its
//! own: its name and labels, the number of the attempt, and the authority. These headers travel with each
//! attempt anyway; a gateway that makes calls of its own sends at least one of them differently, or adds a
//! header that marks the call as forwarded (`via`, `forwarded`, `x-forwarded-for` and others that proxies
//! write). A gateway that works for a call, forwards all its headers and adds none can't be distinguished from
//! the caller.
use http::HeaderValue;

/// The headers of an attempt that a refusal repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    caller: HeaderValue,
    attempt: u32,
    /// `None` once a handler has begun to work.
    authority: Option<Box<str>>,
}

/// Written instead of an unknown authority; no authority contains it.
const UNKNOWN: &str = "?";

// === impl Hop ===

impl Hop {
    /// The longest caller's name that is repeated.
    pub(crate) const LONGEST: usize = 256;

    /// Attempt number `attempt` of the service `caller` to `authority`. `None` without a name that can be
    /// repeated.
    pub(crate) fn new(caller: Option<&HeaderValue>, attempt: u32, authority: Option<&str>) -> Option<Self> {
        let caller = caller.filter(|caller| caller.len() <= Self::LONGEST)?.clone();
        Some(Hop { caller, attempt, authority: authority.map(Into::into) })
    }

    /// Whether all parts are known, so that a refusal can be bound to it.
    pub fn is_whole(&self) -> bool {
        self.authority.is_some()
    }

    /// The header value: attempt, authority and caller. `None` if the caller's name is not text.
    pub fn text(&self) -> Option<String> {
        self.with(self.authority.as_deref().unwrap_or(UNKNOWN))
    }

    /// Whether `said` names exactly this attempt.
    pub fn is(&self, said: &str) -> bool {
        self.is_whole() && self.text().is_some_and(|text| text == said)
    }

    /// The same without the authority: enough for answers that do not say whether the call was executed.
    pub fn is_about(&self, said: &str) -> bool {
        self.is(said) || self.with(UNKNOWN).is_some_and(|text| text == said)
    }

    fn with(&self, authority: &str) -> Option<String> {
        let Hop { caller, attempt, .. } = self;
        caller.to_str().ok().map(|caller| format!("{attempt} {authority} {caller}"))
    }
}
