//! The port for registries: they list the instances of services, and register this process.
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    BoxError,
    types::{LabelSet, TextMap},
};

/// One running process of a service, as its registry describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// The process's id: constant for its life, and unique.
    pub id: String,
    /// The service it belongs to.
    #[serde(default)]
    pub service: String,
    /// The version of the program; empty if it is not set.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// The zone of the process; empty if it is not set.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// Address by protocol: `grpc` → `10.0.0.5:50051`, `http` → `unix:/run/stock.sock`.
    pub addresses: TextMap,
    /// Share of the calls, relative to other instances. Default 1; 0 gets no new calls.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u32,
    /// Labels that routes choose by. `version` and `zone` can be used like labels.
    #[serde(default, skip_serializing_if = "TextMap::is_empty")]
    pub labels: TextMap,
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

    /// The services known at the moment, for *did you mean*. Empty if the registry can't list them.
    async fn services(&self) -> Vec<String> {
        Vec::new()
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

impl Instance {
    /// An instance without addresses, labels or version, of weight 1.
    pub fn new(service: impl Into<String>, id: impl Into<String>) -> Self {
        Instance {
            id: id.into(),
            service: service.into(),
            version: String::new(),
            zone: String::new(),
            addresses: TextMap::new(),
            weight: 1,
            labels: TextMap::new(),
        }
    }

    /// Adds an address for `protocol`.
    pub fn with_address(mut self, protocol: impl Into<String>, address: impl Into<String>) -> Self {
        self.addresses.insert(protocol, address);
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

    /// The value of a label; `version` and `zone` are labels too, unless one of that name is set.
    pub fn label(&self, name: &str) -> Option<&str> {
        match (self.labels.get(name), name) {
            (Some(value), _) => Some(value),
            (None, "version") if !self.version.is_empty() => Some(&self.version),
            (None, "zone") if !self.zone.is_empty() => Some(&self.zone),
            _ => None,
        }
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
}

// === impl RegistryError ===

impl RegistryError {
    /// An error with a message that names the address or the file.
    pub fn new(message: impl Into<String>) -> Self {
        RegistryError { message: message.into(), source: None }
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
        assert_eq!(said(Instance { id: String::new(), ..stock("h:80") }), "an instance of `stock` has no id");
        assert!(stock("h:80").check_for("stock").is_ok());
        assert_eq!(
            stock("h:80").check_for("billing").unwrap_err().to_string(),
            "instance `a` belongs to `stock`"
        );
        // The service is known from the watch.
        assert!(Instance { service: String::new(), ..stock("h:80") }.check_for("stock").is_ok());
    }
}
