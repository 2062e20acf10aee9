//! The HTTP part of a service: clients of REST services, and all listeners.
mod listen;

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use chassis_config::{Code, Finding, Version, tree::Node};
use chassis_core::{Runtime, pipeline, settings::Settings, units::Patch};
use chassis_http::{
    ClientConfig, ClientPatch, HttpClient, HttpTransport, RestLayer, ServerConfig, ServerPatch,
    connector::{Acceptor, Connector, Network},
    server::{Mux, Server},
};
use tower_layer::Layer;
use tower_service::Service;

pub(crate) use self::listen::listen;
use crate::{
    Chassis, ChassisBuilder, Document, Running, StartError,
    document::{Listen, OWN_LISTENERS},
};

/// The builder's settings for HTTP.
#[derive(Default)]
pub(crate) struct Setup {
    layers: Vec<HttpLayer>,
    network: Network,
    connector: Option<Arc<dyn Connector>>,
}

/// Wraps a layer around a router.
type HttpLayer = Box<dyn Fn(axum::Router) -> axum::Router + Send + Sync>;

/// The HTTP part of a service.
pub(crate) struct Rest {
    /// One transport, so that clients of one service share its connections.
    transport: Arc<HttpTransport>,
    #[cfg_attr(not(feature = "grpc"), expect(dead_code, reason = "gRPC's transport has it too"))]
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) client: ClientConfig,
    layers: Vec<HttpLayer>,
    pub(crate) network: Network,
    acceptor: Option<Arc<dyn Acceptor>>,
    server_config: ServerConfig,
    pub(crate) listen: Listen,
    /// The settings tree, for positions in messages.
    pub(crate) tree: Node,
    pub(crate) ports: Ports,
    /// The server, once it listens.
    server: Option<Server>,
}

/// The served parts, by their name in `listen`.
pub(crate) type Ports = BTreeMap<String, PortPlan>;

/// The parts that are served under one name of `listen`.
#[derive(Clone, Default)]
pub(crate) struct PortPlan {
    pub(crate) mux: Mux,
    pub(crate) about: Vec<String>,
}

/// The default addresses, on loopback, so that no other machine can connect by accident.
const DEFAULT_PORTS: [(&str, &str); 2] = [("grpc", "127.0.0.1:50051"), ("http", "127.0.0.1:8080")];

/// The protocols that a builder registers.
pub(crate) const PROTOCOLS: &[&'static dyn chassis_core::protocol::Protocol] = &[&chassis_http::HTTP];

// === impl Rest ===

impl Rest {
    pub(crate) fn new(setup: Setup, version: &Version<Document, Settings>) -> Self {
        let sections = &version.document.sections;
        let (mut client, mut server_config) = (ClientConfig::default(), ServerConfig::default());
        if let Some(patch) = sections.get::<ClientPatch>() {
            patch.clone().apply(&mut client);
        }
        if let Some(patch) = sections.get::<ServerPatch>() {
            patch.clone().apply(&mut server_config);
        }
        let connector = setup.connector.unwrap_or_else(|| Arc::new(setup.network.clone()));
        Rest {
            transport: Arc::new(HttpTransport::new(connector.clone(), client.clone())),
            connector,
            client,
            layers: setup.layers,
            network: setup.network,
            acceptor: None,
            server_config,
            listen: version.document.listen.clone(),
            tree: version.tree.clone(),
            ports: Ports::new(),
            server: None,
        }
    }

    fn client(&self, runtime: &Runtime, service: &str) -> HttpClient {
        let client = HttpClient::new(service, pipeline::client(runtime, service, &self.transport));
        client.max_body(self.client.max_body.get())
    }

    /// Everything that is served by name, gRPC included, and the address of each.
    fn plan(&mut self) -> Result<Vec<(String, String, PortPlan)>, StartError> {
        let mut planned = Vec::new();
        for (name, plan) in std::mem::take(&mut self.ports) {
            if OWN_LISTENERS.contains(&&*name) {
                let why = "this is the admin surface; a program serves its own at another name";
                let problem = Finding::error(format!("listen.{name}"), why).place(&self.tree);
                return Err(StartError::Settings(problem.to_string()));
            }
            let address = self.listen.0.get(&name).map(ToString::to_string);
            let default =
                || DEFAULT_PORTS.iter().find(|(n, _)| *n == name).map(|(_, address)| (*address).to_owned());
            let Some(address) = address.or_else(default) else {
                let why = "a router is served there, and no address is set";
                let problem = Finding::error(format!("listen.{name}"), why).place(&self.tree);
                return Err(StartError::Settings(problem.coded(Code::Missing).to_string()));
            };
            planned.push((name, address, plan));
        }
        self.check_listen(planned.iter().map(|(name, ..)| name.as_str()).collect())?;
        Ok(planned)
    }

    /// Refuses names of `listen` that nothing is served at: the default port would be bound instead. `grpc` and
    /// `http` may be unused, so that one file can configure several programs.
    fn check_listen(&self, mut served: Vec<&str>) -> Result<(), StartError> {
        served.extend(DEFAULT_PORTS.iter().map(|(name, _)| *name).chain(OWN_LISTENERS));
        served.sort_unstable();
        served.dedup();
        let unserved = self.listen.0.keys().filter(|name| !served.contains(&name.as_str()));
        let messages = unserved.map(|name| {
            let message = "nothing is served by this name";
            Finding::error(format!("listen.{name}"), message)
                .instead(name, served.iter().copied())
                .place(&self.tree)
                .to_string()
        });
        match messages.collect::<Vec<_>>() {
            none if none.is_empty() => Ok(()),
            messages => Err(StartError::Settings(messages.join("\n"))),
        }
    }

    /// Stops the listeners within `deadline`; returns how many calls were aborted.
    pub(crate) async fn drain(&self, deadline: Duration) -> usize {
        match &self.server {
            Some(server) => server.drain(deadline).await,
            None => 0,
        }
    }
}

// === impl ChassisBuilder ===

impl ChassisBuilder {
    /// A layer of HTTP around every router that is served, above the pipeline: CORS, an access log. Unlike the
    /// router's own layers it also sees calls that the pipeline refuses. The first layer added is outermost;
    /// the bounds are those of axum's `Router::layer`. The request extension
    /// [`Connected`](crate::http::server::Connected) holds the peer's address and the local port.
    ///
    /// ```
    /// use axum::{extract::Request, http::HeaderValue, middleware::{Next, from_fn}, response::Response};
    /// use chassis::Chassis;
    ///
    /// async fn allow_any_origin(request: Request, next: Next) -> Response {
    ///     let mut answer = next.run(request).await;
    ///     answer.headers_mut().insert("access-control-allow-origin", HeaderValue::from_static("*"));
    ///     answer
    /// }
    ///
    /// let builder = Chassis::builder("orders").http_layer(from_fn(allow_any_origin));
    /// # let _ = builder;
    /// ```
    pub fn http_layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<axum::routing::Route> + Clone + Send + Sync + 'static,
        L::Service: Service<axum::extract::Request> + Clone + Send + Sync + 'static,
        <L::Service as Service<axum::extract::Request>>::Response: axum::response::IntoResponse + 'static,
        <L::Service as Service<axum::extract::Request>>::Error: Into<Infallible> + 'static,
        <L::Service as Service<axum::extract::Request>>::Future: Send + 'static,
    {
        self.rest.layers.push(Box::new(move |router| router.layer(layer.clone())));
        self
    }

    /// The network to connect and listen on: services that share a network in memory can call each other.
    pub fn network(mut self, network: Network) -> Self {
        self.rest.network = network;
        self
    }

    /// Opens the connections of all clients, instead of the network: for TLS, for example. Default: the
    /// network.
    pub fn connector(mut self, connector: impl Connector) -> Self {
        self.rest.connector = Some(Arc::new(connector));
        self
    }
}

// === impl Chassis ===

impl Chassis {
    /// A client of the REST service `service`.
    pub fn http(&self, service: &str) -> HttpClient {
        self.rest.client(&self.parts.runtime, service)
    }

    /// Serves an axum router, at `listen.http`.
    pub fn serve_http(self, router: axum::Router) -> Self {
        self.serve_http_at("http", router)
    }

    /// Serves an axum router at another name of `listen`.
    pub fn serve_http_at(mut self, name: &str, router: axum::Router) -> Self {
        let timeout_header = self.rest.server_config.timeout_header.0.clone();
        let server = RestLayer::new(&self.parts.runtime).timeout_header(timeout_header).listener(name);
        let layers = self.rest.layers.iter().rev();
        let server = server.serve_within(router, |router| layers.fold(router, |router, layer| layer(router)));
        let plan = self.rest.ports.entry(name.to_owned()).or_default();
        plan.about.push("REST".to_owned());
        plan.mux.http = Some(Arc::new(server));
        self
    }

    /// Turns accepted streams into those that HTTP is spoken on, on every port but those of the admin surface: for TLS,
    /// for example.
    pub fn acceptor(mut self, acceptor: impl Acceptor) -> Self {
        self.rest.acceptor = Some(Arc::new(acceptor));
        self
    }
}

// === impl Running ===

impl Running {
    /// A client of the REST service `service`.
    pub fn http(&self, service: &str) -> HttpClient {
        self.rest.client(self.runtime(), service)
    }
}
