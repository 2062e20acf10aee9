//! The nodes of one service over one protocol: who is there, and what we have seen of each.
//!
//! *Instance* is what the registry says; *node* is one instance over one protocol with its load, its
//! circuit and its connection. Nodes outlive refreshes of the set, so nothing seen is forgotten.
mod follow;
mod link;
mod members;
mod node;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use tokio::time::Instant;

pub(crate) use self::node::Admitted;
use self::{
    follow::follow,
    link::{Changes, Vital},
    node::AnyLeaf,
};
pub use self::{
    link::{Connection, Link},
    members::{Known, Members, Subset},
    node::Node,
};
use crate::{
    Live,
    event::{Event, Events},
    layer::breaker::Circuit,
    load::Load,
    metrics::Metrics,
    policy::Site,
    protocol::Transport,
    random::Random,
    registry::{Instance, Registry},
    tasks::Tasks,
};

/// The nodes of one service over one protocol, following the registry.
pub struct Cluster {
    service: Arc<str>,
    protocol: &'static str,
    members: Live<Members>,
    changes: Arc<Changes>,
    make: Box<dyn Fn(Link) -> Box<dyn AnyLeaf> + Send + Sync>,
    events: Events,
    metrics: Metrics,
    site: Site,
    tasks: Tasks,
    random: Random,
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
        let members = Live::new(Members::new(None, None, Vec::new()));
        let cluster = Arc::new(Cluster {
            service,
            protocol,
            members,
            changes: Arc::new(Changes::new()),
            make: Box::new(move |link| Box::new(transport.leaf(link))),
            site: Site::new(metrics.clone(), events.clone()),
            events,
            metrics,
            tasks: tasks.clone(),
            random,
        });
        tasks.spawn(follow(cluster.clone(), registry));
        cluster
    }

    /// The service's name.
    pub fn service(&self) -> &Arc<str> {
        &self.service
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
        &self.random
    }

    /// Waits until something changes that a pick depends on. Take the future, look, then await it.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changes.notify.notified()
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.changes.epoch.load(Ordering::Acquire)
    }

    /// `returned`: they had been gone, and the last set was only held on to.
    fn replace(&self, known: Known, near: Option<Arc<str>>, instances: Vec<Arc<Instance>>, returned: bool) {
        let old = self.members.get();
        let mut by_id: HashMap<&str, &Arc<Node>> = old.nodes().iter().map(|n| (&*n.id, n)).collect();
        let mut nodes = Vec::with_capacity(instances.len());
        for instance in instances {
            let Some(address) = instance.addresses.get(self.protocol) else { continue };
            // Who comes back after a failure is another process: it is not to wait for a backoff.
            let stays = |node: &&Arc<Node>| {
                *node.address == *address && !(returned && node.connection() == Connection::TransientFailure)
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
        self.metrics.endpoints(&self.service, self.protocol, nodes.len());
        self.members.set(Members::new(Some(known), near, nodes));
        self.changes.bump();
        for node in gone {
            node.leaf.close();
            self.events
                .emit(Event::InstanceLeft { service: self.service.clone(), instance: node.id.to_string() });
        }
    }

    fn node(&self, instance: Arc<Instance>) -> Arc<Node> {
        let address: Arc<str> = instance.addresses.get(self.protocol).unwrap_or_default().into();
        let id: Arc<str> = instance.id.as_str().into();
        let vital = Arc::new(Vital { connection: AtomicU8::new(0), changes: self.changes.clone() });
        let link = Link {
            service: self.service.clone(),
            instance: id.clone(),
            address: address.clone(),
            vital: vital.clone(),
            tasks: self.tasks.clone(),
            random: self.random.clone(),
        };
        self.events.emit(Event::InstanceJoined {
            service: self.service.clone(),
            instance: id.to_string(),
            address: address.to_string(),
        });
        let now = Instant::now();
        Arc::new(Node {
            service: self.service.clone(),
            id,
            address,
            instance: Live::shared(instance),
            vital,
            load: Load::new(now),
            circuit: Circuit::new(now),
            leaf: (self.make)(link),
            counted: AtomicBool::new(false),
            events: self.events.clone(),
            metrics: self.metrics.clone(),
        })
    }
}
