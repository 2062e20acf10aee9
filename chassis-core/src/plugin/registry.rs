//! The port for registries: they list the instances of services, and register this process.
use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::contracts::Contracts;
use crate::{
    BoxError,
    types::{LabelSet, TextMap},
};

/// One running process of a service, as its registry describes it.
///
/// In JSON, fields that have their default are left out. Unknown keys are kept ([`others`](Self::others)) and written
/// again, so that processes of different versions can share a registry.
///
/// ```
/// use chassis_core::registry::{Instance, Status};
///
/// let stock = Instance::new("stock", "stock-1")
///     .with_address("grpc", "10.0.0.5:50051")
///     .with_address("admin", "10.0.0.5:9090") // another listener: called as `stock:admin`
///     .with_version("1.4.0")
///     .with_region("eu")
///     .with_label("track", "canary");
/// assert_eq!((stock.label("region"), stock.status()), (Some("eu"), &Status::Up));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
#[non_exhaustive]
pub struct Instance {
    /// The process's id: constant for its life, and unique.
    pub id: String,
    /// The service it belongs to.
    pub service: String,
    /// The version of the program; empty if it is not set.
    pub version: String,
    /// The zone of the process; empty if it is not set.
    pub zone: String,
    /// Address by the name of its listener: `grpc` → `10.0.0.5:50051`, `http` → `unix:/run/stock.sock`. `grpc` and
    /// `http` are the protocols too; a listener of any other name is called as `service:name`.
    pub addresses: TextMap,
    /// Share of the calls, relative to other instances. Default 1; 0 gets no new calls.
    pub weight: u32,
    /// The rank among the instances of the service, as in DNS SRV records: smaller numbers come first. Default 0.
    /// Instances of the next number get the calls that those of the lower ones, as far as they are healthy, cannot take.
    pub priority: u32,
    /// Labels that routes choose by. The fields that [`Instance::STATED`] lists can be used like labels.
    pub labels: TextMap,
    /// Fields that few instances state; `None` if all of them have their defaults, because there are many instances.
    more: Option<Box<More>>,
}

/// Fields that few instances state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct More {
    region: Box<str>,
    hostname: Box<str>,
    app: Box<str>,
    environment: Box<str>,
    started_at: Option<SystemTime>,
    status: Status,
    others: BTreeMap<String, serde_json::Value>,
}

/// An instance as it is written.
#[derive(Serialize, Deserialize)]
struct Written {
    id: String,
    #[serde(default)]
    service: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    version: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    zone: String,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    region: Box<str>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    hostname: Box<str>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    app: Box<str>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    environment: Box<str>,
    addresses: TextMap,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    weight: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    priority: u32,
    /// RFC 3339, to the millisecond.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "rfc3339")]
    started_at: Option<SystemTime>,
    #[serde(default, skip_serializing_if = "Status::is_up")]
    status: Status,
    #[serde(default, skip_serializing_if = "TextMap::is_empty")]
    labels: TextMap,
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

/// Whether an instance takes calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
#[non_exhaustive]
pub enum Status {
    /// It takes calls: `up`.
    #[default]
    Up,
    /// It runs and takes no new calls, because it was taken out manually: `out_of_service`.
    OutOfService,
    /// It has not begun to take calls: `starting`.
    Starting,
    /// It takes no calls: `down`.
    Down,
    /// A word that is not known here. It takes no new calls, because a status that newer processes write is most
    /// likely a reason to send none.
    Other(Box<str>),
}

/// All that a registry knows of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Membership {
    /// The registry does not know the service; that may change.
    Unknown,
    /// The instances. An empty list is only applied after a grace period: see the cluster.
    ///
    /// A registry that stores instances shares them with its watchers: even of thousands of instances there is
    /// only one copy.
    Known(Vec<Arc<Instance>>),
    /// The service was deleted on purpose: applied at once.
    Deleted,
}

/// Lists the instances of services, and registers this process.
///
/// The port is small on purpose: the caller keeps the last good set, compares, and asks again. Every
/// implementation passes `testing::contract::registry` (feature `testing`).
///
/// ```
/// use std::sync::Arc;
///
/// use chassis_core::registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher};
///
/// struct Fixed(Vec<Arc<Instance>>);
/// struct Once(Option<Vec<Arc<Instance>>>);
///
/// #[async_trait::async_trait]
/// impl Registry for Fixed {
///     fn name(&self) -> &str {
///         "fixed"
///     }
///     async fn register(&self, _: Instance) -> Result<Box<dyn Registration>, RegistryError> {
///         Err(RegistryError::unsupported("instances are fixed"))
///     }
///     async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
///         Ok(Box::new(Once(Some(self.0.iter().filter(|i| i.service == service).cloned().collect()))))
///     }
/// }
///
/// #[async_trait::async_trait]
/// impl Watcher for Once {
///     async fn next(&mut self) -> Result<Membership, RegistryError> {
///         match self.0.take() {
///             Some(all) => Ok(Membership::Known(all)),
///             None => std::future::pending().await,
///         }
///     }
/// }
/// ```
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Its kind, as the configuration names it.
    fn name(&self) -> &str;

    /// Registers `instance`, until the registration is ended or dropped, or its lease runs out.
    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError>;

    /// Watches the instances of `service`, also if there are none yet.
    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError>;

    /// Whether only processes of this machine use the registry, so that a loopback address can be registered.
    /// Default: no.
    fn is_local(&self) -> bool {
        false
    }

    /// The services known at the moment, for the error of a call to an unknown one. Empty if the registry can't list
    /// them. It is asked in the background, at most once a second.
    async fn services(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether [`services`](Self::services) can list them. Default: yes. A registry of names that can only be looked up,
    /// such as DNS, returns `false`, and errors say so. Must not wait.
    fn lists_services(&self) -> bool {
        true
    }

    /// The name of the registry that `service` is looked up in, for a registry that consists of several. Errors show it.
    /// Must not wait. Default: its own name.
    fn looked_up_in(&self, service: &str) -> &str {
        let _ = service;
        self.name()
    }

    /// The name of the registry that lists the instance `id` of `service`, for a registry that consists of several.
    /// `inspect` shows it. Must not wait. Default `None`: its own name is shown.
    fn listed_by(&self, service: &str, id: &str) -> Option<String> {
        let _ = (service, id);
        None
    }

    /// The port for [contracts](crate::contracts) beside it, if it has one and is configured for it: a server that keeps
    /// instances may keep contracts too. Default: none.
    fn contracts(&self) -> Option<Arc<dyn Contracts>> {
        None
    }

    /// Whether all of its functions, and those of its watchers and registrations, never block their thread when
    /// they wait. If so, the threads of calls poll them. Default `false`: [threads of its own](crate::contain)
    /// poll them, so that a blocked thread delays no call.
    fn never_blocks(&self) -> bool {
        false
    }
}

/// A lease on a registered instance. Dropping it removes the instance as soon as the registry can.
#[async_trait]
pub trait Registration: Send + Sync + 'static {
    /// Replaces the registered instance by `instance`, which has the same service and id. Watchers see the old
    /// instance or the new one at every moment. The registration keeps the new one registered from then on.
    ///
    /// If the future is dropped before it ends, the registry may hold the old instance, the new one, or none.
    ///
    /// # Errors
    /// The registered instance is unchanged; the caller may register anew instead. Default: the registry does not
    /// support updates.
    async fn update(&mut self, instance: Instance) -> Result<(), RegistryError> {
        let _ = instance;
        Err(RegistryError::unsupported("this registry can't update an instance"))
    }

    /// Removes the instance, and returns when this registry no longer lists it.
    async fn deregister(self: Box<Self>) -> Result<(), RegistryError>;
}

/// Watches one service.
#[async_trait]
pub trait Watcher: Send + 'static {
    /// The first call returns at once with the known state; each later one returns when it has changed.
    ///
    /// An error means "no news": the caller keeps its state and calls again with a backoff. Dropping the future
    /// between two answers loses nothing.
    async fn next(&mut self) -> Result<Membership, RegistryError>;
}

/// An error of a registry.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RegistryError {
    message: String,
    is_quota_exceeded: bool,
    #[source]
    source: Option<BoxError>,
}

// === impl Instance ===

fn one() -> u32 {
    1
}

fn is_one(weight: &u32) -> bool {
    *weight == 1
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Times as `2026-03-01T12:00:00.250Z`.
mod rfc3339 {
    use std::{borrow::Cow, time::SystemTime};

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(at: &Option<SystemTime>, to: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => to.collect_str(&humantime::format_rfc3339_millis(super::writable(*at))),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SystemTime>, D::Error> {
        let text = Option::<Cow<'de, str>>::deserialize(from)?;
        text.map(|text| humantime::parse_rfc3339_weak(&text).map_err(D::Error::custom)).transpose()
    }
}

/// `at`, to the millisecond and within the years that RFC 3339 can write: 1970 to 9999.
fn writable(at: SystemTime) -> SystemTime {
    const LAST: u64 = 253_402_300_799_999; // the end of 9999
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH
        + Duration::from_millis(u64::try_from(since.as_millis()).map_or(LAST, |ms| ms.min(LAST)))
}

impl Instance {
    /// The fields that routes can choose by like labels.
    pub const STATED: [&'static str; 6] = ["version", "zone", "region", "hostname", "app", "environment"];

    /// An instance without addresses, labels or version, of weight 1.
    pub fn new(service: impl Into<String>, id: impl Into<String>) -> Self {
        Instance {
            id: id.into(),
            service: service.into(),
            version: String::new(),
            zone: String::new(),
            addresses: TextMap::new(),
            weight: 1,
            priority: 0,
            labels: TextMap::new(),
            more: None,
        }
    }

    /// Adds the address of a listener: `grpc`, `http`, or one with another name.
    pub fn with_address(mut self, listener: impl Into<String>, address: impl Into<String>) -> Self {
        self.addresses.insert(listener, address);
        self
    }

    /// Adds a label.
    pub fn with_label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name, value);
        self
    }

    /// Sets the weight.
    pub fn with_weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// The same, of this version.
    pub fn with_version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// The same, in this zone.
    pub fn with_zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = zone.into();
        self
    }

    /// The same, in this region.
    pub fn with_region(self, region: impl Into<Box<str>>) -> Self {
        self.with_more(|more| more.region = region.into())
    }

    /// The same, on this host.
    pub fn with_hostname(self, hostname: impl Into<Box<str>>) -> Self {
        self.with_more(|more| more.hostname = hostname.into())
    }

    /// The same, as a part of this application.
    pub fn with_app(self, app: impl Into<Box<str>>) -> Self {
        self.with_more(|more| more.app = app.into())
    }

    /// The same, in this environment.
    pub fn with_environment(self, environment: impl Into<Box<str>>) -> Self {
        self.with_more(|more| more.environment = environment.into())
    }

    /// The same, of this priority.
    pub fn with_priority(mut self, priority: u32) -> Self {
        self.priority = priority;
        self
    }

    /// The same, started at this time, which is cut to the millisecond.
    pub fn with_started_at(self, at: SystemTime) -> Self {
        self.with_more(|more| more.started_at = Some(writable(at)))
    }

    /// The same, with this status.
    pub fn with_status(self, status: Status) -> Self {
        self.with_more(|more| more.status = status)
    }

    /// The same, with a key that this version of chassis does not know.
    pub fn with_other(self, key: impl Into<String>, value: serde_json::Value) -> Self {
        self.with_more(|more| drop(more.others.insert(key.into(), value)))
    }

    fn with_more(mut self, change: impl FnOnce(&mut More)) -> Self {
        let mut more = self.more.take().unwrap_or_default();
        change(&mut more);
        self.more = Some(more).filter(|more| **more != More::default());
        self
    }

    fn more<'a, T: ?Sized>(&'a self, of: impl FnOnce(&'a More) -> &'a T) -> Option<&'a T> {
        self.more.as_deref().map(of)
    }

    /// The region, which has several zones. Default empty: not stated.
    pub fn region(&self) -> &str {
        self.more(|more| &*more.region).unwrap_or_default()
    }

    /// The host where it runs. Default empty: not stated.
    pub fn hostname(&self) -> &str {
        self.more(|more| &*more.hostname).unwrap_or_default()
    }

    /// The application that the service is a part of. Default empty: not stated.
    pub fn app(&self) -> &str {
        self.more(|more| &*more.app).unwrap_or_default()
    }

    /// The environment, such as `production`. Callers of another environment do not call it. Default empty: not
    /// stated, so callers of every environment do.
    pub fn environment(&self) -> &str {
        self.more(|more| &*more.environment).unwrap_or_default()
    }

    /// When the process started, to the millisecond; RFC 3339 in JSON. Default `None`: not stated.
    pub fn started_at(&self) -> Option<SystemTime> {
        self.more.as_ref()?.started_at
    }

    /// Whether it takes calls. Default [`Status::Up`].
    pub fn status(&self) -> &Status {
        self.more(|more| &more.status).unwrap_or(&Status::Up)
    }

    /// Keys that are not known here, with their values. Default none.
    pub fn others(&self) -> impl Iterator<Item = (&str, &serde_json::Value)> {
        self.more.iter().flat_map(|more| more.others.iter().map(|(key, value)| (key.as_str(), value)))
    }

    /// The value of a label. `version`, `zone`, `region`, `hostname`, `app` and `environment` are labels too where
    /// they are stated, unless one of that name is set.
    pub fn label(&self, name: &str) -> Option<&str> {
        let stated = || self.stated().find(|(stated, _)| *stated == name).map(|(_, value)| value);
        self.labels.get(name).or_else(stated)
    }

    /// The stated fields that are labels too, by name.
    pub(crate) fn stated(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let values =
            [&*self.version, &*self.zone, self.region(), self.hostname(), self.app(), self.environment()];
        let named = Self::STATED.into_iter().zip(values);
        named.filter(|(_, value)| !value.is_empty())
    }

    /// Its share of the calls: [`weight`](Self::weight), and 0 unless its [`status`](Self::status) is [`Status::Up`].
    pub(crate) fn effective_weight(&self) -> u32 {
        if self.status().is_up() { self.weight } else { 0 }
    }

    /// Whether a caller of `environment` may call it. An instance that does not state its environment belongs to every one.
    pub(crate) fn is_in(&self, environment: &str) -> bool {
        let own = self.environment();
        own.is_empty() || own == environment
    }

    /// Whether calls can be sent to it. A registry's document is input: an instance with an invalid id or
    /// address is refused, and the others are used.
    pub fn check(&self) -> Result<(), RegistryError> {
        if self.id.is_empty() {
            return Err(RegistryError::new(format!("an instance of `{}` has no id", self.service)));
        }
        if self.addresses.is_empty() {
            return Err(RegistryError::new(format!("instance `{}` has no address", self.id)));
        }
        for (protocol, address) in self.addresses.iter() {
            check_address(address).map_err(|why| {
                let (id, address) = (self.id.escape_debug(), address.escape_debug());
                RegistryError::new(format!("instance `{id}`, {protocol} `{address}`: {why}"))
            })?;
        }
        Ok(())
    }

    /// Also refuses an instance of another service: calls for `service` would be sent to it. An instance that
    /// names no service belongs to the one that was asked for.
    pub fn check_for(&self, service: &str) -> Result<(), RegistryError> {
        if !self.service.is_empty() && self.service != service {
            let (id, other) = (self.id.escape_debug(), self.service.escape_debug());
            return Err(RegistryError::new(format!("instance `{id}` belongs to `{other}`")));
        }
        self.check()
    }
}

impl From<Written> for Instance {
    fn from(written: Written) -> Self {
        let Written { region, hostname, app, environment, started_at, status, others, .. } = written;
        let started_at = started_at.map(writable);
        let more = More { region, hostname, app, environment, started_at, status, others };
        Instance {
            id: written.id,
            service: written.service,
            version: written.version,
            zone: written.zone,
            addresses: written.addresses,
            weight: written.weight,
            priority: written.priority,
            labels: written.labels,
            more: (more != More::default()).then(|| more.into()),
        }
    }
}

impl From<Instance> for Written {
    fn from(instance: Instance) -> Self {
        let More { region, hostname, app, environment, started_at, status, others } =
            *instance.more.unwrap_or_default();
        Written {
            id: instance.id,
            service: instance.service,
            version: instance.version,
            zone: instance.zone,
            region,
            hostname,
            app,
            environment,
            addresses: instance.addresses,
            weight: instance.weight,
            priority: instance.priority,
            started_at,
            status,
            labels: instance.labels,
            others,
        }
    }
}

/// `host:port`, `[v6]:port`, `unix:/path` or `memory:name`. A host is a name or an IP address in URL syntax:
/// without user, path or scope.
fn check_address(address: &str) -> Result<(), &'static str> {
    if address.chars().any(char::is_control) {
        return Err("a control character is in it");
    }
    if let Some(path) = address.strip_prefix("unix:") {
        return match path.len() {
            0 => Err("nothing after the colon"),
            1..=MAX_SOCKET_PATH => Ok(()),
            _ => Err("a socket's path has at most 107 bytes"),
        };
    }
    if let Some(name) = address.strip_prefix("memory:") {
        return if name.is_empty() { Err("nothing after the colon") } else { Ok(()) };
    }
    let (host, port) = address.rsplit_once(':').ok_or("no port; write host:port")?;
    check_host(host)?;
    // `parse` accepts a leading plus sign.
    match port.parse::<u16>().ok().filter(|_| port.bytes().all(|byte| byte.is_ascii_digit())) {
        Some(0) => Err("port 0 can't be connected to"),
        Some(_) => Ok(()),
        None => Err("the port is no number from 1 to 65535"),
    }
}

fn check_host(host: &str) -> Result<(), &'static str> {
    if host.is_empty() {
        return Err("no host; write host:port");
    }
    if host.contains('@') {
        return Err("a user has no place in it");
    }
    if host.contains('%') {
        return Err("a scoped IPv6 address is valid on one host only");
    }
    if let Some(inner) = host.strip_prefix('[') {
        return match inner.strip_suffix(']').map(str::parse::<Ipv6Addr>) {
            Some(Ok(ip)) if ip.is_unspecified() => {
                Err("it means every interface, which can't be connected to")
            }
            Some(Ok(_)) => Ok(()),
            _ => Err("no IPv6 address is in the brackets"),
        };
    }
    if host.contains(':') {
        return Err("write an IPv6 address in brackets: [::1]:80");
    }
    // As in URLs: a name whose last label is a number must be an IPv4 address.
    let name = host.strip_suffix('.').unwrap_or(host);
    let last = name.rsplit('.').next().unwrap_or(name);
    if !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()) {
        return match host.parse::<Ipv4Addr>() {
            Ok(ip) if ip.is_unspecified() => Err("it means every interface, which can't be connected to"),
            Ok(_) => Ok(()),
            Err(_) => Err("the host is no IPv4 address"),
        };
    }
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(is_of_name);
    match name.len() <= MAX_HOST && name.split('.').all(is_label) {
        true => Ok(()),
        false => Err("the host is no name: it has letters, digits, `-`, `_` and single dots"),
    }
}

/// Container networks use underscores in host names, against RFC 1123. Names in other scripts are written in
/// their DNS form (`xn--…`).
fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// The longest socket path on Linux, without the final zero byte.
const MAX_SOCKET_PATH: usize = 107;
/// The longest name in DNS.
const MAX_HOST: usize = 253;

/// The parts of a name that a program calls: `stock` has no listener, `stock:admin` is the listener `admin` of `stock`.
///
/// ```
/// use chassis_core::registry::split_listener;
///
/// assert_eq!(split_listener("stock:admin"), ("stock", Some("admin")));
/// assert_eq!(split_listener("stock"), ("stock", None));
/// ```
pub fn split_listener(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((service, listener)) if !service.is_empty() && !listener.is_empty() => (service, Some(listener)),
        _ => (name, None),
    }
}

// === impl Status ===

#[cfg(feature = "schema")]
crate::types::schema::written! {
    Status: |generator| { "type": "string", "examples": ["up", "out_of_service", "starting", "down"] }
}

impl Status {
    /// The word for it.
    pub fn as_str(&self) -> &str {
        match self {
            Status::Up => "up",
            Status::OutOfService => "out_of_service",
            Status::Starting => "starting",
            Status::Down => "down",
            Status::Other(word) => word,
        }
    }

    /// Is it [`Status::Up`]?
    pub fn is_up(&self) -> bool {
        *self == Status::Up
    }
}

impl From<Cow<'_, str>> for Status {
    fn from(word: Cow<'_, str>) -> Self {
        match &*word {
            "up" | "" => Status::Up,
            "out_of_service" => Status::OutOfService,
            "starting" => Status::Starting,
            "down" => Status::Down,
            _ => Status::Other(word.into_owned().into()),
        }
    }
}

impl From<String> for Status {
    fn from(word: String) -> Self {
        Cow::<str>::Owned(word).into()
    }
}

impl From<Status> for String {
    fn from(status: Status) -> Self {
        status.as_str().to_owned()
    }
}

// === impl Membership ===

impl Membership {
    /// These instances; each may be shared already.
    ///
    /// ```
    /// use chassis_core::registry::{Instance, Membership};
    ///
    /// let stock = Instance::new("stock", "a").with_address("grpc", "127.0.0.1:50051");
    /// assert_eq!(Membership::known([stock.clone()]), Membership::Known(vec![stock.into()]));
    /// ```
    pub fn known<I: Into<Arc<Instance>>>(instances: impl IntoIterator<Item = I>) -> Self {
        Membership::Known(instances.into_iter().map(Into::into).collect())
    }

    /// The number of instances.
    pub(crate) fn size(&self) -> usize {
        match self {
            Membership::Known(instances) => instances.len(),
            Membership::Unknown | Membership::Deleted => 0,
        }
    }
}

// === impl RegistryError ===

impl RegistryError {
    /// An error with a message that names the address or the file.
    pub fn new(message: impl Into<String>) -> Self {
        RegistryError { message: message.into(), is_quota_exceeded: false, source: None }
    }

    /// There are as many instances or services as the registry takes. chassis asks again after a minute, not at once.
    pub fn quota_exceeded(message: impl Into<String>) -> Self {
        RegistryError { is_quota_exceeded: true, ..Self::new(message) }
    }

    /// Is it an error of [`quota_exceeded`](Self::quota_exceeded)?
    pub fn is_quota_exceeded(&self) -> bool {
        self.is_quota_exceeded
    }

    /// The registry does not support this operation.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(message)
    }

    /// Adds the error that caused this one.
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl From<RegistryError> for crate::types::Error {
    fn from(error: RegistryError) -> Self {
        crate::types::Error::local(crate::types::Reason::NoEndpoint, error.to_string())
            .with_source(Box::new(error) as BoxError)
    }
}

#[async_trait]
impl<R: Registry + ?Sized> Registry for Arc<R> {
    fn name(&self) -> &str {
        (**self).name()
    }
    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        (**self).register(instance).await
    }
    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        (**self).watch(service).await
    }
    async fn services(&self) -> Vec<String> {
        (**self).services().await
    }
    fn lists_services(&self) -> bool {
        (**self).lists_services()
    }
    fn looked_up_in(&self, service: &str) -> &str {
        (**self).looked_up_in(service)
    }
    fn is_local(&self) -> bool {
        (**self).is_local()
    }
    fn listed_by(&self, service: &str, id: &str) -> Option<String> {
        (**self).listed_by(service, id)
    }
    fn contracts(&self) -> Option<Arc<dyn Contracts>> {
        (**self).contracts()
    }
    fn never_blocks(&self) -> bool {
        (**self).never_blocks()
    }
}

// === impl LabelSet ===

impl LabelSet {
    /// Whether `instance` has all of these labels.
    pub fn selects(&self, instance: &Instance) -> bool {
        self.iter().all(|(name, value)| instance.label(name) == Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_cannot_be_connected_to_are_refused() {
        let long = format!("{}:80", "x".repeat(64));
        let longer = format!("{}x:80", "x.".repeat(127));
        let path = format!("unix:/{}", "x".repeat(107));
        for (bad, why) in [
            ("10.0.0.1", "no port"),
            ("", "no port"),
            (":80", "no host"),
            ("10.0.0.1:0", "port 0"),
            ("h:70000", "no number"),
            ("h:x", "no number"),
            ("h:+80", "no number"),
            ("h:", "no number"),
            ("h:80/x", "no number"),
            ("h: 80", "no number"),
            ("fe80::1%eth0:80", "scoped"),
            ("[fe80::1%eth0]:80", "scoped"),
            ("::1:80", "in brackets"),
            ("[]:80", "no IPv6 address"),
            ("[::1:80", "no IPv6 address"),
            ("[h]:80", "no IPv6 address"),
            ("[127.0.0.1]:80", "no IPv6 address"),
            ("[::]:80", "every interface"),
            ("0.0.0.0:80", "every interface"),
            ("256.0.0.1:80", "no IPv4 address"),
            ("10.1:80", "no IPv4 address"),
            ("1.2.3.4.5:80", "no IPv4 address"),
            ("10.0.0.1.:80", "no IPv4 address"),
            ("user@h:80", "a user"),
            ("h h:80", "no name"),
            (" h:80", "no name"),
            ("a/b:80", "no name"),
            ("a..b:80", "no name"),
            (".:80", "no name"),
            ("größe:80", "no name"),
            ("h?x:80", "no name"),
            ("https://h:80", "in brackets"),
            ("a\nb:80", "a control character"),
            ("a:80\n", "a control character"),
            ("a\0b:80", "a control character"),
            (&long, "no name"),
            (&longer, "no name"),
            ("unix:", "nothing"),
            ("unix:/run/\0", "a control character"),
            (&path, "107"),
            ("memory:", "nothing"),
            ("memory:a\tb", "a control character"),
        ] {
            let refused = check_address(bad).expect_err(bad);
            assert!(refused.contains(why), "{bad}: {refused}");
        }
        for good in [
            "10.0.0.1:80",
            "[::1]:80",
            "[2001:db8::1]:65535",
            "[::ffff:10.0.0.1]:80",
            "stock.local:1",
            "stock.:80",
            "xn--gre-7ka.example:80",
            "my_app-1:80",
            "1a:80",
            "unix:/run/s",
            "unix:/run/stock line.sock",
            "unix:relative.sock",
            "memory:a",
            "memory:a b",
        ] {
            assert_eq!(check_address(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn an_instance_says_what_is_wrong_with_it() {
        let said = |instance: Instance| instance.check().unwrap_err().to_string();
        let stock = |address: &str| Instance::new("stock", "a").with_address("grpc", address);
        assert_eq!(said(stock("a\nb:80")), r#"instance `a`, grpc `a\nb:80`: a control character is in it"#);
        assert_eq!(said(Instance::new("stock", "a")), "instance `a` has no address");
        assert_eq!(
            said({
                let mut none = stock("h:80");
                none.id.clear();
                none
            }),
            "an instance of `stock` has no id"
        );
        assert!(stock("h:80").check_for("stock").is_ok());
        assert_eq!(
            stock("h:80").check_for("billing").unwrap_err().to_string(),
            "instance `a` belongs to `stock`"
        );
        // The service is known from the watch.
        assert!(Instance { service: String::new(), ..stock("h:80") }.check_for("stock").is_ok());
    }

    #[test]
    fn what_newer_processes_write_is_kept() {
        let text = r#"{"id":"a","service":"stock","region":"eu","addresses":{"grpc":"h:80"},"priority":2,"started_at":"2026-03-01T12:00:00.250Z","status":"warming_up","gpu":{"count":2},"tags":["x"]}"#;
        let instance: Instance = serde_json::from_str(text).unwrap();
        assert_eq!(instance.others().find(|(key, _)| *key == "gpu").unwrap().1["count"], 2);
        assert_eq!((instance.status().as_str(), instance.effective_weight()), ("warming_up", 0));
        assert_eq!(
            instance.started_at(),
            Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_772_366_400_250))
        );
        assert_eq!(serde_json::to_string(&instance).unwrap(), text);
    }

    /// Older processes read it, and what is written for ten thousand instances stays small.
    #[test]
    fn what_is_not_stated_is_not_written() {
        let text = r#"{"id":"a","service":"stock","addresses":{"grpc":"h:80"}}"#;
        let instance = Instance::new("stock", "a").with_address("grpc", "h:80");
        assert_eq!(serde_json::to_string(&instance).unwrap(), text);
        assert_eq!(serde_json::from_str::<Instance>(text).unwrap(), instance);
    }

    #[test]
    fn times_that_can_not_be_written_are_cut() {
        let (early, late) = (SystemTime::UNIX_EPOCH - Duration::from_secs(1), 300_000_000_000);
        for at in [early, SystemTime::UNIX_EPOCH + Duration::from_secs(late)] {
            let instance = Instance::new("stock", "a").with_started_at(at);
            let text = serde_json::to_string(&instance).unwrap();
            assert_eq!(serde_json::from_str::<Instance>(&text).unwrap(), instance, "{text}");
        }
        let bad = r#"{"id":"a","addresses":{},"started_at":"yesterday"}"#;
        assert!(serde_json::from_str::<Instance>(bad).is_err());
    }

    #[test]
    fn fields_are_labels_unless_one_of_that_name_is_set() {
        let stock = Instance::new("stock", "a").with_region("eu").with_app("shop").with_label("app", "other");
        let labels = ["region", "app", "zone", "status"].map(|name| stock.label(name));
        assert_eq!(labels, [Some("eu"), Some("other"), None, None]);
    }

    #[test]
    fn a_name_may_have_a_listener() {
        for (name, parts) in [
            ("stock", ("stock", None)),
            ("stock:admin", ("stock", Some("admin"))),
            ("a:b:c", ("a:b", Some("c"))),
            (":admin", (":admin", None)),
            ("stock:", ("stock:", None)),
            ("", ("", None)),
        ] {
            assert_eq!(split_listener(name), parts);
        }
    }
}
