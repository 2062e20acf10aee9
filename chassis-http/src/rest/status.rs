//! Converts the status of a gRPC call to a problem, for REST handlers that call stubs.
use std::borrow::Cow;

use chassis_core::{Code, Reason};
use http::{HeaderName, StatusCode};
use tonic::Status;
use tonic_types::StatusExt;

use crate::{
    Problem,
    wire::{ERROR_DOMAIN, REASON, RULE, UPSTREAM},
};

/// Takes over code, message, retry time and, if a chassis refused the call, the reason and the rule.
impl From<&Status> for Problem {
    fn from(status: &Status) -> Self {
        let code = u16::try_from(i32::from(status.code())).map_or(Code::Unknown, Code::from_number);
        let mut problem =
            Problem::new(code.http_status()).detail(status.message().to_owned()).with_code(code);
        if let Some(info) = status.get_details_error_info().filter(|info| info.domain == ERROR_DOMAIN) {
            let is_local = info.metadata.get("origin").is_some_and(|origin| origin == "local");
            if is_local && info.reason == Reason::TooLarge.name() {
                problem.status = StatusCode::PAYLOAD_TOO_LARGE;
            }
            problem.rule = info.metadata.get("rule").cloned().map(Cow::Owned);
            problem.reason = Some(Cow::Owned(info.reason));
        } else if let Some(said) = text(status, &REASON) {
            // DEADLINE_EXCEEDED and CANCELLED are sent without an `ErrorInfo`.
            problem.reason = said.split(' ').next().map(|reason| Cow::Owned(reason.to_owned()));
            problem.rule = text(status, &RULE).map(|rule| Cow::Owned(rule.to_owned()));
        }
        problem.upstream = text(status, &UPSTREAM).map(|service| Cow::Owned(service.to_owned()));
        let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
        retry_after.into_iter().fold(problem, Problem::retry_after)
    }
}

fn text<'a>(status: &'a Status, name: &HeaderName) -> Option<&'a str> {
    status.metadata().get(name.as_str())?.to_str().ok()
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        Problem::from(&status)
    }
}
