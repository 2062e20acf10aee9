//! The settings: where the API server is, and what is read of it.
use std::{collections::BTreeMap, path::PathBuf};

use chassis_core::{settings::Problem, units::Span};
use chassis_http::connector::TlsConfig;
use serde::Deserialize;

/// The settings of the registry: the `registry` table when its `kind` is `kubernetes`.
///
/// Without `server` and `kubeconfig`, the process uses the service account of its pod.
///
/// ```
/// use chassis_kubernetes::KubernetesConfig;
///
/// let config = KubernetesConfig { namespace: Some("shop".into()), ..KubernetesConfig::default() };
/// assert_eq!(config.protocols, ["http", "grpc"]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct KubernetesConfig {
    /// The API server, `https://host:port`, with `tls`. Default: that of the kubeconfig, or of the cluster.
    pub server: Option<String>,
    /// TLS to `server`.
    pub tls: Option<TlsConfig>,
    /// The file with the bearer token for `server`. It is read for each request, so that it may be replaced.
    pub token_file: Option<PathBuf>,
    /// A kubeconfig file. Users by `exec`, by an `auth-provider` or by a password are refused.
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig. Default: its current one.
    pub context: Option<String>,
    /// The namespace of services whose name has no dot; `stock.shop` is the service `stock` of the namespace `shop`.
    /// Default: that of the context or of the pod, else `default`.
    pub namespace: Option<String>,
    /// The port of each listener, by its name or number in the slices: `{ grpc: rpc, admin: "9090" }`. Default: by the
    /// names and the `appProtocol` of the ports.
    pub ports: BTreeMap<String, String>,
    /// The listeners of a port that has no name, no `appProtocol` and no other port beside it. Default `[http, grpc]`.
    pub protocols: Vec<String>,
    /// The zone of this process, to follow the hints of topology aware routing: instances that are meant for other
    /// zones are left out while all instances have hints. Default: hints are ignored.
    pub zone: Option<String>,
    /// The labels of pods that routes can choose by: `true` for all, or their names. It needs the right to list and watch
    /// `pods`; without it instances have no labels. Default `false`: pods are not read.
    pub pod_labels: PodLabels,
    /// Over what time processes spread their requests after an outage of more than 30 s. `0s`: they do not. Default
    /// `5s`.
    pub jitter: Span,
}

/// The labels of pods that instances have.
///
/// ```
/// use chassis_kubernetes::PodLabels;
///
/// let labels = PodLabels::named(["version", "track"]);
/// assert!(labels.includes("track") && !labels.includes("pod-template-hash"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged, expecting = "`true`, `false`, or a list of names of labels")]
pub enum PodLabels {
    /// `true`: all labels. `false`: none; pods are not read.
    Every(bool),
    /// The labels of these names.
    Named(Vec<String>),
}

/// Which settings are read from Kubernetes: an entry of `config.centers` whose `kind` is `kubernetes`.
///
/// ```
/// use chassis_kubernetes::KubernetesSourceConfig;
///
/// let config = KubernetesSourceConfig::config_map("orders", "chassis.yaml");
/// assert!(config.secret.is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct KubernetesSourceConfig {
    /// The ConfigMap. Either this or `secret`.
    pub config_map: Option<String>,
    /// The Secret. Either this or `config_map`.
    pub secret: Option<String>,
    /// The key of a document. Its name says the format: `.json`, `.toml`, and YAML otherwise. Default: each key is a
    /// section, in YAML or JSON.
    pub key: Option<String>,
    /// As for the registry.
    pub server: Option<String>,
    /// As for the registry.
    pub tls: Option<TlsConfig>,
    /// As for the registry.
    pub token_file: Option<PathBuf>,
    /// As for the registry.
    pub kubeconfig: Option<PathBuf>,
    /// As for the registry.
    pub context: Option<String>,
    /// The namespace of the object. Default: that of the context or of the pod, else `default`.
    pub namespace: Option<String>,
    /// As for the registry. Default `5s`.
    pub jitter: Span,
}

/// The address of the API server, and the identity of this process.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionConfig {
    pub(crate) server: Option<String>,
    pub(crate) tls: Option<TlsConfig>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) kubeconfig: Option<PathBuf>,
    pub(crate) context: Option<String>,
    pub(crate) namespace: Option<String>,
}

// === impl KubernetesConfig ===

impl KubernetesConfig {
    pub(crate) fn connection(&self) -> ConnectionConfig {
        let KubernetesConfig { server, tls, token_file, kubeconfig, context, namespace, .. } = self.clone();
        ConnectionConfig { server, tls, token_file, kubeconfig, context, namespace }
    }

    pub(crate) fn check(&self) -> Vec<Problem> {
        let mut problems = self.connection().check();
        if self.protocols.is_empty() {
            problems.push(Problem::new("protocols", "at least one protocol is needed"));
        }
        for (listener, port) in &self.ports {
            if port.is_empty() {
                problems.push(Problem::new(format!("ports.{listener}"), "a port has a name or a number"));
            }
        }
        if let PodLabels::Named(names) = &self.pod_labels {
            for (n, name) in names.iter().enumerate().filter(|(_, name)| !is_label(name)) {
                let why = format!("`{}` is no name of a label in Kubernetes", name.escape_debug());
                problems.push(Problem::new(format!("pod_labels[{n}]"), why));
            }
        }
        problems
    }
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        KubernetesConfig {
            server: None,
            tls: None,
            token_file: None,
            kubeconfig: None,
            context: None,
            namespace: None,
            ports: BTreeMap::new(),
            protocols: vec!["http".to_owned(), "grpc".to_owned()],
            zone: None,
            pod_labels: PodLabels::default(),
            jitter: Span(std::time::Duration::from_secs(5)),
        }
    }
}

// === impl PodLabels ===

impl PodLabels {
    /// The labels of these names.
    pub fn named(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        PodLabels::Named(names.into_iter().map(Into::into).collect())
    }

    /// Whether instances have the label `name` of their pods.
    pub fn includes(&self, name: &str) -> bool {
        match self {
            PodLabels::Every(all) => *all,
            PodLabels::Named(names) => names.iter().any(|named| named == name),
        }
    }

    /// Whether pods are not read.
    pub(crate) fn is_off(&self) -> bool {
        match self {
            PodLabels::Every(all) => !all,
            PodLabels::Named(names) => names.is_empty(),
        }
    }
}

impl Default for PodLabels {
    fn default() -> Self {
        PodLabels::Every(false)
    }
}

// === impl KubernetesSourceConfig ===

impl KubernetesSourceConfig {
    /// A document, at `key` of the ConfigMap `name`.
    pub fn config_map(name: impl Into<String>, key: impl Into<String>) -> Self {
        KubernetesSourceConfig { config_map: Some(name.into()), key: Some(key.into()), ..Self::default() }
    }

    pub(crate) fn connection(&self) -> ConnectionConfig {
        let KubernetesSourceConfig { server, tls, token_file, kubeconfig, context, namespace, .. } =
            self.clone();
        ConnectionConfig { server, tls, token_file, kubeconfig, context, namespace }
    }

    pub(crate) fn check(&self) -> Vec<Problem> {
        let mut problems = self.connection().check();
        let (key, name) = match (&self.config_map, &self.secret) {
            (Some(_), Some(_)) => {
                problems.push(Problem::new("secret", "`config_map` is set as well; use one of them"));
                return problems;
            }
            (None, None) => {
                problems.push(Problem::new("", "`config_map` or `secret` has to be set"));
                return problems;
            }
            (Some(name), None) => ("config_map", name),
            (None, Some(name)) => ("secret", name),
        };
        if !is_object_name(name) {
            problems.push(Problem::new(key, format!("`{name}` is no name in Kubernetes")));
        }
        if self.key.as_ref().is_some_and(String::is_empty) {
            problems.push(Problem::new("key", "a key is not empty"));
        }
        problems
    }
}

impl Default for KubernetesSourceConfig {
    fn default() -> Self {
        KubernetesSourceConfig {
            config_map: None,
            secret: None,
            key: None,
            server: None,
            tls: None,
            token_file: None,
            kubeconfig: None,
            context: None,
            namespace: None,
            jitter: KubernetesConfig::default().jitter,
        }
    }
}

// === impl ConnectionConfig ===

impl ConnectionConfig {
    pub(crate) fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        match &self.server {
            Some(server) => {
                if let Err(why) = address(server, self.tls.as_ref()) {
                    problems.push(Problem::new("server", why));
                }
                for (key, is_set) in
                    [("kubeconfig", self.kubeconfig.is_some()), ("context", self.context.is_some())]
                {
                    if is_set {
                        problems.push(Problem::new(key, "`server` is set as well; use one of them"));
                    }
                }
            }
            None => {
                for (key, is_set) in [("tls", self.tls.is_some()), ("token_file", self.token_file.is_some())]
                {
                    if is_set {
                        problems.push(Problem::new(key, "it belongs to `server`, which is not set"));
                    }
                }
                if self.context.is_some() && self.kubeconfig.is_none() {
                    problems.push(Problem::new("context", "it belongs to `kubeconfig`, which is not set"));
                }
            }
        }
        problems.extend(self.tls.iter().flat_map(TlsConfig::check));
        if let Some(namespace) = self.namespace.as_ref().filter(|namespace| !is_name(namespace)) {
            let why =
                format!("`{namespace}` is no name in Kubernetes: letters a to z, digits and `-`, 63 at most");
            problems.push(Problem::new("namespace", why));
        }
        problems
    }
}

/// May `name` be one of a namespace or a service?
pub(crate) fn is_name(name: &str) -> bool {
    let is_edge =
        |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let mut bytes = name.bytes();
    let all = bytes.clone().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    name.len() <= 63 && all && is_edge(bytes.clone().last()) && is_edge(bytes.next())
}

/// May `name` be one of an object, such as a ConfigMap?
pub(crate) fn is_object_name(name: &str) -> bool {
    name.len() <= 253 && !name.is_empty() && name.split('.').all(is_name)
}

/// May `name` be one of a label? It has a prefix before a slash, which is a domain, or none.
fn is_label(name: &str) -> bool {
    let (prefix, name) = name.split_once('/').map_or((None, name), |(prefix, name)| (Some(prefix), name));
    let is_edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let mut bytes = name.bytes();
    let all = bytes.clone().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    let is_name = name.len() <= 63 && all && is_edge(bytes.clone().last()) && is_edge(bytes.next());
    is_name && prefix.is_none_or(is_object_name)
}

/// `host:port` of the API server. A user in it is refused, for it would be in every log line.
pub(crate) fn address(server: &str, tls: Option<&TlsConfig>) -> Result<String, String> {
    let address = TlsConfig::without_scheme(tls, server)?;
    let address = address.strip_suffix('/').unwrap_or(address);
    if address.contains('@') {
        return Err("a user has no place in it".to_owned());
    }
    if address.is_empty() || address.contains('/') {
        return Err("write https://host:port".to_owned());
    }
    let has_port = address.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    let port = if tls.is_some() { 443 } else { 80 };
    Ok(if has_port { address.to_owned() } else { format!("{address}:{port}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn wrong(config: KubernetesConfig, expected: &[&str]) {
        let found: Vec<_> = config.check().into_iter().map(|problem| problem.path).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_can_not_work_is_refused() {
        let good = KubernetesConfig::default();
        wrong(good.clone(), &[]);
        let tls = Some(TlsConfig::new("ca.pem"));
        let server =
            KubernetesConfig { server: Some("https://k8s:6443".into()), tls: tls.clone(), ..good.clone() };
        wrong(server.clone(), &[]);
        wrong(KubernetesConfig { tls: None, ..server.clone() }, &["server"]);
        wrong(KubernetesConfig { kubeconfig: Some("k".into()), ..server.clone() }, &["kubeconfig"]);
        wrong(KubernetesConfig { tls, ..good.clone() }, &["tls"]);
        wrong(KubernetesConfig { context: Some("c".into()), ..good.clone() }, &["context"]);
        wrong(KubernetesConfig { namespace: Some("a,b".into()), ..good.clone() }, &["namespace"]);
        wrong(KubernetesConfig { protocols: Vec::new(), ..good.clone() }, &["protocols"]);
        wrong(
            KubernetesConfig { ports: [("grpc".into(), String::new())].into(), ..good.clone() },
            &["ports.grpc"],
        );
        let labels = PodLabels::named(["app.kubernetes.io/version", "a b", "track", "", "/x", "X/y/z"]);
        wrong(
            KubernetesConfig { pod_labels: labels, ..good },
            &["pod_labels[1]", "pod_labels[3]", "pod_labels[4]", "pod_labels[5]"],
        );
    }

    #[test]
    fn labels_of_pods_are_all_some_or_none() {
        let read = |text: &str| -> Result<PodLabels, String> {
            let config: Result<KubernetesConfig, _> = serde_json::from_str(text);
            config.map(|config| config.pod_labels).map_err(|error| error.to_string())
        };
        assert!(read("{}").unwrap().is_off() && read(r#"{"pod_labels":false}"#).unwrap().is_off());
        assert!(read(r#"{"pod_labels":[]}"#).unwrap().is_off());
        assert!(read(r#"{"pod_labels":true}"#).unwrap().includes("anything"));
        assert_eq!(read(r#"{"pod_labels":["version"]}"#).unwrap(), PodLabels::named(["version"]));
        assert!(read(r#"{"pod_labels":"version"}"#).unwrap_err().contains("a list of names of labels"));
    }

    #[test]
    fn a_center_names_one_object() {
        let of = |config: KubernetesSourceConfig| -> Vec<String> {
            config.check().into_iter().map(|problem| problem.path).collect()
        };
        let good = KubernetesSourceConfig::config_map("orders", "chassis.yaml");
        assert_eq!(of(good.clone()), Vec::<String>::new());
        assert_eq!(of(KubernetesSourceConfig { secret: Some("s".into()), ..good.clone() }), ["secret"]);
        assert_eq!(of(KubernetesSourceConfig::default()), [""]);
        assert_eq!(of(KubernetesSourceConfig { key: Some(String::new()), ..good }), ["key"]);
        assert_eq!(of(KubernetesSourceConfig::config_map("a=b", "k")), ["config_map"]);
    }

    #[test]
    fn names_and_addresses_are_those_of_kubernetes() {
        for (name, is) in [
            ("stock", true),
            ("a-1", true),
            ("", false),
            ("-a", false),
            ("a-", false),
            ("A", false),
            ("a.b", false),
            ("a=b,c", false),
        ] {
            assert_eq!(is_name(name), is, "{name}");
        }
        assert!(is_object_name("kube-root-ca.crt") && !is_object_name("a..b"));
        let tls = TlsConfig::new("ca.pem");
        assert_eq!(address("https://10.0.0.1/", Some(&tls)).as_deref(), Ok("10.0.0.1:443"));
        assert_eq!(address("http://127.0.0.1:8001", None).as_deref(), Ok("127.0.0.1:8001"));
        for wrong in ["", "https://a", "http://u:p@a", "http://a/b"] {
            assert!(address(wrong, None).is_err(), "{wrong}");
        }
    }
}
