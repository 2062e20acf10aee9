//! The body of an answer in the form that the server sends.
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use chassis_core::{BoxError, Error, ReplyBody};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::activity::InFlight;
use crate::h2::{Paced, Unsent};

/// Bytes, an answer of the pipeline, or any other body.
pub struct ServerBody(Kind);

enum Kind {
    Bytes(Option<Bytes>),
    Reply(ReplyBody),
    ReplyWithTrailers { reply: Option<ReplyBody>, trailers: fn(&Error) -> HeaderMap },
    Axum(axum::body::Body),
    Boxed(Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>),
}

/// A body whose request is in flight until it ends.
pub(crate) struct Tracked {
    body: ServerBody,
    in_flight: InFlight,
}

pin_project_lite::pin_project! {
    /// Converts errors to [`BoxError`].
    struct Erased<B> { #[pin] body: B }
}

// === impl ServerBody ===

impl ServerBody {
    /// An empty body.
    pub fn empty() -> Self {
        ServerBody(Kind::Bytes(None))
    }

    /// An answer of the pipeline that never fails: an error while it is read ends it with the `trailers` for
    /// that error. It declares no length.
    pub fn with_trailers(reply: ReplyBody, trailers: fn(&Error) -> HeaderMap) -> Self {
        ServerBody(Kind::ReplyWithTrailers { reply: Some(reply), trailers })
    }

    /// Any body; boxed.
    pub fn new<B>(body: B) -> Self
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        match body.is_end_stream() {
            true => ServerBody::empty(),
            false => ServerBody(Kind::Boxed(Box::pin(Erased { body }))),
        }
    }
}

impl ServerBody {
    /// Polls a body that may panic once, before its head is sent; `false` if it panicked. (The pipeline has
    /// polled its own bodies under its own guard.)
    pub(crate) fn begins_well(&mut self, cx: &mut Context<'_>) -> bool {
        let Kind::Boxed(body) = &mut self.0 else { return true };
        match catch_unwind(AssertUnwindSafe(|| body.as_mut().poll_frame(cx))) {
            Ok(Poll::Pending) => true,
            Ok(Poll::Ready(first)) => {
                let rest = std::mem::replace(&mut self.0, Kind::Bytes(None));
                let (first, rest) = (Some(first), ServerBody(rest));
                self.0 = Kind::Boxed(Box::pin(Preceded { first, rest }));
                true
            }
            Err(_) => false,
        }
    }
}

/// A body whose first frame has been taken.
struct Preceded {
    /// `Some(None)`: the body was empty.
    first: Option<Option<Result<Frame<Bytes>, BoxError>>>,
    rest: ServerBody,
}

impl Body for Preceded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(first),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.first {
            Some(first) => first.is_none(),
            None => self.rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.iter().flatten().flatten().filter_map(Frame::data_ref);
        let first: u64 = first.map(|data| data.len() as u64).sum();
        let (rest, mut hint) = (self.rest.size_hint(), SizeHint::new());
        hint.set_lower(rest.lower().saturating_add(first));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(first)) {
            hint.set_upper(upper);
        }
        hint
    }
}

impl From<ReplyBody> for ServerBody {
    fn from(body: ReplyBody) -> Self {
        ServerBody(Kind::Reply(body))
    }
}

impl From<axum::body::Body> for ServerBody {
    fn from(body: axum::body::Body) -> Self {
        ServerBody(Kind::Axum(body))
    }
}

impl From<Bytes> for ServerBody {
    fn from(bytes: Bytes) -> Self {
        ServerBody(Kind::Bytes((!bytes.is_empty()).then_some(bytes)))
    }
}

impl From<&'static str> for ServerBody {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl From<String> for ServerBody {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl Body for ServerBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.get_mut().0 {
            Kind::Bytes(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Reply(reply) => Pin::new(reply).poll_frame(cx).map_err(Into::into),
            Kind::ReplyWithTrailers { reply, trailers } => {
                let Some(body) = reply else { return Poll::Ready(None) };
                let frame = ready!(Pin::new(body).poll_frame(cx));
                Poll::Ready(frame.map(|frame| {
                    Ok(frame.unwrap_or_else(|error| {
                        *reply = None;
                        Frame::trailers(trailers(&error))
                    }))
                }))
            }
            Kind::Axum(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Kind::Boxed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Bytes(bytes) => bytes.is_none(),
            Kind::Reply(reply) => reply.is_end_stream(),
            Kind::ReplyWithTrailers { reply, .. } => reply.as_ref().is_none_or(Body::is_end_stream),
            Kind::Axum(body) => body.is_end_stream(),
            Kind::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Bytes(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Kind::Reply(reply) => reply.size_hint(),
            Kind::ReplyWithTrailers { .. } => SizeHint::default(),
            Kind::Axum(body) => body.size_hint(),
            Kind::Boxed(body) => body.size_hint(),
        }
    }
}

impl fmt::Debug for ServerBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBody").field("size", &self.size_hint()).finish_non_exhaustive()
    }
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>>> Body for Erased<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.project().body.poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl Tracked ===

impl Tracked {
    pub(crate) fn new(body: ServerBody, in_flight: InFlight) -> Self {
        Tracked { body, in_flight }
    }

    /// Another body for the same request.
    pub(crate) fn replaced_by(self, body: ServerBody) -> Self {
        Tracked { body, ..self }
    }
}

impl Paced for Tracked {
    fn take(&self, sent: u64, bytes: usize) -> bool {
        self.in_flight.windows().take(sent, bytes)
    }

    fn hand(&self, bytes: usize) {
        self.in_flight.windows().hand(bytes);
    }

    fn unsent(&self) -> Option<&Arc<Unsent>> {
        Some(self.in_flight.unsent())
    }

    fn min_rate(&self) -> Option<u32> {
        self.in_flight.min_write_rate()
    }

    fn is_too_slow(&self) {
        self.in_flight.streams().slow_reader();
    }
}

impl Body for Tracked {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
