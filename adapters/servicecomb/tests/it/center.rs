//! A service center: the real one that `CHASSIS_PEER_SERVICECENTER` names, `http://host:port`; else a stand-in of its API
//! in version 4, for the real one can't be had everywhere.
//!
//! The stand-in does what the real one was seen to do: it raises the heartbeat interval, answers 304 to the revision of before,
//! answers from a cache that is a moment older than its pushes, notes a dependency a while after it was asked, and pushes
//! only what a consumer depends on. The client library of go-chassis is checked against it, so that both agree about the API.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    extract::{
        Path, Query, Request, State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket},
    },
    http::{HeaderMap, StatusCode, Uri},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, mpsc::UnboundedSender},
    time::{Instant, sleep},
};

use crate::{
    host::{Host, ask, ask_now},
    trials::{NotRun, Ran},
};

/// A service center. A stand-in has a thread of its own, and can be ended or blocked at once.
pub(crate) struct Center {
    /// Its address, which a restart keeps.
    pub(crate) address: String,
    /// The application of the test: a real one keeps the services of other tests.
    pub(crate) app: String,
    /// Of a stand-in.
    pub(crate) store: Arc<Store>,
    /// `None`: it is a real one.
    host: Option<Host>,
}

/// The differences from the defaults of the real one.
#[derive(Clone, Debug)]
pub(crate) struct CenterConfig {
    /// Shorter intervals are raised to these seconds.
    pub(crate) min_interval: u64,
    /// Fewer missing heartbeats are raised to this number.
    pub(crate) min_times: u64,
    /// A user and a password; requests need a token then.
    pub(crate) user: Option<(String, String)>,
    /// An access key, and the hash of its secret key; requests need both then.
    pub(crate) key: Option<(String, String)>,
    /// How long after a request its dependency is noted.
    pub(crate) noted_after: Duration,
    /// How long answers come from the cache after a push.
    pub(crate) stale_for: Duration,
    /// The most services, instances, and schemas of a service.
    pub(crate) quotas: [usize; 3],
}

/// All that it knows.
pub(crate) struct Store {
    pub(crate) config: CenterConfig,
    state: Mutex<Known>,
    /// A dependency was noted.
    noted: Notify,
}

#[derive(Default)]
struct Known {
    /// Counts up with each change.
    revision: u64,
    /// For ids.
    number: u64,
    services: BTreeMap<String, Value>,
    /// Schemas by the id of a service and their own.
    schemas: BTreeMap<(String, String), Value>,
    instances: BTreeMap<(String, String), Entry>,
    /// The consumer, and what it depends on: application and name.
    dependencies: HashMap<String, BTreeSet<(String, String)>>,
    watchers: Vec<(String, UnboundedSender<Message>)>,
    /// Lists by application, name and environment.
    cache: HashMap<(String, String, String), (Instant, Answered)>,
    tokens: BTreeSet<String>,
    /// The requests, for the tests: method and path with the query.
    pub(crate) log: Vec<String>,
}

/// The instances, and the revision.
type Answered = (Vec<Value>, String);

struct Entry {
    instance: Value,
    ttl: Duration,
    until: Instant,
    revision: u64,
}

type Shared = State<Arc<Store>>;
type Params = Path<HashMap<String, String>>;
type Pairs = Query<HashMap<String, String>>;
/// An answer, or the number and the words of an error.
type Result<T> = std::result::Result<T, (u32, String)>;

// === impl Center ===

impl Default for CenterConfig {
    fn default() -> Self {
        CenterConfig {
            min_interval: 5,
            min_times: 3,
            user: None,
            key: None,
            noted_after: Duration::from_millis(50),
            stale_for: Duration::from_millis(20),
            quotas: [50_000, 150_000, 100],
        }
    }
}

/// The variable with the URL of a real one.
const REAL: &str = "CHASSIS_PEER_SERVICECENTER";
/// The paths of its API begin so.
const BASE: &str = "/v4/default/registry";

/// For tests of faults, and of what a real one does not show.
pub(crate) fn needs_stand_in() -> Ran {
    match std::env::var_os(REAL) {
        Some(_) => Err(NotRun(format!("{REAL} names a real service center; the test plants a fault"))),
        None => Ok(()),
    }
}

impl Center {
    pub(crate) async fn start() -> Center {
        let Ok(url) = std::env::var(REAL) else { return Self::start_with(CenterConfig::default()).await };
        let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
        let app = format!("chassis-{}-{since}", NEXT.fetch_add(1, Relaxed));
        let store = Store { config: CenterConfig::default(), state: Mutex::default(), noted: Notify::new() };
        Center { address, app, store: Arc::new(store), host: None }
    }

    /// A stand-in; see [`needs_stand_in`].
    pub(crate) async fn start_with(config: CenterConfig) -> Center {
        let store = Arc::new(Store { config, state: Mutex::default(), noted: Notify::new() });
        let (address, app) = (String::new(), "default".to_owned());
        let mut center = Center { address, app, store, host: Some(Host::new()) };
        center.run().await;
        center
    }

    /// Waits until a consumer is noted to depend on `service`: from then on its changes are pushed.
    pub(crate) async fn has_noted(&self, service: &str) {
        if self.host.is_none() {
            while !self.has_noted_now(service).await {
                sleep(Duration::from_millis(100)).await; // it pushes nothing about that
            }
            return;
        }
        loop {
            let noted = self.store.noted.notified();
            let is_it = |(_, name): &(String, String)| name == service;
            if self.store.known().dependencies.values().flatten().any(is_it) {
                return;
            }
            noted.await;
        }
    }

    /// Starts it, again at the same address and with what it knew.
    pub(crate) async fn run(&mut self) {
        let store = self.store.clone();
        let host = self.host.as_mut().unwrap();
        host.run(router(self.store.clone()), move || store.expire()).await;
        self.address = host.address.clone();
    }

    /// Ends it at once, with all its connections.
    pub(crate) fn kill(&mut self) {
        self.host.as_mut().unwrap().kill();
        self.store.known().watchers.clear();
    }

    /// Forgets everything, while it has ended.
    pub(crate) fn forget(&self) {
        let mut known = self.store.known();
        // Ids go on: those of the next life are others.
        *known = Known { number: known.number, revision: known.revision, ..Known::default() };
    }

    /// Blocks it until the sender is dropped.
    pub(crate) fn freeze(&self) -> mpsc::Sender<()> {
        self.host.as_ref().unwrap().freeze()
    }

    /// The entries of the service `name`.
    pub(crate) fn entries(&self, name: &str) -> Vec<Value> {
        if self.host.is_none() {
            let services = self.services().into_iter().filter(|service| service["serviceName"] == name);
            let instances = services.flat_map(|service| {
                let id = service["serviceId"].as_str().unwrap().to_owned();
                self.all(&format!("microservices/{id}/instances?noCache=1"), "instances")
            });
            return instances.collect();
        }
        let known = self.store.known();
        let is_of = |service: &str| known.services.get(service).is_some_and(|it| it["serviceName"] == name);
        let entries = known.instances.iter().filter(|((service, _), _)| is_of(service));
        entries.map(|(_, entry)| entry.instance.clone()).collect()
    }

    /// The services, as they were registered.
    pub(crate) fn services(&self) -> Vec<Value> {
        if self.host.is_none() {
            let all = self.all("microservices", "services").into_iter();
            return all.filter(|service| service["appId"] == self.app.as_str()).collect();
        }
        self.store.known().services.values().cloned().collect()
    }

    /// Registers an entry by hand, without a bound of its time; its place.
    pub(crate) fn put(&self, mut service: Value, instance: Value) -> (String, String) {
        service["appId"] = self.app.as_str().into();
        if self.host.is_none() {
            let put = |path: &str, body: Value, id: &str| {
                let (status, answer) =
                    ask_now(&self.address, "POST", &format!("{BASE}/{path}"), &body.to_string());
                assert_eq!(status, 200, "{answer}");
                answer[id].as_str().unwrap().to_owned()
            };
            let service = put("microservices", json!({ "service": service }), "serviceId");
            let path = format!("microservices/{service}/instances");
            let instance = put(&path, json!({ "instance": instance }), "instanceId");
            return (service, instance);
        }
        let service = self.store.register_service(service).unwrap();
        let id = self.store.register_instance(&service, instance).unwrap();
        let key = (service, id);
        let mut known = self.store.known();
        known.instances.get_mut(&key).unwrap().until += Duration::from_secs(86_400);
        key
    }

    /// Takes an entry off.
    pub(crate) fn remove(&self, (service, instance): &(String, String)) {
        if self.host.is_none() {
            let path = format!("{BASE}/microservices/{service}/instances/{instance}");
            let (status, answer) = ask_now(&self.address, "DELETE", &path, "");
            assert_eq!(status, 200, "{answer}");
            return;
        }
        self.store.remove(service, instance).unwrap();
    }

    /// Somebody sets the status of an entry.
    pub(crate) fn set_status(&self, (service, instance): &(String, String), status: &str) {
        if self.host.is_none() {
            let path = format!("{BASE}/microservices/{service}/instances/{instance}/status?value={status}");
            let (status, answer) = ask_now(&self.address, "PUT", &path, "");
            assert_eq!(status, 200, "{answer}");
            return;
        }
        self.store.change(service, instance, "status", status.into()).unwrap();
    }

    /// Refuses all tokens that were given out.
    pub(crate) fn revoke(&self) {
        self.store.known().tokens.clear();
    }

    /// Cuts the connections of pushes, if it is a stand-in.
    pub(crate) fn cut(&self) {
        self.store.known().watchers.clear();
    }

    /// The requests since the last time, to a stand-in.
    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.store.known().log)
    }

    /// A list of a real one.
    fn all(&self, path: &str, name: &str) -> Vec<Value> {
        let (status, answer) = ask_now(&self.address, "GET", &format!("{BASE}/{path}"), "");
        assert_eq!(status, 200, "{path}: {answer}");
        answer[name].as_array().cloned().unwrap_or_default()
    }

    async fn has_noted_now(&self, service: &str) -> bool {
        for consumer in self.services() {
            let id = consumer["serviceId"].as_str().unwrap();
            let path = format!("{BASE}/microservices/{id}/providers");
            let (_, answer) = ask(&self.address, "GET", &path, "").await;
            let providers = answer["providers"].as_array().cloned().unwrap_or_default();
            if providers.iter().any(|provider| provider["serviceName"] == service) {
                return true;
            }
        }
        false
    }
}

// === impl Store ===

const INVALID: u32 = 400_001;
const NO_QUOTA: u32 = 400_100;
const NO_SERVICE: u32 = 400_012;
const NO_SCHEMA: u32 = 400_016;
const NO_INSTANCE: u32 = 400_017;

impl Store {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.state.lock().unwrap()
    }

    fn register_service(&self, mut service: Value) -> Result<String> {
        let text = |key: &str| service[key].as_str().unwrap_or_default().to_owned();
        let default = |text: String, or: &str| if text.is_empty() { or.to_owned() } else { text };
        let (app, name) = (default(text("appId"), "default"), text("serviceName"));
        let (version, environment) = (default(text("version"), "0.0.1"), text("environment"));
        check(is_name(&app, 160) && is_name(&name, 128), "the name of the service")?;
        check(is_version(&version), "the version of the service")?;
        check(ENVIRONMENTS.contains(&environment.as_str()), "the environment of the service")?;
        let mut known = self.known();
        // Before it looks whether the service is there, as the real one.
        within(self.config.quotas[0], known.services.len(), "SERVICE")?;
        let key = |service: &Value| {
            ["appId", "serviceName", "version", "environment"]
                .map(|key| service[key].as_str().unwrap_or_default().to_owned())
        };
        let ours = [app, name, version, environment];
        if let Some((id, _)) = known.services.iter().find(|(_, other)| key(other) == ours) {
            return Ok(id.clone());
        }
        let given = text("serviceId");
        let id = if given.is_empty() { known.id("s") } else { given };
        for (key, value) in ["appId", "serviceName", "version", "environment"].iter().zip(ours) {
            service[*key] = value.into();
        }
        service["serviceId"] = id.as_str().into();
        known.revision += 1;
        known.cache.clear();
        known.services.insert(id.clone(), service);
        Ok(id)
    }

    fn register_instance(&self, service: &str, mut instance: Value) -> Result<String> {
        let text = |key: &str| instance[key].as_str().unwrap_or_default().to_owned();
        let (host, status, given) = (text("hostName"), text("status"), text("instanceId"));
        let is_text = |text: &str| !text.is_empty() && !text.contains(char::is_whitespace);
        check(is_text(&host) && host.len() <= 64, "hostName")?;
        check(STATUSES.contains(&status.as_str()), "status")?;
        check(given.len() <= 64 && given.bytes().all(is_inner), "instanceId")?;
        let endpoints = instance["endpoints"].as_array().cloned().unwrap_or_default();
        check(endpoints.iter().all(|endpoint| endpoint.as_str().is_some_and(is_text)), "endpoints")?;
        if let Some(place) = instance.get("dataCenterInfo").filter(|place| !place.is_null()) {
            let is_part = |key: &str| {
                let part = place[key].as_str().unwrap_or_default();
                (1..=128).contains(&part.len()) && part.bytes().all(is_inner)
            };
            check(["name", "region", "availableZone"].iter().all(|key| is_part(key)), "dataCenterInfo")?;
        }
        let number = |value: &Value, or: u64| value.as_u64().unwrap_or(or);
        let (mut interval, mut times) = (30, 3);
        if let Some(check_of) = instance.get("healthCheck").filter(|it| !it.is_null()) {
            check(check_of["mode"] == "push" || check_of["mode"] == "pull", "healthCheck.mode")?;
            interval = number(&check_of["interval"], 0);
            check(interval >= 1, "healthCheck.interval")?;
            (interval, times) = (
                interval.max(self.config.min_interval),
                number(&check_of["times"], 0).max(self.config.min_times),
            );
        }
        let mut known = self.known();
        within(self.config.quotas[1], known.instances.len(), "INSTANCE")?;
        let Some(version) = known.services.get(service).map(|service| service["version"].clone()) else {
            return Err((NO_SERVICE, "Invalid 'serviceID' in request body.".to_owned()));
        };
        let ttl = Duration::from_secs(interval * (times + 1));
        let until = Instant::now() + ttl;
        let key = (service.to_owned(), given.clone());
        if let Some(entry) = known.instances.get_mut(&key) {
            entry.until = until; // a heartbeat: what it says is not taken over
            return Ok(given);
        }
        let id = if given.is_empty() { known.id("i") } else { given };
        instance["instanceId"] = id.as_str().into();
        instance["serviceId"] = service.into();
        instance["version"] = version;
        instance["healthCheck"] = json!({ "mode": "push", "interval": interval, "times": times });
        if instance["status"].as_str().unwrap_or_default().is_empty() {
            instance["status"] = "UP".into();
        }
        if instance["properties"].is_null() {
            instance["properties"] = json!({});
        }
        known.revision += 1;
        let revision = known.revision;
        let key = (service.to_owned(), id.clone());
        known.instances.insert(key, Entry { instance: instance.clone(), ttl, until, revision });
        known.push("CREATE", service, &instance, self.config.stale_for);
        Ok(id)
    }

    fn change(&self, service: &str, instance: &str, key: &str, value: Value) -> Result<()> {
        let mut known = self.known();
        let revision = known.revision + 1;
        let place = (service.to_owned(), instance.to_owned());
        let entry = known.instances.get_mut(&place).ok_or_else(no_instance)?;
        entry.instance[key] = value;
        entry.revision = revision;
        let instance = entry.instance.clone();
        known.revision = revision;
        known.push("UPDATE", service, &instance, self.config.stale_for);
        Ok(())
    }

    fn heartbeat(&self, service: &str, instance: &str) -> Result<()> {
        let mut known = self.known();
        let place = (service.to_owned(), instance.to_owned());
        let entry = known.instances.get_mut(&place).ok_or_else(no_instance)?;
        entry.until = Instant::now() + entry.ttl;
        Ok(())
    }

    fn remove(&self, service: &str, instance: &str) -> Result<()> {
        let mut known = self.known();
        let place = (service.to_owned(), instance.to_owned());
        let entry = known.instances.remove(&place).ok_or_else(no_instance)?;
        known.revision += 1;
        known.push("DELETE", service, &entry.instance, self.config.stale_for);
        Ok(())
    }

    /// Takes off what had no heartbeat for its time.
    fn expire(&self) {
        let now = Instant::now();
        let mut known = self.known();
        let is_over = |(_, entry): &(&(String, String), &Entry)| entry.until <= now;
        let over: Vec<_> = known.instances.iter().filter(is_over).map(|(key, _)| key.clone()).collect();
        for key in over {
            let entry = known.instances.remove(&key).unwrap();
            known.revision += 1;
            known.push("DELETE", &key.0, &entry.instance, self.config.stale_for);
        }
    }

    /// The instances of a service, and their revision.
    fn find(self: &Arc<Self>, consumer: &str, asked: &HashMap<String, String>) -> Result<Answered> {
        let text = |key: &str| asked.get(key).cloned().unwrap_or_default();
        let (app, name, mut environment) = (text("appId"), text("serviceName"), text("env"));
        check(is_name(&app, 160) && is_name(&name, 289), "the name of the service")?;
        let mut known = self.known();
        if !consumer.is_empty() {
            let Some(consumer) = known.services.get(consumer) else {
                return Err((NO_SERVICE, format!("Consumer[{consumer}] does not exist.")));
            };
            environment = consumer["environment"].as_str().unwrap_or_default().to_owned();
        }
        let is_it = |service: &Value| {
            service["appId"] == app && service["serviceName"] == name && service["environment"] == environment
        };
        let services: BTreeSet<String> =
            known.services.iter().filter(|(_, service)| is_it(service)).map(|(id, _)| id.clone()).collect();
        if services.is_empty() {
            return Err((NO_SERVICE, "provider does not exist".to_owned()));
        }
        if !consumer.is_empty() {
            let (store, consumer) = (self.clone(), consumer.to_owned());
            let (app, name) = (app.clone(), name.clone());
            tokio::spawn(async move {
                sleep(store.config.noted_after).await;
                store.known().dependencies.entry(consumer).or_default().insert((app, name));
                store.noted.notify_waiters();
            });
        }
        let (key, is_fresh) = ((app, name, environment), asked.get("noCache").is_some_and(|it| it == "1"));
        let now = Instant::now();
        if let Some((until, answered)) = known.cache.get(&key)
            && !is_fresh
            && now < *until
        {
            return Ok(answered.clone());
        }
        let entries: Vec<_> =
            known.instances.iter().filter(|((service, _), _)| services.contains(service)).collect();
        let newest = entries.iter().map(|(_, entry)| entry.revision).max().unwrap_or(0);
        let revision = format!("{newest}.{}", entries.len());
        let instances: Vec<_> = entries.iter().map(|(_, entry)| entry.instance.clone()).collect();
        let answered = (instances, revision);
        known.cache.insert(key, (now + Duration::from_secs(120), answered.clone()));
        Ok(answered)
    }
}

impl Known {
    fn id(&mut self, kind: &str) -> String {
        self.number += 1;
        format!("{kind}{:08x}", self.number)
    }

    /// Pushes to those who depend on the service.
    fn push(&mut self, action: &str, service: &str, instance: &Value, stale_for: Duration) {
        let Some(of) = self.services.get(service) else { return };
        let text = |key: &str| of[key].as_str().unwrap_or_default().to_owned();
        let (app, name) = (text("appId"), text("serviceName"));
        let push = json!({
            "action": action,
            "key": {
                "tenant": "default/default", "environment": of["environment"], "appId": app,
                "serviceName": name, "version": of["version"] },
            "instance": instance,
        });
        let (push, dependencies) = (push.to_string(), &self.dependencies);
        let place = (app, name);
        self.watchers.retain(|(consumer, to)| {
            let depends = dependencies.get(consumer).is_some_and(|all| all.contains(&place));
            !depends || to.send(Message::text(push.clone())).is_ok()
        });
        // The cache is cleared a moment after the push.
        let until = Instant::now() + stale_for;
        for ((app, name, _), (stale, _)) in &mut self.cache {
            if (app, name) == (&place.0, &place.1) {
                *stale = until.min(*stale);
            }
        }
    }
}

const ENVIRONMENTS: [&str; 5] = ["", "development", "testing", "acceptance", "production"];
const STATUSES: [&str; 6] = ["", "UP", "DOWN", "STARTING", "TESTING", "OUTOFSERVICE"];

fn no_instance() -> (u32, String) {
    (NO_INSTANCE, "Instance does not exist".to_owned())
}

fn check(is_valid: bool, what: &str) -> Result<()> {
    if is_valid { Ok(()) } else { Err((INVALID, format!("Invalid parameter(s): {what}"))) }
}

/// Whether there is a place for one more.
fn within(most: usize, used: usize, what: &str) -> Result<()> {
    match used < most {
        true => Ok(()),
        false => Err((
            NO_QUOTA,
            format!("no quota to create {what}, max num is {most}, curNum is {used}, apply num is 1"),
        )),
    }
}

fn is_inner(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-.".contains(&byte)
}

fn is_name(name: &str, most: usize) -> bool {
    let is_outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    name.len() <= most
        && name.bytes().all(is_inner)
        && is_outer(name.as_bytes().first())
        && is_outer(name.as_bytes().last())
}

fn is_version(version: &str) -> bool {
    let mut parts = version.split('.');
    version.len() <= 64
        && parts.clone().count() <= 4
        && parts.all(|part| !part.starts_with('+') && part.parse::<i16>().is_ok_and(|number| number >= 0))
}

// === The API ===

fn router(store: Arc<Store>) -> Router {
    let service = "/v4/{project}/registry/microservices/{service}";
    let instance = format!("{service}/instances/{{instance}}");
    let at = |path: &str| format!("/v4/{{project}}/registry/{path}");
    Router::new()
        .route("/v4/token", post(token))
        .route(&at("health"), get(health))
        .route(&at("microservices"), post(post_service).get(get_services))
        .route(&at("existence"), get(existence))
        .route(&at("instances"), get(find))
        .route(&at("instances/action"), post(find_many))
        .route(&at("heartbeats"), put(heartbeats))
        .route(service, get(get_service).delete(delete_service))
        .route(&format!("{service}/properties"), put(put_service_properties))
        .route(&format!("{service}/schemas"), post(post_schemas).get(get_schemas))
        .route(
            &format!("{service}/schemas/{{schema}}"),
            get(get_schema).put(put_schema).delete(delete_schema),
        )
        .route(&format!("{service}/instances"), post(post_instance).get(get_instances))
        .route(&instance, get(get_instance).delete(delete_instance))
        .route(&format!("{instance}/heartbeat"), put(put_heartbeat).get(watch_heartbeat))
        .route(&format!("{instance}/properties"), put(put_properties))
        .route(&format!("{instance}/status"), put(put_status))
        .route(&format!("{service}/watcher"), get(watch))
        .layer(from_fn_with_state(store.clone(), admit))
        .with_state(store)
}

fn answer(result: Result<Value>) -> Response {
    match result {
        Ok(Value::Null) => StatusCode::OK.into_response(),
        Ok(body) => Json(body).into_response(),
        Err((code, words)) => refuse(code, &words),
    }
}

fn refuse(code: u32, words: &str) -> Response {
    let status = StatusCode::from_u16((code / 1_000) as u16).unwrap();
    (status, Json(json!({ "errorCode": code.to_string(), "errorMessage": words, "detail": words })))
        .into_response()
}

/// Logs a request, and asks for credentials where they are needed.
async fn admit(State(store): Shared, request: Request, next: Next) -> Response {
    match refusal(&store, request.method().as_str(), request.uri(), request.headers()) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    }
}

fn refusal(store: &Store, method: &str, uri: &Uri, headers: &HeaderMap) -> Option<Response> {
    let header = |name: &str| headers.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let mut known = store.known();
    known.log.push(format!("{method} {uri}"));
    let path = uri.path();
    if path == "/v4/token" {
        return None;
    }
    if header("x-domain-name").is_empty() {
        return Some(refuse(INVALID, "Header does not contain domain."));
    }
    let is_known = match (&store.config.user, &store.config.key) {
        (Some(_), _) => {
            let token = header("authorization").strip_prefix("Bearer ").unwrap_or_default();
            known.tokens.contains(token)
        }
        (None, Some((key, hash))) => {
            header("x-service-ak") == key
                && header("x-service-shaaksk") == hash
                && header("x-service-project") == "default"
        }
        (None, None) => true,
    };
    let is_open = path.ends_with("/health");
    (!is_open && !is_known).then(|| refuse(401_001, "Unauthorized"))
}

async fn token(State(store): Shared, Json(body): Json<Value>) -> Response {
    let Some((user, password)) = &store.config.user else { return StatusCode::NOT_FOUND.into_response() };
    if body["name"] != *user || body["password"] != *password {
        return refuse(401_201, "wrong user name or password");
    }
    let mut known = store.known();
    let token = known.id("token-");
    known.tokens.insert(token.clone());
    Json(json!({ "token": token })).into_response()
}

async fn health() -> Response {
    Json(json!({ "instances": [] })).into_response()
}

async fn post_service(State(store): Shared, Json(body): Json<Value>) -> Response {
    let registered = store.register_service(body["service"].clone()).and_then(|id| {
        for instance in body["instances"].as_array().into_iter().flatten() {
            store.register_instance(&id, instance.clone())?;
        }
        Ok(json!({ "serviceId": id }))
    });
    answer(registered)
}

async fn get_services(State(store): Shared) -> Response {
    let services: Vec<_> = store.known().services.values().cloned().collect();
    answer(Ok(json!({ "services": services })))
}

async fn get_service(State(store): Shared, Path(params): Params) -> Response {
    let known = store.known();
    let service = known.services.get(&params["service"]);
    answer(
        service.map(|it| json!({ "service": it })).ok_or((NO_SERVICE, "Service does not exist.".to_owned())),
    )
}

async fn delete_service(State(store): Shared, Path(params): Params) -> Response {
    let service = &params["service"];
    let instances: Vec<_> = store.known().instances.keys().filter(|(of, _)| of == service).cloned().collect();
    for (service, instance) in instances {
        let _ = store.remove(&service, &instance);
    }
    let gone = store.known().services.remove(service);
    answer(gone.map(|_| Value::Null).ok_or((NO_SERVICE, "Service does not exist.".to_owned())))
}

async fn put_service_properties(
    State(store): Shared,
    Path(params): Params,
    Json(body): Json<Value>,
) -> Response {
    let mut known = store.known();
    let service = known.services.get_mut(&params["service"]);
    let changed = service.map(|service| service["properties"] = body["properties"].clone());
    answer(changed.map(|()| Value::Null).ok_or((NO_SERVICE, "Service does not exist.".to_owned())))
}

async fn existence(State(store): Shared, Query(asked): Pairs) -> Response {
    let text = |key: &str| asked.get(key).cloned().unwrap_or_default();
    let known = store.known();
    if text("type") == "schema" {
        let schema = known.schemas.get(&(text("serviceId"), text("schemaId")));
        let found = schema.map(|it| json!({ "schemaId": text("schemaId"), "summary": it["summary"] }));
        return answer(found.ok_or((NO_SCHEMA, "Schema does not exist".to_owned())));
    }
    let is_it = |service: &Value| {
        service["appId"] == text("appId")
            && service["serviceName"] == text("serviceName")
            && service["environment"] == text("env")
            && (service["version"] == text("version") || text("version").ends_with('+'))
    };
    let found = known.services.iter().rfind(|(_, service)| is_it(service));
    answer(
        found
            .map(|(id, _)| json!({ "serviceId": id }))
            .ok_or((NO_SERVICE, "Service does not exist.".to_owned())),
    )
}

async fn post_schemas(State(store): Shared, Path(params): Params, Json(body): Json<Value>) -> Response {
    let mut known = store.known();
    let service = &params["service"];
    if !known.services.contains_key(service) {
        return refuse(NO_SERVICE, "Service does not exist.");
    }
    for schema in body["schemas"].as_array().into_iter().flatten() {
        let id = schema["schemaId"].as_str().unwrap_or_default().to_owned();
        known.schemas.insert((service.clone(), id), schema.clone());
    }
    answer(Ok(Value::Null))
}

async fn put_schema(State(store): Shared, Path(params): Params, Json(mut body): Json<Value>) -> Response {
    let mut known = store.known();
    let (service, schema) = (&params["service"], &params["schema"]);
    let text = |key: &str| body[key].as_str().unwrap_or_default();
    let is_summary = |text: &str| text.len() <= 128 && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let checked = check(is_name(schema, 160), "SchemaId")
        .and_then(|()| check(!text("schema").is_empty(), "Schema"))
        .and_then(|()| check(is_summary(text("summary")), "Summary"));
    if let Err((code, words)) = checked {
        return refuse(code, &words);
    }
    let used = known.schemas.keys().filter(|(of, _)| of == service).count();
    let Some(of) = known.services.get_mut(service) else {
        return refuse(NO_SERVICE, "Service does not exist.");
    };
    // The service lists the ids of its schemas; a new one needs a place among those that are allowed.
    let ids = of["schemas"].as_array().cloned().unwrap_or_default();
    if !ids.iter().any(|id| id == schema) {
        if let Err((code, words)) = within(store.config.quotas[2], used, "SCHEMA") {
            return refuse(code, &words);
        }
        of["schemas"] = ids.into_iter().chain([schema.as_str().into()]).collect();
    }
    body["schemaId"] = schema.as_str().into();
    known.schemas.insert((service.clone(), schema.clone()), body);
    answer(Ok(Value::Null))
}

async fn delete_schema(State(store): Shared, Path(params): Params) -> Response {
    let gone = store.known().schemas.remove(&(params["service"].clone(), params["schema"].clone()));
    answer(gone.map(|_| Value::Null).ok_or((NO_SCHEMA, "Schema does not exist".to_owned())))
}

async fn get_schemas(State(store): Shared, Path(params): Params, Query(asked): Pairs) -> Response {
    let known = store.known();
    if !known.services.contains_key(&params["service"]) {
        return refuse(NO_SERVICE, "Service does not exist.");
    }
    let has_text = asked.get("withSchema").is_some_and(|with| with == "1");
    let one = |schema: &Value| {
        let mut listed = json!({ "schemaId": schema["schemaId"], "summary": schema["summary"] });
        if has_text {
            listed["schema"] = schema["schema"].clone();
        }
        listed
    };
    let ours = known.schemas.iter().filter(|((service, _), _)| *service == params["service"]);
    // In no order, as the real one.
    let schemas: Vec<_> = ours.rev().map(|(_, schema)| one(schema)).collect();
    answer(Ok(json!({ "schemas": schemas })))
}

async fn get_schema(State(store): Shared, Path(params): Params) -> Response {
    let known = store.known();
    let schema = known.schemas.get(&(params["service"].clone(), params["schema"].clone()));
    let Some(schema) = schema else { return refuse(NO_SCHEMA, "Schema does not exist") };
    let summary = schema["summary"].as_str().unwrap_or_default().to_owned();
    ([("x-schema-summary", summary)], Json(json!({ "schema": schema["schema"] }))).into_response()
}

async fn post_instance(State(store): Shared, Path(params): Params, Json(body): Json<Value>) -> Response {
    let registered = store.register_instance(&params["service"], body["instance"].clone());
    answer(registered.map(|id| json!({ "instanceId": id })))
}

async fn get_instances(State(store): Shared, Path(params): Params) -> Response {
    let known = store.known();
    let ours = known.instances.iter().filter(|((service, _), _)| *service == params["service"]);
    let instances: Vec<_> = ours.map(|(_, entry)| entry.instance.clone()).collect();
    answer(Ok(json!({ "instances": instances })))
}

async fn get_instance(State(store): Shared, Path(params): Params) -> Response {
    let known = store.known();
    let entry = known.instances.get(&(params["service"].clone(), params["instance"].clone()));
    answer(entry.map(|entry| json!({ "instance": entry.instance })).ok_or_else(no_instance))
}

async fn delete_instance(State(store): Shared, Path(params): Params) -> Response {
    answer(store.remove(&params["service"], &params["instance"]).map(|()| Value::Null))
}

async fn put_heartbeat(State(store): Shared, Path(params): Params) -> Response {
    answer(store.heartbeat(&params["service"], &params["instance"]).map(|()| Value::Null))
}

async fn heartbeats(State(store): Shared, Json(body): Json<Value>) -> Response {
    let one = |element: &Value| {
        let text = |key: &str| element[key].as_str().unwrap_or_default();
        let error = store.heartbeat(text("serviceId"), text("instanceId")).err();
        let words = error.map(|(_, words)| words).unwrap_or_default();
        json!({ "serviceId": text("serviceId"), "instanceId": text("instanceId"), "errMessage": words })
    };
    let all: Vec<_> = body["instances"].as_array().into_iter().flatten().map(one).collect();
    answer(Ok(json!({ "instances": all })))
}

async fn put_properties(State(store): Shared, Path(params): Params, Json(body): Json<Value>) -> Response {
    let (service, instance) = (&params["service"], &params["instance"]);
    answer(store.change(service, instance, "properties", body["properties"].clone()).map(|()| Value::Null))
}

async fn put_status(State(store): Shared, Path(params): Params, Query(asked): Pairs) -> Response {
    let status = asked.get("value").cloned().unwrap_or_default();
    let changed = check(!status.is_empty() && STATUSES.contains(&status.as_str()), "status")
        .and_then(|()| store.change(&params["service"], &params["instance"], "status", status.into()));
    answer(changed.map(|()| Value::Null))
}

fn consumer(headers: &HeaderMap) -> String {
    headers.get("x-consumerid").and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned()
}

async fn find(State(store): Shared, headers: HeaderMap, Query(asked): Pairs) -> Response {
    match store.find(&consumer(&headers), &asked) {
        Err((code, words)) => refuse(code, &words),
        Ok((instances, revision)) => {
            let is_same = asked.get("rev").is_some_and(|rev| *rev == revision);
            let revision = [("x-resource-revision", revision)];
            match is_same {
                true => (StatusCode::NOT_MODIFIED, revision).into_response(),
                false => (revision, Json(json!({ "instances": instances }))).into_response(),
            }
        }
    }
}

async fn find_many(State(store): Shared, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    let consumer = consumer(&headers);
    let (mut updated, mut same, mut failed) = (Vec::new(), Vec::new(), BTreeMap::<u32, Vec<usize>>::new());
    for (index, one) in body["services"].as_array().into_iter().flatten().enumerate() {
        let text = |key: &str| one["service"][key].as_str().unwrap_or_default().to_owned();
        let asked = HashMap::from([
            ("appId".to_owned(), text("appId")),
            ("serviceName".to_owned(), text("serviceName")),
            ("env".to_owned(), text("environment")),
        ]);
        match store.find(&consumer, &asked) {
            Err((code, _)) => failed.entry(code).or_default().push(index),
            Ok((_, revision)) if one["rev"] == revision => same.push(index),
            Ok((instances, revision)) => {
                updated.push(json!({ "index": index, "rev": revision, "instances": instances }));
            }
        }
    }
    let error =
        |code: u32| json!({ "errorCode": code.to_string(), "errorMessage": "Micro-service does not exist" });
    let failed: Vec<_> = failed
        .into_iter()
        .map(|(code, indexes)| json!({ "indexes": indexes, "error": error(code) }))
        .collect();
    answer(Ok(json!({ "services": { "failed": failed, "notModified": same, "updated": updated } })))
}

async fn watch(State(store): Shared, Path(params): Params, socket: WebSocketUpgrade) -> Response {
    let consumer = params["service"].clone();
    socket.on_upgrade(move |mut socket| async move {
        if !store.known().services.contains_key(&consumer) {
            let _ = socket.send(Message::text("service does not exist")).await;
            return;
        }
        let (to, mut pushes) = tokio::sync::mpsc::unbounded_channel();
        store.known().watchers.push((consumer, to));
        loop {
            tokio::select! {
                push = pushes.recv() => {
                    let Some(push) = push else { return };
                    if socket.send(push).await.is_err() {
                        return;
                    }
                }
                frame = socket.recv() => match frame {
                    Some(Ok(_)) => {}
                    _ => return,
                },
            }
        }
    })
}

/// Keeps an instance by pings, the other way of go-chassis.
async fn watch_heartbeat(State(store): Shared, Path(params): Params, socket: WebSocketUpgrade) -> Response {
    let (service, instance) = (params["service"].clone(), params["instance"].clone());
    socket.on_upgrade(move |mut socket: WebSocket| async move {
        loop {
            if store.heartbeat(&service, &instance).is_err() {
                let frame = CloseFrame { code: 4_001, reason: "the instance does not exist".into() };
                let _ = socket.send(Message::Close(Some(frame))).await;
                return;
            }
            tokio::select! {
                () = sleep(Duration::from_millis(500)) => {
                    if socket.send(Message::Ping(Vec::new().into())).await.is_err() {
                        return;
                    }
                }
                frame = socket.recv() => match frame {
                    Some(Ok(_)) => {}
                    _ => return,
                },
            }
        }
    })
}
