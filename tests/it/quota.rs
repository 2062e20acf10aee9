//! Quotas: a process without a place in the registry serves, says so once, and is registered when there is one.
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use chassis::{
    Event,
    quota::{Quota, QuotaDecision, QuotaRequest},
    registries::{MemoryQuota, MemoryRegistry},
    registry::{Instance, Registration, Registry, RegistryError, Watcher},
};
use tokio::time::{Instant, sleep};

use crate::mesh::{Mesh, Server};

/// The reports about the quota and about registrations, in short.
fn reports(server: &Server) -> Vec<String> {
    let past = server.runtime().events().past();
    let reports = past.iter().filter_map(|(_, event)| match &**event {
        Event::QuotaExceeded { service, registry, why } => Some(format!("{service} {registry}: {why}")),
        Event::Registered { .. } => Some("registered".to_owned()),
        Event::RegistryUnreachable { error, .. } => Some(error.clone()),
        _ => None,
    });
    reports.collect()
}

#[tokio::test(start_paused = true)]
async fn a_process_without_a_place_serves_and_is_registered_later() {
    let mesh = Mesh::new();
    let quota = MemoryQuota::new(mesh.registry.clone(), 1);
    let stock = |id: &str| {
        let quota = quota.clone();
        mesh.server("stock", id).with(move |builder| builder.quota(quota))
    };
    let first = stock("stock-1").start().await;
    let begun = Instant::now();
    let second = stock("stock-2").start().await;
    assert!(begun.elapsed() < Duration::from_millis(100), "the start does not wait: {:?}", begun.elapsed());
    assert_eq!(reports(&first), ["registered"]);
    let refused = "stock memory: `stock` has 1 instances and may have 1, 1 more were asked for";
    sleep(Duration::from_secs(600)).await;
    assert_eq!(reports(&second), [refused], "one event in ten minutes");
    assert!(second.running.address("http").is_some(), "it serves");
    first.stop().await;
    sleep(Duration::from_secs(61)).await;
    assert_eq!(reports(&second), [refused, "registered"]);
    second.stop().await;
}

/// A quota with a mistake, or a registry that has limits of its own; it counts the questions.
#[derive(Clone, Default)]
struct Own {
    registry: MemoryRegistry,
    asked: Arc<AtomicUsize>,
    /// How it answers: 0 allows, 1 is an error, 2 hangs, 3 panics, 4 refuses, 5 panics also where its name is asked for.
    mode: Arc<AtomicU32>,
    /// So long the registry takes.
    slow: Duration,
}

#[async_trait]
impl Quota for Own {
    fn name(&self) -> String {
        assert_ne!(self.mode.load(SeqCst), 5, "no name");
        "own".to_owned()
    }
    async fn ask(&self, request: &QuotaRequest) -> Result<QuotaDecision, RegistryError> {
        assert_eq!((request.service.as_str(), request.instances), ("stock", 1));
        self.asked.fetch_add(1, SeqCst);
        match self.mode.load(SeqCst) {
            1 => Err(RegistryError::new("no route")),
            2 => std::future::pending().await,
            3 | 5 => panic!("out of cheese"),
            _ => Ok(QuotaDecision::Allowed),
        }
    }
}

#[async_trait]
impl Registry for Own {
    fn name(&self) -> &str {
        "own"
    }
    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        self.asked.fetch_add(1, SeqCst);
        match self.mode.load(SeqCst) {
            4 => Err(RegistryError::quota_exceeded("no quota to create INSTANCE")),
            1 => Err(RegistryError::new("no route")),
            _ => {
                sleep(self.slow).await;
                self.registry.register(instance).await
            }
        }
    }
    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        self.registry.watch(service).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_quota_that_fails_keeps_no_service_from_its_callers() {
    for mode in [1, 2, 3, 5] {
        let (mesh, quota) = (Mesh::new(), Own::default());
        quota.mode.store(mode, SeqCst);
        let given = quota.clone();
        let stock = mesh.server("stock", "stock-1").with(move |builder| builder.quota(given)).start().await;
        sleep(Duration::from_secs(6)).await;
        assert_eq!((reports(&stock), quota.asked.load(SeqCst)), (vec!["registered".to_owned()], 1), "{mode}");
        stock.stop().await;
    }
}

/// The time for the question is not taken from that for the registration.
#[tokio::test(start_paused = true)]
async fn a_quota_that_hangs_leaves_a_slow_registry_its_time() {
    let (mesh, quota) = (Mesh::new(), Own::default());
    quota.mode.store(2, SeqCst);
    let registry = Own { slow: Duration::from_secs(8), ..Own::default() };
    let (given, asked) = (registry.clone(), quota.clone());
    let plan = mesh.server("stock", "stock-1").own_registry();
    let stock = plan.with(move |builder| builder.registry(given).quota(asked)).start().await;
    sleep(Duration::from_secs(14)).await;
    assert_eq!(reports(&stock), ["registered"]);
    assert_eq!((registry.asked.load(SeqCst), quota.asked.load(SeqCst)), (1, 1), "at the first try");
    stock.stop().await;
}

/// A registry that refuses is asked once a minute; one that fails, often.
#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_registry_is_not_repeated_at_once() {
    let (mesh, registry) = (Mesh::new(), Own::default());
    registry.mode.store(4, SeqCst);
    let given = registry.clone();
    let plan = mesh.server("stock", "stock-1").own_registry();
    let stock = plan.with(move |builder| builder.registry(given)).start().await;
    sleep(Duration::from_secs(600)).await;
    let asked = registry.asked.swap(0, SeqCst);
    assert!((10..=14).contains(&asked), "once a minute: {asked}");
    assert_eq!(reports(&stock), ["stock own: no quota to create INSTANCE"]);
    registry.mode.store(1, SeqCst);
    sleep(Duration::from_secs(600)).await;
    let asked = registry.asked.swap(0, SeqCst);
    assert!(asked > 30, "an outage is asked about more often: {asked}");
    registry.mode.store(0, SeqCst);
    sleep(Duration::from_secs(20)).await;
    assert_eq!(reports(&stock).last().map(String::as_str), Some("registered"));
    let stopped = Instant::now();
    stock.stop().await;
    assert!(stopped.elapsed() < Duration::from_secs(2));
}

/// A stop does not wait for the next attempt.
#[tokio::test(start_paused = true)]
async fn a_process_without_a_place_stops_at_once() {
    let (mesh, registry) = (Mesh::new(), Own::default());
    registry.mode.store(4, SeqCst);
    let plan = mesh.server("stock", "stock-1").own_registry();
    let stock = plan.with(move |builder| builder.registry(registry)).start().await;
    let begun = Instant::now();
    stock.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}
