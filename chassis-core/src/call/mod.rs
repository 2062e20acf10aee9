//! One call on its way through the pipeline, and its answer on the way back.
mod attempt;
mod check;
mod completion;
mod failed;
mod home;
mod hop;
mod options;

use std::{
    ops::{Deref, DerefMut},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderMap, Method, StatusCode, Uri};
use http_body::{Body as _, Frame, SizeHint};
use smallvec::SmallVec;
use tokio::time::Sleep;

use self::check::Checks;
use self::completion::{Completion, Of, Scope};
pub(crate) use self::{
    attempt::Headers,
    check::CallCheck,
    completion::{BuiltIn, while_panicked},
    home::Home,
};
pub use self::{
    completion::{Listener, Outcome, had_waited},
    failed::{CallError, Failed},
    options::{CallOptions, RequestExt},
};
use crate::{
    clock::Instant,
    cluster::Node,
    plugin::protocol::Protocol,
    policy::Policy,
    types::{
        Abort, Body, Choice, Code, Error, Hop, Origin, Reason, Target, TraceContext, Verdict,
        matching::Subject,
    },
};

/// A call on its way to where it is answered. One pointer moves through the layers.
///
/// Whoever holds it answers it ([`answered`](Self::answered)), refuses it ([`refuse`](Self::refuse)),
/// or passes it on. Dropping it says that the caller gave up, or that the time was up.
pub struct Invocation(Box<Call>);

/// The same box on its way back, with head and body of the answer.
pub struct Reply(Box<Call>);

/// What an [`Invocation`] and a [`Reply`] consist of.
pub struct Call {
    /// How this protocol reads verdicts and writes refusals.
    pub protocol: &'static dyn Protocol,
    /// Whom the call is for.
    pub target: Target,
    /// The HTTP method; POST where a protocol has none.
    pub method: Method,
    /// Path and query as they travel.
    pub uri: Uri,
    /// Status of the answer; 200 until there is one, and for protocols that have none.
    pub status: StatusCode,
    /// HTTP headers or gRPC metadata: of the request, then of the answer.
    pub metadata: HeaderMap,
    /// The one clock read on the way in; read again only after a wait and per attempt.
    pub started: Instant,
    /// When the call is over for its caller, to the end of the body. It travels on.
    pub deadline: Option<Instant>,
    /// When the head of the answer has to be there: a local bound that does not travel.
    pub head_by: Option<Instant>,
    /// Who called, where the call came in over a network.
    pub peer: Option<std::net::IpAddr>,
    /// The trace it is part of, if it is part of one.
    pub trace: Option<Arc<TraceContext>>,
    /// Is the call that is being handled here a retry? Then this one is not retried again by default.
    pub below_retry: bool,
    /// What the caller wants of this one call.
    pub options: CallOptions,
    /// The rules it lives under: one consistent snapshot, stamped by the route layer.
    pub(crate) policy: Arc<Policy>,
    /// What the rule that matched chose: only nodes with these labels. Stamped by the route layer.
    pub(crate) choice: Option<Choice>,
    /// Hears how the attempt ends, so nobody but us may change it.
    node: Option<Arc<Node>>,
    /// Nodes that attempts of this call went to before: others are better, if there are any.
    pub tried: SmallVec<[Arc<Node>; 2]>,
    /// Attempts made before this one: by us, or by our caller where it says so.
    pub previous_attempts: u32,
    /// Typed values of users and edges.
    pub extensions: http::Extensions,
    /// The message, or the stream of them: of the request, then of the answer.
    pub body: Body,
    /// Stops what is still being sent when the answer is over or unwanted.
    request: Option<Abort>,
    /// What layers want to know of the answer before it is judged; `None` for most calls.
    checks: Option<Box<Checks>>,
    completion: Completion,
}

/// The body of an answer as it leaves the pipeline: hears its end, enforces the deadline until then.
pub struct ReplyBody {
    call: Box<Call>,
    timer: Option<Pin<Box<Sleep>>>,
    /// How many bytes its reader still lacks, where the last of them is the end and nothing else tells it.
    left: Option<u64>,
}

// === impl Invocation ===

impl Invocation {
    /// A call to `target`, starting now, under no rules yet.
    pub fn new(protocol: &'static dyn Protocol, target: Target) -> Self {
        Self::from_parts(protocol, target, Uri::default(), HeaderMap::new(), Body::empty())
    }

    /// The same with the URI, the metadata and the body given, which costs less than setting these fields
    /// afterwards.
    pub fn from_parts(
        protocol: &'static dyn Protocol,
        target: Target,
        uri: Uri,
        metadata: HeaderMap,
        body: Body,
    ) -> Self {
        let now = Instant::now();
        // Allocated first, so that the call is made where it stays.
        let place = Box::new_uninit();
        Invocation(Box::write(
            place,
            Call {
                protocol,
                target,
                method: Method::POST,
                uri,
                status: StatusCode::OK,
                metadata,
                started: now,
                deadline: None,
                head_by: None,
                peer: None,
                trace: None,
                below_retry: false,
                options: CallOptions::default(),
                policy: Policy::none(),
                choice: None,
                node: None,
                tried: SmallVec::new(),
                previous_attempts: 0,
                extensions: http::Extensions::new(),
                body,
                request: None,
                checks: None,
                completion: Completion::new(now),
            },
        ))
    }

    /// Another call that says the same, where its body is all there: under the same rules, within the same
    /// time, to the same node if one is picked. Nobody listens to it, so it holds no permit and no place.
    ///
    /// For layers that pass a call on more than once.
    pub fn try_clone(&self) -> Option<Invocation> {
        let body = self.0.body.try_clone()?;
        let mut other = Invocation(Box::new(self.0.copy()));
        other.0.metadata.clone_from(&self.0.metadata);
        other.0.body = body;
        other.0.node.clone_from(&self.0.node);
        let own = &self.0.completion;
        other.0.completion = Completion { call: Scope::like(&own.call), attempt: Scope::like(&own.attempt) };
        Some(other)
    }

    /// Tells `listener` how the whole call ended; `token` comes back with it.
    pub fn listen(&mut self, listener: Arc<dyn Listener>, token: u64) {
        self.0.completion.call.listen(listener, token);
    }

    /// Tells `listener` how this attempt ended; `token` comes back with it.
    pub fn listen_attempt(&mut self, listener: Arc<dyn Listener>, token: u64) {
        self.0.completion.attempt.listen(listener, token);
    }

    /// Tells a listener of the policy's own how the whole call ended.
    pub(crate) fn listen_built_in(&mut self, listener: BuiltIn) {
        self.0.completion.call.listen_built_in(listener);
    }

    /// The attempt goes to `node`, which gave `token` for it and hears how it ends.
    pub(crate) fn send_to(&mut self, node: Arc<Node>, token: u64) {
        self.0.node = Some(node);
        self.0.completion.attempt.listen_built_in(BuiltIn::Node(token));
    }

    /// Tells a listener of the policy's own how this attempt ended.
    pub(crate) fn listen_attempt_built_in(&mut self, listener: BuiltIn) {
        self.0.completion.attempt.listen_built_in(listener);
    }

    /// Puts the call under other rules, before anything that they bring has begun to count it.
    pub fn set_policy(&mut self, policy: Arc<Policy>) {
        debug_assert!(!self.0.completion.is_listened_to(), "a listener that counts the call would lose it");
        self.0.policy = policy;
    }

    /// From `at` on, dropping the call means that its time was up.
    pub fn expires(&mut self, at: Instant) {
        self.0.completion.call.expires(at);
    }

    /// From `at` on, dropping this attempt means that its time was up.
    pub(crate) fn attempt_expires(&mut self, at: Instant) {
        self.0.completion.attempt.expires(at);
    }

    /// Starts an attempt at `now`; listeners of an earlier one have been told how it ended.
    pub fn begin_attempt(&mut self, now: Instant) {
        self.0.completion.attempt.begin(now);
    }

    /// The current attempt starts only `now`: until here it waited, and neither its time bound nor its
    /// figures are about that. To be called by every layer that let the call wait.
    pub(crate) fn attempt_waited(&mut self, now: Instant) {
        self.0.completion.attempt.starts(now);
    }

    /// When the current attempt started.
    pub fn attempt_started(&self) -> Instant {
        self.0.completion.attempt.started()
    }

    /// Ends the attempt with `error`; the call goes on. The node that it was to go to.
    fn end_unsent(&mut self, error: &Error) -> Option<Arc<Node>> {
        self.0.end_attempt(Verdict::of(error));
        self.0.node.take()
    }

    /// Turns the call into its answer. The verdict is given as soon as the head or the body allow it.
    pub fn answered(self, status: StatusCode, metadata: HeaderMap, body: Body) -> Reply {
        let mut call = self.0;
        call.status = status;
        call.metadata = metadata;
        call.body = body;
        call.completion.head_arrived(call.deadline);
        let refused = call.checks.is_some().then(|| call.check_answer()).flatten();
        let mut verdict = refused.or_else(|| call.judge_head());
        if refused.is_none() && verdict.is_some_and(|verdict| verdict.is_odd()) {
            verdict = call.judge_odd(verdict);
        }
        match verdict {
            Some(verdict) => call.judge(verdict),
            None => call.begins_well(),
        }
        Reply(call)
    }

    /// Stops the sending of the request when the answer is over or unwanted.
    pub fn set_request_abort(&mut self, abort: Abort) {
        self.0.request = Some(abort);
    }
}

// === impl Reply ===

impl Reply {
    /// The verdict, where it is known already.
    pub fn verdict(&self) -> Option<Verdict> {
        self.0.completion.verdict()
    }

    /// Ends the answer here, unread: what it said so far is its verdict.
    pub(crate) fn discard(self) {}

    /// The body as it leaves the pipeline; take `status` and `extensions` before. An answer whose `metadata`
    /// tells how long it is has to keep that until here: [`into_parts`](Self::into_parts) does.
    pub fn into_body(self) -> ReplyBody {
        let mut call = self.0;
        let mut left = None;
        if call.body.is_end_stream() {
            call.end();
        } else if call.completion.verdict().is_none() {
            left = call.protocol.length(&call.method, call.status, &call.metadata, &call.body);
            if left == Some(0) {
                // Its head has been judged, and there is nothing else that could say that it is late.
                let _ = call.finish(None);
            }
        }
        ReplyBody { call, timer: None, left }
    }

    /// Status, metadata and extensions of the answer, and its body as it leaves the pipeline.
    pub fn into_parts(mut self) -> (StatusCode, HeaderMap, http::Extensions, ReplyBody) {
        let (status, extensions) = (self.status, std::mem::take(&mut self.extensions));
        let mut body = self.into_body();
        (status, std::mem::take(&mut body.call.metadata), extensions, body)
    }
}

// === impl Call ===

impl Call {
    /// Ends the call with `error`; the node that it had gone to.
    pub(crate) fn fail(&mut self, error: Error) -> (Error, Option<Arc<Node>>) {
        let error = self.in_time(error);
        self.settle(Verdict::of(&error));
        (error.of_hop(|| Hop::received(self)), self.node.take())
    }

    fn judge(&mut self, verdict: Verdict) {
        let (of, completion) = self.told();
        let mut now = None;
        completion.attempt.judge(verdict, &of, &mut now);
        completion.call.judge(verdict, &of, &mut now);
    }

    /// The head of a good answer is here, and not yet all of it.
    fn begins_well(&mut self) {
        let (of, completion) = self.told();
        completion.attempt.begins_well(of.policy, of.node);
        completion.call.begins_well(of.policy, None);
    }

    fn settle(&mut self, verdict: Verdict) {
        self.judge(verdict);
        self.end();
    }

    /// The verdict that the head of the answer gives, together with the end or the trailers where these are there.
    fn judge_head(&self) -> Option<Verdict> {
        let head = self.protocol.judge_head(self.status, &self.metadata);
        match (head, self.body.is_end_stream()) {
            (Some(verdict), _) => Some(verdict),
            (None, true) => Some(self.protocol.judge_end(self.status, None)),
            (None, false) => self.body.ready_trailers().map(|t| self.protocol.judge_end(self.status, t)),
        }
    }

    /// The same where the answer says what is not to be believed unseen: takes off what is true of another hop,
    /// and tells of a cancellation that the time was up where it was.
    #[cold]
    fn judge_odd(&mut self, verdict: Option<Verdict>) -> Option<Verdict> {
        let hop = Hop::sent(self);
        let mut stripped = self.protocol.strip_foreign(&mut self.metadata, hop.as_ref());
        if let Some(trailers) = self.body.trailers_mut() {
            stripped |= self.protocol.strip_foreign(trailers, hop.as_ref());
        }
        let verdict = if stripped { self.judge_head() } else { verdict };
        if verdict.is_some_and(|verdict| self.is_late_cancel(&verdict)) {
            let error = self.too_late();
            (self.status, self.metadata, self.body) = self.protocol.refuse(&error);
            return Some(Verdict::of(&error));
        }
        verdict
    }

    /// The answer is whole: what it says is the verdict, if that is not known already.
    fn finish(&mut self, trailers: Option<&mut HeaderMap>) -> Result<(), Error> {
        if self.completion.verdict().is_some() {
            self.end();
            return Ok(());
        }
        let verdict = self.protocol.judge_end(self.status, trailers.as_deref());
        match verdict.is_odd() {
            true => self.finish_odd(verdict, trailers),
            false => {
                self.settle(verdict);
                Ok(())
            }
        }
    }

    #[cold]
    fn finish_odd(&mut self, verdict: Verdict, trailers: Option<&mut HeaderMap>) -> Result<(), Error> {
        if self.is_late_cancel(&verdict) {
            let error = self.too_late();
            self.settle(Verdict::of(&error));
            return Err(error);
        }
        let hop = Hop::sent(self);
        let mut verdict = verdict;
        if let Some(trailers) = trailers
            && self.protocol.strip_foreign(trailers, hop.as_ref())
        {
            verdict = self.protocol.judge_end(self.status, Some(trailers));
        }
        // A handler has answered, if only with a head.
        self.settle(Verdict { maybe_executed: true, ..verdict });
        Ok(())
    }

    /// Once its time is up, a call that was reset or cancelled ended for that: who is called watches the same
    /// deadline, and may be the first to notice.
    fn in_time(&self, error: Error) -> Error {
        let may_be_late =
            matches!(error.reason(), Reason::Cancelled | Reason::ConnectionLost | Reason::Internal);
        match error.origin() == Origin::Remote && may_be_late && self.is_late() {
            true => self.too_late().with_maybe_executed(error.maybe_executed()).with_source(error),
            false => error,
        }
    }

    fn is_late_cancel(&self, verdict: &Verdict) -> bool {
        verdict.code == Code::Cancelled && self.is_late()
    }

    fn is_late(&self) -> bool {
        let now = Instant::now();
        self.completion.is_expired(now) || self.deadline.is_some_and(|at| now >= at)
    }

    fn too_late(&self) -> Error {
        Error::remote(Reason::DeadlineExceeded, "the call was broken off at its deadline")
    }

    /// The number of this attempt, as it is sent: the first one of a call that is made for a retry is none.
    pub(crate) fn attempt_number(&self) -> u32 {
        self.previous_attempts.max(u32::from(self.below_retry))
    }

    fn end_attempt(&mut self, verdict: Verdict) {
        let (of, completion) = self.told();
        completion.attempt.judge(verdict, &of, &mut None);
        completion.attempt.end(of.policy, of.node);
    }

    fn end(&mut self) {
        let (of, completion) = self.told();
        completion.attempt.end(of.policy, of.node);
        completion.call.end(of.policy, None);
        self.request = None;
    }

    /// What listeners are told of the call, and who listens.
    fn told(&mut self) -> (Of<'_>, &mut Completion) {
        let Call { target, policy, protocol, node, tried, choice, completion, .. } = self;
        let (protocol, node, choice) = (*protocol, node.as_deref(), choice.as_ref());
        (Of { target, policy, protocol, node, tried, choice }, completion)
    }

    /// The node an attempt goes to, once one is picked.
    pub fn node(&self) -> Option<&Arc<Node>> {
        self.node.as_ref()
    }

    /// The rules it lives under: one consistent snapshot, stamped by the route layer.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// The earlier of the deadline and the bound on the head.
    pub fn bound(&self) -> Option<Instant> {
        earlier(self.deadline, self.head_by)
    }

    /// What remains of the deadline at `now`.
    pub fn remaining(&self, now: Instant) -> Option<std::time::Duration> {
        self.deadline.map(|at| at.saturating_duration_since(now))
    }
}

/// Of two bounds that there may be, the one that binds.
pub(crate) fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.completion.is_settled() {
            let verdict = self.checked_drop().unwrap_or_else(|| self.completion.verdict_of_drop());
            self.settle(verdict);
        }
    }
}

impl Deref for Invocation {
    type Target = Call;
    fn deref(&self) -> &Call {
        &self.0
    }
}

impl DerefMut for Invocation {
    fn deref_mut(&mut self) -> &mut Call {
        &mut self.0
    }
}

impl Deref for Reply {
    type Target = Call;
    fn deref(&self) -> &Call {
        &self.0
    }
}

impl DerefMut for Reply {
    fn deref_mut(&mut self) -> &mut Call {
        &mut self.0
    }
}

impl std::fmt::Debug for Invocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("Invocation");
        out.field("target", &self.target).field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("Reply");
        out.field("target", &self.target).field("status", &self.status).finish_non_exhaustive()
    }
}

// === impl ReplyBody ===

impl ReplyBody {
    /// The call it belongs to.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// The verdict, where it is known already.
    pub fn verdict(&self) -> Option<Verdict> {
        self.call.completion.verdict()
    }

    /// Ends the answer by `error`, which its reader found. What is still to come is not read.
    pub fn fail(&mut self, error: &Error) {
        self.call.body = Body::empty();
        self.call.settle(Verdict::of(error));
    }

    /// Counts what its reader gets. `true`: that was the last byte. Readers stop there, as HTTP/1.1 does where
    /// it knows the length, and do not look at the end.
    fn deliver(&mut self, frame: &Frame<bytes::Bytes>) -> bool {
        let Some(left) = &mut self.left else { return false };
        *left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
        *left == 0
    }

    fn expire(&mut self) -> Error {
        let message = "the deadline passed before the answer was whole";
        let error = Error::remote(Reason::DeadlineExceeded, message);
        self.fail(&error);
        error.of_hop(|| Hop::received(&self.call))
    }
}

impl http_body::Body for ReplyBody {
    type Data = bytes::Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Error>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.call.body).poll_frame(cx);
        // Whoever reads more slowly than the other side writes never waits, and needs no timer to be late.
        let is_late = |call: &Call| call.deadline.is_some_and(|at| Instant::now() >= at);
        match polled {
            Poll::Ready(Some(Ok(_))) if this.call.body.is_streaming() && is_late(&this.call) => {
                Poll::Ready(Some(Err(this.expire())))
            }
            Poll::Ready(Some(Ok(mut frame))) => {
                if this.deliver(&frame) || frame.is_trailers() || this.call.body.is_end_stream() {
                    this.call.finish(frame.trailers_mut())?;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.call.finish(None)?;
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                // A peer that has sent a head has worked for the call, however the rest of the answer ends.
                let error = this.call.in_time(error).with_maybe_executed(true);
                this.call.settle(Verdict::of(&error));
                Poll::Ready(Some(Err(error.of_hop(|| Hop::received(&this.call)))))
            }
            Poll::Pending => {
                let Some(deadline) = this.call.deadline else { return Poll::Pending };
                let timer =
                    this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
                std::task::ready!(timer.as_mut().poll(cx));
                Poll::Ready(Some(Err(this.expire())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.call.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.call.body.size_hint()
    }
}

/// An error that stands for an answer: what a layer that only knows errors makes of a failing reply.
impl Reply {
    /// The failing answer as an error; `None` while it may still turn out well, or did.
    pub fn as_error(&self) -> Option<Error> {
        let verdict = self.verdict().filter(|v| !v.is_success())?;
        let message = self.protocol.message(&self.metadata).unwrap_or_else(|| verdict.code.name().to_owned());
        let reason = verdict.reason.unwrap_or(Reason::Internal);
        let error = match verdict.origin {
            Origin::Local => Error::local(reason, message),
            Origin::Remote => Error::remote(reason, message),
        };
        Some(error.with_code(verdict.code).with_maybe_executed(verdict.maybe_executed))
    }
}

impl Call {
    /// The call as matchers see it.
    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject { target: &self.target, method: &self.method, uri: &self.uri, metadata: &self.metadata }
    }
}
