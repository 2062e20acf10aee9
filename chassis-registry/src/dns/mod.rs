//! Instances from DNS: the addresses of a host, or SRV records.
mod config;
mod follow;
mod question;
mod resolver;
mod thread;

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use chassis_core::{
    BoxError, Random,
    adapter::Followers,
    kind::Kind,
    registry::{Instance, Registration, Registry, RegistryError, Watcher},
    settings::Problem,
};
use tokio::sync::watch;

pub use self::config::{DnsConfig, DnsService, Family};
use self::{
    follow::{Means, follow},
    question::Ttl,
    resolver::Resolver,
    thread::OwnThread,
};

/// Looks services up in DNS, and again whenever a TTL expires.
///
/// | records | instances |
/// |---|---|
/// | A, AAAA of `host` | one for each address, with the id `10.0.0.5`, and an address for each of `ports` |
/// | SRV of `srv` | one for each address of each target, with the id `10.0.0.5:50051`, weight, priority and host name; a weight of 0 counts as 1 |
/// | NXDOMAIN, or none of these | no instance, once a second answer says the same; a name that never existed is unknown |
/// | SERVFAIL, REFUSED, no answer | no change: the known instances stay, a watcher reports the error once, and
/// DNS is queried again every 2 s or sooner |
///
/// All of it runs on one thread of the registry's own: a DNS server that never answers delays neither calls nor a stop.
/// Nothing blocks: the system's resolver, which can't be interrupted and knows no TTL, is not used, and so neither
/// `/etc/hosts` nor other sources of names are.
///
/// Registering is accepted and changes nothing: DNS records are written by a zone file or an orchestrator.
///
/// ```no_run
/// use chassis_registry::{DnsConfig, DnsRegistry};
///
/// # fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let port = 50051.try_into()?;
/// let registry = DnsRegistry::new(DnsConfig {
///     host: "{service}.shop.svc.cluster.local".to_owned(),
///     ports: [("grpc".to_owned(), port)].into(),
///     ..DnsConfig::default()
/// })?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct DnsRegistry(Arc<Inner>);

struct Inner {
    config: watch::Sender<Arc<DnsConfig>>,
    means: Arc<Means>,
    followers: Followers<()>,
    /// Begun by the first watcher; it ends with the last follower.
    thread: OnceLock<Result<Arc<OwnThread>, String>>,
}

/// The kind `dns`. The names of services can change while the process runs, so it keeps its registry.
#[derive(Default)]
struct DnsKind(OnceLock<DnsRegistry>);

// === impl DnsRegistry ===

impl DnsRegistry {
    /// The kind that settings choose by `registry: { kind: dns }`. `host`, `ports`, `srv` and `services` can change
    /// while the process runs.
    pub fn kind() -> impl Kind<Config = DnsConfig, Made = Arc<dyn Registry>> {
        DnsKind::default()
    }

    /// Sends no query before the first watcher.
    ///
    /// # Errors
    /// The first problem in `config`.
    pub fn new(config: DnsConfig) -> Result<Self, BoxError> {
        if let [problem, ..] = &config.check()[..] {
            return Err(problem.to_string().into());
        }
        let ttl = Ttl { least: config.min_ttl.get(), most: config.max_ttl.get(), jitter: config.jitter.0 };
        let resolver = Arc::new(Resolver::new(&config)?);
        let means = Arc::new(Means { resolver, ttl, family: config.family, random: Random::from_os() });
        let (config, followers) = (watch::Sender::new(Arc::new(config)), Followers::default());
        Ok(DnsRegistry(Arc::new(Inner { config, means, followers, thread: OnceLock::new() })))
    }

    /// Replaces `host`, `ports`, `srv` and `services`; the other settings stay as they are.
    ///
    /// # Errors
    /// The first problem in `config`, which changes nothing then.
    pub fn set(&self, config: DnsConfig) -> Result<(), BoxError> {
        if let [problem, ..] = &config.check()[..] {
            return Err(problem.to_string().into());
        }
        self.0.config.send_replace(Arc::new(config));
        Ok(())
    }

    fn thread(&self) -> Result<&Arc<OwnThread>, RegistryError> {
        let begin = || OwnThread::start("chassis-dns").map(Arc::new).map_err(|e| e.to_string());
        let begun = self.0.thread.get_or_init(begin);
        begun.as_ref().map_err(|why| RegistryError::new(format!("no thread for DNS: {why}")))
    }
}

#[async_trait]
impl Registry for DnsRegistry {
    fn name(&self) -> &str {
        "dns"
    }

    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        let (service, id) = (&instance.service, &instance.id);
        tracing::info!(
            target: "chassis",
            service, id, "not registered: DNS records are written by others, such as a zone file or an orchestrator"
        );
        crate::noop::register(&instance, self.name())
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let Inner { config, means, followers, .. } = &*self.0;
        let thread = self.thread()?;
        Ok(followers.watch(service, thread.tasks(), |mut feed| {
            let (service, means, mut config) = (service.to_owned(), means.clone(), config.subscribe());
            let thread = thread.clone();
            async move {
                let queries = config.borrow_and_update().queries(&service);
                let (queries, changed) = watch::channel(queries);
                let keep_up = async {
                    while config.changed().await.is_ok() {
                        let new = config.borrow_and_update().queries(&service);
                        queries.send_if_modified(|queries| std::mem::replace(queries, new.clone()) != new);
                    }
                    std::future::pending().await // the registry was dropped, and there are watchers
                };
                tokio::select! {
                    () = follow(&service, &means, changed, &mut feed) => {}
                    () = keep_up => {}
                }
                drop(thread); // kept until here
            }
        }))
    }

    /// Those that the settings name: DNS can't list the others.
    async fn services(&self) -> Vec<String> {
        self.0.config.borrow().services.keys().cloned().collect()
    }

    fn lists_services(&self) -> bool {
        false
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

// === impl DnsKind ===

impl Kind for DnsKind {
    type Config = DnsConfig;
    type Made = Arc<dyn Registry>;

    fn name(&self) -> &str {
        "dns"
    }

    #[cfg(feature = "schema")]
    fn schema(&self) -> chassis_core::schema::Value {
        chassis_core::schema::of::<DnsConfig>()
    }

    fn check(&self, config: &DnsConfig) -> Vec<Problem> {
        config.check()
    }

    fn make(&self, config: &DnsConfig) -> Result<Arc<dyn Registry>, BoxError> {
        let made = DnsRegistry::new(config.clone())?;
        Ok(Arc::new(self.0.get_or_init(|| made).clone()))
    }

    fn make_fixed(&self, config: &DnsConfig) -> Result<Arc<dyn Registry>, BoxError> {
        Ok(Arc::new(DnsRegistry::new(config.clone())?))
    }

    fn live(&self) -> &[&str] {
        &["host", "ports", "srv", "services"]
    }

    fn change(&self, config: &DnsConfig) -> Result<(), BoxError> {
        self.0.get().map_or(Ok(()), |registry| registry.set(config.clone()))
    }
}
