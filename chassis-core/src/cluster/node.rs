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
    reporter::Reporter,
    types::{Choice, Origin, Verdict, ended},
};

/// One instance over one protocol.
pub struct Node {
    pub(super) link: Link,
    pub(super) instance: Live<Instance>,
    pub(super) load: Load,
    pub(super) circuit: Circuit,
    pub(super) leaf: Box<dyn AnyLeaf>,
    /// Whether it is counted among the circuits that are not closed.
    pub(super) counted: AtomicBool,
    pub(super) of: Arc<OfCluster>,
}

/// The parts that the nodes of a cluster share, apart from their links.
pub(super) struct OfCluster {
    pub(super) reporter: Reporter,
    /// The usual duration of successful calls.
    pub(super) usual: UsualLatency,
    pub(super) siblings: Weak<dyn Siblings>,
}

/// The nodes of a cluster, from the point of view of one of them.
pub(super) trait Siblings: Send + Sync {
    /// Calls `look` with the nodes that a call with this choice may go to, unless there are none.
    fn look(&self, choice: Option<&Choice>, look: &mut dyn FnMut(&[Arc<Node>]));
}

/// A node has admitted a call.
pub(crate) struct Admitted {
    /// To be passed to the node with the attempt's outcome.
    pub(crate) token: u64,
    /// The call was only admitted because circuits are ignored.
    pub(crate) forced: bool,
}

/// The token of a call without a circuit.
pub(crate) const UNGUARDED: u64 = u64::MAX;

/// The leaf of a node with erased type: it sends the calls, and each transport has its own type.
pub(crate) trait AnyLeaf: Send + Sync {
    /// Itself, for the pipeline, which knows its type.
    fn as_any(&self) -> &dyn Any;
    /// A call needs this node: connect.
    fn wake(&self);
    /// The node was removed.
    fn close(&self);
}

/// The part of a transport that a cluster needs: it creates the leaves of its nodes.
pub(crate) struct LeafMaker {
    /// Their protocol, which selects one of an instance's addresses.
    pub(crate) protocol: &'static str,
    pub(crate) make: Box<dyn Fn(Link) -> Box<dyn AnyLeaf> + Send + Sync>,
}

// === impl Node ===

impl Node {
    /// The instance's id.
    pub fn id(&self) -> &str {
        self.link.instance()
    }

    /// The address.
    pub fn address(&self) -> &str {
        self.link.address()
    }

    /// The current entry of the registry.
    pub fn instance(&self) -> Arc<Instance> {
        self.instance.get()
    }

    /// Its load and history.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// The state of its connection.
    pub fn connection(&self) -> Connection {
        self.link.connection()
    }

    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        self.link.is_ready()
    }

    /// The state of its circuit: closed unless breakers have the scope `endpoint`.
    pub(crate) fn circuit(&self, now: Instant, rules: &NodeRules<'_>) -> State {
        rules.breaker.map_or(State::Closed, |config| self.circuit.state(now, config))
    }

    /// Whether a call would be admitted now. Changes nothing.
    pub(crate) fn is_available(&self, now: Instant, rules: &NodeRules<'_>, ignore_circuit: bool) -> bool {
        self.is_ready() && self.has_room(now, rules, ignore_circuit)
    }

    /// The same for a node that is ready.
    #[inline]
    pub(crate) fn has_room(&self, now: Instant, rules: &NodeRules<'_>, ignore_circuit: bool) -> bool {
        rules.concurrency.is_none_or(|most| self.load.in_flight() < most)
            && (ignore_circuit || rules.breaker.is_none_or(|config| self.circuit.admits(now, config)))
    }

    /// A call needs this node: connect.
    pub fn wake(&self) {
        self.leaf.wake();
    }

    /// The leaf, if it is an `L`.
    pub(crate) fn leaf<L: 'static>(&self) -> Option<&L> {
        self.leaf.as_any().downcast_ref()
    }

    /// Whether it is ready, but has no room for another call.
    pub(crate) fn is_full(&self, rules: &NodeRules<'_>) -> bool {
        rules.concurrency.is_some_and(|most| self.load.in_flight() >= most)
    }

    /// Admits a call or refuses it. The result is passed to [`Listener`] with the attempt.
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

    /// The answer to the call of `token` begins well: returns the token that replaces it.
    pub(crate) fn answered(&self, token: u64, rules: &NodeRules<'_>) -> u64 {
        let Some(breaker) = rules.breaker else { return token };
        let (token, moved) = self.circuit.answered(Token::from_bits(token), Instant::now(), breaker);
        if let Some(moved) = moved {
            self.moved(moved);
        }
        token.to_bits()
    }

    /// Records the verdict on the call of `token`, which took `latency` nanoseconds.
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

    /// Records that nothing of an admitted call is in flight any more.
    pub(crate) fn ended(&self) {
        self.load.ended();
    }

    /// Passes the nodes of its cluster that a call with this choice may go to to `look`; `None` if there are
    /// none.
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

    /// Whether it fails, while at least half of the nodes that are ready for calls with this choice do not.
    /// Then the service works without it, and its failures count only for itself.
    pub(crate) fn is_outlier(&self, now: Instant, choice: Option<&Choice>) -> bool {
        if !self.load.is_failing(now) {
            return false;
        }
        let of_most = self.with_siblings(choice, |nodes| {
            // The node itself is one of them, also if it is no longer ready.
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

    /// Charges an unsuccessful answer as if it had taken as long as a success: a node that answers faster than
    /// others because it does not do the work must not look less loaded.
    #[cold]
    fn charge(&self, verdict: &Verdict, latency: u64, now: Instant) {
        // Calls that did not reach the node, or were cancelled here, give no information about it.
        if verdict.origin == Origin::Remote && (verdict.status != 0 || verdict.maybe_executed) {
            self.load.charge(latency, self.of.usual.get(), now);
        }
    }

    fn moved(&self, Transition { from, to }: Transition) {
        let Common { service, changes, .. } = self.link.common();
        self.counted.store(to != State::Closed, Ordering::Relaxed);
        let open = i64::from(to != State::Closed) - i64::from(from != State::Closed);
        changes.guarded.fetch_add(open as usize, Ordering::AcqRel); // wraps around, so -1 is subtracted
        changes.bump();
        self.of.reporter.metrics.circuit(service, "endpoint", to.name(), open);
        self.of.reporter.events.emit(Event::CircuitMoved {
            service: service.clone(),
            of: self.id().to_owned(),
            from,
            to,
        });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if *self.counted.get_mut() {
            self.link.common().changes.guarded.fetch_sub(1, Ordering::AcqRel);
            self.of.reporter.metrics.circuit_gone(self.link.service(), "endpoint");
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

    /// There is one for each instance, most of them never called.
    #[test]
    fn is_small() {
        let sizes = [size_of::<Node>(), size_of::<Link>(), size_of::<Instance>()];
        assert!(sizes.iter().zip([248, 8, 144]).all(|(size, most)| *size <= most), "{sizes:?}");
    }
}
