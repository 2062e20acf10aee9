//! Follows one service: sends each of its questions when it is due, and creates instances from the records.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use chassis_core::{Random, adapter::Feed, registry::Instance, tasks::caught};
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};

use super::{
    config::{Family, Queries},
    question::{Question, Record, Reply, Ttl},
    resolver::{Asked, Resolver},
};

/// The parts that a follower uses.
pub(super) struct Means {
    pub(super) resolver: Arc<Resolver>,
    pub(super) ttl: Ttl,
    pub(super) family: Family,
    pub(super) random: Random,
}

struct Follow<'a> {
    service: &'a str,
    means: &'a Means,
    feed: &'a mut Feed<()>,
    queries: Option<Queries>,
    questions: HashMap<Asked, Question>,
    /// The questions that are in flight.
    out: BTreeSet<Asked>,
    replies: JoinSet<(Asked, Reply)>,
    /// The last published instances, and whether the service is known.
    shown: Option<(Vec<Arc<Instance>>, bool)>,
    has_failed: bool,
}

/// The limit of hosts of SRV records that are looked up for a service.
const MOST_TARGETS: usize = 1_024;

/// Follows `service` until it is dropped. `queries` returns the names to look up for it.
pub(super) async fn follow(
    service: &str,
    means: &Means,
    mut queries: watch::Receiver<Option<Queries>>,
    feed: &mut Feed<()>,
) {
    let mut this = Follow {
        service,
        means,
        feed,
        queries: queries.borrow_and_update().clone(),
        questions: HashMap::new(),
        out: BTreeSet::new(),
        replies: JoinSet::new(),
        shown: None,
        has_failed: false,
    };
    loop {
        this.ask();
        this.show();
        let due = this.due();
        tokio::select! {
            Some(reply) = this.replies.join_next() => {
                this.accept(reply);
                while let Some(reply) = this.replies.try_join_next() {
                    this.accept(reply);
                }
            }
            () = async { match due { Some(due) => sleep_until(due).await, None => std::future::pending().await } } => {}
            Ok(()) = queries.changed() => this.queries = queries.borrow_and_update().clone(),
            else => return,
        }
    }
}

// === impl Follow ===

impl Follow<'_> {
    /// Sends the questions that are due, and drops those to which no record refers any more.
    fn ask(&mut self) {
        let wanted = self.wanted();
        self.questions.retain(|asked, _| wanted.contains(asked));
        let now = Instant::now();
        for asked in wanted {
            let question = self.questions.entry(asked.clone()).or_insert_with(|| Question::new(now));
            if question.due() <= now && self.out.insert(asked.clone()) {
                let resolver = self.means.resolver.clone();
                self.replies.spawn(async move {
                    let reply = caught(resolver.ask(&asked)).await;
                    let reply = reply.unwrap_or_else(|panicked| Reply::Failed(panicked.to_string()));
                    (asked, reply)
                });
            }
        }
    }

    fn accept(&mut self, reply: Result<(Asked, Reply), JoinError>) {
        let Ok((asked, reply)) = reply else { return }; // panics are caught, and nothing aborts it
        self.out.remove(&asked);
        let Some(question) = self.questions.get_mut(&asked) else { return };
        let failed = match &reply {
            Reply::Failed(why) => Some(why.clone()),
            _ => None,
        };
        question.accept(reply, Instant::now(), &self.means.ttl, &self.means.random);
        match failed {
            Some(why) if !std::mem::replace(&mut self.has_failed, true) => self.feed.fail(why),
            Some(_) => {}
            None => self.has_failed &= self.questions.values().any(Question::is_failing),
        }
    }

    /// The time of the next question that is not in flight.
    fn due(&self) -> Option<Instant> {
        let idle = self.questions.iter().filter(|(asked, _)| !self.out.contains(asked));
        idle.map(|(_, question)| question.due()).min()
    }

    /// The questions of the settings, and those for the hosts of SRV records.
    fn wanted(&self) -> BTreeSet<Asked> {
        let Some(queries) = &self.queries else { return BTreeSet::new() };
        let addresses = |host: &str| {
            let versions = self.means.family.versions();
            versions.iter().map(|version| Asked::Addresses(host.to_owned(), *version)).collect::<Vec<_>>()
        };
        let mut wanted: BTreeSet<_> = queries.srv.iter().map(|(_, name)| Asked::Srv(name.clone())).collect();
        let srv = wanted.iter().filter_map(|asked| self.questions.get(asked));
        let targets: BTreeSet<_> = srv.flat_map(Question::records).filter_map(Record::target).collect();
        if targets.len() > MOST_TARGETS {
            let (service, hosts) = (self.service, targets.len());
            tracing::warn!(target: "chassis", service, hosts, "only {MOST_TARGETS} hosts of SRV records are used");
        }
        let hosts = queries.hosts.iter().map(|(host, _)| host.clone());
        let hosts: Vec<_> = hosts.chain(targets.into_iter().take(MOST_TARGETS).map(whole)).collect();
        hosts.iter().for_each(|host| wanted.extend(addresses(host)));
        wanted
    }

    /// Publishes the instances if they have changed, once each question was asked: a missing host would look as
    /// if it were removed.
    fn show(&mut self) {
        if !self.questions.values().all(Question::is_asked) {
            return;
        }
        let instances = self.instances();
        // The failed questions may be some of them.
        if instances.is_empty() && self.questions.values().any(|question| !question.is_answered()) {
            return;
        }
        let was_known = self.shown.as_ref().is_some_and(|(_, is_known)| *is_known);
        let is_known = was_known || !instances.is_empty() || self.questions.values().any(Question::exists);
        let new = Some((instances, is_known));
        if self.shown != new {
            self.shown = new;
            if let Some((instances, _)) = &self.shown {
                self.feed.show(instances.clone(), is_known, ());
            }
        }
    }

    /// The instances of all records, by id. Unchanged ones are shared with the last published instances.
    fn instances(&self) -> Vec<Arc<Instance>> {
        let mut all = BTreeMap::<String, Instance>::new();
        let Some(queries) = &self.queries else { return Vec::new() };
        if let Some((host, ports)) = &queries.hosts {
            for ip in self.addresses(host) {
                let instance = Instance::new(self.service, ip.to_string());
                let instance = ports.iter().fold(instance, |instance, (listener, port)| {
                    instance.with_address(listener, SocketAddr::new(ip, port.get()).to_string())
                });
                all.insert(instance.id.clone(), instance);
            }
        }
        for (listener, name) in &queries.srv {
            let Some(question) = self.questions.get(&Asked::Srv(name.clone())) else { continue };
            // Sorted by priority: an address in several records has the first one.
            for record in question.records() {
                let Record::Srv(srv) = record else { continue };
                for ip in self.addresses(&whole(&srv.target)) {
                    let address = SocketAddr::new(ip, srv.port).to_string();
                    let new = || {
                        // 0 means a very small share in DNS, and none in chassis.
                        let weight = u32::from(srv.weight).max(1);
                        let instance = Instance::new(self.service, &address).with_weight(weight);
                        instance.with_priority(srv.priority.into()).with_hostname(&*srv.target)
                    };
                    let instance = all.entry(address.clone()).or_insert_with(new);
                    instance.addresses.insert(listener, address);
                }
            }
        }
        let before = self.shown.as_ref().map_or(&[][..], |(before, _)| before);
        let share = |instance: Instance| {
            let at = before.binary_search_by(|kept| kept.id.cmp(&instance.id)).ok();
            let kept = at.map(|at| &before[at]).filter(|kept| ***kept == instance);
            kept.cloned().unwrap_or_else(|| Arc::new(instance))
        };
        all.into_values().map(share).collect()
    }

    fn addresses(&self, host: &str) -> impl Iterator<Item = std::net::IpAddr> {
        let asked = |version| Asked::Addresses(host.to_owned(), version);
        let versions = self.means.family.versions().iter();
        let questions = versions.filter_map(move |version| self.questions.get(&asked(*version)));
        questions.flat_map(|question| question.records()).filter_map(|record| match record {
            Record::Address(ip) => Some(*ip),
            Record::Srv(_) => None,
        })
    }
}

/// A target of an SRV record is a fully qualified name.
fn whole(target: &str) -> String {
    format!("{target}.")
}

// === impl Record ===

impl Record {
    fn target(&self) -> Option<&str> {
        match self {
            Record::Srv(srv) => Some(&srv.target),
            Record::Address(_) => None,
        }
    }
}
