//! `grpc-status-details-bin`: how chassis says which mechanism refused a call, and reads it again.
//!
//! It is a `google.rpc.Status` whose details hold an `ErrorInfo` of the domain `chassis`, and a
//! `RetryInfo` where trying again later makes sense. Who finds that domain knows who spoke, and whether
//! a handler may have seen the call.
use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use chassis_core::{Error, Origin, Reason, headers::find};
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message;
use prost_types::Any;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};
use tonic_types::pb;

/// Whose `ErrorInfo` it is.
pub(crate) const DOMAIN: &str = "chassis";

const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
const ERROR_INFO: &str = "google.rpc.ErrorInfo";
const RETRY_INFO: &str = "google.rpc.RetryInfo";
const DEBUG_INFO: &str = "google.rpc.DebugInfo";

/// From where a status is read: that decides whose refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// In this process: its own refusals are local.
    Here,
    /// At the other end of the connection: whatever comes from here is remote.
    There,
}

/// What chassis says of a call that it refused.
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
    /// What the head or the trailers of an answer say; `None` if no chassis wrote them.
    pub(crate) fn read(metadata: &HeaderMap) -> Option<Self> {
        Self::decode(&decode_header(metadata.get(DETAILS)?)?)
    }

    /// What the details of a status say; `None` if no chassis wrote them.
    pub(crate) fn decode(details: &[u8]) -> Option<Self> {
        let status = pb::Status::decode(details).ok()?;
        let info = status.details.iter().filter_map(error_info).find(|info| info.domain == DOMAIN)?;
        let says = |key: &str, value: &str| info.metadata.get(key).is_some_and(|v| v == value);
        Some(Refusal {
            // A newer chassis may know more reasons.
            reason: Reason::from_name(&info.reason).unwrap_or(Reason::Internal),
            origin: if says("origin", "local") { Origin::Local } else { Origin::Remote },
            maybe_executed: !says("maybe_executed", "false"),
            rule: info.metadata.get("rule").cloned(),
            retry_after: retry_delay(&status),
        })
    }
}

/// The details of `error`, encoded. They repeat `message`, which some clients insist on.
pub(crate) fn encode(error: &Error, message: &str, reader: Reader) -> Bytes {
    let origin = match (reader, error.origin()) {
        (Reader::Here, Origin::Local) => "local",
        _ => "remote",
    };
    let mut metadata = HashMap::from([
        ("origin".to_owned(), origin.to_owned()),
        ("maybe_executed".to_owned(), error.maybe_executed().to_string()),
    ]);
    if let Some(rule) = error.rule() {
        metadata.insert("rule".to_owned(), rule.to_owned());
    }
    let info =
        pb::ErrorInfo { reason: error.reason().name().to_owned(), domain: DOMAIN.to_owned(), metadata };
    let mut details = vec![any(ERROR_INFO, &info)];
    if let Some(after) = error.retry_after() {
        let retry_delay = prost_types::Duration::try_from(after).ok();
        details.push(any(RETRY_INFO, &pb::RetryInfo { retry_delay }));
    }
    if let Some(text) = error.details().and_then(|details| details.body.clone()) {
        details.push(any(DEBUG_INFO, &pb::DebugInfo { stack_entries: Vec::new(), detail: text }));
    }
    let code = i32::from(error.code().number());
    pb::Status { code, message: message.to_owned(), details }.encode_to_vec().into()
}

/// The delay of a `RetryInfo`, whoever wrote it.
pub(crate) fn read_retry_after(metadata: &HeaderMap) -> Option<Duration> {
    retry_delay(&pb::Status::decode(decode_header(metadata.get(DETAILS)?)?).ok()?)
}

/// Takes out what a chassis said. A handler that passes on its upstream's refusal has itself been
/// executed: left in, its caller would take the call for one that never was.
pub(crate) fn strip(metadata: &mut HeaderMap) {
    let Some(details) = find(metadata, &DETAILS).and_then(decode_header) else { return };
    let Ok(mut status) = pb::Status::decode(details) else { return };
    let all = status.details.len();
    status.details.retain(|detail| error_info(detail).is_none_or(|info| info.domain != DOMAIN));
    if status.details.is_empty() && all > 0 {
        metadata.remove(DETAILS);
    } else if status.details.len() < all {
        metadata.insert(DETAILS, encode_header(&status.encode_to_vec()));
    }
}

/// Takes the details out if they are not base64: tonic's stubs panic over such.
pub(crate) fn sanitize(metadata: &mut HeaderMap) {
    if find(metadata, &DETAILS).is_some_and(|value| decode_header(value).is_none()) {
        metadata.remove(DETAILS);
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

/// tonic knows gRPC's base64, with and without padding.
fn decode_header(value: &HeaderValue) -> Option<Bytes> {
    let mut one = HeaderMap::with_capacity(1);
    one.insert(DETAILS, value.clone());
    MetadataMap::from_headers(one).get_bin(DETAILS.as_str())?.to_bytes().ok()
}

fn encode_header(bytes: &[u8]) -> HeaderValue {
    let value = BinaryMetadataValue::from_bytes(bytes);
    HeaderValue::from_bytes(value.as_encoded_bytes()).expect("base64 is a header's value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(details: Vec<Any>) -> HeaderMap {
        let status = pb::Status { code: 14, message: "no".to_owned(), details };
        HeaderMap::from_iter([(DETAILS, encode_header(&status.encode_to_vec()))])
    }

    fn info(domain: &str) -> Any {
        let (reason, metadata) = ("RATE_LIMITED".to_owned(), HashMap::new());
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
        let read = Refusal::read(&header(vec![info("googleapis.com"), info(DOMAIN)])).unwrap();
        assert!(read.maybe_executed, "unless it says that it was not");
    }

    #[test]
    fn a_delay_is_read_from_anybody_and_never_negative() {
        assert_eq!(read_retry_after(&header(vec![retry(1, 5)])), Some(Duration::new(1, 5)));
        assert_eq!(read_retry_after(&header(vec![retry(-1, 0)])), None);
        assert_eq!(read_retry_after(&header(vec![info(DOMAIN)])), None);
    }

    #[test]
    fn strips_its_own_and_leaves_the_rest() {
        let mut both = header(vec![info("googleapis.com"), info(DOMAIN), retry(1, 0)]);
        strip(&mut both);
        assert_eq!(both, header(vec![info("googleapis.com"), retry(1, 0)]));

        let mut only = header(vec![info(DOMAIN)]);
        strip(&mut only);
        assert!(only.is_empty());

        for mut untouched in [header(vec![info("googleapis.com")]), header(vec![])] {
            let before = untouched.clone();
            strip(&mut untouched);
            assert_eq!(untouched, before);
        }
    }

    #[test]
    fn garbage_is_taken_out_for_stubs_and_passed_by_servers() {
        for (value, stays) in [("AAEC", true), ("AAECAw", true), ("AAECAw==", true), ("!garbage", false)] {
            let mut metadata = HeaderMap::from_iter([(DETAILS, HeaderValue::from_static(value))]);
            strip(&mut metadata);
            assert_eq!(metadata.len(), 1, "{value}");
            assert_eq!(Refusal::read(&metadata), None);
            sanitize(&mut metadata);
            assert_eq!(metadata.len() == 1, stays, "{value}");
        }
    }
}
