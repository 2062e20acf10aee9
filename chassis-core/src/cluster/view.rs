//! The accepted instances of a cluster, and the steps from an answer of the registry to the nodes of calls.
//!
//! Each function takes time in proportion to the number of instances; `follow` calls it where that delays no call.
use std::{
    collections::{BTreeSet, HashSet},
    mem,
    sync::Arc,
};

use tokio::sync::watch;

use super::{
    Cluster, Known, Node,
    belief::{Belief, News},
    directory::NotKnown,
    last_good::Snapshot,
    link::Connection,
    members::Hint,
};
use crate::{
    clock::Instant,
    event::Event,
    plugin::registry::{Instance, Membership},
};

/// The number of kept instances that are connected to at a time, to check whether they run.
const PROBES: usize = 32;
/// The number of invalid instances of one answer that are reported individually.
const MOST_REFUSED: usize = 10;
/// The number of listeners or environments of other instances that a message lists for a caller that finds none.
const MOST_LISTED: usize = 8;

/// The accepted instances of a cluster.
pub(super) struct View {
    /// The number of the follower.
    following: u64,
    belief: Belief,
    /// The invalid instances of the last answer.
    refused: HashSet<String>,
    /// The number of kept instances in the last report.
    held: usize,
    /// The nodes of the kept instances.
    held_nodes: Vec<Arc<Node>>,
    /// The reason why none of the instances of the last answer can be called, if there were some.
    others: Option<Hint>,
    /// Takes what is to be written to the file of the last good set; `None` if none is kept.
    save: Option<watch::Sender<Snapshot>>,
}

/// The parts of a view that its follower reads without it.
pub(super) struct Summary {
    /// The number of accepted instances.
    pub(super) instances: usize,
    /// The number of those that are kept although the registry removed them.
    pub(super) held: usize,
    /// The next time at which something changes without an answer of the registry.
    pub(super) due: Option<Instant>,
    /// There was no answer yet.
    pub(super) is_unset: bool,
    /// The registry does not know the service.
    pub(super) is_unknown: bool,
}

// === impl View ===

impl View {
    pub(super) fn new(following: u64, is_saved: bool) -> Self {
        View {
            following,
            belief: Belief::default(),
            refused: HashSet::new(),
            held: 0,
            held_nodes: Vec::new(),
            others: None,
            save: is_saved.then(Default::default),
        }
    }

    /// The sets that are to be saved.
    pub(super) fn snapshots(&self) -> Option<watch::Receiver<Snapshot>> {
        self.save.as_ref().map(watch::Sender::subscribe)
    }

    pub(super) fn summary(&self, cluster: &Cluster) -> Summary {
        Summary {
            instances: self.belief.set().len(),
            held: self.belief.held(),
            due: self.belief.due(cluster.lookup.hold().as_ref()),
            is_unset: self.belief.is_unset(),
            is_unknown: self.belief.is_unknown(),
        }
    }

    /// Applies an answer of the registry. `error`: that of calls, if it does not know the service.
    pub(super) fn take_in(&mut self, cluster: &Cluster, said: Membership, error: Option<NotKnown>) {
        let said = match said {
            Membership::Known(instances) => {
                self.others = cluster.out_of_reach(&instances);
                Membership::Known(self.usable(cluster, instances))
            }
            other => {
                self.others = None;
                other
            }
        };
        let news = self.belief.accept(said, Instant::now(), cluster.lookup.hold().as_ref());
        self.apply(cluster, news, error);
        let Some(save) = &self.save else { return };
        save.send_if_modified(|snapshot| {
            if snapshot.instances.is_none() && !self.belief.set().is_empty() {
                snapshot.instances = Some(self.belief.shared());
            }
            !mem::replace(&mut snapshot.is_current, true)
        });
    }

    /// Uses instances that were saved, because there was no answer yet; returns their number, if there are valid ones.
    pub(super) fn restore(&mut self, cluster: &Cluster, saved: Vec<Arc<Instance>>) -> Option<usize> {
        let instances = self.usable(cluster, saved);
        let count = instances.len();
        if count == 0 {
            return None;
        }
        let news = self.belief.accept(Membership::Known(instances), Instant::now(), None);
        let News::Set { known, .. } = news else { return None };
        cluster.replace(self.following, known, None, self.belief.set(), false);
        Some(count)
    }

    /// The time is `now`, and the registry has no news.
    pub(super) fn pass(&mut self, cluster: &Cluster, now: Instant) {
        let news = self.belief.pass(now, cluster.lookup.hold().as_ref());
        self.apply(cluster, news, None);
    }

    /// Calls get this error from now on, if the registry still does not know the service.
    pub(super) fn explain(&mut self, cluster: &Cluster, error: NotKnown) {
        if self.belief.is_unknown() {
            cluster.replace(self.following, Known::Unknown, Some(Hint::NotKnown(error)), &[], false);
        }
    }

    /// Removes the kept instances that cannot be connected to.
    pub(super) fn give_up_unreachable(&mut self, cluster: &Cluster) {
        let failed = |node: &&Arc<Node>| node.connection() == Connection::TransientFailure;
        let gone: Vec<_> = self.held_nodes.iter().filter(failed).map(|node| node.id().to_owned()).collect();
        if !gone.is_empty() {
            let news = self.belief.give_up(&gone);
            self.apply(cluster, news, None);
            self.probe();
        }
    }

    /// The registry fails: what is saved is of an earlier time.
    pub(super) fn outdated(&self) {
        if let Some(save) = &self.save {
            save.send_if_modified(|snapshot| mem::replace(&mut snapshot.is_current, false));
        }
    }

    fn apply(&mut self, cluster: &Cluster, news: News, error: Option<NotKnown>) {
        let service = || cluster.service().clone();
        match news {
            News::None => {}
            News::EmptyHeld(kept) => {
                cluster.reporter().events.emit(Event::EmptySetHeld { service: service(), kept });
            }
            News::Set { known, returned, held } => {
                let hint = error.map(Hint::NotKnown).or_else(|| self.others.clone());
                // A first answer without instances may come from a registry that has lost them: the file stays.
                let had_some = cluster.with_members(|members| !members.nodes().is_empty());
                if let Some(save) = &self.save
                    && (had_some || !self.belief.set().is_empty())
                {
                    let instances = Some(self.belief.shared());
                    save.send_modify(|snapshot| *snapshot = Snapshot { instances, is_current: true });
                }
                cluster.replace(self.following, known, hint, self.belief.set(), returned);
                let held_before = mem::replace(&mut self.held, self.belief.held());
                cluster.count_held(held_before, self.held);
                self.held_nodes = match self.held {
                    0 => Vec::new(),
                    _ => {
                        let members = cluster.members();
                        let held = members.nodes().iter().filter(|node| self.belief.holds(node.id()));
                        held.cloned().collect()
                    }
                };
                if held > 0 {
                    let left = self.belief.set().len() - self.belief.held();
                    cluster.reporter().events.emit(Event::RemovalsHeld { service: service(), held, left });
                    self.probe();
                }
            }
        }
    }

    /// Connects to some of the kept instances, unless calls do so already: an unreachable one is removed, and then the
    /// next ones are connected to.
    fn probe(&self) {
        let are = |connection| self.held_nodes.iter().filter(move |node| node.connection() == connection);
        let left = PROBES.saturating_sub(are(Connection::Connecting).count());
        are(Connection::Idle).take(left).for_each(|node| node.wake());
    }

    /// The instances that can be called over this cluster's protocol, each once.
    fn usable(&mut self, cluster: &Cluster, mut instances: Vec<Arc<Instance>>) -> Vec<Arc<Instance>> {
        let before = mem::take(&mut self.refused);
        let (mut refused, mut new) = (HashSet::new(), 0);
        let mut refuse = |id: &str, why: String| {
            if !before.contains(&why) && !refused.contains(&why) {
                new += 1;
                cluster.reporter().metrics.instance_refused();
                if new <= MOST_REFUSED {
                    let (service, instance) = (cluster.service().clone(), id.to_owned());
                    cluster
                        .reporter()
                        .events
                        .emit_caused(&why, Event::InstanceRefused { service, instance, why: why.clone() });
                }
            }
            refused.insert(why);
        };
        let mut seen =
            HashSet::with_capacity_and_hasher(instances.len(), foldhash::fast::RandomState::default());
        let is_usable = |instance: &Arc<Instance>| {
            if !instance.addresses.contains_key(&cluster.listener)
                || !instance.is_in(&cluster.lookup.environment)
            {
                return false;
            }
            if let Err(error) = instance.check_for(&cluster.registered) {
                refuse(&instance.id, error.to_string());
                return false;
            }
            true
        };
        instances.retain(is_usable);
        let is_first: Vec<bool> =
            instances.iter().map(|instance| seen.insert(instance.id.as_str())).collect();
        drop(seen);
        if is_first.contains(&false) {
            let mut is_first = is_first.into_iter();
            instances.retain(|instance| {
                let first = is_first.next().unwrap_or(true);
                if !first {
                    refuse(&instance.id, format!("another instance has the id `{}`", instance.id));
                }
                first
            });
        }
        if new > MOST_REFUSED {
            let service = &**cluster.service();
            tracing::warn!(target: "chassis", service, refused = new, "more instances were refused than are named");
        }
        self.refused = refused;
        instances
    }
}

// === impl Summary ===

impl Default for Summary {
    fn default() -> Self {
        Summary { instances: 0, held: 0, due: None, is_unset: true, is_unknown: false }
    }
}

// === impl Cluster ===

impl Cluster {
    /// The reason why no calls go to any of `instances`: none has the listener, or those that have it are in other
    /// environments.
    fn out_of_reach(&self, instances: &[Arc<Instance>]) -> Option<Hint> {
        let has_listener = |instance: &&Arc<Instance>| instance.addresses.contains_key(&self.listener);
        let (mut others, mut in_reach) = (BTreeSet::new(), false);
        for instance in instances.iter().filter(has_listener) {
            in_reach |= instance.is_in(&self.lookup.environment);
            others.insert(instance.environment());
        }
        if in_reach {
            return None;
        }
        if !others.is_empty() {
            return Some(Hint::Environments(listed(others)));
        }
        let spoken: BTreeSet<_> = instances.iter().flat_map(|instance| instance.addresses.keys()).collect();
        (!spoken.is_empty()).then(|| Hint::Protocols(listed(spoken)))
    }
}

/// The first few names, because a registry may contain any number of them.
fn listed(names: BTreeSet<&str>) -> Arc<str> {
    let mut first: Vec<_> =
        names.iter().take(MOST_LISTED).map(|name| name.escape_debug().to_string()).collect();
    if names.len() > MOST_LISTED {
        first.push("…".to_owned());
    }
    first.join(", ").into()
}
