//! The nodes there are at one moment, and those of them that a call may go to.
use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{link::Connection, node::Node};
use crate::{
    Live,
    clock::Instant,
    labels::LabelSet,
    layer::breaker::{Force, State},
    policy::Policy,
    random::Random,
    shard::PerShard,
};

/// Who is there, as of one snapshot of the registry.
pub struct Members {
    /// What the registry said; `None` before its first answer.
    known: Option<Known>,
    /// The name that may have been meant, where this one is unknown.
    near: Option<Arc<str>>,
    /// Everybody, those of weight 0 too.
    nodes: Box<[Arc<Node>]>,
    all: Arc<Subset>,
    chosen: Live<HashMap<LabelSet, Arc<Subset>, foldhash::fast::RandomState>>,
    /// The first few of them once more, by the very sets of the rules: found without hashing. Threads have
    /// sets of their own, as they have rules.
    first: PerShard<[ByRule; 4]>,
}

/// The labels of a rule, and the nodes that have them.
type ByRule = OnceLock<(Arc<LabelSet>, Arc<Subset>)>;

/// What a registry's answer amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It has instances, or had some and says nothing of a deletion.
    Service,
    /// It has never heard of the service.
    Unknown,
    /// The service was deleted.
    Deleted,
}

/// Nodes that were chosen: looked at where they are, or held on to where they were put together just now.
pub(crate) enum Chosen<'a> {
    There(&'a Subset),
    Held(Arc<Subset>),
}

/// The nodes that a call may go to, in a fixed order, with their weights.
pub struct Subset {
    nodes: Box<[Arc<Node>]>,
    /// Running sums of the weights, where they differ.
    weights: Option<Box<[u64]>>,
    /// The epoch of the changes that `panicking` was worked out at, plus one, and the answer.
    panicking: (AtomicU64, AtomicBool),
}

/// Label sets a cluster keeps ready; more are worked out per call.
const MOST_SUBSETS: usize = 256;

// === impl Members ===

impl Members {
    pub(super) fn new(known: Option<Known>, near: Option<Arc<str>>, nodes: Vec<Arc<Node>>) -> Self {
        let all = Subset::new(nodes.clone());
        Members {
            known,
            near,
            nodes: nodes.into(),
            all,
            chosen: Live::new(HashMap::default()),
            first: Default::default(),
        }
    }

    /// What the registry said last; `None` before its first answer.
    pub fn known(&self) -> Option<Known> {
        self.known
    }

    /// The service that may have been meant, where the registry has never heard of this one.
    pub fn nearest_name(&self) -> Option<&str> {
        self.near.as_deref()
    }

    /// Every node, those of weight 0 too.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Every node that takes calls.
    pub fn all(&self) -> &Arc<Subset> {
        &self.all
    }

    /// The nodes with the labels of a rule; may be empty.
    pub(crate) fn with_labels_of(&self, rule: &Arc<LabelSet>) -> Chosen<'_> {
        let first = self.first.mine(Default::default);
        let taken = first.iter().map_while(OnceLock::get);
        if let Some((_, subset)) = taken.clone().find(|(labels, _)| Arc::ptr_eq(labels, rule)) {
            return Chosen::There(subset);
        }
        let subset = self.with_labels(rule);
        if let Some(free) = first.get(taken.count()) {
            let _ = free.set((rule.clone(), subset.clone())); // or somebody was quicker
        }
        Chosen::Held(subset)
    }

    /// The nodes with `labels`; may be empty.
    pub fn with_labels(&self, labels: &LabelSet) -> Arc<Subset> {
        if labels.is_empty() {
            return self.all.clone();
        }
        if let Some(subset) = self.chosen.with(|chosen| chosen.get(labels).cloned()) {
            return subset;
        }
        let select = |node: &&Arc<Node>| labels.selects(&node.instance.get());
        let subset = Subset::new(self.all.nodes.iter().filter(select).cloned().collect());
        self.chosen.update(|chosen| {
            let mut chosen = chosen.clone();
            if chosen.len() < MOST_SUBSETS {
                chosen.insert(labels.clone(), subset.clone());
            }
            chosen
        });
        subset
    }
}

// === impl Chosen ===

impl std::ops::Deref for Chosen<'_> {
    type Target = Subset;
    fn deref(&self) -> &Subset {
        match self {
            Chosen::There(subset) => subset,
            Chosen::Held(subset) => subset,
        }
    }
}

// === impl Subset ===

impl Subset {
    fn new(nodes: Vec<Arc<Node>>) -> Arc<Self> {
        // Weight 0 takes no new calls, unless all have it.
        let weight = |node: &Arc<Node>| u64::from(node.instance.get().weight);
        let any = nodes.iter().any(|node| weight(node) > 0);
        let nodes: Box<[_]> = nodes.into_iter().filter(|node| !any || weight(node) > 0).collect();
        let same = nodes.windows(2).all(|pair| weight(&pair[0]) == weight(&pair[1]));
        let mut sum = 0;
        let sums = nodes.iter().map(|node| {
            sum += weight(node).max(1);
            sum
        });
        let weights = (!same).then(|| sums.collect());
        Arc::new(Subset { nodes, weights, panicking: (AtomicU64::new(0), AtomicBool::new(false)) })
    }

    /// The nodes, in a fixed order.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// An index drawn in proportion to the weights. The subset must not be empty.
    pub fn draw(&self, random: &Random) -> usize {
        match &self.weights {
            None => random.below(self.nodes.len()),
            Some(sums) => {
                let total = sums.last().copied().unwrap_or(1);
                let at = random.below(usize::try_from(total).unwrap_or(usize::MAX)) as u64;
                sums.partition_point(|sum| *sum <= at).min(self.nodes.len() - 1)
            }
        }
    }

    /// Two different nodes, each by its weight; there have to be two.
    #[inline]
    pub(crate) fn draw_two(&self, random: &Random) -> (usize, usize) {
        let count = self.nodes.len();
        if self.weights.is_none() {
            return random.two_below(count);
        }
        let (a, b) = (self.draw(random), self.draw(random));
        // A second draw of the same node would be no choice; any other is as likely.
        (a, if a == b { (a + 1 + random.below(count - 1)) % count } else { b })
    }

    /// Is more than half of what is ready out by an open circuit? Then circuits are ignored, unless they
    /// are held open by hand.
    ///
    /// After Envoy's panic threshold and Finagle's panic mode. Worked out once per change. That the time
    /// of an open circuit is over is no change yet, but the first call there makes it one.
    #[inline]
    pub(crate) fn is_panicking(&self, epoch: u64, now: Instant, policy: &Policy) -> bool {
        if policy.node_breaker.as_ref().is_none_or(|breaker| breaker.force != Force::Auto) {
            return false;
        }
        if self.panicking.0.load(Ordering::Acquire) == epoch + 1 {
            return self.panicking.1.load(Ordering::Relaxed);
        }
        let (mut ready, mut out) = (0u64, 0u64);
        for node in &self.nodes {
            if node.connection() == Connection::Ready {
                let weight = u64::from(node.instance.get().weight.max(1));
                ready += weight;
                out += if node.circuit(now, policy) == State::Open { weight } else { 0 };
            }
        }
        let panicking = out * 2 > ready;
        self.panicking.1.store(panicking, Ordering::Relaxed);
        self.panicking.0.store(epoch + 1, Ordering::Release);
        panicking
    }
}
