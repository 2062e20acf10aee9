//! One concrete body for every protocol: bytes that are there already, then the rest.
//!
//! A unary message with its trailers is taken as soon as it is ready ([`Body::prefetch`]): no box, a
//! free replay, and often the verdict together with the head.
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use sync_wrapper::SyncWrapper;

use crate::{Error, Reason};

/// A message, or a stream of them, and the trailers behind.
///
/// ```
/// use chassis_core::Body;
///
/// let body = Body::full("hello");
/// assert!(body.try_clone().is_some()); // what is there already can be sent again
/// ```
#[derive(Default)]
pub struct Body {
    first: Option<Bytes>,
    rest: Rest,
}

#[derive(Default)]
enum Rest {
    #[default]
    End,
    Trailers(Box<HeaderMap>),
    Stream(Stream),
}

/// A boxed stream, and how many bytes of it are still to come, where that was known before it was first polled.
struct Stream {
    body: SyncWrapper<Pin<Box<dyn HttpBody<Data = Bytes, Error = Error> + Send>>>,
    size: Option<u64>,
}

/// Ends what it was made for early, when dropped or told to: a body, or whoever sends one.
pub struct Abort(Option<Arc<AbortState>>);

/// Hears of an [`Abort`].
pub struct Aborted(Arc<AbortState>);

/// What a request's body failed with, for whoever waits for the answer: see [`Abort::failure`].
pub struct Failure(Arc<AbortState>);

#[derive(Default)]
struct AbortState {
    aborted: AtomicBool,
    waker: Mutex<Option<Waker>>,
    failed: Mutex<Option<Error>>,
}

struct Abortable {
    body: Body,
    aborted: Aborted,
}

/// What has been read of a body so far, so that it can be sent again from the start.
///
/// Up to `cap` bytes are kept; above that the body goes on and can't be sent again.
pub struct Replay(Arc<Mutex<Kept>>);

struct Kept {
    read: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    bytes: usize,
    cap: usize,
    /// How long the whole body is, where that is known.
    size: Option<u64>,
    /// The part nobody has read; `None` while an attempt reads it, and after its end.
    rest: Option<Body>,
    ended: bool,
    spoilt: bool,
    /// Wants another attempt, as soon as the last one has let go.
    waiting: Option<Waker>,
}

struct Replaying {
    kept: Arc<Mutex<Kept>>,
    size: Option<u64>,
    /// How many of the kept chunks this attempt has sent.
    position: usize,
    rest: Option<Body>,
    done: bool,
}

// === impl Body ===

impl Body {
    /// Nothing at all.
    pub fn empty() -> Self {
        Body::default()
    }

    /// Bytes that are there already.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Body { first: (!bytes.is_empty()).then_some(bytes), rest: Rest::End }
    }

    /// Bytes that are there already, and trailers.
    pub fn with_trailers(bytes: Option<Bytes>, trailers: HeaderMap) -> Self {
        Body { first: bytes, rest: Rest::Trailers(Box::new(trailers)) }
    }

    /// A stream, its errors told by `error`.
    pub fn stream<B>(body: B, error: impl Fn(B::Error) -> Error + Send + 'static) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
    {
        if body.is_end_stream() {
            return Body::empty();
        }
        Body { first: None, rest: Rest::boxed(Mapped { body, error }) }
    }

    /// Takes what `body` has ready, and boxes it only if there is more to come. Cheap for a unary
    /// message; a stream's first message is taken too.
    pub fn eager<B>(mut body: B, error: impl Fn(B::Error) -> Error + Send + 'static) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    {
        if body.is_end_stream() {
            return Body::empty();
        }
        let mut first = None;
        let cx = &mut Context::from_waker(Waker::noop());
        loop {
            match Pin::new(&mut body).poll_frame(cx) {
                Poll::Ready(None) => return Body { first, rest: Rest::End },
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if first.is_none() => {
                        first = Some(data);
                        if body.is_end_stream() {
                            return Body { first, rest: Rest::End };
                        }
                    }
                    Ok(data) => {
                        let rest = Body { first: Some(data), ..Body::stream(body, error) };
                        let no_error: fn(Error) -> Error = |e| e;
                        return Body { first, ..Body::stream(rest, no_error) };
                    }
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        return Body { first, rest: Rest::Trailers(Box::new(trailers)) };
                    }
                },
                Poll::Ready(Some(Err(e))) => {
                    return Body { first, rest: Rest::boxed(Failed(Some(error(e)))) };
                }
                Poll::Pending => return Body { first, ..Body::stream(body, error) },
            }
        }
    }

    /// Takes a first chunk and trailers that are ready already. Never waits.
    pub fn prefetch(&mut self) {
        let cx = &mut Context::from_waker(Waker::noop());
        loop {
            let Rest::Stream(stream) = &mut self.rest else { return };
            if self.first.is_some() {
                // Only what ends the body may still be taken: the order of chunks stays.
                if stream.body.get_mut().is_end_stream() {
                    self.rest = Rest::End;
                }
                return;
            }
            match stream.body.get_mut().as_mut().poll_frame(cx) {
                Poll::Ready(None) => self.rest = Rest::End,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        stream.size = stream.size.and_then(|size| size.checked_sub(data.len() as u64));
                        self.first = Some(data);
                    }
                    Err(frame) => {
                        self.rest = Rest::Trailers(Box::new(frame.into_trailers().unwrap_or_default()));
                    }
                },
                Poll::Ready(Some(Err(e))) => {
                    self.rest = Rest::boxed(Failed(Some(e)));
                    return;
                }
                Poll::Pending => return,
            }
        }
    }

    /// A second body that says the same, where nothing is left to read from elsewhere.
    pub fn try_clone(&self) -> Option<Body> {
        let rest = match &self.rest {
            Rest::End => Rest::End,
            Rest::Trailers(trailers) => Rest::Trailers(trailers.clone()),
            Rest::Stream(_) => return None,
        };
        Some(Body { first: self.first.clone(), rest })
    }

    /// The trailers, where nothing but they and a first chunk are left. `None`: not known yet.
    pub(crate) fn ready_trailers(&self) -> Option<Option<&HeaderMap>> {
        match &self.rest {
            Rest::End => Some(None),
            Rest::Trailers(trailers) => Some(Some(trailers)),
            Rest::Stream(_) => None,
        }
    }

    /// The trailers to come, where they are known already, to be changed.
    pub fn trailers_mut(&mut self) -> Option<&mut HeaderMap> {
        match &mut self.rest {
            Rest::Trailers(trailers) => Some(trailers),
            _ => None,
        }
    }

    /// Is it all here, or does some of it still have to come from somewhere?
    pub fn is_streaming(&self) -> bool {
        matches!(self.rest, Rest::Stream(_))
    }

    /// Splits off what can end it early. Bodies that are all here need none.
    pub fn abortable(self) -> (Body, Option<Abort>) {
        if !self.is_streaming() {
            return (self, None);
        }
        let (abort, aborted) = Abort::pair();
        let body = Abortable { body: self, aborted };
        (Body { first: None, rest: Rest::boxed(body) }, Some(abort))
    }
}

impl Rest {
    fn boxed(body: impl HttpBody<Data = Bytes, Error = Error> + Send + 'static) -> Self {
        let size = body.size_hint().exact();
        Rest::Stream(Stream { body: SyncWrapper::new(Box::pin(body)), size })
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        match &mut self.rest {
            Rest::End => Poll::Ready(None),
            Rest::Trailers(trailers) => {
                let trailers = std::mem::take(&mut **trailers);
                self.rest = Rest::End;
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Rest::Stream(stream) => {
                let frame = std::task::ready!(stream.body.get_mut().as_mut().poll_frame(cx));
                match &frame {
                    Some(Ok(frame)) => {
                        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                        stream.size = stream.size.and_then(|size| size.checked_sub(length));
                    }
                    _ => self.rest = Rest::End,
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        // A boxed stream is asked when it is polled: asking through `&self` would need it to be Sync.
        self.first.is_none() && matches!(self.rest, Rest::End)
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, |b| b.len() as u64);
        match &self.rest {
            Rest::End | Rest::Trailers(_) => SizeHint::with_exact(first),
            Rest::Stream(Stream { size: Some(size), .. }) => SizeHint::with_exact(first + size),
            Rest::Stream(_) => {
                let mut hint = SizeHint::new();
                hint.set_lower(first);
                hint
            }
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("ready", &self.first.as_ref().map(Bytes::len)).finish_non_exhaustive()
    }
}

pin_project_lite::pin_project! {
    struct Mapped<B, F> { #[pin] body: B, error: F }
}

impl<B: HttpBody, F: Fn(B::Error) -> Error> HttpBody for Mapped<B, F> {
    type Data = B::Data;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, Error>>> {
        let this = self.project();
        this.body.poll_frame(cx).map(|frame| frame.map(|f| f.map_err(&*this.error)))
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct Failed(Option<Error>);

impl HttpBody for Failed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Poll::Ready(self.0.take().map(Err))
    }
}

// === impl Abort ===

impl Abort {
    /// With what hears of it.
    pub fn pair() -> (Abort, Aborted) {
        let state = Arc::new(AbortState::default());
        (Abort(Some(state.clone())), Aborted(state))
    }

    /// Ends the body now.
    pub fn abort(self) {}

    /// What [`Aborted::fail`] will be told, if anything.
    pub fn failure(&self) -> Option<Failure> {
        self.0.clone().map(Failure)
    }

    /// Lets the body be: it was not sent, and will be another time.
    pub fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for Abort {
    fn drop(&mut self) {
        let Some(state) = &self.0 else { return };
        state.aborted.store(true, Ordering::Release);
        if let Some(waker) = lock(&state.waker).take() {
            waker.wake();
        }
    }
}

impl Aborted {
    /// Resolves once it is over.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_over() {
            let mut waker = lock(&self.0.waker);
            match &mut *waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
            drop(waker);
            if !self.is_over() {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// The body failed with `error`: that is why the call has no answer, or not all of it.
    pub fn fail(&self, error: Error) {
        lock(&self.0.failed).get_or_insert(error);
    }

    fn is_over(&self) -> bool {
        self.0.aborted.load(Ordering::Acquire)
    }
}

impl Failure {
    /// The error, once.
    pub fn take(&self) -> Option<Error> {
        lock(&self.0.failed).take()
    }
}

impl HttpBody for Abortable {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let over = || Poll::Ready(Some(Err(Error::local(Reason::Cancelled, "the answer is over"))));
        if self.aborted.is_over() {
            return over();
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending if self.aborted.poll(cx).is_ready() => over(),
            polled => polled,
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl Replay ===

impl Replay {
    /// Starts to keep what is read of `body`, up to `cap` bytes.
    pub fn new(body: Body, cap: usize) -> Self {
        Replay(Arc::new(Mutex::new(Kept {
            read: VecDeque::new(),
            trailers: None,
            bytes: 0,
            cap,
            size: body.size_hint().exact(),
            rest: Some(body),
            ended: false,
            spoilt: false,
            waiting: None,
        })))
    }

    /// The body from its start, or `None`: too much was read to keep, or it is being read right now.
    pub fn attempt(&self) -> Option<Body> {
        match self.poll_attempt(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(body) => body,
            Poll::Pending => None,
        }
    }

    /// The same, once whoever reads it has dropped it: a transport may do so a little after the answer.
    /// `None`: too much was read to keep.
    pub fn poll_attempt(&self, cx: &mut Context<'_>) -> Poll<Option<Body>> {
        let mut kept = lock(&self.0);
        if kept.spoilt {
            return Poll::Ready(None);
        }
        if kept.rest.is_none() && !kept.ended {
            kept.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let (rest, size) = (kept.rest.take(), kept.size);
        let replaying = Replaying { kept: self.0.clone(), size, position: 0, rest, done: false };
        drop(kept);
        Poll::Ready(Some(Body { first: None, rest: Rest::boxed(replaying) }))
    }

    /// Could another attempt be made, once the current one is dropped?
    pub fn is_possible(&self) -> bool {
        !lock(&self.0).spoilt
    }
}

impl HttpBody for Replaying {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let mut kept = lock(&this.kept);
        if let Some(chunk) = kept.read.get(this.position) {
            this.position += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if kept.ended {
            let trailers = if this.done { None } else { kept.trailers.clone() };
            this.done = true;
            return Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t))));
        }
        let Some(rest) = &mut this.rest else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(rest).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    kept.keep(data);
                    this.position += 1;
                } else if let Some(trailers) = frame.trailers_ref() {
                    kept.trailers = Some(trailers.clone());
                    kept.ended = true;
                    this.done = true;
                }
            }
            Some(Err(_)) => kept.spoilt = true,
            None => {
                kept.ended = true;
                this.done = true;
            }
        }
        Poll::Ready(frame)
    }

    /// Asked once, before it is read.
    fn size_hint(&self) -> SizeHint {
        self.size.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Replaying {
    fn drop(&mut self) {
        let mut kept = lock(&self.kept);
        if !kept.ended && !kept.spoilt {
            kept.rest = self.rest.take();
        }
        let waiting = kept.waiting.take();
        drop(kept);
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Kept {
    fn keep(&mut self, data: &Bytes) {
        self.bytes += data.len();
        if self.bytes > self.cap {
            self.spoilt = true;
        }
        match self.spoilt {
            true => self.read.clear(),
            false => self.read.push_back(data.clone()),
        }
    }
}

/// Where a body panics while it is polled, its lock is poisoned; what has been kept is good all the same.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
