//! Bodies at the edges: those that tonic stubs and services read, and those that they produce.
use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use chassis_core::{Body, Code, Error, Reason, ReplyBody, wire::find};
use chassis_http::server::ServerBody;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use tonic::Status;

use crate::{
    details::{self, Reader},
    message::{self, Lengths, TooLong},
    status::{self, Answer},
    wire::GRPC_STATUS,
};

/// The body of an answer as it leaves the pipeline. It never fails: an error ends it with trailers that hold
/// the error, so that the reader gets the exact code.
pub struct ResponseBody {
    body: Option<ReplyBody>,
    reader: Reader,
    /// Checks message lengths for a stub; for a server the limit is its caller's.
    lengths: Lengths,
    /// The trailers of an answer that was cut, sent after the data that came before the cut.
    ending: Option<Box<HeaderMap>>,
}

/// The body of a request, read by a tonic service.
pub(crate) struct RequestBody(Body);

/// The body of a handler's answer, without the refusal details of chassis processes further upstream. A panic
/// in it ends this answer and no other call.
pub(crate) struct HandlersBody(tonic::body::Body);

// === impl ResponseBody ===

impl ResponseBody {
    /// The body for a stub: a message longer than `max_message` bytes ends it.
    pub(crate) fn read_here(body: ReplyBody, max_message: usize) -> Self {
        let lengths = Lengths::new(max_message);
        ResponseBody { body: Some(body), reader: Reader::Here, lengths, ending: None }
    }

    /// The body for a remote caller.
    pub(crate) fn read_there(body: ReplyBody) -> Self {
        ResponseBody { body: Some(body), ..Self::empty() }
    }

    /// The body in the form that a server sends.
    pub(crate) fn served(self) -> ServerBody {
        let trailers = |error: &Error| Answer::of(error, Reader::There).into_trailers();
        self.body.map_or_else(ServerBody::empty, |body| ServerBody::with_trailers(body, trailers))
    }

    /// The body of a trailers-only answer.
    pub(crate) fn empty() -> Self {
        ResponseBody { body: None, reader: Reader::There, lengths: Lengths::new(0), ending: None }
    }

    /// Ends the answer before a message that is too long. Returns the part of `frame` before that message.
    #[cold]
    fn cut(&mut self, frame: Frame<Bytes>, beyond: &TooLong) -> Frame<Bytes> {
        let (length, limit) = (beyond.length, self.lengths.limit());
        let words =
            format!("a message of {length} bytes is over the client's limit of {limit}, `max_message`");
        let error = Error::local(Reason::TooLarge, words).with_maybe_executed(true);
        if let Some(mut body) = self.body.take() {
            body.fail(&error);
        }
        let trailers = Answer::of(&error, self.reader).into_trailers();
        match frame.into_data() {
            Ok(mut data) if beyond.before > 0 => {
                self.ending = Some(Box::new(trailers));
                data.truncate(beyond.before);
                Frame::data(data)
            }
            _ => Frame::trailers(trailers),
        }
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else {
            return Poll::Ready(this.ending.take().map(|trailers| Ok(Frame::trailers(*trailers))));
        };
        let frame = match ready!(Pin::new(&mut *body).poll_frame(cx)) {
            Some(Ok(mut frame)) if this.reader == Reader::Here => {
                if let Some(data) = frame.data_ref() {
                    if let Err(beyond) = this.lengths.check(data) {
                        frame = this.cut(frame, &beyond);
                    }
                } else if let Some(trailers) = frame.trailers_mut() {
                    details::sanitize(trailers);
                    let is_well = body.verdict().is_some_and(|verdict| verdict.is_success());
                    if !is_well && !is_ok(trailers) {
                        details::write_upstream(trailers, &body.call().target.service);
                    }
                }
                Some(Ok(frame))
            }
            Some(Ok(frame)) => Some(Ok(frame)),
            Some(Err(error)) => {
                let error = error.of_service(&body.call().target.service);
                this.body = None;
                Some(Ok(Frame::trailers(Answer::of(&error, this.reader).into_trailers())))
            }
            None => None,
        };
        Poll::Ready(frame)
    }

    // No size hint: from an exact one hyper would write a `content-length`, which gRPC does not use.
    fn is_end_stream(&self) -> bool {
        self.ending.is_none() && self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }
}

impl std::fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

fn is_ok(trailers: &HeaderMap) -> bool {
    find(trailers, &GRPC_STATUS).is_none_or(|status| status.as_bytes() == b"0")
}

// === impl RequestBody ===

impl RequestBody {
    pub(crate) fn tonic(body: Body) -> tonic::body::Body {
        tonic::body::Body::new(RequestBody(body))
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.0).poll_frame(cx).map_err(|error| match error.code() {
            // tonic treats CANCELLED as a regular end of the stream, but an incomplete upload is an error.
            Code::Cancelled => Status::aborted(status::in_words(&error)),
            _ => status::status(&error),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

// === impl HandlersBody ===

impl HandlersBody {
    /// The answer's body; data that is already available is taken at once.
    pub(crate) fn eager(body: tonic::body::Body) -> Body {
        Body::eager(HandlersBody(body), |error| error)
    }
}

impl HttpBody for HandlersBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let body = &mut self.0;
        let Ok(polled) = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut *body).poll_frame(cx))) else {
            tracing::error!("a handler panicked in the middle of its answer");
            let broken = std::mem::take(body);
            // After a panic, dropping the value may panic again.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(broken)));
            return Poll::Ready(Some(Err(Error::remote(Reason::Panicked, "the handler panicked"))));
        };
        Poll::Ready(ready!(polled).map(|frame| {
            let mut frame = frame.map_err(of_a_message)?;
            if let Some(trailers) = frame.trailers_mut() {
                details::strip(trailers);
                message::correct(trailers);
            }
            Ok(frame)
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

/// Maps an error of a stub or a handler inside its stream of messages.
pub(crate) fn of_a_message(status: Status) -> Error {
    let code = message::corrected(status.code(), status.message());
    let reason = match code {
        tonic::Code::Cancelled => Reason::Cancelled,
        tonic::Code::ResourceExhausted => Reason::TooLarge,
        _ => Reason::Internal,
    };
    let error = Error::local(reason, "a message could not be written").with_code(status::canonical(code));
    error.with_maybe_executed(true).with_source(status)
}
