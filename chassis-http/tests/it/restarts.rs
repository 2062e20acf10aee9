//! A server that is drained and started again repeatedly, under load, on several threads.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use chassis_core::{Connection, Link};
use chassis_http::{
    ClientConfig, H2Leaf, ServerConfig,
    connector::Network,
    server::{Mux, Server},
};
use tokio::time::timeout;

use crate::support::{Client, World, echo};

const CALLERS: u64 = 32;
const RESTARTS: u64 = 4;
/// Between two restarts.
const CALLS: u64 = 500;

/// Calls that fail during a drain were provably not executed, and could be sent elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_breaks_no_call_that_was_begun() {
    let world = World::new();
    let network = Network::default();
    let (executed, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let start = async |address: &str| {
        let listener = network.bind(address).await.unwrap();
        let address = listener.address();
        let server = Server::new(ServerConfig::default(), &world.tasks, world.random.clone());
        let count = executed.clone();
        let service = echo(move |_, _| {
            count.fetch_add(1, SeqCst);
            String::from("done")
        });
        server.serve("http", listener, Mux { http: Some(Arc::new(service)), grpc: None }, None);
        (server, address)
    };
    let (mut server, address) = start("127.0.0.1:0").await;
    let link = Link::detached("stock", &address, world.tasks.clone(), world.random.clone());
    let leaf = H2Leaf::new(link.clone(), Arc::new(network.clone()), ClientConfig::default(), true);
    let client = Arc::new(Client { leaf, link }.ready().await);
    let over = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (client, over, answered) = (client.clone(), over.clone(), answered.clone());
            tokio::spawn(async move {
                while !over.load(SeqCst) {
                    match client.post("/order", "one").await {
                        Ok(answer) => {
                            assert_eq!(answer, "200 done");
                            answered.fetch_add(1, SeqCst);
                        }
                        Err(error) => {
                            assert!(error.unsent(), "{error:?}");
                            // A call would wait for a ready node.
                            let ready = client.until(Connection::Ready);
                            let _ = timeout(Duration::from_millis(50), ready).await;
                        }
                    }
                }
            })
        })
        .collect();
    for _ in 0..RESTARTS {
        let enough = answered.load(SeqCst) + CALLS;
        while answered.load(SeqCst) < enough {
            tokio::task::yield_now().await;
        }
        assert_eq!(server.drain(Duration::from_secs(30)).await, 0);
        (server, _) = start(&address).await;
    }
    over.store(true, SeqCst);
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(executed.load(SeqCst), answered.load(SeqCst));
}
