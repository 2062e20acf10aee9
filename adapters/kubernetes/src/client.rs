//! The requests to the API server, over chassis' own HTTP client.
use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use chassis_core::{
    Random, ReplyBody, RequestExt, Runtime,
    adapter::FixedAddresses,
    pipeline,
    settings::Settings,
    tasks::Tasks,
    units::{PositiveSpan, Span, Switch},
};
use chassis_http::{
    ClientConfig, HttpClient, HttpTransport, HttpVersion, RequestBuilder, Response,
    connector::{Connector, TlsConfig},
};
use http::{
    HeaderValue, Method, StatusCode,
    header::{AUTHORIZATION, RETRY_AFTER},
};
use serde::Deserialize;
use tokio::time::timeout;

use crate::place::Place;

/// Calls the API server; clones share connections.
#[derive(Clone)]
pub(crate) struct Client(Arc<Inner>);

struct Inner {
    place: Place,
    connector: Arc<dyn Connector>,
    connected: OnceLock<Connected>,
}

/// Made by the first call, within the runtime of the process.
struct Connected {
    runtime: Runtime,
    http: HttpClient,
    tasks: Tasks,
}

/// The objects that are read: a collection of a namespace, and which of it.
#[derive(Clone, Debug)]
pub(crate) struct Collection {
    /// The path, with the hole `{namespace}`.
    pub(crate) template: &'static str,
    pub(crate) namespace: String,
    /// `labelSelector` or `fieldSelector`, and its value. `None`: all objects of the collection.
    pub(crate) selector: Option<(&'static str, String)>,
    /// Only the metadata of the objects is asked for.
    pub(crate) is_metadata: bool,
}

/// Why there is no answer, for a reader: never with a token.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// `None`: there was no answer.
    pub(crate) status: Option<StatusCode>,
    pub(crate) why: String,
    /// The server wants no request before this time is over.
    pub(crate) retry_after: Duration,
}

/// The message of a `Status`, which errors are.
#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    message: String,
}

/// The form of answers with whole objects.
const WHOLE: &str = "application/json";
/// The forms of answers that have only metadata, to a list and to a watch. A server that does not know them answers with
/// whole objects.
const METADATA_LIST: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json;q=0.5";
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json;q=0.5";
/// The name of the API server in the pipeline.
const SERVER: &str = "kubernetes";
/// How long an answer may take; of a watch, its head.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a page of a list may take.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest page.
const MAX_BODY: usize = 64 << 20;
/// The objects of a page.
const PAGE: usize = 500;
/// A server that asks for a longer pause gets this one.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
/// The bytes of an error's text that are kept.
const MAX_WORDS: usize = 300;
/// Over HTTP/1.1 each watch holds a connection.
const MAX_WATCHES: usize = 4_096;

// === impl Client ===

impl Client {
    /// Connects with the first call.
    pub(crate) fn new(place: Place) -> Result<Self, String> {
        let version = if place.tls.is_some() { HttpVersion::Two } else { HttpVersion::One };
        let connector = TlsConfig::network(place.tls.as_ref(), version)?;
        Ok(Client(Arc::new(Inner { place, connector, connected: OnceLock::new() })))
    }

    /// The API server, for messages.
    pub(crate) fn name(&self) -> String {
        format!("kubernetes at {}", self.0.place.address)
    }

    /// The namespace of this process.
    pub(crate) fn namespace(&self) -> &str {
        &self.0.place.namespace
    }

    /// Tasks that end with the last clone of the client.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.connected().tasks
    }

    pub(crate) fn random(&self) -> &Random {
        self.connected().runtime.random()
    }

    /// A page of a list: the first, or the one that `after` names.
    pub(crate) async fn list(&self, of: &Collection, after: Option<&str>) -> Result<Bytes, Failure> {
        let mut request = self.request(of, METADATA_LIST).query("limit", PAGE).timeout(LIST_TIMEOUT);
        if let Some(after) = after {
            request = request.query("continue", after);
        }
        let listed = async {
            let answer = self.send(request).await?;
            answer.bytes().await.map_err(|error| self.failure(None, error.to_string()))
        };
        timeout(LIST_TIMEOUT, listed).await.unwrap_or_else(|_| Err(self.failure(None, "no answer in time")))
    }

    /// Watches from the `version` of a list on, until the server ends it after `lasts`.
    pub(crate) async fn watch(
        &self,
        of: &Collection,
        version: &str,
        lasts: Duration,
    ) -> Result<ReplyBody, Failure> {
        let request = self.request(of, METADATA).query("watch", "true").query("allowWatchBookmarks", "true");
        let request = request.query("resourceVersion", version).query("timeoutSeconds", lasts.as_secs());
        let answer = timeout(TIMEOUT, self.send(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(self.failure(None, "no answer in time")))?;
        Ok(answer.into_body())
    }

    pub(crate) fn failure(&self, status: Option<StatusCode>, why: impl fmt::Display) -> Failure {
        Failure { status, why: format!("{}: {why}", self.name()), retry_after: Duration::ZERO }
    }

    /// `metadata` is the form of an answer that has only the metadata of objects.
    fn request(&self, of: &Collection, metadata: &'static str) -> RequestBuilder {
        let request = self.connected().http.request(Method::GET, of.template);
        let request = request.param("namespace", &of.namespace);
        let request = request.header("accept", if of.is_metadata { metadata } else { WHOLE });
        match &of.selector {
            Some((name, value)) => request.query(*name, value),
            None => request,
        }
    }

    /// Sends a request with the token as it stands in its file now. An answer without success is an error.
    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let mut request = request.no_retry().detached();
        let token = self.0.place.token.read().await;
        if let Some(token) = token.map_err(|why| self.failure(None, format!("token: {why}")))? {
            let value = HeaderValue::try_from(format!("Bearer {token}"));
            let mut value = value.map_err(|_| self.failure(None, "the token can't be sent in a header"))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let answer = request.send().await.map_err(|error| self.failure(None, error))?;
        let status = answer.status();
        if status == StatusCode::OK {
            return Ok(answer);
        }
        let is_busy = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let after = answer.headers().get(RETRY_AFTER).filter(|_| is_busy);
        let seconds = after.and_then(|after| after.to_str().ok()?.trim().parse().ok()).unwrap_or(0);
        let body = timeout(TIMEOUT, answer.bytes()).await.ok().and_then(Result::ok).unwrap_or_default();
        let said = serde_json::from_slice(&body).map(|Message { message }| message);
        let said =
            said.unwrap_or_else(|_| String::from_utf8_lossy(&body[..body.len().min(MAX_WORDS)]).into_owned());
        let said: String = said.chars().take(MAX_WORDS).collect();
        let why = format!("it answers {}: {}", status.as_u16(), said.trim().escape_debug());
        let retry_after = Duration::from_secs(seconds).min(MAX_RETRY_AFTER);
        Err(Failure { retry_after, ..self.failure(Some(status), why) })
    }

    fn connected(&self) -> &Connected {
        self.0.connected.get_or_init(|| Connected::new(&self.0.place, &self.0.connector))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.0.place).finish()
    }
}

// === impl Connected ===

impl Connected {
    fn new(place: &Place, connector: &Arc<dyn Connector>) -> Self {
        let registry = FixedAddresses::new(SERVER, "http", [&place.address]);
        let runtime = Runtime::builder(SERVER).registry(Arc::new(registry)).build();
        let runtime = runtime.expect("the names of metrics are free in a registry of one's own");
        let mut settings = Settings::default();
        // Followers wait by themselves, and a watch has no end.
        settings.outbound.defaults.breaker = Some(Switch::Off);
        settings.outbound.defaults.timeout = Some(Switch::Off);
        if let Err(problems) = runtime.apply(&settings, 1, SERVER) {
            unreachable!("the settings have no names and no numbers: {problems:?}");
        }
        let config = ClientConfig {
            // All watches of a process are on one connection.
            http_version: if place.tls.is_some() { HttpVersion::Two } else { HttpVersion::One },
            max_backoff: PositiveSpan::from_millis(500),
            pool: MAX_WATCHES.try_into().expect("it is not 0"),
            keep_alive_interval: Span(Duration::from_secs(5)),
            keep_alive_timeout: PositiveSpan::from_millis(5_000),
            ..ClientConfig::default()
        };
        let transport = Arc::new(HttpTransport::new(connector.clone(), config));
        let http = HttpClient::new(SERVER, pipeline::client(&runtime, SERVER, &transport)).max_body(MAX_BODY);
        Connected { http, tasks: Tasks::new(), runtime }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

// === impl Failure ===

impl Failure {
    /// Is the version too old to go on from it?
    pub(crate) fn is_gone(&self) -> bool {
        self.status == Some(StatusCode::GONE)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}
