//! Converts errors of hyper and h2 to errors of a call, including whether the call may have been executed.
use chassis_core::{BoxError, Code, Error, Reason};

use crate::h2::{Broken, goaway};

/// An error before the head of the answer arrived, over HTTP/1.1.
pub(crate) fn of_request(error: hyper::Error) -> Error {
    let (reason, message) = if error.is_parse_too_large() {
        (Reason::TooLarge, "the answer's headers are over the limit")
    } else if error.is_parse() {
        (Reason::Malformed, "the answer is not HTTP")
    } else if error.is_user() {
        (Reason::Internal, "the request could not be sent")
    } else {
        (Reason::ConnectionLost, "the connection broke before the answer came")
    };
    Error::remote(reason, message).with_source(error)
}

/// An error while the body of the answer was read, over HTTP/1.1.
pub(crate) fn of_answer(error: hyper::Error) -> Error {
    Error::remote(Reason::ConnectionLost, "the answer broke off").with_source(error)
}

/// An error while the body of the answer was read, over HTTP/2.
pub(crate) fn of_h2_answer(broken: Broken) -> Error {
    match broken {
        // The local h2 detected that the body is shorter or longer than its head declared.
        Broken::Stream(error) if error.is_reset() && error.is_library() => {
            Error::remote(Reason::ConnectionLost, "the answer is not as long as it said").with_source(error)
        }
        Broken::Stream(error) if error.is_reset() => {
            of_stream(&error).with_maybe_executed(true).with_source(error)
        }
        Broken::Stream(error) => {
            Error::remote(Reason::ConnectionLost, "the answer broke off").with_source(error)
        }
        Broken::Trailers { size, most } => of_large_answer(size, most),
        Broken::Request(error) => of_request_body(error),
    }
}

/// The request's own body failed, and the stream was reset for it: not the endpoint's fault.
pub(crate) fn of_request_body(error: Error) -> Error {
    let failed = Error::local(error.reason(), error.message().to_owned()).with_code(error.code());
    failed.with_maybe_executed(true).with_source(error)
}

/// An answer's headers or trailers have `size` bytes by HTTP/2's count, more than the allowed `most`.
pub(crate) fn of_large_answer(size: usize, most: u32) -> Error {
    let words =
        format!("the answer's headers are over the limit: {size} bytes, `client.max_header_list` is {most}");
    Error::remote(Reason::TooLarge, words)
}

/// A request's headers have `size` bytes by HTTP/2's count, more than the `most` that the endpoint accepts.
pub(crate) fn of_large_request(size: usize, most: u32) -> Error {
    let words = format!("the request's headers are {size} bytes, and the endpoint takes {most}");
    Error::local(Reason::TooLarge, words)
}

/// The endpoint did not answer a ping in time, and the connection was closed.
pub(crate) fn of_ping_timeout() -> Error {
    Error::remote(Reason::ConnectionLost, "the endpoint no longer answers pings")
}

/// h2 did not accept the request: the connection was closed, or the headers are invalid in HTTP/2.
pub(crate) fn of_unsent(error: h2::Error) -> Error {
    let said = match goaway::is_of_connection(&error) {
        true => Error::remote(Reason::ConnectionLost, "the connection was gone").with_maybe_executed(false),
        false => Error::local(Reason::Internal, "the request could not be sent"),
    };
    said.with_source(error)
}

/// An error before the head of the answer arrived, over HTTP/2.
///
/// The call was certainly not executed if the server refused the stream, by a reset or by GOAWAY.
pub(crate) fn of_stream(error: &h2::Error) -> Error {
    use h2::Reason as H2;
    let by_peer = error.is_remote();
    match error.reason() {
        // This side reset the stream: the caller dropped the request before its end.
        _ if error.is_reset() && !by_peer && !error.is_library() => {
            Error::local(Reason::Cancelled, "the request broke off").with_maybe_executed(true)
        }
        _ if goaway::has_refused(error) => Error::remote(
            Reason::StreamRefused,
            "the endpoint is shutting down and has not processed the call",
        ),
        Some(H2::REFUSED_STREAM) if error.is_reset() && by_peer => {
            Error::remote(Reason::StreamRefused, "the endpoint refused the stream")
        }
        // The local h2 reports this for a malformed answer, and for headers over its own read limit.
        Some(H2::PROTOCOL_ERROR) if error.is_reset() && !by_peer => {
            Error::remote(Reason::Malformed, "the answer is malformed or over the limit")
        }
        // The stream ended without an error, but the answer is incomplete.
        Some(H2::NO_ERROR) if error.is_reset() => {
            Error::remote(Reason::ConnectionLost, "the endpoint ended the stream before its answer")
        }
        Some(reason) if error.is_reset() => {
            let message = format!("the stream was reset: {}", reason.description());
            match reason {
                H2::CANCEL => Error::remote(Reason::Cancelled, message),
                _ => Error::remote(Reason::Internal, message).with_code(code_of_reset(reason)),
            }
        }
        Some(_) if goaway::is_ours(error) => {
            Error::remote(Reason::Malformed, "the endpoint broke HTTP/2's rules")
        }
        _ => Error::remote(Reason::ConnectionLost, "the connection broke before the answer came"),
    }
}

/// Maps HTTP/2 error codes by gRPC's table (doc/PROTOCOL-HTTP2.md).
fn code_of_reset(reason: h2::Reason) -> Code {
    match reason {
        h2::Reason::REFUSED_STREAM => Code::Unavailable,
        h2::Reason::CANCEL => Code::Cancelled,
        h2::Reason::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
        h2::Reason::INADEQUATE_SECURITY => Code::PermissionDenied,
        _ => Code::Internal,
    }
}

/// No connection could be opened: the call was not sent.
pub(crate) fn of_connect(address: &str, error: impl Into<BoxError>) -> Error {
    Error::remote(Reason::ConnectFailed, format!("no connection to {address}")).with_source(error)
}
