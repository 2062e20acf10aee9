//! The WebSocket over which the server pushes changes, one for the process.
//!
//! A push carries one instance. It is not read: it only makes those who are interested ask at once. So nothing
//! depends on the pushes being complete, in order, or true, and a connection that was cut is followed by asking for
//! everything that is followed.
//!
//! The server pushes changes of the services that the *consumer* has asked for, a service that is registered for this
//! process. A server that has forgotten the consumer gets it registered again.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use chassis_core::{adapter::Pace, clock};
use chassis_http::connector::Stream;
use futures_util::SinkExt;
use http::{Method, StatusCode, Uri};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_stream::StreamExt;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, ClientRequestBuilder, Message, protocol::WebSocketConfig},
};

use crate::{
    client::{Client, Failure, Query, WeakClient},
    entry::ServiceKey,
};

/// The pushes for this process; clones share them.
#[derive(Clone)]
pub(crate) struct Link(Arc<Inner>);

struct Inner {
    consumer: ServiceKey,
    jitter: Duration,
    /// Without pushes there is no connection, and it wakes only what this process itself changes.
    is_pushed: bool,
    /// Whether it was begun.
    begun: OnceLock<()>,
    /// The id of the consumer, as the server knows it.
    known_as: watch::Sender<Option<String>>,
    /// Counted up when the consumer has to be registered anew.
    lost: watch::Sender<u64>,
    topics: Mutex<HashMap<Topic, watch::Sender<u64>>>,
}

/// The subject of a push.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Topic {
    /// The instances of a service, by its name on the server.
    Service(String),
    /// The end of an instance, by its id on the server.
    End(String),
}

/// Wakes when there was a push about a topic, or when there may have been one that did not arrive.
pub(crate) struct Wake(watch::Receiver<u64>);

/// A push.
#[derive(Deserialize)]
struct Push {
    #[serde(default)]
    action: String,
    #[serde(default)]
    key: Option<PushKey>,
    #[serde(default)]
    instance: Option<PushInstance>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PushKey {
    #[serde(default)]
    service_name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PushInstance {
    #[serde(default)]
    instance_id: String,
}

/// Connecting may take this long.
const CONNECT: Duration = Duration::from_secs(2);
/// How often the connection is probed. A frozen server is found out after twice this time.
const PING: Duration = Duration::from_secs(5);
/// A connection that ended sooner is counted as a failure, so that one which always ends is not opened all the time.
const STABLE: Duration = Duration::from_secs(1);
/// The longest push: an instance with its properties.
const MAX_PUSH: usize = 4 << 20;

// === impl Link ===

impl Link {
    /// Not begun yet.
    pub(crate) fn new(consumer: ServiceKey, jitter: Duration, is_pushed: bool) -> Self {
        let (known_as, lost) = (watch::Sender::new(None), watch::Sender::new(0));
        Link(Arc::new(Inner {
            consumer,
            jitter,
            is_pushed,
            begun: OnceLock::new(),
            known_as,
            lost,
            topics: Mutex::default(),
        }))
    }

    /// Connects and stays connected, until the last clone of `client` is gone. Further calls do nothing.
    pub(crate) fn begin(&self, client: &Client) {
        if !self.0.is_pushed {
            return;
        }
        self.0.begun.get_or_init(|| {
            let (link, weak) = (self.clone(), client.downgrade());
            client.tasks().spawn(async move { link.run(weak).await });
        });
    }

    /// The consumer's id. `None`: it is not registered yet.
    pub(crate) fn consumer(&self) -> Option<String> {
        self.0.known_as.borrow().clone()
    }

    /// The server does not know this consumer any more.
    pub(crate) fn lost(&self, consumer: &str) {
        let is_same = self.0.known_as.send_if_modified(|known| {
            let is_same = known.as_deref() == Some(consumer);
            if is_same {
                *known = None;
            }
            is_same
        });
        if is_same {
            self.0.lost.send_modify(|lost| *lost += 1);
        }
    }

    /// Listens to a topic.
    pub(crate) fn listen(&self, topic: Topic) -> Wake {
        let mut topics = self.lock();
        topics.retain(|_, sender| sender.receiver_count() > 0);
        Wake(topics.entry(topic).or_insert_with(|| watch::Sender::new(0)).subscribe())
    }

    /// Wakes the listeners of a topic.
    pub(crate) fn wake(&self, topic: &Topic) {
        if let Some(sender) = self.lock().get(topic) {
            sender.send_modify(|count| *count += 1);
        }
    }

    fn wake_all(&self) {
        self.lock().values().for_each(|sender| sender.send_modify(|count| *count += 1));
    }

    /// Nothing panics while it is held; a poisoned lock would be as good as new.
    fn lock(&self) -> MutexGuard<'_, HashMap<Topic, watch::Sender<u64>>> {
        self.0.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self, client: WeakClient) {
        let (mut pace, mut turn, mut has_failed) = (Pace::new(self.0.jitter), 0_usize, false);
        loop {
            let Some(strong) = client.upgrade() else { return };
            let random = strong.random().clone();
            turn += 1;
            let mut lost = self.0.lost.subscribe();
            let why = match self.connect(&strong, turn).await {
                Ok(socket) => {
                    drop(strong);
                    let begun = clock::Instant::now();
                    self.wake_all(); // of what was pushed meanwhile nothing has arrived
                    let why = tokio::select! {
                        why = self.read(socket) => why,
                        _ = lost.changed() => "the server does not know the consumer any more".to_owned(),
                    };
                    self.wake_all(); // the server may be gone, and with it what it knew
                    if begun.elapsed() > STABLE {
                        (pace, has_failed) = (Pace::new(self.0.jitter), false);
                    }
                    why
                }
                Err(failure) => {
                    drop(strong);
                    failure.to_string()
                }
            };
            if !std::mem::replace(&mut has_failed, true) {
                tracing::debug!(target: "chassis", why, "service center pushes nothing for now");
            }
            sleep(pace.next(clock::Instant::now(), &random)).await;
        }
    }

    /// Registers the consumer, and connects.
    async fn connect(&self, client: &Client, turn: usize) -> Result<WebSocketStream<Stream>, Failure> {
        let consumer = register_service(client, &self.0.consumer).await?;
        let addresses = &client.config().addresses;
        // Another server at each turn; there is at least one.
        let address = &addresses[turn % addresses.len()];
        let connect = async {
            let mut headers = client.headers().await?;
            let connected = self.upgrade(client, address, &consumer, &headers).await;
            match connected {
                Err(tungstenite::Error::Http(answer))
                    if answer.status() == StatusCode::UNAUTHORIZED && client.refused(&headers).await =>
                {
                    headers = client.headers().await?;
                    self.upgrade(client, address, &consumer, &headers).await
                }
                connected => connected,
            }
            .map_err(|error| Failure::of(format!("no WebSocket to {address}: {error}")))
        };
        let connected = timeout(CONNECT, connect).await;
        let socket =
            connected.map_err(|_| Failure::of(format!("no WebSocket to {address} in {CONNECT:?}")))??;
        self.0.known_as.send_replace(Some(consumer));
        Ok(socket)
    }

    async fn upgrade(
        &self,
        client: &Client,
        address: &str,
        consumer: &str,
        headers: &http::HeaderMap,
    ) -> Result<WebSocketStream<Stream>, tungstenite::Error> {
        let config = client.config();
        let path = format!("/v4/{}/registry/microservices/{consumer}/watcher", config.project);
        let scheme = if client.connector().is_secure() { "wss" } else { "ws" };
        let uri: Uri = format!("{scheme}://{address}{path}").parse()?;
        let mut request = ClientRequestBuilder::new(uri).with_header("x-domain-name", &config.domain);
        for (name, value) in headers {
            let value = value.to_str().unwrap_or_default(); // each was made of a text
            request = request.with_header(name.as_str(), value);
        }
        let stream = client.connector().connect_within(address, CONNECT).await?;
        let limits =
            WebSocketConfig::default().max_message_size(Some(MAX_PUSH)).max_frame_size(Some(MAX_PUSH));
        let (socket, _) = client_async_with_config(request, stream, Some(limits)).await?;
        Ok(socket)
    }

    /// Reads pushes until the connection ends; returns why.
    async fn read(&self, mut socket: WebSocketStream<Stream>) -> String {
        let mut is_probed = false;
        loop {
            let frame = match timeout(PING, socket.next()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return error.to_string(),
                Ok(None) => return "the connection was closed".to_owned(),
                Err(_) if is_probed => return format!("the server did not answer in {PING:?}"),
                Err(_) => {
                    is_probed = true;
                    match timeout(PING, socket.send(Message::Ping(Vec::new().into()))).await {
                        Ok(Ok(())) => continue,
                        Ok(Err(error)) => return error.to_string(),
                        Err(_) => return format!("the server reads nothing for {PING:?}"),
                    }
                }
            };
            is_probed = false;
            match frame {
                Message::Text(text) => match serde_json::from_str::<Push>(&text) {
                    Ok(push) => self.push(push),
                    // As it says that it does not know the consumer, before it closes the connection.
                    Err(_) => {
                        let words: String = text.chars().take(200).collect();
                        return format!("the server says: {}", words.escape_debug());
                    }
                },
                Message::Close(frame) => return format!("the server closes: {frame:?}"),
                _ => {}
            }
        }
    }

    fn push(&self, push: Push) {
        if let Some(key) = push.key {
            self.wake(&Topic::Service(key.service_name));
        }
        if let Some(instance) = push.instance.filter(|_| push.action == "DELETE") {
            self.wake(&Topic::End(instance.instance_id));
        }
    }
}

// === impl Wake ===

impl Wake {
    /// Resolves when there may be news since the last time.
    pub(crate) async fn news(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// Registers a service, which may be there already; its id.
pub(crate) async fn register_service(client: &Client, key: &ServiceKey) -> Result<String, Failure> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Registered {
        service_id: String,
    }
    let query = Query::new(Method::POST, "/v4/{project}/registry/microservices");
    let answer = client.send(&query.body(json!({ "service": key.body() }))).await?;
    let registered: Registered = answer.read("answer to a registration")?;
    Ok(registered.service_id)
}
