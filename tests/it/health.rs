//! Health checks of the program: they take a process out of service, and callers follow.
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use chassis::{
    Event,
    health::{CheckConfig, CheckStatus},
    registry::{Membership, Registry},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::mesh::{Ask, Caller, Kind, Mesh, Server, Wire, both};

/// What a process needs, for a test to take away.
#[derive(Clone)]
struct Database(Arc<AtomicBool>);

impl Database {
    fn new(is_there: bool) -> Self {
        Database(Arc::new(AtomicBool::new(is_there)))
    }

    fn set(&self, is_there: bool) {
        self.0.store(is_there, SeqCst);
    }

    async fn ping(self) -> Result<(), chassis::BoxError> {
        match self.0.load(SeqCst) {
            true => Ok(()),
            false => Err("connection refused".into()),
        }
    }

    /// A server that needs it.
    async fn server(&self, mesh: &Mesh, id: &str, config: CheckConfig) -> Server {
        let this = self.clone();
        let plan = mesh.server("stock", id);
        plan.with(move |builder| builder.health_check("db", config, move || this.clone().ping()))
            .start()
            .await
    }
}

/// The status of each instance in the registry.
async fn statuses(mesh: &Mesh) -> Vec<String> {
    match mesh.registry.watch("stock").await.unwrap().next().await.unwrap() {
        Membership::Known(all) => {
            all.iter().map(|one| format!("{} {}", one.id, one.status().as_str())).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// Makes calls and streams, of which none may fail; returns the instances that answered.
async fn answered_by(mesh: &Mesh, caller: &Arc<Caller>, wire: Wire) -> Vec<String> {
    let mut seen = BTreeSet::new();
    for n in 0..40 {
        let (ask, kind) = (Ask::to("stock"), Kind::ALL[n % Kind::ALL.len()]);
        let id = ask.id.clone();
        kind.whole(caller, wire, ask, 3).await.unwrap_or_else(|failed| panic!("{kind:?}: {failed:?}"));
        seen.extend(mesh.executed_by(&id));
    }
    seen.into_iter().collect()
}

both! {
    async fn a_process_whose_critical_check_fails_gets_no_new_calls(wire: Wire) {
        let mesh = Mesh::new();
        let _one = mesh.start("stock", "stock-1").await;
        let database = Database::new(true);
        let two = database.server(&mesh, "stock-2", CheckConfig::default()).await;
        let caller = mesh.caller("").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(answered_by(&mesh, &caller, wire).await, ["stock-1", "stock-2"]);

        database.set(false);
        tokio::time::sleep(Duration::from_secs(40)).await; // three failures in a row
        assert_eq!(statuses(&mesh).await, ["stock-1 up", "stock-2 out_of_service"]);
        assert_eq!(answered_by(&mesh, &caller, wire).await, ["stock-1"]);
        assert!(!two.running.presence().is_in_service());
        let event = "critical health check `db` is failing: connection refused";
        assert!(two.runtime().events().past().iter().any(|(_, past)| past.to_string() == event));
        let checks = two.runtime().inspect().checks;
        assert_eq!((checks[0].name.as_str(), checks[0].status), ("db", "failing"));

        database.set(true);
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(statuses(&mesh).await, ["stock-1 up", "stock-2 up"]);
        assert_eq!(answered_by(&mesh, &caller, wire).await, ["stock-1", "stock-2"]);
        two.stop().await;
        assert_eq!(statuses(&mesh).await, ["stock-1 up"]);
    }
}

both! {
    async fn a_process_takes_calls_once_its_critical_checks_have_passed(wire: Wire) {
        let mesh = Mesh::new();
        let _one = mesh.start("stock", "stock-1").await;
        let (database, cache) = (Database::new(false), Database::new(false));
        let two = database.server(&mesh, "stock-2", CheckConfig::default()).await;
        let pings = cache.clone();
        two.running
            .health()
            .check("cache", CheckConfig::informative(), move || pings.clone().ping())
            .detach();
        let caller = mesh.caller("").await;
        assert_eq!(statuses(&mesh).await, ["stock-1 up", "stock-2 starting"]);
        assert_eq!(answered_by(&mesh, &caller, wire).await, ["stock-1"]);
        database.set(true);
        tokio::time::sleep(Duration::from_secs(2)).await; // it is checked each second at first
        assert_eq!(statuses(&mesh).await, ["stock-1 up", "stock-2 up"]);
        assert_eq!(answered_by(&mesh, &caller, wire).await, ["stock-1", "stock-2"]);
    }
}

/// gRPC's health service, which REST callers do not ask.
#[tokio::test(start_paused = true)]
async fn the_health_service_follows_the_checks() {
    let mesh = Mesh::new();
    let database = Database::new(false);
    let stock = database.server(&mesh, "stock-1", CheckConfig::default()).await;
    let caller = mesh.caller("").await;
    let serving = async || {
        let mut health = HealthClient::new(caller.app.grpc("stock"));
        health.check(HealthCheckRequest::default()).await.unwrap().into_inner().status()
    };
    assert_eq!(serving().await, ServingStatus::NotServing);
    database.set(true);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(serving().await, ServingStatus::Serving);
    stock.running.health().set("licence", CheckStatus::Failing("it has expired".into()));
    tokio::task::yield_now().await;
    assert_eq!(serving().await, ServingStatus::NotServing);
    stock.running.health().remove("licence");
    tokio::task::yield_now().await;
    assert_eq!(serving().await, ServingStatus::Serving);
    // Taken out by hand: no check puts it back.
    stock.running.take_out_of_service().await.unwrap();
    stock.running.health().set("db", CheckStatus::Passing);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(serving().await, ServingStatus::NotServing);
    assert_eq!(statuses(&mesh).await, ["stock-1 out_of_service"]);
    stock.running.put_back_in_service().await.unwrap();
    assert_eq!(serving().await, ServingStatus::Serving);
}

/// A check that fails for all instances does not stop the whole service.
#[tokio::test(start_paused = true)]
async fn calls_go_on_while_the_check_of_every_instance_fails() {
    let mesh = Mesh::new();
    let database = Database::new(true);
    let one = database.server(&mesh, "stock-1", CheckConfig::default()).await;
    let _two = database.server(&mesh, "stock-2", CheckConfig::default()).await;
    let caller = mesh.caller("").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    database.set(false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(statuses(&mesh).await, ["stock-1 out_of_service", "stock-2 out_of_service"]);
    assert_eq!(answered_by(&mesh, &caller, Wire::Grpc).await, ["stock-1", "stock-2"]);
    let past = one.runtime().events().past();
    let changes = past.iter().filter(|(_, event)| matches!(**event, Event::HealthChanged { .. })).count();
    assert_eq!(changes, 2, "one event for each change");
}
