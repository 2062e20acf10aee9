//! Notifies each listener of the end of a call, exactly once.
//!
//! There are two events: *judged*, when the verdict is known, and *ended*, when nothing is in flight any more.
//! A call has two scopes: itself, and its current attempt.
use std::sync::Arc;

use smallvec::SmallVec;

use crate::{
    algorithm::circuit::Token,
    clock::Instant,
    cluster::{Node, UNGUARDED},
    plugin::protocol::Protocol,
    policy::Policy,
    thread::THREAD,
    types::{Choice, Origin, Reason, Target, Verdict},
};

/// A listener for the end of a call or of an attempt. Each method is called once, in this order, on the thread
/// that detects the event; it must be quick.
pub trait Listener: Send + Sync + 'static {
    /// The verdict is known: from the head, the trailers, an error, or because the call was dropped.
    fn judged(&self, token: u64, outcome: &Outcome<'_>);

    /// Nothing is in flight any more: release held resources.
    fn ended(&self, token: u64);
}

/// The outcome that a listener gets.
pub struct Outcome<'a> {
    /// The verdict.
    pub verdict: Verdict,
    /// The service and the operation of the call.
    pub target: &'a Target,
    /// The policy of the call.
    pub policy: &'a Arc<Policy>,
    /// The protocol of the call.
    pub protocol: &'static dyn Protocol,
    /// The time at which the call, or the attempt, started.
    pub started: Instant,
    /// The time at which the verdict became known.
    pub now: Instant,
    /// The node of the attempt, and the nodes of earlier attempts.
    pub(crate) node: Option<&'a Node>,
    pub(crate) tried: &'a Tried,
    /// The labels that its node had to have, if its route or its caller chose some.
    pub(crate) choice: Option<&'a Choice>,
}

/// The data of a call that its scope passes to listeners with the verdict.
pub(crate) struct Of<'a> {
    pub(crate) target: &'a Target,
    pub(crate) policy: &'a Arc<Policy>,
    pub(crate) protocol: &'static dyn Protocol,
    /// The node of the attempt.
    pub(crate) node: Option<&'a Node>,
    /// The nodes of earlier attempts.
    pub(crate) tried: &'a Tried,
    /// The labels that its node must have, if its route or its caller chose some.
    pub(crate) choice: Option<&'a Choice>,
}

/// Nodes that attempts of a call went to.
pub(crate) type Tried = SmallVec<[Arc<Node>; 2]>;

pub(crate) struct Completion {
    pub(crate) call: Scope,
    pub(crate) attempt: Scope,
}

pub(crate) struct Scope {
    started: Instant,
    expires: Option<Instant>,
    verdict: Option<Verdict>,
    /// The time at which listeners were notified of the verdict.
    judged: Option<Instant>,
    ended: bool,
    /// The listeners that are part of the policy or of the call: they need no reference of their own.
    built_in: u8,
    /// The token of the circuit that guards the call.
    breaker: u64,
    /// The token of the node that the attempt goes to.
    node: u64,
    listeners: SmallVec<[(Arc<dyn Listener>, u64); 1]>,
}

/// A listener that is part of a call's policy, or of the call itself.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BuiltIn {
    Metrics,
    Concurrency,
    /// With the token of its circuit.
    Breaker(u64),
    Attempts,
    /// The node of an attempt, with its token.
    Node(u64),
}

const METRICS: u8 = 1;
const CONCURRENCY: u8 = 2;
const BREAKER: u8 = 4;
const ATTEMPTS: u8 = 8;
const NODE: u8 = 16;

/// Runs `drop`, which drops a call; returns whether more than half of its time had passed. If so, its caller
/// did not cancel hastily. (More than half, because callers count from the time at which they sent it.)
pub fn had_waited(drop: impl FnOnce()) -> bool {
    THREAD.with(|thread| thread.had_waited.set(false));
    drop();
    THREAD.with(|thread| thread.had_waited.take())
}

/// Calls that `drop` drops ended by a panic.
pub(crate) fn while_panicked(drop: impl FnOnce()) {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            THREAD.with(|thread| thread.drops_by_panic.set(false));
        }
    }
    THREAD.with(|thread| thread.drops_by_panic.set(true));
    let _reset = Reset; // also if `drop` itself panics: the next call on this thread did not
    drop();
}

// === impl Completion ===

impl Completion {
    pub(crate) fn new(now: Instant) -> Self {
        Completion { call: Scope::new(now), attempt: Scope::new(now) }
    }

    pub(crate) fn verdict(&self) -> Option<Verdict> {
        self.attempt.verdict.or(self.call.verdict)
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.call.ended && self.attempt.ended
    }

    /// Whether the call, or this attempt, has a listener.
    pub(crate) fn is_listened_to(&self) -> bool {
        self.call.is_listened_to() || self.attempt.is_listened_to()
    }

    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        self.call.is_expired(now) || self.attempt.is_expired(now)
    }

    /// The verdict on a call that the caller drops: its deadline passed, or the caller cancelled, which counts
    /// against no node.
    pub(crate) fn verdict_of_drop(&self) -> Verdict {
        self.verdict().unwrap_or_else(|| {
            THREAD.with(|thread| thread.had_waited.set(self.call.is_half_over(Instant::now())));
            if std::thread::panicking() || THREAD.with(|thread| thread.drops_by_panic.get()) {
                Verdict::failed(Reason::Panicked, Origin::Remote)
            } else if self.is_expired(Instant::now()) {
                Verdict::failed(Reason::DeadlineExceeded, Origin::Remote)
            } else {
                Verdict::failed(Reason::Cancelled, Origin::Local)
            }
        })
    }

    /// The head of the answer has arrived: from here on only the deadline limits the call.
    pub(crate) fn head_arrived(&mut self, deadline: Option<Instant>) {
        self.call.expires = deadline;
        self.attempt.expires = None;
    }
}

// === impl Scope ===

impl Scope {
    pub(super) fn new(started: Instant) -> Self {
        Scope {
            started,
            expires: None,
            verdict: None,
            judged: None,
            ended: false,
            built_in: 0,
            breaker: 0,
            node: 0,
            listeners: SmallVec::new(),
        }
    }

    /// A closed scope without listeners, whose time is up at `expires`.
    pub(super) fn closed(started: Instant, expires: Option<Instant>) -> Self {
        Scope { expires, ended: true, ..Scope::new(started) }
    }

    /// A scope with the times of `other` and its state, but without listeners.
    pub(super) fn beside(other: &Scope) -> Self {
        Scope { ended: other.ended, ..Self::like(other) }
    }

    /// A scope with the times of `other`.
    pub(super) fn like(other: &Scope) -> Self {
        Scope { expires: other.expires, ..Scope::new(other.started) }
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    pub(super) fn is_listened_to(&self) -> bool {
        self.built_in != 0 || !self.listeners.is_empty()
    }

    pub(crate) fn begin(&mut self, now: Instant) {
        debug_assert!(!self.is_listened_to(), "an attempt begins after the one before has ended");
        *self = Scope::new(now);
    }

    pub(crate) fn listen(&mut self, listener: Arc<dyn Listener>, token: u64) {
        self.listeners.push((listener, token));
    }

    pub(crate) fn listen_built_in(&mut self, listener: BuiltIn) {
        self.built_in |= match listener {
            BuiltIn::Metrics => METRICS,
            BuiltIn::Concurrency => CONCURRENCY,
            BuiltIn::Breaker(token) => {
                self.breaker = token;
                BREAKER
            }
            BuiltIn::Attempts => ATTEMPTS,
            BuiltIn::Node(token) => {
                self.node = token;
                NODE
            }
        };
    }

    /// Calls `notify` with each listener.
    fn each(&self, policy: &Policy, node: Option<&Node>, mut notify: impl FnMut(&dyn Listener, u64)) {
        if self.built_in & METRICS != 0
            && let Some(metrics) = &policy.metrics
        {
            notify(&**metrics, 0);
        }
        if self.built_in & CONCURRENCY != 0
            && let Some(bound) = &policy.concurrency
        {
            notify(&*bound.gauge, 0);
        }
        if self.built_in & BREAKER != 0
            && let Some(breaker) = &policy.breaker
        {
            notify(&*breaker.cell, self.breaker);
        }
        if self.built_in & ATTEMPTS != 0
            && let Some(attempts) = &policy.attempts
        {
            notify(&**attempts, 0);
        }
        if self.built_in & NODE != 0
            && let Some(node) = node
        {
            notify(node, self.node);
        }
        for (listener, token) in &self.listeners {
            notify(&**listener, *token);
        }
    }

    /// The attempt starts only now: before, it waited.
    pub(crate) fn starts(&mut self, now: Instant) {
        self.started = now;
    }

    pub(crate) fn expires(&mut self, at: Instant) {
        self.expires = Some(self.expires.map_or(at, |earlier| earlier.min(at)));
    }

    /// `now` is read if there is a listener, and then passed to all listeners of the same verdict.
    pub(crate) fn judge(&mut self, verdict: Verdict, of: &Of<'_>, now: &mut Option<Instant>) {
        if self.verdict.is_some() || self.ended {
            return;
        }
        self.verdict = Some(verdict);
        if self.is_listened_to() {
            let Of { target, policy, protocol, node, tried, choice } = *of;
            let now = *now.get_or_insert_with(Instant::now);
            self.judged = Some(now);
            let outcome = Outcome {
                verdict,
                target,
                policy,
                protocol,
                started: self.started,
                now,
                node,
                tried,
                choice,
            };
            self.each(policy, node, |listener, token| listener.judged(token, &outcome));
        }
    }

    /// The answer begins well: a probe has succeeded, however long the rest takes.
    #[inline]
    pub(crate) fn begins_well(&mut self, policy: &Policy, node: Option<&Node>) {
        let is_probe = |token: u64| token != UNGUARDED && Token::from_bits(token).is_probe();
        if (self.built_in & BREAKER != 0 && is_probe(self.breaker))
            || (self.built_in & NODE != 0 && is_probe(self.node))
        {
            self.probe_answered(policy, node);
        }
    }

    #[cold]
    fn probe_answered(&mut self, policy: &Policy, node: Option<&Node>) {
        if self.built_in & BREAKER != 0
            && let Some(breaker) = &policy.breaker
        {
            self.breaker = breaker.cell.answered(self.breaker, &breaker.config);
        }
        if self.built_in & NODE != 0
            && let Some(node) = node
        {
            self.node = node.answered(self.node, &policy.node_rules());
        }
    }

    pub(crate) fn end(&mut self, policy: &Policy, node: Option<&Node>) {
        if !std::mem::replace(&mut self.ended, true) && self.is_listened_to() {
            self.each(policy, node, |listener, token| listener.ended(token));
            self.built_in = 0;
            self.listeners.clear();
        }
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// The end of its time.
    pub(crate) fn bound(&self) -> Option<Instant> {
        self.expires
    }

    pub(crate) fn verdict(&self) -> Option<Verdict> {
        self.verdict
    }

    pub(crate) fn judged(&self) -> Option<Instant> {
        self.judged
    }

    fn is_half_over(&self, now: Instant) -> bool {
        self.expires.is_some_and(|at| now - self.started >= (at - self.started) / 2)
    }

    pub(super) fn is_expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|at| now >= at)
    }
}

// === impl Outcome ===

impl Outcome<'_> {
    /// Whether the last attempt went to a node that fails, while most other nodes that the call could go to do
    /// not.
    #[cold]
    pub(crate) fn is_of_an_outlier(&self) -> bool {
        let last = self.node.or_else(|| self.tried.last().map(|node| &**node));
        last.is_some_and(|node| node.is_outlier(self.now, self.choice))
    }
}
