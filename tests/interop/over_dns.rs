//! Services that find each other by DNS, with a real server, Knot.
use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use chassis::{Chassis, Running, document::Environment};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{knot::Knot, ours, peer::PATIENCE, trials::Ran};

trials! {
    records_change_under_callers
    dns_is_away_under_callers
    a_server_that_never_answers_delays_no_stop
    settings_of_the_page_are_valid
}

async fn app(name: &str, settings: Value) -> Chassis {
    let builder = Chassis::builder(name).without_file().environment(Environment::default());
    builder.settings(settings).build().await.unwrap()
}

fn caller(server: &str) -> Value {
    json!({ "registry": { "kind": "dns", "servers": [server], "srv": { "http": "_http._tcp.{service}.test" } } })
}

async fn stock() -> Running {
    let settings = json!({ "registry": { "kind": "memory" }, "listen": { "http": "127.0.0.1:0" } });
    app("stock", settings).await.serve_http(ours::router()).start().await.unwrap()
}

/// The address where a service listens.
fn address(running: &Running) -> String {
    running.address("http").unwrap().to_owned()
}

/// SRV records of these instances.
async fn write(knot: &mut Knot, all: &[&Running]) {
    let record = |running: &&Running| {
        let address = address(running);
        let (_, port) = address.rsplit_once(':').unwrap();
        format!("_http._tcp.stock 1 SRV 0 1 {port} host")
    };
    let mut records: Vec<_> = all.iter().map(record).collect();
    records.push("host 1 A 127.0.0.1".to_owned());
    knot.write(&records.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

/// Callers, until they are stopped.
struct Callers {
    app: Chassis,
    tasks: JoinSet<Vec<String>>,
    calls: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Callers {
    async fn start(server: &str) -> Callers {
        let app = app("caller", caller(server)).await;
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

    /// Waits for this many further calls.
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
        let mut expected: Vec<_> = instances.iter().map(|one| address(one)).collect();
        expected.sort();
        let begun = Instant::now();
        let waited = timeout(PATIENCE, async {
            loop {
                let services = self.app.runtime().inspect().services.into_iter();
                let mut known: Vec<_> =
                    services.flat_map(|service| service.nodes).map(|node| node.address.to_string()).collect();
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

async fn records_change_under_callers() -> Ran {
    let mut knot = Knot::start(&[]).await?;
    let (first, second) = (stock().await, stock().await);
    write(&mut knot, &[&first, &second]).await;
    let callers = Callers::start(&knot.address).await;
    callers.know(&[&first, &second]).await;
    let (mut all, mut longest) = (vec![first, second], Duration::ZERO);
    for _ in 0..4 {
        callers.go_on(200).await;
        let new = stock().await;
        write(&mut knot, &[&all[1], &new]).await;
        longest = longest.max(callers.know(&[&all[1], &new]).await);
        all.remove(0).stop().await;
        all.push(new);
    }
    callers.go_on(200).await;
    let (calls, failed) = callers.end().await;
    println!(
        "dns: {calls} calls while the records changed four times, {} failed; a change is seen after {longest:?} at most, \
         with a TTL of 1 s",
        failed.len()
    );
    assert_eq!(failed, Vec::<String>::new());
    assert!(longest <= Duration::from_secs(2), "{longest:?}");
    Ok(())
}

/// DNS is frozen, failing and stopped, while a backend stops; then it is back with other records.
async fn dns_is_away_under_callers() -> Ran {
    let mut knot = Knot::start(&[]).await?;
    let (first, second) = (stock().await, stock().await);
    write(&mut knot, &[&first, &second]).await;
    let callers = Callers::start(&knot.address).await;
    callers.know(&[&first, &second]).await;
    knot.signal("STOP").await;
    callers.go_on(2_000).await;
    knot.signal("CONT").await;
    knot.lose_zone().await;
    callers.go_on(2_000).await;
    second.stop().await;
    callers.go_on(2_000).await;
    knot.kill().await;
    callers.go_on(2_000).await;
    knot.write_zone(&[]);
    knot.run().await;
    let third = stock().await;
    write(&mut knot, &[&first, &third]).await;
    let back = callers.know(&[&first, &third]).await;
    callers.go_on(200).await;
    let (calls, failed) = callers.end().await;
    println!(
        "dns: {calls} calls while DNS was away, {} failed; a change is seen {back:?} after its return",
        failed.len()
    );
    assert_eq!(failed, Vec::<String>::new());
    assert!(back <= Duration::from_secs(5), "{back:?}");
    Ok(())
}

async fn a_server_that_never_answers_delays_no_stop() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut settings = caller(&silent.local_addr().unwrap().to_string());
    settings["listen"] = json!({ "http": "127.0.0.1:0" });
    let running = app("orders", settings).await.serve_http(ours::router()).start().await.unwrap();
    let mut calls = JoinSet::new();
    for n in 0..64 {
        let http = running.http(&format!("service{n}"));
        calls.spawn(async move { http.get("/x").send().await.is_err() });
    }
    // The questions are out.
    let asked = timeout(PATIENCE, async {
        let mut buffer = [0; 512];
        silent.set_nonblocking(true).unwrap();
        while silent.recv(&mut buffer).is_err() {
            tokio::task::yield_now().await;
        }
    });
    asked.await.expect("DNS is asked");
    let begun = Instant::now();
    running.stop().await;
    let took = begun.elapsed();
    println!("dns: a stop with a server that never answers took {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
}

async fn settings_of_the_page_are_valid() {
    let page = include_str!("../../docs/dns.md");
    let blocks: Vec<_> =
        page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 1);
    for block in blocks {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("chassis.yaml");
        std::fs::write(&path, block).unwrap();
        let builder = Chassis::builder("orders").config_file(path).environment(Environment::default());
        let built = builder.build().await;
        assert!(built.is_ok(), "{block}: {:?}", built.err());
    }
}
