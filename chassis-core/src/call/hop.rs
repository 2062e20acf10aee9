//! What binds a refusal to the one attempt that it is true of.
//!
//! A service that refuses a call says that it executed nothing. That is true of the hop from its caller to
//! itself, and of no other: a gateway of another make which passes the answer on has worked for the call
//! already. So a refusal repeats what the attempt was sent with, and the caller believes it only if that is
//! what it sent: its own name and labels, the number of the attempt, and the authority. They travel with each
//! attempt anyway; what a gateway sends for calls of its own differs in at least one of them, or says that it
//! was forwarded (`via`, `forwarded`, `x-forwarded-for` and others that proxies write). A gateway that works for a
//! call, sends on all that it got and says nothing of itself cannot be told from the caller.
use http::{
    HeaderName, HeaderValue,
    header::{FORWARDED, HOST, VIA},
};

use super::Call;
use crate::headers::contains;

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
/// What proxies write of themselves. Not all of them name the client: Envoy writes `x-forwarded-for` only with
/// `use_remote_address`, and nginx often gets `x-real-ip` in its place.
const FORWARDED_BY: [HeaderName; 7] = [
    VIA,
    FORWARDED,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms"),
];
/// Longer names are not repeated.
const LONGEST: usize = 256;

// === impl Hop ===

impl Hop {
    /// As the caller knows it, which sends the name of the service as the authority. `None` if the caller has
    /// no name: then no refusal can be told from one that was meant for somebody else.
    pub(crate) fn sent(call: &Call) -> Option<Self> {
        let authority = Some((&*call.target.service).into());
        Some(Hop { attempt: call.attempt_number(), authority, ..Self::by_caller(call)? })
    }

    /// As the service knows it that is called. What somebody forwarded is whole for nobody.
    pub(crate) fn received(call: &Call) -> Option<Self> {
        if FORWARDED_BY.iter().any(|name| contains(&call.metadata, name)) {
            return Self::by_caller(call);
        }
        let host = || call.metadata.get(HOST)?.to_str().ok();
        let authority = call.uri.authority().map(|authority| authority.as_str()).or_else(host);
        let authority = authority.filter(|authority| authority.len() <= LONGEST).map(Into::into);
        Some(Hop { authority, ..Self::by_caller(call)? })
    }

    /// The same but for the authority, for what is told once the handler has begun to work.
    pub(crate) fn by_caller(call: &Call) -> Option<Self> {
        let caller = call.target.caller.clone().filter(|caller| caller.len() <= LONGEST)?;
        Some(Hop { caller, attempt: call.previous_attempts, authority: None })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::{Invocation, Operation, Target},
        testing::TEST,
    };

    fn call(caller: &'static str, attempts: u32) -> Invocation {
        let mut call = Invocation::new(&TEST, Target::new("stock", Operation::OTHER));
        call.target.caller = Some(HeaderValue::from_static(caller));
        call.previous_attempts = attempts;
        call
    }

    fn received(caller: &'static str, attempts: u32, host: &'static str) -> String {
        let mut call = call(caller, attempts);
        call.metadata.insert(HOST, HeaderValue::from_static(host));
        Hop::received(&call).unwrap().text().unwrap()
    }

    #[test]
    fn what_was_forwarded_is_not_this_hop() {
        let sent = Hop::sent(&call("orders", 0)).unwrap();
        for name in FORWARDED_BY {
            let mut call = call("orders", 0);
            call.metadata.insert(HOST, HeaderValue::from_static("stock"));
            call.metadata.insert(&name, HeaderValue::from_static("10.0.0.7"));
            let said = Hop::received(&call).unwrap();
            assert!(!said.is_whole() && !sent.is(&said.text().unwrap()), "{name}");
            assert!(sent.is_about(&said.text().unwrap()), "it was refused for this caller all the same");
        }
    }

    #[test]
    fn only_the_attempt_itself_is_believed() {
        let sent = Hop::sent(&call("orders;track=stable", 1)).unwrap();
        assert!(sent.is(&received("orders;track=stable", 1, "stock")));
        for (caller, attempts, host) in [
            ("orders", 1, "stock"),
            ("gateway", 1, "stock"),
            ("orders;track=stable", 0, "stock"),
            ("orders;track=stable", 1, "stock:80"),
            ("orders;track=stable", 1, "127.0.0.1:8080"),
            ("orders;track=stable", 1, ""),
        ] {
            let said = received(caller, attempts, host);
            assert!(!sent.is(&said) && !sent.is_about(&said), "{said}");
        }
        assert!(!sent.is("") && !sent.is_about("OVERLOADED"));
    }

    #[test]
    fn over_http2_the_authority_is_part_of_the_uri() {
        let mut call = call("orders", 0);
        call.uri = "http://stock/count".parse().unwrap();
        assert_eq!(Hop::received(&call).unwrap().text().unwrap(), "0 stock orders");
    }

    #[test]
    fn without_its_authority_it_says_nothing_of_work() {
        let sent = Hop::sent(&call("orders", 0)).unwrap();
        let received = Hop::received(&call("orders", 0)).unwrap();
        let said = received.text().unwrap();
        assert_eq!((received.is_whole(), sent.is(&said), sent.is_about(&said)), (false, false, true));
        assert!(!received.is(&said), "an unknown hop is no other unknown hop");
        assert!(!sent.is_about(&Hop::received(&call("gateway", 0)).unwrap().text().unwrap()));
    }

    #[test]
    fn who_has_no_name_believes_nobody() {
        let mut call = call("orders", 0);
        call.target.caller = None;
        assert_eq!((Hop::sent(&call), Hop::received(&call)), (None, None));
    }
}
