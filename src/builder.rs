//! Builds a service from its settings and its parts.
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
};

use chassis_config::{Change, Code, Decrypt, Environment, Finding, Loader, Overrides, SourceOptions, tree};
use chassis_core::{
    BoxError, BoxFuture, CallError, Error, Event, Events, Invocation, Kind, LabelSet, Live, Next, Placement,
    Random, Reply, Runtime, Section, Stages,
    config::ConfigSource,
    contain,
    contracts::{Contract, ContractOwner, Contracts},
    health::{CheckConfig, Health},
    layer::{
        balance::PickerFactory,
        fallback::{Answer, FailedCall, FallbackFn},
    },
    protocol::Protocol,
    quota::Quota,
    registry::Registry,
    settings::Settings,
};
use chassis_registry::RegistryByService;
use serde::de::DeserializeOwned;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    Chassis, ConfigHandle, ContractsHandle, Document, StartError,
    app::Parts,
    base::{Base, FILE_VARIABLE, File, PROFILE_VARIABLE, profiles},
    centers,
    cli::Cli,
    crash_guard::{CrashGuard, SURVIVAL, Watched},
    document::{Reader, ServiceSection, check_name},
    follow::Follower,
    identity,
    kinds::{Keep, Port},
    last_good::LastGood,
    life::{Hook, Hooks},
    presence::Presence,
    published::{Publisher, of_program},
    rest::{self, Rest},
    rollout::Rollout,
    rpc::{self, Declared, Rpc},
};

/// Builds a [`Chassis`]. Parts without a default are arguments of [`Chassis::builder`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> chassis::Result {
/// use chassis::{Chassis, Stage, from_fn};
///
/// let app = Chassis::builder("orders")
///     .settings(serde_json::json!({ "registry": { "kind": "memory" } }))
///     .layer(Stage::Call, "audit", from_fn(|call, next| async move {
///         println!("{}", call.target.operation);
///         next.run(call).await
///     }))
///     .build()
///     .await?;
/// assert_eq!(app.runtime().inspect().service, "orders");
/// # Ok(()) }
/// ```
pub struct ChassisBuilder {
    pub(crate) name: String,
    pub(crate) cli: Cli,
    instance: Option<String>,
    /// Config centers of the program; whether their texts may refer to files and variables.
    sources: Vec<(Arc<dyn ConfigSource>, bool)>,
    file: File,
    program: Vec<serde_json::Value>,
    environment: Environment,
    /// The profiles of the environment variable.
    profiles: Option<String>,
    default_profiles: String,
    overrides: Overrides,
    ciphers: Vec<(String, Arc<dyn Decrypt>)>,
    registry: Option<Arc<dyn Registry>>,
    registries: BTreeMap<String, Arc<dyn Registry>>,
    metrics: Option<prometheus::Registry>,
    random: Random,
    events: Events,
    stages: Stages,
    pickers: HashMap<String, Arc<dyn PickerFactory>>,
    fallbacks: HashMap<(String, Option<String>), Arc<FallbackFn>>,
    protocols: Vec<&'static dyn Protocol>,
    descriptors: Vec<Vec<u8>>,
    contracts: Option<Arc<dyn Contracts>>,
    openapi: Vec<Contract>,
    quota: Option<Arc<dyn Quota>>,
    hooks: Hooks,
    checks: Vec<StartCheck>,
    pub(crate) reader: Reader,
    pub(crate) rest: rest::Setup,
    pub(crate) rpc: rpc::Setup,
}

/// Begins a health check.
type StartCheck = Box<dyn FnOnce(&Health) + Send>;

impl ChassisBuilder {
    pub(crate) fn new(name: &str) -> Self {
        ChassisBuilder {
            name: name.to_owned(),
            cli: Cli::default(),
            instance: None,
            sources: Vec::new(),
            file: File::IfThere,
            program: Vec::new(),
            environment: Environment::default(),
            profiles: None,
            default_profiles: String::new(),
            overrides: Overrides::default(),
            ciphers: Vec::new(),
            registry: None,
            registries: BTreeMap::new(),
            metrics: None,
            random: Random::from_os(),
            events: Events::new(),
            stages: Stages::default(),
            pickers: HashMap::new(),
            fallbacks: HashMap::new(),
            protocols: crate::rest::PROTOCOLS.iter().chain(crate::rpc::PROTOCOLS).copied().collect(),
            descriptors: Vec::new(),
            contracts: None,
            openapi: Vec::new(),
            quota: None,
            hooks: Hooks::default(),
            checks: Vec::new(),
            reader: Reader::default(),
            rest: rest::Setup::default(),
            rpc: rpc::Setup::default(),
        }
        .environment(Environment::of_process())
    }

    /// The id of this process in its registry. Default: the service's name and a random number.
    pub fn instance(mut self, id: impl Into<String>) -> Self {
        self.instance = Some(id.into());
        self
    }

    /// The settings file, which must exist. Default: `CHASSIS_CONFIG`, or `chassis.yaml` if it exists.
    pub fn config_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = File::At(path.into());
        self
    }

    /// Reads no file, no directory beside it and no profile, even if `CHASSIS_CONFIG` is set: settings come from
    /// other sources, or are the defaults.
    pub fn without_file(mut self) -> Self {
        self.file = File::None;
        self
    }

    /// The profile if `CHASSIS_PROFILE` names none; several are separated by commas. Default: none.
    ///
    /// The settings of a profile are in a file beside the settings file, which must exist: `chassis.prod.yaml`
    /// beside `chassis.yaml`. They override those of the file and of the directory `chassis.d`; later profiles
    /// override earlier ones. [`without_file`](ChassisBuilder::without_file) reads no profile either.
    pub fn profile(mut self, name: impl Into<String>) -> Self {
        self.default_profiles = name.into();
        self
    }

    /// A setting that overrides all sources and the environment: `.set("outbound.defaults.timeout", "2s")`.
    ///
    /// Later settings of one path override earlier ones. A value that starts with `[`, `{` or a quote is YAML; any
    /// other is a plain word. Keys that contain dots are quoted: `outbound.services."a.b".timeout`.
    pub fn set(mut self, path: &str, value: &str) -> Self {
        self.overrides = self.overrides.set(path, value);
        self
    }

    /// A cipher for values of the settings: `${name:text}` is what it makes of `text`. A later cipher replaces an
    /// earlier one of the same name.
    pub fn decrypt(mut self, name: &str, cipher: impl Decrypt) -> Self {
        self.ciphers.push((name.to_owned(), Arc::new(cipher)));
        self
    }

    /// A config center; its settings override those of the file. A text that refers to files or environment variables of
    /// this process, by `${file:…}` or `${env:…}`, is refused: see
    /// [`config_with_references`](ChassisBuilder::config_with_references).
    pub fn config(mut self, source: impl ConfigSource) -> Self {
        self.sources.push((Arc::new(source), false));
        self
    }

    /// A config center whose writers may read files and environment variables of this process, by `${file:…}` and
    /// `${env:…}`. A file that is named so is read again when it changes.
    pub fn config_with_references(mut self, source: impl ConfigSource) -> Self {
        self.sources.push((Arc::new(source), true));
        self
    }

    /// Settings of the program, in the shape of the file; all other sources override them.
    pub fn settings(mut self, settings: serde_json::Value) -> Self {
        self.program.push(settings);
        self
    }

    /// The environment variables to read instead of those of the process.
    pub fn environment(mut self, environment: Environment) -> Self {
        self.profiles = environment.get(PROFILE_VARIABLE).map(str::to_owned);
        self.environment = environment.without(&[FILE_VARIABLE, PROFILE_VARIABLE]);
        self
    }

    /// A registry of your own, instead of the one in the settings.
    pub fn registry(mut self, registry: impl Registry) -> Self {
        self.registry = Some(Arc::new(registry));
        self
    }

    /// A registry for the look-up of one service; all others, and the registration of this process, use the usual
    /// one. Precedes `discovery.services` of the settings.
    ///
    /// ```
    /// use chassis::{Chassis, registries::MemoryRegistry};
    ///
    /// let builder = Chassis::builder("orders").registry_of("billing", MemoryRegistry::shared("partners"));
    /// # let _ = builder;
    /// ```
    pub fn registry_of(mut self, service: &str, registry: impl Registry) -> Self {
        self.registries.insert(service.to_owned(), Arc::new(registry));
        self
    }

    /// A kind that the settings can choose by name, with settings of its own: `registry: { kind: table, … }`,
    /// an entry of `config.centers` or of `pickers`. A later kind replaces an earlier one of the same name, also a
    /// built-in one.
    ///
    /// [`Kind::Made`] decides the port: `Arc<dyn Registry>`, `Arc<dyn ConfigSource>` or
    /// `Arc<dyn PickerFactory>`.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use chassis::{Chassis, kind, registries::MemoryRegistry, registry::Registry};
    ///
    /// #[derive(serde::Deserialize)]
    /// #[serde(deny_unknown_fields)]
    /// struct TeamConfig {
    ///     team: String,
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> chassis::Result {
    /// let team = kind::from_fn("team", |config: &TeamConfig| {
    ///     Ok(Arc::new(MemoryRegistry::shared(&config.team)) as Arc<dyn Registry>)
    /// });
    /// let app = Chassis::builder("orders")
    ///     .settings(serde_json::json!({ "registry": { "kind": "team", "team": "shop" } }))
    ///     .kind(team)
    ///     .build()
    ///     .await?;
    /// # let _ = app;
    /// # Ok(()) }
    /// ```
    pub fn kind<K: Kind>(mut self, kind: K) -> Self
    where
        K::Made: Port,
    {
        self.reader.kind(kind);
        self
    }

    /// A section of the document: live settings for a layer or a service of your own.
    ///
    /// Layers read it from the policy of a call, [`Policy::extension`](crate::Policy::extension); services read
    /// it by [`Chassis::settings`]. Each section has its own name and its own type. Names of chassis' own
    /// tables are refused.
    ///
    /// ```
    /// use chassis::{Chassis, Section, Stage, from_fn};
    ///
    /// #[derive(Default, serde::Deserialize)]
    /// #[serde(default, deny_unknown_fields)]
    /// struct Audit {
    ///     /// Logs calls of this tenant. Default: none.
    ///     tenant: Option<String>,
    /// }
    ///
    /// let builder = Chassis::builder("orders")
    ///     .section(Section::<Audit>::new("x-audit"))
    ///     .layer(Stage::Call, "audit", from_fn(|call, next| async move {
    ///         if let Some(tenant) = call.policy().extension::<Audit>().and_then(|audit| audit.tenant.as_deref())
    ///             && call.metadata.get("x-tenant").is_some_and(|value| value == tenant)
    ///         {
    ///             println!("{tenant}: {}", call.target.operation);
    ///         }
    ///         next.run(call).await
    ///     }));
    /// # let _ = builder;
    /// ```
    pub fn section<T, C>(mut self, section: Section<T, C>) -> Self
    where
        T: Send + Sync + 'static,
        C: DeserializeOwned + 'static,
    {
        self.reader.section(section);
        self
    }

    /// The Prometheus registry for the metrics. Default: a registry of the service's own.
    pub fn metrics(mut self, registry: prometheus::Registry) -> Self {
        self.metrics = Some(registry);
        self
    }

    /// The source of randomness. Default: the operating system.
    pub fn random(mut self, random: Random) -> Self {
        self.random = random;
        self
    }

    /// A layer of your own: any tower layer, or an async function made one by [`from_fn`](crate::from_fn).
    ///
    /// `at` is a [`Stage`](crate::Stage), for the calls to all services, or [`Stage::of`](crate::Stage::of) for
    /// the calls to one; `name` is shown in the chain. Layers of one stage run in the order in which they were
    /// added: the first is outermost. The layer's errors may be of any type: [`Error::from_layer`] converts
    /// them.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use chassis::{Chassis, Stage, from_fn};
    /// use tower::timeout::TimeoutLayer;
    ///
    /// let builder = Chassis::builder("orders")
    ///     .layer(Stage::Call, "audit", from_fn(|call, next| async move {
    ///         println!("{}", call.target.operation);
    ///         next.run(call).await
    ///     }))
    ///     .layer(Stage::Call.of("stock"), "impatient", TimeoutLayer::new(Duration::from_millis(50)));
    /// # let _ = builder;
    /// ```
    pub fn layer<E, L>(mut self, at: impl Into<Placement<E>>, name: &str, layer: L) -> Self
    where
        E: CallError,
        L: Layer<Next<E>> + Send + Sync + 'static,
        L::Service: Service<Invocation, Response = Reply> + Clone + Send + Sync + 'static,
        <L::Service as Service<Invocation>>::Error: Into<BoxError>,
        <L::Service as Service<Invocation>>::Future: Send + 'static,
    {
        let at = at.into();
        self.stages.add_layer(at.stage(), name, at.service(), layer);
        self
    }

    /// A picker of your own, which the settings choose by name: `balance: name`. A [`Picker`] that can be cloned, or
    /// a factory that builds one for each subset of nodes.
    ///
    /// [`Picker`]: crate::layer::balance::Picker
    pub fn picker(mut self, name: &str, picker: impl PickerFactory) -> Self {
        self.pickers.insert(name.to_owned(), Arc::new(picker));
        self
    }

    /// A reply that replaces a failed call to `service`.
    pub fn fallback<F, Fut>(self, service: &str, answer: F) -> Self
    where
        F: Fn(FailedCall) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Answer, Error>> + Send + 'static,
    {
        self.fallback_of(service.to_owned(), None, answer)
    }

    /// A reply that replaces a failed call to one operation of `service`.
    pub fn fallback_for<F, Fut>(self, service: &str, operation: &str, answer: F) -> Self
    where
        F: Fn(FailedCall) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Answer, Error>> + Send + 'static,
    {
        self.fallback_of(service.to_owned(), Some(operation.to_owned()), answer)
    }

    fn fallback_of<F, Fut>(mut self, service: String, operation: Option<String>, answer: F) -> Self
    where
        F: Fn(FailedCall) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Answer, Error>> + Send + 'static,
    {
        let answer = move |failed| -> BoxFuture<'static, _> { Box::pin(answer(failed)) };
        self.fallbacks.insert((service, operation), Arc::new(answer));
        self
    }

    /// A protocol of one's own. Its metrics are registered when the service is built, and settings that only a
    /// protocol can read (the `message` of a `fallback`) are checked for it when they are loaded. gRPC and HTTP are
    /// registered where they are built in.
    pub fn protocol(mut self, protocol: &'static dyn Protocol) -> Self {
        self.protocols.push(protocol);
        self
    }

    /// An encoded `FileDescriptorSet` of protos that are called or served. It states which operations are
    /// idempotent, and server reflection shows it. All of them together are the [contract](Self::contracts) `descriptors`.
    pub fn descriptors(mut self, encoded: &[u8]) -> Self {
        self.descriptors.push(encoded.to_owned());
        self
    }

    /// An OpenAPI text of this service, in JSON or YAML: the [contract](Self::contracts) `name`, which has letters and
    /// digits, and within also `-`, `_` and `.`. A later text replaces an earlier one of the same name.
    pub fn openapi(mut self, name: &str, text: impl Into<String>) -> Self {
        self.openapi.retain(|earlier| earlier.name != name);
        self.openapi.push(Contract::openapi(name, text));
        self
    }

    /// Where this process publishes its contracts, and fetches those of others by [`Chassis::contracts`]. Default: the
    /// server of the registry, if its settings say `contracts: true`; otherwise nothing is published.
    ///
    /// The contracts are the [`descriptors`](Self::descriptors) and the [`openapi`](Self::openapi) texts of this builder, of
    /// the version and environment of the settings. They are published in the background, once the process is registered;
    /// no start and no call waits for that. A failure is an event, `ContractsNotPublished`, and is tried again.
    ///
    /// ```
    /// use chassis::{Chassis, registries::MemoryContracts};
    ///
    /// let shared = MemoryContracts::new(); // a port of one process
    /// let builder = Chassis::builder("stock")
    ///     .openapi("stock-api", "openapi: 3.1.0\n")
    ///     .contracts(shared.clone());
    /// # let _ = builder;
    /// ```
    pub fn contracts(mut self, contracts: impl Contracts) -> Self {
        self.contracts = Some(Arc::new(contracts));
        self
    }

    /// A quota that is asked each time before this process is registered. Default: none; the registry may have limits of its
    /// own. See [`Quota`].
    ///
    /// While the quota is used up, the process serves and is not found by others: `Event::QuotaExceeded`. It is asked again
    /// every minute.
    ///
    /// ```
    /// use chassis::{Chassis, registries::{MemoryQuota, MemoryRegistry}};
    ///
    /// let registry = MemoryRegistry::new();
    /// let builder = Chassis::builder("stock").registry(registry.clone()).quota(MemoryQuota::new(registry, 3));
    /// # let _ = builder;
    /// ```
    pub fn quota(mut self, quota: impl Quota) -> Self {
        self.quota = Some(Arc::new(quota));
        self
    }

    /// A health check that exists from the start to the stop of the service. It runs at once and then every
    /// [`interval`](CheckConfig::interval); while a critical one does not pass, this process is not ready: gRPC's health
    /// service answers NOT_SERVING, and the registry states `starting` or `out_of_service`.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use chassis::{Chassis, health::CheckConfig};
    ///
    /// # async fn ping() -> Result<(), std::io::Error> { Ok(()) }
    /// let config = CheckConfig { interval: Duration::from_secs(5), ..CheckConfig::default() };
    /// let builder = Chassis::builder("orders").health_check("db", config, || async {
    ///     ping().await?; // an error, a panic, and no answer in time are failures
    ///     Ok(())
    /// });
    /// # let _ = builder;
    /// ```
    pub fn health_check<F, Fut>(mut self, name: &str, config: CheckConfig, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let name = name.to_owned();
        self.checks.push(Box::new(move |health| health.check(&name, config, check).detach()));
        self
    }

    /// Runs before the listeners are bound; an error stops the start.
    pub fn before_start<Fut>(mut self, hook: impl FnOnce() -> Fut + Send + 'static) -> Self
    where
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.hooks.before_start.push(Hook::new(hook));
        self
    }

    /// Runs once the service is registered; an error stops the service in order.
    pub fn after_start<Fut>(mut self, hook: impl FnOnce() -> Fut + Send + 'static) -> Self
    where
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.hooks.after_start.push(Hook::new(hook));
        self
    }

    /// Runs at the beginning of a stop, for 5 s at most; an error is logged.
    pub fn before_stop<Fut>(mut self, hook: impl FnOnce() -> Fut + Send + 'static) -> Self
    where
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.hooks.before_stop.push(Hook::new(hook));
        self
    }

    /// Runs at the end of a stop, for 5 s at most; an error is logged.
    pub fn after_stop<Fut>(mut self, hook: impl FnOnce() -> Fut + Send + 'static) -> Self
    where
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.hooks.after_stop.push(Hook::new(hook));
        self
    }

    /// Reports panics of handlers by a log line only, with their text and place: the process's panic hook,
    /// which prints to stderr by default, is not called for them. Applies to the whole process. Default: the
    /// hook is called, too.
    pub fn quiet_panics(self) -> Self {
        chassis_core::layer::panic::quiet_panics();
        self
    }

    /// Reads the settings and sets up everything but the listeners. Call it within a tokio runtime.
    ///
    /// # Errors
    /// [`StartError::Settings`] with every line that is wrong; [`StartError::Setup`] for an unusable registry,
    /// invalid descriptors, or a metric whose name is taken.
    pub async fn build(self) -> Result<Chassis, StartError> {
        let cli = self.cli.clone();
        self.make().await.inspect_err(|error| cli.refuse(error))
    }

    async fn make(self) -> Result<Chassis, StartError> {
        let setup = |what: &str, error: BoxError| StartError::Setup(what.to_owned(), error);
        // Checks settings before the runtime exists that they apply to.
        let mut checker = Runtime::builder(&self.name).stages(self.stages.clone());
        for protocol in &self.protocols {
            checker = checker.protocol(*protocol);
        }
        for (name, picker) in &self.pickers {
            checker = checker.picker(name, picker.clone());
        }
        let checker = checker.build().map_err(|error| setup("metrics", error.into()))?;
        if let [conflict, ..] = self.reader.conflicts() {
            return Err(StartError::Settings(conflict.clone()));
        }
        self.cli.answer_at_once(&self.reader);
        let reader = Arc::new(self.reader);
        let read = {
            let reader = reader.clone();
            move |tree: &tree::Node| reader.read(tree)
        };
        let file = match (self.file, std::env::var_os(FILE_VARIABLE)) {
            (File::IfThere, Some(named)) => File::At(named.into()),
            (file, _) => file,
        };
        let profiles = profiles(self.profiles.as_deref().unwrap_or(&self.default_profiles))
            .map_err(|why| StartError::Settings(format!("{} {PROFILE_VARIABLE}: {why}", Code::WrongValue)))?;
        let (environment, overrides) = (self.environment, self.cli.overrides(self.overrides));
        let base =
            Base { program: self.program, file, environment, overrides, profiles, ciphers: self.ciphers };
        let (centers, keep) = centers::named(&reader, &base).await?;
        let is_named = matches!(keep, Keep::In(_));
        let last_good = match keep {
            Keep::Off | Keep::Wrong(_) => None,
            Keep::In(directory) => Some(LastGood::new(directory)),
            Keep::ByDefault => LastGood::of_service(&self.name, &base.environment),
        };
        let loader = Loader::reading(read, move |document: &Document| check(&checker, document));
        let mut loader = base.under(loader).renamed(centers::renames(&reader));
        // Questions of the command line are about the settings as they are written.
        let guard =
            last_good.clone().filter(|_| (is_named || !centers.is_empty()) && !self.cli.is_question());
        let guard = guard.map(|disk| Arc::new(CrashGuard::open(disk, SURVIVAL)));
        let rollout = Rollout::new(loader.control(), guard.clone());
        if !self.cli.is_question() {
            loader =
                loader.gate(rollout.clone(), guard.as_ref().map(|guard| guard.proven()).unwrap_or_default());
        }
        for (source, has_references) in self.sources {
            let source = contain::config_source(source, &self.events, contain::BLOCKED_AFTER);
            let options = SourceOptions { needed: true, has_references };
            loader = loader.source_with(tree::Layer::Center, source, options);
        }
        let mut optional = Vec::new();
        for center in &centers {
            let source = centers::source(center, last_good.as_ref(), &self.events)
                .map_err(|error| setup(&center.path, error))?;
            let source = contain::config_source(source, &self.events, contain::BLOCKED_AFTER);
            if !center.is_required {
                optional.push(source.name());
            }
            let options = SourceOptions { needed: center.is_required, has_references: center.has_references };
            loader = loader.source_with(tree::Layer::Center, source, options);
        }
        let version = loop {
            match loader.next().await {
                Change::Applied(version) => break version,
                Change::Refused(refusal) => return Err(StartError::Settings(refusal.to_string())),
                Change::Unreadable(unreadable) if unreadable.needed => {
                    return Err(StartError::Settings(unreadable.to_string()));
                }
                Change::Unreadable(unreadable) if optional.contains(&unreadable.source) => {
                    let error = unreadable.to_string();
                    self.events.emit(Event::ConfigUnreadable { in_force: 0, error });
                }
                Change::Avoided(avoided) => {
                    let why = format!("settings {} are not applied, because {}", avoided.hash, avoided.why);
                    if avoided.is_stuck {
                        let no_others = "no earlier settings are on disk; change the settings";
                        return Err(StartError::Settings(format!("{why}; {no_others}")));
                    }
                    tracing::error!(target: "chassis", "{why}: started with the last settings that were proven");
                    self.events.emit(avoided_event(0, avoided));
                }
                Change::Unreadable(_) | Change::Restored(_) | Change::Held(_) => {}
            }
        };
        self.cli.answer(&version, &reader);
        let document = &version.document;
        let (chosen, registry) = match self.registry {
            Some(registry) => (None, registry),
            None => {
                let chosen =
                    reader.registry(document, &version.tree).map_err(|error| setup("registry", error))?;
                let registry = chosen.make().map_err(|error| setup("registry", error))?;
                (Some(chosen), registry)
            }
        };
        let port = self.contracts.or_else(|| registry.contracts());
        let port = port.map(|port| contain::contracts(port, &self.events, contain::BLOCKED_AFTER));
        let quota = self.quota.map(|quota| contain::quota(quota, &self.events, contain::BLOCKED_AFTER));
        let mut registries = BTreeMap::new();
        for (service, chosen) in &document.discovery.services {
            let at = || format!("discovery.services.{service}.registry");
            registries.insert(service.clone(), chosen.make_fixed().map_err(|error| setup(&at(), error))?);
        }
        registries.extend(self.registries);
        let registry = match registries.is_empty() {
            true => registry,
            false => {
                // Each by itself: one that blocks delays no other.
                let contained = |registry| contain::registry(registry, &self.events, contain::BLOCKED_AFTER);
                let usual = RegistryByService::new(contained(registry));
                let all = registries.into_iter();
                let each = |all: RegistryByService, (service, registry): (String, _)| {
                    all.service(service, contained(registry))
                };
                Arc::new(all.fold(usual, each)) as Arc<dyn Registry>
            }
        };
        let name = document.service.name.clone().unwrap_or(self.name);
        check_name(&name)
            .map_err(|why| StartError::Settings(format!("{} the builder's name: {why}", Code::WrongValue)))?;
        let mut labels = LabelSet::from_iter(document.service.labels.clone());
        let ServiceSection { version: runs, zone, region, app, environment, .. } = &document.service;
        let stated = [
            ("version", runs),
            ("zone", zone),
            ("region", region),
            ("app", app),
            ("environment", environment),
        ];
        for (key, value) in stated {
            if let Some(value) = value {
                labels = LabelSet::from_iter([(key, value.as_str())]).and(&labels);
            }
        }
        let mut runtime = Runtime::builder(&name)
            .labels(labels)
            .registry(registry)
            .environment(environment.as_deref().unwrap_or_default())
            .random(self.random.clone())
            .events(self.events)
            .stages(self.stages);
        if let Some(last_good) = &document.discovery.last_good {
            runtime = runtime.last_good(last_good.clone());
        }
        if let Some(metrics) = self.metrics {
            runtime = runtime.metrics(metrics);
        }
        for protocol in self.protocols {
            runtime = runtime.protocol(protocol);
        }
        for (name, picker) in self.pickers {
            runtime = runtime.picker(name, picker);
        }
        for ((service, operation), answer) in self.fallbacks {
            runtime = runtime.fallback(service, operation, answer);
        }
        let declared = Declared::of(&self.descriptors)?;
        let owner = ContractOwner::new(&name, runs.as_deref().unwrap_or_default())
            .in_environment(environment.as_deref().unwrap_or_default());
        let published =
            of_program(&self.descriptors, self.openapi).map_err(|error| setup("openapi", error.into()))?;
        let runtime = runtime
            .idempotent(declared.idempotent)
            .build()
            .map_err(|error| setup("metrics", error.into()))?;
        let read_once = reader.read_once(chosen.as_ref());
        let (control, held) = (loader.control(), rollout.clone());
        let config = ConfigHandle::new(control, held, reader.clone(), read_once, &version, &runtime);
        let follower = Follower {
            runtime: runtime.clone(),
            config: config.clone(),
            last_good: last_good.filter(|_| !centers.is_empty()),
            registry: chosen.map(|chosen| chosen.kind().to_owned()),
            declared: declared.operations,
            shutdown: Live::new(document.shutdown.clone()),
            guard: guard.clone(),
            rollout: rollout.clone(),
        };
        let instance = self.instance.unwrap_or_else(|| identity::instance_id(&name, &self.random));
        rollout.is(&instance, environment.as_deref());
        let shutdown = follower.shutdown.clone();
        follower.apply(&version, &mut Vec::new());
        let rest = Rest::new(self.rest, &version);
        let rpc = Rpc::new(self.rpc, &rest, self.descriptors);
        self.checks.into_iter().for_each(|begin| begin(runtime.health()));
        let presence = Presence::new(runtime.health(), rpc.health());
        runtime.tasks().spawn(presence.clone().follow(runtime.health().watch()));
        let publisher = port.clone().filter(|_| !published.is_empty()).map(|port| Publisher {
            port,
            of: owner.clone(),
            contracts: published,
            runtime: runtime.clone(),
            presence: presence.clone(),
            is_reported: false,
        });
        runtime.tasks().spawn(rollout.clone().drive(runtime.clone(), presence.clone()));
        let parts = Parts {
            instance,
            runtime: runtime.clone(),
            config,
            crash_guard: guard.map(Watched),
            rollout,
            presence,
            service: document.service.clone(),
            shutdown,
            hooks: self.hooks,
            advertised: Vec::new(),
            contracts: ContractsHandle::new(port, &owner.environment),
            publisher,
            quota,
            sections: reader.sections().map(str::to_owned).collect(),
        };
        let app = Chassis { parts, rest, rpc };
        runtime.tasks().spawn(follower.follow(loader, version));
        Ok(app)
    }
}

/// The event for settings that are not applied.
pub(crate) fn avoided_event(in_force: u64, avoided: chassis_config::Avoided) -> Event {
    let changed = avoided.changed.iter().map(ToString::to_string).collect();
    Event::ConfigAvoided { in_force, hash: avoided.hash, why: avoided.why, changed }
}

/// The pipeline's settings, if the document as a whole is valid.
fn check(checker: &Runtime, document: &Document) -> Result<(Settings, Vec<Finding>), Vec<Finding>> {
    let settings = document.settings();
    let mut findings = document.check();
    if let Err(problems) = checker.check(&settings) {
        findings.extend(problems.into_iter().map(Finding::from));
    }
    match findings.is_empty() {
        true => Ok((settings, Vec::new())),
        false => Err(findings),
    }
}
