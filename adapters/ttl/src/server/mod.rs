//! The registry server.
mod contracts;
mod documents;
mod settings;
mod snapshot;
mod store;
mod watch;

use std::{
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::{Path, Query, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use chassis_core::{
    BoxError, Random,
    registry::Instance,
    tasks::Tasks,
    units::{PositiveSpan, Size},
};
use http::{Method, StatusCode, header::AUTHORIZATION};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::{Semaphore, watch as latest},
    time::{Instant, sleep_until, timeout},
};

use self::{
    contracts::Shelf,
    snapshot::{Content, Disk},
    store::{Renewed, Store},
};
use crate::wire::{Register, Registered, Removed};

/// The limits of a [`TtlServer`], and where it keeps its snapshot.
#[derive(Clone)]
pub struct TtlServerConfig {
    /// The file of the snapshot, which is read at the start and written with every change; contracts are files in a folder
    /// beside it, whose name ends in `.contracts`. Default none: a server that restarts knows nothing until its clients have
    /// registered again.
    pub snapshot: Option<PathBuf>,
    /// The token that clients have to send as `authorization: Bearer …`; an empty one is refused. Default none: every client
    /// may ask and register.
    pub token: Option<String>,
    /// The token of clients that change settings; it may do all that `token` may, too. An empty one is refused. Default none:
    /// `token` is enough, so that every service may change the settings of all.
    pub settings_token: Option<String>,
    /// The TTL of an instance that states none. Default `30s`.
    pub ttl: PositiveSpan,
    /// A longer TTL is shortened to this. Default `1h`.
    pub max_ttl: PositiveSpan,
    /// Instances of all services; more are refused with 507. Default 10000.
    pub max_instances: usize,
    /// Bytes of a registration; more is refused with 413. Default `16KiB`.
    pub max_body: Size,
    /// Documents of settings, with those that were deleted lately; more are refused with 507. Default 1000.
    pub max_documents: usize,
    /// Bytes of a document; more is refused with 413. Default `256KiB`.
    pub max_document: Size,
    /// Contracts of all services; more are refused with 507. Default 2000.
    pub max_contracts: usize,
    /// Bytes of a contract; more is refused with 413. Default `1MiB`, which is the most that clients send.
    pub max_contract: Size,
    /// Bytes of all contracts together, which are kept in memory; more is refused with 507. Default `64MiB`.
    pub max_contract_bytes: Size,
    /// Versions of a service in an environment whose contracts are kept. One that is in use makes room only
    /// for a process that starts; the others go first, and those that changed last stay. Default 10.
    pub max_contract_versions: usize,
    /// Watches at once; more are refused with 503. Default 4096.
    pub max_watches: usize,
    /// So many changes are kept, for watches that go on where they were. Default 4096.
    pub max_changes: usize,
}

/// A registry server: an axum router to mount. Clones are the same server, which ends with the last clone and the last
/// router.
///
/// ```no_run
/// use chassis_ttl::{TtlServer, TtlServerConfig};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let config = TtlServerConfig { snapshot: Some("/var/lib/registry.json".into()), ..TtlServerConfig::default() };
/// let server = TtlServer::open(config).await?;
/// let router = axum::Router::new().merge(server.router());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct TtlServer(Arc<Owner>);

/// Ends the tasks of the server when it is dropped.
struct Owner(Arc<Inner>);

struct Inner {
    config: TtlServerConfig,
    store: Mutex<Store>,
    random: Random,
    tasks: Tasks,
    /// The number of the last change, for watches.
    changed: latest::Sender<u64>,
    /// The last revision of a document, for those who watch one.
    documents: latest::Sender<u64>,
    /// Is the server closed?
    closing: latest::Sender<bool>,
    /// The version that a snapshot has to have, and the one that is written.
    wanted: latest::Sender<u64>,
    written: latest::Sender<u64>,
    /// The file of the snapshot, if there is to be one.
    disk: Option<Arc<Disk>>,
    watches: Arc<Semaphore>,
    contracts: Arc<Shelf>,
}

type Server = State<Arc<Inner>>;

#[derive(Deserialize)]
struct Of {
    service: Option<String>,
}

/// A client has this time to send the body of a request.
const BODY: Duration = Duration::from_secs(5);
/// A change is answered after this time though it is not on disk.
const WRITTEN: Duration = Duration::from_secs(2);
/// How long after a snapshot that could not be written the next one is tried.
const AGAIN: Duration = Duration::from_secs(1);
/// The shortest TTL.
const MIN_TTL: Duration = Duration::from_secs(1);

// === impl TtlServerConfig ===

impl Default for TtlServerConfig {
    fn default() -> Self {
        TtlServerConfig {
            snapshot: None,
            token: None,
            settings_token: None,
            ttl: PositiveSpan::from_millis(30_000),
            max_ttl: PositiveSpan::from_millis(3_600_000),
            max_instances: 10_000,
            max_body: Size::from_kib(16),
            max_documents: 1_000,
            max_document: Size::from_kib(256),
            max_contracts: 2_000,
            max_contract: Size::from_kib(1 << 10),
            max_contract_bytes: Size::from_kib(64 << 10),
            max_contract_versions: 10,
            max_watches: 4_096,
            max_changes: 4_096,
        }
    }
}

/// Without the tokens.
impl fmt::Debug for TtlServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TtlServerConfig {
            snapshot,
            token,
            settings_token,
            ttl,
            max_ttl,
            max_instances,
            max_body,
            max_documents,
            max_document,
            max_contracts,
            max_contract,
            max_contract_bytes,
            max_contract_versions,
            max_watches,
            max_changes,
        } = self;
        f.debug_struct("TtlServerConfig")
            .field("snapshot", snapshot)
            .field("token", &token.as_ref().map(|_| "***"))
            .field("settings_token", &settings_token.as_ref().map(|_| "***"))
            .field("ttl", ttl)
            .field("max_ttl", max_ttl)
            .field("max_instances", max_instances)
            .field("max_body", max_body)
            .field("max_documents", max_documents)
            .field("max_document", max_document)
            .field("max_contracts", max_contracts)
            .field("max_contract", max_contract)
            .field("max_contract_bytes", max_contract_bytes)
            .field("max_contract_versions", max_contract_versions)
            .field("max_watches", max_watches)
            .field("max_changes", max_changes)
            .finish()
    }
}

// === impl TtlServer ===

impl TtlServer {
    /// Reads the snapshot and begins; each instance of it has a whole TTL for its first heartbeat. Needs a tokio runtime.
    ///
    /// # Errors
    /// A token is empty: a request without any would be allowed. Or the snapshot, or the folder of contracts, is there and
    /// can't be read; it is not overwritten then.
    pub async fn open(config: TtlServerConfig) -> Result<Self, BoxError> {
        for (name, token) in [("token", &config.token), ("settings_token", &config.settings_token)] {
            if token.as_ref().is_some_and(String::is_empty) {
                return Err(format!("`{name}` is empty, which would allow requests without a token").into());
            }
        }
        let kept = match config.snapshot.clone() {
            None => snapshot::Read::default(),
            Some(path) => {
                let read = tokio::task::spawn_blocking(move || (snapshot::read(&path), path)).await?;
                read.0.map_err(|error| format!("the snapshot {}: {error}", read.1.display()))?
            }
        };
        let contracts = Arc::new(Shelf::beside(&config).await?);
        let random = Random::from_os();
        let TtlServerConfig { max_instances, max_changes, max_documents, .. } = config;
        let mut store = Store::new(random.next_u64(), max_instances, max_changes, max_documents);
        let now = Instant::now();
        for (key, document) in kept.documents {
            if store.documents_mut().restore(key.clone(), document).is_err() {
                tracing::warn!(target: "chassis", key, "a document of the snapshot is left out: there are too many");
            }
        }
        for (instance, ttl, lease) in kept.instances {
            let id = instance.id.clone();
            if store.put(instance, ttl, lease, now).is_err() {
                tracing::warn!(target: "chassis", id, "an instance of the snapshot is left out: there are too many");
            }
        }
        let (changed, version) = (store.revision().number, store.version());
        let inner = Arc::new(Inner {
            disk: config.snapshot.clone().map(Disk::new).map(Arc::new),
            watches: Arc::new(Semaphore::new(config.max_watches)),
            contracts,
            config,
            store: Mutex::new(store),
            random,
            tasks: Tasks::new(),
            changed: latest::Sender::new(changed),
            documents: latest::Sender::default(),
            closing: latest::Sender::default(),
            wanted: latest::Sender::new(version),
            written: latest::Sender::new(version),
        });
        inner.tasks.spawn(expire(inner.clone()));
        if let Some(disk) = inner.disk.clone() {
            inner.tasks.spawn(keep_written(inner.clone(), disk));
        }
        Ok(TtlServer(Arc::new(Owner(inner))))
    }

    /// The routes below `/v1`.
    pub fn router(&self) -> Router {
        let inner = self.0.0.clone();
        let owner = self.0.clone();
        Router::new()
            .route("/v1/services", post(register).get(list))
            .route("/v1/services/{lease}", get(one).delete(remove))
            .route("/v1/services/{lease}/heartbeat", put(renew))
            .route("/v1/names", get(names))
            .route("/v1/settings", get(settings::list))
            .route("/v1/settings/{*key}", get(settings::get).put(settings::put).delete(settings::delete))
            .route("/v1/contracts", get(contracts::list))
            .route("/v1/contracts/{name}", get(contracts::get).put(contracts::put).delete(contracts::delete))
            .route("/v1/watch", get(watch::watch))
            .layer(middleware::from_fn(move |request: Request, next: Next| {
                let owner = owner.clone();
                async move {
                    match owner.0.is_allowed(&request) {
                        true => next.run(request).await,
                        false => refusal(StatusCode::UNAUTHORIZED, "the token is missing, or another one"),
                    }
                }
            }))
            .with_state(inner)
    }

    /// Ends all watches and writes a last snapshot; requests that come later are answered still.
    pub async fn close(&self) {
        let inner = &self.0.0;
        inner.closing.send_replace(true);
        inner.tasks.end(WRITTEN).await;
        if let Some(disk) = inner.disk.clone() {
            let content = Content::of(&inner.store());
            // A write that was begun goes on though its task has ended: this one waits for it.
            let written = tokio::task::spawn_blocking(move || disk.write(&content)).await;
            if let Ok(Err(error)) = written {
                tracing::error!(target: "chassis", %error, "the snapshot of the registry is not written");
            }
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.tasks.cancel();
    }
}

// === impl Inner ===

impl Inner {
    /// Nothing panics while it is held; the store behind a poisoned lock is intact.
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_allowed(&self, request: &Request) -> bool {
        let TtlServerConfig { token, settings_token, .. } = &self.config;
        let changes = request.method() != Method::GET && request.method() != Method::HEAD;
        let is_settings = changes && request.uri().path().starts_with("/v1/settings");
        let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        match (token, settings_token) {
            (_, Some(settings_token)) if is_settings => is_same(given, settings_token),
            (Some(token), Some(settings_token)) => is_same(given, token) | is_same(given, settings_token),
            (Some(token), None) => is_same(given, token),
            (None, _) => true,
        }
    }

    /// Informs watches and the snapshot of a change; returns when it is on disk, or after a while `false`.
    async fn changed(&self) -> bool {
        let (number, document, version) = {
            let store = self.store();
            (store.revision().number, store.documents().last(), store.version())
        };
        self.documents.send_if_modified(|last| std::mem::replace(last, document.max(*last)) < document);
        self.changed.send_if_modified(|last| std::mem::replace(last, number.max(*last)) < number);
        if self.config.snapshot.is_none() {
            return true;
        }
        self.wanted.send_if_modified(|last| std::mem::replace(last, version.max(*last)) < version);
        let mut written = self.written.subscribe();
        let written = timeout(WRITTEN, written.wait_for(|written| *written >= version)).await;
        written.is_ok_and(|written| written.is_ok())
    }
}

/// Compares a token; the time it takes does not depend on how much of it is right.
fn is_same(given: &str, token: &str) -> bool {
    let differs = given.bytes().zip(token.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b));
    given.len() == token.len() && differs == 0
}

/// Removes instances whose time is over.
async fn expire(inner: Arc<Inner>) {
    let mut changed = inner.changed.subscribe();
    loop {
        let due = inner.store().due();
        let over = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => {
                let gone = inner.store().expire(Instant::now());
                if gone > 0 {
                    tracing::debug!(gone, "instances were not renewed");
                    inner.changed().await;
                }
            }
            Ok(_) = changed.changed() => {}
            else => return,
        }
    }
}

/// Keeps the snapshot up to date: what comes while one is being written comes with the next.
async fn keep_written(inner: Arc<Inner>, disk: Arc<Disk>) {
    let mut wanted = inner.wanted.subscribe();
    let mut has_failed = false;
    loop {
        let version = *wanted.borrow_and_update();
        if version > *inner.written.borrow() {
            let content = Content::of(&inner.store());
            let (version, to) = (content.version, disk.clone());
            let written = tokio::task::spawn_blocking(move || to.write(&content)).await;
            let written = written.unwrap_or_else(|error| Err(io::Error::other(error)));
            match written {
                Ok(()) => {
                    has_failed = false;
                    inner.written.send_replace(version);
                }
                Err(error) => {
                    if !std::mem::replace(&mut has_failed, true) {
                        let path = disk.path().display();
                        tracing::error!(target: "chassis", %path, %error, "the snapshot of the registry is not written");
                    }
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            }
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

// === the requests ===

async fn register(State(server): Server, request: Request<Body>) -> Response {
    let most = server.config.max_body.get();
    let body = match timeout(BODY, to_bytes(request.into_body(), most)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            let message = format!("a registration has at most {most} bytes, and an end");
            return refusal(StatusCode::PAYLOAD_TOO_LARGE, &message);
        }
        Err(_) => return refusal(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
    };
    let asked: Register = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    if let Err(why) = sound(&asked.instance) {
        return refusal(StatusCode::BAD_REQUEST, &why);
    }
    let TtlServerConfig { ttl, max_ttl, .. } = &server.config;
    let ttl = asked.ttl.unwrap_or(*ttl).get().min(max_ttl.get()).max(MIN_TTL);
    let lease = format!("{:016x}{:016x}", server.random.next_u64(), server.random.next_u64());
    let put = server.store().put(asked.instance, ttl, lease.clone(), Instant::now());
    if put.is_err() {
        let message =
            format!("there are {} instances, as many as this server keeps", server.config.max_instances);
        return refusal(StatusCode::INSUFFICIENT_STORAGE, &message);
    }
    server.changed().await;
    let revision = server.store().revision();
    (StatusCode::CREATED, Json(Registered { lease, revision })).into_response()
}

/// A registration needs a service beside what each instance needs.
fn sound(instance: &Instance) -> Result<(), String> {
    if instance.service.is_empty() {
        return Err(format!(
            "instance `{}` doesn't say which service it belongs to",
            instance.id.escape_debug()
        ));
    }
    instance.check().map_err(|error| error.to_string())
}

async fn renew(State(server): Server, Path(lease): Path<String>) -> Response {
    let renewed = server.store().renew(&lease, Instant::now());
    match renewed {
        Renewed::Done => StatusCode::NO_CONTENT.into_response(),
        Renewed::Replaced => refusal(StatusCode::CONFLICT, "another process has registered this instance"),
        Renewed::Unknown => refusal(StatusCode::NOT_FOUND, "the lease is not known"),
    }
}

async fn remove(State(server): Server, Path(lease): Path<String>) -> Response {
    server.store().remove(&lease);
    server.changed().await;
    let revision = server.store().revision();
    Json(Removed { revision }).into_response()
}

async fn one(State(server): Server, Path(lease): Path<String>) -> Response {
    let found = server.store().get(&lease);
    match found {
        Some(instance) => Json(instance).into_response(),
        None => refusal(StatusCode::NOT_FOUND, "the lease is not known"),
    }
}

async fn list(State(server): Server, Query(of): Query<Of>) -> Response {
    let (revision, instances) = {
        let store = server.store();
        (store.revision(), store.list(of.service.as_deref()))
    };
    Json(json!({ "revision": revision, "instances": instances })).into_response()
}

async fn names(State(server): Server) -> Response {
    let names = json!(server.store().names());
    Json(names).into_response()
}

fn refusal(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "error": message }))).into_response()
}
