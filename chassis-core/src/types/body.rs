//! One concrete body for every protocol: bytes that are ready, then the rest.
//!
//! A unary message with its trailers is taken as soon as it is ready ([`Body::prefetch`]): without a box, with
//! a free replay, and often with the verdict together with the head.
use std::{
    collections::VecDeque,
    num::NonZeroU32,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use smallvec::SmallVec;
use sync_wrapper::SyncWrapper;

use crate::types::{Error, Reason};

/// A message or a stream of messages, and the trailers.
///
/// ```
/// use chassis_core::Body;
///
/// let body = Body::full("hello");
/// assert!(body.try_clone().is_some()); // bytes that are ready can be sent again
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

/// A boxed stream, and the number of its remaining bytes if that was known before the first poll.
struct Stream {
    body: SyncWrapper<BoxBody>,
    size: Option<u64>,
}

/// A stream whose type is erased.
pub(crate) type BoxBody = Pin<Box<dyn HttpBody<Data = Bytes, Error = Error> + Send>>;

/// Ends the body that it was made for, when it is dropped or [`abort`](Abort::abort)ed.
pub struct Abort(Option<Arc<AbortState>>);

/// Observes an [`Abort`].
pub struct Aborted(Arc<AbortState>);

/// The error of a request's body, for the code that waits for the answer: see [`Abort::failure`].
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

/// A body that several attempts read, each from its start, at the same time or one after another.
///
/// They share the bytes that were read so far, up to `cap`, and wait for the rest together: no attempt waits
/// for another one to end. Above the cap only the attempt that has read the most continues, as in gRFC A6.
pub struct Replay(Arc<Shared>);

/// Identifies the position of one attempt in a [`Replay`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reader(NonZeroU32);

struct Shared {
    kept: Mutex<Kept>,
    /// Separate from the kept chunks: the rest of the body holds a waker, which must not own the body.
    waiting: Arc<Waiting>,
}

struct Kept {
    chunks: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    bytes: usize,
    cap: usize,
    /// The length of the whole body, if known.
    size: Option<u64>,
    /// The part that no attempt has read; `None` after its end.
    rest: Option<Body>,
    /// The error of the body.
    failed: Option<Error>,
    /// One attempt reads alone, because it has won or has read more than is kept: nothing is kept any more.
    is_sole: bool,
    readers: SmallVec<[Position; 2]>,
    next: Reader,
}

/// The position of an attempt.
struct Position {
    reader: Reader,
    /// The next kept chunk to read.
    chunk: usize,
    /// It has received the trailers or the error.
    has_ended: bool,
}

/// Readers that wait for the rest of the body, which wakes all of them.
#[derive(Default)]
struct Waiting(Mutex<SmallVec<[(Reader, Waker); 2]>>);

/// The result of polling a body.
type Polled = Option<Result<Frame<Bytes>, Error>>;

struct Replaying {
    shared: Arc<Shared>,
    reader: Reader,
    size: Option<u64>,
}

// === impl Body ===

impl Body {
    /// An empty body.
    pub fn empty() -> Self {
        Body::default()
    }

    /// A body whose bytes are ready.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Body { first: (!bytes.is_empty()).then_some(bytes), rest: Rest::End }
    }

    /// A body whose bytes and trailers are ready.
    pub fn with_trailers(bytes: Option<Bytes>, trailers: HeaderMap) -> Self {
        Body { first: bytes, rest: Rest::Trailers(Box::new(trailers)) }
    }

    /// A body that reads a stream; `error` converts its errors.
    pub fn stream<B>(body: B, error: impl Fn(B::Error) -> Error + Send + 'static) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
    {
        if body.is_end_stream() {
            return Body::empty();
        }
        Body { first: None, rest: Rest::boxed(Mapped { body, error }) }
    }

    /// Takes the parts of `body` that are ready, and boxes it only if more is to come. Cheap for a unary
    /// message; the first message of a stream is taken too.
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

    /// Takes a first chunk and trailers that are ready. Never waits.
    pub fn prefetch(&mut self) {
        let cx = &mut Context::from_waker(Waker::noop());
        loop {
            let Rest::Stream(stream) = &mut self.rest else { return };
            if self.first.is_some() {
                // Only trailers may still be taken: the order of chunks stays.
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

    /// A second body with the same content, if no stream is left to read.
    pub fn try_clone(&self) -> Option<Body> {
        let rest = match &self.rest {
            Rest::End => Rest::End,
            Rest::Trailers(trailers) => Rest::Trailers(trailers.clone()),
            Rest::Stream(_) => return None,
        };
        Some(Body { first: self.first.clone(), rest })
    }

    /// The trailers, if only they and a first chunk are left. `None`: not known yet.
    pub(crate) fn ready_trailers(&self) -> Option<Option<&HeaderMap>> {
        match &self.rest {
            Rest::End => Some(None),
            Rest::Trailers(trailers) => Some(Some(trailers)),
            Rest::Stream(_) => None,
        }
    }

    /// The trailers, if they are known already, for changes.
    pub fn trailers_mut(&mut self) -> Option<&mut HeaderMap> {
        match &mut self.rest {
            Rest::Trailers(trailers) => Some(trailers),
            _ => None,
        }
    }

    /// Whether a part of the body is still to be read from a stream.
    pub fn is_streaming(&self) -> bool {
        matches!(self.rest, Rest::Stream(_))
    }

    /// Puts `wrap` around the stream that is still to be read, if there is one.
    pub(crate) fn wrap<B>(self, wrap: impl FnOnce(BoxBody) -> B) -> Body
    where
        B: HttpBody<Data = Bytes, Error = Error> + Send + 'static,
    {
        let Rest::Stream(Stream { body, size }) = self.rest else { return self };
        let body = SyncWrapper::new(Box::pin(wrap(body.into_inner())) as BoxBody);
        Body { first: self.first, rest: Rest::Stream(Stream { body, size }) }
    }

    /// Adds a handle that can end the body early. A body without a stream needs none.
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
        if let Rest::Stream(stream) = &mut self.rest {
            let frame = std::task::ready!(stream.body.get_mut().as_mut().poll_frame(cx));
            match &frame {
                Some(Ok(frame)) => {
                    let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                    stream.size = stream.size.and_then(|size| size.checked_sub(length));
                }
                _ => self.rest = Rest::End,
            }
            return Poll::Ready(frame);
        }
        Poll::Ready(match std::mem::take(&mut self.rest) {
            Rest::Trailers(trailers) => Some(Ok(Frame::trailers(*trailers))),
            _ => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        // A boxed stream is only asked when it is polled: asking through `&self` would require `Sync`.
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
    /// A handle and its observer.
    pub fn pair() -> (Abort, Aborted) {
        let state = Arc::new(AbortState::default());
        (Abort(Some(state.clone())), Aborted(state))
    }

    /// Ends the body now.
    pub fn abort(self) {}

    /// The error that [`Aborted::fail`] will report, if any.
    pub fn failure(&self) -> Option<Failure> {
        self.0.clone().map(Failure)
    }

    /// Keeps the body: it was not sent, and will be sent by another attempt.
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
    /// Resolves when the body was aborted.
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

    /// Reports that the body failed with `error`, which is why the call has no answer, or only a part of it.
    pub fn fail(&self, error: Error) {
        lock(&self.0.failed).get_or_insert(error);
    }

    fn is_over(&self) -> bool {
        self.0.aborted.load(Ordering::Acquire)
    }
}

impl Failure {
    /// The error; only the first call returns it.
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
    /// Keeps up to `cap` bytes of `body` as they are read.
    pub fn new(body: Body, cap: usize) -> Self {
        let kept = Kept {
            chunks: VecDeque::new(),
            trailers: None,
            bytes: 0,
            cap,
            size: body.size_hint().exact(),
            rest: Some(body),
            failed: None,
            is_sole: false,
            readers: SmallVec::new(),
            next: Reader(NonZeroU32::MIN),
        };
        Replay(Arc::new(Shared { kept: Mutex::new(kept), waiting: Arc::default() }))
    }

    /// The body from its start, for one more attempt; `None` if it can't be sent again.
    pub fn attempt(&self) -> Option<(Body, Reader)> {
        let mut kept = lock(&self.0.kept);
        if !kept.can_repeat() {
            return None;
        }
        let (reader, size) = (kept.next, kept.size);
        kept.next = Reader(reader.0.saturating_add(1)); // a call makes few attempts
        kept.readers.push(Position { reader, chunk: 0, has_ended: false });
        drop(kept);
        let body = Replaying { shared: self.0.clone(), reader, size };
        Some((Body { first: None, rest: Rest::boxed(body) }, reader))
    }

    /// Whether the body can be sent again: not if more was read than is kept, and not if it failed.
    pub fn is_possible(&self) -> bool {
        lock(&self.0.kept).can_repeat()
    }

    /// Cuts off the attempt of `reader` before another one starts: from here on it reads an error, also if a
    /// transport still holds it. Returns `false` and changes nothing if the body can't be sent again.
    pub fn abandon(&self, reader: Reader) -> bool {
        let mut kept = lock(&self.0.kept);
        if !kept.can_repeat() {
            return false;
        }
        kept.readers.retain(|position| position.reader != reader);
        drop(kept);
        self.0.waiting.wake_all();
        true
    }

    /// The attempt of `reader` has won: it continues, the others are cut off, and bytes that it has read are
    /// freed.
    pub fn commit(self, reader: Reader) {
        let mut kept = lock(&self.0.kept);
        kept.leave_to(reader);
        drop(kept);
        self.0.waiting.wake_all();
    }
}

/// Ends all attempts but one that has won.
impl Drop for Replay {
    fn drop(&mut self) {
        let mut kept = lock(&self.0.kept);
        if std::mem::replace(&mut kept.is_sole, true) {
            return;
        }
        kept.readers.clear();
        let freed = (kept.rest.take(), std::mem::take(&mut kept.chunks));
        drop(kept);
        drop(freed); // not under the lock: dropping a user's body may run any code
        self.0.waiting.wake_all();
    }
}

impl HttpBody for Replaying {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Polled> {
        let (waiting, reader) = (&self.shared.waiting, self.reader);
        let mut kept = lock(&self.shared.kept);
        if let Some(there) = kept.next(reader) {
            return Poll::Ready(there);
        }
        let Some(rest) = &mut kept.rest else { return Poll::Ready(None) };
        // Before the body is polled, so that no wake-up is lost.
        waiting.add(reader, cx.waker());
        let waker = Waker::from(waiting.clone());
        let polled = std::task::ready!(Pin::new(rest).poll_frame(&mut Context::from_waker(&waker)));
        waiting.remove(reader);
        let freed = kept.keep(reader, &polled);
        drop(kept);
        drop(freed);
        waiting.wake_all(); // the other readers read the kept bytes
        Poll::Ready(polled)
    }

    /// Asked once, before the first read.
    fn size_hint(&self) -> SizeHint {
        self.size.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Replaying {
    fn drop(&mut self) {
        self.shared.waiting.remove(self.reader);
        let mut kept = lock(&self.shared.kept);
        kept.readers.retain(|position| position.reader != self.reader);
        // No other reader is left.
        let freed = if !kept.can_repeat() && kept.readers.is_empty() { kept.rest.take() } else { None };
        drop(kept);
        drop(freed);
    }
}

impl Kept {
    fn can_repeat(&self) -> bool {
        !self.is_sole && self.failed.is_none()
    }

    /// The next frame for `reader` without polling the rest of the body; `None`: the rest must be polled.
    fn next(&mut self, reader: Reader) -> Option<Polled> {
        let Some(position) = self.readers.iter_mut().find(|position| position.reader == reader) else {
            return Some(Some(Err(Error::local(Reason::Cancelled, "the attempt is over"))));
        };
        let chunk = match self.is_sole {
            true => self.chunks.pop_front(),
            false => self.chunks.get(position.chunk).cloned(),
        };
        if let Some(chunk) = chunk {
            position.chunk += 1;
            return Some(Some(Ok(Frame::data(chunk))));
        }
        if self.rest.is_some() {
            return None;
        }
        if std::mem::replace(&mut position.has_ended, true) {
            return Some(None);
        }
        let failed = self.failed.as_ref().map(|error| Err(error.repeat()));
        Some(failed.or_else(|| self.trailers.clone().map(|trailers| Ok(Frame::trailers(trailers)))))
    }

    /// Keeps the frame that `reader` got from the rest of the body, and returns the rest once it has ended.
    fn keep(&mut self, reader: Reader, polled: &Polled) -> Option<Body> {
        match polled {
            Some(Ok(frame)) => match (frame.data_ref(), frame.trailers_ref()) {
                (Some(data), _) => {
                    self.keep_data(reader, data);
                    return None;
                }
                (None, trailers) => self.trailers = trailers.cloned(),
            },
            Some(Err(error)) => self.failed = Some(error.repeat()),
            None => {}
        }
        let own = self.readers.iter_mut().find(|position| position.reader == reader);
        own.into_iter().for_each(|position| position.has_ended = true);
        self.rest.take()
    }

    fn keep_data(&mut self, reader: Reader, data: &Bytes) {
        self.bytes = self.bytes.saturating_add(data.len());
        if self.bytes > self.cap {
            self.leave_to(reader);
        }
        if self.is_sole {
            return;
        }
        self.chunks.push_back(data.clone());
        let own = self.readers.iter_mut().find(|position| position.reader == reader);
        own.into_iter().for_each(|position| position.chunk += 1);
    }

    /// Lets only `reader` continue; nothing is kept for others.
    fn leave_to(&mut self, reader: Reader) {
        if std::mem::replace(&mut self.is_sole, true) {
            return;
        }
        self.readers.retain(|position| position.reader == reader);
        let read = self.readers.first().map_or(self.chunks.len(), |position| position.chunk);
        self.chunks.drain(..read);
        self.chunks.shrink_to_fit();
    }
}

// === impl Waiting ===

impl Waiting {
    fn add(&self, reader: Reader, waker: &Waker) {
        let mut waiting = lock(&self.0);
        match waiting.iter_mut().find(|(other, _)| *other == reader) {
            Some((_, there)) => there.clone_from(waker),
            None => waiting.push((reader, waker.clone())),
        }
    }

    fn remove(&self, reader: Reader) {
        lock(&self.0).retain(|(other, _)| *other != reader);
    }

    fn wake_all(&self) {
        let waiting = std::mem::take(&mut *lock(&self.0));
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}

/// A body that panics while it is polled poisons the lock; the kept bytes are still valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
