//! The nodes of a subset by the priority of their instances, and the share of the calls that each priority gets.
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use super::{
    link::{Changes, Connection},
    members::Subset,
    rules::NodeRules,
};
use crate::{
    algorithm::{
        HashKey,
        circuit::{Force, State},
        spill::{Health, WHOLE, spill},
    },
    clock::Instant,
    random::{Random, mix},
};

/// The nodes of a subset with instances of several priorities, the preferred priority first.
pub(crate) struct Tiers {
    tiers: Box<[Tier]>,
    /// The epoch of the changes at which the bounds were computed, plus one.
    computed: AtomicU64,
    began: Instant,
    /// The time at which they were last computed without a change, in milliseconds since `began`.
    computed_at: AtomicU64,
    /// All priorities together are too unhealthy to take all calls.
    is_short: AtomicBool,
}

/// The nodes of one priority.
struct Tier {
    priority: u32,
    nodes: Arc<Subset>,
    /// The sum of the weights of instances that take no new calls because of their status.
    out: u64,
    /// The sum of the shares of this priority and of those before it.
    bound: AtomicU32,
}

/// The nodes that a call goes to.
pub(crate) struct Tiered<'a> {
    pub(crate) subset: &'a Subset,
    /// Their position among the priorities.
    pub(crate) at: usize,
    /// No priority can take their calls instead.
    pub(crate) is_short: bool,
}

/// Of a priority with more nodes, a part is looked at: the error of its healthy part is below three percent.
const MOST_LOOKED_AT: usize = 2_048;
/// The bounds are computed again after this time, in milliseconds: the end of a circuit's open time is no change, and
/// no call makes it one where the priority gets none.
const RECOMPUTED: u64 = 1_000;

// === impl Tiers ===

impl Tiers {
    /// `tiers`: the priority, its nodes, and the weights of its instances that are out of service; sorted.
    pub(super) fn new(tiers: impl IntoIterator<Item = (u32, Arc<Subset>, u64)>) -> Self {
        let tier = |(priority, nodes, out)| Tier { priority, nodes, out, bound: AtomicU32::new(WHOLE) };
        Tiers {
            tiers: tiers.into_iter().map(tier).collect(),
            computed: AtomicU64::new(0),
            began: Instant::now(),
            computed_at: AtomicU64::new(0),
            is_short: AtomicBool::new(false),
        }
    }

    /// The nodes of each priority.
    pub(super) fn all(&self) -> impl Iterator<Item = (u32, &Arc<Subset>)> {
        self.tiers.iter().map(|tier| (tier.priority, &tier.nodes))
    }

    /// The nodes of the other priorities, the preferred ones first.
    pub(crate) fn others(&self, at: usize) -> impl Iterator<Item = &Subset> {
        self.tiers.iter().enumerate().filter(move |(other, _)| *other != at).map(|(_, tier)| &*tier.nodes)
    }

    /// The nodes for a call: of the first priority, as long as enough of it is healthy. Calls with the same key get the
    /// same priority while its share is the same.
    #[inline]
    pub(crate) fn choose(
        &self,
        changes: &Changes,
        now: Instant,
        rules: &NodeRules<'_>,
        key: Option<HashKey>,
        random: &Random,
    ) -> Tiered<'_> {
        let is_whole = changes.is_sound() && self.tiers[0].out == 0;
        if is_whole {
            return Tiered { subset: &self.tiers[0].nodes, at: 0, is_short: false };
        }
        self.choose_by_health(changes, now, rules, key, random)
    }

    #[cold]
    fn choose_by_health(
        &self,
        changes: &Changes,
        now: Instant,
        rules: &NodeRules<'_>,
        key: Option<HashKey>,
        random: &Random,
    ) -> Tiered<'_> {
        let epoch = changes.epoch.load(Ordering::Acquire);
        let (at, now_at) = (self.computed_at.load(Ordering::Relaxed), now.millis_since(self.began));
        // One of the calls that come then computes them.
        let is_due = now_at >= at.saturating_add(RECOMPUTED)
            && self.computed_at.compare_exchange(at, now_at, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if is_due || self.computed.load(Ordering::Acquire) != epoch + 1 {
            self.compute(now, rules, random);
            self.computed.store(epoch + 1, Ordering::Release);
        }
        let drawn = match key {
            // Mixed, because pickers use the same bits: a later priority would get the keys of one part of their ring.
            Some(key) => (((mix(u64::from(key.get())) >> 32) * u64::from(WHOLE)) >> 32) as u32,
            None => random.below(WHOLE as usize) as u32,
        };
        // While other threads compute, the bounds may be of two moments: each of them is a priority that had a share.
        let found = self.tiers.iter().position(|tier| drawn < tier.bound.load(Ordering::Relaxed));
        let at = found.unwrap_or(self.tiers.len() - 1);
        let is_short = self.is_short.load(Ordering::Relaxed);
        Tiered { subset: &self.tiers[at].nodes, at, is_short }
    }

    fn compute(&self, now: Instant, rules: &NodeRules<'_>, random: &Random) {
        let health: Vec<_> = self.tiers.iter().map(|tier| tier.health(now, rules, random)).collect();
        let spill = spill(&health);
        for (tier, bound) in self.tiers.iter().zip(spill.bounds) {
            tier.bound.store(bound, Ordering::Relaxed);
        }
        self.is_short.store(spill.is_short, Ordering::Relaxed);
    }
}

// === impl Tier ===

impl Tier {
    /// A node is healthy unless it cannot be connected to, or its circuit is open. One that was not needed yet is.
    fn health(&self, now: Instant, rules: &NodeRules<'_>, random: &Random) -> Health {
        let nodes = self.nodes.nodes();
        let step = nodes.len().div_ceil(MOST_LOOKED_AT);
        let judges = rules.breaker.is_some_and(|breaker| breaker.force == Force::Auto);
        let (mut healthy, mut all) = (0u64, 0u64);
        for node in nodes.iter().skip(if step > 1 { random.below(step) } else { 0 }).step_by(step) {
            let weight = u64::from(node.instance.with(|instance| instance.effective_weight()).max(1));
            let fails = node.connection() == Connection::TransientFailure
                || judges && node.circuit(now, rules) == State::Open;
            all += weight;
            healthy += if fails { 0 } else { weight };
        }
        Health { healthy, all: all + self.out / step as u64 }
    }
}
