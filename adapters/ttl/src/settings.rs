//! The settings: the servers, and how long an entry lasts.
use std::path::PathBuf;

use chassis_core::{
    settings::Problem,
    units::{PositiveSpan, Span},
};
use chassis_http::connector::TlsConfig;
use serde::Deserialize;

use crate::wire::check_key;

/// The settings of the registry: the `registry` table when its `kind` is `ttl`.
///
/// ```
/// use chassis_ttl::TtlConfig;
///
/// let config = TtlConfig::at(["10.0.0.5:8500", "10.0.0.6:8500"]);
/// assert_eq!(config.lease.get().as_secs(), 10);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TtlConfig {
    /// The registry servers, `host:port`, `http://host:port`, or `https://host:port` with `tls`. At least one; the port's
    /// default is 8500. This process registers with all of them, and uses the union of what they list.
    pub servers: Vec<String>,
    /// How long an entry stays when its process no longer renews it. It is renewed every third of this time, and at least
    /// once a second. From `2s`. Default `10s`.
    #[serde(default = "default_lease")]
    pub lease: PositiveSpan,
    /// Over what time processes spread their requests after an outage of more than 30 s. `0s`: they do not. Default
    /// `5s`.
    #[serde(default = "default_jitter")]
    pub jitter: Span,
    /// The file with the token of the servers; white space around it is left out. It is read again when a server refuses
    /// the token. Default: none is sent.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// The environment variable with the token.
    #[serde(default)]
    pub token_env: Option<String>,
    /// TLS to the servers: `tls: { ca: /path, cert: /path, key: /path, server_name: … }`; it needs the cargo feature `tls`. Default:
    /// none.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
    /// Are the contracts of this process (protobuf descriptors, OpenAPI texts) published at the servers, and can it fetch
    /// those of others? Default `false`.
    #[serde(default)]
    pub contracts: bool,
}

/// Which settings are read from registry servers: an entry of `config.centers` whose `kind` is `ttl`.
///
/// ```
/// use chassis_ttl::TtlSourceConfig;
///
/// let config = TtlSourceConfig::at(["10.0.0.5:8500", "10.0.0.6:8500"], "orders/chassis.yaml");
/// assert_eq!(config.servers.len(), 2);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TtlSourceConfig {
    /// The registry servers, `host:port`, `http://host:port`, or `https://host:port` with `tls`. At least one; the port's
    /// default is 8500. The version that was put last at any of them counts.
    pub servers: Vec<String>,
    /// The key of the document. Its name says the format: `.json`, `.toml`, and YAML otherwise. A slash at its beginning is
    /// left out.
    pub key: String,
    /// Over what time processes spread their requests after an outage of more than 30 s. `0s`: they do not. Default
    /// `5s`.
    #[serde(default = "default_jitter")]
    pub jitter: Span,
    /// The file with the token of the servers; white space around it is left out. It is read again when a server refuses
    /// the token. Default: none is sent.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// The environment variable with the token.
    #[serde(default)]
    pub token_env: Option<String>,
    /// TLS to the servers: `tls: { ca: /path, cert: /path, key: /path, server_name: … }`; it needs the cargo feature `tls`. Default:
    /// none.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
}

const PORT: &str = "8500";
/// A shorter lease would be over before a lost heartbeat is repeated.
const SHORTEST_LEASE: u64 = 2;

fn default_lease() -> PositiveSpan {
    PositiveSpan::from_millis(10_000)
}

fn default_jitter() -> Span {
    Span(std::time::Duration::from_secs(5))
}

// === impl TtlConfig ===

impl TtlConfig {
    /// These servers, without a token, and the defaults.
    pub fn at<S: Into<String>>(servers: impl IntoIterator<Item = S>) -> Self {
        TtlConfig {
            servers: servers.into_iter().map(Into::into).collect(),
            lease: default_lease(),
            jitter: default_jitter(),
            token_file: None,
            token_env: None,
            tls: None,
            contracts: false,
        }
    }

    pub(crate) fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.servers.is_empty() {
            problems.push(Problem::new("servers", "at least one registry server is needed"));
        }
        for (at, server) in self.servers.iter().enumerate() {
            if let Err(why) = address(server, self.tls.as_ref()) {
                problems.push(Problem::new(format!("servers[{at}]"), why));
            }
        }
        problems.extend(self.tls.iter().flat_map(TlsConfig::check));
        if self.lease.get().as_secs() < SHORTEST_LEASE {
            problems.push(Problem::new("lease", "the shortest lease is 2s"));
        }
        if self.token_file.is_some() && self.token_env.is_some() {
            problems.push(Problem::new("token_env", "`token_file` is set as well; use one of them"));
        }
        problems
    }

    /// The addresses of the servers, each once.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let mut all = Vec::new();
        for address in self.servers.iter().filter_map(|server| address(server, self.tls.as_ref()).ok()) {
            if !all.contains(&address) {
                all.push(address);
            }
        }
        all
    }
}

// === impl TtlSourceConfig ===

impl TtlSourceConfig {
    /// The document `key` at these servers, without a token, and the defaults.
    pub fn at<S: Into<String>>(servers: impl IntoIterator<Item = S>, key: impl Into<String>) -> Self {
        let TtlConfig { servers, jitter, token_file, token_env, tls, .. } = TtlConfig::at(servers);
        TtlSourceConfig { servers, key: key.into(), jitter, token_file, token_env, tls }
    }

    /// The addresses of the servers, and the way to them.
    pub(crate) fn connection(&self) -> TtlConfig {
        let TtlSourceConfig { servers, jitter, token_file, token_env, tls, .. } = self.clone();
        let lease = default_lease();
        TtlConfig { servers, lease, jitter, token_file, token_env, tls, contracts: false }
    }

    pub(crate) fn document(&self) -> &str {
        self.key.trim_start_matches('/')
    }

    pub(crate) fn check(&self) -> Vec<Problem> {
        let mut problems = self.connection().check();
        if let Err(why) = check_key(self.document()) {
            problems.push(Problem::new("key", why));
        }
        problems
    }
}

/// `host:port` of a server. A user in it is refused, for it would be in every log line.
fn address(server: &str, tls: Option<&TlsConfig>) -> Result<String, String> {
    let address = TlsConfig::without_scheme(tls, server)?;
    let address = address.strip_suffix('/').unwrap_or(address);
    if address.contains('@') {
        return Err("a user has no place in it; set `token_file`".to_owned());
    }
    if address.is_empty() || address.contains('/') {
        return Err("write host:port or http://host:port".to_owned());
    }
    let has_port = address.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    Ok(if has_port { address.to_owned() } else { format!("{address}:{PORT}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_work_is_refused() {
        let wrong = |config: TtlConfig| -> Vec<String> {
            config.check().into_iter().map(|problem| problem.path).collect()
        };
        assert_eq!(wrong(TtlConfig::at(["a", "http://b:1/", "[::1]"])), Vec::<String>::new());
        assert_eq!(wrong(TtlConfig::at(Vec::<String>::new())), ["servers"]);
        for bad in ["", "https://a", "user:secret@a", "a/v1"] {
            assert_eq!(wrong(TtlConfig::at(["a", bad])), ["servers[1]"], "{bad}");
        }
        let good = TtlConfig::at(["a", "a:8500"]);
        assert_eq!(good.addresses(), ["a:8500"]);
        assert_eq!(wrong(TtlConfig { lease: PositiveSpan::from_millis(1_999), ..good.clone() }), ["lease"]);
        let token = TtlConfig { token_env: Some("T".into()), token_file: Some("t".into()), ..good };
        assert_eq!(wrong(token), ["token_env"]);
        let center = |servers: &[&str], key: &str| -> Vec<String> {
            let config = TtlSourceConfig::at(servers.iter().copied(), key);
            config.check().into_iter().map(|problem| problem.path).collect()
        };
        assert_eq!(center(&["a"], "/orders/chassis.yaml"), Vec::<String>::new());
        assert_eq!(center(&["a"], "/"), ["key"]);
        assert_eq!(center(&[], "a//b"), ["servers", "key"]);
    }
}
