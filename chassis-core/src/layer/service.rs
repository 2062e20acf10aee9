//! The common parts of several layers' services.
use std::{
    pin::Pin,
    task::{Context, Poll},
};

use crate::{BoxFuture, call::Reply, types::Error};

pin_project_lite::pin_project! {
    #[allow(missing_docs)]
    /// The decision of a layer: refused at once, passed on, or passed on after a wait.
    #[project = MaybeBoxedProjection]
    pub(crate) enum MaybeBoxed<F, E = Error> {
        /// Refused.
        Refused { error: Option<E> },
        /// Passed on.
        Inner { #[pin] inner: F },
        /// Other work first: the only boxed case.
        Boxed { boxed: BoxFuture<'static, Result<Reply, E>> },
    }
}

// === impl MaybeBoxed ===

impl<F, E> MaybeBoxed<F, E> {
    /// Refused at once.
    pub(crate) fn refused(error: E) -> Self {
        MaybeBoxed::Refused { error: Some(error) }
    }

    /// Passed on at once.
    pub(crate) fn inner(inner: F) -> Self {
        MaybeBoxed::Inner { inner }
    }

    /// Passed on later, or not at all.
    pub(crate) fn boxed(future: impl Future<Output = Result<Reply, E>> + Send + 'static) -> Self {
        MaybeBoxed::Boxed { boxed: Box::pin(future) }
    }
}

impl<F: Future<Output = Result<Reply, E>>, E> Future for MaybeBoxed<F, E> {
    type Output = Result<Reply, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            MaybeBoxedProjection::Refused { error } => {
                // Taken once: a future is not polled again after it has resolved.
                Poll::Ready(Err(error.take().expect("polled after it was ready")))
            }
            MaybeBoxedProjection::Inner { inner } => inner.poll(cx),
            MaybeBoxedProjection::Boxed { boxed } => boxed.as_mut().poll(cx),
        }
    }
}

/// Forwards readiness: a layer that refuses does so in `call`.
macro_rules! forward_ready {
    () => {
        fn poll_ready(
            &mut self,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Result<(), Self::Error>> {
            self.inner.poll_ready(cx)
        }
    };
}
pub(crate) use forward_ready;

/// A layer without settings of its own: everything it needs is in `call.policy`.
macro_rules! plain_layer {
    ($(#[$meta:meta])* $layer:ident => $service:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default)]
        pub(crate) struct $layer;

        impl<S> tower_layer::Layer<S> for $layer {
            type Service = $service<S>;
            fn layer(&self, inner: S) -> $service<S> {
                $service { inner }
            }
        }

        #[doc = concat!("The service of [`", stringify!($layer), "`].")]
        #[derive(Clone, Debug)]
        pub(crate) struct $service<S> {
            inner: S,
        }
    };
}
pub(crate) use plain_layer;
