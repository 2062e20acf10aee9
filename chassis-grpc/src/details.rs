//! `grpc-status-details-bin`: transmits which mechanism of chassis refused a call, and reads it back.
//!
//! The header holds a `google.rpc.Status` whose details are an `ErrorInfo` of the domain `chassis`, and a
//! `RetryInfo` where a later retry makes sense. A reader that finds this domain knows the mechanism and
//! whether a handler may have seen the call. The `ErrorInfo` names the [`Hop`] it is valid for: a handler
//! that forwards a status forwards its details too, so a caller removes those that are not about its own
//! attempt.
//!
//! DEADLINE_EXCEEDED and CANCELLED are sent without an `ErrorInfo`, because conformance suites expect none
//! when a call ends by its deadline. For these the reason is sent as metadata, `x-chassis-reason`.
use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use chassis_core::{Code, Error, Hop, Origin, Reason, wire::find};
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use prost::Message;
use prost_types::Any;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};
use tonic_types::pb;

use crate::wire::{
    DEBUG_INFO, ERROR_DOMAIN, ERROR_INFO, GRPC_DETAILS, GRPC_STATUS, HOP, REASON, RETRY_INFO, RULE, UPSTREAM,
};

/// The place where a status is read. It decides whether a refusal counts as local or remote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// In this process: refusals of this process are local.
    Here,
    /// At the other end of the connection: all refusals of this process are remote.
    There,
}

/// The details of a call that chassis refused.
#[derive(Debug, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) origin: Origin,
    pub(crate) maybe_executed: bool,
    pub(crate) rule: Option<String>,
    pub(crate) retry_after: Option<Duration>,
}

// === impl Refusal ===

impl Refusal {
    /// Reads the head or the trailers of an answer; `None` if no chassis wrote details there.
    pub(crate) fn read(metadata: &HeaderMap) -> Option<Self> {
        let details = metadata.get(GRPC_DETAILS).and_then(decode_header);
        details.and_then(|details| Self::decode(&details)).or_else(|| Self::read_bare(metadata))
    }

    /// Reads the metadata of a status without an `ErrorInfo`.
    pub(crate) fn read_bare(metadata: &HeaderMap) -> Option<Self> {
        let said = metadata.get(REASON)?.to_str().ok()?;
        let rule = metadata.get(RULE).and_then(|rule| rule.to_str().ok());
        Some(Refusal {
            reason: Reason::from_name(reason_and_hop(said).0).unwrap_or(Reason::Internal),
            origin: Origin::Remote,
            maybe_executed: true,
            rule: rule.map(str::to_owned),
            retry_after: read_retry_after(metadata),
        })
    }

    /// Reads the details of a status; `None` if no chassis wrote them.
    pub(crate) fn decode(details: &[u8]) -> Option<Self> {
        let status = pb::Status::decode(details).ok()?;
        let info = status.details.iter().filter_map(error_info).find(|info| info.domain == ERROR_DOMAIN)?;
        let says = |key: &str, value: &str| info.metadata.get(key).is_some_and(|v| v == value);
        Some(Refusal {
            // A newer chassis may send reasons that this one does not know.
            reason: Reason::from_name(&info.reason).unwrap_or(Reason::Internal),
            origin: if says("origin", "local") { Origin::Local } else { Origin::Remote },
            maybe_executed: !says("maybe_executed", "false"),
            rule: info.metadata.get("rule").cloned(),
            retry_after: retry_delay(&status),
        })
    }
}

/// Encodes the details of `error`. They repeat `message` because some clients require it.
pub(crate) fn encode(error: &Error, message: &str, reader: Reader) -> Bytes {
    let origin = match (reader, error.origin()) {
        (Reader::Here, Origin::Local) => "local",
        _ => "remote",
    };
    // A refusal by a service further upstream: for the caller, this service has executed the call.
    let maybe_executed =
        error.maybe_executed() || (reader == Reader::There && error.origin() == Origin::Remote);
    let mut metadata = HashMap::from([
        ("origin".to_owned(), origin.to_owned()),
        ("maybe_executed".to_owned(), maybe_executed.to_string()),
    ]);
    if let Some(rule) = error.rule() {
        metadata.insert("rule".to_owned(), rule.to_owned());
    }
    if let Some(hop) = error.hop().filter(|_| reader == Reader::There).and_then(Hop::text) {
        metadata.insert(HOP.to_owned(), hop);
    }
    let info =
        pb::ErrorInfo { reason: error.reason().name().to_owned(), domain: ERROR_DOMAIN.to_owned(), metadata };
    let mut details = if is_bare(error, reader) { Vec::new() } else { vec![any(ERROR_INFO, &info)] };
    if let Some(after) = error.retry_after() {
        let retry_delay = prost_types::Duration::try_from(after).ok();
        details.push(any(RETRY_INFO, &pb::RetryInfo { retry_delay }));
    }
    if let Some(text) = error.details().and_then(|details| details.body.clone()) {
        details.push(any(DEBUG_INFO, &pb::DebugInfo { stack_entries: Vec::new(), detail: text }));
    }
    if details.is_empty() {
        return Bytes::new();
    }
    let code = i32::from(error.code().number());
    pb::Status { code, message: message.to_owned(), details }.encode_to_vec().into()
}

/// Whether `error` is sent without an `ErrorInfo`.
fn is_bare(error: &Error, reader: Reader) -> bool {
    reader == Reader::There && matches!(error.code(), Code::DeadlineExceeded | Code::Cancelled)
}

/// Writes reason and rule as metadata, for an error without an `ErrorInfo`.
pub(crate) fn write_bare(error: &Error, reader: Reader, metadata: &mut HeaderMap) {
    if !is_bare(error, reader) {
        return;
    }
    let said = match error.hop().and_then(Hop::text) {
        Some(hop) => [error.reason().name(), " ", &hop].concat(),
        None => error.reason().name().to_owned(),
    };
    let value = |text: &str| HeaderValue::from_str(text).ok();
    metadata.extend(value(&said).map(|said| (REASON, said)));
    metadata.extend(error.rule().and_then(value).map(|rule| (RULE, rule)));
}

fn reason_and_hop(said: &str) -> (&str, Option<&str>) {
    said.split_once(' ').map_or((said, None), |(reason, hop)| (reason, Some(hop)))
}

/// The delay of a `RetryInfo`, from any server.
pub(crate) fn read_retry_after(metadata: &HeaderMap) -> Option<Duration> {
    decode_retry_after(&decode_header(metadata.get(GRPC_DETAILS)?)?)
}

/// The delay of a `RetryInfo` in the details of a status.
pub(crate) fn decode_retry_after(details: &[u8]) -> Option<Duration> {
    retry_delay(&pb::Status::decode(details).ok()?)
}

/// Removes the details of chassis. A handler that forwards its upstream's refusal has been executed itself;
/// with the details left in, its caller would assume that it was not.
pub(crate) fn strip(metadata: &mut HeaderMap) {
    // Shortcut for a successful status and for most heads: they hold nothing else.
    if metadata.len() == 1 && metadata.keys().all(|name| *name == GRPC_STATUS || *name == CONTENT_TYPE) {
        return;
    }
    retain(metadata, |_, _| false);
    if find(metadata, &UPSTREAM).is_some() {
        metadata.remove(UPSTREAM);
    }
}

/// The service whose call ended with `status`, if a channel of this process recorded it.
pub(crate) fn upstream(status: &tonic::Status) -> Option<&str> {
    status.metadata().get(UPSTREAM.as_str())?.to_str().ok()
}

/// Records for readers in this process that a call to `service` ended with the status in `metadata`.
pub(crate) fn write_upstream(metadata: &mut HeaderMap, service: &str) {
    metadata.extend(HeaderValue::from_str(service).ok().map(|service| (UPSTREAM, service)));
}

/// Removes the details of chassis that are about another hop than `hop`. Returns whether there were any. "Not
/// executed" is only accepted about this very attempt, the rest about any attempt of this caller.
pub(crate) fn strip_foreign(metadata: &mut HeaderMap, hop: Option<&Hop>) -> bool {
    retain(metadata, |executed, said| {
        match (hop, said) {
            (Some(hop), Some(said)) => {
                if executed {
                    hop.is_about(said)
                } else {
                    hop.is(said)
                }
            }
            // Without the caller's name no statement can be matched to it.
            (None, None) => executed,
            _ => false,
        }
    })
}

/// Removes those details of chassis that `keep` rejects. Returns whether there were any. The arguments of
/// `keep`: whether the call may have been executed, and the hop that is named.
fn retain(metadata: &mut HeaderMap, keep: impl Fn(bool, Option<&str>) -> bool) -> bool {
    let said = find(metadata, &REASON);
    let is_kept = |said: &HeaderValue| said.to_str().is_ok_and(|said| keep(true, reason_and_hop(said).1));
    let strips = said.is_some_and(|said| !is_kept(said));
    if strips {
        metadata.remove(REASON);
        metadata.remove(RULE);
    }
    strips
        | retain_details(metadata, |info| {
            let executed = info.metadata.get("maybe_executed").is_none_or(|value| value != "false");
            keep(executed, info.metadata.get(HOP).map(String::as_str))
        })
}

fn retain_details(metadata: &mut HeaderMap, keep: impl Fn(&pb::ErrorInfo) -> bool) -> bool {
    let Some(details) = find(metadata, &GRPC_DETAILS).and_then(decode_header) else { return false };
    let Ok(mut status) = pb::Status::decode(details) else { return false };
    let all = status.details.len();
    status
        .details
        .retain(|detail| error_info(detail).is_none_or(|info| info.domain != ERROR_DOMAIN || keep(&info)));
    let stripped = status.details.len() < all;
    if stripped && status.details.is_empty() {
        metadata.remove(GRPC_DETAILS);
    } else if stripped {
        metadata.insert(GRPC_DETAILS, encode_header(&status.encode_to_vec()));
    }
    stripped
}

/// Removes details that are not base64: tonic's stubs panic on them.
pub(crate) fn sanitize(metadata: &mut HeaderMap) {
    if find(metadata, &GRPC_DETAILS).is_some_and(|value| decode_header(value).is_none()) {
        metadata.remove(GRPC_DETAILS);
    }
}

fn retry_delay(status: &pb::Status) -> Option<Duration> {
    let detail = status.details.iter().find(|detail| is(detail, RETRY_INFO))?;
    let info = pb::RetryInfo::decode(&*detail.value).ok()?;
    Duration::try_from(info.retry_delay?).ok()
}

fn error_info(detail: &Any) -> Option<pb::ErrorInfo> {
    is(detail, ERROR_INFO).then(|| pb::ErrorInfo::decode(&*detail.value).ok())?
}

/// A type's URL may start with any host.
fn is(detail: &Any, name: &str) -> bool {
    detail.type_url.rsplit('/').next() == Some(name)
}

fn any(name: &str, message: &impl Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}

/// Decodes base64 as tonic does, with and without padding.
fn decode_header(value: &HeaderValue) -> Option<Bytes> {
    let mut one = HeaderMap::with_capacity(1);
    one.insert(GRPC_DETAILS, value.clone());
    MetadataMap::from_headers(one).get_bin(GRPC_DETAILS.as_str())?.to_bytes().ok()
}

fn encode_header(bytes: &[u8]) -> HeaderValue {
    let value = BinaryMetadataValue::from_bytes(bytes);
    HeaderValue::from_bytes(value.as_encoded_bytes()).expect("base64 is a header's value")
}

#[cfg(test)]
mod tests {
    use chassis_core::{Invocation, Operation, Target};

    use super::*;

    fn header(details: Vec<Any>) -> HeaderMap {
        let status = pb::Status { code: 14, message: "no".to_owned(), details };
        HeaderMap::from_iter([(GRPC_DETAILS, encode_header(&status.encode_to_vec()))])
    }

    fn info(domain: &str) -> Any {
        about(domain, &[])
    }

    fn about(domain: &str, says: &[(&str, &str)]) -> Any {
        let metadata = says.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let reason = "RATE_LIMITED".to_owned();
        any(ERROR_INFO, &pb::ErrorInfo { reason, domain: domain.to_owned(), metadata })
    }

    fn retry(seconds: i64, nanos: i32) -> Any {
        any(RETRY_INFO, &pb::RetryInfo { retry_delay: Some(prost_types::Duration { seconds, nanos }) })
    }

    #[test]
    fn reads_what_it_wrote() {
        let error = Error::local(Reason::RateLimited, "no").with_rule("per-caller");
        let error = error.with_retry_after(Duration::from_millis(1500));
        let expected = Refusal {
            reason: Reason::RateLimited,
            origin: Origin::Local,
            maybe_executed: false,
            rule: Some("per-caller".to_owned()),
            retry_after: Some(Duration::from_millis(1500)),
        };
        assert_eq!(Refusal::decode(&encode(&error, "no", Reader::Here)), Some(expected));
    }

    #[test]
    fn what_is_refused_here_is_remote_over_there() {
        let error = Error::local(Reason::Overloaded, "no");
        let read = |reader| Refusal::decode(&encode(&error, "no", reader)).unwrap().origin;
        assert_eq!((read(Reader::Here), read(Reader::There)), (Origin::Local, Origin::Remote));
    }

    #[test]
    fn only_a_chassis_refuses() {
        assert_eq!(Refusal::read(&HeaderMap::new()), None);
        assert_eq!(Refusal::read(&header(vec![info("googleapis.com"), retry(1, 0)])), None);
        let read = Refusal::read(&header(vec![info("googleapis.com"), info(ERROR_DOMAIN)])).unwrap();
        assert!(read.maybe_executed, "unless it says that it was not");
    }

    #[test]
    fn a_delay_is_read_from_any_server_and_never_negative() {
        assert_eq!(read_retry_after(&header(vec![retry(1, 5)])), Some(Duration::new(1, 5)));
        assert_eq!(read_retry_after(&header(vec![retry(-1, 0)])), None);
        assert_eq!(read_retry_after(&header(vec![info(ERROR_DOMAIN)])), None);
    }

    #[test]
    fn strips_its_own_and_leaves_the_rest() {
        let mut both = header(vec![info("googleapis.com"), info(ERROR_DOMAIN), retry(1, 0)]);
        strip(&mut both);
        assert_eq!(both, header(vec![info("googleapis.com"), retry(1, 0)]));

        let mut only = header(vec![info(ERROR_DOMAIN)]);
        write_upstream(&mut only, "stock");
        strip(&mut only);
        assert!(only.is_empty(), "the upstream's name stays within the process");

        for mut untouched in [header(vec![info("googleapis.com")]), header(vec![])] {
            let before = untouched.clone();
            strip(&mut untouched);
            assert_eq!(untouched, before);
        }
    }

    /// The hop of a first attempt from `orders` at `stock`, as it was received.
    fn hop() -> Hop {
        let mut call = Invocation::new(&crate::GRPC, Target::new("stock", Operation::OTHER));
        call.target.caller = Some(HeaderValue::from_static("orders"));
        call.uri = "http://stock/stock.v1.Stock/Reserve".parse().unwrap();
        call.refuse::<Error>(Error::local(Reason::Overloaded, "no")).hop().unwrap().clone()
    }

    #[test]
    fn without_an_error_info_metadata_say_the_same() {
        let mut call = Invocation::new(&crate::GRPC, Target::new("stock", Operation::OTHER));
        call.target.caller = Some(HeaderValue::from_static("orders"));
        let error = call.refuse(Error::local(Reason::DeadlineExceeded, "late").with_rule("slow"));
        for (hop, stays) in [(Some(hop()), true), (None, false)] {
            let mut metadata = HeaderMap::new();
            write_bare(&error, Reader::There, &mut metadata);
            assert_eq!(metadata[REASON], "DEADLINE_EXCEEDED 0 ? orders");
            assert_eq!(strip_foreign(&mut metadata, hop.as_ref()), !stays);
            let said = Refusal::read(&metadata).map(|said| (said.reason, said.rule, said.maybe_executed));
            assert_eq!(said, stays.then(|| (Reason::DeadlineExceeded, Some("slow".to_owned()), true)));
            strip(&mut metadata);
            assert!(metadata.is_empty());
        }
        for (error, reader) in
            [(&error, Reader::Here), (&Error::local(Reason::Overloaded, "no"), Reader::There)]
        {
            let mut metadata = HeaderMap::new();
            write_bare(error, reader, &mut metadata);
            assert!(metadata.is_empty());
        }
    }

    #[test]
    fn only_what_is_about_this_attempt_is_left_in() {
        let no = ("maybe_executed", "false");
        for (says, stays) in [
            (&[no, ("hop", "0 stock orders")][..], true),
            (&[no, ("hop", "0 127.0.0.1:80 orders")], false),
            (&[no, ("hop", "0 stock gateway")], false),
            (&[no, ("hop", "1 stock orders")], false),
            // The authority is unknown, and so is whether the call was executed.
            (&[no, ("hop", "0 ? orders")], false),
            (&[no], false),
            (&[("hop", "0 ? orders")], true),
            (&[("hop", "0 stock orders")], true),
            (&[("hop", "0 ? gateway")], false),
            (&[], false),
        ] {
            let mut metadata = header(vec![info("googleapis.com"), about(ERROR_DOMAIN, says), retry(1, 0)]);
            assert_eq!(strip_foreign(&mut metadata, Some(&hop())), !stays, "{says:?}");
            assert_eq!(Refusal::read(&metadata).is_some(), stays, "{says:?}");
            assert_eq!(read_retry_after(&metadata), Some(Duration::from_secs(1)), "any server may send it");
        }
        let mut nobodys = header(vec![about(ERROR_DOMAIN, &[no])]);
        assert!(strip_foreign(&mut nobodys, None), "without a name no refusal is believed");
        assert!(!strip_foreign(&mut header(vec![info(ERROR_DOMAIN)]), None));
    }

    #[test]
    fn garbage_is_taken_out_for_stubs_and_passed_by_servers() {
        for (value, stays) in [("AAEC", true), ("AAECAw", true), ("AAECAw==", true), ("!garbage", false)] {
            let mut metadata = HeaderMap::from_iter([(GRPC_DETAILS, HeaderValue::from_static(value))]);
            strip(&mut metadata);
            assert_eq!(metadata.len(), 1, "{value}");
            assert_eq!(Refusal::read(&metadata), None);
            sanitize(&mut metadata);
            assert_eq!(metadata.len() == 1, stays, "{value}");
        }
    }
}
