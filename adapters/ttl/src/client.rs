//! The requests to the servers: our own HTTP client, with a connection to each of them.
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use chassis_core::{
    Random, ReplyBody, RequestExt, Runtime,
    adapter::SecretSource,
    pipeline,
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
    settings::Settings,
    tasks::Tasks,
    units::{PositiveSpan, Span, Switch},
};
use chassis_http::{
    ClientConfig, HttpClient, HttpTransport, HttpVersion, RequestBuilder, Response,
    connector::{Connector, TlsConfig},
};
use http::{
    Method, StatusCode,
    header::{ACCEPT, AUTHORIZATION},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{sync::Mutex, time::timeout};

use crate::{
    settings::TtlConfig,
    wire::{EVENTS, Registered, Removed, Revision},
};

/// Asks the servers; clones share connections and token. A server is named by its place in the settings.
#[derive(Clone)]
pub(crate) struct Client(Arc<Inner>);

struct Inner {
    config: TtlConfig,
    addresses: Vec<String>,
    connector: Arc<dyn Connector>,
    connected: OnceLock<Connected>,
    /// `None`: not read yet, or refused.
    token: Mutex<Option<Arc<str>>>,
}

/// Made by the first request, within the runtime of the process.
struct Connected {
    runtime: Runtime,
    servers: Vec<HttpClient>,
    tasks: Tasks,
}

/// Why a request has failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// `None`: there was no answer.
    pub(crate) status: Option<StatusCode>,
    pub(crate) why: String,
}

/// The answer to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heartbeat {
    Renewed,
    Unknown,
    Replaced,
}

/// Each server, as the pipeline looks it up: a service with one instance. A colon in a service's name would begin the name
/// of a listener.
struct Servers(Vec<(String, Arc<Instance>)>);

struct Once(Option<Arc<Instance>>);

const TTL: &str = "ttl";
/// The protocol of the client.
const HTTP: &str = "http";
/// How long an answer may take; the head of one, for a watch.
const TIMEOUT: Duration = Duration::from_secs(2);
/// So much of a refusal's text is used.
const MOST_WORDS: usize = 200;

// === impl Client ===

impl Client {
    /// Connects with the first request.
    pub(crate) fn new(config: TtlConfig) -> Result<Self, String> {
        let connector = TlsConfig::network(config.tls.as_ref(), HttpVersion::Two)?;
        let (addresses, connected, token) = (config.addresses(), OnceLock::new(), Mutex::default());
        Ok(Client(Arc::new(Inner { config, addresses, connector, connected, token })))
    }

    /// How many servers there are.
    pub(crate) fn count(&self) -> usize {
        self.0.addresses.len()
    }

    /// For messages.
    pub(crate) fn name(&self, server: usize) -> &str {
        self.0.addresses.get(server).map_or("", String::as_str)
    }

    /// Tasks that end with the last clone of the client.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.connected().tasks
    }

    pub(crate) fn random(&self) -> &Random {
        self.connected().runtime.random()
    }

    pub(crate) async fn register(&self, server: usize, body: Bytes) -> Result<Registered, Failure> {
        self.json(server, Method::POST, "/v1/services", None, Some(body)).await
    }

    pub(crate) async fn renew(&self, server: usize, lease: &str) -> Result<Heartbeat, Failure> {
        let path = "/v1/services/{lease}/heartbeat";
        match self.ask(server, Method::PUT, path, Some(lease), None).await {
            Ok(_) => Ok(Heartbeat::Renewed),
            Err(Failure { status: Some(StatusCode::NOT_FOUND), .. }) => Ok(Heartbeat::Unknown),
            Err(Failure { status: Some(StatusCode::CONFLICT), .. }) => Ok(Heartbeat::Replaced),
            Err(failure) => Err(failure),
        }
    }

    pub(crate) async fn remove(&self, server: usize, lease: &str) -> Result<Revision, Failure> {
        let removed = self.json(server, Method::DELETE, "/v1/services/{lease}", Some(lease), None).await;
        removed.map(|Removed { revision }| revision)
    }

    pub(crate) async fn names(&self, server: usize) -> Result<Vec<String>, Failure> {
        self.json(server, Method::GET, "/v1/names", None, None).await
    }

    /// Begins to watch `service`, after `from` if that is still kept.
    pub(crate) async fn watch(
        &self,
        server: usize,
        service: &str,
        from: Option<Revision>,
    ) -> Result<ReplyBody, Failure> {
        let with = |request: RequestBuilder| {
            let request = request.query("service", service);
            match from {
                Some(from) => request.query("from", from),
                None => request,
            }
        };
        let answer = self.send(server, Method::GET, "/v1/watch", with).await?;
        Ok(answer.into_body())
    }

    /// Begins to watch the document `key`: each version that is not `last`.
    pub(crate) async fn watch_document(
        &self,
        server: usize,
        key: &str,
        last: Option<u64>,
    ) -> Result<ReplyBody, Failure> {
        let with = |request: RequestBuilder| {
            let request = request.param("key", key).header(ACCEPT, EVENTS);
            match last {
                Some(last) => request.header("last-event-id", last.to_string()),
                None => request,
            }
        };
        let answer = self.send(server, Method::GET, "/v1/settings/{*key}", with).await?;
        Ok(answer.into_body())
    }

    async fn json<T: DeserializeOwned>(
        &self,
        server: usize,
        method: Method,
        path: &str,
        lease: Option<&str>,
        body: Option<Bytes>,
    ) -> Result<T, Failure> {
        let answer = self.ask(server, method, path, lease, body).await?;
        serde_json::from_slice(&answer).map_err(|error| self.failure(server, None, &error.to_string()))
    }

    /// One request with a short answer.
    async fn ask(
        &self,
        server: usize,
        method: Method,
        path: &str,
        lease: Option<&str>,
        body: Option<Bytes>,
    ) -> Result<Bytes, Failure> {
        let with = |mut request: RequestBuilder| {
            if let Some(lease) = lease {
                request = request.param("lease", lease);
            }
            if let Some(body) = body.clone() {
                request = request.header("content-type", "application/json").body(body);
            }
            request.timeout(TIMEOUT)
        };
        let asked = async {
            let answer = self.send(server, method, path, with).await?;
            answer.bytes().await.map_err(|error| self.failure(server, None, &error.to_string()))
        };
        timeout(TIMEOUT, asked).await.unwrap_or_else(|_| Err(self.late(server)))
    }

    /// Sends a request with the token; with another one where that is refused. An answer without success is an error.
    pub(crate) async fn send(
        &self,
        server: usize,
        method: Method,
        path: &str,
        with: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, Failure> {
        let mut is_second = false;
        loop {
            let token = self.token().await.map_err(|why| self.failure(server, None, &why))?;
            let Some(client) = self.connected().servers.get(server) else {
                return Err(self.late(server));
            };
            let mut request = with(client.request(method.clone(), path)).no_retry().detached();
            if let Some(token) = &token {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let answer = timeout(TIMEOUT, request.send()).await.map_err(|_| self.late(server))?;
            let answer = answer.map_err(|error| self.failure(server, None, &error.to_string()))?;
            let status = answer.status();
            if status.is_success() {
                return Ok(answer);
            }
            let is_refused = status == StatusCode::UNAUTHORIZED && token.is_some();
            if is_refused && !std::mem::replace(&mut is_second, true) {
                self.forget(token.as_ref()).await;
                continue;
            }
            let words = timeout(TIMEOUT, answer.bytes()).await.ok().and_then(Result::ok).unwrap_or_default();
            let words = match serde_json::from_slice::<Value>(&words) {
                Ok(Value::Object(object)) => object.get("error").and_then(Value::as_str).map(str::to_owned),
                _ => None,
            };
            let words: String = words.unwrap_or_default().chars().take(MOST_WORDS).collect();
            return Err(self.failure(server, Some(status), &format!("{status}: {words}")));
        }
    }

    async fn token(&self) -> Result<Option<Arc<str>>, String> {
        let TtlConfig { token_file, token_env, .. } = &self.0.config;
        let mut kept = self.0.token.lock().await;
        if let Some(token) = &*kept {
            return Ok(Some(token.clone()));
        }
        let source = SecretSource { file: token_file.clone(), env: token_env.clone() };
        let Some(token) = source.read().await? else {
            return Ok(None);
        };
        let token: Arc<str> = token.into();
        *kept = Some(token.clone());
        Ok(Some(token))
    }

    async fn forget(&self, used: Option<&Arc<str>>) {
        let mut kept = self.0.token.lock().await;
        if kept.as_ref() == used {
            *kept = None;
        }
    }

    fn late(&self, server: usize) -> Failure {
        self.failure(server, None, "no answer in time")
    }

    fn failure(&self, server: usize, status: Option<StatusCode>, why: &str) -> Failure {
        Failure { status, why: format!("the registry server {}: {why}", self.name(server)) }
    }

    fn connected(&self) -> &Connected {
        self.0.connected.get_or_init(|| Connected::new(&self.0.addresses, &self.0.connector))
    }
}

// === impl Connected ===

impl Connected {
    fn new(addresses: &[String], connector: &Arc<dyn Connector>) -> Self {
        let server = |(n, address): (usize, &String)| {
            let name = format!("server-{n}");
            (
                name.clone(),
                Arc::new(Instance::new(name, address.as_str()).with_address(HTTP, address.as_str())),
            )
        };
        let named: Vec<_> = addresses.iter().enumerate().map(server).collect();
        let runtime = Runtime::builder(TTL).registry(Arc::new(Servers(named.clone()))).build();
        let runtime = runtime.expect("the names of metrics are free in a registry of one's own");
        let mut settings = Settings::default();
        // Who asks waits by itself, and a watch has no end.
        settings.outbound.defaults.breaker = Some(Switch::Off);
        settings.outbound.defaults.timeout = Some(Switch::Off);
        if let Err(problems) = runtime.apply(&settings, 1, TTL) {
            unreachable!("the settings have no names and no numbers: {problems:?}");
        }
        let config = ClientConfig {
            // All watches of a process on one connection.
            http_version: HttpVersion::Two,
            // An entry has to be back 2 s after a server is.
            max_backoff: PositiveSpan::from_millis(500),
            keep_alive_interval: Span(Duration::from_secs(3)),
            keep_alive_timeout: PositiveSpan::from_millis(3_000),
            ..ClientConfig::default()
        };
        let transport = Arc::new(HttpTransport::new(connector.clone(), config));
        let client = |(name, _): &(String, _)| {
            HttpClient::new(name.as_str(), pipeline::client(&runtime, name, &transport))
        };
        let servers = named.iter().map(client).collect();
        Connected { servers, tasks: Tasks::new(), runtime }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

// === impl Servers ===

#[async_trait]
impl Registry for Servers {
    fn name(&self) -> &str {
        TTL
    }

    async fn register(&self, _: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        Err(RegistryError::unsupported("registry servers stand in the settings"))
    }

    async fn watch(&self, name: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let server = self.0.iter().find(|(of, _)| of == name);
        Ok(Box::new(Once(server.map(|(_, server)| server.clone()))))
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

#[async_trait]
impl Watcher for Once {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        match self.0.take() {
            Some(server) => Ok(Membership::Known(vec![server])),
            None => std::future::pending().await,
        }
    }
}
