//! Converts errors of the pipeline to gRPC statuses, and back.
use std::{error::Error as _, fmt::Write as _, sync::Arc};

use chassis_core::{Code, Error, KnownServices, Origin};
use chassis_http::Problem;
use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE};
use tonic::{Status, metadata::MetadataMap};

use crate::{
    details::{self, Reader, Refusal},
    protocol::http_status,
    wire::{CONTENT_TYPE_GRPC, GRPC_STATUS, PUSHBACK},
};

/// An answer in place of a handler's reply.
pub(crate) struct Answer {
    http: StatusCode,
    status: Status,
}

/// Converts `error` to a status: its code and message, and as details an `ErrorInfo` of the domain `chassis`
/// (reason, rule, origin, `maybe_executed`), a `RetryInfo` if it has a `retry_after`, and a `DebugInfo` with
/// the text of an injected fault.
///
/// ```
/// use chassis_core::{Error, Reason};
///
/// let status = chassis_grpc::status(&Error::local(Reason::RateLimited, "100/s is used up"));
/// assert_eq!(status.code(), tonic::Code::ResourceExhausted);
/// assert_eq!(chassis_grpc::error(&status).unwrap().reason(), Reason::RateLimited);
/// ```
pub fn status(error: &Error) -> Status {
    Answer::of(error, Reader::Here).status
}

/// The refusal by chassis that `status` carries, local or remote; `None` if the status is a handler's own.
///
/// Over the network DEADLINE_EXCEEDED and CANCELLED come without an `ErrorInfo`; there the refusal is read
/// from the metadata, and the call may have been executed.
///
/// Returns the reason, the origin, the rule, `retry_after` and `maybe_executed`, so that a caller can
/// distinguish an open circuit from a rate limit, and a call that may be repeated from one that may not.
pub fn error(status: &Status) -> Option<Error> {
    let message = status.message().to_owned();
    let said = Refusal::decode(status.details());
    let said = said.or_else(|| Refusal::read_bare(&status.metadata().clone().into_headers()))?;
    let error = match said.origin {
        Origin::Local => Error::local(said.reason, message),
        Origin::Remote => Error::remote(said.reason, message),
    };
    let error = error.with_code(code(status)).with_maybe_executed(said.maybe_executed);
    let error = said.rule.into_iter().fold(error, Error::with_rule);
    let error = match details::upstream(status) {
        Some(service) => error.of_service(&service.into()),
        None => error,
    };
    let after = said.retry_after.or_else(|| details::decode_retry_after(status.details()));
    Some(after.into_iter().fold(error, Error::with_retry_after))
}

/// Converts `status` to an HTTP problem: for a REST handler that reports the failure of its gRPC call.
///
/// It has the code and message, the time after which a retry makes sense, and, where chassis refused, the
/// reason and the rule. In a handler that returns [`Problem`], `?` does the same.
///
/// ```
/// use chassis_http::Problem;
///
/// async fn order(stock: impl Future<Output = Result<u32, tonic::Status>>) -> Result<String, Problem> {
///     let left = stock.await?;
///     Ok(format!("{left} are left"))
/// }
/// ```
pub fn problem(status: &Status) -> Problem {
    Problem::from(status)
}

/// The canonical code of a status.
pub(crate) fn code(status: &Status) -> Code {
    canonical(status.code())
}

/// Converts tonic's code to core's.
pub(crate) fn canonical(code: tonic::Code) -> Code {
    u16::try_from(i32::from(code)).map_or(Code::Unknown, Code::from_number)
}

/// The text of `error` and of its sources, for readers within this process.
///
/// Without the names of other services: a handler may return the status, and then they would leave this process.
pub(crate) fn in_words(error: &Error) -> String {
    let mut words = error.message().to_owned();
    let mut source = error.source();
    while let Some(beneath) = source {
        if beneath.is::<Arc<KnownServices>>() {
            break;
        }
        // Writing to a string cannot fail.
        let _ = write!(words, ": {beneath}");
        source = beneath.source();
    }
    words
}

// === impl Answer ===

impl Answer {
    pub(crate) fn of(error: &Error, reader: Reader) -> Self {
        let code = tonic::Code::from_i32(i32::from(error.code().number()));
        let message = match reader {
            Reader::Here => in_words(error),
            Reader::There => error.message().to_owned(),
        };
        let mut metadata = HeaderMap::new();
        if let Some(after) = error.retry_after() {
            // Rounded up, so that no caller returns too early.
            let millis = after.as_nanos().div_ceil(1_000_000).min(i32::MAX.unsigned_abs().into());
            metadata.insert(PUSHBACK, HeaderValue::from(millis as u64));
        }
        details::write_bare(error, reader, &mut metadata);
        if let (Reader::Here, Some(service)) = (reader, error.service()) {
            details::write_upstream(&mut metadata, service);
        }
        let (details, metadata) =
            (details::encode(error, &message, reader), MetadataMap::from_headers(metadata));
        let status = Status::with_details_and_metadata(code, message, details, metadata);
        Answer { http: http_status(error.reason()), status }
    }

    /// Converts to a trailers-only answer.
    pub(crate) fn into_head(self) -> (StatusCode, HeaderMap) {
        let mut headers = HeaderMap::with_capacity(6);
        headers.insert(CONTENT_TYPE, CONTENT_TYPE_GRPC);
        self.write(&mut headers);
        (self.http, headers)
    }

    /// Converts to trailers, after an answer that began successfully.
    pub(crate) fn into_trailers(self) -> HeaderMap {
        let mut trailers = HeaderMap::with_capacity(4);
        self.write(&mut trailers);
        trailers
    }

    fn write(&self, headers: &mut HeaderMap) {
        if self.status.add_header(headers).is_err() {
            // Percent-encoding and base64 leave only characters that a header allows; the code is sent in any
            // case.
            headers.insert(GRPC_STATUS, HeaderValue::from(i32::from(self.status.code())));
        }
    }
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        Answer { http: StatusCode::OK, status }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chassis_core::{Details, Reason};
    use tonic_types::StatusExt;

    use super::*;

    #[track_caller]
    fn check_round_trip(error: &Error) {
        let back = super::error(&status(error)).unwrap();
        assert_eq!(
            (back.code(), back.reason(), back.origin()),
            (error.code(), error.reason(), error.origin())
        );
        assert_eq!(back.maybe_executed(), error.maybe_executed());
        assert_eq!((back.rule(), back.retry_after()), (error.rule(), error.retry_after()));
        assert_eq!(back.message(), error.message());
    }

    #[test]
    fn every_error_comes_back() {
        for reason in Reason::ALL.iter().copied() {
            check_round_trip(&Error::local(reason, "no"));
            check_round_trip(&Error::remote(reason, "no"));
        }
        for code in Code::ALL.into_iter().filter(|code| *code != Code::Ok) {
            check_round_trip(
                &Error::local(Reason::FaultInjected, "no").with_code(code).with_rule("slow-stock"),
            );
        }
        let later = Error::remote(Reason::Overloaded, "full").with_retry_after(Duration::from_nanos(1));
        check_round_trip(&later.with_maybe_executed(false));
    }

    #[test]
    fn a_handlers_own_status_is_none_of_ours() {
        assert!(error(&Status::not_found("no such item")).is_none());
        assert!(error(&Status::with_details(tonic::Code::Aborted, "", "garbage".into())).is_none());
    }

    #[test]
    fn the_time_that_was_up_goes_out_without_an_error_info() {
        for reason in [Reason::DeadlineExceeded, Reason::Cancelled] {
            let error = Error::local(reason, "no").with_rule("fault");
            let status = Answer::of(&error, Reader::There).status;
            assert!(status.details().is_empty());
            let read = super::error(&status).unwrap();
            assert_eq!((read.reason(), read.origin(), read.maybe_executed()), (reason, Origin::Remote, true));
            assert_eq!(read.rule(), Some("fault"));
            let later = Answer::of(&error.with_retry_after(Duration::from_secs(2)), Reader::There).status;
            assert!(later.get_error_details().error_info().is_none());
            assert_eq!(
                later.get_error_details().retry_info().unwrap().retry_delay,
                Some(Duration::from_secs(2))
            );
        }
    }

    #[test]
    fn strangers_can_read_it() {
        let details = Details { status: None, body: Some("drill".to_owned()) };
        let error =
            Error::local(Reason::FaultInjected, "a drill").with_rule("slow-stock").with_details(details);
        let status = status(&error.with_retry_after(Duration::from_secs(2)));
        let said = status.get_error_details();
        let info = said.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("FAULT_INJECTED", "chassis"));
        assert_eq!(
            (info.metadata["rule"].as_str(), info.metadata["maybe_executed"].as_str()),
            ("slow-stock", "false")
        );
        assert_eq!(said.retry_info().unwrap().retry_delay, Some(Duration::from_secs(2)));
        assert_eq!(said.debug_info().unwrap().detail, "drill");
        let encoded = <tonic_types::Status as prost::Message>::decode(status.details()).unwrap();
        assert_eq!((encoded.code, encoded.message.as_str()), (14, status.message()));
    }

    #[test]
    fn rest_handlers_can_pass_it_on() {
        let refused = Error::local(Reason::RateLimited, "100/s is used up").with_rule("per-caller");
        let problem = super::problem(&status(&refused.with_retry_after(Duration::from_secs(3))));
        assert_eq!(
            (problem.status().as_u16(), problem.code(), problem.rule()),
            (429, Code::ResourceExhausted, Some("per-caller"))
        );
        assert_eq!(
            (problem.reason(), problem.into_http().headers()["retry-after"].as_bytes()),
            (Some(Reason::RateLimited), &b"3"[..])
        );

        let problem = super::problem(&Status::not_found("no such item"));
        assert_eq!(
            (problem.status().as_u16(), problem.code(), problem.reason()),
            (404, Code::NotFound, None)
        );
        assert_eq!(problem.detail_text(), Some("no such item"));
    }

    #[test]
    fn only_this_process_sees_the_sources() {
        let beneath = std::io::Error::other("connection refused");
        let error = Error::remote(Reason::ConnectFailed, "stock can't be reached").with_source(beneath);
        assert_eq!(status(&error).message(), "stock can't be reached: connection refused");
        assert_eq!(Answer::of(&error, Reader::There).status.message(), "stock can't be reached");
    }
}
