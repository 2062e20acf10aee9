//! The settings: the agent, the token, the check, and what is read.
use std::path::PathBuf;

use chassis_core::{
    adapter::SecretSource,
    registry::Instance,
    settings::Problem,
    units::{PositiveSpan, Span},
};
use chassis_http::connector::TlsConfig;
use serde::Deserialize;

/// The settings of the registry: the `registry` table when its `kind` is `consul`.
///
/// ```
/// use chassis_consul::ConsulConfig;
///
/// let config = ConsulConfig::at("10.0.0.5:8500");
/// assert_eq!((config.deregister_after.0.as_secs(), config.wait.get().as_secs()), (60, 60));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ConsulConfig {
    /// The agent of this machine, `host:port`, `http://host:port`, `unix:/path`, or `https://host:port` with `tls`. The
    /// port's default is 8500, and 8501 with `tls`. Default `127.0.0.1:8500`.
    pub address: String,
    /// How Consul finds out whether an instance lives. Default `{ ttl: 10s }`.
    pub check: Check,
    /// How long an instance stays registered whose check is critical. Consul looks every 30 s, and takes less than `1m`
    /// for `1m`. `0s`: for good. Default `1m`.
    pub deregister_after: Span,
    /// Are instances called whose checks warn? Default `call`.
    pub warning: Warning,
    /// The protocols of an entry that was not written by chassis and does not name any. Default `[http, grpc]`.
    pub protocols: Vec<String>,
    /// Tags of the own instances, beside one `name=value` for each label. Default none.
    pub tags: Vec<String>,
    /// The datacenter whose instances are called. Instances are always registered in that of the agent. Default: that
    /// of the agent.
    pub datacenter: Option<String>,
    /// The namespace, which Consul Enterprise has. Default: that of the token.
    pub namespace: Option<String>,
    /// How long a blocking query waits for a change. `1s` to `10m`. Default `60s`.
    pub wait: PositiveSpan,
    /// Over what time processes spread their requests after an outage of more than 30 s. `0s`: they do not. Default
    /// `5s`.
    pub jitter: Span,
    /// The file with the ACL token; white space around it is left out. It is read for each request, so that a token can
    /// be replaced in it. Default: no token.
    pub token_file: Option<PathBuf>,
    /// The environment variable with the ACL token.
    pub token_env: Option<String>,
    /// TLS to the agent: `tls: { ca: /path, cert: /path, key: /path, server_name: … }`; it needs the cargo feature `tls`. Default:
    /// none.
    pub tls: Option<TlsConfig>,
}

/// How Consul finds out whether an instance lives.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Check {
    /// The process says so: `check: { ttl: 10s }`. It does so every third of this time; without word for this time
    /// the instance is critical. From `1s`.
    Ttl(PositiveSpan),
    /// The agent asks for a path of the listener `http`: `check: { http: { path: /healthz } }`.
    Http(HttpCheck),
    /// The agent asks the health service of the listener `grpc`: `check: { grpc: {} }`.
    Grpc(GrpcCheck),
}

/// The agent asks for a path, which has to be answered by a status 2xx; 429 warns.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct HttpCheck {
    /// The path, from its slash on. Required.
    pub path: String,
    /// How often it is asked for. Default `10s`.
    #[serde(default = "default_interval")]
    pub interval: PositiveSpan,
    /// How long an answer may take. Default `2s`.
    #[serde(default = "default_timeout")]
    pub timeout: PositiveSpan,
}

/// The agent asks gRPC's health service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct GrpcCheck {
    /// The name of the gRPC service that it asks about. Default empty: the whole server.
    pub service: String,
    /// How often it asks. Default `10s`.
    pub interval: PositiveSpan,
    /// How long an answer may take. Default `2s`.
    pub timeout: PositiveSpan,
}

/// Whether instances are called whose checks warn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Warning {
    /// They are called, with the weight that Consul has for this state.
    #[default]
    Call,
    /// They are not.
    Skip,
}

/// Which settings are read from Consul: an entry of `config.centers` whose `kind` is `consul`.
///
/// ```
/// use chassis_consul::ConsulSourceConfig;
///
/// let config = ConsulSourceConfig::key("127.0.0.1:8500", "orders/chassis.yaml");
/// assert!(config.prefix.is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ConsulSourceConfig {
    /// The agent of this machine, `host:port`, `http://host:port`, `unix:/path`, or `https://host:port` with `tls`. The
    /// port's default is 8500, and 8501 with `tls`. Default `127.0.0.1:8500`.
    pub address: String,
    /// The key of a document. Its name says the format: `.json`, `.toml`, and YAML otherwise. A slash at its beginning
    /// is left out, as Consul's own tools do. Either this or `prefix`.
    pub key: Option<String>,
    /// The prefix of the keys of sections: the value of `<prefix>outbound` is the section `outbound`, in YAML or JSON.
    /// Either this or `key`.
    pub prefix: Option<String>,
    /// The datacenter. Default: that of the agent.
    pub datacenter: Option<String>,
    /// The namespace, which Consul Enterprise has. Default: that of the token.
    pub namespace: Option<String>,
    /// How long a blocking query waits for a change. `1s` to `10m`. Default `60s`.
    pub wait: PositiveSpan,
    /// Over what time processes spread their requests after an outage of more than 30 s. `0s`: they do not. Default
    /// `5s`.
    pub jitter: Span,
    /// The file with the ACL token; white space around it is left out. It is read for each request, so that a token can
    /// be replaced in it. Default: no token.
    pub token_file: Option<PathBuf>,
    /// The environment variable with the ACL token.
    pub token_env: Option<String>,
    /// TLS to the agent: `tls: { ca: /path, cert: /path, key: /path, server_name: … }`; it needs the cargo feature `tls`. Default:
    /// none.
    pub tls: Option<TlsConfig>,
}

/// How Consul is reached.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionConfig {
    pub(crate) address: String,
    pub(crate) datacenter: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) wait: PositiveSpan,
    pub(crate) token: SecretSource,
    pub(crate) tls: Option<TlsConfig>,
}

/// The port of an agent's HTTP API.
const PORT: &str = "8500";
/// The same over TLS.
const TLS_PORT: &str = "8501";
const LOCAL: &str = "127.0.0.1:8500";
/// Consul waits no longer for a change.
const LONGEST_WAIT: u64 = 600;

fn default_interval() -> PositiveSpan {
    PositiveSpan::from_millis(10_000)
}

fn default_timeout() -> PositiveSpan {
    PositiveSpan::from_millis(2_000)
}

fn default_jitter() -> Span {
    Span(std::time::Duration::from_secs(5))
}

// === impl ConsulConfig ===

impl ConsulConfig {
    /// The agent at `address`, without a token, and the defaults.
    pub fn at(address: impl Into<String>) -> Self {
        ConsulConfig { address: address.into(), ..Self::default() }
    }

    pub(crate) fn connection(&self) -> ConnectionConfig {
        let ConsulConfig { address, datacenter, namespace, wait, token_file, token_env, tls, .. } =
            self.clone();
        let token = SecretSource { file: token_file, env: token_env };
        ConnectionConfig { address, datacenter, namespace, wait, token, tls }
    }

    pub(crate) fn check(&self) -> Vec<Problem> {
        let mut problems = self.connection().check();
        match &self.check {
            Check::Ttl(ttl) if ttl.get().as_secs() < 1 => {
                problems.push(Problem::new(
                    "check.ttl",
                    "a time of less than 1s is too short for the way to Consul",
                ));
            }
            Check::Http(check) if !check.path.starts_with('/') => {
                problems.push(Problem::new("check.http.path", "a path begins with a slash"));
            }
            _ => {}
        }
        if self.protocols.is_empty() {
            problems.push(Problem::new("protocols", "at least one protocol is needed"));
        }
        problems
    }
}

impl Default for ConsulConfig {
    fn default() -> Self {
        ConsulConfig {
            address: LOCAL.to_owned(),
            check: Check::default(),
            deregister_after: Span(std::time::Duration::from_secs(60)),
            warning: Warning::default(),
            protocols: vec!["http".to_owned(), "grpc".to_owned()],
            tags: Vec::new(),
            datacenter: None,
            namespace: None,
            wait: PositiveSpan::from_millis(60_000),
            jitter: default_jitter(),
            token_file: None,
            token_env: None,
            tls: None,
        }
    }
}

// === impl Check ===

impl Check {
    /// The agent asks for this path.
    pub fn http(path: impl Into<String>) -> Self {
        Check::Http(HttpCheck { path: path.into(), interval: default_interval(), timeout: default_timeout() })
    }

    /// The agent asks the health service of the whole gRPC server.
    pub fn grpc() -> Self {
        Check::Grpc(GrpcCheck::default())
    }
}

impl Default for Check {
    fn default() -> Self {
        Check::Ttl(PositiveSpan::from_millis(10_000))
    }
}

impl HttpCheck {
    /// The same, asked so often.
    pub fn every(mut self, interval: PositiveSpan) -> Self {
        self.interval = interval;
        self
    }
}

impl GrpcCheck {
    /// The same, asked so often.
    pub fn every(mut self, interval: PositiveSpan) -> Self {
        self.interval = interval;
        self
    }
}

impl Default for GrpcCheck {
    fn default() -> Self {
        GrpcCheck { service: String::new(), interval: default_interval(), timeout: default_timeout() }
    }
}

// === impl ConsulSourceConfig ===

impl ConsulSourceConfig {
    /// One document, at `key`.
    pub fn key(address: impl Into<String>, key: impl Into<String>) -> Self {
        ConsulSourceConfig { address: address.into(), key: Some(key.into()), ..Self::default() }
    }

    /// A section at each key that begins with `prefix`.
    pub fn prefix(address: impl Into<String>, prefix: impl Into<String>) -> Self {
        ConsulSourceConfig { address: address.into(), prefix: Some(prefix.into()), ..Self::default() }
    }

    pub(crate) fn connection(&self) -> ConnectionConfig {
        let ConsulSourceConfig { address, datacenter, namespace, wait, token_file, token_env, tls, .. } =
            self.clone();
        let token = SecretSource { file: token_file, env: token_env };
        ConnectionConfig { address, datacenter, namespace, wait, token, tls }
    }

    pub(crate) fn check(&self) -> Vec<Problem> {
        let mut problems = self.connection().check();
        let is_empty = |key: &String| key.trim_start_matches('/').is_empty();
        match (&self.key, &self.prefix) {
            (Some(_), Some(_)) => {
                problems.push(Problem::new("prefix", "`key` is set as well; use one of them"))
            }
            (None, None) => problems.push(Problem::new("", "`key` or `prefix` has to be set")),
            (Some(key), None) if is_empty(key) => problems.push(Problem::new("key", "a key is not empty")),
            (None, Some(prefix)) if is_empty(prefix) => {
                problems.push(Problem::new("prefix", "an empty prefix would read every key of Consul"));
            }
            _ => {}
        }
        problems
    }
}

impl Default for ConsulSourceConfig {
    fn default() -> Self {
        let ConsulConfig { address, wait, jitter, .. } = ConsulConfig::default();
        ConsulSourceConfig {
            address,
            key: None,
            prefix: None,
            datacenter: None,
            namespace: None,
            wait,
            jitter,
            token_file: None,
            token_env: None,
            tls: None,
        }
    }
}

// === impl ConnectionConfig ===

impl ConnectionConfig {
    fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Err(why) = self.address() {
            problems.push(Problem::new("address", why));
        }
        problems.extend(self.tls.iter().flat_map(TlsConfig::check));
        problems.extend(self.token.check("token"));
        if !(1..=LONGEST_WAIT).contains(&self.wait.get().as_secs()) {
            problems.push(Problem::new("wait", "Consul takes times from 1s to 10m"));
        }
        for (key, value) in [("datacenter", &self.datacenter), ("namespace", &self.namespace)] {
            if value.as_ref().is_some_and(String::is_empty) {
                problems.push(Problem::new(key, "an empty name names none; leave it out"));
            }
        }
        problems
    }

    /// The address of the agent.
    pub(crate) fn address(&self) -> Result<String, String> {
        address(&self.address, self.tls.as_ref())
    }
}

/// `host:port` or `unix:/path` of an agent. A user in it is refused, for it would be in every log line.
fn address(written: &str, tls: Option<&TlsConfig>) -> Result<String, String> {
    let address = match written.strip_prefix("unix:") {
        Some(_) if tls.is_some() => return Err("a Unix socket has no use for `tls`".to_owned()),
        Some(path) => format!("unix:{}", path.strip_prefix("//").unwrap_or(path)), // as Consul's tools write it
        None => {
            let address = TlsConfig::without_scheme(tls, written)?;
            let address = address.strip_suffix('/').unwrap_or(address);
            if address.contains('@') {
                return Err("a user has no place in it; set `token_file`".to_owned());
            }
            if address.is_empty() || address.contains('/') {
                return Err("write host:port or http://host:port".to_owned());
            }
            let has_port = address.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
            if has_port {
                address.to_owned()
            } else {
                format!("{address}:{}", if tls.is_some() { TLS_PORT } else { PORT })
            }
        }
    };
    let agent = Instance::new("consul", "consul").with_address("http", address.as_str());
    agent.check().map(|()| address).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_in_several_ways() {
        for (written, address) in [
            ("10.0.0.5:8500", "10.0.0.5:8500"),
            ("http://consul:8501/", "consul:8501"),
            ("consul", "consul:8500"),
            ("[::1]", "[::1]:8500"),
            ("unix:///run/consul.sock", "unix:/run/consul.sock"),
            ("unix:/run/consul.sock", "unix:/run/consul.sock"),
        ] {
            assert_eq!(super::address(written, None).as_deref(), Ok(address), "{written}");
        }
        for wrong in
            ["", "http://", "consul/v1", "root:secret@consul:8500", "https://consul:8501", "a:0", "unix:"]
        {
            assert!(super::address(wrong, None).is_err(), "{wrong}");
        }
    }

    #[track_caller]
    fn wrong(config: Vec<Problem>, expected: &[&str]) {
        let found: Vec<_> = config.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_can_not_work_is_refused() {
        let good = ConsulConfig::default();
        wrong(good.check(), &[]);
        wrong(ConsulConfig::at("a/b").check(), &["address"]);
        let check = |check| ConsulConfig { check, ..good.clone() }.check();
        wrong(check(Check::Ttl(PositiveSpan::from_millis(999))), &["check.ttl"]);
        wrong(check(Check::http("healthz")), &["check.http.path"]);
        wrong(check(Check::http("/healthz")), &[]);
        wrong(ConsulConfig { wait: PositiveSpan::from_millis(601_000), ..good.clone() }.check(), &["wait"]);
        wrong(ConsulConfig { protocols: Vec::new(), ..good.clone() }.check(), &["protocols"]);
        wrong(ConsulConfig { datacenter: Some(String::new()), ..good.clone() }.check(), &["datacenter"]);
        let both = ConsulConfig { token_env: Some("T".into()), token_file: Some("t".into()), ..good };
        wrong(both.check(), &["token_env"]);

        wrong(ConsulSourceConfig::key("a", "k").check(), &[]);
        wrong(ConsulSourceConfig::key("a", "/").check(), &["key"]);
        wrong(ConsulSourceConfig::prefix("a", "").check(), &["prefix"]);
        wrong(ConsulSourceConfig::default().check(), &[""]);
        let both = ConsulSourceConfig { prefix: Some("/".into()), ..ConsulSourceConfig::key("a", "k") };
        wrong(both.check(), &["prefix"]);
    }
}
