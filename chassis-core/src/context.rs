//! The context that a handler's calls inherit: the deadline, the trace, chosen headers.
//!
//! Within a handler it is inherited automatically. Spawned work must carry it explicitly:
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
use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use http::HeaderMap;
use tokio::task::futures::TaskLocalFuture;

use crate::{clock::Instant, types::TraceContext};

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
}

/// Set by outgoing calls that failed and must not be retried by callers further up: if each hop of a chain
/// retries what the next hop has retried, the load on the failing service multiplies.
#[derive(Debug, Default)]
pub(crate) struct RetriesExhausted(AtomicBool);

/// Headers in the size of a pointer: few calls carry any, and each poll of a task in a context moves this
/// value. `map.into()` converts a map, and it derefs to one.
#[derive(Clone, Debug, Default)]
pub(crate) struct CarriedHeaders(Option<Box<HeaderMap>>);

tokio::task_local! {
    static CURRENT: Context;
}

// === impl Context ===

impl Context {
    /// The context of the call that is being handled; empty outside a handler.
    pub fn current() -> Self {
        CURRENT.try_with(Clone::clone).unwrap_or_default()
    }

    /// Passes the current context to `look` without a copy; `None` outside a handler.
    pub fn with<R>(look: impl FnOnce(&Context) -> R) -> Option<R> {
        CURRENT.try_with(look).ok()
    }

    /// Runs `work` with this context as the current one.
    pub fn scope<F: Future>(self, work: F) -> TaskLocalFuture<Context, F> {
        CURRENT.scope(self, work)
    }

    /// Runs `work` at once with this context as the current one.
    pub fn enter<R>(self, work: impl FnOnce() -> R) -> R {
        CURRENT.sync_scope(self, work)
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

    /// Removes the deadline: for work that shall outlive the call.
    pub fn detached(mut self) -> Self {
        self.deadline = None;
        self
    }
}

// === impl CarriedHeaders ===

impl From<HeaderMap> for CarriedHeaders {
    fn from(headers: HeaderMap) -> Self {
        CarriedHeaders((!headers.is_empty()).then(|| Box::new(headers)))
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
