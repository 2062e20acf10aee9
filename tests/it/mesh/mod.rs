//! Services, their callers, and the network between them, in one process and on the paused clock.
//!
//! Every instance serves the same operations over gRPC and over REST, on one port, and its handlers behave as
//! a test asks. A scenario selects the operation; a [`Wire`] selects the protocol.
#![allow(dead_code, unused_imports, unused_macros, reason = "each binary uses a part of it")]
mod ask;
mod echo;
mod load;
mod served;
mod stream;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::Router;
use chassis::{
    Chassis, Event, Random, Running, Runtime,
    config::Format,
    document::{Environment, TextSource},
    http::connector::Network,
    registries::MemoryRegistry,
    registry::Instance as Entry,
};
use chassis_protos::echo::{FILE_DESCRIPTOR_SET, echo_server::EchoServer};

use self::served::Served;
pub(crate) use self::{
    ask::{Ask, Clients, Op, Outcome, Parts, Wire},
    echo::{Act, Echo, Failure, Gate, Seen, Work},
    load::{Load, all_well, share},
    stream::{Failed, Kind, Stream},
};

/// One registry, one network, and a record of the instances that executed each call.
pub(crate) struct Mesh {
    pub(crate) network: Network,
    pub(crate) registry: MemoryRegistry,
    ledger: Ledger,
    seed: u64,
    apps: AtomicU64,
}

/// The instances that executed a call, by its id.
pub(crate) type Ledger = Arc<Mutex<HashMap<String, Vec<String>>>>;

/// Adds to an app's builder.
type Build = Box<dyn FnOnce(chassis::ChassisBuilder) -> chassis::ChassisBuilder>;

/// A service that is not started yet.
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
    own_registry: bool,
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

/// Settings that can be pushed, and the result of a push.
struct Config {
    source: TextSource,
    runtime: Runtime,
}

/// The result of pushed settings.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Pushed {
    Applied { version: u64, changed: Vec<String> },
    Refused(Vec<String>),
    Unreadable(String),
}

/// Defines a scenario once and runs it over gRPC and over REST.
macro_rules! both {
    ($(#[$meta:meta])* async fn $name:ident($wire:ident: Wire) $body:block) => {
        $(#[$meta])*
        mod $name {
            use super::*;

            async fn scenario($wire: Wire) $body

            #[tokio::test(start_paused = true)]
            async fn grpc() {
                $crate::mesh::ends(stringify!($name), scenario(Wire::Grpc)).await;
            }

            #[tokio::test(start_paused = true)]
            async fn rest() {
                $crate::mesh::ends(stringify!($name), scenario(Wire::Rest)).await;
            }
        }
    };
}
pub(crate) use both;

/// A limit for each wait, on the paused clock; no test lets so much time pass.
const ONE_WAIT: Duration = Duration::from_secs(2 * 60 * 60);
const ONE_SCENARIO: Duration = Duration::from_secs(24 * 60 * 60);

/// Waits for `future` with a limit: when no other task can run, the paused clock advances to the limit, and
/// the test fails with the name of what it waited for.
pub(crate) async fn within<T>(what: impl FnOnce() -> String, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(ONE_WAIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("timed out waiting for {}", what()),
    }
}

/// The same for a whole scenario: covers every wait that has no limit of its own.
pub(crate) async fn ends(name: &str, scenario: impl Future<Output = ()>) {
    if tokio::time::timeout(ONE_SCENARIO, scenario).await.is_err() {
        panic!("`{name}` never ends: it waits for what does not come");
    }
}

/// Waits for a condition that needs no time to pass.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if condition() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("never: {what}");
}

// === impl Mesh ===

impl Mesh {
    /// An empty mesh. Its randomness is the same in every run.
    pub(crate) fn new() -> Self {
        Self::seeded(1)
    }

    pub(crate) fn seeded(seed: u64) -> Self {
        let (network, registry, ledger) = (Network::default(), MemoryRegistry::new(), Ledger::default());
        Mesh { network, registry, ledger, seed, apps: AtomicU64::new(0) }
    }

    /// An instance of `service`, not started yet.
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
            own_registry: false,
            router: Router::new(),
        }
    }

    /// Starts an instance of `service` with default settings.
    pub(crate) async fn start(&self, service: &str, id: &str) -> Server {
        self.server(service, id).start().await
    }

    /// A service that only calls, with these settings in YAML.
    pub(crate) async fn caller(&self, config: &str) -> Arc<Caller> {
        self.server("tests", "tests").config(config).caller().await
    }

    /// The number of executions of the call with this id, by all instances.
    pub(crate) fn executions(&self, id: &str) -> usize {
        self.executed_by(id).len()
    }

    /// The instances that executed the call with this id, in order.
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

    /// Settings in YAML; a push replaces them.
    pub(crate) fn config(mut self, yaml: &str) -> Self {
        self.config = yaml.to_owned();
        self
    }

    /// The `listen` table, in place of one port in memory for everything.
    pub(crate) fn listen(mut self, listen: serde_json::Value) -> Self {
        self.listen = Some(listen);
        self
    }

    /// The registry of its settings, in place of the mesh's.
    pub(crate) fn own_registry(mut self) -> Self {
        self.own_registry = true;
        self
    }

    /// Its handlers call these services: see [`Ask::via`].
    pub(crate) fn calls(mut self, services: &[&str]) -> Self {
        self.calls.extend(services.iter().map(|&service| service.to_owned()));
        self
    }

    /// Further options of its builder: layers, hooks, fallbacks.
    pub(crate) fn with(
        mut self,
        build: impl FnOnce(chassis::ChassisBuilder) -> chassis::ChassisBuilder + 'static,
    ) -> Self {
        self.build.push(Box::new(build));
        self
    }

    /// Further routes to serve.
    pub(crate) fn routes(mut self, routes: Router) -> Self {
        self.router = self.router.merge(routes);
        self
    }

    /// Builds it, to be started or to call.
    pub(crate) async fn build(&mut self) -> (Chassis, TextSource) {
        let source = TextSource::new("pushed", Format::Yaml, self.config.clone());
        let address = format!("memory:{}", self.id);
        let listen = self.listen.take();
        let mut listen = listen.unwrap_or_else(|| serde_json::json!({ "grpc": address, "http": address }));
        if listen["admin"].is_null() {
            listen["admin"] = "off".into(); // its default is a real port
        }
        let seed = self.mesh.seed * 1_000 + self.mesh.apps.fetch_add(1, SeqCst);
        let mut builder = Chassis::builder(&self.service)
            .instance(&self.id)
            .environment(Environment::default())
            .without_file()
            .settings(serde_json::json!({ "listen": listen, "service": { "labels": self.labels } }))
            .config_with_references(source.clone())
            .network(self.mesh.network.clone())
            .random(Random::seeded(seed))
            .descriptors(FILE_DESCRIPTOR_SET);
        if !self.own_registry {
            builder = builder.registry(self.mesh.registry.clone());
        }
        for build in self.build.drain(..) {
            builder = build(builder);
        }
        let app = builder.build().await.unwrap_or_else(|error| panic!("{}: {error:?}", self.id));
        (app, source)
    }

    pub(crate) async fn caller(mut self) -> Arc<Caller> {
        let (app, source) = self.build().await;
        let config = Config { source, runtime: app.runtime().clone() };
        Arc::new(Caller { app, config, clients: Mutex::default() })
    }

    /// Builds it with its handlers; the test starts it.
    pub(crate) async fn serving(&mut self) -> (Chassis, Arc<Echo>, TextSource) {
        let (app, source) = self.build().await;
        let clients = self.calls.iter().map(|service| (service.clone(), Clients::of(&app, service)));
        let echo = Arc::new(Echo::new(&self.id, &self.mesh.ledger, clients.collect()));
        let app = app.serve_grpc(EchoServer::new(Served(echo.clone())));
        let routes = served::router(&echo).merge(std::mem::take(&mut self.router));
        (app.serve_http(routes), echo, source)
    }

    /// Starts it; it is in the registry when this returns.
    pub(crate) async fn start(mut self) -> Server {
        let (app, echo, source) = self.serving().await;
        let config = Config { source, runtime: app.runtime().clone() };
        let running = app.start().await.unwrap_or_else(|error| panic!("{}: {error:?}", self.id));
        if self.weight != 1 {
            let mut entry = Entry::new(&self.service, &self.id);
            entry.weight = self.weight;
            entry.labels = self.labels.into();
            entry.addresses = running.advertised().iter().cloned().collect();
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

    /// Pushes settings and waits for the result.
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

    /// Makes `count` calls, one after the other.
    pub(crate) async fn calls(&self, wire: Wire, count: usize, ask: impl Fn() -> Ask) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(count);
        for _ in 0..count {
            outcomes.push(self.call(wire, ask()).await);
        }
        outcomes
    }

    /// A call that runs beside the test; dropping the handle does not end it, `abort` does.
    pub(crate) fn spawn(self: &Arc<Self>, wire: Wire, ask: Ask) -> tokio::task::JoinHandle<Outcome> {
        let caller = self.clone();
        tokio::spawn(async move { caller.call(wire, ask).await })
    }

    /// Begins a download of `parts` parts. Its handler performs its act after the first of them, or first, if
    /// there are none.
    pub(crate) async fn download(&self, wire: Wire, ask: Ask, parts: u32) -> Result<Parts, Outcome> {
        self.clients(&ask.service).download(wire, ask, parts).await
    }

    /// Sends the messages of `parts`, until their sender is dropped.
    pub(crate) async fn upload(
        &self,
        wire: Wire,
        ask: Ask,
        parts: tokio::sync::mpsc::Receiver<String>,
    ) -> Outcome {
        self.clients(&ask.service).upload(wire, ask, parts).await
    }

    /// Sends the messages of `parts`, and gets an answer to each.
    pub(crate) async fn chat(
        &self,
        wire: Wire,
        ask: Ask,
        parts: tokio::sync::mpsc::Receiver<String>,
    ) -> Result<Parts, Outcome> {
        self.clients(&ask.service).chat(wire, ask, parts).await
    }

    /// Pushes settings and waits for the result.
    pub(crate) async fn push(&self, yaml: &str) -> Pushed {
        self.config.push(yaml).await
    }

    pub(crate) fn source(&self) -> &TextSource {
        &self.config.source
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.config.runtime
    }

    /// The inspection of a called service.
    pub(crate) fn view(&self, wire: Wire, service: &str) -> chassis::inspect::ServiceView {
        let services = self.runtime().inspect().services;
        let found = services.into_iter().find(|s| s.name == service && s.protocol == wire.protocol());
        found.expect("it was called")
    }

    /// The value of one series of the scrape, with its exact text: `name{label="value",…}`. 0 if it is
    /// missing.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        metric(self.runtime(), series)
    }
}

/// The scraped metrics.
pub(crate) fn scrape(runtime: &Runtime) -> String {
    let families = runtime.metrics().registry().gather();
    prometheus::TextEncoder::new().encode_to_string(&families).unwrap()
}

/// The value of one series of the scrape; 0 if it is missing.
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
        let result = async {
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
        tokio::time::timeout(Duration::from_secs(5), result)
            .await
            .expect("the pushed settings change something")
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
