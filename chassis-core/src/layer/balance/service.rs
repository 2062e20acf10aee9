//! The layer and its service.

use std::sync::Arc;

use tower_service::Service;

use super::Balancer;
use crate::layer::{MaybeBoxed, forward_ready};
use crate::{
    call::{Call, Failed, Invocation, Listener, Outcome, Reply},
    clock::Instant,
    cluster::{
        Admitted, Candidates, Choosing, Chosen, Cluster, Collected, Connection, Known, Members, Node,
        Patience, Picker, Subset, Tiered, not_known,
    },
    event::Event,
    policy::Policy,
    types::{Choice, Code, Error, Reason, Side},
};

/// Sends every attempt to a node of `cluster`.
#[derive(Clone)]
pub(crate) struct BalanceLayer {
    cluster: Arc<Cluster>,
}

/// The service of [`BalanceLayer`].
#[derive(Clone)]
pub(crate) struct Balance<S> {
    inner: S,
    with: BalanceLayer,
}

enum Pick {
    /// This node has let the call in.
    Node(Arc<Node>, u64),
    /// None can take it yet, one may soon.
    Wait,
    /// The nodes have to be collected from many, or a picker has to be built for them.
    Prepare,
    /// There is none, and one may appear until this time.
    WaitUntil(Instant),
    /// The same, as soon as the service is announced.
    WaitForAnnouncement(Instant),
    /// None will.
    Refuse(Error),
}

/// Proposals of the picker before all nodes are looked at, after Finagle's `maxEffort`: 0.25⁴ < 1 %.
const MOST_PROPOSALS: usize = 4;
/// So many nodes are looked at for one that may get ready, where none is.
const MOST_LOOKED_AT: usize = 1_024;
/// So many nodes connect at once for calls that find none ready; the next ones once these have failed.
/// All of a small set, and of a hundred thousand not more than a process has sockets.
const MOST_CONNECTING: usize = 32;

// === impl BalanceLayer ===

impl BalanceLayer {
    /// Picks among the nodes of `cluster`, drawing from `random`.
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        BalanceLayer { cluster }
    }

    fn pick(&self, call: &Invocation, now: Instant) -> Pick {
        self.cluster.with_members(|members| self.pick_of(members, call, now, None))
    }

    /// `collected`: the nodes that were collected for this call.
    fn pick_of(
        &self,
        members: &Members,
        call: &Invocation,
        now: Instant,
        collected: Option<&Collected>,
    ) -> Pick {
        let chosen = match (members.known(), members.all().is_empty()) {
            (known, true) => return self.without_nodes(members, known, now),
            (None, false) => return Pick::Wait,
            (Some(_), false) => match collected.and_then(|collected| collected.of(members)) {
                Some(chosen) => chosen,
                None => resolve(members, call),
            },
        };
        let chosen = match (chosen, &call.choice) {
            (Choosing::Chosen(chosen), _) => chosen,
            (Choosing::Nowhere, Some(choice)) => return Pick::Refuse(nowhere(choice, call)),
            (Choosing::Nowhere, None) | (Choosing::Unprepared, _) => return Pick::Prepare,
        };
        let subset = &*chosen;
        let policy = &*call.policy;
        let rules = policy.node_rules();
        let (changes, random) = (self.cluster.changes(), &policy.common.random);
        let whole = subset;
        let (subset, tiers, is_short) = match subset.by_priority() {
            None => (subset, None, true),
            Some(tiers) => {
                let chosen = tiers.choose(changes, now, &rules, call.options.hash_key, random);
                let Tiered { subset, at, is_short } = chosen;
                (subset, Some((tiers, at)), is_short)
            }
        };
        // Circuits are ignored where too many are open, of all priorities together, and no other priority can take the
        // calls.
        let panicking = is_short && whole.is_panicking(changes, now, &rules);
        let candidates = Candidates {
            subset,
            subject: call.subject(),
            labels: call.choice.as_ref().map(|choice| &*choice.labels),
            hash_key: call.options.hash_key,
            tried: &call.tried,
            rules,
            now,
            panicking,
            tiers,
            random,
        };
        match &policy.picker {
            Balancer { shared: Some(picker), .. } => self.propose(&**picker, policy, &candidates),
            Balancer { factory, shared: None } => {
                let propose = |picker: &dyn Picker| self.propose(picker, policy, &candidates);
                subset.pick_by(factory, propose).unwrap_or(Pick::Prepare)
            }
        }
    }

    /// Asks `picker` for nodes until one admits the call.
    fn propose(&self, picker: &dyn Picker, policy: &Policy, candidates: &Candidates<'_>) -> Pick {
        let nodes = candidates.nodes();
        for _ in 0..MOST_PROPOSALS {
            let node = &nodes[picker.pick(candidates).min(nodes.len() - 1)];
            let admit = || match candidates.was_tried(node) {
                true => None,
                false => self.admit(node, policy, candidates),
            };
            if let Some(picked) = admit() {
                return picked;
            }
            if node.connection() == Connection::Idle {
                node.wake();
                if let Some(picked) = admit() {
                    return picked;
                }
            }
        }
        self.ask_all(policy, candidates)
    }

    /// There is no node at all.
    #[cold]
    fn without_nodes(&self, members: &Members, known: Option<Known>, now: Instant) -> Pick {
        self.cluster.asked(now);
        match self.cluster.patience(known, now) {
            Patience::Answer(until) => Pick::WaitUntil(until),
            Patience::Announcement(until) => Pick::WaitForAnnouncement(until),
            Patience::None => Pick::Refuse(self.nowhere_yet(members, known)),
        }
    }

    /// The error of a call without a node to go to.
    #[cold]
    fn nowhere_yet(&self, members: &Members, known: Option<Known>) -> Error {
        match known {
            None => self.unanswered(""),
            Some(Known::Unknown) => self.unknown(members),
            Some(_) => self.no_instances(members),
        }
    }

    /// Every node in turn, from a random one on; then those of other priorities that are ready; those that were tried
    /// before last.
    #[cold]
    fn ask_all(&self, policy: &Policy, candidates: &Candidates<'_>) -> Pick {
        if !self.cluster.changes().has_ready() {
            return self.none_admitted(policy, candidates);
        }
        let nodes = candidates.nodes();
        let start = candidates.draw();
        let turn = || nodes[start..].iter().chain(&nodes[..start]);
        let fresh = turn().filter(|node| !candidates.was_tried(node));
        let others = candidates.tiers.into_iter().flat_map(|(tiers, at)| tiers.others(at));
        let others = others.flat_map(|subset| {
            let (before, from) = subset.nodes().split_at(subset.draw(candidates.random));
            from.iter().chain(before).filter(|node| !candidates.was_tried(node))
        });
        for node in fresh.chain(others).chain(turn().filter(|node| candidates.was_tried(node))) {
            if let Some(picked) = self.admit(node, policy, candidates) {
                return picked;
            }
        }
        self.none_admitted(policy, candidates)
    }

    /// Waits for a node that lets the call in, as long as the call has time.
    async fn wait(&self, call: &Invocation) -> Result<(Arc<Node>, u64), Error> {
        let _waiting = self.cluster.wait();
        let (mut awaits, mut collected) = (None, None);
        let picked = async {
            loop {
                // Listened for before looking, or what happens in between is missed.
                let mut changed = std::pin::pin!(self.cluster.changed());
                changed.as_mut().enable();
                let pick = || {
                    self.cluster.with_members(|members| {
                        self.pick_of(members, call, Instant::now(), collected.as_ref())
                    })
                };
                match pick() {
                    Pick::Node(node, token) => return Ok((node, token)),
                    Pick::Prepare => {
                        if let Some(new) = self.prepare(call).await {
                            collected = Some(new);
                        }
                    }
                    Pick::Refuse(error) => return Err(error),
                    Pick::Wait => changed.await,
                    Pick::WaitUntil(until) => {
                        let _ = tokio::time::timeout_at(until.into(), changed).await;
                    }
                    Pick::WaitForAnnouncement(until) => {
                        if awaits.is_none() {
                            awaits = self.cluster.wait_for_announcement();
                        }
                        if awaits.is_none() {
                            return Err(self.without_node());
                        }
                        let _ = tokio::time::timeout_at(until.into(), changed).await;
                    }
                }
            }
        };
        let Some(bound) = call.bound() else { return picked.await };
        let late = |_| Err(self.late().with_code(Code::DeadlineExceeded));
        tokio::time::timeout_at(bound.into(), picked).await.unwrap_or_else(late)
    }

    /// Prepares what this call needs, unless another call has done so meanwhile.
    async fn prepare(&self, call: &Invocation) -> Option<Collected> {
        let Balancer { factory, shared } = &call.policy.picker;
        let factory = shared.is_none().then_some(factory);
        let is_done = || {
            self.cluster.with_members(|members| match resolve(members, call) {
                Choosing::Chosen(chosen) => factory.is_none_or(|factory| chosen.is_prepared(factory)),
                Choosing::Nowhere => true,
                Choosing::Unprepared => false,
            })
        };
        self.cluster.prepare(call.choice.as_ref(), factory, is_done).await
    }

    /// The error of a call that waited until its deadline.
    #[cold]
    fn late(&self) -> Error {
        self.cluster.with_members(|members| match members.known() {
            None => self.unanswered(" before the deadline"),
            known if members.all().is_empty() => self.nowhere_yet(members, known),
            Some(_) => self.none("none of its endpoints was ready before the deadline"),
        })
    }

    /// The error of a call that does not wait, because too many do.
    #[cold]
    fn without_node(&self) -> Error {
        self.cluster.with_members(|members| self.nowhere_yet(members, members.known()))
    }

    /// The registry has not answered yet.
    fn unanswered(&self, when: &str) -> Error {
        let registry = self.cluster.registry();
        let error = self.none(&format!("its registry `{registry}` has not answered yet{when}"));
        match self.cluster.trouble() {
            Some(why) => error.with_source(&*why),
            None => error,
        }
    }

    fn admit(&self, node: &Arc<Node>, policy: &Policy, candidates: &Candidates<'_>) -> Option<Pick> {
        let Candidates { rules, now, panicking, .. } = candidates;
        let Admitted { token, forced } = node.admit(*now, rules, *panicking)?;
        if forced {
            self.cluster.reporter().metrics.panic_pick(&policy.service);
            self.cluster
                .reporter()
                .emit_throttled(*now, || Event::PanicPick { service: policy.service.clone() });
        }
        Some(Pick::Node(node.clone(), token))
    }

    /// No node let the call in: is one about to be ready, or none?
    fn none_admitted(&self, policy: &Policy, candidates: &Candidates<'_>) -> Pick {
        let Candidates { subset, rules, now, .. } = *candidates;
        let (mut ready, mut full, mut connecting, mut idle) = (false, false, 0, 0);
        for (looked_at, node) in subset.nodes().iter().enumerate() {
            let waits = connecting >= MOST_CONNECTING || looked_at >= MOST_LOOKED_AT && connecting + idle > 0;
            if waits && !self.cluster.changes().has_ready() {
                // Many calls wait for a large set, and each of them looks at each change.
                connecting = connecting.max(self.cluster.changes().connecting());
                break;
            }
            match node.connection() {
                Connection::Ready => {
                    // Ready only since it was asked, or with room again: it is asked once more.
                    if let Some(picked) = self.admit(node, policy, candidates) {
                        return picked;
                    }
                    ready = true;
                    full |= node.is_full(&rules);
                }
                Connection::Connecting => connecting += 1,
                Connection::TransientFailure => {}
                Connection::Idle => idle += 1,
            }
        }
        if ready {
            let reason = if full { Reason::Overloaded } else { Reason::CircuitOpen };
            self.refusing(reason, now);
            let message = match full {
                true => format!("{}: every endpoint that is ready is full", self.cluster.service()),
                false => {
                    format!("{}: every endpoint that is ready has an open circuit", self.cluster.service())
                }
            };
            return Pick::Refuse(Error::local(reason, message).with_rule("balance"));
        }
        if connecting + idle > 0 {
            if idle > 0 {
                self.wake(subset, MOST_CONNECTING.saturating_sub(connecting));
            }
            return Pick::Wait;
        }
        self.refusing(Reason::NoEndpoint, now);
        let nodes = subset.nodes().iter().take(3).map(|n| n.address()).collect::<Vec<_>>().join(", ");
        Pick::Refuse(
            self.none(&format!(
                "none of its {} endpoints can be connected to ({nodes})",
                subset.nodes().len()
            )),
        )
    }

    /// Has up to `most` idle nodes connect, from a random one on.
    fn wake(&self, subset: &Subset, most: usize) {
        let (before, from) = subset.nodes().split_at(subset.draw(self.cluster.random()));
        let idle = from.iter().chain(before).filter(|node| node.connection() == Connection::Idle);
        idle.take(most).for_each(|node| node.wake());
    }

    fn refusing(&self, reason: Reason, now: Instant) {
        let service = self.cluster.service().clone();
        let rule = "balance".to_owned();
        self.cluster.reporter().emit_throttled(now, || Event::Refusing {
            side: Side::Client,
            service,
            reason,
            rule,
        });
    }

    /// The message may be sent to another process, so the names that the registry lists are in its source.
    fn unknown(&self, members: &Members) -> Error {
        match members.not_known() {
            Some(error) => {
                self.cluster.report_not_known(error);
                Error::local(Reason::UnknownService, error.message.to_string())
                    .with_source(error.known.clone())
            }
            None => {
                let message = not_known(self.cluster.registered(), self.cluster.registry());
                Error::local(Reason::UnknownService, message)
            }
        }
    }

    fn no_instances(&self, members: &Members) -> Error {
        let (wanted, registry) = (self.cluster.listener(), self.cluster.registry());
        match (members.other_protocols(), members.other_environments()) {
            (Some(others), _) => self.none(&format!("its instances do not offer {wanted}, only {others}")),
            (None, Some(others)) => {
                let message = format!("its instances are in other environments than this process: {others}");
                self.none(&message)
            }
            (None, None) => self.none(&format!("it has no instances in `{registry}`")),
        }
    }

    fn none(&self, why: &str) -> Error {
        Error::local(
            Reason::NoEndpoint,
            format!("{} ({}): {why}", self.cluster.service(), self.cluster.protocol()),
        )
    }
}

/// Could another attempt at `call` go out now to a node that has had none of it?
pub(crate) fn has_another(call: &Call, now: Instant) -> bool {
    let Some(last) = call.tried.last() else { return false };
    let (rules, tried) = (call.policy.node_rules(), &call.tried);
    let is_new = |node: &&Arc<Node>| !tried.iter().any(|tried| Arc::ptr_eq(tried, node));
    let found = last.with_siblings(call.choice.as_ref(), |nodes| {
        nodes.iter().filter(is_new).any(|node| node.is_available(now, &rules, false))
    });
    found.unwrap_or(false)
}

/// The nodes that the routes, or the caller, want; by the rule's fallback where there are none.
fn resolve<'a>(members: &'a Members, call: &Call) -> Choosing<'a> {
    match &call.choice {
        None => Choosing::Chosen(Chosen::There(members.all())),
        Some(choice) => members.choose(choice, call.options.labels.is_none()),
    }
}

fn nowhere(choice: &Choice, call: &Call) -> Error {
    let message = format!("{}: no instance has {}", call.policy.service, choice.labels);
    Error::local(Reason::NoRoute, message).with_rule(choice.rule.to_string())
}

impl<S> tower_layer::Layer<S> for BalanceLayer {
    type Service = Balance<S>;
    fn layer(&self, inner: S) -> Balance<S> {
        Balance { inner, with: self.clone() }
    }
}

impl<S> Service<Invocation> for Balance<S>
where
    S: Service<Invocation, Response = Reply, Error = Failed> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Reply;
    type Error = Failed;
    type Future = MaybeBoxed<S::Future, Failed>;

    forward_ready!();

    fn call(&mut self, mut call: Invocation) -> Self::Future {
        match self.with.pick(&call, call.attempt_started()) {
            Pick::Node(node, token) => {
                call.send_to(node, token);
                MaybeBoxed::inner(self.inner.call(call))
            }
            Pick::Refuse(error) => MaybeBoxed::refused(call.refuse(error)),
            Pick::Wait | Pick::Prepare | Pick::WaitUntil(_) | Pick::WaitForAnnouncement(_) => {
                let (with, mut inner) = (self.with.clone(), self.inner.clone());
                MaybeBoxed::boxed(async move {
                    match with.wait(&call).await {
                        Ok((node, token)) => {
                            call.attempt_waited(Instant::now()); // its latency is the node's, not the wait's
                            call.send_to(node, token);
                            inner.call(call).await
                        }
                        Err(error) => Err(call.refuse(error)),
                    }
                })
            }
        }
    }
}

// === impl Node ===

/// A node listens to the attempts that were sent to it.
impl Listener for Node {
    fn judged(&self, token: u64, outcome: &Outcome<'_>) {
        let latency = outcome.now.nanos_since(outcome.started);
        let rules = outcome.policy.node_rules();
        Node::judged(self, token, &outcome.verdict, latency, outcome.now, &rules);
    }

    fn ended(&self, _: u64) {
        Node::ended(self);
    }
}
