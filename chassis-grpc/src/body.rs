//! Bodies at the edges: what a tonic stub or service reads, and what it hands over.
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

/// An answer as it leaves the pipeline. It never fails: an error on the way ends it with trailers that
/// say what happened, so that its reader gets the exact code.
pub struct ResponseBody {
    body: Option<ReplyBody>,
    reader: Reader,
    /// Of the messages that a stub reads; what a server sends is its caller's to bound.
    lengths: Lengths,
    /// The trailers of an answer that was cut, once what came before the cut is read.
    ending: Option<Box<HeaderMap>>,
}

/// A request's body, as a tonic service reads it.
pub(crate) struct RequestBody(Body);

/// What a handler answers, without what a chassis further on said of its own refusals. A panic in the
/// midst of it ends this answer, and nothing else.
pub(crate) struct HandlersBody(tonic::body::Body);

// === impl ResponseBody ===

impl ResponseBody {
    /// As a stub reads it: a message longer than `max_message` bytes ends it.
    pub(crate) fn read_here(body: ReplyBody, max_message: usize) -> Self {
        let lengths = Lengths::new(max_message);
        ResponseBody { body: Some(body), reader: Reader::Here, lengths, ending: None }
    }

    /// As it goes to a caller.
    pub(crate) fn read_there(body: ReplyBody) -> Self {
        ResponseBody { body: Some(body), ..Self::empty() }
    }

    /// As a server sends it.
    pub(crate) fn served(self) -> ServerBody {
        let trailers = |error: &Error| Answer::of(error, Reader::There).into_trailers();
        self.body.map_or_else(ServerBody::empty, |body| ServerBody::told(body, trailers))
    }

    /// Of a trailers-only answer.
    pub(crate) fn empty() -> Self {
        ResponseBody { body: None, reader: Reader::There, lengths: Lengths::new(0), ending: None }
    }

    /// Ends the answer before a message that is too long. Returns what there is of it before.
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

    // No size hint: of an exact one hyper makes a `content-length`, which gRPC has no use for.
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
            // tonic takes CANCELLED for a good end of the stream; half an upload is none.
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
    /// The answer's body; what is there already is taken at once.
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
            tracing::error!("a handler panicked in the midst of its answer");
            let broken = std::mem::take(body);
            // What panicked once may do so again when it is dropped.
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

/// What a stub or a handler could not put into its stream of messages.
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
