//! What stays behind of a call while an attempt at it is under way, so that another can be made.
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::{
    Body, Call, Invocation,
    completion::{Completion, Scope},
};
use crate::{Error, call::Verdict};

/// A call without its body, and whoever listens to it as a whole. Its headers are a plain list: most
/// calls are never attempted again, and a list is the cheapest copy.
pub(crate) struct Kept {
    pub(crate) call: Box<Call>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

// === impl Kept ===

impl Kept {
    /// Takes over from `call`, which goes on as the first attempt.
    pub(crate) fn of(call: &mut Invocation) -> Self {
        let mut headers = Vec::with_capacity(call.metadata.len());
        headers.extend(call.metadata.iter().map(|(name, value)| (name.clone(), value.clone())));
        let completion = call.0.completion.split();
        Kept { call: call.copy(completion), headers }
    }

    /// Another attempt, which starts `now`, with what remains of its body.
    pub(crate) fn attempt(&self, now: Instant, body: Body) -> Invocation {
        let mut attempt = self.call.copy(self.call.completion.another(now));
        attempt.metadata = HeaderMap::with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            attempt.metadata.append(name.clone(), value.clone());
        }
        attempt.body = body;
        Invocation(attempt)
    }

    /// Ends the call with `error`.
    pub(crate) fn refuse(mut self, error: Error) -> Error {
        self.call.settle(Verdict::of(&error));
        error
    }

    pub(super) fn completion(&mut self) -> &mut Completion {
        &mut self.call.completion
    }
}

impl Call {
    /// All but headers, body and node.
    fn copy(&self, completion: Completion) -> Box<Call> {
        Box::new(Call {
            protocol: self.protocol,
            target: self.target.clone(),
            method: self.method.clone(),
            uri: self.uri.clone(),
            status: self.status,
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
            completion,
        })
    }
}

impl Completion {
    /// Leaves the attempt as it is, and splits off who listens to the call.
    fn split(&mut self) -> Self {
        let apart = Scope::nobodys(&self.call);
        let attempt = Scope::nobodys(&self.call);
        Completion { call: std::mem::replace(&mut self.call, apart), attempt }
    }

    /// One more attempt: nobody listens to the call there, but its time is up when this one's is.
    fn another(&self, now: Instant) -> Self {
        Completion { call: Scope::nobodys(&self.call), attempt: Scope::new(now) }
    }
}
