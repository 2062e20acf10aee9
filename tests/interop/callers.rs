//! Callers of a service that has several instances, which find each other by a registry.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use chassis::{Chassis, RequestExt, Running, document::Environment};
use chassis_protos::echo::{EchoRequest, echo_client::EchoClient};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use tonic::Request;

use crate::{
    echo::{self, says},
    ours,
    peer::PATIENCE,
};

/// A service that uses `registry`.
pub(crate) async fn app(registry: &Value, name: &str) -> Chassis {
    let settings = json!({
        "registry": registry,
        "service": { "advertise": "127.0.0.1" },
        "listen": { "grpc": "127.0.0.1:0", "http": "127.0.0.1:0" },
    });
    let builder = Chassis::builder(name).without_file().environment(Environment::default());
    builder.settings(settings).build().await.unwrap()
}

/// An instance of the service that callers call.
pub(crate) async fn stock(registry: &Value) -> Running {
    app(registry, "stock").await.serve_http(ours::router()).serve_grpc(echo::service()).start().await.unwrap()
}

/// Callers of both protocols, until they are stopped.
pub(crate) struct Callers {
    pub(crate) app: Chassis,
    tasks: JoinSet<Vec<String>>,
    calls: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Callers {
    pub(crate) async fn start(registry: &Value) -> Callers {
        Self::of(app(registry, "caller").await)
    }

    /// Callers of this program.
    pub(crate) fn of(app: Chassis) -> Callers {
        Self::many(app, 8, Duration::ZERO)
    }

    /// So many callers. If their calls take some `work`, they can be repeated too.
    pub(crate) fn many(app: Chassis, count: usize, work: Duration) -> Callers {
        let ms = u32::try_from(work.as_millis()).unwrap();
        let (calls, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut tasks = JoinSet::new();
        for n in 0..count {
            let (http, grpc) = (app.http("stock"), EchoClient::new(app.grpc("stock")));
            let (calls, over) = (calls.clone(), over.clone());
            tasks.spawn(async move {
                let mut failed = Vec::new();
                while !over.load(Relaxed) {
                    let ended = match n % 2 {
                        0 => {
                            let request = match ms {
                                0 => http.get("/hello/{name}").param("name", "x"),
                                ms => http.get("/work/{ms}").param("ms", ms),
                            };
                            request.send().await.map(drop).map_err(|error| error.to_string())
                        }
                        _ => {
                            let request = Request::new(EchoRequest { delay_ms: ms, ..says("x") });
                            // An instance that dies fails what it works at, and others can do that instead.
                            let request = if ms == 0 { request } else { request.idempotent() };
                            grpc.clone().call(request).await.map(drop).map_err(|status| status.to_string())
                        }
                    };
                    failed.extend(ended.err());
                    calls.fetch_add(1, Relaxed);
                }
                failed
            });
        }
        Callers { app, tasks, calls, over }
    }

    /// Waits for this many further calls.
    pub(crate) async fn go_on(&self, calls: u64) {
        let until = self.calls.load(Relaxed) + calls;
        let waited = timeout(PATIENCE, async {
            while self.calls.load(Relaxed) < until {
                tokio::task::yield_now().await;
            }
        });
        waited.await.expect("callers go on");
    }

    /// Waits until these instances are known, and no others.
    pub(crate) async fn know(&self, instances: &[&Running]) -> Duration {
        let mut ids: Vec<_> =
            instances.iter().flat_map(|one| one.advertised()).map(|(_, at)| at.clone()).collect();
        ids.sort();
        let begun = Instant::now();
        let waited = timeout(PATIENCE, async {
            loop {
                let services = self.app.runtime().inspect().services.into_iter();
                let nodes =
                    services.filter(|service| service.name == "stock").flat_map(|service| service.nodes);
                let mut known: Vec<_> = nodes.map(|node| node.address.to_string()).collect();
                known.sort();
                if known == ids {
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("not known: {ids:?}"));
        begun.elapsed()
    }

    /// Ends them; how many calls there were, and why some failed.
    pub(crate) async fn end(mut self) -> (u64, Vec<String>) {
        self.over.store(true, Relaxed);
        let mut failed = Vec::new();
        while let Some(one) = self.tasks.join_next().await {
            failed.extend(one.unwrap());
        }
        (self.calls.load(Relaxed), failed)
    }
}
