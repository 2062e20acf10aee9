//! The [hop](Hop) of a sent call, and of a received one.
use http::header::HOST;

use super::Call;
use crate::plugin::registry::split_listener;
use crate::types::{
    Hop,
    wire::{FORWARDED_BY, contains},
};

// === impl Hop ===

impl Hop {
    /// The caller's view: it sends the name of the service as the authority, without the listener. `None` if the
    /// caller has no name: then a refusal meant for another caller could not be recognised.
    pub(crate) fn sent(call: &Call) -> Option<Self> {
        Hop::new(
            call.target.caller.as_ref(),
            call.attempt_number(),
            Some(split_listener(&call.target.service).0),
        )
    }

    /// The called service's view. A forwarded call has no valid hop.
    pub(crate) fn received(call: &Call) -> Option<Self> {
        if FORWARDED_BY.iter().any(|name| contains(&call.metadata, name)) {
            return Self::by_caller(call);
        }
        let host = || call.metadata.get(HOST)?.to_str().ok();
        let authority = call.uri.authority().map(|authority| authority.as_str()).or_else(host);
        let authority = authority.filter(|authority| authority.len() <= Self::LONGEST);
        Hop::new(call.target.caller.as_ref(), call.previous_attempts, authority)
    }

    /// The same without the authority, for statements after the handler has started.
    pub(crate) fn by_caller(call: &Call) -> Option<Self> {
        Hop::new(call.target.caller.as_ref(), call.previous_attempts, None)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::{
        call::Invocation,
        testing::TEST,
        types::{Operation, Target},
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
