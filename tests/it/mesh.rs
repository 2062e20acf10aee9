//! Services, those who call them, and the network between, in one process and on the paused clock.
//!
//! Every instance serves the same operations over gRPC and over REST, on one port, and does as a test
//! tells it. A scenario says *what* is called; a [`Wire`] says over which protocol.
#![allow(dead_code, unused_macros, unused_imports, reason = "each binary uses a part of it")]
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use chassis::{
    Channel, Chassis, Code, Error, HttpClient, Problem, Reason, Running, Runtime,
    config::Format,
    context::Context,
    document::{Environment, TextSource},
    event::Event,
    grpc::RequestExt,
    http::connector::Network,
    random::Random,
    registries::MemoryRegistry,
    registry::Instance as Entry,
};
use chassis_protos::echo::{
    EchoReply, EchoRequest, FILE_DESCRIPTOR_SET, echo_client::EchoClient, echo_server,
    echo_server::EchoServer,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::BodyExt;
use tokio::{sync::watch, time::Instant};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Status, Streaming, metadata::MetadataMap};

/// Over which protocol a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Grpc,
    Rest,
}

/// What is called. Each of them is there over both protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Not idempotent: `Echo/Call`, `POST /echo`.
    Call,
    /// Idempotent, by its proto and by its method: `Echo/Safe`, `GET /safe/{message}`.
    Safe,
    /// `Echo/Download`, `GET /download/{message}`.
    Download,
    /// `Echo/Upload`, `POST /upload`.
    Upload,
}

/// One registry, one network, and the books of who executed what.
pub(crate) struct Mesh {
    pub(crate) network: Network,
    pub(crate) registry: MemoryRegistry,
    ledger: Ledger,
    seed: u64,
    apps: AtomicU64,
}

/// Which instances executed a call, by its id.
type Ledger = Arc<Mutex<HashMap<String, Vec<String>>>>;

/// Adds to what an app is built with.
type Build = Box<dyn FnOnce(chassis::ChassisBuilder) -> chassis::ChassisBuilder>;

/// A service about to be started.
pub(crate) struct Plan<'a> {
    mesh: &'a Mesh,
    service: String,
    id: String,
    labels: BTreeMap<String, String>,
    weight: u32,
    config: String,
    listen: Option<serde_json::Value>,
    calls: Vec<String>,
    build: Vec<Build>,
    router: Router,
}

/// An instance that serves.
pub(crate) struct Server {
    pub(crate) echo: Arc<Echo>,
    pub(crate) running: Running,
    config: Config,
}

/// A service that only calls.
pub(crate) struct Caller {
    pub(crate) app: Chassis,
    config: Config,
    clients: Mutex<HashMap<String, Clients>>,
}

/// Settings that can be pushed, and what becomes of them.
struct Config {
    source: TextSource,
    runtime: Runtime,
}

/// What became of settings that were pushed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Pushed {
    Applied { version: u64, changed: Vec<String> },
    Refused(Vec<String>),
    Unreadable(String),
}

/// The clients of one service.
#[derive(Clone)]
pub(crate) struct Clients {
    pub(crate) grpc: EchoClient<Channel>,
    pub(crate) rest: HttpClient,
}

/// One call, whatever it goes over.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) service: String,
    pub(crate) op: Op,
    /// Travels along: the books are kept by it.
    pub(crate) id: String,
    pub(crate) message: String,
    pub(crate) headers: HeaderMap,
    pub(crate) timeout: Option<Duration>,
    pub(crate) pins: Vec<(String, String)>,
    pub(crate) idempotent: bool,
    pub(crate) no_retry: bool,
    pub(crate) detached: bool,
}

/// What came of a call.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Code,
    /// Over REST, where an answer came.
    pub(crate) status: Option<u16>,
    /// The mechanism that refused, here or there.
    pub(crate) reason: Option<Reason>,
    pub(crate) rule: Option<String>,
    pub(crate) retry_after: Option<Duration>,
    /// Where the error or the status says so.
    pub(crate) maybe_executed: Option<bool>,
    /// The message echoed, or what the failure says.
    pub(crate) message: String,
    pub(crate) instance: Option<String>,
    /// The instances that a chained call passed, outermost first.
    pub(crate) hops: Vec<String>,
    /// What was left of the deadline when the handler started.
    pub(crate) remaining: Option<Duration>,
    /// How many messages an upload was.
    pub(crate) count: u32,
    /// Of the answer, trailers included where they came with it.
    pub(crate) headers: HeaderMap,
    pub(crate) took: Duration,
}

/// An answer that comes in parts.
pub(crate) enum Parts {
    Grpc(Box<Streaming<EchoReply>>),
    Rest(chassis::call::ReplyBody, VecDeque<String>),
}

/// What an instance does with a call once it has come in.
#[derive(Clone)]
pub(crate) enum Act {
    Answer,
    /// Fails with this code, or with the HTTP status that says the same.
    Fail(Code),
    /// Fails as this says: for headers and details of its own.
    FailWith(Arc<dyn Fn() -> Failure + Send + Sync>),
    Hang,
    Delay(Duration),
    /// Goes on when the gate is open.
    Wait(Gate),
    Panic,
    /// Does this first.
    Run(Arc<dyn Fn(Arc<Echo>, Seen) -> Work + Send + Sync>),
}

/// What a test does inside a handler.
pub(crate) type Work = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// How a handler fails.
#[derive(Debug)]
pub(crate) enum Failure {
    Grpc(Status),
    Rest(Problem),
}

/// Stays shut until it is opened.
#[derive(Clone)]
pub(crate) struct Gate(Arc<watch::Sender<bool>>);

/// The handlers of an instance.
pub(crate) struct Echo {
    pub(crate) id: String,
    acts: Mutex<Acts>,
    executed: AtomicU64,
    running: Arc<AtomicU64>,
    seen: Mutex<VecDeque<Seen>>,
    ledger: Ledger,
    clients: HashMap<String, Clients>,
}

struct Acts {
    next: VecDeque<Act>,
    then: Act,
}

/// What a handler saw of a call.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) wire: Wire,
    pub(crate) op: Op,
    pub(crate) message: String,
    pub(crate) headers: HeaderMap,
    pub(crate) remaining: Option<Duration>,
    pub(crate) at: Instant,
}

/// A handler at work.
struct Working(Arc<AtomicU64>);

const CALL_ID: &str = "x-call-id";
const INSTANCE: &str = "x-instance";
const VIA: &str = "x-via";
/// So many calls are looked back on.
const SEEN: usize = 100;

/// Writes a scenario once and runs it over gRPC and over REST.
macro_rules! both {
    ($(#[$meta:meta])* async fn $name:ident($wire:ident: Wire) $body:block) => {
        $(#[$meta])*
        mod $name {
            use super::*;

            async fn scenario($wire: Wire) $body

            #[tokio::test(start_paused = true)]
            async fn grpc() {
                scenario(Wire::Grpc).await;
            }

            #[tokio::test(start_paused = true)]
            async fn rest() {
                scenario(Wire::Rest).await;
            }
        }
    };
}
pub(crate) use both;

/// Waits for a condition that comes about without time passing.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if condition() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("in vain: {what}");
}

// === impl Wire ===

impl Wire {
    /// The operation as settings and figures name it.
    pub(crate) fn operation(self, op: Op) -> &'static str {
        match (self, op) {
            (Wire::Grpc, Op::Call) => "chassis.test.v1.Echo/Call",
            (Wire::Grpc, Op::Safe) => "chassis.test.v1.Echo/Safe",
            (Wire::Grpc, Op::Download) => "chassis.test.v1.Echo/Download",
            (Wire::Grpc, Op::Upload) => "chassis.test.v1.Echo/Upload",
            (Wire::Rest, Op::Call) => "POST /echo",
            (Wire::Rest, Op::Safe) => "GET /safe/{message}",
            (Wire::Rest, Op::Download) => "GET /download/{message}",
            (Wire::Rest, Op::Upload) => "POST /upload",
        }
    }

    /// As the registry and the inspection name the protocol.
    pub(crate) fn protocol(self) -> &'static str {
        match self {
            Wire::Grpc => "grpc",
            Wire::Rest => "http",
        }
    }
}

// === impl Mesh ===

impl Mesh {
    /// Nobody is there yet. What is random in it is the same every time.
    pub(crate) fn new() -> Self {
        Self::seeded(1)
    }

    pub(crate) fn seeded(seed: u64) -> Self {
        let (network, registry, ledger) = (Network::default(), MemoryRegistry::new(), Ledger::default());
        Mesh { network, registry, ledger, seed, apps: AtomicU64::new(0) }
    }

    /// An instance of `service`, to be started.
    pub(crate) fn server(&self, service: &str, id: &str) -> Plan<'_> {
        Plan {
            mesh: self,
            service: service.to_owned(),
            id: id.to_owned(),
            labels: BTreeMap::new(),
            weight: 1,
            config: String::new(),
            listen: None,
            calls: Vec::new(),
            build: Vec::new(),
            router: Router::new(),
        }
    }

    /// An instance of `service` with nothing special about it.
    pub(crate) async fn start(&self, service: &str, id: &str) -> Server {
        self.server(service, id).start().await
    }

    /// Someone who calls, with these settings in YAML.
    pub(crate) async fn caller(&self, config: &str) -> Caller {
        self.server("tests", "tests").config(config).caller().await
    }

    /// How often the call of this id was executed, by any instance.
    pub(crate) fn executions(&self, id: &str) -> usize {
        self.executed_by(id).len()
    }

    /// The instances that executed the call of this id, in order.
    pub(crate) fn executed_by(&self, id: &str) -> Vec<String> {
        self.ledger.lock().unwrap().get(id).cloned().unwrap_or_default()
    }
}

// === impl Plan ===

impl Plan<'_> {
    pub(crate) fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Settings in YAML, to be replaced by what is pushed.
    pub(crate) fn config(mut self, yaml: &str) -> Self {
        self.config = yaml.to_owned();
        self
    }

    /// The `listen` table, in place of one port in memory for everything.
    pub(crate) fn listen(mut self, listen: serde_json::Value) -> Self {
        self.listen = Some(listen);
        self
    }

    /// Its handlers call these services: see [`Ask::via`].
    pub(crate) fn calls(mut self, services: &[&str]) -> Self {
        self.calls.extend(services.iter().map(|&service| service.to_owned()));
        self
    }

    /// More to build it with: layers, hooks, fallbacks.
    pub(crate) fn with(
        mut self,
        build: impl FnOnce(chassis::ChassisBuilder) -> chassis::ChassisBuilder + 'static,
    ) -> Self {
        self.build.push(Box::new(build));
        self
    }

    /// More routes to serve.
    pub(crate) fn routes(mut self, routes: Router) -> Self {
        self.router = self.router.merge(routes);
        self
    }

    /// Builds it, to be started or to call.
    pub(crate) async fn build(&mut self) -> (Chassis, TextSource) {
        let source = TextSource::new("pushed", Format::Yaml, self.config.clone());
        let address = format!("memory:{}", self.id);
        let listen = self.listen.take();
        let listen = listen.unwrap_or_else(|| serde_json::json!({ "grpc": address, "http": address }));
        let seed = self.mesh.seed * 1_000 + self.mesh.apps.fetch_add(1, SeqCst);
        let mut builder = Chassis::builder(&self.service)
            .instance(&self.id)
            .environment(Environment::default())
            .without_file()
            .settings(serde_json::json!({ "listen": listen, "service": { "labels": self.labels } }))
            .config(source.clone())
            .registry(self.mesh.registry.clone())
            .network(self.mesh.network.clone())
            .random(Random::seeded(seed))
            .descriptors(FILE_DESCRIPTOR_SET);
        for build in self.build.drain(..) {
            builder = build(builder);
        }
        let app = builder.build().await.unwrap_or_else(|error| panic!("{}: {error:?}", self.id));
        (app, source)
    }

    pub(crate) async fn caller(mut self) -> Caller {
        let (app, source) = self.build().await;
        let config = Config { source, runtime: app.runtime().clone() };
        Caller { app, config, clients: Mutex::default() }
    }

    /// Starts it; it is in the registry when this returns.
    pub(crate) async fn start(mut self) -> Server {
        let (app, source) = self.build().await;
        let clients = self.calls.iter().map(|service| (service.clone(), Clients::of(&app, service)));
        let echo = Arc::new(Echo {
            id: self.id.clone(),
            acts: Mutex::new(Acts { next: VecDeque::new(), then: Act::Answer }),
            executed: AtomicU64::new(0),
            running: Arc::default(),
            seen: Mutex::default(),
            ledger: self.mesh.ledger.clone(),
            clients: clients.collect(),
        });
        let config = Config { source, runtime: app.runtime().clone() };
        let app = app.serve_grpc(EchoServer::new(Served(echo.clone())));
        let app = app.serve_http(Echo::router(&echo).merge(self.router));
        let running = app.start().await.unwrap_or_else(|error| panic!("{}: {error:?}", self.id));
        if self.weight != 1 {
            let mut entry = Entry::new(&self.service, &self.id);
            entry.weight = self.weight;
            entry.labels = self.labels;
            entry.addresses = running.addresses().iter().cloned().collect();
            self.mesh.registry.put(entry);
        }
        Server { echo, running, config }
    }
}

// === impl Server ===

impl Server {
    /// Stops in order.
    pub(crate) async fn stop(self) {
        self.running.stop().await;
    }

    /// Pushes settings, and waits for what becomes of them.
    pub(crate) async fn push(&self, yaml: &str) -> Pushed {
        self.config.push(yaml).await
    }

    pub(crate) fn source(&self) -> &TextSource {
        &self.config.source
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.config.runtime
    }
}

impl std::ops::Deref for Server {
    type Target = Echo;
    fn deref(&self) -> &Echo {
        &self.echo
    }
}

// === impl Caller ===

impl Caller {
    pub(crate) fn clients(&self, service: &str) -> Clients {
        let mut clients = self.clients.lock().unwrap();
        clients.entry(service.to_owned()).or_insert_with(|| Clients::of(&self.app, service)).clone()
    }

    pub(crate) async fn call(&self, wire: Wire, ask: Ask) -> Outcome {
        self.clients(&ask.service).call(wire, ask).await
    }

    /// Begins a download of `parts` parts. Its handler does as it is told after the first of them; before
    /// all, if there are none.
    pub(crate) async fn download(&self, wire: Wire, ask: Ask, parts: u32) -> Result<Parts, Outcome> {
        self.clients(&ask.service).download(wire, ask, parts).await
    }

    /// Sends what comes out of `parts`, until their sender is gone.
    pub(crate) async fn upload(
        &self,
        wire: Wire,
        ask: Ask,
        parts: tokio::sync::mpsc::Receiver<String>,
    ) -> Outcome {
        self.clients(&ask.service).upload(wire, ask, parts).await
    }

    /// Pushes settings, and waits for what becomes of them.
    pub(crate) async fn push(&self, yaml: &str) -> Pushed {
        self.config.push(yaml).await
    }

    pub(crate) fn source(&self) -> &TextSource {
        &self.config.source
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.config.runtime
    }

    /// The value of one series of the scrape: `name{label="value",…}` as it stands there. 0 if it does not.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        metric(self.runtime(), series)
    }
}

/// The figures as they are scraped.
pub(crate) fn scrape(runtime: &Runtime) -> String {
    let families = runtime.metrics().registry().gather();
    prometheus::TextEncoder::new().encode_to_string(&families).unwrap()
}

/// The value of one series of the scrape; 0 if it is not there.
pub(crate) fn metric(runtime: &Runtime, series: &str) -> f64 {
    let text = scrape(runtime);
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

// === impl Config ===

impl Config {
    async fn push(&self, yaml: &str) -> Pushed {
        let mut events = self.runtime.events().subscribe();
        self.source.set(yaml);
        let told = async {
            loop {
                match events.recv().await.map(|event| (*event).clone()) {
                    Ok(Event::ConfigApplied { version, changed }) => {
                        return Pushed::Applied { version, changed };
                    }
                    Ok(Event::ConfigRefused { problems, .. }) => return Pushed::Refused(problems),
                    Ok(Event::ConfigUnreadable { error, .. }) => return Pushed::Unreadable(error),
                    Ok(_) | Err(_) => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(5), told).await.expect("what is pushed changes something")
    }
}

impl Pushed {
    #[track_caller]
    pub(crate) fn applied(self) -> u64 {
        match self {
            Pushed::Applied { version, .. } => version,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn refused(self) -> Vec<String> {
        match self {
            Pushed::Refused(problems) => problems,
            other => panic!("{other:?}"),
        }
    }
}

// === impl Ask ===

impl Ask {
    /// `Call` of this service, with nothing special about it.
    pub(crate) fn to(service: &str) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Ask {
            service: service.to_owned(),
            op: Op::Call,
            id: format!("call-{}", NUMBER.fetch_add(1, SeqCst)),
            message: "hello".to_owned(),
            headers: HeaderMap::new(),
            timeout: None,
            pins: Vec::new(),
            idempotent: false,
            no_retry: false,
            detached: false,
        }
    }

    /// The idempotent operation instead.
    pub(crate) fn safe(mut self) -> Self {
        self.op = Op::Safe;
        self
    }

    pub(crate) fn message(mut self, message: &str) -> Self {
        self.message = message.to_owned();
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        self
    }

    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    pub(crate) fn pin(mut self, label: &str, value: &str) -> Self {
        self.pins.push((label.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    pub(crate) fn no_retry(mut self) -> Self {
        self.no_retry = true;
        self
    }

    pub(crate) fn detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// The handler calls on before it answers, hop by hop: `via(&[(Wire::Grpc, "ledger")])`. The
    /// services have to be among its [`Plan::calls`].
    pub(crate) fn via(self, hops: &[(Wire, &str)]) -> Self {
        let hops: Vec<_> = hops.iter().map(|(wire, name)| format!("{} {name}", wire.protocol())).collect();
        self.header(VIA, &hops.join(","))
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = self.headers.clone();
        headers.insert(CALL_ID, HeaderValue::from_str(&self.id).unwrap());
        headers
    }

    /// As a request of a stub.
    pub(crate) fn grpc<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(self.headers());
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        for (label, value) in &self.pins {
            request = request.pin(label, value);
        }
        let pick = |on: bool, request: tonic::Request<T>, set: fn(tonic::Request<T>) -> tonic::Request<T>| {
            if on { set(request) } else { request }
        };
        request = pick(self.idempotent, request, RequestExt::idempotent);
        request = pick(self.no_retry, request, RequestExt::no_retry);
        pick(self.detached, request, RequestExt::detached)
    }

    /// As a request of the REST client.
    pub(crate) fn rest(&self, mut request: chassis::http::RequestBuilder) -> chassis::http::RequestBuilder {
        for (name, value) in &self.headers() {
            request = request.header(name, value);
        }
        if let Some(timeout) = self.timeout {
            request = request.timeout(timeout);
        }
        for (label, value) in &self.pins {
            request = request.label(label, value);
        }
        if self.idempotent {
            request = request.idempotent();
        }
        if self.no_retry {
            request = request.no_retry();
        }
        if self.detached {
            request = request.detached();
        }
        request
    }

    fn says(&self) -> EchoRequest {
        EchoRequest { message: self.message.clone(), ..EchoRequest::default() }
    }
}

// === impl Clients ===

impl Clients {
    pub(crate) fn of(app: &Chassis, service: &str) -> Self {
        Clients { grpc: EchoClient::new(app.grpc(service)), rest: app.http(service) }
    }

    pub(crate) async fn call(&self, wire: Wire, ask: Ask) -> Outcome {
        let began = Instant::now();
        let outcome = match (wire, ask.op) {
            (Wire::Grpc, Op::Call) => Outcome::grpc(self.grpc.clone().call(ask.grpc(ask.says())).await),
            (Wire::Grpc, _) => Outcome::grpc(self.grpc.clone().safe(ask.grpc(ask.says())).await),
            (Wire::Rest, Op::Call) => {
                let request = self.rest.post("/echo").json(&serde_json::json!({ "message": ask.message }));
                Outcome::rest(ask.rest(request).send().await).await
            }
            (Wire::Rest, _) => {
                let request = self.rest.get("/safe/{message}").param("message", &ask.message);
                Outcome::rest(ask.rest(request).send().await).await
            }
        };
        Outcome { took: began.elapsed(), ..outcome }
    }

    pub(crate) async fn download(&self, wire: Wire, ask: Ask, parts: u32) -> Result<Parts, Outcome> {
        match wire {
            Wire::Grpc => {
                let request = EchoRequest { repeat: parts, ..ask.says() };
                match self.grpc.clone().download(ask.grpc(request)).await {
                    Ok(response) => Ok(Parts::Grpc(Box::new(response.into_inner()))),
                    Err(status) => Err(Outcome::status(status)),
                }
            }
            Wire::Rest => {
                let request = self.rest.get("/download/{message}").param("message", &ask.message);
                match ask.rest(request.query("repeat", parts)).send().await {
                    Ok(response) if response.status().is_success() => {
                        Ok(Parts::Rest(response.into_body(), VecDeque::new()))
                    }
                    failed => Err(Outcome::rest(failed).await),
                }
            }
        }
    }

    pub(crate) async fn upload(
        &self,
        wire: Wire,
        ask: Ask,
        parts: tokio::sync::mpsc::Receiver<String>,
    ) -> Outcome {
        let began = Instant::now();
        let parts = ReceiverStream::new(parts);
        let outcome = match wire {
            Wire::Grpc => {
                let parts = parts.map(|message| EchoRequest { message, ..EchoRequest::default() });
                Outcome::grpc(self.grpc.clone().upload(ask.grpc(parts)).await)
            }
            Wire::Rest => {
                let lines =
                    parts.map(|part| Ok::<_, Error>(http_body::Frame::data(Bytes::from(part + "\n"))));
                let request = self.rest.post("/upload").stream(http_body_util::StreamBody::new(lines));
                Outcome::rest(ask.rest(request).send().await).await
            }
        };
        Outcome { took: began.elapsed(), ..outcome }
    }
}

// === impl Outcome ===

impl Outcome {
    fn new(code: Code) -> Self {
        Outcome {
            code,
            status: None,
            reason: None,
            rule: None,
            retry_after: None,
            maybe_executed: None,
            message: String::new(),
            instance: None,
            hops: Vec::new(),
            remaining: None,
            count: 0,
            headers: HeaderMap::new(),
            took: Duration::ZERO,
        }
    }

    /// Answered well?
    pub(crate) fn is_ok(&self) -> bool {
        self.code == Code::Ok
    }

    /// The instance that answered well.
    #[track_caller]
    pub(crate) fn by(&self) -> &str {
        assert!(self.is_ok(), "{self:?}");
        self.instance.as_deref().unwrap_or_default()
    }

    /// Refused by this mechanism, with its own code.
    #[track_caller]
    pub(crate) fn refused(&self, reason: Reason) -> &Self {
        assert_eq!((self.code, self.reason), (reason.code(), Some(reason)), "{self:?}");
        self
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn answered(reply: EchoReply, headers: HeaderMap, status: Option<u16>) -> Self {
        Outcome {
            status,
            message: reply.message,
            instance: Some(reply.instance),
            hops: reply.hops,
            remaining: (reply.remaining_ms > 0).then(|| Duration::from_millis(reply.remaining_ms)),
            count: reply.count,
            headers,
            ..Outcome::new(Code::Ok)
        }
    }

    fn grpc(answer: Result<tonic::Response<EchoReply>, Status>) -> Self {
        match answer {
            Ok(response) => {
                let (metadata, reply, _) = response.into_parts();
                Self::answered(reply, metadata.into_headers(), None)
            }
            Err(status) => Self::status(status),
        }
    }

    fn status(status: Status) -> Self {
        let code = Code::from_number(i32::from(status.code()) as u16);
        let error = chassis::grpc::error(&status);
        Outcome {
            reason: error.as_ref().map(Error::reason),
            rule: error.as_ref().and_then(|error| error.rule().map(str::to_owned)),
            retry_after: error.as_ref().and_then(Error::retry_after),
            maybe_executed: error.as_ref().map(Error::maybe_executed),
            message: status.message().to_owned(),
            instance: status.metadata().get(INSTANCE).map(|id| id.to_str().unwrap().to_owned()),
            headers: status.metadata().clone().into_headers(),
            ..Outcome::new(code)
        }
    }

    async fn rest(answer: Result<chassis::http::Response, Error>) -> Self {
        let response = match answer {
            Ok(response) => response,
            Err(error) => return Self::error(&error),
        };
        let (headers, status) = (response.headers().clone(), response.status().as_u16());
        let refusal = response.refusal().map(|error| error.maybe_executed());
        let instance = headers.get(INSTANCE).map(|id| id.to_str().unwrap().to_owned());
        match response.ok().await {
            Ok(response) => match response.json::<Reply>().await {
                Ok(reply) => Self::answered(reply.into(), headers, Some(status)),
                Err(error) => Self::error(&error),
            },
            Err(problem) => Outcome {
                status: Some(status),
                reason: problem.reason(),
                rule: problem.rule().map(str::to_owned),
                retry_after: chassis::Error::from(problem.clone()).retry_after(),
                maybe_executed: refusal,
                message: problem.detail_text().unwrap_or_default().to_owned(),
                instance,
                headers,
                ..Outcome::new(problem.code())
            },
        }
    }

    fn error(error: &Error) -> Self {
        Outcome {
            reason: Some(error.reason()),
            rule: error.rule().map(str::to_owned),
            retry_after: error.retry_after(),
            maybe_executed: Some(error.maybe_executed()),
            message: error.message().to_owned(),
            ..Outcome::new(error.code())
        }
    }
}

// === impl Parts ===

impl Parts {
    /// The next part; `None` when it ended well.
    pub(crate) async fn next(&mut self) -> Option<Result<String, Outcome>> {
        match self {
            Parts::Grpc(parts) => match parts.message().await {
                Ok(part) => Some(Ok(part?.message)),
                Err(status) => Some(Err(Outcome::status(status))),
            },
            Parts::Rest(body, lines) => loop {
                if let Some(line) = lines.pop_front() {
                    return Some(Ok(line));
                }
                match body.frame().await? {
                    Ok(frame) => {
                        let text = frame.into_data().unwrap_or_default();
                        let text = std::str::from_utf8(&text).unwrap();
                        lines.extend(text.lines().map(str::to_owned));
                    }
                    Err(error) => return Some(Err(Outcome::error(&error))),
                }
            },
        }
    }

    /// All that is left, and how it failed if it did.
    pub(crate) async fn rest(&mut self) -> (usize, Option<Outcome>) {
        let mut count = 0;
        loop {
            match self.next().await {
                None => return (count, None),
                Some(Err(outcome)) => return (count, Some(outcome)),
                Some(Ok(_)) => count += 1,
            }
        }
    }
}

// === impl Gate ===

impl Gate {
    pub(crate) fn shut() -> Self {
        Gate(Arc::new(watch::Sender::new(false)))
    }

    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(crate) async fn passed(&self) {
        let mut open = self.0.subscribe();
        open.wait_for(|open| *open).await.expect("the gate itself holds the sender");
    }
}

// === impl Echo ===

impl Echo {
    /// Does this with every call from now on.
    pub(crate) fn does(&self, act: Act) {
        let mut acts = self.acts.lock().unwrap();
        acts.next.clear();
        acts.then = act;
    }

    /// Does these with the next calls, in order, before what it does with all.
    pub(crate) fn does_next(&self, acts: impl IntoIterator<Item = Act>) {
        self.acts.lock().unwrap().next.extend(acts);
    }

    /// Calls that reached a handler.
    pub(crate) fn executed(&self) -> u64 {
        self.executed.load(SeqCst)
    }

    /// Calls that are in a handler, streams of answers included.
    pub(crate) fn running(&self) -> u64 {
        self.running.load(SeqCst)
    }

    /// The last calls, oldest first.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().cloned().collect()
    }

    /// The last call.
    #[track_caller]
    pub(crate) fn last(&self) -> Seen {
        self.seen.lock().unwrap().back().cloned().expect("it was called")
    }

    /// The clients of a service that its handlers call.
    pub(crate) fn clients(&self, service: &str) -> &Clients {
        self.clients.get(service).unwrap_or_else(|| panic!("{}: name `{service}` in Plan::calls", self.id))
    }

    fn router(echo: &Arc<Self>) -> Router {
        Router::new()
            .route("/echo", post(post_echo))
            .route("/echo/{message}", get(get_echo))
            .route("/safe/{message}", get(get_echo))
            .route("/download/{message}", get(get_download))
            .route("/upload", post(post_upload))
            .with_state(echo.clone())
    }

    /// A call has come in: into the books with it.
    fn begin(&self, wire: Wire, op: Op, message: &str, headers: &HeaderMap) -> (Seen, Act, Working) {
        self.executed.fetch_add(1, SeqCst);
        if let Some(id) = headers.get(CALL_ID) {
            let mut ledger = self.ledger.lock().unwrap();
            ledger.entry(id.to_str().unwrap().to_owned()).or_default().push(self.id.clone());
        }
        let now = Instant::now();
        let deadline = Context::with(|context| context.deadline).flatten();
        let remaining = deadline.map(|at| at.saturating_duration_since(now));
        let (message, headers) = (message.to_owned(), headers.clone());
        let seen = Seen { wire, op, message, headers, remaining, at: now };
        let mut all = self.seen.lock().unwrap();
        if all.len() == SEEN {
            all.pop_front();
        }
        all.push_back(seen.clone());
        let mut acts = self.acts.lock().unwrap();
        let act = acts.next.pop_front().unwrap_or_else(|| acts.then.clone());
        self.running.fetch_add(1, SeqCst);
        (seen, act, Working(self.running.clone()))
    }

    async fn perform(self: &Arc<Self>, act: Act, seen: &Seen) -> Result<(), Failure> {
        match act {
            Act::Answer => Ok(()),
            Act::Fail(code) => Err(self.failure(seen.wire, code)),
            Act::FailWith(failure) => Err(failure()),
            Act::Hang => std::future::pending().await,
            Act::Delay(delay) => {
                tokio::time::sleep(delay).await;
                Ok(())
            }
            Act::Wait(gate) => {
                gate.passed().await;
                Ok(())
            }
            Act::Panic => panic!("as asked for"),
            Act::Run(run) => run(self.clone(), seen.clone()).await,
        }
    }

    fn failure(&self, wire: Wire, code: Code) -> Failure {
        let words = format!("{} fails as told", self.id);
        match wire {
            Wire::Grpc => {
                let mut status = Status::new(tonic::Code::from_i32(i32::from(code.number())), words);
                status.metadata_mut().insert(INSTANCE, self.id.parse().unwrap());
                Failure::Grpc(status)
            }
            Wire::Rest => Failure::Rest(Problem::new(code.http_status()).detail(words).with_code(code)),
        }
    }

    /// A call, answered whole.
    async fn answer(
        self: &Arc<Self>,
        wire: Wire,
        op: Op,
        message: String,
        headers: &HeaderMap,
    ) -> Result<EchoReply, Failure> {
        let (seen, act, _working) = self.begin(wire, op, &message, headers);
        self.perform(act, &seen).await?;
        let mut hops = vec![self.id.clone()];
        hops.extend(self.go_on(&seen).await?);
        let remaining_ms = seen.remaining.map_or(0, |left| left.as_millis() as u64);
        let instance = self.id.clone();
        Ok(EchoReply { message, instance, count: 1, hops, remaining_ms, ..EchoReply::default() })
    }

    /// Calls the next service of a chain, and says whom the call passed.
    async fn go_on(&self, seen: &Seen) -> Result<Vec<String>, Failure> {
        let Some(via) = seen.headers.get(VIA) else { return Ok(Vec::new()) };
        let via = via.to_str().unwrap();
        let (hop, rest) = via.split_once(',').unwrap_or((via, ""));
        let (wire, service) = hop.split_once(' ').unwrap();
        let wire = if wire == "grpc" { Wire::Grpc } else { Wire::Rest };
        let mut ask = Ask::to(service);
        if !rest.is_empty() {
            ask = ask.header(VIA, rest);
        }
        let outcome = self.clients(service).call(wire, ask).await;
        if outcome.is_ok() {
            return Ok(outcome.hops);
        }
        let Outcome { code, message, .. } = outcome;
        Err(match seen.wire {
            Wire::Grpc => {
                Failure::Grpc(Status::new(tonic::Code::from_i32(i32::from(code.number())), message))
            }
            Wire::Rest => Failure::Rest(Problem::new(code.http_status()).detail(message).with_code(code)),
        })
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// What a part of a download looks like.
fn part(message: &str, number: u32) -> String {
    format!("{message} {number}")
}

// === gRPC ===

/// The service of a stub.
#[derive(Clone)]
struct Served(Arc<Echo>);

type Replies = Pin<Box<dyn Stream<Item = Result<EchoReply, Status>> + Send>>;

impl Served {
    fn respond(&self, reply: EchoReply) -> tonic::Response<EchoReply> {
        let mut response = tonic::Response::new(reply);
        response.metadata_mut().insert(INSTANCE, self.0.id.parse().unwrap());
        response
    }

    async fn unary(
        &self,
        op: Op,
        request: tonic::Request<EchoRequest>,
    ) -> Result<tonic::Response<EchoReply>, Status> {
        let (metadata, _, request) = request.into_parts();
        let reply = self.0.answer(Wire::Grpc, op, request.message, &metadata.into_headers()).await?;
        Ok(self.respond(reply))
    }
}

#[tonic::async_trait]
impl echo_server::Echo for Served {
    async fn call(&self, request: tonic::Request<EchoRequest>) -> Result<tonic::Response<EchoReply>, Status> {
        self.unary(Op::Call, request).await
    }

    async fn safe(&self, request: tonic::Request<EchoRequest>) -> Result<tonic::Response<EchoReply>, Status> {
        self.unary(Op::Safe, request).await
    }

    type DownloadStream = Replies;

    async fn download(
        &self,
        request: tonic::Request<EchoRequest>,
    ) -> Result<tonic::Response<Replies>, Status> {
        let (metadata, _, request) = request.into_parts();
        let headers = metadata.into_headers();
        let (seen, act, working) = self.0.begin(Wire::Grpc, Op::Download, &request.message, &headers);
        if request.repeat == 0 {
            self.0.perform(act.clone(), &seen).await?;
        }
        let parts = parts(self.0.clone(), seen, act, working, request.repeat);
        let parts = parts.map(|part| {
            part.map(|message| EchoReply { message, ..EchoReply::default() }).map_err(Status::from)
        });
        Ok(tonic::Response::new(Box::pin(parts)))
    }

    async fn upload(
        &self,
        request: tonic::Request<Streaming<EchoRequest>>,
    ) -> Result<tonic::Response<EchoReply>, Status> {
        let (metadata, _, mut requests) = request.into_parts();
        let (seen, act, _working) = self.0.begin(Wire::Grpc, Op::Upload, "", &metadata.into_headers());
        let mut all = Vec::new();
        while let Some(request) = requests.message().await? {
            all.push(request.message);
        }
        self.0.perform(act, &seen).await?;
        Ok(self.respond(uploaded(&self.0.id, &all)))
    }

    type ChatStream = Replies;

    async fn chat(
        &self,
        request: tonic::Request<Streaming<EchoRequest>>,
    ) -> Result<tonic::Response<Replies>, Status> {
        let (metadata, _, requests) = request.into_parts();
        let (_, _, working) = self.0.begin(Wire::Grpc, Op::Upload, "", &metadata.into_headers());
        let mut count = 0;
        let replies = requests.map(move |request| {
            count += 1;
            let _held = &working;
            Ok(EchoReply { message: request?.message, count, ..EchoReply::default() })
        });
        Ok(tonic::Response::new(Box::pin(replies)))
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Grpc(status) => status,
            Failure::Rest(problem) => Status::unknown(problem.to_string()),
        }
    }
}

/// The parts of a download. Before the second, the handler does as it was told.
fn parts(
    echo: Arc<Echo>,
    seen: Seen,
    act: Act,
    working: Working,
    count: u32,
) -> impl Stream<Item = Result<String, Failure>> + Send {
    let working = Arc::new(working);
    tokio_stream::iter(1..=count).then(move |number| {
        let (echo, seen, act, working) = (echo.clone(), seen.clone(), act.clone(), working.clone());
        async move {
            if number == 2 {
                echo.perform(act, &seen).await?;
            }
            drop(working); // the stream holds another
            Ok(part(&seen.message, number))
        }
    })
}

fn uploaded(id: &str, all: &[String]) -> EchoReply {
    let (message, instance, count) = (all.concat(), id.to_owned(), all.len() as u32);
    EchoReply { message, instance, count, ..EchoReply::default() }
}

// === REST ===

/// A reply as JSON.
#[derive(serde::Serialize, serde::Deserialize)]
struct Reply {
    message: String,
    instance: String,
    count: u32,
    hops: Vec<String>,
    remaining_ms: u64,
}

#[derive(serde::Deserialize)]
struct Said {
    message: String,
}

#[derive(serde::Deserialize)]
struct Repeat {
    repeat: u32,
}

impl From<EchoReply> for Reply {
    fn from(reply: EchoReply) -> Self {
        let EchoReply { message, instance, count, hops, remaining_ms, .. } = reply;
        Reply { message, instance, count, hops, remaining_ms }
    }
}

impl From<Reply> for EchoReply {
    fn from(reply: Reply) -> Self {
        let Reply { message, instance, count, hops, remaining_ms } = reply;
        EchoReply { message, instance, count, hops, remaining_ms, ..EchoReply::default() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Failure::Rest(problem) => problem.into_response(),
            Failure::Grpc(status) => chassis::grpc::problem(&status).into_response(),
        }
    }
}

async fn post_echo(State(echo): State<Arc<Echo>>, headers: HeaderMap, Json(said): Json<Said>) -> Response {
    respond(&echo, Op::Call, said.message, headers).await
}

async fn get_echo(
    State(echo): State<Arc<Echo>>,
    Path(message): Path<String>,
    headers: HeaderMap,
) -> Response {
    respond(&echo, Op::Safe, message, headers).await
}

async fn respond(echo: &Arc<Echo>, op: Op, message: String, headers: HeaderMap) -> Response {
    let answer = echo.answer(Wire::Rest, op, message, &headers).await;
    ([(INSTANCE, echo.id.clone())], answer.map(|reply| Json(Reply::from(reply)))).into_response()
}

async fn get_download(
    State(echo): State<Arc<Echo>>,
    Path(message): Path<String>,
    Query(Repeat { repeat }): Query<Repeat>,
    headers: HeaderMap,
) -> Result<axum::body::Body, Failure> {
    let (seen, act, working) = echo.begin(Wire::Rest, Op::Download, &message, &headers);
    if repeat == 0 {
        echo.perform(act.clone(), &seen).await?;
    }
    let lines = parts(echo, seen, act, working, repeat).map(|part| match part {
        Ok(part) => Ok(Bytes::from(part + "\n")),
        Err(failure) => Err(std::io::Error::other(format!("{failure:?}"))),
    });
    Ok(axum::body::Body::from_stream(lines))
}

async fn post_upload(
    State(echo): State<Arc<Echo>>,
    headers: HeaderMap,
    body: axum::body::Body,
) -> Result<Json<Reply>, Failure> {
    let (seen, act, _working) = echo.begin(Wire::Rest, Op::Upload, "", &headers);
    let whole = body.collect().await.map_err(|error| {
        Failure::Rest(Problem::new(http::StatusCode::BAD_REQUEST).detail(error.to_string()))
    })?;
    let whole = whole.to_bytes();
    let all: Vec<_> = std::str::from_utf8(&whole).unwrap().lines().map(str::to_owned).collect();
    echo.perform(act, &seen).await?;
    Ok(Json(uploaded(&echo.id, &all).into()))
}
