//! A DNS server that never answers. In a process of its own, for it counts threads.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]
use std::{net::UdpSocket, time::Duration};

use chassis_core::registry::Registry;
use chassis_registry::{DnsConfig, DnsRegistry};
use tokio::time::{Instant, timeout};

/// A limit for each wait.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_server_that_never_answers_delays_nothing() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let ports = [("grpc".to_owned(), 50051.try_into().unwrap())].into();
    let config = DnsConfig { servers: vec![address.clone()], ports, ..DnsConfig::default() };
    assert_eq!(threads(), 0);
    let registry = DnsRegistry::new(config).unwrap();
    let mut watchers = Vec::new();
    for n in 0..100 {
        watchers.push(registry.watch(&format!("s{n}")).await.unwrap());
    }
    // It is an error in the end, and no answer before that.
    let error = timeout(PATIENCE, watchers[0].next()).await.unwrap().unwrap_err().to_string();
    assert!(error.contains(&address), "{error}");
    assert_eq!(threads(), 1, "threads for 100 services");
    let over = Instant::now();
    drop(watchers);
    drop(registry);
    assert!(over.elapsed() < Duration::from_millis(100), "{:?}", over.elapsed());
    while threads() > 0 {
        assert!(over.elapsed() < Duration::from_secs(2), "the thread goes on");
        tokio::task::yield_now().await;
    }
}

/// The threads of registries in this process.
fn threads() -> usize {
    let all = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(entry.ok()?.path().join("comm")).ok().map(|name| name.trim().to_owned())
    };
    all.filter_map(name).filter(|name| name == "chassis-dns").count()
}
