//! The settings: the servers, the credentials, and what is read.
use std::{collections::BTreeMap, path::PathBuf};

use chassis_core::{
    adapter::SecretSource,
    registry::Instance,
    settings::Problem,
    units::{PositiveSpan, Span},
};
use chassis_http::connector::TlsConfig;
use serde::Deserialize;

use crate::{access::Credentials, client::ConnectionConfig, entry::is_plain};

/// The settings of the registry: the `registry` table when its `kind` is `servicecomb`.
///
/// ```
/// use chassis_servicecomb::ServiceCombConfig;
///
/// let config = ServiceCombConfig::at("10.0.0.5:30100");
/// assert_eq!((config.app.as_str(), config.heartbeat.get().as_secs()), ("default", 10));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ServiceCombConfig {
    /// The servers of one service center, `host:port`, `http://host:port`, or `https://host:port` with `tls`. The
    /// port's default is 30100. Default `[127.0.0.1:30100]`.
    pub addresses: Vec<String>,
    /// The application (`appId`) in which instances are registered and looked up. Default `default`.
    pub app: String,
    /// The environment in service center: `development`, `testing`, `acceptance` or `production`. Default empty, as
    /// in go-chassis.
    pub environment: String,
    /// The name that this process has as a consumer. Service center pushes what a consumer has asked for, and shows
    /// which services it depends on. Default `chassis-consumer`.
    pub consumer: String,
    /// The tenant. Default `default`.
    pub domain: String,
    /// The project, a part of each path. Default `default`.
    pub project: String,
    /// Properties of the services that this process registers, beside those of its instances. Default none.
    pub properties: BTreeMap<String, String>,
    /// How often the process says that it lives. Service center takes less than `5s` for `5s`. `1s` to `10m`. Default
    /// `10s`.
    pub heartbeat: PositiveSpan,
    /// So many heartbeats in a row may be missing: an instance stays registered for `heartbeat` × (`misses` + 1).
    /// Service center takes less than 3 for 3. Default 3.
    pub misses: u16,
    /// Are changes pushed over a WebSocket? Without it they are seen after `refresh`. Default `true`.
    pub watch: bool,
    /// How often the instances of each followed service are asked for, beside the pushes. `1s` to `10m`. Default `30s`.
    pub refresh: PositiveSpan,
    /// Are the contracts of this process (protobuf descriptors, OpenAPI texts) published as schemas, and can it fetch those
    /// of others? Default `false`.
    pub contracts: bool,
    /// Over what time processes spread their requests after an outage of more than 30 s. `0s`: they do not. Default
    /// `5s`.
    pub jitter: Span,
    /// The user, for whom a token is fetched with the password. Default: none.
    pub user: Option<String>,
    /// The file with the user's password; white space around it is left out. It is read whenever a token is fetched.
    pub password_file: Option<PathBuf>,
    /// The environment variable with the user's password.
    pub password_env: Option<String>,
    /// The file with a token, in place of a user. It is read for each request, so that a token can be replaced in it.
    pub token_file: Option<PathBuf>,
    /// The environment variable with a token.
    pub token_env: Option<String>,
    /// The access key (AK) of a cloud, in place of a user. Default: none.
    pub access_key: Option<String>,
    /// The file with the secret key (SK) beside it. It is read for each request. The key itself is never sent.
    pub secret_key_file: Option<PathBuf>,
    /// The environment variable with the secret key.
    pub secret_key_env: Option<String>,
    /// TLS to all `addresses`, for requests and for pushes: `tls: { ca: /path, cert: /path, key: /path, server_name: … }`;
    /// it needs the cargo feature `tls`. Default: none.
    pub tls: Option<TlsConfig>,
}

/// The port of service center.
const PORT: &str = "30100";
const ENVIRONMENTS: [&str; 5] = ["", "development", "testing", "acceptance", "production"];
/// The longest names that service center takes.
const MAX_APP: usize = 160;
const MAX_NAME: usize = 128;
/// The name of a process that has none, as a consumer.
pub(crate) const CONSUMER: &str = "chassis-consumer";

// === impl ServiceCombConfig ===

impl ServiceCombConfig {
    /// The service center at `address`, without credentials, and the defaults.
    pub fn at(address: impl Into<String>) -> Self {
        ServiceCombConfig { addresses: vec![address.into()], ..Self::default() }
    }

    fn credentials(&self) -> Credentials {
        let config = self.clone();
        let secret = |file, env| SecretSource { file, env };
        Credentials {
            user: config.user,
            password: secret(config.password_file, config.password_env),
            token: secret(config.token_file, config.token_env),
            access_key: config.access_key,
            secret_key: secret(config.secret_key_file, config.secret_key_env),
            project: config.project,
        }
    }

    /// # Errors
    /// The first address that is none.
    pub(crate) fn connection(&self) -> Result<ConnectionConfig, String> {
        let addresses = self.addresses.iter().map(|written| {
            let address = address(written, PORT, self.tls.as_ref());
            address.map_err(|why| format!("address `{}`: {why}", written.escape_debug()))
        });
        Ok(ConnectionConfig {
            name: "service center",
            addresses: addresses.collect::<Result<_, _>>()?,
            domain: self.domain.clone(),
            project: self.project.clone(),
            credentials: self.credentials(),
            tls: self.tls.clone(),
        })
    }

    pub(crate) fn check(&self) -> Vec<Problem> {
        let mut problems = self.credentials().check();
        problems.extend(addresses(&self.addresses, PORT, self.tls.as_ref()));
        let names = [("app", &self.app, MAX_APP), ("consumer", &self.consumer, MAX_NAME)];
        for (key, name, most) in names {
            if !is_plain(name) || name.len() > most {
                problems.push(Problem::new(
                    key,
                    format!(
                        "a name has letters, digits and, within, `_`, `-` and `.`, at most {most} of them"
                    ),
                ));
            }
        }
        problems.extend(path_parts([("domain", &self.domain), ("project", &self.project)]));
        if !ENVIRONMENTS.contains(&self.environment.as_str()) {
            problems.push(Problem::new(
                "environment",
                format!("service center knows {}", ENVIRONMENTS[1..].join(", ")),
            ));
        }
        for (key, span) in [("heartbeat", &self.heartbeat), ("refresh", &self.refresh)] {
            if !(1..=600).contains(&span.get().as_secs()) {
                problems.push(Problem::new(key, "a time from 1s to 10m"));
            }
        }
        problems
    }
}

impl Default for ServiceCombConfig {
    fn default() -> Self {
        let default = || "default".to_owned();
        ServiceCombConfig {
            addresses: vec![format!("127.0.0.1:{PORT}")],
            app: default(),
            environment: String::new(),
            consumer: CONSUMER.to_owned(),
            domain: default(),
            project: default(),
            properties: BTreeMap::new(),
            heartbeat: PositiveSpan::from_millis(10_000),
            misses: 3,
            watch: true,
            refresh: PositiveSpan::from_millis(30_000),
            contracts: false,
            jitter: Span(std::time::Duration::from_secs(5)),
            user: None,
            password_file: None,
            password_env: None,
            token_file: None,
            token_env: None,
            access_key: None,
            secret_key_file: None,
            secret_key_env: None,
            tls: None,
        }
    }
}

/// The problems of a list of servers, and of the table `tls` beside it.
pub(crate) fn addresses(all: &[String], port: &str, tls: Option<&TlsConfig>) -> Vec<Problem> {
    let mut problems: Vec<_> = tls.into_iter().flat_map(TlsConfig::check).collect();
    if all.is_empty() {
        problems.push(Problem::new("addresses", "at least one address is needed"));
    }
    let wrong = |(n, written): (usize, &String)| {
        address(written, port, tls).err().map(|why| Problem::new(format!("addresses[{n}]"), why))
    };
    problems.extend(all.iter().enumerate().filter_map(wrong));
    problems
}

/// The problems of names that are sent in headers and paths.
pub(crate) fn path_parts<'a>(names: impl IntoIterator<Item = (&'static str, &'a String)>) -> Vec<Problem> {
    let is_part = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
            && !name.bytes().all(|byte| byte == b'.')
    };
    let wrong = names.into_iter().filter(|(_, name)| !is_part(name));
    wrong.map(|(key, _)| Problem::new(key, "it has letters, digits, `_`, `-` and `.`")).collect()
}

/// `host:port` of a server. A user in it is refused, for it would be in every log line.
pub(crate) fn address(written: &str, port: &str, tls: Option<&TlsConfig>) -> Result<String, String> {
    let address = TlsConfig::without_scheme(tls, written)?;
    let address = address.strip_suffix('/').unwrap_or(address);
    if address.contains('@') {
        return Err("a user has no place in it; set `user` and `password_file`".to_owned());
    }
    if address.is_empty() || address.contains('/') {
        return Err("write host:port, http://host:port or https://host:port".to_owned());
    }
    let has_port = address.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    let address = if has_port { address.to_owned() } else { format!("{address}:{port}") };
    let server = Instance::new("server", "server").with_address("http", address.as_str());
    server.check().map(|()| address).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_in_several_ways() {
        for (written, address) in [
            ("10.0.0.5:30100", "10.0.0.5:30100"),
            ("http://center:8080/", "center:8080"),
            ("center", "center:30100"),
            ("[::1]", "[::1]:30100"),
        ] {
            assert_eq!(super::address(written, PORT, None).as_deref(), Ok(address), "{written}");
        }
        for wrong in ["", "http://", "center/v4", "root:secret@center:1", "https://center", "a:0", "unix:/x"]
        {
            assert!(super::address(wrong, PORT, None).is_err(), "{wrong}");
        }
        let tls = TlsConfig::new("/ca.pem");
        for (written, address) in [
            ("https://center:8443/", Ok("center:8443")),
            ("center", Ok("center:30100")),
            ("http://center", Err(())),
        ] {
            let read = super::address(written, PORT, Some(&tls));
            assert_eq!(read.as_deref().map_err(drop), address, "{written}");
        }
    }

    #[track_caller]
    fn wrong(config: ServiceCombConfig, expected: &[&str]) {
        let problems = config.check();
        let found: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(found, expected, "{problems:?}");
    }

    #[test]
    fn what_can_not_work_is_refused() {
        let good = ServiceCombConfig::default;
        wrong(good(), &[]);
        wrong(ServiceCombConfig { addresses: vec!["a".into(), "a/b".into()], ..good() }, &["addresses[1]"]);
        wrong(ServiceCombConfig { addresses: Vec::new(), ..good() }, &["addresses"]);
        wrong(ServiceCombConfig { app: "a b".into(), ..good() }, &["app"]);
        wrong(ServiceCombConfig { consumer: "x".repeat(129), ..good() }, &["consumer"]);
        wrong(ServiceCombConfig { project: "..".into(), ..good() }, &["project"]);
        wrong(ServiceCombConfig { environment: "staging".into(), ..good() }, &["environment"]);
        wrong(ServiceCombConfig { heartbeat: PositiveSpan::from_millis(999), ..good() }, &["heartbeat"]);
        wrong(ServiceCombConfig { user: Some("u".into()), ..good() }, &["user"]);
        let tls = Some(TlsConfig::default());
        wrong(ServiceCombConfig { tls, ..good() }, &["tls.ca"]);
    }
}
