//! The requests: one GET, with the headers that say what is known.
use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use chassis_core::{
    Invocation, Operation, Random, ReplyBody, RequestExt, Runtime, Target,
    adapter::FixedAddresses,
    pipeline::{self, Pipeline},
    settings::Settings,
    tasks::Tasks,
    units::{PositiveSpan, Switch},
};
use chassis_http::{
    ClientConfig, EndsWithConnection, HTTP, HttpTransport, HttpVersion,
    connector::{Connector, TlsConfig},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri,
    header::{ACCEPT, AUTHORIZATION, HOST, IF_NONE_MATCH},
};
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::{
    answer::{Failure, MAX_BODY},
    settings::HttpSourceConfig,
    url::Url,
};

/// Asks the servers; clones share connections. A server is named by its place in the settings.
#[derive(Clone)]
pub(crate) struct Client(Arc<Inner>);

struct Inner {
    urls: Vec<Url>,
    config: HttpSourceConfig,
    connector: Arc<dyn Connector>,
    connected: OnceLock<Connected>,
}

/// Made by the first request, within the runtime of the process.
struct Connected {
    servers: Vec<Server>,
    random: Random,
    tasks: Tasks,
}

/// One server, with a runtime of its own: the name of a service is that of its host.
struct Server {
    service: Arc<str>,
    pipeline: Pipeline,
    _runtime: Runtime,
}

/// The state that is known already, and the time to wait for news.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ask {
    pub(crate) etag: Option<HeaderValue>,
    /// For a long poll.
    pub(crate) wait: Option<Duration>,
    /// A stream of events is asked for.
    pub(crate) is_for_events: bool,
    pub(crate) last_event_id: Option<HeaderValue>,
}

/// An answer, of any status.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Its end is that of the connection: nothing says that it is whole.
    pub(crate) ends_with_connection: bool,
    pub(crate) body: ReplyBody,
}

/// The name of the runtime, and of the operation.
const CENTER: &str = "http-center";
const PREFER: HeaderName = HeaderName::from_static("prefer");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const DOCUMENTS: HeaderValue =
    HeaderValue::from_static("application/yaml, application/toml, application/json, text/plain, */*;q=0.5");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");

// === impl Client ===

impl Client {
    /// Connects with the first request.
    pub(crate) fn new(config: HttpSourceConfig) -> Result<Self, String> {
        let connector = TlsConfig::network(config.tls.as_ref(), HttpVersion::One)?;
        let (urls, connected) = (config.parsed(), OnceLock::new());
        Ok(Client(Arc::new(Inner { urls, config, connector, connected })))
    }

    pub(crate) fn config(&self) -> &HttpSourceConfig {
        &self.0.config
    }

    pub(crate) fn urls(&self) -> &[Url] {
        &self.0.urls
    }

    /// Tasks that end with the last clone of the client.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.connected().tasks
    }

    pub(crate) fn random(&self) -> &Random {
        &self.connected().random
    }

    /// Asks the server at this place; the answer's head comes within the time-out, beyond the time that it may wait.
    pub(crate) async fn get(&self, at: usize, ask: &Ask) -> Result<Answer, Failure> {
        let longest = self.0.config.timeout.get() + ask.wait.unwrap_or_default();
        timeout(longest, self.send(at, ask)).await.unwrap_or_else(|_| Err(late()))
    }

    async fn send(&self, at: usize, ask: &Ask) -> Result<Answer, Failure> {
        let (Some(url), Some(server)) = (self.0.urls.get(at), self.connected().servers.get(at)) else {
            return Err(late()); // there are as many servers as URLs
        };
        let target = Target::new(server.service.clone(), Operation::from(CENTER));
        let mut call = Invocation::new(&HTTP, target);
        call.method = Method::GET;
        call.uri = Uri::from(url.path.clone());
        call.metadata = self.headers(url, ask).await.map_err(Failure::silence)?;
        let call = call.no_retry().detached();
        let reply = server.pipeline.run(call).await.map_err(|error| Failure::silence(error.to_string()))?;
        let (status, headers, extensions, body) = reply.into_parts();
        let ends_with_connection = extensions.get::<EndsWithConnection>().is_some();
        Ok(Answer { status, headers, ends_with_connection, body })
    }

    async fn headers(&self, url: &Url, ask: &Ask) -> Result<HeaderMap, String> {
        let config = &self.0.config;
        let mut headers = HeaderMap::new();
        for (name, value) in &config.headers {
            let wrong = |_| format!("the header `{name}` can't be sent");
            let name = HeaderName::try_from(name.as_str()).map_err(|error| wrong(error.to_string()))?;
            let mut value =
                HeaderValue::try_from(value.expose()).map_err(|error| wrong(error.to_string()))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        headers.insert(HOST, url.host.clone());
        headers.insert(ACCEPT, if ask.is_for_events { EVENTS } else { DOCUMENTS });
        if let Some(wait) = ask.wait {
            // Rounded up: `wait=0` asks for an answer at once.
            let seconds = wait.as_millis().div_ceil(1_000);
            headers.insert(PREFER, HeaderValue::try_from(format!("wait={seconds}")).expect("it is ASCII"));
        }
        ask.etag.clone().map(|etag| headers.insert(IF_NONE_MATCH, etag));
        ask.last_event_id.clone().map(|id| headers.insert(LAST_EVENT_ID, id));
        if let Some(credentials) = credentials(config).await? {
            let mut value = HeaderValue::try_from(credentials)
                .map_err(|_| "the token or password can't be sent in a header".to_owned())?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(headers)
    }

    fn connected(&self) -> &Connected {
        self.0.connected.get_or_init(|| Connected::new(&self.0.urls, &self.0.connector))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.urls.iter().map(|url| &url.text)).finish()
    }
}

/// The value of `authorization`, with the secret as it stands in its file at the moment.
async fn credentials(config: &HttpSourceConfig) -> Result<Option<String>, String> {
    let token = config.token().read().await.map_err(|why| format!("token: {why}"))?;
    if let Some(token) = token {
        return Ok(Some(format!("Bearer {token}")));
    }
    let Some(user) = &config.user else { return Ok(None) };
    let password = config.password().read().await.map_err(|why| format!("password: {why}"))?;
    let both = format!("{user}:{}", password.unwrap_or_default());
    Ok(Some(format!("Basic {}", BASE64_STANDARD.encode(both))))
}

fn late() -> Failure {
    Failure::silence("no answer in time".to_owned())
}

// === impl Answer ===

impl Answer {
    /// The whole body.
    pub(crate) async fn read(&mut self, longest: Duration) -> Result<Vec<u8>, Failure> {
        let read = async {
            let mut all = Vec::new();
            while let Some(piece) = self.piece().await? {
                if all.len() + piece.len() > MAX_BODY {
                    return Err(Failure::answer(format!("the answer has more than {MAX_BODY} bytes")));
                }
                all.extend_from_slice(&piece);
            }
            Ok(all)
        };
        timeout(longest, read).await.unwrap_or_else(|_| Err(late()))
    }

    /// The next piece of the body.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(Failure::silence(error.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

// === impl Connected ===

impl Connected {
    fn new(urls: &[Url], connector: &Arc<dyn Connector>) -> Self {
        let servers: Vec<_> = urls.iter().map(|url| Server::new(url, connector)).collect();
        Connected { servers, random: Random::from_os(), tasks: Tasks::new() }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

// === impl Server ===

impl Server {
    fn new(url: &Url, connector: &Arc<dyn Connector>) -> Self {
        let registry = FixedAddresses::new(CENTER, "http", [&url.address]);
        let runtime = Runtime::builder(CENTER).registry(Arc::new(registry)).build();
        let runtime = runtime.expect("the names of metrics are free in a registry of one's own");
        let mut settings = Settings::default();
        // The caller paces itself, and a stream of events has no end.
        settings.outbound.defaults.breaker = Some(Switch::Off);
        settings.outbound.defaults.timeout = Some(Switch::Off);
        if let Err(problems) = runtime.apply(&settings, 1, CENTER) {
            unreachable!("the settings have no names and no numbers: {problems:?}");
        }
        // Settings have to be back 2 s after their server is.
        let config = ClientConfig { max_backoff: PositiveSpan::from_millis(500), ..ClientConfig::default() };
        let transport = Arc::new(HttpTransport::new(connector.clone(), config));
        // A colon would begin the name of a listener.
        let host = url.address.rsplit_once(':').map_or(&*url.address, |(host, _)| host);
        let service: Arc<str> = if host.contains(':') { CENTER.into() } else { host.into() };
        let pipeline = pipeline::client(&runtime, &service, &transport);
        Server { service, pipeline, _runtime: runtime }
    }
}
