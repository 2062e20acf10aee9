//! State shared by the request and the answer of a call: a request that exceeds a bound ends its answer, too.
use std::{
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use crate::types::{Error, Verdict};

/// Whether the request was cut off; observed by the code that waits for the answer or reads it.
#[derive(Default)]
pub(super) struct Cut(Mutex<State>);

enum State {
    /// With the waker of that code.
    Open(Option<Waker>),
    /// With the error, until it is taken.
    Cut(Verdict, Option<Error>),
}

// === impl Cut ===

impl Cut {
    /// Cuts the request off with `error`.
    pub(super) fn set(&self, error: Error) {
        let before = mem::replace(&mut *self.state(), State::Cut(Verdict::of(&error), Some(error)));
        if let State::Open(Some(waker)) = before {
            waker.wake();
        }
    }

    /// Resolves once, with the error, when the request was cut off.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Error> {
        match &mut *self.state() {
            State::Open(waker) => match waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            },
            State::Cut(_, error) => return error.take().map_or(Poll::Pending, Poll::Ready),
        }
        Poll::Pending
    }

    /// The error, if the request was cut off and the error was not taken yet.
    pub(super) fn take(&self) -> Option<Error> {
        match &mut *self.state() {
            State::Open(_) => None,
            State::Cut(_, error) => error.take(),
        }
    }

    /// The verdict of the call, if the request was cut off.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        match &*self.state() {
            State::Open(_) => None,
            State::Cut(verdict, _) => Some(*verdict),
        }
    }

    /// No code panics while it holds the lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for State {
    fn default() -> Self {
        State::Open(None)
    }
}
