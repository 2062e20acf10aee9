//! The start and the stop of a service: their order, its ports, its health, and failures.
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, routing::get};
use chassis::{
    Chassis, Code, Event, StartError,
    http::connector::{Connector, Network},
    registries::MemoryRegistry,
    registry::{Instance as Entry, Membership, Registry},
};
use serde_json::json;
use tokio::time::Instant;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::mesh::{Act, Ask, Caller, Mesh, Wire, all_well, both, until};

/// Whether the registry has an instance of `stock`.
async fn registered(registry: &MemoryRegistry) -> bool {
    let mut watcher = registry.watch("stock").await.unwrap();
    matches!(watcher.next().await.unwrap(), Membership::Known(all) if !all.is_empty())
}

/// Records the state of `stock-1` as seen from outside, with a name for the moment.
#[derive(Clone)]
struct Witness {
    network: Network,
    registry: MemoryRegistry,
    said: Arc<Mutex<Vec<String>>>,
}

impl Witness {
    fn of(mesh: &Mesh) -> Self {
        let (network, registry) = (mesh.network.clone(), mesh.registry.clone());
        Witness { network, registry, said: Arc::default() }
    }

    async fn record(self, moment: &'static str) -> Result<(), chassis::BoxError> {
        let listens = self.network.connect("memory:stock-1").await.is_ok();
        let registered = registered(&self.registry).await;
        let sees = match (listens, registered) {
            (false, false) => "nothing",
            (true, false) => "a listener",
            (false, true) => "an entry",
            (true, true) => "a listener and an entry",
        };
        self.said.lock().unwrap().push(format!("{moment}: {sees}"));
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn hooks_in_order() {
    let mesh = Mesh::new();
    let witness = Witness::of(&mesh);
    let [a, b, c, d, e] = std::array::from_fn(|_| witness.clone());
    let plan = mesh.server("stock", "stock-1").with(move |builder| {
        builder
            .before_start(move || a.record("before start"))
            .before_start(move || b.record("before start, second"))
            .after_start(move || c.record("after start"))
            .before_stop(move || d.record("before stop"))
            .after_stop(move || e.record("after stop"))
    });
    let stock = plan.start().await;
    stock.stop().await;
    assert_eq!(
        *witness.said.lock().unwrap(),
        [
            "before start: nothing",
            "before start, second: nothing",
            "after start: a listener and an entry",
            "before stop: a listener and an entry",
            "after stop: nothing",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_fails_stops_the_start() {
    let mesh = Mesh::new();
    let witness = Witness::of(&mesh);
    let after_stop = witness.clone();
    let mut plan = mesh.server("stock", "stock-1").with(|builder| {
        builder
            .before_start(|| async { Err("no database".into()) })
            .after_stop(move || after_stop.record("after stop"))
    });
    let (app, _, _) = plan.serving().await;
    let error = app.start().await.err().unwrap();
    assert!(matches!(error, StartError::Hook("before-start", _)), "{error:?}");
    assert_eq!(format!("{error:?}"), "the before-start hook failed: no database");

    // The parts that started stop in order.
    let after_stop = witness.clone();
    let mut plan = mesh.server("stock", "stock-1").with(|builder| {
        builder
            .after_start(|| async { Err("no warm-up".into()) })
            .after_stop(move || after_stop.record("after stop"))
    });
    let (app, _, _) = plan.serving().await;
    let error = app.start().await.err().unwrap();
    assert!(matches!(error, StartError::Hook("after-start", _)), "{error:?}");
    assert_eq!(*witness.said.lock().unwrap(), ["after stop: nothing"]);
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_hangs_does_not_hold_the_stop() {
    let mesh = Mesh::new();
    let plan = mesh.server("stock", "stock-1").with(|builder| {
        builder.before_stop(std::future::pending).after_stop(|| async { Err("whatever".into()) })
    });
    let stock = plan.start().await;
    let began = Instant::now();
    stock.stop().await;
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

both! {
    async fn a_stop_is_announced_before_anything_closes(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.server("stock", "stock-1").config("shutdown: { delay: 3s }").start().await;
        let echo = stock.echo.clone();
        let caller = mesh.caller("outbound: { defaults: { retry: off, timeout: off } }").await;
        all_well(&caller.calls(wire, 1, || Ask::to("stock")).await);
        let mut health = HealthClient::new(caller.app.grpc("stock"));
        let asked = HealthCheckRequest::default();
        let status = health.check(asked.clone()).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving);
        let mut watch = health.watch(asked.clone()).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);

        let began = Instant::now();
        let stopping = tokio::spawn(stock.stop());
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!registered(&mesh.registry).await);
        let status = health.check(asked).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::NotServing);
        // Callers that do not know of the stop yet still get answers.
        all_well(&caller.calls(wire, 5, || Ask::to("stock")).await);
        // A call in flight is not cut.
        echo.does(Act::Delay(Duration::from_secs(10)));
        let last = caller.spawn(wire, Ask::to("stock").timeout(Duration::from_secs(30)));
        until("it is there", || echo.running() == 1).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(watch.message().await.unwrap().is_none(), "the watch has ended");
        let late = caller.call(wire, Ask::to("stock")).await;
        assert_eq!((late.code, late.maybe_executed), (Code::Unavailable, Some(false)), "{late:?}");
        assert_eq!(last.await.unwrap().by(), "stock-1");
        stopping.await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 11);
    }
}

both! {
    async fn a_stuck_call_does_not_hold_the_stop(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.server("stock", "stock-1").config("shutdown: { deadline: 2s }").start().await;
        stock.does(Act::Hang);
        let caller = mesh.caller("outbound: { defaults: { retry: off, timeout: off } }").await;
        let stuck = caller.spawn(wire, Ask::to("stock"));
        until("it is there", || stock.running() == 1).await;
        let mut stream = caller.download(wire, Ask::to("stock"), 2).await.unwrap();
        stream.next().await.unwrap().unwrap();
        let (echo, began) = (stock.echo.clone(), Instant::now());
        stock.stop().await;
        assert_eq!(began.elapsed().as_secs(), 2);
        let stuck = stuck.await.unwrap();
        assert!(!stuck.is_ok() && stuck.maybe_executed != Some(false), "{stuck:?}");
        let (_, cut) = stream.rest().await;
        assert!(cut.is_some(), "the stream did not end well");
        assert_eq!(echo.running(), 0, "nothing of it is left");
    }
}

both! {
    async fn ports_of_their_own(wire: Wire) {
        let mesh = Mesh::new();
        let listen = json!({ "grpc": "memory:one", "http": "memory:two", "ops": "memory:three" });
        let mut plan = mesh.server("stock", "stock-1").listen(listen);
        let (app, echo, _) = plan.serving().await;
        let ops = Router::new().route("/safe/{message}", get(|| async { "ops" }));
        let running = app.serve_http_at("ops", ops).start().await.unwrap();
        assert_eq!(running.address("ops"), Some("memory:three"));
        let caller = mesh.caller("").await;
        all_well(&caller.calls(wire, 3, || Ask::to("stock").safe()).await);
        assert_eq!(echo.executed(), 3);
        let used = mesh.network.memory().connections(if wire == Wire::Grpc { "one" } else { "two" });
        assert_eq!(used, 1);

        // At other addresses there is another service, or none.
        let at = |service: &str, address: &str| {
            let entry = Entry::new(service, service).with_address("grpc", address);
            mesh.registry.put(entry.with_address("http", address));
        };
        at("ops", "memory:three");
        at("swapped", if wire == Wire::Grpc { "memory:two" } else { "memory:one" });
        let outcome = caller.call(wire, Ask::to("ops").safe()).await;
        match wire {
            Wire::Grpc => assert_eq!(outcome.code, Code::Unimplemented, "{outcome:?}"),
            Wire::Rest => assert_eq!(outcome.body, "ops"),
        }
        let outcome = caller.call(wire, Ask::to("swapped")).await;
        match wire {
            Wire::Grpc => assert_eq!(outcome.code, Code::Unimplemented, "{outcome:?}"),
            Wire::Rest => assert_eq!(outcome.status, Some(415), "{outcome:?}"),
        }
        assert_eq!(echo.executed(), 3);
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_port_for_all() {
    let mesh = Mesh::new();
    let stock = mesh.start("stock", "stock-1").await;
    assert_eq!(stock.running.address("grpc"), stock.running.address("http"));
    let caller = mesh.caller("").await;
    for wire in [Wire::Grpc, Wire::Rest] {
        assert_eq!(caller.call(wire, Ask::to("stock")).await.by(), "stock-1");
    }
    assert_eq!(stock.seen().iter().map(|seen| seen.wire).collect::<Vec<_>>(), [Wire::Grpc, Wire::Rest]);
}

#[tokio::test(start_paused = true)]
async fn ports_that_cannot_be() {
    let mesh = Mesh::new();
    let _there = mesh.start("stock", "stock-1").await;
    let mut plan = mesh.server("stock", "stock-1");
    let (app, _, _) = plan.serving().await;
    let runtime = app.runtime().clone();
    let error = app.start().await.err().unwrap();
    assert!(matches!(error, StartError::Listen { .. }), "{error:?}");
    // The task that follows the settings has ended. Regression: it reported an error at the end of the
    // process.
    assert_eq!(runtime.tasks().running(), 0);
    assert_eq!(
        format!("{error:?}"),
        "`listen.grpc`: can't listen at memory:stock-1: memory:stock-1 is taken"
    );

    let mut plan = mesh.server("stock", "stock-2");
    let (app, _, _) = plan.serving().await;
    let error = app.serve_http_at("ops", Router::new()).start().await.err().unwrap();
    assert!(error.to_string().contains("listen.ops"), "{error:?}");

    let listen = json!({ "grpc": "memory:a", "http": "memory:b", "ops": "memory:b" });
    let mut plan = mesh.server("stock", "stock-3").listen(listen);
    let (app, _, _) = plan.serving().await;
    let error = app.serve_http_at("ops", Router::new()).start().await.err().unwrap();
    assert!(error.to_string().contains("serves the same protocol at this address"), "{error:?}");
}

both! {
    async fn instances_that_the_settings_name(wire: Wire) {
        let mesh = Mesh::new();
        let _one = mesh.start("stock", "stock-1").await;
        let _two = mesh.start("stock", "stock-2").await;
        let named = |id: &str| {
            format!(
                "registry: {{ kind: static, services: {{ stock: [ \
                 {{ id: {id}, addresses: {{ grpc: 'memory:{id}', http: 'memory:{id}' }} }} ] }} }}"
            )
        };
        let caller = mesh.server("tests", "tests").own_registry().config(&named("stock-1")).caller().await;
        assert_eq!(caller.call(wire, Ask::to("stock")).await.by(), "stock-1");
        caller.push(&named("stock-2")).await.applied();
        until("it was seen", || caller.view(wire, "stock").nodes[0].id == "stock-2").await;
        assert_eq!(caller.call(wire, Ask::to("stock")).await.by(), "stock-2");
        // Instances can change while calls are in flight; no restart is needed.
        let past = caller.runtime().events().past();
        assert!(!past.iter().any(|(_, event)| matches!(**event, Event::RestartPending { .. })));
        let twice = named("stock-2").replace("[ ", "[ { id: stock-2, addresses: { grpc: 'memory:a' } }, ");
        let problems = caller.push(&twice).await.refused();
        assert!(problems[0].contains("another instance has the id `stock-2`"), "{problems:?}");
        assert_eq!(caller.call(wire, Ask::to("stock")).await.by(), "stock-2");
    }
}

both! {
    async fn instances_that_a_file_names(wire: Wire) {
        let mesh = Mesh::new();
        let _one = mesh.start("stock", "stock-1").await;
        let _two = mesh.start("stock", "stock-2").await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("instances.json");
        let write = |id: &str| {
            let address = format!("memory:{id}");
            let all = json!([{ "id": id, "addresses": { "grpc": address, "http": address } }]);
            let document = json!({ "services": { "stock": all } });
            let beside = path.with_extension("new");
            std::fs::write(&beside, document.to_string()).unwrap();
            std::fs::rename(beside, &path).unwrap();
        };
        write("stock-1");
        let settings = format!("registry: {{ kind: file, path: '{}', poll: 1s }}", path.display());
        let caller = mesh.server("tests", "tests").own_registry().config(&settings).caller().await;
        assert_eq!(caller.call(wire, Ask::to("stock")).await.by(), "stock-1");
        write("stock-2");
        let mut events = caller.runtime().events().subscribe();
        loop {
            if let Event::InstanceLeft { instance, .. } = &*events.recv().await.unwrap() {
                assert_eq!(instance, "stock-1");
                break;
            }
        }
        assert_eq!(caller.call(wire, Ask::to("stock")).await.by(), "stock-2");
    }
}

#[tokio::test(start_paused = true)]
async fn who_stopped_can_be_started_again_at_the_same_place() {
    let mesh = Mesh::new();
    let caller = mesh.caller("outbound: { defaults: { retry: off } }").await;
    for _ in 0..5 {
        let stock = mesh.start("stock", "stock-1").await;
        for wire in [Wire::Grpc, Wire::Rest] {
            let ask = || Ask::to("stock").timeout(Duration::from_secs(5));
            all_well(&caller.calls(wire, 3, ask).await);
        }
        stock.stop().await;
    }
}

/// The registry's status of the nodes that `caller` knows.
fn statuses(caller: &Caller) -> Vec<String> {
    let services = caller.app.runtime().inspect().services;
    services.iter().flat_map(|service| &service.nodes).map(|node| node.status.clone()).collect()
}

both! {
    async fn who_is_out_of_service_gets_no_new_calls(wire: Wire) {
        let mesh = Mesh::new();
        let first = mesh.start("stock", "stock-1").await;
        let second = mesh.start("stock", "stock-2").await;
        let caller = mesh.caller("").await;
        let calls = async || {
            for _ in 0..30 {
                caller.call(wire, Ask::to("stock")).await.by();
            }
        };
        calls().await;
        assert!(first.executed() > 0 && second.executed() > 0);
        first.running.take_out_of_service().await.unwrap();
        assert!(!first.running.presence().is_in_service());
        until("the caller has learned of it", || statuses(&caller).contains(&"out_of_service".to_owned())).await;
        let before = first.executed();
        calls().await;
        assert_eq!(first.executed(), before);
        first.running.put_back_in_service().await.unwrap();
        until("the caller has learned of it", || statuses(&caller).iter().all(|status| status == "up")).await;
        calls().await;
        assert!(first.executed() > before);
    }
}

#[tokio::test(start_paused = true)]
async fn a_listener_is_called_by_its_name() {
    let mesh = Mesh::new();
    let ops = Router::new().route("/ping", get(|| async { "pong" }));
    let stock = Chassis::builder("stock")
        .without_file()
        .network(mesh.network.clone())
        .registry(mesh.registry.clone())
        .settings(json!({ "listen": { "http": "memory:stock", "ops": "memory:stock-ops", "admin": "off" } }))
        .build()
        .await
        .unwrap()
        .serve_http(Router::new())
        .serve_http_at("ops", ops)
        .start()
        .await
        .unwrap();
    let caller = mesh.caller("").await;
    let answer = caller.app.http("stock:ops").get("/ping").send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "pong");
    let none = caller.app.http("stock:debug").get("/ping").send().await.unwrap_err();
    assert!(none.to_string().contains("its instances do not offer debug, only http, ops"), "{none}");
    stock.stop().await;
}
