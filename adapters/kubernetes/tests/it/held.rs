//! How long a thread that serves calls is held by a service with 10,000 endpoints in 100 slices.
//!
//! A task that yields all the time measures the processor time of its thread between two of its turns, so that other
//! processes of this machine change nothing. The server is on a thread of its own.
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use chassis_core::registry::{Membership, Registry, Watcher};
use chassis_kubernetes::KubernetesConfig;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    task::yield_now,
    time::timeout,
};

use crate::registry::registry;

trials! {
    large_changes_hold_no_thread_that_serves
}

const PATIENCE: Duration = Duration::from_secs(60);
const SLICES: usize = 100;
const ENDPOINTS: usize = 100;
/// The longest time; code without optimization takes several times as long.
const MOST: Duration =
    if cfg!(debug_assertions) { Duration::from_millis(10) } else { Duration::from_millis(2) };

/// The slice `n` with this many endpoints, in `zone`, as Kubernetes writes them.
fn slice(n: usize, endpoints: usize, zone: &str, version: usize) -> Value {
    let endpoint = |at: usize| {
        let name = format!("stock-7d9c5b8f6b-{n:03}-{at:04}");
        json!({
            "addresses": [format!("198.18.{n}.{}", at % 250 + 1)],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": format!("node-{at}"), "zone": zone,
            "targetRef": { "kind": "Pod", "namespace": "shop", "name": name, "uid": format!("{at:08x}-{n}") },
            "hints": { "forZones": [{ "name": zone }] },
        })
    };
    json!({
        "metadata": { "name": format!("stock-{n}"), "resourceVersion": version.to_string(),
            "labels": { "kubernetes.io/service-name": "stock" } },
        "addressType": "IPv4", "ports": [{ "name": "grpc", "port": 50051, "protocol": "TCP" }],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    })
}

fn event(slice: &Value) -> String {
    format!("{}\n", json!({ "type": "MODIFIED", "object": slice }))
}

/// Answers a list by `list`, and a watch by what `events` brings.
async fn serve(listener: TcpListener, list: String, mut events: mpsc::UnboundedReceiver<String>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => break,
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let answer = "HTTP/1.1 200 X\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n";
        if head.contains("watch=true") {
            stream.write_all(answer.as_bytes()).await.unwrap();
            while let Some(event) = events.recv().await {
                stream.write_all(event.as_bytes()).await.unwrap();
            }
            return;
        }
        if !head.is_empty() {
            stream.write_all(format!("{answer}{list}").as_bytes()).await.unwrap();
        }
    }
}

/// The processor time of this thread.
fn used() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

async fn measure(held: Arc<AtomicU64>) {
    let mut last = used();
    loop {
        yield_now().await;
        let now = used();
        held.fetch_max((now - last).as_nanos().try_into().unwrap(), Relaxed);
        last = now;
    }
}

/// Waits until `count` instances are in `zone`.
async fn until(watcher: &mut Box<dyn Watcher>, zone: &str, count: usize) {
    let found = timeout(PATIENCE, async {
        loop {
            let Ok(Membership::Known(all)) = watcher.next().await else { continue };
            let there = tokio::task::spawn_blocking({
                let zone = zone.to_owned();
                move || all.iter().filter(|one| one.zone == zone).count()
            });
            if there.await.unwrap() == count {
                return;
            }
        }
    });
    found.await.unwrap_or_else(|_| panic!("{count} instances are not in {zone}"));
}

async fn large_changes_hold_no_thread_that_serves() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let server = Some(format!("http://{}", listener.local_addr().unwrap()));
    let items: Vec<_> = (0..SLICES).map(|n| slice(n, ENDPOINTS, "first", 1)).collect();
    let list = json!({ "metadata": { "resourceVersion": "1" }, "items": items }).to_string();
    // The answers are made beforehand: only the adapter is measured.
    let one: Vec<_> = (0..20).map(|n| event(&slice(n, ENDPOINTS, &format!("one{n}"), n + 2))).collect();
    let all: String = (0..SLICES).map(|n| event(&slice(n, ENDPOINTS, "all", 100 + n))).collect();
    let large = event(&slice(SLICES, 1_000, "large", 300));
    let (bytes, whole) = ([list.len(), one[0].len(), all.len(), large.len()], SLICES * ENDPOINTS);
    let (events, sent) = mpsc::unbounded_channel();
    let serving = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { serve(TcpListener::from_std(listener).unwrap(), list, sent).await });
    });
    let held = Arc::new(AtomicU64::new(0));
    tokio::spawn(measure(held.clone()));
    let mut figures = Vec::new();
    let mut figure = |what: &'static str, bytes: usize| {
        let held = Duration::from_nanos(held.swap(0, Relaxed));
        println!("kubernetes: {what} ({} KiB) hold a serving thread for {held:?}", bytes / 1_024);
        figures.push((what, held));
    };
    let mut watcher =
        registry(KubernetesConfig { server, ..KubernetesConfig::default() }).watch("stock").await.unwrap();
    until(&mut watcher, "first", whole).await;
    figure("10,000 endpoints in a list", bytes[0]);
    for (n, event) in one.into_iter().enumerate() {
        events.send(event).unwrap();
        until(&mut watcher, &format!("one{n}"), ENDPOINTS).await;
    }
    figure("20 changes of one slice of 100", bytes[1]);
    events.send(all).unwrap();
    until(&mut watcher, "all", whole).await;
    figure("changes of all slices at once", bytes[2]);
    events.send(large).unwrap();
    until(&mut watcher, "large", 1_000).await;
    figure("a slice with 1,000 endpoints", bytes[3]);
    drop(events);
    serving.join().unwrap();
    assert!(figures.iter().all(|(_, held)| *held <= MOST), "{figures:?}");
}
