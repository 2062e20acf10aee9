//! A service with its clients and servers, about to run.
#[cfg(feature = "http")]
use std::collections::BTreeMap;
use std::sync::Arc;

#[cfg(feature = "http")]
use chassis_config::Finding;
use chassis_config::document::{Listen, ServiceSection, ShutdownSection};
use chassis_core::{Live, Runtime, Side, pipeline};
#[cfg(feature = "http")]
use chassis_http::{
    ClientConfig, ClientPatch, HttpClient, HttpTransport, RestLayer, ServerConfig, ServerPatch,
    connector::{Acceptor, Connector, Network},
    server::Mux,
};

use crate::{
    StartError,
    builder::ChassisBuilder,
    life::{Hooks, Running},
};

/// A service: its clients by name, its servers, and its life.
///
/// See the crate's front page for a whole one.
pub struct Chassis {
    pub(crate) parts: Parts,
    #[cfg(feature = "http")]
    pub(crate) transports: Transports,
    #[cfg(feature = "http")]
    pub(crate) ports: BTreeMap<String, PortPlan>,
    #[cfg(feature = "http")]
    pub(crate) acceptor: Option<Arc<dyn Acceptor>>,
    #[cfg(feature = "grpc")]
    pub(crate) health: chassis_grpc::Health,
    #[cfg(feature = "grpc")]
    grpc: chassis_grpc::GrpcServices,
    #[cfg(feature = "grpc")]
    reflection: bool,
}

/// What the builder hands over.
pub(crate) struct Parts {
    pub(crate) instance: String,
    pub(crate) runtime: Runtime,
    pub(crate) service: ServiceSection,
    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "nothing listens without HTTP"))]
    pub(crate) listen: Listen,
    /// Where everything stands, for messages.
    #[cfg(feature = "http")]
    pub(crate) tree: chassis_config::tree::Node,
    pub(crate) shutdown: Live<ShutdownSection>,
    pub(crate) is_local: bool,
    pub(crate) hooks: Hooks,
    /// Addresses of protocols of the user's own.
    pub(crate) advertised: Vec<(String, String)>,
    #[cfg_attr(not(feature = "grpc"), expect(dead_code, reason = "descriptors are gRPC's"))]
    pub(crate) descriptors: Vec<Vec<u8>>,
    #[cfg(feature = "http")]
    pub(crate) http_layers: Vec<crate::builder::HttpLayer>,
    #[cfg(feature = "grpc")]
    pub(crate) grpc_layers: Vec<crate::builder::GrpcLayer>,
    #[cfg(feature = "http")]
    pub(crate) network: Network,
    #[cfg(feature = "http")]
    pub(crate) connector: Arc<dyn Connector>,
    #[cfg(feature = "http")]
    pub(crate) client: ClientPatch,
    #[cfg(feature = "http")]
    pub(crate) server: ServerPatch,
}

/// One of each, so that clients of one service share its connections.
#[cfg(feature = "http")]
pub(crate) struct Transports {
    http: Arc<HttpTransport>,
    #[cfg(feature = "grpc")]
    grpc: Arc<chassis_grpc::GrpcTransport>,
    /// Bytes of a REST answer that are read into memory at once.
    max_body: usize,
    #[cfg(feature = "grpc")]
    max_message: usize,
}

/// What is served behind one name of `listen`.
#[cfg(feature = "http")]
#[derive(Clone, Default)]
pub(crate) struct PortPlan {
    pub(crate) mux: Mux,
    pub(crate) about: Vec<String>,
}

#[cfg(feature = "http")]
/// Where is listened unless the settings say otherwise: on loopback only, nobody else gets in by chance.
const DEFAULT_PORTS: [(&str, &str); 2] = [("grpc", "127.0.0.1:50051"), ("http", "127.0.0.1:8080")];

// === impl Transports ===

#[cfg(feature = "http")]
impl Transports {
    pub(crate) fn client(&self, runtime: &Runtime, service: &str) -> HttpClient {
        HttpClient::new(service, pipeline::client(runtime, service, &self.http)).max_body(self.max_body)
    }

    #[cfg(feature = "grpc")]
    pub(crate) fn channel(&self, runtime: &Runtime, service: &str) -> chassis_grpc::Channel {
        chassis_grpc::Channel::new(service, pipeline::client(runtime, service, &self.grpc))
            .max_message(self.max_message)
    }
}

// === impl Chassis ===

impl Chassis {
    /// Starts to make the service of this name.
    pub fn builder(name: &str) -> ChassisBuilder {
        ChassisBuilder::new(name)
    }

    pub(crate) fn new(parts: Parts) -> Self {
        #[cfg(feature = "http")]
        let transports = {
            use chassis_core::units::Patch;
            let mut config = ClientConfig::default();
            parts.client.apply(&mut config);
            let connector = &parts.connector;
            Transports {
                max_body: config.max_body.get(),
                http: Arc::new(HttpTransport::new(connector.clone(), config.clone())),
                #[cfg(feature = "grpc")]
                max_message: config.max_message.get(),
                #[cfg(feature = "grpc")]
                grpc: Arc::new(chassis_grpc::GrpcTransport::new(connector.clone(), config)),
            }
        };
        Chassis {
            parts,
            #[cfg(feature = "http")]
            transports,
            #[cfg(feature = "http")]
            ports: BTreeMap::new(),
            #[cfg(feature = "http")]
            acceptor: None,
            #[cfg(feature = "grpc")]
            health: Default::default(),
            #[cfg(feature = "grpc")]
            grpc: Default::default(),
            #[cfg(feature = "grpc")]
            reflection: false,
        }
    }

    /// A channel to `service`, for any stub that tonic generates.
    #[cfg(feature = "grpc")]
    pub fn grpc(&self, service: &str) -> chassis_grpc::Channel {
        self.transports.channel(&self.parts.runtime, service)
    }

    /// A client of the REST service `service`.
    #[cfg(feature = "http")]
    pub fn http(&self, service: &str) -> HttpClient {
        self.transports.client(&self.parts.runtime, service)
    }

    /// A pipeline to `service` over a transport of one's own: see [`protocol`](crate::protocol).
    pub fn client<T: crate::protocol::Transport>(
        &self,
        service: &str,
        transport: &Arc<T>,
    ) -> pipeline::Pipeline {
        pipeline::client(&self.parts.runtime, service, transport)
    }

    /// Serves a tonic service, at `listen.grpc`.
    #[cfg(feature = "grpc")]
    pub fn serve_grpc<S>(mut self, service: S) -> Self
    where
        S: tower_service::Service<
                http::Request<tonic::body::Body>,
                Response = http::Response<tonic::body::Body>,
                Error = std::convert::Infallible,
            > + tonic::server::NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.grpc = self.grpc.add(service);
        self
    }

    /// Answers reflection over gRPC too, with the descriptors that the builder was given. Default: not.
    #[cfg(feature = "grpc")]
    pub fn reflection(mut self) -> Self {
        self.reflection = true;
        self
    }

    /// Serves an axum router, at `listen.http`.
    #[cfg(feature = "http")]
    pub fn serve_http(self, router: axum::Router) -> Self {
        self.serve_http_at("http", router)
    }

    /// Serves an axum router at another name of `listen`.
    #[cfg(feature = "http")]
    pub fn serve_http_at(mut self, name: &str, router: axum::Router) -> Self {
        let timeout_header = self.server_config().timeout_header.0;
        let server = RestLayer::new(&self.parts.runtime).timeout_header(timeout_header);
        let layers = self.parts.http_layers.iter().rev();
        let server = server.serve_within(router, |router| layers.fold(router, |router, layer| layer(router)));
        let plan = self.ports.entry(name.to_owned()).or_default();
        plan.about.push("REST".to_owned());
        plan.mux.http = Some(Arc::new(server));
        self
    }

    /// Tells others that this process is reached at `address` by a protocol of one's own, whose server
    /// is the program's: it goes into the registry with the rest.
    pub fn advertise(mut self, protocol: &str, address: &str) -> Self {
        self.parts.advertised.push((protocol.to_owned(), address.to_owned()));
        self
    }

    /// Turns accepted streams into those that HTTP is spoken on, on every port: TLS goes in here.
    #[cfg(feature = "http")]
    pub fn acceptor(mut self, acceptor: impl Acceptor) -> Self {
        self.acceptor = Some(Arc::new(acceptor));
        self
    }

    /// What the running service shares, and everything there is to see of it.
    pub fn runtime(&self) -> &Runtime {
        &self.parts.runtime
    }

    /// The id of this process in its registry.
    pub fn instance(&self) -> &str {
        &self.parts.instance
    }

    /// The chains that calls go through, outermost first: out to `service`, and in.
    pub fn chains(&self, service: &str) -> [String; 2] {
        [Side::Client, Side::Server].map(|side| pipeline::chain(&self.parts.runtime, side, service))
    }

    /// Starts, and returns when everything listens and is registered.
    ///
    /// # Errors
    /// A hook that failed, a listener that could not be bound. What had been started is stopped.
    pub async fn start(self) -> Result<Running, StartError> {
        Running::start(self).await
    }

    /// Starts, serves until SIGTERM or SIGINT, and stops in order. A second signal exits at once.
    pub async fn run(self) -> Result<(), StartError> {
        let mut signals = crate::life::Signals::new()?;
        let running = tokio::select! {
            started = self.start() => started?,
            _ = signals.next() => return Ok(()),
        };
        signals.next().await;
        tokio::select! {
            () = running.stop() => Ok(()),
            number = signals.next() => std::process::exit(128 + number),
        }
    }

    /// Everything that is served by name, gRPC included, and the address of each.
    #[cfg(feature = "http")]
    pub(crate) fn plan(&mut self) -> Result<Vec<(String, String, PortPlan)>, StartError> {
        #[cfg(feature = "grpc")]
        self.plan_grpc()?;
        let ports = std::mem::take(&mut self.ports);
        let mut planned = Vec::new();
        for (name, plan) in ports {
            let address = self.parts.listen.0.get(&name).map(ToString::to_string);
            let default =
                || DEFAULT_PORTS.iter().find(|(n, _)| *n == name).map(|(_, address)| (*address).to_owned());
            let Some(address) = address.or_else(default) else {
                let message = format!("listen.{name}: a router is served there, and no address is set");
                return Err(StartError::Settings(message));
            };
            planned.push((name, address, plan));
        }
        self.check_listen(planned.iter().map(|(name, ..)| name.as_str()).collect())?;
        Ok(planned)
    }

    /// Refuses names of `listen` behind which nothing is served: the default port would be bound instead.
    /// `grpc` and `http` may be there without, so that one file can serve several programs.
    #[cfg(feature = "http")]
    fn check_listen(&self, mut served: Vec<&str>) -> Result<(), StartError> {
        served.extend(DEFAULT_PORTS.iter().map(|(name, _)| *name));
        served.sort_unstable();
        served.dedup();
        let unserved = self.parts.listen.0.keys().filter(|name| !served.contains(&name.as_str()));
        let told = unserved.map(|name| {
            let message = "nothing is served by this name";
            Finding::error(format!("listen.{name}"), message)
                .instead(name, served.iter().copied())
                .place(&self.parts.tree)
                .to_string()
        });
        match told.collect::<Vec<_>>() {
            none if none.is_empty() => Ok(()),
            told => Err(StartError::Settings(told.join("\n"))),
        }
    }

    #[cfg(feature = "grpc")]
    fn plan_grpc(&mut self) -> Result<(), StartError> {
        let mut services = std::mem::take(&mut self.grpc);
        if services.names().next().is_none() {
            return Ok(());
        }
        let setup = |error| StartError::Setup("descriptors".to_owned(), Box::new(error));
        for encoded in std::mem::take(&mut self.parts.descriptors) {
            services = services.descriptors(encoded).map_err(setup)?;
        }
        services = services.health(&self.health);
        if self.reflection {
            services = services.reflection().map_err(setup)?;
        }
        let mut names: Vec<_> = services.names().map(str::to_owned).collect();
        names.sort_unstable();
        let plan = self.ports.entry("grpc".to_owned()).or_default();
        plan.about.extend(names);
        let server = chassis_grpc::GrpcServer::new(&self.parts.runtime, services);
        let layers = self.parts.grpc_layers.iter().rev();
        plan.mux.grpc = Some(match layers.len() {
            0 => Arc::new(server),
            _ => Arc::new(layers.fold(chassis_grpc::GrpcEdge::new(server), |edge, layer| layer(edge))),
        });
        Ok(())
    }

    /// What is no gRPC goes through the layers around it where nobody else answers.
    #[cfg(feature = "http")]
    pub(crate) fn layered(&self, mux: Mux) -> Mux {
        #[cfg(feature = "grpc")]
        if mux.http.is_none() && !self.parts.grpc_layers.is_empty() {
            return Mux { http: mux.grpc.clone(), ..mux };
        }
        mux
    }

    #[cfg(feature = "http")]
    pub(crate) fn server_config(&self) -> ServerConfig {
        use chassis_core::units::Patch;
        let mut config = ServerConfig::default();
        self.parts.server.apply(&mut config);
        config
    }
}
