//! What binds a refusal to the one attempt that it is true of.
//!
//! A service that refuses a call says that it executed nothing. That is true of the hop from its caller to
//! itself, and of no other: a gateway of another make which passes the answer on has worked for the call
//! already. So a refusal repeats what the attempt was sent with, and the caller believes it only if that is
//! what it sent: its own name and labels, the number of the attempt, and the authority. They travel with each
//! attempt anyway; what a gateway sends for calls of its own differs in at least one of them, or says that it
//! was forwarded (`via`, `forwarded`, `x-forwarded-for` and others that proxies write). A gateway that works for a
//! call, sends on all that it got and says nothing of itself cannot be told from the caller.
use http::HeaderValue;

/// What an attempt was sent with, as far as a refusal repeats it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    caller: HeaderValue,
    attempt: u32,
    /// Not known any more once a handler has begun to work.
    authority: Option<Box<str>>,
}

/// In place of an authority that is not known; no authority contains it.
const UNKNOWN: &str = "?";

// === impl Hop ===

impl Hop {
    /// Longer names are not repeated.
    pub(crate) const LONGEST: usize = 256;

    /// The attempt of this number, by a service that calls itself `caller`, to `authority`. `None` without a name
    /// that can be repeated.
    pub(crate) fn new(caller: Option<&HeaderValue>, attempt: u32, authority: Option<&str>) -> Option<Self> {
        let caller = caller.filter(|caller| caller.len() <= Self::LONGEST)?.clone();
        Some(Hop { caller, attempt, authority: authority.map(Into::into) })
    }

    /// Is all of it known, so that a refusal can be bound to it?
    pub fn is_whole(&self) -> bool {
        self.authority.is_some()
    }

    /// As a header's value: the attempt, the authority and the caller. `None` if the caller's name is no text.
    pub fn text(&self) -> Option<String> {
        self.with(self.authority.as_deref().unwrap_or(UNKNOWN))
    }

    /// Does `said` name this very attempt?
    pub fn is(&self, said: &str) -> bool {
        self.is_whole() && self.text().is_some_and(|text| text == said)
    }

    /// The same, or all of it but the authority: enough for what says nothing of whether it was executed.
    pub fn is_about(&self, said: &str) -> bool {
        self.is(said) || self.with(UNKNOWN).is_some_and(|text| text == said)
    }

    fn with(&self, authority: &str) -> Option<String> {
        let Hop { caller, attempt, .. } = self;
        caller.to_str().ok().map(|caller| format!("{attempt} {authority} {caller}"))
    }
}
