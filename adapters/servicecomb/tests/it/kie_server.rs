//! A kie: the real one that `CHASSIS_PEER_KIE` names, `http://host:port`; else a stand-in of version 1 of its API, for
//! the real one can't be had everywhere.
//!
//! The stand-in does what the code of the real one does: one revision for everything, which counts up before a change is
//! stored; long polls that end with a change of their labels, or with 304 and no revision; entries that are disabled
//! unless they say otherwise; names, sizes and times within its bounds. The client library of go-chassis is checked against
//! it, so that both agree about the API.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    http::StatusCode,
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};
use tokio::{sync::broadcast, time::timeout};

use crate::{
    host::{Host, ask},
    trials::{NotRun, Ran},
};

/// A kie, and labels of the test's own: a real one keeps the entries of other tests.
pub(crate) struct Kie {
    pub(crate) address: String,
    pub(crate) labels: BTreeMap<String, String>,
    stand_in: Option<StandIn>,
}

struct StandIn {
    /// `None`: another one runs it.
    host: Option<Host>,
    store: Arc<Store>,
}

/// All that a stand-in knows.
pub(crate) struct Store {
    state: Mutex<Known>,
    /// The changes, for the long polls.
    changes: broadcast::Sender<Change>,
}

#[derive(Default)]
struct Known {
    revision: i64,
    entries: BTreeMap<String, Value>,
    /// The tokens that are taken; requests need none while it is empty.
    tokens: BTreeSet<String>,
    /// Each answer to a list, in place of what would be answered: the status, the revision and the body.
    planted: Option<(u16, Option<String>, String)>,
    /// Others change something before each list.
    is_busy: bool,
    /// The requests, for the tests: method and path with the query.
    log: Vec<String>,
}

/// The project and the labels of an entry that changed.
type Change = (String, BTreeMap<String, String>);
type Shared = State<Arc<Store>>;
type Pairs = Query<Vec<(String, String)>>;
/// An answer, or the number and the words of an error.
type Result<T> = std::result::Result<T, (u32, String)>;

/// The project of the tests.
pub(crate) const PROJECT: &str = "default";
const INVALID: u32 = 400_001;
const MISSING: u32 = 404_001;
const TWICE: u32 = 409_001;
/// kie waits no longer.
const MAX_WAIT: Duration = Duration::from_secs(300);

// === impl Kie ===

/// The variable with the URL of a real one.
const REAL: &str = "CHASSIS_PEER_KIE";

/// For tests of faults, and of what a real one does not show.
pub(crate) fn needs_stand_in() -> Ran {
    match std::env::var_os(REAL) {
        Some(_) => Err(NotRun(format!("{REAL} names a real kie; the test plants a fault"))),
        None => Ok(()),
    }
}

impl Kie {
    pub(crate) async fn start() -> Kie {
        match std::env::var(REAL) {
            Ok(url) => {
                let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
                Kie { address, labels: labels(), stand_in: None }
            }
            Err(_) => Self::stand_in().await.expect("no real one is named"),
        }
    }

    /// One that can be ended, blocked, and made to answer nonsense.
    pub(crate) async fn stand_in() -> std::result::Result<Kie, NotRun> {
        needs_stand_in()?;
        let stand_in = Some(StandIn { host: Some(Host::new()), store: Arc::default() });
        let mut kie = Kie { address: String::new(), labels: labels(), stand_in };
        kie.run().await;
        Ok(kie)
    }

    /// The same server, for entries with these labels.
    pub(crate) fn with_labels(&self, labels: BTreeMap<String, String>) -> Kie {
        let stand_in = self.stand_in.as_ref().map(|it| StandIn { host: None, store: it.store.clone() });
        Kie { address: self.address.clone(), labels, stand_in }
    }

    /// Puts an enabled entry; the revision of the change.
    pub(crate) async fn put(&self, key: &str, value_type: &str, value: &str) -> i64 {
        self.put_as(key, value_type, value, "enabled").await
    }

    pub(crate) async fn put_as(&self, key: &str, value_type: &str, value: &str, status: &str) -> i64 {
        let (labels, path) = (&self.labels, format!("/v1/{PROJECT}/kie/kv"));
        let mut body = json!({ "value": value, "status": status });
        let found = self.find(key).await;
        if let Some(entry) = found.filter(|entry| entry["value_type"] == value_type && !value.is_empty()) {
            let path = format!("{path}/{}", entry["id"].as_str().unwrap());
            let (code, answer) = ask(&self.address, "PUT", &path, &body.to_string()).await;
            assert_eq!(code, 200, "{answer}");
            return answer["update_revision"].as_i64().unwrap();
        }
        self.delete(key).await; // the type of an entry can't be changed, nor can a value be emptied
        (body["key"], body["value_type"], body["labels"]) = (key.into(), value_type.into(), json!(labels));
        let (code, answer) = ask(&self.address, "POST", &path, &body.to_string()).await;
        assert_eq!(code, 200, "{answer}");
        answer["update_revision"].as_i64().unwrap()
    }

    pub(crate) async fn delete(&self, key: &str) {
        let Some(entry) = self.find(key).await else { return };
        let path = format!("/v1/{PROJECT}/kie/kv/{}", entry["id"].as_str().unwrap());
        let (code, answer) = ask(&self.address, "DELETE", &path, "").await;
        assert_eq!(code, 204, "{answer}");
    }

    async fn find(&self, key: &str) -> Option<Value> {
        let labels: Vec<_> =
            self.labels.iter().map(|(label, value)| format!("&label={label}:{value}")).collect();
        let path = format!("/v1/{PROJECT}/kie/kv?match=exact{}", labels.concat());
        let (code, answer) = ask(&self.address, "GET", &path, "").await;
        assert_eq!(code, 200, "{answer}");
        answer["data"].as_array().into_iter().flatten().find(|entry| entry["key"] == key).cloned()
    }

    /// Starts a stand-in, again at the same address and with what it knew.
    pub(crate) async fn run(&mut self) {
        let StandIn { host, store } = self.stand_in.as_mut().unwrap();
        let host = host.as_mut().unwrap();
        host.run(router(store.clone()), || {}).await;
        self.address = host.address.clone();
    }

    /// Ends it at once, with all its connections.
    pub(crate) fn kill(&mut self) {
        self.stand_in.as_mut().and_then(|it| it.host.as_mut()).unwrap().kill();
    }

    /// Blocks it until the sender is dropped.
    pub(crate) fn freeze(&self) -> mpsc::Sender<()> {
        self.stand_in.as_ref().and_then(|it| it.host.as_ref()).unwrap().freeze()
    }

    /// Forgets everything, the revision too.
    pub(crate) fn forget(&self) {
        *self.known() = Known::default();
    }

    /// Stores an entry as a real one does that was asked between counting its revision up and storing the change.
    pub(crate) fn put_unseen(&self, key: &str, value: &str) {
        let mut known = self.known();
        let entry = known.entries.values_mut().find(|entry| entry["key"] == key).unwrap();
        entry["value"] = value.into();
    }

    /// Answers each list so from now on.
    pub(crate) fn plant(&self, status: u16, revision: Option<&str>, body: impl Into<String>) {
        self.known().planted = Some((status, revision.map(str::to_owned), body.into()));
    }

    /// Answers lists again.
    pub(crate) fn heal(&self) {
        self.known().planted = None;
    }

    /// From now on others change something before each list, or no more.
    pub(crate) fn is_busy(&self, is_busy: bool) {
        self.known().is_busy = is_busy;
    }

    /// Takes these tokens, and no request without one.
    pub(crate) fn guard(&self, tokens: &[&str]) {
        self.known().tokens = tokens.iter().map(|token| (*token).to_owned()).collect();
    }

    /// The requests since the last time.
    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.known().log)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.stand_in.as_ref().unwrap().store.known()
    }
}

/// Labels that no other test has.
fn labels() -> BTreeMap<String, String> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
    let service = format!("orders-{}-{since}", NEXT.fetch_add(1, Relaxed));
    BTreeMap::from([("app".to_owned(), "shop".to_owned()), ("service".to_owned(), service)])
}

// === impl Store ===

impl Default for Store {
    fn default() -> Self {
        Store { state: Mutex::default(), changes: broadcast::Sender::new(1_024) }
    }
}

impl Store {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.state.lock().unwrap()
    }

    fn publish(&self, project: &str, labels: BTreeMap<String, String>) {
        let _ = self.changes.send((project.to_owned(), labels)); // it has no effect without a long poll
    }

    fn create(&self, project: &str, mut entry: Value) -> Result<Value> {
        let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        let (key, value) = (text("key"), text("value"));
        let value_type = Some(text("value_type")).filter(|it| !it.is_empty()).unwrap_or("text".to_owned());
        let status = Some(text("status")).filter(|it| !it.is_empty()).unwrap_or("disabled".to_owned());
        let labels: BTreeMap<String, String> = match &entry["labels"] {
            Value::Null => BTreeMap::new(),
            labels => serde_json::from_value(labels.clone()).map_err(|error| (INVALID, error.to_string()))?,
        };
        let is_key = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
        check((1..=2_048).contains(&key.len()) && key.bytes().all(is_key), "key")?;
        check(value.len() <= 131_072, "value")?;
        let types = ["ini", "json", "text", "yaml", "properties", "xml"];
        check(types.contains(&value_type.as_str()), "value_type")?;
        check(["enabled", "disabled"].contains(&status.as_str()), "status")?;
        check(labels.len() <= 6 && labels.iter().all(is_label), "labels")?;
        let mut known = self.known();
        let is_it = |other: &&Value| {
            other["key"] == key && other["labels"] == json!(labels) && other["project"] == project
        };
        if known.entries.values().find(is_it).is_some() {
            return Err((TWICE, "kv already exists".to_owned()));
        }
        known.revision += 1;
        let (revision, id) = (known.revision, format!("{:064x}", known.revision));
        entry = json!({
            "id": id, "key": key, "value": value, "value_type": value_type, "status": status, "labels": labels,
            "create_revision": revision, "update_revision": revision, "create_time": 1, "update_time": 1,
            "project": project });
        known.entries.insert(id, entry.clone());
        drop(known);
        self.publish(project, labels);
        Ok(shown(entry))
    }

    fn update(&self, project: &str, id: &str, body: &Value) -> Result<Value> {
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let (value, status) = (text("value"), text("status"));
        check(value.len() <= 131_072, "value")?;
        check(["", "enabled", "disabled"].contains(&status.as_str()), "status")?;
        let mut known = self.known();
        let revision = known.revision + 1;
        let entry = known.entries.get_mut(id).filter(|entry| entry["project"] == project);
        let entry = entry.ok_or_else(missing)?;
        if !value.is_empty() {
            entry["value"] = value.into();
        }
        if !status.is_empty() {
            entry["status"] = status.into();
        }
        entry["update_revision"] = revision.into();
        let entry = entry.clone();
        known.revision = revision;
        drop(known);
        self.publish(project, labels_of(&entry));
        Ok(shown(entry))
    }

    fn delete(&self, project: &str, id: &str) -> Result<()> {
        let mut known = self.known();
        if known.entries.get(id).is_none_or(|entry| entry["project"] != project) {
            return Err(missing());
        }
        let entry = known.entries.remove(id).unwrap();
        known.revision += 1;
        drop(known);
        self.publish(project, labels_of(&entry));
        Ok(())
    }

    fn list(&self, project: &str, asked: &Asked) -> Response {
        let known = self.known();
        if let Some((status, revision, body)) = known.planted.clone() {
            let revision = revision.map(|revision| [("x-kie-revision", revision)]);
            return (
                StatusCode::from_u16(status).unwrap(),
                revision.into_iter().next().unwrap_or([("x-planted", "1".to_owned())]),
                body,
            )
                .into_response();
        }
        let is_it = |entry: &&Value| {
            entry["project"] == project
                && asked.is_of(&labels_of(entry))
                && (asked.key.is_empty() || entry["key"].as_str().unwrap().eq_ignore_ascii_case(&asked.key))
                && (asked.status.is_empty() || entry["status"] == asked.status)
        };
        let mut all: Vec<_> = known.entries.values().filter(is_it).cloned().map(shown).collect();
        all.sort_by_key(|entry| std::cmp::Reverse(entry["update_revision"].as_i64()));
        let revision = [("x-kie-revision", known.revision.to_string())];
        (revision, Json(json!({ "total": all.len(), "data": all }))).into_response()
    }
}

/// The parameters of a list.
#[derive(Debug, Default)]
struct Asked {
    labels: BTreeMap<String, String>,
    is_exact: bool,
    key: String,
    status: String,
    revision: Option<i64>,
    wait: Option<Duration>,
}

impl Asked {
    fn read(pairs: Vec<(String, String)>) -> Result<Asked> {
        let mut asked = Asked::default();
        for (key, value) in pairs {
            match key.as_str() {
                "label" => {
                    let (label, value) = value.split_once(':').filter(|(_, value)| !value.contains(':')).ok_or((
                        INVALID,
                        "label value can not be empty, label can not be duplicated, please check query parameters"
                            .to_owned(),
                    ))?;
                    asked.labels.insert(label.to_owned(), value.to_owned());
                }
                "match" => asked.is_exact = value == "exact",
                "key" => asked.key = value,
                "status" => asked.status = value,
                "revision" => {
                    let revision = value.parse();
                    asked.revision = Some(revision.map_err(|_| (INVALID, "revision param".to_owned()))?);
                }
                "wait" => {
                    let wait =
                        value.strip_suffix("ms").and_then(|n| n.parse().ok()).map(Duration::from_millis);
                    let seconds =
                        || value.strip_suffix('s').and_then(|n| n.parse().ok()).map(Duration::from_secs);
                    let wait = wait.or_else(seconds).filter(|wait| *wait <= MAX_WAIT);
                    asked.wait = Some(wait.ok_or((INVALID, "wait param".to_owned()))?);
                }
                _ => {}
            }
        }
        check(asked.labels.len() <= 8 && asked.labels.iter().all(is_label), "labels")?;
        Ok(asked)
    }

    /// Without labels it is of everything, also where they are to be exact.
    fn is_of(&self, labels: &BTreeMap<String, String>) -> bool {
        match self.is_exact && !self.labels.is_empty() {
            true => self.labels == *labels,
            false => self.labels.iter().all(|(label, value)| labels.get(label) == Some(value)),
        }
    }
}

fn is_label((label, value): (&String, &String)) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    (1..=32).contains(&label.len()) && value.len() <= 160 && label.bytes().chain(value.bytes()).all(is_inner)
}

fn labels_of(entry: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(entry["labels"].clone()).unwrap_or_default()
}

/// Without what answers leave out.
fn shown(mut entry: Value) -> Value {
    entry.as_object_mut().unwrap().remove("project");
    entry
}

fn missing() -> (u32, String) {
    (MISSING, "can not find any key value".to_owned())
}

fn check(is_valid: bool, what: &str) -> Result<()> {
    if is_valid { Ok(()) } else { Err((INVALID, format!("validate failed: {what}"))) }
}

// === The API ===

fn router(store: Arc<Store>) -> Router {
    let all = get(list).post(create).delete(delete_many);
    Router::new()
        .route("/v1/{project}/kie/kv", all)
        .route("/v1/{project}/kie/kv/{id}", get(read).put(update).delete(delete))
        .layer(from_fn_with_state(store.clone(), admit))
        .with_state(store)
}

fn refuse((code, words): (u32, String)) -> Response {
    let status = StatusCode::from_u16((code / 1_000) as u16).unwrap();
    let body = json!({ "errorCode": code.to_string(), "errorMessage": "refused", "detail": words });
    (status, Json(body)).into_response()
}

fn answer(result: Result<Value>) -> Response {
    result.map_or_else(refuse, |entry| Json(entry).into_response())
}

/// Logs a request, and asks for a token where one is needed.
async fn admit(State(store): Shared, request: Request, next: Next) -> Response {
    let token = request.headers().get("authorization").and_then(|it| it.to_str().ok()).unwrap_or_default();
    let is_known = {
        let mut known = store.known();
        known.log.push(format!("{} {}", request.method(), request.uri()));
        let token = token.strip_prefix("Bearer ").unwrap_or_default();
        known.tokens.is_empty() || known.tokens.contains(token)
    };
    match is_known {
        true => next.run(request).await,
        false => (StatusCode::UNAUTHORIZED, "not authorized").into_response(),
    }
}

async fn create(State(store): Shared, Path(project): Path<String>, Json(body): Json<Value>) -> Response {
    answer(store.create(&project, body))
}

async fn update(
    State(store): Shared,
    Path((project, id)): Path<(String, String)>,
    Json(body): Json<Value>,
) -> Response {
    answer(store.update(&project, &id, &body))
}

async fn read(State(store): Shared, Path((project, id)): Path<(String, String)>) -> Response {
    let known = store.known();
    let entry = known.entries.get(&id).filter(|entry| entry["project"] == project);
    answer(entry.cloned().map(shown).ok_or_else(missing))
}

async fn delete(State(store): Shared, Path((project, id)): Path<(String, String)>) -> Response {
    store.delete(&project, &id).map_or_else(refuse, |()| StatusCode::NO_CONTENT.into_response())
}

async fn delete_many(State(store): Shared, Path(project): Path<String>, Json(body): Json<Value>) -> Response {
    for id in body["ids"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let _ = store.delete(&project, id); // those that are not there are passed over
    }
    StatusCode::NO_CONTENT.into_response()
}

async fn list(State(store): Shared, Path(project): Path<String>, Query(pairs): Pairs) -> Response {
    let asked = match Asked::read(pairs) {
        Ok(asked) => asked,
        Err(error) => return refuse(error),
    };
    let is_planted = {
        let mut known = store.known();
        known.revision += i64::from(known.is_busy);
        known.planted.is_some()
    };
    let mut changes = store.changes.subscribe();
    let is_current = asked.revision.is_none_or(|revision| revision == store.known().revision);
    let Some(wait) = asked.wait.filter(|_| is_current && !is_planted) else {
        let is_news = asked.revision.is_none() || !is_current || is_planted;
        return if is_news { store.list(&project, &asked) } else { StatusCode::NOT_MODIFIED.into_response() };
    };
    if !asked.key.is_empty() {
        return refuse((INVALID, "can not accept key params, when using wait".to_owned()));
    }
    let changed = async {
        loop {
            match changes.recv().await {
                Ok((of, labels)) if of != project || !asked.is_of(&labels) => {}
                _ => return, // also where there were too many to look at
            }
        }
    };
    match timeout(wait, changed).await {
        Ok(()) => store.list(&project, &asked),
        Err(_) => StatusCode::NOT_MODIFIED.into_response(),
    }
}
