//! The contract of [`Protocol`].
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header::HOST};
use http_body::Body as _;

use crate::{
    call::Invocation,
    plugin::protocol::{Protocol, Pushback},
    types::{Body, Code, Error, Operation, Origin, Reason, Target, Verdict},
};

/// Checks what [`Protocol`] promises.
///
/// It reads its own refusals as failures. It reads that nothing was executed only if that was written about
/// this very attempt, and never from an answer that was passed on. It reads an answer that forbids retries as
/// such. No head makes it panic.
///
/// # Panics
/// If a promise is broken, with its name.
pub fn protocol(protocol: &'static dyn Protocol) {
    assert!(!protocol.name().is_empty(), "a protocol has a name");
    for reason in Reason::ALL.iter().copied() {
        for error in [Error::local(reason, "no"), Error::remote(reason, "no")] {
            for maybe in [false, true] {
                refusals(protocol, &|| error.repeat().with_maybe_executed(maybe));
            }
        }
    }

    let mut head = answer_of(protocol, &Error::remote(Reason::Internal, "no")).1;
    protocol.forbid_retry(&mut head);
    assert_eq!(protocol.pushback(&head), Pushback::Never, "an answer that forbids retries is read so");

    for status in [100, 200, 204, 299, 304, 400, 404, 429, 500, 503, 599] {
        let status = StatusCode::from_u16(status).expect("a status");
        for value in ["", "0", "-1", "99999999999", "\u{e9}", "a;b=c"] {
            let mut head = answer_of(protocol, &Error::local(Reason::Overloaded, "no")).1;
            let value = HeaderValue::from_bytes(value.as_bytes()).expect("no control characters");
            head.values_mut().for_each(|said| *said = value.clone());
            let _ = (protocol.judge_head(status, &head), protocol.judge_end(status, Some(&head)));
            let _ = (protocol.pushback(&head), protocol.message(&head));
            protocol.strip_foreign(&mut head, None);
        }
    }

    let mut head = HeaderMap::new();
    protocol.write_deadline(&mut head, Duration::from_millis(250));
    assert_eq!(head.len(), 1, "what remains of the deadline travels");
    protocol.write_deadline(&mut head, Duration::MAX);
    assert_eq!(head.len(), 1, "it is said once");
}

/// Refusals of a call from `orders` to `stock` that `error` ended.
fn refusals(protocol: &'static dyn Protocol, make: &dyn Fn() -> Error) {
    let error = make();
    let before_work = error.origin() == Origin::Local && !error.maybe_executed();
    let refused = |host: &'static str, caller: &'static str| {
        let mut call = of_orders(protocol, caller);
        call.metadata.insert(HOST, HeaderValue::from_static(host));
        judged(protocol, answer_of(protocol, &call.refuse(make())))
    };
    let own = refused("stock", "orders");
    assert_eq!(own.code == Code::Ok, error.code() == Code::Ok, "a refusal is a failure: {error:?}");
    assert!(before_work || own.maybe_executed, "nothing is said to be safe that is not: {error:?}");
    for (host, caller) in [("127.0.0.1:8080", "orders"), ("stock", "gateway")] {
        let other = refused(host, caller);
        assert!(
            other.maybe_executed && !other.blames_nobody(),
            "another hop's refusal is believed: {error:?}"
        );
    }
}

fn of_orders(protocol: &'static dyn Protocol, caller: &'static str) -> Invocation {
    let mut call = Invocation::new(protocol, Target::new("stock", Operation::OTHER));
    call.target.caller = Some(HeaderValue::from_static(caller));
    call
}

fn answer_of(protocol: &dyn Protocol, error: &Error) -> (StatusCode, HeaderMap, Body) {
    protocol.refuse(error)
}

/// The verdict of `orders` on it, for a first attempt at `stock`.
fn judged(protocol: &'static dyn Protocol, (status, head, body): (StatusCode, HeaderMap, Body)) -> Verdict {
    let whole = body.is_end_stream();
    let reply = of_orders(protocol, "orders").answered(status, head, body);
    reply.verdict().unwrap_or_else(|| panic!("a refusal is known by its head, or at once: whole {whole}"))
}
