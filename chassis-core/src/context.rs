//! What a call that is being handled hands down to the calls its handler makes: the deadline, the
//! trace, chosen headers.
//!
//! Inside a handler it is there by itself. Work that a handler spawns takes it along explicitly:
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

/// Handed down from a call to the calls made for it. Empty outside a handler.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    /// The trace the call is part of.
    pub trace: Option<Arc<TraceContext>>,
    /// Headers carried on along a chain of hops: baggage, and those that the settings name.
    pub headers: CarriedHeaders,
    /// Is the call a retry of its caller's?
    pub is_retry: bool,
    /// Was a call made for this one retried without success? Then its own failure says: do not retry.
    pub retries_exhausted: RetriesExhausted,
}

/// Set by calls made for another that failed and are not to be retried further up: each layer of a chain
/// that tries again what the layer below has tried again multiplies the load of what fails.
#[derive(Debug, Default)]
pub struct RetriesExhausted(AtomicBool);

/// Headers in the size of a pointer: hardly any call carries some, and each poll of a task in a context
/// moves that in and out. `map.into()` makes them, and they can be looked at as the map.
#[derive(Clone, Debug, Default)]
pub struct CarriedHeaders(Option<Box<HeaderMap>>);

tokio::task_local! {
    static CURRENT: Context;
}

// === impl Context ===

impl Context {
    /// That of the call being handled here; an empty one where there is none.
    pub fn current() -> Self {
        CURRENT.try_with(Clone::clone).unwrap_or_default()
    }

    /// Looks at the current one without a copy; `None` outside a handler.
    pub fn with<R>(look: impl FnOnce(&Context) -> R) -> Option<R> {
        CURRENT.try_with(look).ok()
    }

    /// Runs `work` with this as the current one.
    pub fn scope<F: Future>(self, work: F) -> TaskLocalFuture<Context, F> {
        CURRENT.scope(self, work)
    }

    /// Runs `work` at once with this as the current one.
    pub fn enter<R>(self, work: impl FnOnce() -> R) -> R {
        CURRENT.sync_scope(self, work)
    }

    /// The same without its deadline: for work that shall outlive the call.
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
    /// A call made for this one was retried, or would have been, and failed all the same.
    pub fn set(&self) {
        self.0.store(true, Relaxed);
    }

    /// Did that happen?
    pub fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// A copy starts from what is known so far, and goes its own way.
impl Clone for RetriesExhausted {
    fn clone(&self) -> Self {
        RetriesExhausted(AtomicBool::new(self.is_set()))
    }
}
