//! The nodes at one moment, and the subsets of them that calls may go to.
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    directory::NotKnown,
    link::{Changes, Connection},
    node::Node,
    offload::IN_PLACE,
    picker::{Picker, PickerFactory},
    prepared::{Prepared, Unprepared},
    rotation::{MOST_SUBSETS, Rotation, Rotations, gcd, stride},
    rules::NodeRules,
    tiers::Tiers,
};
use crate::{
    Live,
    algorithm::circuit::{Force, State},
    clock::Instant,
    random::Random,
    striped::Striped,
    types::{Choice, Fallback, LabelSet},
};

/// The nodes of one snapshot of the registry.
pub struct Members {
    /// The registry's answer; `None` before the first one.
    known: Option<Known>,
    hint: Option<Hint>,
    /// All nodes, including those of weight 0.
    nodes: Box<[Arc<Node>]>,
    all: Arc<Subset>,
    chosen: Live<HashMap<LabelSet, Arc<Subset>, foldhash::fast::RandomState>>,
    /// The first few subsets again, by the label sets of the rules: found without hashing. Threads have sets of
    /// their own, as they have rules.
    first: Striped<[ByRule; 4]>,
    /// The positions of the round robin over each subset: shared with earlier and later snapshots.
    rotations: Arc<Rotations>,
}

/// The labels of a rule, and the nodes that have them.
type ByRule = OnceLock<(Arc<LabelSet>, Arc<Subset>)>;

/// The meaning of a registry's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It has instances, or had some and reports no deletion.
    Service,
    /// The registry does not know the service.
    Unknown,
    /// The service was deleted.
    Deleted,
}

/// A hint for calls that find no node.
#[derive(Clone, Debug)]
pub(super) enum Hint {
    /// The error of its calls, if the registry does not know the service.
    NotKnown(NotKnown),
    /// The protocols of the instances, none of which has the protocol of this cluster.
    Protocols(Arc<str>),
    /// The environments of the instances, none of which is in that of the caller.
    Environments(Arc<str>),
}

/// The result of a choice.
pub(crate) enum Choosing<'a> {
    /// These nodes, of which there is at least one.
    Chosen(Chosen<'a>),
    /// No node has the labels, nor those of the fallback.
    Nowhere,
    /// The nodes with the labels have to be collected first, from many.
    Unprepared,
}

/// The chosen nodes: a reference to a stored subset, or a subset that was just built.
pub(crate) enum Chosen<'a> {
    There(&'a Subset),
    Held(Arc<Subset>),
}

/// The nodes that a call may go to, in a fixed order, with their weights.
pub struct Subset {
    nodes: Box<[Arc<Node>]>,
    /// The same nodes by priority, if there are several priorities. Then pickers pick among those of one.
    tiers: Option<Box<Tiers>>,
    /// Running sums of the weights, divided by their greatest common divisor; `None` if all are the same.
    weights: Option<Box<[u64]>>,
    /// The distance between successive positions of the round robin.
    stride: u64,
    /// The position of the round robin; `None` if there are more label sets than are kept.
    rotation: Option<Arc<Rotation>>,
    /// Its pickers; unset if no call needed one.
    prepared: OnceLock<Arc<Prepared>>,
    /// Whether later calls find this subset again. Otherwise it was built for one call.
    is_kept: bool,
    /// Whether calls used it since the last snapshot.
    is_used: AtomicBool,
    /// The epoch of the changes at which `panicking` was computed, plus one, and the result.
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
        let all = Subset::of(nodes.clone(), &rotations, &LabelSet::default(), true);
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
    /// stay; others are built anew, if they were used. So are the subsets themselves if there are many nodes, so that no
    /// call has to build them. `has_changed`: the instance of this node is another one.
    pub(super) fn take_over(&mut self, before: &Members, has_changed: impl Fn(&Node) -> bool) {
        let take_tier = |old: &Subset, new: &Subset, is_used: bool| {
            let Some(prepared) = old.prepared.get() else { return };
            let is_same = |(a, b): (&Arc<Node>, &Arc<Node>)| Arc::ptr_eq(a, b) && !has_changed(b);
            let taken =
                match old.nodes.len() == new.nodes.len() && old.nodes.iter().zip(&new.nodes).all(is_same) {
                    true => prepared.clone(),
                    false if is_used && !new.is_empty() => Arc::new(prepared.rebuilt(new)),
                    false => return,
                };
            let _ = new.prepared.set(taken); // no other thread has this subset yet
        };
        // Those of a priority come from the same one. A new priority has those of the first one: calls may need them.
        let take = |old: &Subset, new: &Subset, is_used: bool| {
            let before = old.tiers();
            for (priority, new) in new.tiers() {
                let same = before.iter().find(|(other, _)| *other == priority);
                if let Some((_, old)) = same.or(before.first()) {
                    take_tier(old, new, is_used);
                }
            }
        };
        let is_used = |subset: &Subset| {
            let tiers = subset.tiers().into_iter().filter_map(|(_, tier)| tier.prepared.get());
            tiers.fold(false, |is_used, prepared| prepared.take_used() | is_used)
        };
        let is_prepared =
            |subset: &Subset| subset.tiers().iter().any(|(_, tier)| tier.prepared.get().is_some());
        take(&before.all, &self.all, is_used(&before.all));
        let is_large = self.nodes.len() > IN_PLACE;
        let mut chosen = HashMap::default();
        before.chosen.with(|old| {
            let is_full = old.len() >= MOST_SUBSETS;
            for (labels, subset) in old.iter() {
                let was_prepared = is_prepared(subset);
                let is_used = is_used(subset) || is_large && subset.is_used.load(Ordering::Relaxed);
                // Label sets that are not used any more must not take the room of others for ever.
                if (is_large || was_prepared) && (is_used || !is_full && was_prepared) {
                    let new = self.select(labels, true);
                    take(subset, &new, is_used);
                    if is_large || is_prepared(&new) {
                        chosen.insert(labels.clone(), new);
                    }
                }
            }
        });
        self.chosen = Live::new(chosen);
    }

    /// The registry's last answer; `None` before the first one.
    pub fn known(&self) -> Option<Known> {
        self.known
    }

    /// The error of calls to this service, if the registry does not know it and has listed the others.
    pub(crate) fn not_known(&self) -> Option<&NotKnown> {
        match &self.hint {
            Some(Hint::NotKnown(error)) => Some(error),
            _ => None,
        }
    }

    /// The protocols of its instances, if none of them has that of this cluster: `grpc, line`.
    pub(crate) fn other_protocols(&self) -> Option<&str> {
        match &self.hint {
            Some(Hint::Protocols(protocols)) => Some(protocols),
            _ => None,
        }
    }

    /// The environments of its instances, if none of them is in that of the caller: `staging, test`.
    pub(crate) fn other_environments(&self) -> Option<&str> {
        match &self.hint {
            Some(Hint::Environments(environments)) => Some(environments),
            _ => None,
        }
    }

    /// All nodes, including those of weight 0.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// All nodes that accept calls.
    pub fn all(&self) -> &Arc<Subset> {
        &self.all
    }

    /// The nodes that a call with this choice may go to, with the choice's fallback if none has its labels. `by_rule`: a
    /// rule made the choice, so many calls have the identical one.
    pub(crate) fn choose<'a>(&'a self, choice: &Choice, by_rule: bool) -> Choosing<'a> {
        let first = match by_rule {
            true => self.with_labels_of(&choice.labels),
            false => self.with_labels(&choice.labels).map(Chosen::Held),
        };
        match first {
            Some(subset) => self.choose_from(subset, &choice.fallback, |labels| self.with_labels(labels)),
            None => Choosing::Unprepared,
        }
    }

    /// The nodes of a choice, of which `subset` are those with its labels.
    fn choose_from<'a>(
        &'a self,
        subset: Chosen<'a>,
        fallback: &Fallback,
        with_labels: impl Fn(&LabelSet) -> Option<Arc<Subset>>,
    ) -> Choosing<'a> {
        subset.mark_used();
        if !subset.is_empty() {
            return Choosing::Chosen(subset);
        }
        let sets = match fallback {
            Fallback::Any => return Choosing::Chosen(Chosen::There(&self.all)),
            Fallback::None => return Choosing::Nowhere,
            Fallback::Sets(sets) => sets,
        };
        for labels in sets.iter() {
            let Some(subset) = with_labels(labels) else { return Choosing::Unprepared };
            subset.mark_used();
            if !subset.is_empty() {
                return Choosing::Chosen(Chosen::Held(subset));
            }
        }
        Choosing::Nowhere
    }

    /// Does what takes time in proportion to the number of nodes, for calls with this choice: collects the nodes, and has
    /// `factory` build its pickers for them. Returns the nodes if later calls do not find them; `None` for no node.
    pub(super) fn prepare(
        &self,
        choice: Option<&Choice>,
        factory: Option<&Arc<dyn PickerFactory>>,
    ) -> Option<Arc<Subset>> {
        let build = |labels: &LabelSet| Some(self.build(labels));
        let chosen = match choice {
            None => Choosing::Chosen(Chosen::There(&self.all)),
            Some(choice) => {
                self.choose_from(Chosen::Held(self.build(&choice.labels)), &choice.fallback, build)
            }
        };
        let Choosing::Chosen(chosen) = chosen else { return None };
        if let Some(factory) = factory {
            chosen.tiers().into_iter().for_each(|(_, tier)| tier.prepare(factory));
        }
        match chosen {
            Chosen::Held(subset) => Some(subset),
            Chosen::There(_) => Some(self.all.clone()),
        }
    }

    /// The nodes with the labels of a rule, which may be none; `None` if they have to be collected from many.
    fn with_labels_of(&self, rule: &Arc<LabelSet>) -> Option<Chosen<'_>> {
        let first = self.first.mine(Default::default);
        let taken = first.iter().map_while(OnceLock::get);
        if let Some((_, subset)) = taken.clone().find(|(labels, _)| Arc::ptr_eq(labels, rule)) {
            return Some(Chosen::There(subset));
        }
        let subset = self.with_labels(rule)?;
        if let Some(free) = first.get(taken.count()) {
            let _ = free.set((rule.clone(), subset.clone())); // unless another thread was faster
        }
        Some(Chosen::Held(subset))
    }

    /// The nodes with `labels`, which may be none; `None` if they have to be collected from many.
    fn with_labels(&self, labels: &LabelSet) -> Option<Arc<Subset>> {
        match self.nodes.len() > IN_PLACE && !labels.is_empty() {
            true => self.chosen.with(|chosen| chosen.get(labels).cloned()),
            false => Some(self.build(labels)),
        }
    }

    /// The nodes with `labels`, which are collected if they were not before; may be empty.
    fn build(&self, labels: &LabelSet) -> Arc<Subset> {
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
        let select = |node: &&Arc<Node>| node.instance.with(|instance| labels.selects(instance));
        let nodes = self.all.nodes.iter().filter(select).cloned().collect();
        Subset::of(nodes, &self.rotations, labels, is_kept)
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
    /// The nodes with `labels`, by priority.
    fn of(nodes: Vec<Arc<Node>>, rotations: &Rotations, labels: &LabelSet, is_kept: bool) -> Arc<Self> {
        // Weight 0, or a status other than `up`, takes no new calls, unless this is true of all.
        let figures = |node: &Node| {
            node.instance.with(|instance| {
                let weight = instance.effective_weight();
                (u64::from(weight), u64::from(instance.weight.max(weight)), instance.priority)
            })
        };
        let weighed = nodes.into_iter().map(|node| (figures(&node), node));
        let mut weighed: Vec<_> = weighed.collect();
        let mut out = BTreeMap::new();
        if weighed.iter().any(|((weight, ..), _)| *weight > 0) {
            for ((_, stated, priority), _) in weighed.iter().filter(|((weight, ..), _)| *weight == 0) {
                *out.entry(*priority).or_insert(0) += stated;
            }
            weighed.retain(|((weight, ..), _)| *weight > 0);
        }
        let first = weighed.first().map(|((.., priority), _)| *priority);
        let has_several = weighed.iter().any(|((.., priority), _)| Some(*priority) != first);
        let tiers = has_several.then(|| {
            let mut by_priority: BTreeMap<u32, Vec<_>> = BTreeMap::new();
            for ((weight, _, priority), node) in &weighed {
                by_priority.entry(*priority).or_default().push((*weight, node.clone()));
            }
            Box::new(Tiers::new(by_priority.into_iter().map(|(priority, weighed)| {
                let rotation = rotations.of(labels, Some(priority));
                let out = out.get(&priority).copied().unwrap_or(0);
                (priority, Arc::new(Subset::new(weighed, None, rotation, is_kept)), out)
            })))
        });
        let rotation = rotations.of(labels, None);
        let weighed = weighed.into_iter().map(|((weight, ..), node)| (weight, node)).collect();
        Arc::new(Subset::new(weighed, tiers, rotation, is_kept))
    }

    /// Nodes with their weights.
    fn new(
        weighed: Vec<(u64, Arc<Node>)>,
        tiers: Option<Box<Tiers>>,
        rotation: Option<Arc<Rotation>>,
        is_kept: bool,
    ) -> Self {
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
        let (stride, prepared, is_used) = (stride(total), OnceLock::new(), AtomicBool::new(false));
        Subset { nodes, tiers, weights, stride, rotation, prepared, is_kept, is_used, panicking }
    }

    /// The nodes of each priority, with the priority; a subset with one priority is its own.
    fn tiers(&self) -> Vec<(u32, &Subset)> {
        match &self.tiers {
            Some(tiers) => tiers.all().map(|(priority, nodes)| (priority, &**nodes)).collect(),
            None => {
                let first = self.nodes.first();
                let priority = first.map_or(0, |node| node.instance.with(|instance| instance.priority));
                vec![(priority, self)]
            }
        }
    }

    /// The nodes by priority, if there are several priorities.
    #[inline]
    pub(crate) fn by_priority(&self) -> Option<&Tiers> {
        self.tiers.as_deref()
    }

    /// The nodes, in a fixed order.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// A call uses it. Most calls only read the flag, because a write would move the cache line between threads.
    #[inline]
    fn mark_used(&self) {
        if !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::Relaxed);
        }
    }

    /// Picks with the picker that `factory` builds for these nodes, once for all calls. The subset must not be empty.
    /// `None` if there is no picker yet, and it has to be built for many nodes.
    pub(crate) fn pick_by<R>(
        &self,
        factory: &Arc<dyn PickerFactory>,
        pick: impl Fn(&dyn Picker) -> R,
    ) -> Option<R> {
        match self.is_kept {
            true => {
                let prepared = self.prepared.get_or_init(|| Arc::new(Prepared::new()));
                prepared.pick(self, factory, self.nodes.len() <= IN_PLACE, pick)
            }
            false => Some(pick(&Unprepared)),
        }
    }

    /// Whether there is a picker of `factory` for the nodes of each priority.
    pub(crate) fn is_prepared(&self, factory: &Arc<dyn PickerFactory>) -> bool {
        let has = |tier: &Subset| {
            !tier.is_kept || tier.prepared.get().is_some_and(|prepared| prepared.has(factory))
        };
        self.tiers().into_iter().all(|(_, tier)| has(tier))
    }

    /// Has `factory` build its picker for these nodes, unless there is one.
    fn prepare(&self, factory: &Arc<dyn PickerFactory>) {
        if self.is_kept && !self.is_empty() {
            self.prepared.get_or_init(|| Arc::new(Prepared::new())).build(self, factory);
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

    /// The next index of the round robin, each as often as its weight. The subset must not be empty.
    pub(crate) fn turn(&self, random: &Random) -> usize {
        match (&self.rotation, &self.weights) {
            (None, _) => self.draw(random),
            (Some(rotation), None) => rotation.advance(self.nodes.len() as u64, self.stride) as usize,
            (Some(rotation), Some(sums)) => {
                self.at(rotation.advance(sums.last().copied().unwrap_or(1), self.stride), sums)
            }
        }
    }

    /// The node at position `at` of the sum of all weights.
    fn at(&self, at: u64, sums: &[u64]) -> usize {
        sums.partition_point(|sum| *sum <= at).min(self.nodes.len() - 1)
    }

    /// The weights of two nodes, in the same unit; `None` if all nodes have the same.
    #[inline]
    pub(crate) fn weights_of(&self, a: usize, b: usize) -> Option<(f64, f64)> {
        let sums = self.weights.as_ref()?;
        let weight = |i: usize| sums[i] - if i == 0 { 0 } else { sums[i - 1] };
        Some((weight(a) as f64, weight(b) as f64))
    }

    /// Two different nodes, the first by its weight; there must be at least two.
    #[inline]
    pub(crate) fn draw_two(&self, random: &Random) -> (usize, usize) {
        let count = self.nodes.len();
        if self.weights.is_none() {
            return random.two_below(count);
        }
        let (a, b) = (self.draw(random), self.draw(random));
        // A second draw of the same node would be no choice: then it is any other one, with equal probability.
        (a, if a == b { (a + 1 + random.below(count - 1)) % count } else { b })
    }

    /// Whether more than half of the ready nodes have an open circuit. Then circuits are ignored, unless they
    /// are forced open.
    ///
    /// After Envoy's panic threshold and Finagle's panic mode. Computed once per change. The end of a circuit's
    /// open time is no change yet, but the first call to that node makes it one.
    #[inline]
    pub(crate) fn is_panicking(&self, changes: &Changes, now: Instant, rules: &NodeRules<'_>) -> bool {
        if rules.breaker.is_none_or(|breaker| breaker.force != Force::Auto) {
            return false;
        }
        if changes.guarded.load(Ordering::Acquire) == 0 {
            return false;
        }
        let epoch = changes.epoch.load(Ordering::Acquire);
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
