//! `chassis-bench memory`: bytes per endpoint, connection, key and operation, and of an idle process.
//!
//! Each figure is a difference: the resident memory of a process with a number of items, minus that of one
//! with half as many. So it includes the allocator's overhead, and excludes the memory of the process itself.
use std::{
    fs,
    hint::black_box,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use chassis::{
    Channel, Chassis, Random,
    grpc::{GrpcServer, GrpcServices, GrpcTransport},
    http::{
        ClientConfig, ServerConfig,
        connector::Network,
        server::{Mux, Server},
    },
    pipeline,
    registries::MemoryRegistry,
    registry::{Instance, Membership},
};
use http::{HeaderName, HeaderValue};
use lexopt::{Arg, ValueExt};
use serde::Serialize;

use crate::{
    Result,
    echo::{CallRequest, echo_client::EchoClient, echo_server::EchoServer},
    layers::{bare, echo::Echo, settings::document, whole::runtime},
    micro::leaf::{AtOnce, Maker},
};

const USAGE: &str = "\
chassis-bench memory [--quick] [--json | --markdown]

  --quick     fewer of each thing, and a shorter look at the idle process: in at most a minute
  --json      {\"rows\": [{name, unit, value}]}
  --markdown  the table of docs/benchmarks.md
";

/// One figure.
#[derive(Serialize)]
struct Measured {
    name: &'static str,
    unit: &'static str,
    value: f64,
}

#[derive(Serialize)]
struct Table {
    rows: Vec<Measured>,
}

/// The kinds of items, and how many of each are created.
const THINGS: [(&str, usize); 6] = [
    ("idle_endpoint", 40_000),
    // Both its ends, without the kernel's part.
    ("connection", 1_000),
    ("rate_limit_key", 400_000),
    ("operation_named", 20_000),
    ("operation_called", 8_000),
    ("call_in_flight", 20_000),
];

/// The settings of a small service: both protocols, a file of settings, one upstream.
const SERVICE: &str = "
listen: { grpc: 127.0.0.1:0, http: 127.0.0.1:0 }
outbound: { services: { stock: { timeout: 300ms } } }
";

/// Runs the subcommand.
pub fn run(mut args: lexopt::Parser) -> Result {
    let (mut quick, mut json, mut markdown) = (false, false, false);
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("quick") => quick = true,
            Arg::Long("json") => json = true,
            Arg::Long("markdown") => markdown = true,
            Arg::Long("child") => {
                let thing = args.value()?.string()?;
                return child(&thing, args.value()?.parse()?);
            }
            Arg::Long("idle") => return idle(),
            Arg::Long("help") | Arg::Short('h') => {
                print!("{USAGE}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let mut rows = Vec::new();
    for (name, most) in THINGS {
        let most = if quick { most / 4 } else { most };
        let value = (resident_with(name, most)? - resident_with(name, most / 2)?) / (most - most / 2) as f64;
        rows.push(Measured { name, unit: "bytes", value });
    }
    rows.extend(watch_idle(Duration::from_secs(if quick { 5 } else { 20 }))?);
    if json {
        println!("{}", serde_json::to_string_pretty(&Table { rows })?);
        return Ok(());
    }
    if markdown {
        println!("| what | value | unit |\n|---|---:|---|");
    }
    for Measured { name, unit, value } in rows {
        match markdown {
            true => println!("| `{name}` | {value:.1} | {unit} |"),
            false => println!("{name:24} {value:>12.1} {unit}"),
        }
    }
    Ok(())
}

/// The resident memory in bytes of a process with `count` items.
fn resident_with(thing: &str, count: usize) -> Result<f64> {
    let mut child = Command::new(std::env::current_exe()?);
    let output = child.args(["memory", "--child", thing, &count.to_string()]).output()?;
    if !output.status.success() {
        return Err(format!("{thing}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

/// Creates `count` items, and prints the resident memory.
fn child(thing: &str, count: usize) -> Result {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match thing {
            "idle_endpoint" => endpoints(count).await,
            "connection" => connections(count).await,
            "rate_limit_key" => keys(count).await,
            "operation_named" => operations(count, false).await,
            "operation_called" => operations(count, true).await,
            "call_in_flight" => calls(count).await,
            other => Err(format!("there is no `{other}`").into()),
        }
    })
}

/// Called while all items are alive.
fn print_resident<T>(kept: T) -> Result {
    println!("{}", resident("self")?);
    black_box(&kept);
    Ok(())
}

fn resident(process: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
}

async fn endpoints(count: usize) -> Result {
    let registry = MemoryRegistry::new();
    let address = |n| format!("127.0.0.1:{}", 1 + n % 60_000);
    let instances = Membership::known((0..count).map(|n| instance(n, address(n))));
    registry.set("echo", instances);
    let runtime = runtime("caller", |builder| builder.registry(Arc::new(registry)));
    let transport = GrpcTransport::new(Arc::new(Network::default()), ClientConfig::default());
    let cluster = runtime.cluster("echo", &Arc::new(transport));
    while cluster.members().nodes().len() < count {
        tokio::task::yield_now().await;
    }
    print_resident((cluster, runtime))
}

fn instance(number: usize, address: String) -> Instance {
    Instance::new("echo", format!("echo-{number}"))
        .with_address("grpc", address)
        .with_label("track", "stable")
}

async fn connections(count: usize) -> Result {
    let network = Network::default();
    let server = runtime("echo", |builder| builder);
    let serving = Server::new(ServerConfig::default(), server.tasks(), Random::seeded(1));
    let grpc = GrpcServer::new(&server, GrpcServices::default().add(EchoServer::new(Echo)));
    let listener = network.bind("127.0.0.1:0").await?;
    let address = listener.address();
    serving.serve("grpc", listener, Mux { grpc: Some(Arc::new(grpc)), http: None }, None);
    let registry = MemoryRegistry::new();
    let instances = Membership::known((0..count).map(|n| instance(n, address.clone())));
    registry.set("echo", instances);
    let client = runtime("caller", |builder| builder.registry(Arc::new(registry)));
    let transport = Arc::new(GrpcTransport::new(Arc::new(network), ClientConfig::default()));
    let mut stub = EchoClient::new(Channel::new("echo", pipeline::client(&client, "echo", &transport)));
    let cluster = client.cluster("echo", &transport);
    let connected = || {
        let nodes = cluster.members();
        nodes.nodes().iter().filter(|n| n.connection() == chassis::Connection::Ready).count()
    };
    while connected() < count {
        stub.call(CallRequest { payload: Bytes::from_static(b"hello"), repeat: 0 }).await?;
        for node in cluster.members().nodes() {
            node.wake();
        }
        tokio::task::yield_now().await;
    }
    // Each has answered some calls, so that state created by the first call exists.
    for _ in 0..count * 4 {
        stub.call(CallRequest { payload: Bytes::from_static(b"hello"), repeat: 0 }).await?;
    }
    print_resident((stub, serving))
}

async fn keys(count: usize) -> Result {
    let runtime = runtime("echo", |builder| builder);
    let limit = "{ name: all, rate: 1000/s, burst: 10, key: { header: x-key }, max_keys: 4000000 }";
    runtime
        .apply(&document(&format!("inbound: {{ rate_limits: [ {limit} ] }}")).settings(), 1, "bench")
        .map_err(|problems| format!("{problems:?}"))?;
    let (pipeline, maker) = (pipeline::server(&runtime, AtOnce::new()), Maker::new());
    for number in 0..count {
        let mut call = maker.call();
        let key = HeaderValue::try_from(format!("key-{number:08}"))?;
        call.metadata.insert(HeaderName::from_static("x-key"), key);
        drop(pipeline.run(call).await?);
    }
    print_resident((pipeline, runtime))
}

/// With a circuit each, and called if `called`, so that all lazily created state exists.
async fn operations(count: usize, called: bool) -> Result {
    let mut text = String::from("outbound:\n  services:\n    echo:\n      operations:\n");
    for number in 0..count {
        text.push_str(&format!(
            "        bench.v1.Echo/Operation{number:05}: {{ breaker: {{ min_calls: 9 }} }}\n"
        ));
    }
    let settings = document(&text).settings();
    drop(text);
    let registry = crate::micro::pipelines::registry(3);
    let runtime = runtime("caller", |builder| builder.registry(Arc::new(registry)));
    runtime.apply(&settings, 1, "bench").map_err(|problems| format!("{problems:?}"))?;
    drop(settings);
    let (pipeline, maker) = (pipeline::client(&runtime, "echo", &Arc::new(AtOnce::new())), Maker::new());
    for number in 0..if called { count } else { 0 } {
        let mut call = maker.call();
        call.target.operation = format!("bench.v1.Echo/Operation{number:05}").as_str().into();
        drop(pipeline.run(call).await?);
    }
    print_resident((pipeline, runtime))
}

/// Calls in both pipelines, each in a handler that does not answer.
async fn calls(count: usize) -> Result {
    let runtime = runtime("echo", |builder| builder);
    let pipeline = pipeline::server(
        &runtime,
        tower::service_fn(|call| async move {
            let _call: chassis::Invocation = call;
            std::future::pending().await
        }),
    );
    let maker = Maker::new();
    let mut calls = Vec::with_capacity(count);
    for _ in 0..count {
        let mut call = pipeline.run(maker.call());
        assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(call.as_mut().poll(cx).is_pending())).await);
        calls.push(call);
    }
    print_resident((calls, runtime))
}

/// A small service without calls, until it is killed.
fn idle() -> Result {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("chassis.yaml");
        let registry = format!("registry: {{ kind: local, dir: {:?} }}\n", directory.path().join("registry"));
        fs::write(&file, SERVICE.to_owned() + &registry)?;
        let app = Chassis::builder("orders").config_file(file).build().await?;
        let _stock = app.grpc("stock");
        let running = app.serve_grpc(EchoServer::new(Echo)).serve_http(bare::router()).start().await?;
        println!("ready");
        std::future::pending::<()>().await;
        drop(running);
        Ok(())
    })
}

/// Observes such a service from outside.
fn watch_idle(span: Duration) -> Result<Vec<Measured>> {
    struct Killed(Child);
    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let mut child = Command::new(std::env::current_exe()?);
    let mut child = Killed(child.args(["memory", "--idle"]).stdout(Stdio::piped()).spawn()?);
    let mut line = String::new();
    let stdout = child.0.stdout.take().ok_or("its output is piped")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)?;
    if line.trim() != "ready" {
        return Err("the idle service did not start".into());
    }
    let process = child.0.id().to_string();
    std::thread::sleep(Duration::from_secs(1));
    let before = wakeups(&process)?;
    std::thread::sleep(span);
    let value = (wakeups(&process)? - before) as f64 / span.as_secs_f64();
    Ok(vec![
        Measured { name: "idle_service", unit: "bytes", value: resident(&process)? },
        Measured { name: "idle_service_wakeups", unit: "per second", value },
    ])
}

/// The number of voluntary context switches of a process's threads, which is the number of wake-ups.
fn wakeups(process: &str) -> Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sum += line.ok_or("no voluntary_ctxt_switches")?.trim().parse::<u64>()?;
    }
    Ok(sum)
}
