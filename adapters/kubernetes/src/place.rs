//! The address of the API server and the identity of this process: from the settings, a kubeconfig, or the service account
//! of the pod.
use std::{
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use chassis_core::adapter::SecretSource;
use chassis_http::connector::{Pem, TlsConfig};
use saphyr_parser::{Event, Parser, ScalarStyle};
use serde::Deserialize;
use serde_json::Value;

use crate::settings::{ConnectionConfig, address};

/// An API server, and the identity of this process.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) address: String,
    pub(crate) tls: Option<TlsConfig>,
    pub(crate) token: Token,
    pub(crate) namespace: String,
}

/// The bearer token.
#[derive(Clone)]
pub(crate) enum Token {
    /// In a file that may be replaced, or none.
    Source(SecretSource),
    /// Within a kubeconfig.
    Text(String),
}

/// The parts of a kubeconfig that are used, and those that are refused.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    #[serde(default)]
    current_context: Option<String>,
    #[serde(default)]
    contexts: Vec<Named<Wrapped>>,
    #[serde(default)]
    clusters: Vec<Named<Wrapped>>,
    #[serde(default)]
    users: Vec<Named<Wrapped>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(flatten)]
    value: T,
}

/// An entry holds its contents below its kind.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Wrapped {
    context: Context,
    cluster: Cluster,
    user: User,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
    namespace: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    exec: Option<Value>,
    auth_provider: Option<Value>,
    username: Option<String>,
    #[serde(rename = "as")]
    impersonate: Option<String>,
}

/// The files of a service account, in each pod.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The deepest nesting of a kubeconfig.
const MAX_DEPTH: usize = 32;

// === impl Place ===

impl Place {
    /// Reads the kubeconfig, or the files of the service account.
    pub(crate) fn of(config: &ConnectionConfig) -> Result<Self, String> {
        let mut place = if let Some(server) = &config.server {
            let token = Token::Source(SecretSource { file: config.token_file.clone(), env: None });
            let (tls, namespace) = (config.tls.clone(), "default".to_owned());
            Place { address: address(server, tls.as_ref())?, tls, token, namespace }
        } else if let Some(path) = &config.kubeconfig {
            Self::of_kubeconfig(path, config.context.as_deref())?
        } else {
            Self::of_pod(Path::new(ACCOUNT), |name| std::env::var(name).ok())?
        };
        if let Some(namespace) = &config.namespace {
            place.namespace.clone_from(namespace);
        }
        Ok(place)
    }

    fn of_pod(account: &Path, variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let read = |name: &str| {
            let none =
                format!("this process is in no pod, for `{name}` is not set; set `kubeconfig` or `server`");
            variable(name).filter(|value| !value.is_empty()).ok_or(none)
        };
        let (host, port) = (read("KUBERNETES_SERVICE_HOST")?, read("KUBERNETES_SERVICE_PORT")?);
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let namespace = fs::read_to_string(account.join("namespace")).unwrap_or_default();
        let namespace =
            Some(namespace.trim()).filter(|name| !name.is_empty()).unwrap_or("default").to_owned();
        Ok(Place {
            address: format!("{host}:{port}"),
            tls: Some(TlsConfig::new(account.join("ca.crt"))),
            token: Token::Source(SecretSource { file: Some(account.join("token")), env: None }),
            namespace,
        })
    }

    fn of_kubeconfig(path: &Path, context: Option<&str>) -> Result<Self, String> {
        let failed = |why: String| format!("kubeconfig {}: {why}", path.display());
        let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::of_text(&text, folder, context).map_err(failed)
    }

    /// Paths in `text` are relative to `folder`.
    fn of_text(text: &str, folder: &Path, context: Option<&str>) -> Result<Self, String> {
        let config: Kubeconfig =
            serde_json::from_value(yaml(text)?).map_err(|error| format!("it is malformed: {error}"))?;
        let context = context.or(config.current_context.as_deref()).filter(|name| !name.is_empty());
        let context = context.ok_or("it has no current context; set `context`")?;
        let context = &find(&config.contexts, "context", context)?.context;
        let cluster = &find(&config.clusters, "cluster", &context.cluster)?.cluster;
        let user = match context.user.as_str() {
            "" => User::default(),
            name => find(&config.users, "user", name)?.user.clone(),
        };
        if cluster.insecure_skip_tls_verify {
            return Err("`insecure-skip-tls-verify` is refused; name the `certificate-authority`".to_owned());
        }
        if cluster.proxy_url.is_some() {
            return Err("`proxy-url` is not supported".to_owned());
        }
        for (key, is_set) in [
            ("exec", user.exec.is_some()),
            ("auth-provider", user.auth_provider.is_some()),
            ("username", user.username.is_some()),
            ("as", user.impersonate.is_some()),
        ] {
            if is_set {
                return Err(format!("`{key}` of a user is not supported; use a token or a certificate"));
            }
        }
        let pem = |path: Option<PathBuf>, data: Option<String>, key: &str| -> Result<Option<Pem>, String> {
            let Some(data) = data.filter(|data| !data.is_empty()) else {
                return Ok(path.map(|path| Pem::File(folder.join(path))));
            };
            let bytes = BASE64_STANDARD.decode(data.trim()).ok();
            let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
            text.map(|text| Some(Pem::Text(text.into()))).ok_or(format!("`{key}` is no PEM in Base64"))
        };
        let ca = pem(
            cluster.certificate_authority.clone(),
            cluster.certificate_authority_data.clone(),
            "certificate-authority-data",
        )?;
        let cert = pem(user.client_certificate, user.client_certificate_data, "client-certificate-data")?;
        let key = pem(user.client_key, user.client_key_data, "client-key-data")?;
        let tls = match cluster.server.starts_with("http://") {
            true => None,
            false => Some(TlsConfig { ca, cert, key, server_name: cluster.tls_server_name.clone() }),
        };
        if let Some(problem) = tls.iter().flat_map(TlsConfig::check).next() {
            return Err(format!(
                "{} (`certificate-authority`, `client-certificate`, `client-key`)",
                problem.message
            ));
        }
        let token = match (user.token_file, user.token.filter(|token| !token.is_empty())) {
            (Some(file), _) => Token::Source(SecretSource { file: Some(folder.join(file)), env: None }),
            (None, Some(token)) => Token::Text(token),
            (None, None) => Token::Source(SecretSource::default()),
        };
        let namespace = context.namespace.clone().filter(|name| !name.is_empty());
        let namespace = namespace.unwrap_or_else(|| "default".to_owned());
        Ok(Place { address: address(&cluster.server, tls.as_ref())?, tls, token, namespace })
    }
}

fn find<'a>(all: &'a [Named<Wrapped>], kind: &str, name: &str) -> Result<&'a Wrapped, String> {
    let found = all.iter().find(|one| one.name == name);
    found.map(|one| &one.value).ok_or_else(|| format!("it has no {kind} `{name}`"))
}

// === impl Token ===

impl Token {
    /// Reads it anew.
    pub(crate) async fn read(&self) -> Result<Option<String>, String> {
        match self {
            Token::Source(source) => Ok(source.read().await?.filter(|token| !token.is_empty())),
            Token::Text(text) => Ok(Some(text.clone())),
        }
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Token::Source(source) => source.fmt(f),
            Token::Text(_) => f.write_str("Text(..)"),
        }
    }
}

/// The values of a document in YAML, without aliases and tags.
fn yaml(text: &str) -> Result<Value, String> {
    let mut events = Parser::new_from_str(text);
    loop {
        match next(&mut events)? {
            Event::StreamEnd => return Ok(Value::Object(serde_json::Map::new())),
            Event::DocumentStart(_) => {
                let first = next(&mut events)?;
                return value(&mut events, first, 0);
            }
            _ => {}
        }
    }
}

fn next<'a>(events: &mut Parser<'a, saphyr_parser::StrInput<'a>>) -> Result<Event<'a>, String> {
    match events.next() {
        Some(Ok((event, _))) => Ok(event),
        Some(Err(error)) => Err(error.to_string()),
        None => Ok(Event::StreamEnd),
    }
}

fn value<'a>(
    events: &mut Parser<'a, saphyr_parser::StrInput<'a>>,
    event: Event<'a>,
    depth: usize,
) -> Result<Value, String> {
    if depth > MAX_DEPTH {
        return Err(format!("it is nested deeper than {MAX_DEPTH} levels"));
    }
    match event {
        Event::Scalar(text, style, ..) => Ok(match (style, &*text) {
            (ScalarStyle::Plain, "" | "~" | "null") => Value::Null,
            (ScalarStyle::Plain, "true") => Value::Bool(true),
            (ScalarStyle::Plain, "false") => Value::Bool(false),
            (_, text) => Value::String(text.to_owned()),
        }),
        Event::SequenceStart(..) => {
            let mut all = Vec::new();
            loop {
                match next(events)? {
                    Event::SequenceEnd => return Ok(Value::Array(all)),
                    event => all.push(value(events, event, depth + 1)?),
                }
            }
        }
        Event::MappingStart(..) => {
            let mut all = serde_json::Map::new();
            loop {
                let key = match next(events)? {
                    Event::MappingEnd => return Ok(Value::Object(all)),
                    Event::Scalar(key, ..) => key.to_string(),
                    _ => return Err("a key is a word".to_owned()),
                };
                let event = next(events)?;
                let one = value(events, event, depth + 1)?;
                // A key without a value is one that is left out.
                if !one.is_null() {
                    all.insert(key, one);
                }
            }
        }
        _ => Err("aliases and tags are not supported".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
apiVersion: v1
kind: Config
current-context: dev
preferences: {}
clusters:
- name: c
  cluster:
    server: https://10.0.0.1:6443
    certificate-authority: pki/ca.crt
    tls-server-name: kubernetes
contexts:
- name: dev
  context: { cluster: c, user: u, namespace: shop }
- name: bare
  context: { cluster: c, user: "" }
- name: lost
  context: { cluster: none, user: u }
users:
- name: u
  user:
    tokenFile: token
    client-certificate-data: LS0tCg==
    client-key: /k/key.pem
"#;

    fn of(text: &str, context: Option<&str>) -> Result<Place, String> {
        Place::of_text(text, Path::new("/etc/kube"), context)
    }

    #[test]
    fn a_kubeconfig_names_server_and_user() {
        let place = of(TEXT, None).unwrap();
        assert_eq!((place.address.as_str(), place.namespace.as_str()), ("10.0.0.1:6443", "shop"));
        let tls = place.tls.unwrap();
        assert_eq!(tls.ca, Some(Pem::File("/etc/kube/pki/ca.crt".into())));
        assert_eq!(tls.cert, Some(Pem::Text("---\n".into())));
        assert_eq!(tls.key, Some(Pem::File("/k/key.pem".into())));
        assert_eq!(tls.server_name.as_deref(), Some("kubernetes"));
        assert!(
            matches!(place.token, Token::Source(source) if source.file == Some("/etc/kube/token".into()))
        );
        let bare = of(TEXT, Some("bare")).unwrap();
        assert_eq!((bare.namespace.as_str(), bare.tls.unwrap().cert), ("default", None));
    }

    #[test]
    fn a_kubeconfig_that_can_not_be_used_is_refused_with_the_key() {
        for (from, to, why) in [
            ("current-context: dev", "", "no current context"),
            ("current-context: dev", "current-context: lost", "no cluster `none`"),
            ("current-context: dev", "current-context: x", "no context `x`"),
            ("tls-server-name: kubernetes", "insecure-skip-tls-verify: true", "insecure-skip-tls-verify"),
            ("tls-server-name: kubernetes", "proxy-url: http://p", "proxy-url"),
            ("certificate-authority: pki/ca.crt", "", "certificate-authority"),
            ("tokenFile: token", "exec: { command: aws }", "`exec`"),
            ("client-certificate-data: LS0tCg==", "client-certificate-data: '!'", "client-certificate-data"),
            ("client-key: /k/key.pem", "", "client-key"),
            ("clusters:", "clusters: [", "expected"),
        ] {
            let error = of(&TEXT.replace(from, to), None).unwrap_err();
            assert!(error.contains(why) || why == "expected", "{why}: {error}");
        }
        let secret = TEXT.replace("tokenFile: token", "token: hunter2-is-secret");
        assert!(!format!("{:?}", of(&secret, None).unwrap()).contains("hunter2"));
    }

    #[test]
    fn a_pod_has_a_service_account() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("namespace"), "shop").unwrap();
        let variable = |name: &str| Some(if name.ends_with("HOST") { "fd00::1" } else { "443" }.to_owned());
        let place = Place::of_pod(folder.path(), variable).unwrap();
        assert_eq!((place.address.as_str(), place.namespace.as_str()), ("[fd00::1]:443", "shop"));
        assert!(Place::of_pod(folder.path(), |_| None).unwrap_err().contains("kubeconfig"));
    }
}
