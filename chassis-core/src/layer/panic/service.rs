//! The layer and its service.
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Once,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    call::{Invocation, Reply, while_panicked},
    event::{Event, Events},
    metrics::Metrics,
    thread::{PANIC_PLACE, THREAD},
    types::{Body, Error, Hop, Reason},
};

/// Catches panics of the inner service.
#[derive(Clone)]
pub(crate) struct PanicLayer {
    shared: Arc<(Events, Metrics)>,
}

/// The service of [`PanicLayer`].
#[derive(Clone)]
pub(crate) struct PanicGuard<S> {
    inner: S,
    shared: Arc<(Events, Metrics)>,
}

pin_project! {
    /// Resolves with the answer, or with an error if the handler panicked.
    pub(crate) struct PanicFuture<F> {
        #[pin]
        inner: Option<F>,
        operation: Arc<str>,
        // The call itself is lost with the future that panicked.
        hop: Option<Hop>,
        shared: Arc<(Events, Metrics)>,
        // The message, if `call` panicked before it returned a future.
        panicked: Option<Box<str>>,
    }
}

/// Whether the former hook is not called for panics that are caught.
static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on, panics of handlers are reported by chassis' log line and event only: the process's panic hook,
/// which prints them to stderr by default, is not called for them. Applies to the whole process.
pub fn quiet_panics() {
    hook();
    QUIET.store(true, Relaxed);
}

/// Runs `inner`; a panic is returned as its message and place.
pub fn caught<T>(inner: impl FnOnce() -> T) -> Result<T, String> {
    let is_quiet = QUIET.load(Relaxed);
    let before = is_quiet && THREAD.with(|thread| thread.catches_panics.replace(true));
    let result = catch_unwind(AssertUnwindSafe(inner));
    if is_quiet {
        THREAD.with(|thread| thread.catches_panics.set(before));
    }
    result.map_err(|payload| in_words(&*payload))
}

#[cold]
fn in_words(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("no text");
    match PANIC_PLACE.take() {
        Some(place) => format!("{text} ({place})"),
        None => text.to_owned(),
    }
}

/// Installs our hook before the existing one, once for the process.
fn hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let place = panic.location().map(ToString::to_string);
            // No longer available while the thread ends.
            let _ = PANIC_PLACE.try_with(|noted| noted.replace(place));
            if !THREAD.try_with(|thread| thread.catches_panics.get()).unwrap_or(false) {
                before(panic);
            }
        }));
    });
}

impl PanicLayer {
    /// Reports panics to `events`, and counts them in `metrics`.
    pub(crate) fn new(events: Events, metrics: Metrics) -> Self {
        hook();
        PanicLayer { shared: Arc::new((events, metrics)) }
    }
}

impl<S> tower_layer::Layer<S> for PanicLayer {
    type Service = PanicGuard<S>;
    fn layer(&self, inner: S) -> PanicGuard<S> {
        PanicGuard { inner, shared: self.shared.clone() }
    }
}

impl<S> Service<Invocation> for PanicGuard<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = PanicFuture<S::Future>;

    crate::layer::forward_ready!();

    fn call(&mut self, call: Invocation) -> Self::Future {
        let (operation, hop) = (call.policy.operation.clone(), Hop::by_caller(&call));
        let (inner, panicked) = match caught(|| self.inner.call(call)) {
            Ok(inner) => (Some(inner), None),
            Err(words) => (None, Some(words.into_boxed_str())),
        };
        PanicFuture { inner, operation, hop, shared: self.shared.clone(), panicked }
    }
}

impl<F: Future<Output = Result<Reply, Error>>> Future for PanicFuture<F> {
    type Output = Result<Reply, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(inner) = this.inner.as_mut().as_pin_mut() {
            match caught(|| inner.poll(cx)) {
                Ok(Poll::Ready(Err(error))) => {
                    this.shared.0.refused(this.operation, &error);
                    return Poll::Ready(Err(error));
                }
                Ok(polled) => {
                    return polled.map_ok(|reply| match reply.body.is_streaming() {
                        true => guarded(reply, this.operation, this.shared),
                        false => reply,
                    });
                }
                Err(words) => *this.panicked = Some(words.into_boxed_str()),
            }
        }
        // A future that panicked is not polled again; dropping it must not panic a second time.
        let _ = catch_unwind(AssertUnwindSafe(|| while_panicked(|| this.inner.set(None))));
        report(this.operation, this.shared, this.panicked.take().unwrap_or_default().into());
        let error = Error::remote(Reason::Panicked, "the handler panicked");
        Poll::Ready(Err(error.of_hop(|| this.hop.take())))
    }
}

/// Counts and reports a panic.
fn report(operation: &Arc<str>, shared: &Arc<(Events, Metrics)>, message: String) {
    let (events, metrics) = &**shared;
    metrics.handler_panicked();
    events.emit(Event::HandlerPanicked { operation: operation.to_string(), message });
}

/// Guards the body of `reply`, which may panic too.
fn guarded(mut reply: Reply, operation: &Arc<str>, shared: &Arc<(Events, Metrics)>) -> Reply {
    let body = Some(std::mem::take(&mut reply.body));
    let guarded = GuardedBody { body, operation: operation.clone(), shared: shared.clone() };
    reply.body = Body::stream(guarded, |error| error);
    reply
}

/// The body of a handler's answer.
struct GuardedBody {
    /// `None` after a panic.
    body: Option<Body>,
    operation: Arc<str>,
    shared: Arc<(Events, Metrics)>,
}

impl http_body::Body for GuardedBody {
    type Data = bytes::Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Error>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let words = match caught(|| Pin::new(body).poll_frame(cx)) {
            Ok(polled) => {
                // A protocol may have caught the panic.
                if let Poll::Ready(Some(Err(error))) = &polled
                    && error.reason() == Reason::Panicked
                {
                    report(&this.operation, &this.shared, error.message().to_owned());
                }
                return polled;
            }
            Err(words) => words,
        };
        let _ = catch_unwind(AssertUnwindSafe(|| while_panicked(|| this.body = None)));
        report(&this.operation, &this.shared, words);
        Poll::Ready(Some(Err(Error::remote(Reason::Panicked, "the handler panicked within its answer"))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.as_ref().map_or_else(http_body::SizeHint::default, http_body::Body::size_hint)
    }
}
