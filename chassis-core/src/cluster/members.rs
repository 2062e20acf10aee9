//! The nodes there are at one moment, and those of them that a call may go to.
use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    link::Connection,
    node::Node,
    picker::{Picker, PickerFactory},
    prepared::{Prepared, Unprepared},
    rotation::{MOST_SUBSETS, Rotation, Rotations, gcd, stride},
    rules::NodeRules,
};
use crate::{
    Live,
    algorithm::circuit::{Force, State},
    clock::Instant,
    random::Random,
    shard::PerShard,
    types::{Choice, Fallback, LabelSet},
};

/// Who is there, as of one snapshot of the registry.
pub struct Members {
    /// What the registry said; `None` before its first answer.
    known: Option<Known>,
    hint: Option<Hint>,
    /// Everybody, those of weight 0 too.
    nodes: Box<[Arc<Node>]>,
    all: Arc<Subset>,
    chosen: Live<HashMap<LabelSet, Arc<Subset>, foldhash::fast::RandomState>>,
    /// The first few of them once more, by the very sets of the rules: found without hashing. Threads have
    /// sets of their own, as they have rules.
    first: PerShard<[ByRule; 4]>,
    /// Where the round robin over each of its subsets is: shared with the snapshots before and after.
    rotations: Arc<Rotations>,
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

/// What to tell those who find nobody here.
#[derive(Clone, Debug)]
pub(super) enum Hint {
    /// The name that may have been meant, where this one is unknown.
    Name(Arc<str>),
    /// What the instances speak, none of which speaks the protocol of this cluster.
    Protocols(Arc<str>),
    /// The environments of the instances, none of which is in that of the caller.
    Environments(Arc<str>),
}

/// Nodes that were chosen: looked at where they are, or held on to where they were put together just now.
pub(crate) enum Chosen<'a> {
    There(&'a Subset),
    Held(Arc<Subset>),
}

/// The nodes that a call may go to, in a fixed order, with their weights.
pub struct Subset {
    nodes: Box<[Arc<Node>]>,
    /// Running sums of the weights, divided by their greatest common divisor; `None` where all are the same.
    weights: Option<Box<[u64]>>,
    /// How far apart successive turns of the round robin are.
    stride: u64,
    /// Where the round robin is; `None` where there are more label sets than are kept.
    rotation: Option<Arc<Rotation>>,
    /// Its pickers; unset if no call needed one.
    prepared: OnceLock<Arc<Prepared>>,
    /// Whether later calls find this very subset again. Otherwise it was put together for one call.
    is_kept: bool,
    /// The epoch of the changes that `panicking` was worked out at, plus one, and the answer.
    panicking: (AtomicU64, AtomicBool),
}

// === impl Members ===

impl Members {
    pub(super) fn new(
        known: Option<Known>,
        hint: Option<Hint>,
        nodes: Vec<Arc<Node>>,
        rotations: Arc<Rotations>,
    ) -> Self {
        let all = Subset::new(nodes.clone(), rotations.of(&LabelSet::default()), true);
        Members {
            known,
            hint,
            nodes: nodes.into(),
            all,
            chosen: Live::new(HashMap::default()),
            first: Default::default(),
            rotations,
        }
    }

    /// Takes over the pickers of `before`, the snapshot that this one replaces. Those of a subset with the same nodes
    /// stay; others are built anew, if they were used. `has_changed`: the instance of this node is another one.
    pub(super) fn take_pickers(&mut self, before: &Members, has_changed: impl Fn(&Node) -> bool) {
        let take = |old: &Subset, new: &Subset, is_used: bool| {
            let Some(prepared) = old.prepared.get() else { return };
            let is_same = |(a, b): (&Arc<Node>, &Arc<Node>)| Arc::ptr_eq(a, b) && !has_changed(b);
            let taken =
                match old.nodes.len() == new.nodes.len() && old.nodes.iter().zip(&new.nodes).all(is_same) {
                    true => prepared.clone(),
                    false if is_used && !new.is_empty() => Arc::new(prepared.rebuilt(new)),
                    false => return,
                };
            let _ = new.prepared.set(taken); // nobody else has this subset yet
        };
        let is_used = |subset: &Subset| subset.prepared.get().is_some_and(|prepared| prepared.take_used());
        take(&before.all, &self.all, is_used(&before.all));
        let mut chosen = HashMap::default();
        before.chosen.with(|old| {
            let is_full = old.len() >= MOST_SUBSETS;
            for (labels, subset) in old.iter().filter(|(_, subset)| subset.prepared.get().is_some()) {
                let is_used = is_used(subset);
                // Label sets that are not used any more must not take the room of others for ever.
                if is_used || !is_full {
                    let new = self.select(labels, true);
                    take(subset, &new, is_used);
                    if new.prepared.get().is_some() {
                        chosen.insert(labels.clone(), new);
                    }
                }
            }
        });
        self.chosen = Live::new(chosen);
    }

    /// What the registry said last; `None` before its first answer.
    pub fn known(&self) -> Option<Known> {
        self.known
    }

    /// The service that may have been meant, where the registry has never heard of this one.
    pub fn nearest_name(&self) -> Option<&str> {
        match &self.hint {
            Some(Hint::Name(name)) => Some(name),
            _ => None,
        }
    }

    /// The protocols that its instances speak, where none of them speaks that of this cluster: `grpc, line`.
    pub fn other_protocols(&self) -> Option<&str> {
        match &self.hint {
            Some(Hint::Protocols(protocols)) => Some(protocols),
            _ => None,
        }
    }

    /// The environments of its instances, where none of them is in that of the caller: `staging, test`.
    pub fn other_environments(&self) -> Option<&str> {
        match &self.hint {
            Some(Hint::Environments(environments)) => Some(environments),
            _ => None,
        }
    }

    /// Every node, those of weight 0 too.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Every node that takes calls.
    pub fn all(&self) -> &Arc<Subset> {
        &self.all
    }

    /// The nodes that a call with this choice may go to, by its fallback where none has its labels; `None` if that
    /// leaves none. `by_rule`: a rule made the choice, so that many calls have the very same one.
    pub(crate) fn choose<'a>(&'a self, choice: &Choice, by_rule: bool) -> Option<Chosen<'a>> {
        let subset = match by_rule {
            true => self.with_labels_of(&choice.labels),
            false => Chosen::Held(self.with_labels(&choice.labels)),
        };
        if !subset.is_empty() {
            return Some(subset);
        }
        match &choice.fallback {
            Fallback::Any => Some(Chosen::There(&self.all)),
            Fallback::None => None,
            Fallback::Sets(sets) => {
                let found = sets.iter().map(|set| self.with_labels(set)).find(|subset| !subset.is_empty());
                found.map(Chosen::Held)
            }
        }
    }

    /// The nodes with the labels of a rule; may be empty.
    fn with_labels_of(&self, rule: &Arc<LabelSet>) -> Chosen<'_> {
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
        let find = || self.chosen.with(|chosen| (chosen.get(labels).cloned(), chosen.len()));
        let subset = match find() {
            (Some(subset), _) => return subset,
            (None, MOST_SUBSETS..) => return self.select(labels, false),
            (None, _) => self.select(labels, true),
        };
        self.chosen.update(|chosen| {
            let mut chosen = chosen.clone();
            if chosen.len() < MOST_SUBSETS {
                chosen.entry(labels.clone()).or_insert_with(|| subset.clone());
            }
            chosen
        });
        // Another thread may have been faster: all of them use the same one.
        find().0.unwrap_or(subset)
    }

    fn select(&self, labels: &LabelSet, is_kept: bool) -> Arc<Subset> {
        let select = |node: &&Arc<Node>| labels.selects(&node.instance.get());
        let nodes = self.all.nodes.iter().filter(select).cloned().collect();
        Subset::new(nodes, self.rotations.of(labels), is_kept)
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
    fn new(nodes: Vec<Arc<Node>>, rotation: Option<Arc<Rotation>>, is_kept: bool) -> Arc<Self> {
        // Weight 0, or a status other than `up`, takes no new calls, unless this is true of all.
        let weighed = nodes.into_iter().map(|node| (u64::from(node.instance.get().effective_weight()), node));
        let mut weighed: Vec<_> = weighed.collect();
        if weighed.iter().any(|(weight, _)| *weight > 0) {
            weighed.retain(|(weight, _)| *weight > 0);
        }
        let same = weighed.windows(2).all(|pair| pair[0].0 == pair[1].0);
        let divisor = weighed.iter().map(|(weight, _)| *weight).fold(0, gcd).max(1);
        let sums = weighed.iter().scan(0, |sum, (weight, _)| {
            *sum += weight / divisor;
            Some(*sum)
        });
        let weights: Option<Box<[u64]>> = (!same).then(|| sums.collect());
        let nodes: Box<[_]> = weighed.into_iter().map(|(_, node)| node).collect();
        let total = weights.as_ref().and_then(|sums| sums.last().copied()).unwrap_or(nodes.len() as u64);
        let panicking = (AtomicU64::new(0), AtomicBool::new(false));
        let (stride, prepared) = (stride(total), OnceLock::new());
        Arc::new(Subset { nodes, weights, stride, rotation, prepared, is_kept, panicking })
    }

    /// The nodes, in a fixed order.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Picks with the picker that `factory` builds for these nodes, once for all calls. The subset must not be empty.
    pub(crate) fn pick_by<R>(&self, factory: &Arc<dyn PickerFactory>, pick: impl Fn(&dyn Picker) -> R) -> R {
        match self.is_kept {
            true => self.prepared.get_or_init(|| Arc::new(Prepared::new())).pick(self, factory, pick),
            false => pick(&Unprepared),
        }
    }

    /// An index drawn in proportion to the weights. The subset must not be empty.
    pub(crate) fn draw(&self, random: &Random) -> usize {
        match &self.weights {
            None => random.below(self.nodes.len()),
            Some(sums) => {
                let total = sums.last().copied().unwrap_or(1);
                let at = random.below(usize::try_from(total).unwrap_or(usize::MAX)) as u64;
                self.at(at, sums)
            }
        }
    }

    /// The index whose turn it is in the round robin, each as often as its weight says. The subset must not
    /// be empty.
    pub(crate) fn turn(&self, random: &Random) -> usize {
        match (&self.rotation, &self.weights) {
            (None, _) => self.draw(random),
            (Some(rotation), None) => rotation.advance(self.nodes.len() as u64, self.stride) as usize,
            (Some(rotation), Some(sums)) => {
                self.at(rotation.advance(sums.last().copied().unwrap_or(1), self.stride), sums)
            }
        }
    }

    /// The node that has the place `at` among all weights together.
    fn at(&self, at: u64, sums: &[u64]) -> usize {
        sums.partition_point(|sum| *sum <= at).min(self.nodes.len() - 1)
    }

    /// The weights of two nodes, in the same unit; `None` where all nodes have the same.
    #[inline]
    pub(crate) fn weights_of(&self, a: usize, b: usize) -> Option<(f64, f64)> {
        let sums = self.weights.as_ref()?;
        let weight = |i: usize| sums[i] - if i == 0 { 0 } else { sums[i - 1] };
        Some((weight(a) as f64, weight(b) as f64))
    }

    /// Two different nodes, the first by its weight; there have to be two.
    #[inline]
    pub(crate) fn draw_two(&self, random: &Random) -> (usize, usize) {
        let count = self.nodes.len();
        if self.weights.is_none() {
            return random.two_below(count);
        }
        let (a, b) = (self.draw(random), self.draw(random));
        // A second draw of the same node would be no choice: then it is any other, each as likely.
        (a, if a == b { (a + 1 + random.below(count - 1)) % count } else { b })
    }

    /// Is more than half of what is ready out by an open circuit? Then circuits are ignored, unless they
    /// are held open by hand.
    ///
    /// After Envoy's panic threshold and Finagle's panic mode. Worked out once per change. That the time
    /// of an open circuit is over is no change yet, but the first call there makes it one.
    #[inline]
    pub(crate) fn is_panicking(&self, epoch: u64, now: Instant, rules: &NodeRules<'_>) -> bool {
        if rules.breaker.is_none_or(|breaker| breaker.force != Force::Auto) {
            return false;
        }
        if self.panicking.0.load(Ordering::Acquire) == epoch + 1 {
            return self.panicking.1.load(Ordering::Relaxed);
        }
        let (mut ready, mut out) = (0u64, 0u64);
        for node in &self.nodes {
            if node.connection() == Connection::Ready {
                let weight = u64::from(node.instance.get().effective_weight().max(1));
                ready += weight;
                out += if node.circuit(now, rules) == State::Open { weight } else { 0 };
            }
        }
        let panicking = out * 2 > ready;
        self.panicking.1.store(panicking, Ordering::Relaxed);
        self.panicking.0.store(epoch + 1, Ordering::Release);
        panicking
    }
}
