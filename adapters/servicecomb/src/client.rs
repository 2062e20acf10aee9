//! The requests, over chassis' own HTTP client.
use std::{
    fmt,
    sync::{Arc, OnceLock, Weak},
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
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::access::{Access, Credentials};

/// Calls a server; clones share connections.
#[derive(Clone)]
pub(crate) struct Client(Arc<Inner>);

/// A client that does not keep its tasks alive.
#[derive(Clone)]
pub(crate) struct WeakClient(Weak<Inner>);

struct Inner {
    config: ConnectionConfig,
    access: Access,
    connector: Arc<dyn Connector>,
    connected: OnceLock<Connected>,
}

/// How a server is reached.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionConfig {
    /// For messages: `service center`, `kie`.
    pub(crate) name: &'static str,
    /// `host:port` of each server.
    pub(crate) addresses: Vec<String>,
    /// The tenant, which is sent with each request.
    pub(crate) domain: String,
    /// A part of each path.
    pub(crate) project: String,
    pub(crate) credentials: Credentials,
    pub(crate) tls: Option<TlsConfig>,
}

/// Made by the first call, within the runtime of the process.
struct Connected {
    runtime: Runtime,
    /// For requests that are answered at once. Long polls never wait before them.
    prompt: HttpClient,
    waiting: HttpClient,
    tasks: Tasks,
}

/// A request, which may be sent twice.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    method: Method,
    template: &'static str,
    params: Vec<(&'static str, String)>,
    query: Vec<(&'static str, String)>,
    consumer: Option<String>,
    body: Option<Value>,
    wait: Duration,
}

/// An answer with a status of success, or 304.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) is_modified: bool,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Why there is no answer, for a reader: never with a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    why: String,
    status: Option<StatusCode>,
    /// Service center's number of the error; 0 if there is none.
    pub(crate) code: u32,
}

/// The body of an error.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Refusal {
    #[serde(default)]
    error_code: Value,
}

/// How long a request may take that is answered at once.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How much longer a long poll may take than it waits.
const SLACK: Duration = Duration::from_secs(5);
/// The longest answer.
const MAX_BODY: usize = 32 << 20;
/// The bytes of an error's text that are kept.
const MAX_WORDS: usize = 300;

// === impl Client ===

impl Client {
    /// Connects with the first call.
    ///
    /// # Errors
    /// The first problem in the table `tls`.
    pub(crate) fn new(config: ConnectionConfig) -> Result<Self, String> {
        let access = Access::new(config.credentials.clone());
        let connector = TlsConfig::network(config.tls.as_ref(), HttpVersion::One)?;
        Ok(Client(Arc::new(Inner { config, access, connector, connected: OnceLock::new() })))
    }

    /// The server, for messages.
    pub(crate) fn name(&self) -> String {
        let ConnectionConfig { name, addresses, .. } = &self.0.config;
        format!("{name} at {}", addresses.join(", "))
    }

    pub(crate) fn config(&self) -> &ConnectionConfig {
        &self.0.config
    }

    /// Opens the connections of requests, and those of pushes.
    pub(crate) fn connector(&self) -> &dyn Connector {
        &*self.0.connector
    }

    /// Tasks that end with the last clone of the client.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.connected().tasks
    }

    pub(crate) fn random(&self) -> &Random {
        self.connected().runtime.random()
    }

    pub(crate) fn downgrade(&self) -> WeakClient {
        WeakClient(Arc::downgrade(&self.0))
    }

    /// Sends a request. One that is refused because of its token is sent once more, with a new one.
    pub(crate) async fn send(&self, query: &Query) -> Result<Answer, Failure> {
        let headers = self.headers().await?;
        match self.send_with(query, &headers).await {
            Err(failure)
                if failure.status == Some(StatusCode::UNAUTHORIZED)
                    && self.0.access.refused(&headers).await =>
            {
                self.send_with(query, &self.headers().await?).await
            }
            answered => answered,
        }
    }

    /// The headers with the credentials.
    pub(crate) async fn headers(&self) -> Result<HeaderMap, Failure> {
        self.0.access.headers(self.fetch_token()).await
    }

    /// The server refuses these headers. Is it worthwhile to try once more?
    pub(crate) async fn refused(&self, headers: &HeaderMap) -> bool {
        self.0.access.refused(headers).await
    }

    async fn fetch_token(&self) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Token {
            token: String,
        }
        let login = self.0.access.login().await?;
        let (user, password) = login.ok_or_else(|| Failure::of("no user is set".to_owned()))?;
        let query = Query::new(Method::POST, "/v4/token").body(json!({ "name": user, "password": password }));
        let answer = self.send_with(&query, &HeaderMap::new()).await;
        let answer = answer
            .map_err(|failure| Failure { why: format!("a token for `{user}`: {failure}"), ..failure })?;
        let token = serde_json::from_slice::<Token>(&answer.body);
        // Not the message of serde: it may hold a part of the token.
        token.map(|token| token.token).map_err(|_| Failure::of("its token is malformed".to_owned()))
    }

    async fn send_with(&self, query: &Query, headers: &HeaderMap) -> Result<Answer, Failure> {
        let (connected, config) = (self.connected(), &self.0.config);
        let (client, timeout) = match query.wait.is_zero() {
            true => (&connected.prompt, TIMEOUT),
            false => (&connected.waiting, query.wait + SLACK),
        };
        let mut request: RequestBuilder = client.request(query.method.clone(), query.template);
        request = request.timeout(timeout).no_retry().detached();
        if query.template.contains("{project}") {
            request = request.param("project", &config.project);
        }
        request = query.params.iter().fold(request, |request, (name, value)| request.param(*name, value));
        request = query.query.iter().fold(request, |request, (key, value)| request.query(*key, value));
        request = request.header("x-domain-name", config.domain.as_str());
        if let Some(consumer) = &query.consumer {
            request = request.header("x-consumerid", consumer.as_str());
        }
        request = headers.iter().fold(request, |request, (name, value)| request.header(name, value));
        if let Some(body) = &query.body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|error| Failure::of(error.to_string()))?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.bytes().await.map_err(|error| Failure::of(error.to_string()))?;
        let is_modified = status != StatusCode::NOT_MODIFIED;
        if is_modified && !status.is_success() {
            return Err(Failure::status(status, &body));
        }
        Ok(Answer { is_modified, headers, body })
    }

    fn connected(&self) -> &Connected {
        let ConnectionConfig { name, addresses, .. } = &self.0.config;
        self.0.connected.get_or_init(|| Connected::new(name, addresses, &self.0.connector))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.0.config.addresses).finish()
    }
}

// === impl WeakClient ===

impl WeakClient {
    /// `None`: the process does not use it any more.
    pub(crate) fn upgrade(&self) -> Option<Client> {
        self.0.upgrade().map(Client)
    }
}

// === impl Query ===

impl Query {
    pub(crate) fn new(method: Method, template: &'static str) -> Self {
        let (params, query) = (Vec::new(), Vec::new());
        Query { method, template, params, query, consumer: None, body: None, wait: Duration::ZERO }
    }

    pub(crate) fn get(template: &'static str) -> Self {
        Self::new(Method::GET, template)
    }

    /// Fills a hole of the path.
    pub(crate) fn param(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.params.push((name, value.into()));
        self
    }

    /// The same, with a key of the query.
    pub(crate) fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.query.push((key, value.into()));
        self
    }

    /// The same, which the server answers after this time at the latest.
    pub(crate) fn waiting(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self.with("wait", format!("{}ms", wait.as_millis()))
    }

    /// The same, of this consumer.
    pub(crate) fn of(mut self, consumer: Option<String>) -> Self {
        self.consumer = consumer;
        self
    }

    pub(crate) fn body(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }
}

// === impl Answer ===

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    }

    /// The body, of which messages say that it is `what`.
    pub(crate) fn read<'a, T: Deserialize<'a>>(&'a self, what: &str) -> Result<T, Failure> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Failure::of(format!("its {what} is malformed: {error}")))
    }
}

// === impl Failure ===

impl Failure {
    pub(crate) fn of(why: String) -> Self {
        Failure { why, status: None, code: 0 }
    }

    fn status(status: StatusCode, body: &[u8]) -> Self {
        let refusal: Refusal = serde_json::from_slice(body).unwrap_or_default();
        // A text in newer versions, a number in older ones.
        let code = match &refusal.error_code {
            Value::String(code) => code.parse().unwrap_or(0),
            code => code.as_u64().and_then(|code| code.try_into().ok()).unwrap_or(0),
        };
        let words = String::from_utf8_lossy(&body[..body.len().min(MAX_WORDS)]);
        let words = words.trim().escape_debug();
        Failure { why: format!("it answers {}: {words}", status.as_u16()), status: Some(status), code }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

// === impl Connected ===

impl Connected {
    fn new(name: &'static str, addresses: &[String], connector: &Arc<dyn Connector>) -> Self {
        let registry = FixedAddresses::new(name, "http", addresses);
        let runtime = Runtime::builder(name).registry(Arc::new(registry)).build();
        let runtime = runtime.expect("the names of metrics are free in a registry of one's own");
        let mut settings = Settings::default();
        // Who asks waits by itself; one that refuses meanwhile would only be late with the news.
        settings.outbound.defaults.breaker = Some(Switch::Off);
        // Each request has its own, and a long poll waits for longer than the default.
        settings.outbound.defaults.timeout = Some(Switch::Off);
        if let Err(problems) = runtime.apply(&settings, 1, name) {
            unreachable!("the settings have no names and no numbers: {problems:?}");
        }
        let client = |service: String| {
            let config = ClientConfig {
                // An entry has to be back 2 s after the server is.
                max_backoff: PositiveSpan::from_millis(500),
                pool: 16.try_into().expect("it is not 0"),
                ..ClientConfig::default()
            };
            let transport = Arc::new(HttpTransport::new(connector.clone(), config));
            let pipeline = pipeline::client(&runtime, &service, &transport);
            HttpClient::new(service, pipeline).max_body(MAX_BODY)
        };
        let (prompt, waiting) = (client(name.to_owned()), client(format!("{name}, long polls")));
        Connected { prompt, waiting, tasks: Tasks::new(), runtime }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}
