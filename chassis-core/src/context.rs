//! The context of a handler: what its calls inherit (the deadline, the trace, chosen headers), and the version of the
//! settings that it reads.
//!
//! Within a handler, and within the stream of its answer, it holds automatically. Spawned work must carry it explicitly:
//!
//! ```
//! # async fn work() {}
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use chassis_core::Context;
//!
//! let context = Context::current();
//! tokio::spawn(context.scope(async { work().await })).await.unwrap();
//! # }
//! ```
use std::{
    cell::RefCell,
    fmt,
    pin::{Pin, pin},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Poll,
};

use http::HeaderMap;
use pin_project_lite::pin_project;

use crate::{BoxFuture, clock::Instant, policy::Policy, types::TraceContext};

/// Inherited by the calls that are made for a call. Empty outside a handler.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Context {
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    /// The trace the call is part of.
    pub trace: Option<Arc<TraceContext>>,
    /// Headers that are carried on along a chain of hops: baggage, and those named in the settings.
    pub(crate) headers: CarriedHeaders,
    /// Whether the incoming call is a retry.
    pub is_retry: bool,
    /// Whether a call made for this one was retried without success. If so, the failure of this one forbids
    /// retries.
    pub(crate) retries_exhausted: RetriesExhausted,
    /// The version of the settings that the call has.
    pub(crate) settings: CallSettings,
}

/// The settings of the call that is being handled: those of its policy.
#[derive(Clone, Default)]
pub(crate) struct CallSettings(Option<Arc<Policy>>);

/// Set by outgoing calls that failed and must not be retried by callers further up: if each hop of a chain
/// retries what the next hop has retried, the load on the failing service multiplies.
#[derive(Debug, Default)]
pub(crate) struct RetriesExhausted(AtomicBool);

/// Headers in the size of a pointer: few calls carry any, and each poll of a task in a context moves this
/// value. `map.into()` converts a map, and it derefs to one.
#[derive(Clone, Debug, Default)]
pub(crate) struct CarriedHeaders(Option<Arc<HeaderMap>>);

pin_project! {
    /// A future that is polled, and dropped, in a context.
    pub(crate) struct Scoped<F> {
        context: Option<Context>,
        #[pin]
        work: Option<F>,
    }

    impl<F> PinnedDrop for Scoped<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if this.work.is_some() {
                within(this.context, || this.work.set(None));
            }
        }
    }
}

thread_local! {
    /// The context of the work that this thread does now.
    static CURRENT: RefCell<Option<Context>> = const { RefCell::new(None) };
}

/// Runs `work` at once with `context` as the current one. `context` is moved there and back, and not copied: tokio's
/// task-local values can do so for a future, but not for each frame of a body.
pub(crate) fn within<R>(context: &mut Option<Context>, work: impl FnOnce() -> R) -> R {
    struct Restore<'a>(&'a mut Option<Context>);

    impl Restore<'_> {
        /// `false` if the value is in use, or its thread ends.
        fn swap(&mut self) -> bool {
            let swap = |current: &RefCell<Option<Context>>| {
                current.try_borrow_mut().map(|mut current| std::mem::swap(&mut *current, self.0)).is_ok()
            };
            CURRENT.try_with(swap).unwrap_or(false)
        }
    }

    impl Drop for Restore<'_> {
        fn drop(&mut self) {
            self.swap();
        }
    }

    let mut restore = Restore(context);
    if restore.swap() {
        let result = work();
        drop(restore);
        return result;
    }
    std::mem::forget(restore); // nothing is to be swapped back
    work()
}

// === impl Context ===

impl Context {
    /// The context of the call that is being handled; empty outside a handler.
    pub fn current() -> Self {
        Context::with(Clone::clone).unwrap_or_default()
    }

    /// Passes the current context to `look` without a copy; `None` outside a handler.
    pub fn with<R>(look: impl FnOnce(&Context) -> R) -> Option<R> {
        let look = |current: &RefCell<Option<Context>>| current.try_borrow().ok()?.as_ref().map(look);
        CURRENT.try_with(look).ok().flatten()
    }

    /// Runs `work` with this context as the current one.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        self.scoped(work)
    }

    /// The same, with a type that has a name.
    pub(crate) fn scoped<F: Future>(self, work: F) -> Scoped<F> {
        Scoped { context: Some(self), work: Some(work) }
    }

    /// Runs `work` at once with this context as the current one.
    pub fn enter<R>(self, work: impl FnOnce() -> R) -> R {
        within(&mut Some(self), work)
    }

    /// The headers that are carried on along a chain of hops: baggage, and those named in the settings.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Replaces the headers that are carried on.
    pub fn with_headers(mut self, headers: HeaderMap) -> Self {
        self.headers = headers.into();
        self
    }

    /// Removes the deadline: for work that shall outlive the call. It keeps the call's version of the settings; work that
    /// goes on for longer reads [`LiveSection::newest`](crate::LiveSection::newest).
    pub fn detached(mut self) -> Self {
        self.deadline = None;
        self
    }

    /// The current context for layers of the user around a call with `policy`: they read its version of the settings.
    /// `None` if it is the current one already.
    pub(crate) fn of_layers(policy: &Arc<Policy>) -> Option<Self> {
        let is_current = Context::with(|context| context.settings.is(policy)).unwrap_or(false);
        (!is_current).then(|| Context { settings: CallSettings::of(policy), ..Context::current() })
    }

    /// Begins work at once and runs it with this context as the current one, which is a copy of the one around it.
    pub(crate) fn begin<F>(self, begin: impl FnOnce() -> F) -> BoxFuture<'static, F::Output>
    where
        F: Future + Send + 'static,
    {
        let mut context = Some(self);
        let work = Some(within(&mut context, begin));
        Box::pin(async move {
            let mut work = pin!(Scoped { context, work });
            let output = work.as_mut().await;
            if work.take_context().is_some_and(|copy| copy.retries_exhausted.is_set()) {
                Context::with(|original| original.retries_exhausted.set());
            }
            output
        })
    }
}

// === impl Scoped ===

impl<F> Scoped<F> {
    /// The context, once the future has ended.
    pub(crate) fn take_context(self: Pin<&mut Self>) -> Option<Context> {
        self.project().context.take()
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        within(this.context, || {
            let work = this.work.as_mut().as_pin_mut().expect("a future is not polled after its end");
            let output = std::task::ready!(work.poll(cx));
            this.work.set(None);
            Poll::Ready(output)
        })
    }
}

// === impl CallSettings ===

impl CallSettings {
    /// Those of a call with `policy`.
    pub(crate) fn of(policy: &Arc<Policy>) -> Self {
        CallSettings(Some(policy.clone()))
    }

    /// The policy of the call.
    pub(crate) fn policy(&self) -> Option<&Policy> {
        self.0.as_deref()
    }

    fn is(&self, policy: &Arc<Policy>) -> bool {
        self.0.as_ref().is_some_and(|own| Arc::ptr_eq(own, policy))
    }
}

impl fmt::Debug for CallSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CallSettings").field(&self.policy().map(Policy::version)).finish()
    }
}

// === impl CarriedHeaders ===

impl From<HeaderMap> for CarriedHeaders {
    fn from(headers: HeaderMap) -> Self {
        CarriedHeaders((!headers.is_empty()).then(|| Arc::new(headers)))
    }
}

impl std::ops::Deref for CarriedHeaders {
    type Target = HeaderMap;
    fn deref(&self) -> &HeaderMap {
        static NONE: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);
        self.0.as_deref().unwrap_or(&NONE)
    }
}

// === impl RetriesExhausted ===

impl RetriesExhausted {
    /// A call made for this one failed and was retried, or would have been.
    pub(crate) fn set(&self) {
        self.0.store(true, Relaxed);
    }

    /// Whether that happened.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// A copy starts with the value so far, and is independent.
impl Clone for RetriesExhausted {
    fn clone(&self) -> Self {
        RetriesExhausted(AtomicBool::new(self.is_set()))
    }
}
