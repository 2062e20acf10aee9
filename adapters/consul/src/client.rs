//! The calls to the agent: requests that are answered at once, and blocking queries.
use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use chassis_core::{
    Random, RequestExt, Runtime,
    adapter::FixedAddresses,
    pipeline,
    settings::Settings,
    tasks::Tasks,
    units::{PositiveSpan, Switch},
};
use chassis_http::{
    ClientConfig, HttpClient, HttpTransport, HttpVersion, RequestBuilder,
    connector::{Connector, TlsConfig},
};
use http::{HeaderValue, Method, StatusCode};
use serde::Serialize;

use crate::settings::ConnectionConfig;

/// Calls the agent; clones share connections.
#[derive(Clone)]
pub(crate) struct Client(Arc<Inner>);

struct Inner {
    address: String,
    connector: Arc<dyn Connector>,
    config: ConnectionConfig,
    connected: OnceLock<Connected>,
}

/// Made by the first call, within the runtime of the process.
struct Connected {
    runtime: Runtime,
    /// For requests that are answered at once. Blocking queries, of which each holds a connection, never wait before them.
    prompt: HttpClient,
    blocking: HttpClient,
    tasks: Tasks,
}

/// A request: a path with one hole, and the value of the hole.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub(crate) template: &'static str,
    pub(crate) hole: (&'static str, String),
    pub(crate) query: Vec<(&'static str, String)>,
    /// Is it read from the datacenter of the settings? What an agent does itself never is.
    pub(crate) is_of_datacenter: bool,
}

/// The condition that a blocking query waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// It is answered at once.
    Nothing,
    /// A later index.
    Index(u64),
    /// Content with another hash.
    Hash(String),
}

/// An answer with the status 200, or 404.
#[derive(Debug)]
pub(crate) struct Answer {
    /// `false`: there is nothing.
    pub(crate) is_there: bool,
    pub(crate) index: Option<u64>,
    pub(crate) hash: Option<String>,
    /// Consul has left out what the token may not read.
    pub(crate) is_filtered: bool,
    /// ACLs refuse who has no rule.
    pub(crate) is_guarded: bool,
    pub(crate) has_token: bool,
    pub(crate) body: Bytes,
}

/// Why there is no answer, for a reader: never with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure(String);

/// The name of Consul in the pipeline, and in messages.
const CONSUL: &str = "consul";
/// How long a request may take that is answered at once.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How much longer a blocking query may take than Consul waits, which adds up to a sixteenth.
const SLACK: Duration = Duration::from_secs(5);
/// The longest answer.
const MAX_BODY: usize = 32 << 20;
/// The bytes of an error's text that are kept.
const MAX_WORDS: usize = 300;
/// Each followed service holds a connection of its own.
const MAX_BLOCKING: usize = 4_096;

// === impl Client ===

impl Client {
    /// Connects with the first call.
    pub(crate) fn new(config: ConnectionConfig) -> Result<Self, String> {
        let address = config.address()?;
        let connector = TlsConfig::network(config.tls.as_ref(), HttpVersion::One)?;
        Ok(Client(Arc::new(Inner { address, connector, config, connected: OnceLock::new() })))
    }

    /// The agent, for messages.
    pub(crate) fn name(&self) -> String {
        format!("consul at {}", self.0.address)
    }

    /// Tasks that end with the last clone of the client.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.connected().tasks
    }

    pub(crate) fn random(&self) -> &Random {
        self.connected().runtime.random()
    }

    /// Asks, and waits for a change if need be.
    pub(crate) async fn get(&self, query: &Query, after: &After) -> Result<Answer, Failure> {
        let connected = self.connected();
        let longest = self.0.config.wait.get();
        let (client, timeout) = match after {
            After::Nothing => (&connected.prompt, TIMEOUT),
            After::Index(_) | After::Hash(_) => (&connected.blocking, longest + longest / 16 + SLACK),
        };
        let mut request = request(client, Method::GET, query).timeout(timeout);
        if *after != After::Nothing {
            // Processes that begin together do not ask together for ever.
            let wait = connected.runtime.random().between(longest - longest / 10, longest);
            request = request.query("wait", format_args!("{}ms", wait.as_millis()));
        }
        request = match after {
            After::Nothing => request,
            After::Index(index) => request.query("index", index),
            After::Hash(hash) => request.query("hash", hash),
        };
        if let Some(datacenter) = self.0.config.datacenter.as_ref().filter(|_| query.is_of_datacenter) {
            request = request.query("dc", datacenter);
        }
        self.send(request).await
    }

    /// Has the agent do something.
    pub(crate) async fn put<B: Serialize + ?Sized>(
        &self,
        query: &Query,
        body: &B,
    ) -> Result<Answer, Failure> {
        let request = request(&self.connected().prompt, Method::PUT, query).timeout(TIMEOUT);
        self.send(request.json(body)).await
    }

    /// May this process read the instances of `service`, on any node? Asked where an empty list may be one whose
    /// entries are hidden.
    pub(crate) async fn may_read(&self, service: &str) -> Result<bool, Failure> {
        let ask = |resource: &str, segment: &str| serde_json::json!({ "Resource": resource, "Access": "read", "Segment": segment });
        let body = [ask("service", service), ask("node", "")];
        let template = "/v1/internal/acl/authorize";
        let request = self.connected().prompt.post(template).timeout(TIMEOUT).json(&body);
        let answer = self.send(request).await?;
        let allowed: Vec<serde_json::Value> = serde_json::from_slice(&answer.body).unwrap_or_default();
        Ok(allowed.len() == body.len() && allowed.iter().all(|one| one["Allow"] == true))
    }

    /// The token, as it stands in its file at the moment.
    pub(crate) async fn token(&self) -> Result<Option<String>, Failure> {
        let token = self.0.config.token.read().await.map_err(|why| Failure::of(format!("token: {why}")))?;
        Ok(token.filter(|token| !token.is_empty()))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Answer, Failure> {
        let mut request = request.no_retry().detached();
        if let Some(namespace) = &self.0.config.namespace {
            request = request.query("ns", namespace);
        }
        let token = self.token().await?;
        let has_token = token.is_some();
        if let Some(token) = token {
            let mut token = HeaderValue::try_from(token)
                .map_err(|_| Failure::of("the token can't be sent in a header".to_owned()))?;
            token.set_sensitive(true);
            request = request.header("x-consul-token", token);
        }
        let answer = request.send().await.map_err(|error| Failure::of(error.to_string()))?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.bytes().await.map_err(|error| Failure::of(error.to_string()))?;
        let is_there = status == StatusCode::OK;
        if !is_there && status != StatusCode::NOT_FOUND {
            return Err(Failure::status(status, &body));
        }
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        Ok(Answer {
            is_there,
            index: text("x-consul-index").and_then(|index| index.parse().ok()),
            hash: text("x-consul-contenthash").map(str::to_owned),
            is_filtered: text("x-consul-results-filtered-by-acls") == Some("true"),
            is_guarded: text("x-consul-default-acl-policy") == Some("deny"),
            has_token,
            body,
        })
    }

    fn connected(&self) -> &Connected {
        self.0.connected.get_or_init(|| Connected::new(&self.0.address, &self.0.connector))
    }
}

fn request(client: &HttpClient, method: Method, query: &Query) -> RequestBuilder {
    let (name, value) = &query.hole;
    let mut request = client.request(method, query.template);
    if !name.is_empty() {
        request = request.param(*name, value);
    }
    query.query.iter().fold(request, |request, (key, value)| request.query(*key, value))
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.0.address).finish()
    }
}

// === impl Query ===

impl Query {
    /// Something of the datacenter.
    pub(crate) fn read(template: &'static str, name: &'static str, value: impl Into<String>) -> Self {
        Query { template, hole: (name, value.into()), query: Vec::new(), is_of_datacenter: true }
    }

    /// Something of the agent.
    pub(crate) fn agent(template: &'static str, name: &'static str, value: impl Into<String>) -> Self {
        Query { is_of_datacenter: false, ..Self::read(template, name, value) }
    }

    /// The same, with a key of the query.
    pub(crate) fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.query.push((key, value.into()));
        self
    }
}

// === impl Failure ===

impl Failure {
    pub(crate) fn of(why: String) -> Self {
        Failure(why)
    }

    fn status(status: StatusCode, body: &[u8]) -> Self {
        let words = String::from_utf8_lossy(&body[..body.len().min(MAX_WORDS)]);
        let words = words.trim().escape_debug();
        Failure(format!("it answers {}: {words}", status.as_u16()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Connected ===

impl Connected {
    fn new(address: &String, connector: &Arc<dyn Connector>) -> Self {
        let registry = FixedAddresses::new(CONSUL, "http", [address]);
        let runtime = Runtime::builder(CONSUL).registry(Arc::new(registry)).build();
        let runtime = runtime.expect("the names of metrics are free in a registry of one's own");
        let mut settings = Settings::default();
        // Who asks waits by itself; one that refuses meanwhile would only be late with the news.
        settings.outbound.defaults.breaker = Some(Switch::Off);
        if let Err(problems) = runtime.apply(&settings, 1, CONSUL) {
            unreachable!("the settings have no names and no numbers: {problems:?}");
        }
        let client = |service: &'static str, pool: usize| {
            let config = ClientConfig {
                // An entry has to be back 2 s after Consul is.
                max_backoff: PositiveSpan::from_millis(500),
                pool: pool.try_into().expect("it is not 0"),
                ..ClientConfig::default()
            };
            let transport = Arc::new(HttpTransport::new(connector.clone(), config));
            HttpClient::new(service, pipeline::client(&runtime, service, &transport)).max_body(MAX_BODY)
        };
        let (prompt, blocking) = (client(CONSUL, 16), client("consul, blocking", MAX_BLOCKING));
        Connected { prompt, blocking, tasks: Tasks::new(), runtime }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}
