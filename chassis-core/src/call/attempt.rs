//! Attempts at a call that may be retried.
//!
//! The retries own the call: its listeners, its headers and its body. Each attempt is an [`Invocation`] of its
//! own with the same content, and its end ends only that attempt. The call moves into the reply of the attempt
//! that it ends with ([`Reply::commit`]); until then an attempt may fail, be dropped or end late without effect
//! on the call.
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use smallvec::SmallVec;

use super::{
    Body, Call, Invocation, Reply,
    completion::{Completion, Scope},
    home::Home,
};
use crate::clock::Instant;

/// The headers of a call, kept for further attempts. A plain list is the cheapest copy: every call that may be
/// retried has one, and hardly any needs it.
pub(crate) struct Headers(SmallVec<[(HeaderName, HeaderValue); HEADERS]>);

/// The number of headers kept without an allocation: those that a tonic stub sends. For more headers, one
/// allocation costs less than the space for them would cost every call.
const HEADERS: usize = 3;

// === impl Headers ===

impl Headers {
    /// Copies the headers of `map`.
    pub(crate) fn of(map: &HeaderMap) -> Self {
        Headers(map.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.0.len());
        for (name, value) in &self.0 {
            map.append(name.clone(), value.clone());
        }
        map
    }
}

// === impl Invocation ===

impl Invocation {
    /// Moves all listeners of the call to `call`, a copy of it; `self` becomes its first attempt.
    pub(crate) fn begin_first_attempt(&mut self, call: &mut Call) {
        std::mem::swap(&mut call.completion.call, &mut self.0.completion.call);
    }
}

// === impl Call ===

impl Call {
    /// A copy of the call without headers and body. It has no listeners and is already closed, but has the same
    /// deadline. Inlined; otherwise the call would be created in one place and moved to another.
    #[inline(always)]
    pub(crate) fn copy(&self) -> Call {
        let closed = |scope: &Scope| Scope::closed(scope.started(), scope.bound());
        Call {
            protocol: self.protocol,
            target: self.target.clone(),
            method: self.method.clone(),
            uri: self.uri.clone(),
            status: StatusCode::OK,
            metadata: HeaderMap::new(),
            started: self.started,
            deadline: self.deadline,
            head_by: self.head_by,
            peer: self.peer,
            trace: self.trace.clone(),
            below_retry: self.below_retry,
            options: self.options.clone(),
            policy: self.policy.clone(),
            choice: self.choice.clone(),
            node: None,
            tried: self.tried.clone(),
            previous_attempts: self.previous_attempts,
            extensions: self.extensions.clone(),
            body: Body::empty(),
            request: None,
            checks: self.checks.as_ref().map(|checks| Box::new(checks.again())),
            completion: Completion {
                call: closed(&self.completion.call),
                attempt: closed(&self.completion.attempt),
            },
        }
    }

    /// Creates another attempt, which starts `now`.
    pub(crate) fn begin_attempt(&self, headers: &Headers, body: Body, now: Instant) -> Invocation {
        let mut attempt = Box::new(self.copy());
        attempt.metadata = headers.to_map();
        attempt.body = body;
        attempt.completion.attempt = Scope::new(now);
        Invocation(attempt)
    }
}

// === impl Reply ===

impl Reply {
    /// Ends `call` together with this attempt: moves all of its listeners here.
    pub(crate) fn commit(&mut self, call: &mut Call) {
        let own = &mut *self.0;
        if !Arc::ptr_eq(&own.policy, &call.policy) || own.completion.call.is_listened_to() {
            return self.commit_foreign(call);
        }
        let closed = Scope::closed(call.completion.call.started(), None);
        own.completion.call = std::mem::replace(&mut call.completion.call, closed);
        self.judge_call();
    }

    /// The same if a user's layer answered with the reply to another call.
    #[cold]
    fn commit_foreign(&mut self, call: &mut Call) {
        let mut listening = call.copy();
        std::mem::swap(&mut listening.completion.call, &mut call.completion.call);
        let own = &mut self.0.completion.call;
        if own.is_ended() {
            *own = Scope::like(&listening.completion.call);
        }
        Home::from(listening).follow(self);
        self.judge_call();
    }

    /// Judges the call by its attempt: by the verdict if it is known, otherwise as an answer that begins well.
    fn judge_call(&mut self) {
        let own = &mut *self.0;
        own.completion.head_arrived(own.deadline);
        let known = own.completion.attempt.verdict();
        let mut now = own.completion.attempt.judged();
        let (of, completion) = own.for_listeners();
        match known {
            Some(verdict) => completion.call.judge(verdict, &of, &mut now),
            None => completion.call.begins_well(of.policy, None),
        }
    }
}
