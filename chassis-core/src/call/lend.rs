//! Attempts at a call: it is lent to each, and comes back with the outcome, to be lent again.
//!
//! Between it and its connection a call may get lost: in a layer of the user's, or where the time of an
//! attempt is up. Then a twin is sent, and the call itself stays.
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use smallvec::SmallVec;

use super::{
    Body, Call, Invocation, Reply, Verdict,
    completion::{Completion, Scope},
    home::Home,
};
use crate::{Error, clock::Instant};

/// A call that came back with an error.
pub(crate) enum Returned {
    /// Nothing of it was sent, all of it is there.
    Untouched(Invocation),
    /// An attempt failed, and used up what was sent.
    Used(Invocation),
}

/// The headers of a call, which an attempt uses up. A plain list is the cheapest copy: every call that may be
/// tried again has one, and hardly any needs it.
pub(crate) struct Headers(SmallVec<[(HeaderName, HeaderValue); HEADERS]>);

/// So many are kept without an allocation: what a stub sends, and a few of the caller's.
const HEADERS: usize = 4;

// === impl Headers ===

impl Headers {
    pub(crate) fn new() -> Self {
        Headers(SmallVec::new())
    }

    /// Keeps those of `map`.
    pub(crate) fn keep(&mut self, map: &HeaderMap) {
        for (name, value) in map {
            self.0.push((name.clone(), value.clone()));
        }
    }

    fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.0.len());
        for (name, value) in &self.0 {
            map.append(name.clone(), value.clone());
        }
        map
    }
}

// === impl Invocation, Reply ===

impl Invocation {
    /// Lends it to attempts: until it is taken back only those end.
    pub(crate) fn lend(&mut self) {
        self.0.lent = true;
    }

    /// Leaves a twin to be sent: what comes back is the call, with all who listen to it.
    pub(crate) fn stay(&mut self) -> Invocation {
        let mut home = self.twin();
        std::mem::swap(&mut home.0.completion.call, &mut self.0.completion.call);
        home
    }

    /// The same call without headers and body. Nobody listens to it, but its time is up when this one's is.
    pub(super) fn twin(&self) -> Invocation {
        let of = &*self.0;
        let nobodys = Scope::nobodys(&of.completion.call);
        let attempt = Scope::nobodys(&of.completion.attempt);
        Invocation(Box::new(Call {
            protocol: of.protocol,
            target: of.target.clone(),
            method: of.method.clone(),
            uri: of.uri.clone(),
            status: StatusCode::OK,
            metadata: HeaderMap::new(),
            started: of.started,
            deadline: of.deadline,
            head_by: of.head_by,
            peer: of.peer,
            trace: of.trace.clone(),
            below_retry: of.below_retry,
            options: of.options.clone(),
            policy: of.policy.clone(),
            choice: of.choice.clone(),
            node: None,
            tried: of.tried.clone(),
            previous_attempts: of.previous_attempts,
            extensions: of.extensions.clone(),
            body: Body::empty(),
            request: None,
            lent: false,
            completion: Completion { call: nobodys, attempt },
        }))
    }

    /// Another attempt, which starts `now`, by a twin of the call.
    pub(crate) fn send_twin(&self, headers: &Headers, body: Body, now: Instant) -> Invocation {
        self.twin().again(headers, body, now)
    }

    /// Another attempt, which starts `now`, by the call itself.
    pub(crate) fn again(mut self, headers: &Headers, body: Body, now: Instant) -> Invocation {
        let call = &mut *self.0;
        call.metadata = headers.to_map();
        call.body = body;
        call.completion.attempt.begin(now);
        self
    }

    /// Ends the call with `error`, whoever it was lent to.
    pub(crate) fn take_back(mut self, error: Error) -> Error {
        self.0.lent = false;
        self.refuse(error)
    }
}

impl Reply {
    /// The attempt has won: how it ended is how the call did. Of a twin's answer `home` is the call.
    pub(crate) fn won(&mut self, home: Option<Invocation>) {
        self.0.lent = false;
        if let Some(mut home) = home {
            let (own, call) = (&mut *self.0, &mut home.0.completion.call);
            if Arc::ptr_eq(&own.policy, &home.0.policy) && !own.completion.call.is_listened_to() {
                own.completion.call = std::mem::replace(call, Scope::nobodys(call));
            } else {
                // The answer to another call, which a layer of the user's put in the twin's place.
                if own.completion.call.is_ended() {
                    own.completion.call = Scope::like(call);
                }
                Home(home).follow(self);
            }
        }
        let own = &mut *self.0;
        own.completion.head_arrived(own.deadline);
        let known = own.completion.attempt.verdict();
        let mut now = own.completion.attempt.judged();
        let (of, completion) = own.told();
        match known {
            Some(verdict) => completion.call.judge(verdict, &of, &mut now),
            None => completion.call.begins_well(of.policy, None),
        }
    }

    /// The attempt has lost: gives back the call that was lent to it, without its answer.
    pub(crate) fn lost(self, verdict: Verdict) -> Invocation {
        let mut call = self.0;
        call.end_attempt(verdict);
        call.let_go();
        call.node = None;
        call.status = StatusCode::OK;
        Invocation(call)
    }
}
