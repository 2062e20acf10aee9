//! The start and the stop of a service, step by step, and the effect of signals.
use std::{
    io::{BufRead, BufReader, Lines},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use chassis::{
    Chassis, Stage,
    document::Environment,
    http::connector::{Connector, Network},
    registries::MemoryRegistry,
    registry::{Instance, Registration, Registry, RegistryError, Watcher},
};

use crate::mesh::{Ask, Gate, Mesh, Wire, until};

/// Records events in their order.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<String>>>);

/// A registry that probes the service whenever it registers or deregisters.
#[derive(Clone)]
struct Looking {
    registry: MemoryRegistry,
    diary: Diary,
    eye: Eye,
}

struct Lease {
    lease: Box<dyn Registration>,
    looking: Looking,
}

/// Probes from outside: whether the port is open, and the health status.
#[derive(Clone)]
struct Eye {
    network: Network,
    client: Arc<Mutex<Option<chassis::HttpClient>>>,
}

impl Diary {
    fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }
}

impl Eye {
    /// `closed`, `SERVING`, `NOT_SERVING` or `no answer`.
    async fn look(&self) -> &'static str {
        if self.network.connect("memory:stock-1").await.is_err() {
            return "closed";
        }
        let client = self.client.lock().unwrap().clone().expect("the test makes one");
        // A HealthCheckRequest for the whole server is empty; the answer has one enum.
        let request = client.post("/grpc.health.v1.Health/Check").body(vec![0; 5]);
        let answer = request.header("content-type", "application/grpc").header("te", "trailers").send().await;
        let Ok(answer) = answer else { return "no answer" };
        match answer.bytes().await.as_deref() {
            Ok([0, 0, 0, 0, 2, 8, 1]) => "SERVING",
            Ok([0, 0, 0, 0, 2, 8, 2]) => "NOT_SERVING",
            other => panic!("no answer of a health service: {other:?}"),
        }
    }
}

#[async_trait]
impl Registry for Looking {
    fn name(&self) -> &str {
        "looking"
    }

    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        self.diary.note(format!("register: {}", self.eye.look().await));
        let lease = self.registry.register(instance).await?;
        Ok(Box::new(Lease { lease, looking: self.clone() }))
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        self.registry.watch(service).await
    }
}

#[async_trait]
impl Registration for Lease {
    async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
        self.looking.diary.note(format!("deregister: {}", self.looking.eye.look().await));
        self.lease.deregister().await
    }
}

/// The steps in their documented order, probed from outside at each, with a call in flight throughout.
#[tokio::test(start_paused = true)]
async fn starts_and_stops_in_order() {
    let mesh = Mesh::new();
    let diary = Diary::default();
    let eye = Eye { network: mesh.network.clone(), client: Arc::default() };
    let registry = Looking { registry: mesh.registry.clone(), diary: diary.clone(), eye: eye.clone() };
    // A probe that does not use the registry.
    let instance = serde_json::json!({ "id": "stock-1", "addresses": { "http": "memory:stock-1" } });
    let watcher = Chassis::builder("watcher").environment(Environment::default()).without_file();
    let watcher = watcher.network(mesh.network.clone()).settings(serde_json::json!({
        "registry": { "kind": "static", "services": { "stock": [instance] } },
        "client": { "http_version": "2" },
    }));
    let watcher = watcher.build().await.unwrap();
    *eye.client.lock().unwrap() = Some(watcher.http("stock"));

    let gate = Gate::shut();
    let hook = |name: &'static str| {
        let (diary, eye) = (diary.clone(), eye.clone());
        async move || {
            diary.note(format!("{name}: {}", eye.look().await));
            Ok::<_, chassis::BoxError>(())
        }
    };
    let (before_start, after_start) = (hook("before start"), hook("after start"));
    let (before_stop, after_stop) = (hook("before stop"), hook("after stop"));
    let (answered, waits) = (diary.clone(), gate.clone());
    let plan =
        mesh.server("stock", "stock-1").config("shutdown: { delay: 3s, deadline: 20s }").with(|builder| {
            let builder = builder.registry(registry);
            let builder = builder.before_start(before_start).after_start(after_start);
            let builder = builder.layer(
                Stage::Handler,
                "wait",
                chassis::from_fn(move |call: chassis::Invocation, next| {
                    let (diary, gate) = (answered.clone(), waits.clone());
                    async move {
                        if call.target.operation.as_str().ends_with("Echo/Call") {
                            gate.passed().await;
                            diary.note("the last call is answered");
                        }
                        chassis::Next::run(&next, call).await
                    }
                }),
            );
            builder.before_stop(before_stop).after_stop(after_stop)
        });
    let stock = plan.start().await;
    let caller = mesh.caller("").await;
    let call = caller.spawn(Wire::Grpc, Ask::to("stock"));
    until("the call is under way", || {
        crate::mesh::metric(stock.runtime(), "chassis_in_flight{service=\"stock\",side=\"server\"}") > 0.0
    })
    .await;

    let began = tokio::time::Instant::now();
    let seen = (diary.clone(), eye.clone());
    tokio::spawn(async move {
        // While callers may not know of the stop yet, it still listens; after that, it does not.
        for (after, what) in [(2, "two seconds later"), (2, "four seconds later")] {
            tokio::time::sleep(Duration::from_secs(after)).await;
            seen.0.note(format!("{what}: {}", seen.1.look().await));
        }
        gate.open();
    });
    stock.stop().await;
    assert!(call.await.unwrap().is_ok());
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let expected = [
        "before start: closed",
        "register: SERVING",
        "after start: SERVING",
        "before stop: SERVING",
        "deregister: NOT_SERVING",
        "two seconds later: NOT_SERVING",
        "four seconds later: closed",
        "the last call is answered",
        "after stop: closed",
    ];
    assert_eq!(*diary.0.lock().unwrap(), expected);
}

/// Environment variable that makes this binary run as a service in a process of its own, and names the
/// service.
const ROLE: &str = "CHAIN_TEST_ROLE";

/// Not a test: the code that [`Process`] runs. Its hooks print their names to standard output.
#[test]
fn a_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let served = runtime.block_on(async {
        let say = |what: &'static str| {
            async move || {
                println!("\n> {what}");
                Ok::<_, chassis::BoxError>(())
            }
        };
        let stuck = role == "stuck";
        let builder = Chassis::builder("process").environment(Environment::default()).without_file();
        let builder = builder.settings(serde_json::json!({
            "registry": { "kind": "memory" },
            "listen": { "http": "127.0.0.1:0" },
        }));
        let builder = builder.before_start(say("before start")).after_start(say("after start"));
        let builder = builder.before_stop(async move || {
            println!("\n> before stop");
            if stuck {
                std::future::pending::<()>().await;
            }
            Ok(())
        });
        let app = builder.after_stop(say("after stop")).build().await.unwrap();
        app.serve_http(axum::Router::new()).run().await
    });
    println!("\n> served: {served:?}");
}

/// A service in a process of its own.
struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(role: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "life::a_process", "--nocapture", "--test-threads=1"]).env(ROLE, role);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut process = Process { child, lines };
        assert_eq!([process.said(), process.said()], ["before start", "after start"]);
        process
    }

    /// The next printed line; empty at the end.
    fn said(&mut self) -> String {
        let lines = self.lines.by_ref().map(Result::unwrap);
        lines.filter_map(|line| line.strip_prefix("> ").map(str::to_owned)).next().unwrap_or_default()
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    fn exit(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

#[test]
fn a_signal_stops_in_order() {
    for name in ["TERM", "INT"] {
        let mut process = Process::start("plain");
        process.signal(name);
        let said = [process.said(), process.said(), process.said()];
        assert_eq!(said, ["before stop", "after stop", "served: Ok(())"], "{name}");
        assert!(process.exit().success(), "{name}");
    }
}

/// A hook hangs; a second signal ends the process without waiting for it.
#[test]
fn a_second_signal_exits_now() {
    for (first, second, code) in [("TERM", "TERM", 143), ("TERM", "INT", 130), ("INT", "INT", 130)] {
        let mut process = Process::start("stuck");
        process.signal(first);
        assert_eq!(process.said(), "before stop");
        process.signal(second);
        assert_eq!((process.said().as_str(), process.exit().code()), ("", Some(code)), "{first} {second}");
    }
}
