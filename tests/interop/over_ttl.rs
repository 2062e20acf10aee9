//! Services that find each other through chassis' own registry servers; and the example of one.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use chassis::{
    Chassis, Document, Running,
    config::{Format, Text},
    document::{Environment, parse, tree::Layer},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{ours, peer::PATIENCE, registry_server::Process};

trials! {
    servers_go_and_come_back_under_callers
    contracts_are_published_and_fetched
    the_example_keeps_its_snapshot
    settings_of_the_page_are_valid
}

async fn app(name: &str, servers: &[&str]) -> Chassis {
    let settings = json!({
        "registry": { "kind": "ttl", "servers": servers, "lease": "2s" },
        "service": { "advertise": "127.0.0.1" },
        "listen": { "http": "127.0.0.1:0" },
    });
    let builder = Chassis::builder(name).without_file().environment(Environment::default());
    builder.settings(settings).build().await.unwrap()
}

async fn stock(servers: &[&str]) -> Running {
    app("stock", servers).await.serve_http(ours::router()).start().await.unwrap()
}

/// Callers, until they are stopped.
struct Callers {
    app: Chassis,
    tasks: JoinSet<Vec<String>>,
    calls: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Callers {
    async fn start(servers: &[&str]) -> Callers {
        let app = app("caller", servers).await;
        let (calls, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut tasks = JoinSet::new();
        for _ in 0..8 {
            let (http, calls, over) = (app.http("stock"), calls.clone(), over.clone());
            tasks.spawn(async move {
                let mut failed = Vec::new();
                while !over.load(Relaxed) {
                    let ended = http.get("/hello/{name}").param("name", "x").send().await;
                    failed.extend(ended.err().map(|error| error.to_string()));
                    calls.fetch_add(1, Relaxed);
                }
                failed
            });
        }
        Callers { app, tasks, calls, over }
    }

    /// Waits for so many more calls.
    async fn go_on(&self, calls: u64) {
        let until = self.calls.load(Relaxed) + calls;
        let waited = timeout(PATIENCE, async {
            while self.calls.load(Relaxed) < until {
                tokio::task::yield_now().await;
            }
        });
        waited.await.expect("callers go on");
    }

    /// Waits until these instances are known, and no others.
    async fn know(&self, instances: &[&Running]) -> Duration {
        let mut expected: Vec<_> =
            instances.iter().flat_map(|one| one.advertised()).map(|(_, at)| at.clone()).collect();
        expected.sort();
        let begun = Instant::now();
        let waited = timeout(PATIENCE, async {
            loop {
                let services = self.app.runtime().inspect().services.into_iter();
                let nodes = services.flat_map(|service| service.nodes);
                let mut known: Vec<_> = nodes.map(|node| node.address.to_string()).collect();
                known.sort();
                if known == expected {
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("not known: {expected:?}"));
        begun.elapsed()
    }

    async fn end(mut self) -> (u64, Vec<String>) {
        self.over.store(true, Relaxed);
        let mut failed = Vec::new();
        while let Some(one) = self.tasks.join_next().await {
            failed.extend(one.unwrap());
        }
        (self.calls.load(Relaxed), failed)
    }
}

/// Instances are restarted while one of two servers is away; then both servers are, and come back empty.
async fn servers_go_and_come_back_under_callers() {
    let (mut first, mut second) = (Process::start().await, Process::start().await);
    let addresses = [first.address.clone(), second.address.clone()];
    let servers: Vec<_> = addresses.iter().map(String::as_str).collect();
    let mut all = vec![stock(&servers).await, stock(&servers).await];
    let callers = Callers::start(&servers).await;
    callers.know(&all.iter().collect::<Vec<_>>()).await;
    first.kill();
    for _ in 0..2 {
        callers.go_on(500).await;
        all.push(stock(&servers).await);
        callers.know(&all.iter().collect::<Vec<_>>()).await;
        all.remove(0).stop().await;
        callers.know(&all.iter().collect::<Vec<_>>()).await;
    }
    second.wipe();
    callers.go_on(2_000).await;
    first.wipe_stopped();
    first.run().await;
    second.run().await;
    let back = Instant::now();
    all.push(stock(&servers).await);
    callers.know(&all.iter().collect::<Vec<_>>()).await;
    let back = back.elapsed();
    callers.go_on(500).await;
    let (calls, failed) = callers.end().await;
    println!(
        "ttl: {calls} calls while servers went and came back, {} failed; a new instance is seen {back:?} after that",
        failed.len()
    );
    assert_eq!(failed, Vec::<String>::new());
    assert!(back <= Duration::from_secs(3), "{back:?}");
    for running in all {
        running.stop().await;
    }
    assert_eq!(first.ids().await, Vec::<String>::new());
}

/// Answers of the example, over HTTP/1.1.
async fn ask(address: &str, method: &str, path: &str, body: &str) -> Option<(String, Value)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: r\r\nauthorization: Bearer secret\r\ncontent-length: {}\r\n",
        body.len()
    );
    stream.write_all(format!("{head}connection: close\r\n\r\n{body}").as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.to_owned(), serde_json::from_str(body).unwrap_or_default()))
}

async fn the_example_keeps_its_snapshot() {
    let temp = tempfile::tempdir().unwrap();
    let address = {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        free.local_addr().unwrap().to_string()
    };
    let build = ["build", "--quiet", "--all-features", "--example", "registry"];
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(build).current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(cargo.status().await.unwrap().success());
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples/registry");
    let instance = json!({ "id": "a", "service": "stock", "addresses": { "grpc": "10.0.0.5:1" } });
    for round in 0..2 {
        let mut example = Command::new(&program);
        example.arg(temp.path().join("registry.json")).current_dir(temp.path()).kill_on_drop(true);
        example.env("CHASSIS_LISTEN__HTTP", &address).env("REGISTRY_TOKEN", "secret");
        let mut example = example.stdout(std::process::Stdio::null()).spawn().unwrap();
        let listed = timeout(PATIENCE, async {
            loop {
                match ask(&address, "GET", "/v1/services?service=stock", "").await {
                    Some((status, answer)) if status == "200" => return answer,
                    _ => tokio::task::yield_now().await,
                }
            }
        });
        let listed = listed.await.expect("it listens");
        if round == 0 {
            let body = json!({ "instance": instance, "ttl": "1h" }).to_string();
            assert_eq!(ask(&address, "POST", "/v1/services", &body).await.unwrap().0, "201");
        } else {
            assert_eq!(listed["instances"], json!([instance]), "it is there after a restart");
        }
        // A watch, which the stop does not wait for.
        let mut watch = TcpStream::connect(&address).await.unwrap();
        let request =
            "GET /v1/watch?service=stock HTTP/1.1\r\nhost: r\r\nauthorization: Bearer secret\r\n\r\n";
        watch.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        timeout(PATIENCE, watch.read_exact(&mut head)).await.unwrap().unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        let pid = example.id().unwrap().to_string();
        let begun = Instant::now();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        assert!(timeout(PATIENCE, example.wait()).await.expect("it stops").unwrap().success());
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}

/// A service whose servers are away at its start; its contracts are there once they are back, survive their restart, and
/// come back after a loss.
async fn contracts_are_published_and_fetched() {
    let mut server = Process::start().await;
    let address = server.address.clone();
    server.kill();
    let app = async |name: &str| {
        let settings = json!({
            "registry": { "kind": "ttl", "servers": [address], "lease": "2s", "contracts": true },
            "service": { "advertise": "127.0.0.1", "version": "1.4.0" },
            "listen": { "http": "127.0.0.1:0" },
        });
        Chassis::builder(name)
            .without_file()
            .environment(Environment::default())
            .settings(settings)
            .descriptors(chassis_protos::echo::FILE_DESCRIPTOR_SET)
            .openapi("stock-api", "openapi: 3.1.0\n")
    };
    let stock = app("stock").await.build().await.unwrap().serve_http(ours::router());
    let orders = app("orders").await.build().await.unwrap().contracts();
    let starting = tokio::spawn(stock.start());
    assert!(orders.versions("stock").await.is_err(), "no server is there");
    let stock = timeout(PATIENCE, starting).await.unwrap().unwrap().expect("it starts without a server");
    server.run().await;
    let back = Instant::now();
    let listed = async || {
        let of = orders.owner("stock", "1.4.0");
        let listed = timeout(PATIENCE, async {
            loop {
                match orders.list(&of).await {
                    Ok(listed) if listed.len() == 2 => return listed,
                    _ => tokio::task::yield_now().await,
                }
            }
        });
        listed.await.expect("they are published").into_iter().map(|entry| entry.name).collect::<Vec<_>>()
    };
    assert_eq!(listed().await, ["descriptors", "stock-api"]);
    println!("ttl: contracts are there {:?} after the server", back.elapsed());
    let of = orders.owner("stock", "1.4.0");
    let api = orders.fetch(&of, "stock-api").await.unwrap();
    assert_eq!(
        (&api.content[..], api.media_type.as_str()),
        (&b"openapi: 3.1.0\n"[..], "application/vnd.oai.openapi")
    );
    let descriptors = orders.fetch(&of, "descriptors").await.unwrap();
    assert_eq!(descriptors.content, chassis_protos::echo::FILE_DESCRIPTOR_SET);
    server.kill();
    server.run().await;
    assert_eq!(listed().await, ["descriptors", "stock-api"], "they survive a restart");
    assert_eq!(orders.versions("stock").await.unwrap(), ["1.4.0"]);
    stock.stop().await;
    assert_eq!(listed().await.len(), 2, "they outlive the process");
}

async fn settings_of_the_page_are_valid() {
    let page = include_str!("../../docs/ttl.md");
    let blocks: Vec<_> =
        page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let [registry, center] = blocks[..] else { panic!("{} blocks", blocks.len()) };
    for block in [registry, center] {
        let (content, origin) = (block.to_owned(), "page".to_owned());
        let tree =
            parse(&Text { content, format: Format::Yaml, origin, revision: None }, Layer::File).unwrap();
        let (document, problems) = Document::read(&tree);
        assert!(document.is_some() && problems.is_empty(), "{block}: {problems:?}");
    }
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("chassis.yaml");
    std::fs::write(&path, registry).unwrap();
    let built =
        Chassis::builder("orders").config_file(path).environment(Environment::default()).build().await;
    assert!(built.is_ok(), "{registry}: {:?}", built.err());
}
