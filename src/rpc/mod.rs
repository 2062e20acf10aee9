//! The gRPC part of a service: channels for stubs, and services.
use std::{convert::Infallible, sync::Arc};

use chassis_core::{BoxError, Runtime, pipeline};
use chassis_grpc::{Channel, GrpcEdge, GrpcServer, GrpcServices, GrpcTransport, Health};
use chassis_http::server::Mux;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    Chassis, ChassisBuilder, Running, StartError,
    rest::{Ports, Rest},
};

/// The builder's settings for gRPC.
#[derive(Default)]
pub(crate) struct Setup {
    layers: Vec<GrpcLayer>,
}

/// Wraps a layer around a gRPC server.
type GrpcLayer = Box<dyn Fn(GrpcEdge) -> GrpcEdge + Send + Sync>;

/// The gRPC part of a service.
pub(crate) struct Rpc {
    /// One transport, so that channels of one service share its connections.
    transport: Arc<GrpcTransport>,
    max_message: usize,
    health: Health,
    services: GrpcServices,
    layers: Vec<GrpcLayer>,
    descriptors: Vec<Vec<u8>>,
    reflection: bool,
}

/// Operations that the descriptors declare: the idempotent ones, and all.
#[derive(Default)]
pub(crate) struct Declared {
    pub(crate) idempotent: Vec<String>,
    pub(crate) operations: Vec<String>,
}

// === impl Declared ===

impl Declared {
    pub(crate) fn of(descriptors: &[Vec<u8>]) -> Result<Self, StartError> {
        let mut declared = Declared::default();
        for encoded in descriptors {
            let idempotent = chassis_grpc::idempotent_operations(encoded);
            declared.idempotent.extend(idempotent.map_err(setup)?);
            declared.operations.extend(chassis_grpc::operations(encoded).unwrap_or_default());
        }
        Ok(declared)
    }
}

fn setup(error: impl std::error::Error + Send + Sync + 'static) -> StartError {
    StartError::Setup("descriptors".to_owned(), Box::new(error))
}

/// One set of all descriptors, in which each file stands once. Empty without any.
pub(crate) fn merged(descriptors: &[Vec<u8>]) -> Vec<u8> {
    chassis_grpc::merge_descriptors(descriptors)
}

/// The protocols that a builder registers.
pub(crate) const PROTOCOLS: &[&'static dyn chassis_core::protocol::Protocol] = &[&chassis_grpc::GRPC];

// === impl Rpc ===

impl Rpc {
    pub(crate) fn new(setup: Setup, rest: &Rest, descriptors: Vec<Vec<u8>>) -> Self {
        Rpc {
            transport: Arc::new(GrpcTransport::new(rest.connector.clone(), rest.client.clone())),
            max_message: rest.client.max_message.get(),
            health: Health::default(),
            services: GrpcServices::default(),
            layers: setup.layers,
            descriptors,
            reflection: false,
        }
    }

    fn channel(&self, runtime: &Runtime, service: &str) -> Channel {
        Channel::new(service, pipeline::client(runtime, service, &self.transport))
            .max_message(self.max_message)
    }

    /// Adds the gRPC services to the served parts, if there are any.
    pub(crate) fn plan(&mut self, runtime: &Runtime, ports: &mut Ports) -> Result<(), StartError> {
        let mut services = std::mem::take(&mut self.services);
        if services.names().next().is_none() {
            return Ok(());
        }
        for encoded in std::mem::take(&mut self.descriptors) {
            services = services.descriptors(encoded).map_err(setup)?;
        }
        services = services.health(&self.health);
        if self.reflection {
            services = services.reflection().map_err(setup)?;
        }
        let mut names: Vec<_> = services.names().map(str::to_owned).collect();
        names.sort_unstable();
        let plan = ports.entry("grpc".to_owned()).or_default();
        plan.about.extend(names);
        let server = GrpcServer::new(runtime, services);
        let layers = self.layers.iter().rev();
        plan.mux.grpc = Some(match layers.len() {
            0 => Arc::new(server),
            _ => Arc::new(layers.fold(GrpcEdge::new(server), |edge, layer| layer(edge))),
        });
        Ok(())
    }

    /// If no router shares the port, sends requests other than gRPC through the gRPC layers, too.
    pub(crate) fn layered(&self, mux: Mux) -> Mux {
        match mux.http.is_none() && !self.layers.is_empty() {
            true => Mux { http: mux.grpc.clone(), ..mux },
            false => mux,
        }
    }

    /// Sets whether gRPC's health service says that the process takes calls.
    pub(crate) fn health(&self) -> impl Fn(bool) + Send + Sync + 'static {
        let health = self.health.clone();
        move |serving| if serving { health.serving() } else { health.not_serving() }
    }

    /// Ends streams of health watchers and of reflection.
    pub(crate) fn close(&self) {
        self.health.close();
    }
}

// === impl ChassisBuilder ===

impl ChassisBuilder {
    /// A layer of HTTP around the gRPC services that are served, above the pipeline: an access log, request
    /// ids, gRPC-Web. It also sees calls that the pipeline refuses. A gRPC status is in the headers of an
    /// answer without messages, otherwise in the trailers. The first layer added is outermost. Layers of
    /// tower-http and middleware of axum work here as in [`http_layer`](Self::http_layer), layers for tonic
    /// too: see [`GrpcEdge`](crate::grpc::GrpcEdge). If no router shares the port, requests other than gRPC
    /// pass the layers, too, so that CORS can answer preflights.
    ///
    /// An error of the layer that is or contains a status becomes that status, any other becomes UNKNOWN. A
    /// panic becomes INTERNAL.
    ///
    /// ```
    /// use axum::{extract::Request, middleware::{Next, from_fn}, response::Response};
    /// use chassis::Chassis;
    ///
    /// async fn access_log(request: Request, next: Next) -> Response {
    ///     let path = request.uri().path().to_owned();
    ///     let answer = next.run(request).await;
    ///     println!("{path}: {:?}", answer.headers().get("grpc-status"));
    ///     answer
    /// }
    ///
    /// let builder = Chassis::builder("orders").grpc_layer(from_fn(access_log));
    /// # let _ = builder;
    /// ```
    pub fn grpc_layer<L, B>(mut self, layer: L) -> Self
    where
        L: Layer<GrpcEdge> + Send + Sync + 'static,
        L::Service:
            Service<axum::extract::Request, Response = http::Response<B>> + Clone + Send + Sync + 'static,
        <L::Service as Service<axum::extract::Request>>::Error: Into<BoxError>,
        <L::Service as Service<axum::extract::Request>>::Future: Send,
        B: axum::body::HttpBody<Data = axum::body::Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        self.rpc.layers.push(Box::new(move |edge| edge.layer(&layer)));
        self
    }
}

// === impl Chassis ===

impl Chassis {
    /// A channel to `service`, for any stub that tonic generates.
    pub fn grpc(&self, service: &str) -> Channel {
        self.rpc.channel(&self.parts.runtime, service)
    }

    /// Serves a tonic service, at `listen.grpc`.
    pub fn serve_grpc<S>(mut self, service: S) -> Self
    where
        S: Service<
                http::Request<tonic::body::Body>,
                Response = http::Response<tonic::body::Body>,
                Error = Infallible,
            > + tonic::server::NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.rpc.services = self.rpc.services.add(service);
        self
    }

    /// Serves gRPC reflection, too, with the descriptors of the builder. Default: off.
    pub fn reflection(mut self) -> Self {
        self.rpc.reflection = true;
        self
    }
}

// === impl Running ===

impl Running {
    /// A channel to `service`, for any stub that tonic generates.
    pub fn grpc(&self, service: &str) -> Channel {
        self.rpc.channel(self.runtime(), service)
    }
}
