//! The nodes of one service over one transport: the known nodes, and the history of each.
//!
//! An *instance* is an entry of the registry; a *node* is one instance over one protocol with its load, its
//! circuit and its connection. Nodes survive updates of the set, so their history is not lost.
mod belief;
mod directory;
mod follow;
mod grace;
mod last_good;
mod link;
mod load;
mod members;
mod node;
mod offload;
mod picker;
mod prepared;
mod rotation;
mod rules;
mod tiers;
mod trust;
mod view;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

pub use self::{
    directory::KnownServices,
    grace::Grace,
    last_good::LastGoodConfig,
    link::{Connection, Link},
    load::Load,
    members::{Known, Members, Subset},
    node::Node,
    picker::{Candidates, Picker, PickerFactory},
    trust::HoldConfig,
};
pub(crate) use self::{
    directory::{Directory, not_known},
    grace::{Awaits, Start},
    link::Changes,
    members::{Choosing, Chosen},
    node::{Admitted, AnyLeaf, LeafMaker, UNGUARDED},
    offload::{drop_list, offload},
    rules::NodeRules,
    tiers::{Tiered, Tiers},
};
use self::{
    follow::follow,
    link::Common,
    load::UsualLatency,
    members::Hint,
    node::{OfCluster, Siblings},
    offload::drop_members,
    rotation::Rotations,
};
use crate::{
    Live,
    algorithm::circuit::Circuit,
    clock::Instant,
    event::Event,
    plugin::registry::{Instance, Registry, split_listener},
    random::Random,
    reporter::Reporter,
    tasks::{Tasks, catch},
    types::Choice,
};

/// The nodes of one service over one protocol, following the registry.
///
/// A cluster without nodes that gets no calls stops following until the next call: names that come from input
/// leave nothing behind.
pub struct Cluster {
    /// The service as the registry knows it: the cluster's name without the listener.
    registered: Arc<str>,
    /// The listener of the service that its calls go to.
    listener: Arc<str>,
    /// The name of the registry that it is looked up in.
    registry: Arc<str>,
    lookup: Arc<Lookup>,
    keeper: Weak<dyn Keeper>,
    /// Odd while a task follows the registry; each follower has a number of its own.
    following: AtomicU64,
    /// The last time at which a call was refused, or began to wait, because there were no nodes: milliseconds
    /// after `begun`.
    asked: AtomicU64,
    begun: Instant,
    /// The time at which the current follower began: milliseconds after `begun`.
    followed: AtomicU64,
    /// The last error of the registry, until it answers.
    trouble: Mutex<Option<Arc<str>>>,
    /// Whether there ever was a node.
    had_nodes: AtomicBool,
    /// Held while something is prepared for calls, so that it is done once for all of them.
    preparing: tokio::sync::Mutex<()>,
    /// Calls that wait for a node.
    waiting: AtomicU64,
    /// Those of them that wait for the service to be announced.
    awaited: AtomicUsize,
    /// Notifies the follower that it must end.
    over: tokio::sync::Notify,
    /// Held while the members are changed: a follower that has ended changes them no more.
    changing: Mutex<()>,
    members: Live<Members>,
    rotations: Arc<Rotations>,
    common: Arc<Common>,
    leaves: LeafMaker,
    of_nodes: Arc<OfCluster>,
}

/// Where services are looked up, and as whom.
pub(crate) struct Lookup {
    pub registry: Arc<dyn Registry>,
    /// Instances of other environments are not called. Empty: only those that state none are.
    pub environment: Arc<str>,
    /// `None`: nothing is kept on disk.
    pub last_good: Option<LastGoodConfig>,
    /// When removed instances are kept for a while; `None`: never.
    pub hold: watch::Sender<Option<HoldConfig>>,
    /// The first moments of the process.
    pub start: Start,
    /// The services that the registry knows.
    pub directory: Directory,
}

/// The nodes of a call that were collected for it from many, because later calls do not find them; `None` if no node has
/// the labels.
#[derive(Clone, Default)]
pub(crate) struct Collected {
    /// Of these members. Not held: they are dropped where that delays no call.
    of: Weak<Members>,
    nodes: Option<Arc<Subset>>,
}

/// How long a call that finds no node waits for one.
#[derive(Clone, Copy)]
pub(crate) enum Patience {
    /// It does not: the reason is known.
    None,
    /// Until this time, for the first answer of the registry.
    Answer(Instant),
    /// Until this time, for the service to be announced.
    Announcement(Instant),
}

/// The owner of clusters, from a cluster's point of view.
pub(crate) trait Keeper: Send + Sync {
    /// `cluster` gets no calls and has no nodes: ends its follower with [`retire`](Cluster::retire), unless it
    /// must continue. Returns `false` if it continues.
    fn retire(&self, cluster: &Arc<Cluster>) -> bool;
}

/// A call that waits for a node.
pub(crate) struct Waiting<'a>(&'a Cluster);

/// The nodes of the members that are replaced, by the ids of their instances.
struct Before<'a> {
    nodes: &'a [Arc<Node>],
    is_kept: Vec<bool>,
    /// The position after the last one that was found: most snapshots differ little from the one before.
    next: usize,
    /// All positions; `None` until an instance was not at the next one.
    by_id: Option<HashMap<&'a str, usize, foldhash::fast::RandomState>>,
}

/// The time for which a service without instances is followed after its last call.
pub(crate) const IDLE: Duration = Duration::from_secs(300);
/// Calls wait for the first answer of a registry until this time after it was first asked. Then they fail until it
/// answers.
pub(crate) const FIRST_ANSWER: Duration = Duration::from_secs(5);

// === impl Lookup ===

impl Lookup {
    fn hold(&self) -> Option<HoldConfig> {
        *self.hold.borrow()
    }
}

// === impl Cluster ===

impl Cluster {
    /// Starts to follow `service` in the background; ends with `tasks`.
    pub(crate) fn start(
        service: Arc<str>,
        leaves: LeafMaker,
        lookup: Arc<Lookup>,
        keeper: Weak<dyn Keeper>,
        reporter: Reporter,
        tasks: Tasks,
        random: Random,
    ) -> Arc<Self> {
        let rotations = Arc::new(Rotations::new(random.clone()));
        let members = Live::new(Members::new(None, None, Vec::new(), rotations.clone()));
        let (registered, listener) = split_listener(&service);
        let (registered, listener): (Arc<str>, Arc<str>) =
            (registered.into(), listener.unwrap_or(leaves.protocol).into());
        let metrics = Some(reporter.metrics.clone());
        // The name comes from code of another crate.
        let registry =
            catch(|| lookup.registry.looked_up_in(&registered).into()).unwrap_or_else(|_| "?".into());
        let cluster = Arc::new_cyclic(|cluster: &Weak<Cluster>| Cluster {
            registered,
            listener,
            registry,
            lookup,
            keeper,
            following: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            begun: Instant::now(),
            followed: AtomicU64::new(0),
            trouble: Mutex::default(),
            had_nodes: AtomicBool::new(false),
            preparing: tokio::sync::Mutex::default(),
            waiting: AtomicU64::new(0),
            awaited: AtomicUsize::new(0),
            over: tokio::sync::Notify::new(),
            changing: Mutex::default(),
            members,
            rotations,
            common: Arc::new(Common { service, changes: Changes::new(), tasks, random, metrics }),
            leaves,
            of_nodes: Arc::new(OfCluster {
                reporter,
                usual: UsualLatency::default(),
                siblings: cluster.clone(),
            }),
        });
        cluster.asked(cluster.begun);
        cluster
    }

    /// The service's name, with the listener where one was asked for: `stock:admin`.
    pub fn service(&self) -> &Arc<str> {
        &self.common.service
    }

    /// The service's name in the registry, without a listener.
    pub(crate) fn registered(&self) -> &str {
        &self.registered
    }

    /// The protocol of its nodes.
    pub fn protocol(&self) -> &'static str {
        self.leaves.protocol
    }

    /// The listener of its nodes that calls go to; where none was asked for, that of the protocol's name.
    pub fn listener(&self) -> &str {
        &self.listener
    }

    /// The current members.
    pub fn members(&self) -> Arc<Members> {
        self.members.get()
    }

    /// Passes the current members to `look`, without a reference count.
    pub(crate) fn with_members<R>(&self, look: impl FnOnce(&Members) -> R) -> R {
        self.members.with(|members| look(members))
    }

    /// The reporter of the balance layer.
    pub(crate) fn reporter(&self) -> &Reporter {
        &self.of_nodes.reporter
    }

    pub(crate) fn random(&self) -> &Random {
        &self.common.random
    }

    /// Waits until something changes that a pick depends on. Create the future, check, then await it.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.common.changes.notify.notified()
    }

    /// The changes that picks depend on.
    pub(crate) fn changes(&self) -> &Changes {
        &self.common.changes
    }

    /// A call finds no node at `now`: the registry is followed again, if it was not.
    pub(crate) fn asked(self: &Arc<Self>, now: Instant) {
        self.asked.store(now.millis_since(self.begun), Ordering::Relaxed);
        let before = self.following.load(Ordering::Acquire);
        let begins = |before| {
            self.following.compare_exchange(before, before + 1, Ordering::AcqRel, Ordering::Acquire).is_ok()
        };
        if before.is_multiple_of(2) && begins(before) {
            self.followed.store(now.millis_since(self.begun), Ordering::Relaxed);
            self.common.tasks.spawn(follow(self.clone(), before + 1));
        }
    }

    /// A call begins to wait for a node.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    /// A call begins to wait for the service to be announced; `None` if calls wait for too many services.
    pub(crate) fn wait_for_announcement(&self) -> Option<Awaits<'_>> {
        Awaits::begin(self)
    }

    /// How long a call that finds no node at `now` waits for one, after this answer of the registry.
    ///
    /// A service that never had a node may not have been announced yet, in the first moments of the process. One that had
    /// some, or that was deleted, is missing.
    pub(crate) fn patience(&self, known: Option<Known>, now: Instant) -> Patience {
        let announced = self.lookup.start.ends();
        let (until, patience) = match known {
            None => {
                let followed = self.begun + Duration::from_millis(self.followed.load(Ordering::Relaxed));
                let until = announced.max(followed + FIRST_ANSWER);
                (until, Patience::Answer(until))
            }
            Some(Known::Service | Known::Unknown) if !self.had_nodes.load(Ordering::Relaxed) => {
                (announced, Patience::Announcement(announced))
            }
            Some(_) => return Patience::None,
        };
        if now < until { patience } else { Patience::None }
    }

    /// The end of the grace for services that were not announced yet.
    fn grace_ends(&self) -> Instant {
        self.lookup.start.ends()
    }

    /// Calls that wait look again: a setting that they depend on has changed.
    pub(crate) fn look_again(&self) {
        self.common.changes.bump();
    }

    /// Prepares, on a thread that serves no calls, what takes time in proportion to the number of nodes: the nodes of
    /// this choice, and the pickers of `factory` for them. `is_done` is asked first, as another call may have done it.
    pub(crate) async fn prepare(
        &self,
        choice: Option<&Choice>,
        factory: Option<&Arc<dyn PickerFactory>>,
        is_done: impl Fn() -> bool,
    ) -> Option<Collected> {
        let _preparing = self.preparing.lock().await;
        if is_done() {
            return None;
        }
        let (members, choice, factory) = (self.members(), choice.cloned(), factory.cloned());
        let prepare = move || {
            let nodes = members.prepare(choice.as_ref(), factory.as_ref());
            Collected { of: Arc::downgrade(&members), nodes }
        };
        Some(offload(self.members.with(|members| members.nodes().len()), prepare).await)
    }

    /// The name of the registry that the service is looked up in.
    pub(crate) fn registry(&self) -> &Arc<str> {
        &self.registry
    }

    /// The last error of the registry, if it has not answered since.
    pub(crate) fn trouble(&self) -> Option<Arc<str>> {
        self.troubled().clone()
    }

    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn troubled(&self) -> MutexGuard<'_, Option<Arc<str>>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last time at which a call found no node.
    pub(crate) fn last_asked(&self) -> Instant {
        self.begun + Duration::from_millis(self.asked.load(Ordering::Relaxed))
    }

    /// Whether calls wait for a node.
    fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Whether a task follows the registry.
    pub(crate) fn is_followed(&self) -> bool {
        self.following.load(Ordering::Acquire) % 2 == 1
    }

    /// Whether it could be retired now, as far as calls are concerned.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_followed() && !self.is_waited_for() && self.members.with(|members| members.nodes().is_empty())
    }

    /// Ends its follower, if it is idle. The next call starts another one.
    pub(crate) fn retire(&self) -> bool {
        let _changing = self.changing();
        if !self.is_idle() {
            return false;
        }
        self.following.fetch_add(1, Ordering::AcqRel);
        self.members.set(Members::new(None, None, Vec::new(), self.rotations.clone()));
        self.common.changes.bump();
        self.over.notify_waiters();
        true
    }

    /// Resolves when the follower of this number must end because there are no calls.
    async fn retired(self: &Arc<Self>, following: u64) {
        let is_over = || self.following.load(Ordering::Acquire) != following;
        loop {
            // Registered before the check, so that no change in between is missed.
            let mut over = std::pin::pin!(self.over.notified());
            over.as_mut().enable();
            if is_over() {
                return;
            }
            let now = Instant::now();
            let due = self.last_asked() + IDLE;
            let keeper = || self.keeper.upgrade();
            if now >= due && self.is_idle() && keeper().is_some_and(|keeper| keeper.retire(self)) {
                return;
            }
            let next = if now >= due { now + IDLE } else { due };
            tokio::select! { () = over => {}, () = tokio::time::sleep_until(next.into()) => {} }
        }
    }

    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the members by the nodes of `instances`, unless the follower of this number has ended. Nodes of
    /// instances with the same id and address stay. `returned`: the registry lists them again after an empty set, in
    /// which the last one was kept.
    ///
    /// Takes time in proportion to their number, without a lock.
    fn replace(
        &self,
        following: u64,
        known: Known,
        hint: Option<Hint>,
        instances: &[Arc<Instance>],
        returned: bool,
    ) {
        let is_following = || self.following.load(Ordering::Acquire) == following;
        // Only this follower replaces the members, until it has ended.
        let old = self.members.get();
        if !is_following() {
            return;
        }
        let mut before = Before::new(old.nodes());
        let (mut nodes, mut changed) = (Vec::with_capacity(instances.len()), HashSet::new());
        let mut joined = Vec::new();
        for instance in instances {
            let Some(address) = instance.addresses.get(&self.listener) else { continue };
            // An instance that returns after a failure is another process: it must not wait for a backoff.
            let stays = |node: &Arc<Node>| {
                node.address() == address && !(returned && node.connection() == Connection::TransientFailure)
            };
            match before.keep(&instance.id, stays) {
                Some(node) => {
                    let (is_shared, is_same) =
                        node.instance.with(|old| (Arc::ptr_eq(old, instance), **old == **instance));
                    if !is_same {
                        changed.insert(Arc::as_ptr(node));
                    }
                    if !is_shared {
                        node.instance.set_shared(instance.clone()); // equal or not: one copy is enough
                    }
                    nodes.push(node.clone());
                }
                None => {
                    let node = self.node(instance.clone());
                    joined.push(node.clone());
                    nodes.push(node);
                }
            }
        }
        let (count, gone) = (nodes.len(), before.gone());
        let mut members = Members::new(Some(known), hint, nodes, self.rotations.clone());
        members.take_over(&old, |node| changed.contains(&std::ptr::from_ref(node)));
        {
            let _changing = self.changing();
            if !is_following() {
                joined.iter().for_each(|node| node.leaf.close());
                return;
            }
            self.members.set(members);
            if count > 0 {
                self.had_nodes.store(true, Ordering::Relaxed); // not before: calls would find neither
            }
        }
        self.common.changes.bump();
        // Services that never had a node have no metric either: their names may be arbitrary.
        if count + old.nodes().len() > 0 {
            self.reporter().metrics.endpoints(self.service(), self.leaves.protocol, count);
        }
        for node in joined {
            self.reporter().events.emit(Event::InstanceJoined {
                service: self.service().clone(),
                instance: node.id().to_owned(),
                address: node.address().to_owned(),
            });
        }
        for node in gone {
            node.leaf.close();
            let (service, instance) = (self.service().clone(), node.id().to_owned());
            self.reporter().events.emit(Event::InstanceLeft { service, instance });
        }
        drop_members(old, &self.common.tasks);
    }

    /// Sets the number of nodes that are kept although the registry removed them; `before`: the former number.
    fn count_held(&self, before: usize, held: usize) {
        if before != held {
            self.reporter().metrics.endpoints_held(self.service(), self.leaves.protocol, held);
        }
    }

    fn node(&self, instance: Arc<Instance>) -> Arc<Node> {
        let address = instance.addresses.get(&self.listener).unwrap_or_default();
        let link = Link::new(self.common.clone(), &instance.id, address);
        let now = Instant::now();
        Arc::new(Node {
            leaf: (self.leaves.make)(link.clone()),
            link,
            instance: Live::shared(instance),
            load: Load::new(now),
            circuit: Circuit::with_jitter(now, self.random()),
            counted: AtomicBool::new(false),
            of: self.of_nodes.clone(),
        })
    }
}

impl Siblings for Cluster {
    fn look(&self, choice: Option<&Choice>, look: &mut dyn FnMut(&[Arc<Node>])) {
        self.with_members(|members| match choice {
            None => look(members.all().nodes()),
            Some(choice) => {
                if let Choosing::Chosen(chosen) = members.choose(choice, false) {
                    look(chosen.nodes());
                }
            }
        });
    }
}

// === impl Collected ===

impl Collected {
    /// The nodes, if they were collected from `members`.
    pub(crate) fn of(&self, members: &Members) -> Option<Choosing<'_>> {
        std::ptr::eq(self.of.as_ptr(), members).then(|| match &self.nodes {
            Some(nodes) => Choosing::Chosen(Chosen::There(nodes)),
            None => Choosing::Nowhere,
        })
    }
}

// === impl Before ===

impl<'a> Before<'a> {
    fn new(nodes: &'a [Arc<Node>]) -> Self {
        Before { nodes, is_kept: vec![false; nodes.len()], next: 0, by_id: None }
    }

    /// The node with this id, unless it was found before, or does not stay.
    fn keep(&mut self, id: &str, stays: impl Fn(&Arc<Node>) -> bool) -> Option<&'a Arc<Node>> {
        let is_next = self.nodes.get(self.next).is_some_and(|node| node.id() == id);
        let at = match is_next {
            true => self.next,
            false => {
                let positions = || self.nodes.iter().enumerate().map(|(at, node)| (node.id(), at)).collect();
                *self.by_id.get_or_insert_with(positions).get(id)?
            }
        };
        self.next = at + 1;
        let keeps = !self.is_kept[at] && stays(&self.nodes[at]);
        self.is_kept[at] |= keeps;
        keeps.then(|| &self.nodes[at])
    }

    /// The nodes that were not kept.
    fn gone(self) -> Vec<Arc<Node>> {
        let gone = self.nodes.iter().zip(self.is_kept).filter(|(_, is_kept)| !is_kept);
        gone.map(|(node, _)| node.clone()).collect()
    }
}

// === impl Waiting ===

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
