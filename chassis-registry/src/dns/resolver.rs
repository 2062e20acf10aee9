//! Sends queries to DNS: one question at a time, with the servers and the search list of the settings or of the
//! system.
use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hickory_resolver::{
    Resolver as Hickory, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::ResponseCode,
        rr::{Name, RData, RecordType},
    },
    system_conf::read_system_conf,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    config::{DnsConfig, IpVersion},
    question::{Record, Reply, Srv},
};

/// The subject of a question.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Asked {
    /// The addresses of a host.
    Addresses(String, IpVersion),
    /// The SRV records of a name.
    Srv(String),
}

/// Queries DNS servers. It has no cache: its callers know when to query again.
pub(super) struct Resolver {
    /// `None`: the servers of the system.
    servers: Option<ResolverConfig>,
    patience: Duration,
    current: Mutex<Option<Arc<Current>>>,
    /// Limits the questions in flight.
    slots: Semaphore,
}

/// The servers that are asked.
struct Current {
    hickory: TokioResolver,
    /// For messages.
    servers: String,
    /// The system's list, appended to names that are not fully qualified.
    search: Vec<Name>,
    /// A name with at least this many dots is first tried unchanged.
    dots: usize,
    /// The settings of the system from which it was created, as text.
    made_of: String,
    read: Instant,
}

/// The servers could not be reached: a query for another name makes no sense.
struct NoAnswer(String);

/// The limit of questions in flight.
const MOST_OUT: usize = 32;
/// The number of attempts per question: the next one goes to the next server if there is one.
const ATTEMPTS: u32 = 2;
/// The interval at which the settings of the system are read.
const READ_EVERY: Duration = Duration::from_secs(10);
/// The limit of records of an answer that are used. An answer has at most 64 KiB.
const MOST_RECORDS: usize = 4_096;
/// The limit of names in a chain of aliases.
const MOST_ALIASES: usize = 16;

// === impl Resolver ===

impl Resolver {
    /// Opens no socket before the first question.
    pub(super) fn new(config: &DnsConfig) -> Result<Self, String> {
        let addresses = config.addresses().map_err(|(_, why)| why)?;
        let server = |address: std::net::SocketAddr| {
            let [mut udp, mut tcp] = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
            (udp.port, tcp.port) = (address.port(), address.port());
            NameServerConfig::new(address.ip(), true, vec![udp, tcp])
        };
        let servers = addresses.into_iter().map(server).collect::<Vec<_>>();
        Ok(Resolver {
            servers: (!servers.is_empty()).then(|| ResolverConfig::from_name_servers(servers)),
            patience: config.timeout.get(),
            current: Mutex::new(None),
            slots: Semaphore::new(MOST_OUT),
        })
    }

    /// Sends one question. The search list is used as the system does: the first name with such records counts.
    pub(super) async fn ask(&self, asked: &Asked) -> Reply {
        let Ok(_slot) = self.slots.acquire().await else { return Reply::Failed("the process ends".into()) };
        let current = match self.current() {
            Ok(current) => current,
            Err(why) => return Reply::Failed(why),
        };
        let names = match current.names(asked.name()) {
            Ok(names) => names,
            Err(why) => return Reply::Failed(format!("`{}`: {why}", asked.name())),
        };
        let (mut failed, mut exists, mut ttl) = (None, false, None);
        for name in names {
            match self.look_up(&current, &name, asked).await {
                Ok(found @ Reply::Found(..)) => return found,
                Ok(Reply::Nothing { exists: one, ttl: stated }) => {
                    exists |= one;
                    ttl = [ttl, stated].into_iter().flatten().min();
                }
                // A domain of the list whose servers fail must not hide the others.
                Ok(Reply::Failed(why)) => failed = failed.or(Some(why)),
                Err(NoAnswer(why)) => return Reply::Failed(why),
            }
        }
        failed.map_or(Reply::Nothing { exists, ttl }, Reply::Failed)
    }

    async fn look_up(&self, current: &Current, name: &Name, asked: &Asked) -> Result<Reply, NoAnswer> {
        let answer = timeout(
            self.patience * ATTEMPTS + Duration::from_millis(500),
            current.hickory.lookup(name.clone(), asked.record_type()),
        );
        let (records, servers) = (asked.record_type(), &current.servers);
        let why = |why: &str| format!("DNS at {servers}, {records} of `{name}`: {why}");
        match answer.await {
            Ok(Ok(answer)) => Ok(read(name, asked, answer.answers())),
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none))))
                if matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError) =>
            {
                let ttl = none.negative_ttl.map(|seconds| Duration::from_secs(seconds.into()));
                Ok(Reply::Nothing { exists: none.response_code == ResponseCode::NoError, ttl })
            }
            Ok(Err(NetError::Dns(error))) => Ok(Reply::Failed(why(&match error {
                DnsError::ResponseCode(code) => code.to_string(),
                DnsError::NoRecordsFound(none) => none.response_code.to_string(),
                error => error.to_string(),
            }))),
            Ok(Err(error)) => Err(NoAnswer(why(&error.to_string()))),
            Err(_) => Err(NoAnswer(why("no answer in time"))),
        }
    }

    /// The servers of the settings, or those of the system as they are now.
    fn current(&self) -> Result<Arc<Current>, String> {
        let mut kept = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = |kept: &&Arc<Current>| self.servers.is_some() || kept.read.elapsed() < READ_EVERY;
        if let Some(current) = kept.as_ref().filter(is_new) {
            return Ok(current.clone());
        }
        let read = match &self.servers {
            Some(servers) => Ok((servers.clone(), ResolverOpts::default())),
            None => read_system_conf().map_err(|error| format!("the system's DNS servers: {error}")),
        };
        let (config, options) = match (read, &*kept) {
            (Ok(read), _) => read,
            // A file that is being written.
            (Err(_), Some(last)) => return Ok(last.clone()),
            (Err(why), None) => return Err(why),
        };
        let made_of = format!("{config:?} {}", options.ndots);
        let hickory = match &*kept {
            Some(last) if last.made_of == made_of => last.hickory.clone(),
            _ => hickory(&config, self.patience).map_err(|error| error.to_string())?,
        };
        let new =
            Arc::new(Current { read: Instant::now(), ..Current::new(hickory, config, options, made_of) });
        *kept = Some(new.clone());
        Ok(new)
    }
}

fn hickory(config: &ResolverConfig, patience: Duration) -> Result<TokioResolver, NetError> {
    // Names are whole when they are looked up, or it would look at the search list itself.
    let servers = ResolverConfig::from_name_servers(config.name_servers.clone());
    let mut builder = Hickory::builder_with_config(servers, TokioRuntimeProvider::default());
    let options = builder.options_mut();
    options.timeout = patience;
    options.attempts = (ATTEMPTS - 1) as usize;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.preserve_intermediates = true; // the TTL of an alias counts
    builder.build()
}

/// The records of the name in an answer, or of the name that it is an alias of.
fn read(name: &Name, asked: &Asked, answers: &[hickory_resolver::proto::rr::Record]) -> Reply {
    let mut ttl = u32::MAX;
    let mut name = name;
    for _ in 0..MOST_ALIASES {
        let alias = answers.iter().find_map(|record| match &record.data {
            RData::CNAME(alias) if record.name == *name => Some((&alias.0, record.ttl)),
            _ => None,
        });
        let Some((target, alias_ttl)) = alias else { break };
        (name, ttl) = (target, ttl.min(alias_ttl));
    }
    let mut records = Vec::new();
    for record in answers.iter().filter(|record| record.name == *name) {
        let found = match (&record.data, asked) {
            (RData::A(ip), Asked::Addresses(_, IpVersion::V4)) => Record::Address(IpAddr::V4(ip.0)),
            (RData::AAAA(ip), Asked::Addresses(_, IpVersion::V6)) => Record::Address(IpAddr::V6(ip.0)),
            (RData::SRV(srv), Asked::Srv(_)) => {
                ttl = ttl.min(record.ttl);
                // The root: there decidedly is no such service (RFC 2782).
                if srv.target.is_root() {
                    continue;
                }
                let target = srv.target.to_ascii();
                Record::Srv(Srv {
                    priority: srv.priority,
                    weight: srv.weight,
                    port: srv.port,
                    target: target.strip_suffix('.').unwrap_or(&target).to_lowercase(),
                })
            }
            _ => continue,
        };
        ttl = ttl.min(record.ttl);
        records.push(found);
        if records.len() == MOST_RECORDS {
            tracing::warn!(target: "chassis", %name, "only {MOST_RECORDS} records are used");
            break;
        }
    }
    let ttl = Duration::from_secs(ttl.into());
    match records.is_empty() {
        true => Reply::Nothing { exists: true, ttl: Some(ttl) },
        false => Reply::Found(records, ttl),
    }
}

// === impl Current ===

impl Current {
    fn new(hickory: TokioResolver, config: ResolverConfig, options: ResolverOpts, made_of: String) -> Self {
        let servers = config.name_servers.iter().map(|server| {
            let port = server.connections.first().map_or(0, |connection| connection.port);
            std::net::SocketAddr::new(server.ip, port).to_string()
        });
        let servers = servers.collect::<Vec<_>>().join(", ");
        let mut search = config.search;
        if search.is_empty() {
            search.extend(config.domain);
        }
        Current { hickory, servers, search, dots: options.ndots, made_of, read: Instant::now() }
    }

    /// The whole names that `name` may mean, in the order in which they are tried.
    fn names(&self, name: &str) -> Result<Vec<Name>, String> {
        let name = Name::from_utf8(name).map_err(|error| error.to_string())?;
        let mut whole = name.clone();
        whole.set_fqdn(true);
        if name.is_fqdn() {
            return Ok(vec![whole]);
        }
        let mut names: Vec<_> =
            self.search.iter().filter_map(|domain| name.clone().append_domain(domain).ok()).collect();
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        let at = if dots >= self.dots { 0 } else { names.len() };
        names.insert(at, whole);
        Ok(names)
    }
}

// === impl Asked ===

impl Asked {
    fn name(&self) -> &str {
        match self {
            Asked::Addresses(name, _) | Asked::Srv(name) => name,
        }
    }

    fn record_type(&self) -> RecordType {
        match self {
            Asked::Addresses(_, IpVersion::V4) => RecordType::A,
            Asked::Addresses(_, IpVersion::V6) => RecordType::AAAA,
            Asked::Srv(_) => RecordType::SRV,
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::{Record as Raw, rdata};

    use super::*;

    #[test]
    fn a_search_list_is_used_as_the_system_does() {
        let config = ResolverConfig::from_parts(
            None,
            vec![Name::from_ascii("shop.svc.").unwrap(), Name::from_ascii("svc.").unwrap()],
            vec![NameServerConfig::udp_and_tcp([127, 0, 0, 1].into())],
        );
        let hickory = hickory(&config, Duration::from_secs(1)).unwrap();
        let mut options = ResolverOpts::default();
        options.ndots = 2;
        let current = Current::new(hickory, config, options, String::new());
        let check = |name: &str, expected: &[&str]| {
            let names: Vec<_> = current.names(name).unwrap().iter().map(Name::to_ascii).collect();
            assert_eq!(names, expected);
        };
        check("stock", &["stock.shop.svc.", "stock.svc.", "stock."]);
        check("stock.other", &["stock.other.shop.svc.", "stock.other.svc.", "stock.other."]);
        check("a.b.c", &["a.b.c.", "a.b.c.shop.svc.", "a.b.c.svc."]);
        check("stock.", &["stock."]);
        assert!(current.names("a..b").is_err());
    }

    #[test]
    fn only_what_was_asked_for_is_read() {
        let name = |name: &str| Name::from_ascii(name).unwrap();
        let a = |owner: &str, ttl, last| {
            Raw::from_rdata(name(owner), ttl, RData::A(rdata::A::new(10, 0, 0, last)))
        };
        let alias = |owner: &str, ttl, to: &str| {
            Raw::from_rdata(name(owner), ttl, RData::CNAME(rdata::CNAME(name(to))))
        };
        let asked = Asked::Addresses("a.test.".into(), IpVersion::V4);
        let check = |answers: &[Raw], expected: Option<(&[u8], u64)>| {
            let expected = match expected {
                Some((ips, ttl)) => Reply::Found(
                    ips.iter().map(|last| Record::Address([10, 0, 0, *last].into())).collect(),
                    Duration::from_secs(ttl),
                ),
                None => Reply::Nothing { exists: true, ttl: Some(Duration::from_secs(u32::MAX.into())) },
            };
            assert_eq!(read(&name("a.test."), &asked, answers), expected);
        };
        check(&[a("A.TEST.", 9, 1), a("a.test.", 8, 2), a("b.test.", 1, 3)], Some((&[1, 2], 8)));
        check(&[alias("a.test.", 5, "b.test."), a("b.test.", 60, 3), a("c.test.", 1, 4)], Some((&[3], 5)));
        check(&[alias("a.test.", u32::MAX, "b.test."), alias("b.test.", u32::MAX, "a.test.")], None);
        check(&[a("other.test.", 1, 1)], None);
    }
}
