//! Keeps the listeners of a call while the user's layers have it.
//!
//! A user's layer may continue with another [`Invocation`], create several of them, answer with the reply of
//! another pipeline, or keep the call for ever. Resources that were counted above it (a permit, a place at a
//! node, a probe) must still be released. So the listeners do not enter the layer: they stay with the future of
//! the stage, which notifies them of the end according to the answer or the error that the layers return,
//! whichever call that belongs to. If the future is dropped, they are notified then.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    Call, CallError, Failed, Invocation, Reply, Verdict,
    completion::{Completion, Listener, Of, Outcome, Scope, Tried},
};
use crate::{clock::Instant, cluster::Node};

/// A copy of a call that the user's layers have, with all listeners so far.
pub(crate) struct Home(Invocation);

/// The same, once there is an answer that decides the end of the call.
struct Following(Mutex<Invocation>);

/// Tokens: the scope that ended.
const ATTEMPT: u64 = 0;
const CALL: u64 = 1;

// === impl Home ===

impl Home {
    /// `None` if there are no listeners yet.
    pub(crate) fn of(call: &mut Invocation) -> Option<Self> {
        if !call.0.completion.is_listened_to() {
            return None;
        }
        let mut home = Invocation(Box::new(call.0.copy()));
        home.0.node.clone_from(&call.0.node);
        let own = &mut call.0.completion;
        let goes_on = Completion { call: Scope::beside(&own.call), attempt: Scope::beside(&own.attempt) };
        home.0.completion = std::mem::replace(own, goes_on);
        // The limit of the call may be set below the layer; a call that is dropped after it was late.
        if let Some(bound) = home.0.bound() {
            home.0.completion.call.expires(bound);
        }
        Some(Home(home))
    }

    /// From here on the call ends together with `reply`.
    pub(crate) fn follow(self, reply: &mut Reply) {
        let Home(mut home) = self;
        let verdict = reply.0.completion.verdict();
        let Call { completion: own, node, tried, .. } = &mut *reply.0;
        // The wait of a call in a layer does not count as time of the attempt.
        home.0.completion.attempt.starts(own.attempt.started());
        let following = Arc::new(Following(Mutex::new(home)));
        for (scope, token) in [(&mut own.attempt, ATTEMPT), (&mut own.call, CALL)] {
            if let Some(verdict) = scope.verdict() {
                following.home().judge_scope(
                    token == CALL,
                    verdict,
                    scope.judged(),
                    (node.as_deref(), tried),
                );
            }
            if scope.is_ended() {
                following.ended(token);
            } else {
                scope.listen(following.clone(), token);
            }
        }
        if verdict.is_none() {
            following.home().begins_well();
        }
    }

    /// There was no answer. A call that is given back with the error continues, and gets the listeners of the
    /// whole call.
    pub(crate) fn fail<E: CallError>(self, error: E) -> E {
        let Home(mut home) = self;
        let mut failed: Failed = error.into();
        let verdict = Verdict::of(&failed);
        match failed.take_unsent() {
            Some(mut call) => {
                home.0.end_attempt(verdict);
                call.0.completion.call.listen(Arc::new(Following(Mutex::new(home))), CALL);
                failed.returning(call).into()
            }
            None => {
                if home.0.node.is_none() {
                    home.0.node = failed.node().cloned(); // picked below the layers
                }
                home.0.settle(verdict);
                failed.or_at(home.0.node.take()).into()
            }
        }
    }
}

impl From<Call> for Home {
    fn from(call: Call) -> Self {
        Home(Invocation(Box::new(call)))
    }
}

// === impl Following ===

impl Following {
    /// A listener that panicked was notified; the others are notified afterwards.
    fn home(&self) -> MutexGuard<'_, Invocation> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener for Following {
    fn judged(&self, token: u64, outcome: &Outcome<'_>) {
        let went = (outcome.node, outcome.tried);
        self.home().judge_scope(token == CALL, outcome.verdict, Some(outcome.now), went);
    }

    fn ended(&self, token: u64) {
        self.home().end_scope(token == CALL);
    }
}

// === impl Invocation ===

impl Invocation {
    /// `went`: the nodes of the attempt, and of earlier ones, below the layers.
    fn judge_scope(
        &mut self,
        is_call: bool,
        verdict: Verdict,
        mut now: Option<Instant>,
        (node, tried): (Option<&Node>, &Tried),
    ) {
        let (of, completion) = self.0.for_listeners();
        match is_call {
            true => completion.call.judge(verdict, &Of { node, tried, ..of }, &mut now),
            false => completion.attempt.judge(verdict, &of, &mut now),
        }
    }

    fn begins_well(&mut self) {
        let (of, completion) = self.0.for_listeners();
        completion.attempt.begins_well(of.policy, of.node);
        completion.call.begins_well(of.policy, None);
    }

    fn end_scope(&mut self, is_call: bool) {
        let (of, completion) = self.0.for_listeners();
        match is_call {
            true => completion.call.end(of.policy, None),
            false => completion.attempt.end(of.policy, of.node),
        }
    }
}
