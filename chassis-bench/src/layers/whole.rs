//! chassis, client and server in one process over streams in memory.
use std::sync::Arc;

use chassis::{
    Channel, HttpClient, Random, Runtime,
    grpc::{GrpcServer, GrpcServices, GrpcTransport},
    http::{
        ClientConfig, HttpTransport, RestLayer, ServerConfig,
        connector::MemoryNetwork,
        server::{Mux, Server},
    },
    pipeline,
    registries::MemoryRegistry,
    registry::Instance,
    units::Ratio,
};
use chassis_core::RuntimeBuilder;

use super::{
    bare,
    case::{Case, Local, by_callers},
    echo::{self, Echo, Wire},
    settings::settings,
};
use crate::echo::{echo_client::EchoClient, echo_server::EchoServer};

/// The number of endpoints, each with connections of its own.
pub const ENDPOINTS: usize = 3;

/// Both ends: dropping it stops the server.
pub struct Rig {
    pub client: Runtime,
    pub server: Runtime,
    pub network: MemoryNetwork,
    _serving: Server,
}

struct Grpc {
    stub: EchoClient<Channel>,
    wire: Wire,
    _rig: Rig,
}

struct Rest {
    client: HttpClient,
    _rig: Rig,
}

// === impl Rig ===

impl Rig {
    /// Client and server with the settings `yaml`.
    pub fn new(yaml: &str) -> Self {
        let settings = settings(yaml);
        let network = MemoryNetwork::default();
        let registry = MemoryRegistry::new();
        let server = runtime("echo", |builder| builder);
        let serving = Server::new(ServerConfig::default(), server.tasks(), Random::seeded(1));
        let services = GrpcServices::default().add(EchoServer::new(Echo));
        let mux = Mux {
            grpc: Some(Arc::new(GrpcServer::new(&server, services))),
            http: Some(Arc::new(RestLayer::new(&server).serve(bare::router()))),
        };
        for number in 0..ENDPOINTS {
            let name = format!("echo-{number}");
            let listener = network.listen(&name).expect("no other listener has this address");
            serving.serve("both", Box::new(listener), mux.clone(), None);
            let address = format!("memory:{name}");
            registry.put(
                Instance::new("echo", name)
                    .with_address("grpc", address.clone())
                    .with_address("http", address)
                    .with_label("track", "stable"),
            );
        }
        let client = runtime("caller", |builder| builder.registry(Arc::new(registry)));
        for runtime in [&server, &client] {
            runtime.apply(&settings, 1, "bench").expect("our settings can be applied");
        }
        Rig { client, server, network, _serving: serving }
    }

    /// A stub's channel.
    pub fn channel(&self) -> Channel {
        let transport = GrpcTransport::new(Arc::new(self.network.clone()), ClientConfig::default());
        Channel::new("echo", pipeline::client(&self.client, "echo", &Arc::new(transport)))
    }

    fn http(&self) -> HttpClient {
        let transport = HttpTransport::new(Arc::new(self.network.clone()), ClientConfig::default());
        HttpClient::new("echo", pipeline::client(&self.client, "echo", &Arc::new(transport)))
    }
}

/// A runtime with the same random numbers in every run.
pub fn runtime(name: &str, with: impl FnOnce(RuntimeBuilder) -> RuntimeBuilder) -> Runtime {
    with(Runtime::builder(name).random(Random::seeded(1))).build().expect("a registry of its own")
}

/// gRPC with the settings `yaml`, and `wire` in its headers.
pub async fn grpc(yaml: &str, wire: Wire) -> Box<dyn Case> {
    let rig = Rig::new(yaml);
    let traced = matches!(wire, Wire::Traceparent | Wire::Both);
    rig.client.set_sample(Ratio::percent(if traced { 100 } else { 0 }));
    let stub = EchoClient::new(rig.channel());
    // chassis writes the trace here; the row itself only sets the timeout.
    let wire = match wire {
        Wire::Both => Wire::Timeout,
        Wire::Traceparent => Wire::Plain,
        wire => wire,
    };
    Box::new(Grpc { stub, wire, _rig: rig })
}

/// REST with the settings `yaml`.
pub async fn rest(yaml: &str) -> Box<dyn Case> {
    let rig = Rig::new(yaml);
    Box::new(Rest { client: rig.http(), _rig: rig })
}

impl Case for Grpc {
    fn run(&self, times: usize, callers: usize) -> Local<'_> {
        Box::pin(echo::call(&self.stub, self.wire, times, callers))
    }
}

impl Case for Rest {
    fn run(&self, times: usize, callers: usize) -> Local<'_> {
        Box::pin(by_callers(times, callers, |times| {
            let client = self.client.clone();
            async move {
                for _ in 0..times {
                    let response =
                        client.get("/call/{id}").param("id", 42).send().await.expect("the echo answers");
                    assert!(echo::drain(response.into_body()).await > 50);
                }
            }
        }))
    }
}
