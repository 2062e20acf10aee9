//! One instance over one protocol: its load, its circuit, its connection.
use std::{
    any::Any,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    link::{Common, Connection, Link},
    load::{Load, UsualLatency},
    rules::NodeRules,
};
use crate::{
    Live,
    algorithm::circuit::{Circuit, State, Token, Transition},
    clock::Instant,
    event::Event,
    plugin::registry::Instance,
    site::Site,
    types::{Choice, Origin, Verdict, ended},
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
    pub(super) of: Arc<OfCluster>,
}

/// What the nodes of a cluster share, apart from their links.
pub(super) struct OfCluster {
    pub(super) site: Site,
    /// How long the successes of its calls take.
    pub(super) usual: UsualLatency,
    pub(super) siblings: Weak<dyn Siblings>,
}

/// The nodes of a cluster, as one of them sees them.
pub(super) trait Siblings: Send + Sync {
    /// Calls `look` with the nodes that a call with this choice may go to, unless there are none.
    fn look(&self, choice: Option<&Choice>, look: &mut dyn FnMut(&[Arc<Node>]));
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

/// The leaf of a node, as the node sees it: it sends the calls, and any transport has one of its own type.
pub(crate) trait AnyLeaf: Send + Sync {
    /// Itself, for the pipeline that knows its type.
    fn as_any(&self) -> &dyn Any;
    /// A call would like to go here: connect.
    fn wake(&self);
    /// The node is gone for good.
    fn close(&self);
}

/// A transport as a cluster needs it: what makes the leaves of its nodes.
pub(crate) struct LeafMaker {
    /// The protocol that they speak, which picks one of an instance's addresses.
    pub(crate) protocol: &'static str,
    pub(crate) make: Box<dyn Fn(Link) -> Box<dyn AnyLeaf> + Send + Sync>,
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
    pub(crate) fn leaf<L: 'static>(&self) -> Option<&L> {
        self.leaf.as_any().downcast_ref()
    }

    /// Is it ready, but has no room for another call?
    pub(crate) fn is_full(&self, rules: &NodeRules<'_>) -> bool {
        rules.concurrency.is_some_and(|most| self.load.in_flight() >= most)
    }

    /// Lets a call in, or says no. What comes back goes to [`Listener`] with the attempt.
    pub(crate) fn admit(
        &self,
        now: Instant,
        rules: &NodeRules<'_>,
        ignore_circuit: bool,
    ) -> Option<Admitted> {
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

    /// The verdict on the call of `token`, which took `latency` nanoseconds.
    pub(crate) fn judged(
        &self,
        token: u64,
        verdict: &Verdict,
        latency: u64,
        now: Instant,
        rules: &NodeRules<'_>,
    ) {
        match verdict.is_success() {
            true => self.of.usual.add(latency),
            false => self.charge(verdict, latency, now),
        }
        let breaker = rules.breaker.filter(|_| token != UNGUARDED);
        if verdict.blames_nobody() {
            if let Some(breaker) = breaker {
                self.circuit.release(Token::from_bits(token), breaker);
            }
            return;
        }
        let failed = rules.failures.contains(ended(verdict));
        self.load.judged_in(!failed, latency, now);
        if let Some(breaker) = breaker
            && let Some(moved) = self.circuit.record(Token::from_bits(token), failed, now, breaker)
        {
            self.moved(moved);
        }
    }

    /// Nothing of a call that was let in is in flight any more.
    pub(crate) fn ended(&self) {
        self.load.ended();
    }

    /// Looks at the nodes of its cluster that a call with this choice may go to; `None` if there are none.
    pub(crate) fn with_siblings<R>(
        &self,
        choice: Option<&Choice>,
        look: impl FnOnce(&[Arc<Node>]) -> R,
    ) -> Option<R> {
        let siblings = self.of.siblings.upgrade()?;
        let (mut look, mut seen) = (Some(look), None);
        siblings.look(choice, &mut |nodes| seen = look.take().map(|look| look(nodes)));
        seen
    }

    /// Does it fail, while at least half of the nodes don't that are ready for calls with this choice? Then the
    /// service does well without it, and its failures are its own.
    pub(crate) fn is_outlier(&self, now: Instant, choice: Option<&Choice>) -> bool {
        if !self.load.is_failing(now) {
            return false;
        }
        let of_most = self.with_siblings(choice, |nodes| {
            // Itself is one of them, also if it is just not ready any more.
            let itself = usize::from(!self.is_ready());
            let (mut all, mut failing) = (itself, itself);
            for node in nodes.iter().filter(|node| node.is_ready()) {
                all += 1;
                failing += usize::from(node.load.is_failing(now));
            }
            failing * 2 > all
        });
        of_most == Some(false)
    }

    /// An answer that is no success is charged as if it had taken as long as a success: who answers more
    /// quickly than others because it does not do the work must not look less loaded than they are.
    #[cold]
    fn charge(&self, verdict: &Verdict, latency: u64, now: Instant) {
        // What never reached it says nothing of it, nor what was given up here.
        if verdict.origin == Origin::Remote && (verdict.status != 0 || verdict.maybe_executed) {
            self.load.charge(latency, self.of.usual.get(), now);
        }
    }

    fn moved(&self, Transition { from, to }: Transition) {
        let Common { service, changes, .. } = self.link.common();
        changes.bump();
        self.counted.store(to != State::Closed, Ordering::Relaxed);
        let open = i64::from(to != State::Closed) - i64::from(from != State::Closed);
        self.of.site.metrics.circuit(service, "endpoint", to.name(), open);
        self.of.site.events.emit(Event::CircuitMoved {
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
            self.of.site.metrics.circuit_gone(self.link.service(), "endpoint");
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// There are as many of them as there are instances, most of them never called.
    #[test]
    fn is_small() {
        let sizes = [size_of::<Node>(), size_of::<Link>(), size_of::<Instance>()];
        assert!(sizes.iter().zip([248, 8, 144]).all(|(size, most)| *size <= most), "{sizes:?}");
    }
}
