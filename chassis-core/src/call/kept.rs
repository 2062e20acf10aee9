//! What stays behind of a call while an attempt at it is under way, so that another can be made.
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use smallvec::SmallVec;

use super::{
    Body, Call, CallOptions, Invocation, Target, Verdict,
    completion::{Completion, Of, Scope, verdict_of_drop},
    earlier,
};
use crate::{
    Error,
    clock::Instant,
    cluster::Node,
    layer::{route::Choice, trace::TraceContext},
    policy::Policy,
    protocol::Protocol,
};

/// What further attempts are made of, but for the body, and whoever listens to the call as a whole.
///
/// Every call that may be retried is kept, and hardly any is: so it is no whole call, and its headers are
/// a plain list, which is the cheapest copy.
pub(crate) struct Kept {
    pub(crate) protocol: &'static dyn Protocol,
    pub(crate) method: Method,
    pub(crate) below_retry: bool,
    pub(crate) options: CallOptions,
    pub(crate) policy: Arc<Policy>,
    pub(crate) tried: SmallVec<[Arc<Node>; 2]>,
    pub(crate) previous_attempts: u32,
    target: Target,
    uri: Uri,
    headers: SmallVec<[(HeaderName, HeaderValue); HEADERS]>,
    started: Instant,
    deadline: Option<Instant>,
    head_by: Option<Instant>,
    peer: Option<std::net::IpAddr>,
    trace: Option<Arc<TraceContext>>,
    choice: Option<Choice>,
    extensions: http::Extensions,
    listeners: Scope,
}

/// So many headers are kept without another allocation: what a stub sends, and a few of the caller's.
const HEADERS: usize = 4;

// === impl Kept ===

impl Kept {
    /// Takes over from `call`, which goes on as the first attempt.
    pub(crate) fn of(call: &mut Invocation) -> Box<Self> {
        let call = &mut *call.0;
        let apart = Scope::nobodys(&call.completion.call);
        let mut kept = Box::new(Kept {
            protocol: call.protocol,
            method: call.method.clone(),
            below_retry: call.below_retry,
            options: call.options.clone(),
            policy: call.policy.clone(),
            tried: call.tried.clone(),
            previous_attempts: call.previous_attempts,
            target: call.target.clone(),
            uri: call.uri.clone(),
            headers: SmallVec::new(),
            started: call.started,
            deadline: call.deadline,
            head_by: call.head_by,
            peer: call.peer,
            trace: call.trace.clone(),
            choice: call.choice.clone(),
            extensions: call.extensions.clone(),
            listeners: std::mem::replace(&mut call.completion.call, apart),
        });
        kept.headers.extend(call.metadata.iter().map(|(name, value)| (name.clone(), value.clone())));
        kept
    }

    /// Another attempt, which starts `now`, with what remains of its body.
    pub(crate) fn attempt(&self, now: Instant, body: Body) -> Invocation {
        let mut metadata = HeaderMap::with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            metadata.append(name.clone(), value.clone());
        }
        Invocation(Box::new(Call {
            protocol: self.protocol,
            target: self.target.clone(),
            method: self.method.clone(),
            uri: self.uri.clone(),
            status: StatusCode::OK,
            metadata,
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
            body,
            request: None,
            // Nobody listens to the call there, but its time is up when this one's is.
            completion: Completion { call: Scope::nobodys(&self.listeners), attempt: Scope::new(now) },
        }))
    }

    /// When the head of an answer is too late.
    pub(crate) fn bound(&self) -> Option<Instant> {
        earlier(self.deadline, self.head_by)
    }

    /// Ends the call with `error`.
    pub(crate) fn refuse(mut self, error: Error) -> Error {
        self.settle(Verdict::of(&error));
        error
    }

    /// Who listens to the call; nobody does here any more.
    pub(super) fn take_listeners(&mut self) -> Scope {
        let nobody = Scope::nobodys(&self.listeners);
        std::mem::replace(&mut self.listeners, nobody)
    }

    fn settle(&mut self, verdict: Verdict) {
        let of = Of { target: &self.target, policy: &self.policy, protocol: self.protocol, node: None };
        self.listeners.judge(verdict, &of, &mut None);
        self.listeners.end(&self.policy, None);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.listeners.has_ended() {
            self.settle(verdict_of_drop(self.listeners.verdict(), |now| self.listeners.is_expired(now)));
        }
    }
}
