//! For tests of your own: services in memory that find each other, and everything of [`chassis_core::testing`]
//! (scripted upstreams and registries, calls to send, the contract suites).
mod bad_settings;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use chassis_http::connector::Network;
use chassis_registry::MemoryRegistry;

pub use self::bad_settings::BadSettings;
pub use chassis_core::testing::*;

use crate::{Chassis, ChassisBuilder, Random, document::Environment};

/// Services of one test: they share a registry and a network in memory, separate from those of other tests.
///
/// A mesh opens no port and reads no file and no environment variable; randomness is the same every time. It
/// works on tokio's paused clock. Clones share it.
///
/// ```
/// use axum::{Router, routing::get};
/// use chassis::testing::Mesh;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> chassis::Result {
/// let mesh = Mesh::new();
/// let stock = mesh.builder("stock").build().await?;
/// let stock = stock.serve_http(Router::new().route("/left", get(|| async { "7" }))).start().await?;
///
/// let orders = mesh.builder("orders").build().await?;
/// let answer = orders.http("stock").get("/left").send().await.expect("stock is up");
/// assert_eq!(answer.text().await.expect("it is text"), "7");
/// stock.stop().await;
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct Mesh {
    registry: MemoryRegistry,
    network: Network,
    instances: Arc<AtomicU64>,
}

// === impl Mesh ===

impl Mesh {
    /// An empty mesh.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins an instance of `service`: its id is the service's name and a number from 1, counted over the
    /// whole mesh; it listens at `memory:<id>`, and has no admin surface. Later calls on the builder, settings too,
    /// override this.
    pub fn builder(&self, service: &str) -> ChassisBuilder {
        let number = self.instances.fetch_add(1, Relaxed) + 1;
        let id = format!("{service}-{number}");
        let address = format!("memory:{id}");
        Chassis::builder(service)
            .instance(id)
            .without_file()
            .environment(Environment::default())
            .settings(serde_json::json!({ "listen": { "grpc": address, "http": address, "admin": "off" } }))
            .registry(self.registry.clone())
            .network(self.network.clone())
            .random(Random::seeded(number))
    }

    /// Lets all ready tasks run: when this returns, clients that looked before know the instances that
    /// registered just now. A client that is made after the start of its upstream needs no `settle`.
    pub async fn settle(&self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    /// The registry. A test can change it without the services.
    pub fn registry(&self) -> &MemoryRegistry {
        &self.registry
    }

    /// The network. A test can refuse, stall and cut connections: `network().memory().faults(…)`.
    pub fn network(&self) -> &Network {
        &self.network
    }
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("network", &self.network).finish_non_exhaustive()
    }
}
