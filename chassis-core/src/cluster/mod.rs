//! The nodes of one service over one protocol: who is there, and what we have seen of each.
//!
//! *Instance* is what the registry says; *node* is one instance over one protocol with its load, its
//! circuit and its connection. Nodes outlive refreshes of the set, so nothing seen is forgotten.
mod follow;
mod link;
mod members;
mod node;
mod rotation;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use self::{
    follow::follow,
    link::{Changes, Common},
    node::AnyLeaf,
    rotation::Rotations,
};
pub use self::{
    link::{Connection, Link},
    members::{Known, Members, Subset},
    node::Node,
};
pub(crate) use self::{
    members::Chosen,
    node::{Admitted, UNGUARDED},
};
use crate::{
    Live,
    clock::Instant,
    event::{Event, Events},
    layer::breaker::Circuit,
    load::{Load, UsualLatency},
    metrics::Metrics,
    policy::Site,
    protocol::Transport,
    random::Random,
    registry::{Instance, Registry},
    tasks::Tasks,
};

/// The nodes of one service over one protocol, following the registry.
pub struct Cluster {
    protocol: &'static str,
    members: Live<Members>,
    rotations: Arc<Rotations>,
    common: Arc<Common>,
    make: Box<dyn Fn(Link) -> Box<dyn AnyLeaf> + Send + Sync>,
    site: Arc<Site>,
}

// === impl Cluster ===

impl Cluster {
    /// Starts to follow `service` in the background; ends with `tasks`.
    pub(crate) fn start<T: Transport>(
        service: Arc<str>,
        transport: Arc<T>,
        registry: Arc<dyn Registry>,
        events: Events,
        metrics: Metrics,
        tasks: Tasks,
        random: Random,
    ) -> Arc<Self> {
        let protocol = transport.protocol().name();
        let rotations = Arc::new(Rotations::new(random.clone()));
        let members = Live::new(Members::new(None, None, Vec::new(), rotations.clone()));
        let cluster = Arc::new_cyclic(|cluster| Cluster {
            protocol,
            members,
            rotations,
            common: Arc::new(Common {
                service,
                changes: Changes::new(),
                tasks: tasks.clone(),
                random,
                usual: UsualLatency::default(),
                cluster: cluster.clone(),
                metrics: Some(metrics.clone()),
            }),
            make: Box::new(move |link| Box::new(transport.leaf(link))),
            site: Arc::new(Site::new(metrics, events)),
        });
        tasks.spawn(follow(cluster.clone(), registry));
        cluster
    }

    /// The service's name.
    pub fn service(&self) -> &Arc<str> {
        &self.common.service
    }

    /// The protocol its nodes speak.
    pub fn protocol(&self) -> &'static str {
        self.protocol
    }

    /// Who is there now.
    pub fn members(&self) -> Arc<Members> {
        self.members.get()
    }

    /// Looks at who is there now, without holding on to it.
    pub(crate) fn with_members<R>(&self, look: impl FnOnce(&Members) -> R) -> R {
        self.members.with(|members| look(members))
    }

    /// Where picking speaks up.
    pub(crate) fn site(&self) -> &Site {
        &self.site
    }

    pub(crate) fn random(&self) -> &Random {
        &self.common.random
    }

    /// Waits until something changes that a pick depends on. Take the future, look, then await it.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.common.changes.notify.notified()
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.common.changes.epoch.load(Ordering::Acquire)
    }

    /// `returned`: they had been gone, and the last set was only held on to.
    fn replace(&self, known: Known, near: Option<Arc<str>>, instances: Vec<Arc<Instance>>, returned: bool) {
        let old = self.members.get();
        let mut by_id: HashMap<&str, &Arc<Node>> = old.nodes().iter().map(|n| (n.id(), n)).collect();
        let mut nodes = Vec::with_capacity(instances.len());
        for instance in instances {
            let Some(address) = instance.addresses.get(self.protocol) else { continue };
            // Who comes back after a failure is another process: it is not to wait for a backoff.
            let stays = |node: &&Arc<Node>| {
                node.address() == address && !(returned && node.connection() == Connection::TransientFailure)
            };
            match by_id.remove(instance.id.as_str()).filter(stays) {
                Some(node) => {
                    node.instance.set_shared(instance); // equal or not: one copy is enough
                    nodes.push(node.clone());
                }
                None => nodes.push(self.node(instance)),
            }
        }
        let kept: HashSet<*const Node> = nodes.iter().map(Arc::as_ptr).collect();
        let gone: Vec<_> = old.nodes().iter().filter(|n| !kept.contains(&Arc::as_ptr(n))).cloned().collect();
        self.site.metrics.endpoints(self.service(), self.protocol, nodes.len());
        self.members.set(Members::new(Some(known), near, nodes, self.rotations.clone()));
        self.common.changes.bump();
        for node in gone {
            node.leaf.close();
            let (service, instance) = (self.service().clone(), node.id().to_owned());
            self.site.events.emit(Event::InstanceLeft { service, instance });
        }
    }

    fn node(&self, instance: Arc<Instance>) -> Arc<Node> {
        let address = instance.addresses.get(self.protocol).unwrap_or_default();
        let link = Link::new(self.common.clone(), &instance.id, address);
        self.site.events.emit(Event::InstanceJoined {
            service: self.service().clone(),
            instance: instance.id.clone(),
            address: address.to_owned(),
        });
        let now = Instant::now();
        Arc::new(Node {
            leaf: (self.make)(link.clone()),
            link,
            instance: Live::shared(instance),
            load: Load::new(now),
            circuit: Circuit::with_jitter(now, self.random()),
            counted: AtomicBool::new(false),
            site: self.site.clone(),
        })
    }
}
