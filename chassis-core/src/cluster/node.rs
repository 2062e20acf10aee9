//! One instance over one protocol: its load, its circuit, its connection.
use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    Cluster,
    link::{Common, Connection, Link},
    load::Load,
    rules::NodeRules,
};
use crate::{
    Live,
    algorithm::circuit::{Circuit, State, Token, Transition},
    call::{Listener, Outcome},
    clock::Instant,
    event::Event,
    plugin::{registry::Instance, transport::Leaf},
    site::Site,
    types::{LabelSet, Origin, Verdict, ended},
};

/// One instance over one protocol.
pub struct Node {
    pub(super) link: Link,
    pub(super) instance: Live<Instance>,
    pub(super) load: Load,
    pub(super) circuit: Circuit,
    pub(super) leaf: Box<dyn AnyLeaf>,
    /// Counted among the circuits that are not closed.
    pub(super) counted: AtomicBool,
    pub(super) site: Arc<Site>,
}

/// A node has let a call in.
pub(crate) struct Admitted {
    /// To be handed to the node with the attempt's outcome.
    pub(crate) token: u64,
    /// Only because circuits are ignored.
    pub(crate) forced: bool,
}

/// The token of a call that no circuit watches.
pub(crate) const UNGUARDED: u64 = u64::MAX;

/// A leaf of any protocol.
pub(super) trait AnyLeaf: Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn wake(&self);
    fn close(&self);
}

// === impl Node ===

impl Node {
    /// The instance's id.
    pub fn id(&self) -> &str {
        self.link.instance()
    }

    /// Where it is reached.
    pub fn address(&self) -> &str {
        self.link.address()
    }

    /// What the registry says of it now.
    pub fn instance(&self) -> Arc<Instance> {
        self.instance.get()
    }

    /// What goes on there, and went.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// How its connection is.
    pub fn connection(&self) -> Connection {
        self.link.connection()
    }

    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        self.link.is_ready()
    }

    /// The state of its circuit: closed unless breakers work at the scope of endpoints.
    pub(crate) fn circuit(&self, now: Instant, rules: &NodeRules<'_>) -> State {
        rules.breaker.map_or(State::Closed, |config| self.circuit.state(now, config))
    }

    /// Would a call be let in now? Asking changes nothing.
    pub(crate) fn is_available(&self, now: Instant, rules: &NodeRules<'_>, ignore_circuit: bool) -> bool {
        self.is_ready() && self.has_room(now, rules, ignore_circuit)
    }

    /// The same of one that is ready.
    #[inline]
    pub(crate) fn has_room(&self, now: Instant, rules: &NodeRules<'_>, ignore_circuit: bool) -> bool {
        rules.concurrency.is_none_or(|most| self.load.in_flight() < most)
            && (ignore_circuit || rules.breaker.is_none_or(|config| self.circuit.admits(now, config)))
    }

    /// A call would like to go here: connect.
    pub fn wake(&self) {
        self.leaf.wake();
    }

    /// The leaf, if it is an `L`.
    pub(crate) fn leaf<L: Leaf>(&self) -> Option<&L> {
        self.leaf.as_any().downcast_ref()
    }

    /// Is it ready, but has no room for another call?
    pub(crate) fn is_full(&self, rules: &NodeRules<'_>) -> bool {
        rules.concurrency.is_some_and(|most| self.load.in_flight() >= most)
    }

    /// Lets a call in, or says no. What comes back goes to [`Listener`] with the attempt.
    pub(crate) fn admit(&self, now: Instant, rules: &NodeRules<'_>, ignore_circuit: bool) -> Option<Admitted> {
        if !self.is_ready() {
            return None;
        }
        self.load.started();
        if rules.concurrency.is_some_and(|most| self.load.in_flight() > most) {
            self.load.ended();
            return None;
        }
        let Some(breaker) = rules.breaker else {
            return Some(Admitted { token: UNGUARDED, forced: false });
        };
        match self.circuit.admit(now, breaker) {
            Ok(admission) => {
                if let Some(moved) = admission.moved {
                    self.moved(moved);
                }
                Some(Admitted { token: admission.token.to_bits(), forced: false })
            }
            Err(_) if ignore_circuit => Some(Admitted { token: UNGUARDED, forced: true }),
            Err(_) => {
                self.load.ended();
                None
            }
        }
    }

    /// The answer to the call of `token` begins well: the token that takes its place.
    pub(crate) fn answered(&self, token: u64, rules: &NodeRules<'_>) -> u64 {
        let Some(breaker) = rules.breaker else { return token };
        let (token, moved) = self.circuit.answered(Token::from_bits(token), Instant::now(), breaker);
        if let Some(moved) = moved {
            self.moved(moved);
        }
        token.to_bits()
    }

    /// The cluster that it belongs to, if that is still there.
    pub(crate) fn cluster(&self) -> Option<Arc<Cluster>> {
        self.link.common().cluster.upgrade()
    }

    /// Does it fail, while at least half of the nodes that are ready for calls don't? Then the service does well
    /// without it, and its failures are its own. Of a call that may go to nodes with `labels` only, these count.
    pub(crate) fn is_outlier(&self, now: Instant, labels: Option<&LabelSet>) -> bool {
        if !self.load.is_failing(now) {
            return false;
        }
        let Some(cluster) = self.cluster() else { return false };
        cluster.with_members(|members| {
            // A call whose rule found no node went to another one: to any.
            let labels = labels.filter(|labels| labels.selects(&self.instance()));
            let could = |node: &Node| labels.is_none_or(|labels| labels.selects(&node.instance()));
            let ready = members.all().nodes().iter().filter(|node| node.is_ready() && could(node));
            // Itself is one of them, also if it is just not ready any more.
            let itself = usize::from(!self.is_ready());
            let (mut all, mut failing) = (itself, itself);
            for node in ready {
                all += 1;
                failing += usize::from(node.load.is_failing(now));
            }
            failing * 2 <= all
        })
    }

    /// An answer that is no success is charged as if it had taken as long as a success: who answers more
    /// quickly than others because it does not do the work must not look less loaded than they are.
    #[cold]
    fn charge(&self, verdict: &Verdict, latency: u64, now: Instant) {
        // What never reached it says nothing of it, nor what was given up here.
        if verdict.origin == Origin::Remote && (verdict.status != 0 || verdict.maybe_executed) {
            self.load.charge(latency, self.link.common().usual.get(), now);
        }
    }

    fn moved(&self, Transition { from, to }: Transition) {
        let Common { service, changes, .. } = self.link.common();
        changes.bump();
        self.counted.store(to != State::Closed, Ordering::Relaxed);
        let open = i64::from(to != State::Closed) - i64::from(from != State::Closed);
        self.site.metrics.circuit(service, "endpoint", to.name(), open);
        self.site.events.emit(Event::CircuitMoved {
            service: service.clone(),
            of: self.id().to_owned(),
            from,
            to,
        });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.counted.load(Ordering::Relaxed) {
            self.site.metrics.circuit_gone(self.link.service(), "endpoint");
        }
    }
}

/// A node listens to the attempts that were sent to it.
impl Listener for Node {
    fn judged(&self, token: u64, outcome: &Outcome<'_>) {
        let rules = outcome.policy.node_rules();
        let verdict = &outcome.verdict;
        let latency = outcome.now.nanos_since(outcome.started);
        match verdict.is_success() {
            true => self.link.common().usual.add(latency),
            false => self.charge(verdict, latency, outcome.now),
        }
        let breaker = rules.breaker.filter(|_| token != UNGUARDED);
        if verdict.blames_nobody() {
            if let Some(breaker) = breaker {
                self.circuit.release(Token::from_bits(token), breaker);
            }
            return;
        }
        let failed = rules.failures.contains(ended(verdict));
        self.load.judged_in(!failed, latency, outcome.now);
        if let Some(breaker) = breaker {
            let failed = breaker.failures.contains(ended(verdict));
            if let Some(moved) = self.circuit.record(Token::from_bits(token), failed, outcome.now, breaker) {
                self.moved(moved);
            }
        }
    }

    fn ended(&self, _: u64) {
        self.load.ended();
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.id())
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}

impl<L: Leaf> AnyLeaf for L {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn wake(&self) {
        Leaf::wake(self);
    }
    fn close(&self) {
        Leaf::close(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There are as many of them as there are instances, most of them never called.
    #[test]
    fn is_small() {
        let sizes = [size_of::<Node>(), size_of::<Link>(), size_of::<Instance>()];
        assert!(sizes.iter().zip([248, 8, 136]).all(|(size, most)| *size <= most), "{sizes:?}");
    }
}
