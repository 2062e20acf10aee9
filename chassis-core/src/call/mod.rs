//! A call on its way through the pipeline, and its answer on the way back.
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

/// A call on its way to the service that answers it. One pointer moves through the layers.
///
/// The owner answers it ([`answered`](Self::answered)), refuses it ([`refuse`](Self::refuse)), or passes it on.
/// Dropping it means that the caller cancelled, or that its time was up.
pub struct Invocation(Box<Call>);

/// The same box on the way back, with head and body of the answer.
pub struct Reply(Box<Call>);

/// The contents of an [`Invocation`] and of a [`Reply`].
pub struct Call {
    /// The protocol, which reads verdicts and writes refusals.
    pub(crate) protocol: &'static dyn Protocol,
    /// The service and the operation of the call.
    pub target: Target,
    /// The HTTP method; POST if the protocol has none.
    pub method: Method,
    /// Path and query, as sent.
    pub uri: Uri,
    /// The status of the answer; 200 until there is one, and for protocols without a status.
    pub status: StatusCode,
    /// HTTP headers or gRPC metadata: of the request, then of the answer.
    pub metadata: HeaderMap,
    /// The start of the call. The clock is read here, and again only after a wait and for each attempt.
    pub(crate) started: Instant,
    /// The deadline of the caller, for the end of the body. It is sent with the call.
    pub(crate) deadline: Option<Instant>,
    /// The time by which the head of the answer must have arrived: a local limit that is not sent.
    pub(crate) head_by: Option<Instant>,
    /// The address of the caller, if the call arrived over a network.
    pub peer: Option<std::net::IpAddr>,
    /// The trace of the call, if it is part of one.
    pub trace: Option<Arc<TraceContext>>,
    /// Whether the call that is being handled here is a retry. If so, this one is not retried by default.
    pub(crate) below_retry: bool,
    /// The options of this call that its caller set.
    pub options: CallOptions,
    /// The policy of the call: one consistent snapshot, set by the route layer.
    pub(crate) policy: Arc<Policy>,
    /// The choice of the matching rule: only nodes with these labels. Set by the route layer.
    pub(crate) choice: Option<Choice>,
    /// It is notified of the end of the attempt, so only this module may change it.
    node: Option<Arc<Node>>,
    /// The nodes of earlier attempts at this call: others are preferred, if there are any.
    pub(crate) tried: SmallVec<[Arc<Node>; 2]>,
    /// The number of earlier attempts: by this process, or by the caller if it sends the number.
    pub previous_attempts: u32,
    /// Typed values of users and edges.
    pub extensions: http::Extensions,
    /// The message, or the stream of messages: of the request, then of the answer.
    pub body: Body,
    /// Stops the sending of the request when the answer has ended or is unwanted.
    request: Option<Abort>,
    /// The checks of layers, which run before the answer is judged; `None` for most calls.
    checks: Option<Box<Checks>>,
    completion: Completion,
}

/// The body of an answer outside the pipeline: notifies the call of its end, and enforces the deadline until
/// then.
pub struct ReplyBody {
    call: Box<Call>,
    timer: Option<Pin<Box<Sleep>>>,
    /// The remaining bytes, if the answer is complete with its last byte and nothing else shows its end.
    left: Option<u64>,
}

// === impl Invocation ===

impl Invocation {
    /// A call to `target`, starting now, without a policy yet.
    pub fn new(protocol: &'static dyn Protocol, target: Target) -> Self {
        Self::from_parts(protocol, target, Uri::default(), HeaderMap::new(), Body::empty())
    }

    /// The same with the URI, the metadata and the body, which costs less than setting these fields afterwards.
    pub fn from_parts(
        protocol: &'static dyn Protocol,
        target: Target,
        uri: Uri,
        metadata: HeaderMap,
        body: Body,
    ) -> Self {
        let now = Instant::now();
        // Allocated first, so that the value is not moved afterwards.
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

    /// A second call with the same content, if its body is complete: with the same policy, the same deadline,
    /// and the same node if one is picked. It has no listeners, so it holds no permit and no place.
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

    /// Adds `listener` for the end of the whole call; it gets `token` back.
    pub fn listen(&mut self, listener: Arc<dyn Listener>, token: u64) {
        self.0.completion.call.listen(listener, token);
    }

    /// Adds `listener` for the end of this attempt; it gets `token` back.
    pub fn listen_attempt(&mut self, listener: Arc<dyn Listener>, token: u64) {
        self.0.completion.attempt.listen(listener, token);
    }

    /// Adds a listener of the policy for the end of the whole call.
    pub(crate) fn listen_built_in(&mut self, listener: BuiltIn) {
        self.0.completion.call.listen_built_in(listener);
    }

    /// Sets the node of the attempt; it gave `token` for it and is notified of its end.
    pub(crate) fn send_to(&mut self, node: Arc<Node>, token: u64) {
        self.0.node = Some(node);
        self.0.completion.attempt.listen_built_in(BuiltIn::Node(token));
    }

    /// Adds a listener of the policy for the end of this attempt.
    pub(crate) fn listen_attempt_built_in(&mut self, listener: BuiltIn) {
        self.0.completion.attempt.listen_built_in(listener);
    }

    /// Sets another policy, before any of its parts has begun to count the call.
    pub(crate) fn set_policy(&mut self, policy: Arc<Policy>) {
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

    /// Starts an attempt at `now`; listeners of an earlier one have been notified of its end.
    pub fn begin_attempt(&mut self, now: Instant) {
        self.0.completion.attempt.begin(now);
    }

    /// Restarts the current attempt `now`: it waited until here, which counts neither for its time limit nor
    /// for its metrics. Every layer that delays the call must call it.
    pub(crate) fn attempt_waited(&mut self, now: Instant) {
        self.0.completion.attempt.starts(now);
    }

    /// The start of the current attempt.
    pub fn attempt_started(&self) -> Instant {
        self.0.completion.attempt.started()
    }

    /// Ends the attempt with `error`; the call continues. Returns the node that the attempt had.
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

    /// Stops the sending of the request when the answer has ended or is unwanted.
    pub fn set_request_abort(&mut self, abort: Abort) {
        self.0.request = Some(abort);
    }
}

// === impl Reply ===

impl Reply {
    /// The verdict, if it is known already.
    pub fn verdict(&self) -> Option<Verdict> {
        self.0.completion.verdict()
    }

    /// Ends the answer here, unread; the verdict follows from the part that has arrived.
    pub(crate) fn discard(self) {}

    /// The body outside the pipeline; take `status` and `extensions` before. If `metadata` declares the length
    /// of the answer, it must stay until here; [`into_parts`](Self::into_parts) ensures that.
    pub fn into_body(self) -> ReplyBody {
        let mut call = self.0;
        let mut left = None;
        if call.body.is_end_stream() {
            call.end();
        } else if call.completion.verdict().is_none() {
            left = call.protocol.length(&call.method, call.status, &call.metadata, &call.body);
            if left == Some(0) {
                // Its head was judged, and no other event can report that it is late.
                let _ = call.finish(None);
            }
        }
        ReplyBody { call, timer: None, left }
    }

    /// Status, metadata and extensions of the answer, and its body outside the pipeline.
    pub fn into_parts(mut self) -> (StatusCode, HeaderMap, http::Extensions, ReplyBody) {
        let (status, extensions) = (self.status, std::mem::take(&mut self.extensions));
        let mut body = self.into_body();
        (status, std::mem::take(&mut body.call.metadata), extensions, body)
    }
}

// === impl Call ===

impl Call {
    /// Ends the call with `error`; returns the node of its attempt.
    pub(crate) fn fail(&mut self, error: Error) -> (Error, Option<Arc<Node>>) {
        let error = self.in_time(error);
        self.settle(Verdict::of(&error));
        (error.of_hop(|| Hop::received(self)), self.node.take())
    }

    fn judge(&mut self, verdict: Verdict) {
        let (of, completion) = self.for_listeners();
        let mut now = None;
        completion.attempt.judge(verdict, &of, &mut now);
        completion.call.judge(verdict, &of, &mut now);
    }

    /// The head of a good answer has arrived, and a part of the body is missing.
    fn begins_well(&mut self) {
        let (of, completion) = self.for_listeners();
        completion.attempt.begins_well(of.policy, of.node);
        completion.call.begins_well(of.policy, None);
    }

    fn settle(&mut self, verdict: Verdict) {
        self.judge(verdict);
        self.end();
    }

    /// The verdict according to the head of the answer, together with the end or the trailers if they are
    /// available.
    fn judge_head(&self) -> Option<Verdict> {
        let head = self.protocol.judge_head(self.status, &self.metadata);
        match (head, self.body.is_end_stream()) {
            (Some(verdict), _) => Some(verdict),
            (None, true) => Some(self.protocol.judge_end(self.status, None)),
            (None, false) => self.body.ready_trailers().map(|t| self.protocol.judge_end(self.status, t)),
        }
    }

    /// The same for an answer with statements that must be checked: removes those about another hop, and
    /// reports a cancellation as a timeout if the time was up.
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

    /// The answer is complete: it determines the verdict, if that is not known already.
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
        // A handler has answered, at least with a head.
        self.settle(Verdict { maybe_executed: true, ..verdict });
        Ok(())
    }

    /// A call that was reset or cancelled after its deadline ended because of the deadline: the called service
    /// observes the same deadline, and may notice it first.
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

    /// The number of this attempt, as sent: for an incoming retry, the first attempt is not number 0.
    pub(crate) fn attempt_number(&self) -> u32 {
        self.previous_attempts.max(u32::from(self.below_retry))
    }

    fn end_attempt(&mut self, verdict: Verdict) {
        let (of, completion) = self.for_listeners();
        completion.attempt.judge(verdict, &of, &mut None);
        completion.attempt.end(of.policy, of.node);
    }

    fn end(&mut self) {
        let (of, completion) = self.for_listeners();
        completion.attempt.end(of.policy, of.node);
        completion.call.end(of.policy, None);
        self.request = None;
    }

    /// The data for listeners, and the listeners.
    fn for_listeners(&mut self) -> (Of<'_>, &mut Completion) {
        let Call { target, policy, protocol, node, tried, choice, completion, .. } = self;
        let (protocol, node, choice) = (*protocol, node.as_deref(), choice.as_ref());
        (Of { target, policy, protocol, node, tried, choice }, completion)
    }

    /// The node of an attempt, once one is picked.
    pub fn node(&self) -> Option<&Arc<Node>> {
        self.node.as_ref()
    }

    /// The policy of the call: one consistent snapshot, set by the route layer.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// How this protocol reads verdicts and writes refusals.
    pub fn protocol(&self) -> &'static dyn Protocol {
        self.protocol
    }

    /// When the call began: the one clock read on the way in.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// When the call is over for its caller, to the end of the body; `None`: it has no deadline. It travels on.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Ends the call at `at`, unless it ends before: a deadline can become earlier, and never later.
    pub fn shorten_deadline(&mut self, at: Instant) {
        self.deadline = earlier(self.deadline, Some(at));
    }

    /// Ends the call when `time` has passed since it began, unless it ends before. A time beyond what the clock can
    /// count is no bound.
    pub fn end_within(&mut self, time: std::time::Duration) {
        if let Some(at) = self.started.checked_add(time) {
            self.shorten_deadline(at);
        }
    }

    /// Nodes that attempts of this call went to before; a picker prefers others.
    pub fn tried(&self) -> &[Arc<Node>] {
        &self.tried
    }

    /// The earlier of the deadline and the limit for the head.
    pub fn bound(&self) -> Option<Instant> {
        earlier(self.deadline, self.head_by)
    }

    /// The remaining time until the deadline at `now`.
    pub fn remaining(&self, now: Instant) -> Option<std::time::Duration> {
        self.deadline.map(|at| at.saturating_duration_since(now))
    }
}

/// The earlier of two optional limits.
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
    /// The call of the answer.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// The verdict, if it is known already.
    pub fn verdict(&self) -> Option<Verdict> {
        self.call.completion.verdict()
    }

    /// Ends the answer with `error`, which its reader found. The rest is not read.
    pub fn fail(&mut self, error: &Error) {
        self.call.body = Body::empty();
        self.call.settle(Verdict::of(error));
    }

    /// Counts the bytes passed to the reader. Returns whether the last byte was among them: readers stop there,
    /// as HTTP/1.1 does with a known length, and do not poll the end.
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
        // A reader that is slower than the sender never waits, and needs no timer to detect that it is late.
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
                // A peer that has sent a head has executed the call, however the rest of the answer ends.
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

/// Converts failing replies to errors, for layers that handle only errors.
impl Reply {
    /// The failing answer as an error; `None` if it has succeeded, or is not known yet to fail.
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
    /// The view of the call for matchers.
    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject { target: &self.target, method: &self.method, uri: &self.uri, metadata: &self.metadata }
    }
}
