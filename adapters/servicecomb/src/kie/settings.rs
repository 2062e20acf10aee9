//! The settings of the config center: the servers, the label set, and its keys.
use std::{collections::BTreeMap, path::PathBuf};

use chassis_core::{
    adapter::SecretSource,
    settings::Problem,
    units::{PositiveSpan, Span},
};
use chassis_http::connector::TlsConfig;
use serde::Deserialize;

use crate::{
    access::Credentials,
    client::ConnectionConfig,
    settings::{address, addresses, path_parts},
};

/// Which settings are read from kie: an entry of `config.centers` whose `kind` is `kie`.
///
/// ```
/// use chassis_servicecomb::KieSourceConfig;
///
/// let config = KieSourceConfig::labels("10.0.0.5:30110", [("app", "shop"), ("service", "orders")]);
/// assert_eq!((config.prefix(), config.wait.get().as_secs()), ("chassis.", 30));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct KieSourceConfig {
    /// The servers of one kie, `host:port`, `http://host:port`, or `https://host:port` with `tls`. The port's default
    /// is 30110. Default `[127.0.0.1:30110]`.
    pub addresses: Vec<String>,
    /// The project, a part of each path. Default `default`.
    pub project: String,
    /// The labels of the entries to read, 1 to 6 of them: `{ app: shop, service: orders }`. An entry is read if it has
    /// these labels and no others. A value may be empty. Required.
    pub labels: BTreeMap<String, String>,
    /// The key of a document. Its `value_type` says the format: `yaml`, `json`, `properties`; of a `text` the ending of
    /// the key does: `.json`, `.toml`, and YAML otherwise. Either this or `prefix`.
    pub key: Option<String>,
    /// The prefix of the keys of single settings: the value of `<prefix>outbound.defaults.timeout` is that setting. A
    /// value of the type `yaml`, `json` or `properties` is what stands below the path of its key. Empty, or with a dot at
    /// its end; empty: every key is one. Either this or `key`. Default `chassis.`, if `key` is not set.
    pub prefix: Option<String>,
    /// How long a long poll waits for a change. `1s` to `5m`. Default `30s`, as in go-chassis.
    pub wait: PositiveSpan,
    /// Over what time processes spread their requests after an outage of more than 30 s. `0s`: they do not. Default
    /// `5s`.
    pub jitter: Span,
    /// The file with a token (JWT) of RBAC, as service center gives them out; white space around it is left out. It is
    /// read for each request, so that a token can be replaced in it. Default: no token.
    pub token_file: Option<PathBuf>,
    /// The environment variable with the token.
    pub token_env: Option<String>,
    /// TLS to all `addresses`: `tls: { ca: /path, cert: /path, key: /path, server_name: … }`; it needs the cargo feature
    /// `tls`. Default: none.
    pub tls: Option<TlsConfig>,
}

/// The port of kie.
const PORT: &str = "30110";
/// The keys that are settings of chassis, among those of others.
const PREFIX: &str = "chassis.";
/// kie waits no longer for a change.
const LONGEST_WAIT: u64 = 300;
/// An entry of kie has so many labels at most.
const MAX_LABELS: usize = 6;
/// The longest names that kie takes.
const MAX_LABEL: usize = 32;
const MAX_LABEL_VALUE: usize = 160;
const MAX_KEY: usize = 2_048;

// === impl KieSourceConfig ===

impl KieSourceConfig {
    /// The settings of the entries with these labels whose keys begin with `chassis.`.
    pub fn labels<K: Into<String>, V: Into<String>>(
        address: impl Into<String>,
        labels: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let labels = labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        KieSourceConfig { addresses: vec![address.into()], labels, ..Self::default() }
    }

    /// One document, at `key` of the entries with these labels.
    pub fn key<K: Into<String>, V: Into<String>>(
        address: impl Into<String>,
        labels: impl IntoIterator<Item = (K, V)>,
        key: impl Into<String>,
    ) -> Self {
        KieSourceConfig { key: Some(key.into()), ..Self::labels(address, labels) }
    }

    /// The prefix in use, where no `key` is set.
    pub fn prefix(&self) -> &str {
        self.prefix.as_deref().unwrap_or(PREFIX)
    }

    /// # Errors
    /// The first address that is none.
    pub(super) fn connection(&self) -> Result<ConnectionConfig, String> {
        let addresses = self.addresses.iter().map(|written| {
            let address = address(written, PORT, self.tls.as_ref());
            address.map_err(|why| format!("address `{}`: {why}", written.escape_debug()))
        });
        Ok(ConnectionConfig {
            name: "kie",
            addresses: addresses.collect::<Result<_, _>>()?,
            domain: "default".to_owned(), // kie takes it from the token
            project: self.project.clone(),
            credentials: self.credentials(),
            tls: self.tls.clone(),
        })
    }

    fn credentials(&self) -> Credentials {
        let token = SecretSource { file: self.token_file.clone(), env: self.token_env.clone() };
        Credentials { token, ..Credentials::default() }
    }

    pub(super) fn check(&self) -> Vec<Problem> {
        let mut problems = self.credentials().check();
        problems.extend(addresses(&self.addresses, PORT, self.tls.as_ref()));
        problems.extend(path_parts([("project", &self.project)]));
        if !(1..=MAX_LABELS).contains(&self.labels.len()) {
            let why =
                format!("1 to {MAX_LABELS} labels are needed, such as `{{ app: shop, service: orders }}`");
            problems.push(Problem::new("labels", why));
        }
        for (label, value) in &self.labels {
            if !is_label(label, MAX_LABEL) {
                let why = format!(
                    "a label has letters and digits and, within, `_`, `-` and `.`, at most {MAX_LABEL} of them"
                );
                problems.push(Problem::new(format!("labels.{}", label.escape_debug()), why));
            }
            // An empty one is a label, too: go-chassis has `environment` always.
            if !value.is_empty() && !is_label(value, MAX_LABEL_VALUE) {
                let why = format!(
                    "the value of a label has letters and digits and, within, `_`, `-` and `.`, at most {MAX_LABEL_VALUE} of them"
                );
                problems.push(Problem::new(format!("labels.{}", label.escape_debug()), why));
            }
        }
        let is_key = |key: &str| key.len() <= MAX_KEY && key.bytes().all(is_of_key);
        let why = "kie's keys have letters, digits, `.`, `_`, `:` and `-`";
        match (&self.key, &self.prefix) {
            (Some(_), Some(_)) => {
                problems.push(Problem::new("prefix", "`key` is set as well; use one of them"))
            }
            (Some(key), None) if key.is_empty() => problems.push(Problem::new("key", "a key is not empty")),
            (Some(key), None) if !is_key(key) => problems.push(Problem::new("key", why)),
            (None, Some(prefix)) if !is_key(prefix) => problems.push(Problem::new("prefix", why)),
            (None, Some(prefix)) if !prefix.is_empty() && !prefix.ends_with('.') => {
                problems.push(Problem::new("prefix", "a prefix ends in a dot, as in `chassis.`"));
            }
            _ => {}
        }
        if !(1..=LONGEST_WAIT).contains(&self.wait.get().as_secs()) {
            problems.push(Problem::new("wait", "kie takes times from 1s to 5m"));
        }
        problems
    }
}

impl Default for KieSourceConfig {
    fn default() -> Self {
        KieSourceConfig {
            addresses: vec![format!("127.0.0.1:{PORT}")],
            project: "default".to_owned(),
            labels: BTreeMap::new(),
            key: None,
            prefix: None,
            wait: PositiveSpan::from_millis(30_000),
            jitter: Span(std::time::Duration::from_secs(5)),
            token_file: None,
            token_env: None,
            tls: None,
        }
    }
}

/// A byte of a key.
fn is_of_key(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._:-".contains(&byte)
}

fn is_label(text: &str, most: usize) -> bool {
    let is_outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    text.len() <= most
        && is_outer(bytes.first())
        && is_outer(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn wrong(config: KieSourceConfig, expected: &[&str]) {
        let problems = config.check();
        let found: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(found, expected, "{problems:?}");
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let good = || KieSourceConfig::labels("kie", [("app", "shop"), ("service", "orders")]);
        wrong(good(), &[]);
        wrong(KieSourceConfig::key("kie:1", [("app", "a.b_c-d"), ("environment", "")], "orders.yaml"), &[]);
        wrong(KieSourceConfig { prefix: Some(String::new()), ..good() }, &[]);
        wrong(KieSourceConfig { addresses: Vec::new(), ..good() }, &["addresses"]);
        wrong(KieSourceConfig { addresses: vec!["https://kie".into()], ..good() }, &["addresses[0]"]);
        wrong(KieSourceConfig { project: String::new(), ..good() }, &["project"]);
        wrong(KieSourceConfig::labels("kie", [("", ""); 0]), &["labels"]);
        wrong(KieSourceConfig::labels("kie", (0..7).map(|n| (format!("l{n}"), "x"))), &["labels"]);
        for (label, value) in [("", "x"), ("a:b", "x"), ("-a", "x"), ("a", "-"), ("a", "b&c"), ("a", "x y")] {
            wrong(KieSourceConfig::labels("kie", [(label, value)]), &[&format!("labels.{label}")]);
        }
        wrong(KieSourceConfig { key: Some(String::new()), ..good() }, &["key"]);
        wrong(KieSourceConfig { key: Some("a/b".into()), ..good() }, &["key"]);
        wrong(KieSourceConfig { key: Some("a".into()), prefix: Some("b.".into()), ..good() }, &["prefix"]);
        wrong(KieSourceConfig { prefix: Some("chassis".into()), ..good() }, &["prefix"]);
        wrong(KieSourceConfig { wait: PositiveSpan::from_millis(301_000), ..good() }, &["wait"]);
        let both = KieSourceConfig { token_file: Some("t".into()), token_env: Some("T".into()), ..good() };
        wrong(both, &["token_env"]);
        wrong(KieSourceConfig { tls: Some(TlsConfig::default()), ..good() }, &["tls.ca"]);
    }
}
