//! Errors of hyper and h2 as errors of a call: above all, whether it may have been executed.
use chassis_core::{BoxError, Code, Error, Reason};

use crate::h2::{Broken, goaway};

/// Before the head of the answer came, over HTTP/1.1.
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

/// While the body of the answer was read.
pub(crate) fn of_answer(error: hyper::Error) -> Error {
    Error::remote(Reason::ConnectionLost, "the answer broke off").with_source(error)
}

/// The same over HTTP/2.
pub(crate) fn of_h2_answer(broken: Broken) -> Error {
    match broken {
        // Our own h2 found out that it is shorter or longer than its head said.
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

/// The request's own body failed, and the stream was reset for it: no endpoint is to blame.
pub(crate) fn of_request_body(error: Error) -> Error {
    let failed = Error::local(error.reason(), error.message().to_owned()).with_code(error.code());
    failed.with_maybe_executed(true).with_source(error)
}

/// An answer's headers or trailers have `size` bytes by HTTP/2's count, and may have `most`.
pub(crate) fn of_large_answer(size: usize, most: u32) -> Error {
    let words =
        format!("the answer's headers are over the limit: {size} bytes, `client.max_header_list` is {most}");
    Error::remote(Reason::TooLarge, words)
}

/// A request's headers have `size` bytes by HTTP/2's count, and the endpoint said that it takes `most`.
pub(crate) fn of_large_request(size: usize, most: u32) -> Error {
    let words = format!("the request's headers are {size} bytes, and the endpoint takes {most}");
    Error::local(Reason::TooLarge, words)
}

/// The endpoint did not answer a ping in time, and the connection was given up.
pub(crate) fn of_ping_timeout() -> Error {
    Error::remote(Reason::ConnectionLost, "the endpoint no longer answers pings")
}

/// h2 did not take the request: the connection was gone, or the headers are none that HTTP/2 has.
pub(crate) fn of_unsent(error: h2::Error) -> Error {
    let said = match goaway::is_of_connection(&error) {
        true => Error::remote(Reason::ConnectionLost, "the connection was gone").with_maybe_executed(false),
        false => Error::local(Reason::Internal, "the request could not be sent"),
    };
    said.with_source(error)
}

/// Before the head of the answer came, over HTTP/2.
///
/// It was certainly not executed when the server refused the stream, by a reset or by GOAWAY.
pub(crate) fn of_stream(error: &h2::Error) -> Error {
    use h2::Reason as H2;
    let by_peer = error.is_remote();
    match error.reason() {
        // We reset it: the maker of the request did not get to its end.
        _ if error.is_reset() && !by_peer && !error.is_library() => {
            Error::local(Reason::Cancelled, "the request broke off").with_maybe_executed(true)
        }
        _ if goaway::has_refused(error) => {
            Error::remote(Reason::StreamRefused, "the endpoint is going away and never saw the call")
        }
        Some(H2::REFUSED_STREAM) if error.is_reset() && by_peer => {
            Error::remote(Reason::StreamRefused, "the endpoint refused the stream")
        }
        // What our own h2 says of an answer that is none, and of headers over even what it reads.
        Some(H2::PROTOCOL_ERROR) if error.is_reset() && !by_peer => {
            Error::remote(Reason::Malformed, "the answer is malformed or over the limit")
        }
        // All was well, and yet the answer is not whole.
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

/// After gRPC's table of HTTP/2 error codes (doc/PROTOCOL-HTTP2.md).
fn code_of_reset(reason: h2::Reason) -> Code {
    match reason {
        h2::Reason::REFUSED_STREAM => Code::Unavailable,
        h2::Reason::CANCEL => Code::Cancelled,
        h2::Reason::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
        h2::Reason::INADEQUATE_SECURITY => Code::PermissionDenied,
        _ => Code::Internal,
    }
}

/// No connection came about: the call never left.
pub(crate) fn of_connect(address: &str, error: impl Into<BoxError>) -> Error {
    Error::remote(Reason::ConnectFailed, format!("no connection to {address}")).with_source(error)
}
