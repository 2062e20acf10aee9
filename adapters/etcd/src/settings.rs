//! The settings: the members of etcd, the user, and the keys that are used.
use std::path::PathBuf;

use chassis_core::{
    adapter::SecretSource,
    settings::Problem,
    units::{PositiveSpan, Span},
};
use chassis_http::connector::TlsConfig;
use serde::Deserialize;

/// The settings of the registry: the `registry` table if its `kind` is `etcd`.
///
/// ```
/// use chassis_etcd::EtcdConfig;
///
/// let config = EtcdConfig::at(["127.0.0.1:2379"]);
/// assert_eq!((config.prefix.as_str(), config.lease.get().as_secs()), ("/chassis", 10));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct EtcdConfig {
    /// The members of the cluster, `host:port`, `http://host:port`, or `https://host:port` with `tls`. At least one; the
    /// port's default is 2379.
    pub endpoints: Vec<String>,
    /// The prefix of all keys: `<prefix>/services/<service>/<id>`. Default `/chassis`.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// The time for which an entry exists without being renewed. It is renewed every third of this time. At
    /// least `2s`. Default `10s`.
    #[serde(default = "default_lease")]
    pub lease: PositiveSpan,
    /// The time over which processes spread their requests after an outage of more than 30 s. `0s` disables
    /// this. Default `5s`.
    #[serde(default = "default_jitter")]
    pub jitter: Span,
    /// The user. Default: no authentication.
    #[serde(default)]
    pub user: Option<String>,
    /// The file with the password of `user`; surrounding white space is ignored. It is read at each
    /// authentication, so that the password can be changed there.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// The environment variable with the password of `user`.
    #[serde(default)]
    pub password_env: Option<String>,
    /// TLS to etcd: `tls: { ca: /path, cert: /path, key: /path, server_name: … }`; it needs the cargo feature `tls`. Default:
    /// none.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
}

/// The settings of a config center: an entry of `config.centers` whose `kind` is `etcd`.
///
/// ```
/// use chassis_etcd::EtcdSourceConfig;
///
/// let config = EtcdSourceConfig::key(["127.0.0.1:2379"], "/orders/chassis.yaml");
/// assert!(config.prefix.is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct EtcdSourceConfig {
    /// The members of the cluster, `host:port`, `http://host:port`, or `https://host:port` with `tls`. At least one; the
    /// port's default is 2379.
    pub endpoints: Vec<String>,
    /// The key of a document. Its name determines the format: `.json`, `.toml`, and YAML otherwise. Either this
    /// or `prefix`.
    #[serde(default)]
    pub key: Option<String>,
    /// The prefix of the keys of sections: the value of `<prefix>outbound` is the section `outbound`, in YAML or
    /// JSON. Either this or `key`.
    #[serde(default)]
    pub prefix: Option<String>,
    /// The time over which processes spread their requests after an outage of more than 30 s. `0s` disables
    /// this. Default `5s`.
    #[serde(default = "default_jitter")]
    pub jitter: Span,
    /// The user. Default: no authentication.
    #[serde(default)]
    pub user: Option<String>,
    /// The file with the password of `user`; surrounding white space is ignored. It is read at each
    /// authentication, so that the password can be changed there.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// The environment variable with the password of `user`.
    #[serde(default)]
    pub password_env: Option<String>,
    /// TLS to etcd: `tls: { ca: /path, cert: /path, key: /path, server_name: … }`; it needs the cargo feature `tls`. Default:
    /// none.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
}

/// The connection to etcd.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionConfig {
    pub(crate) endpoints: Vec<String>,
    pub(crate) user: Option<String>,
    pub(crate) password: SecretSource,
    pub(crate) tls: Option<TlsConfig>,
}

/// etcd's port for clients.
const PORT: &str = "2379";
/// etcd extends a shorter lease to this time, in seconds.
const SHORTEST_LEASE: u64 = 2;

fn default_prefix() -> String {
    "/chassis".to_owned()
}

fn default_lease() -> PositiveSpan {
    PositiveSpan::from_millis(10_000)
}

fn default_jitter() -> Span {
    Span(std::time::Duration::from_secs(5))
}

// === impl EtcdConfig ===

impl EtcdConfig {
    /// The cluster with these members, without authentication, with default settings.
    pub fn at<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        EtcdConfig {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            prefix: default_prefix(),
            lease: default_lease(),
            jitter: default_jitter(),
            user: None,
            password_file: None,
            password_env: None,
            tls: None,
        }
    }

    pub(crate) fn connection(&self) -> ConnectionConfig {
        let EtcdConfig { endpoints, user, password_file, password_env, tls, .. } = self.clone();
        let password = SecretSource { file: password_file, env: password_env };
        ConnectionConfig { endpoints, user, password, tls }
    }

    pub(crate) fn check(&self) -> Vec<Problem> {
        let mut problems = self.connection().check();
        if self.lease.get().as_secs() < SHORTEST_LEASE {
            problems.push(Problem::new("lease", "etcd has no lease shorter than 2s"));
        }
        problems
    }
}

// === impl EtcdSourceConfig ===

impl EtcdSourceConfig {
    /// One document, at `key`.
    pub fn key<E: Into<String>>(endpoints: impl IntoIterator<Item = E>, key: impl Into<String>) -> Self {
        EtcdSourceConfig { key: Some(key.into()), ..Self::at(endpoints) }
    }

    /// A section at each key that begins with `prefix`.
    pub fn prefix<E: Into<String>>(
        endpoints: impl IntoIterator<Item = E>,
        prefix: impl Into<String>,
    ) -> Self {
        EtcdSourceConfig { prefix: Some(prefix.into()), ..Self::at(endpoints) }
    }

    fn at<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        EtcdSourceConfig {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            key: None,
            prefix: None,
            jitter: default_jitter(),
            user: None,
            password_file: None,
            password_env: None,
            tls: None,
        }
    }

    pub(crate) fn connection(&self) -> ConnectionConfig {
        let EtcdSourceConfig { endpoints, user, password_file, password_env, tls, .. } = self.clone();
        let password = SecretSource { file: password_file, env: password_env };
        ConnectionConfig { endpoints, user, password, tls }
    }

    pub(crate) fn check(&self) -> Vec<Problem> {
        let mut problems = self.connection().check();
        match (&self.key, &self.prefix) {
            (Some(_), Some(_)) => {
                problems.push(Problem::new("prefix", "`key` is set as well; use one of them"))
            }
            (None, None) => problems.push(Problem::new("", "`key` or `prefix` has to be set")),
            (Some(key), None) if key.is_empty() => problems.push(Problem::new("key", "a key is not empty")),
            (None, Some(prefix)) if prefix.is_empty() => {
                problems.push(Problem::new("prefix", "an empty prefix would read every key of the cluster"));
            }
            _ => {}
        }
        problems
    }
}

// === impl ConnectionConfig ===

impl ConnectionConfig {
    fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.endpoints.is_empty() {
            problems.push(Problem::new("endpoints", "at least one member of the cluster is needed"));
        }
        for (at, endpoint) in self.endpoints.iter().enumerate() {
            if let Err(why) = address(endpoint, self.tls.as_ref()) {
                problems.push(Problem::new(format!("endpoints[{at}]"), why));
            }
        }
        problems.extend(self.tls.iter().flat_map(TlsConfig::check));
        problems.extend(self.password.check("password"));
        match &self.user {
            Some(_) if !self.password.is_set() => {
                problems.push(Problem::new("user", "`password_file` or `password_env` has to be set"));
            }
            None if self.password.is_set() => {
                let key = if self.password.file.is_some() { "password_file" } else { "password_env" };
                problems.push(Problem::new(key, "there is no `user` whose password it is"));
            }
            _ => {}
        }
        problems
    }

    /// The addresses of the members, without duplicates.
    pub(crate) fn addresses(&self) -> Result<Vec<String>, String> {
        let mut all = Vec::new();
        for endpoint in &self.endpoints {
            let address = address(endpoint, self.tls.as_ref())
                .map_err(|why| format!("endpoint `{endpoint}`: {why}"))?;
            if !all.contains(&address) {
                all.push(address);
            }
        }
        if all.is_empty() { Err("no endpoint of etcd is set".to_owned()) } else { Ok(all) }
    }
}

/// `host:port` of an endpoint. A user in it is refused, because every log line would contain it.
fn address(endpoint: &str, tls: Option<&TlsConfig>) -> Result<String, String> {
    let address = TlsConfig::without_scheme(tls, endpoint)?;
    let address = address.strip_suffix('/').unwrap_or(address);
    if address.contains('@') {
        return Err("a user has no place in it; set `user`".to_owned());
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
    fn endpoints_are_written_in_several_ways() {
        for (written, address) in [
            ("10.0.0.5:2379", "10.0.0.5:2379"),
            ("http://etcd-0:2379/", "etcd-0:2379"),
            ("etcd-0", "etcd-0:2379"),
            ("[::1]", "[::1]:2379"),
            ("[::1]:4001", "[::1]:4001"),
        ] {
            assert_eq!(super::address(written, None).as_deref(), Ok(address), "{written}");
        }
        for wrong in ["", "http://", "etcd/v3", "root:secret@etcd:2379", "https://etcd:2379"] {
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
        let good = EtcdConfig::at(["a"]);
        wrong(good.check(), &[]);
        wrong(EtcdConfig::at(Vec::<String>::new()).check(), &["endpoints"]);
        wrong(EtcdConfig::at(["a", "b/c"]).check(), &["endpoints[1]"]);
        wrong(EtcdConfig { lease: PositiveSpan::from_millis(1_999), ..good.clone() }.check(), &["lease"]);
        let user = EtcdConfig { user: Some("root".into()), ..good.clone() };
        wrong(user.check(), &["user"]);
        wrong(EtcdConfig { password_env: Some("P".into()), ..user.clone() }.check(), &[]);
        let both = EtcdConfig { password_env: Some("P".into()), password_file: Some("p".into()), ..user };
        wrong(both.check(), &["password_env"]);
        wrong(EtcdConfig { password_file: Some("p".into()), ..good }.check(), &["password_file"]);

        wrong(EtcdSourceConfig::key(["a"], "/k").check(), &[]);
        wrong(EtcdSourceConfig::key(["a"], "").check(), &["key"]);
        wrong(EtcdSourceConfig::prefix(["a"], "").check(), &["prefix"]);
        wrong(EtcdSourceConfig::at(["a"]).check(), &[""]);
        wrong(
            EtcdSourceConfig { prefix: Some("/".into()), ..EtcdSourceConfig::key(["a"], "/k") }.check(),
            &["prefix"],
        );
    }
}
