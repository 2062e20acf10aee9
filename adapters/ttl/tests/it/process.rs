//! A registry server that ends as a killed process does: at once, with all its connections.
use std::{path::PathBuf, sync::mpsc, thread::JoinHandle, time::Duration};

use chassis_ttl::{TtlServer, TtlServerConfig};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    time::timeout,
};

/// A limit for each wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A registry server on a runtime of its own.
pub(crate) struct Process {
    /// The address of the server, which a restart keeps.
    pub(crate) address: String,
    config: TtlServerConfig,
    running: Option<Running>,
    folder: TempDir,
}

struct Running {
    over: oneshot::Sender<()>,
    freeze: mpsc::Sender<mpsc::Receiver<()>>,
    thread: JoinHandle<()>,
}

// === impl Process ===

impl Process {
    /// With a snapshot in a folder of its own.
    pub(crate) async fn start() -> Process {
        Self::start_with(TtlServerConfig::default()).await
    }

    pub(crate) async fn start_with(config: TtlServerConfig) -> Process {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = Some(folder.path().join("registry.json"));
        let config = TtlServerConfig { snapshot, ..config };
        let mut process = Process { address: "127.0.0.1:0".to_owned(), config, running: None, folder };
        process.run().await;
        process
    }

    /// Starts it, again with the same address and snapshot.
    pub(crate) async fn run(&mut self) {
        let (config, address) = (self.config.clone(), self.address.clone());
        let (bound, is_bound) = oneshot::channel();
        let (over, is_over) = oneshot::channel();
        let (freeze, frozen) = mpsc::channel::<mpsc::Receiver<()>>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind(&address).await.unwrap();
                let server = TtlServer::open(config).await.unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                let blocked = async {
                    loop {
                        if let Ok(until) = frozen.try_recv() {
                            let _ = until.recv();
                        }
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                tokio::select! {
                    _ = is_over => {}
                    () = blocked => {}
                    served = axum::serve(listener, server.router()) => served.unwrap(),
                }
            });
            // A write of the snapshot ends first: that of a killed process does not end after it.
            runtime.shutdown_timeout(PATIENCE);
        });
        self.address = is_bound.await.unwrap().to_string();
        self.running = Some(Running { over, freeze, thread });
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        let Running { over, thread, .. } = self.running.take().unwrap();
        let _ = over.send(());
        thread.join().unwrap();
    }

    /// Blocks it until the sender is dropped.
    pub(crate) fn freeze(&self) -> mpsc::Sender<()> {
        let (until, over) = mpsc::channel();
        self.running.as_ref().unwrap().freeze.send(over).unwrap();
        until
    }

    /// Ends it, and forgets everything. It has to be started again.
    pub(crate) fn wipe(&mut self) {
        self.kill();
        self.wipe_stopped();
    }

    /// Forgets everything, once it has ended.
    pub(crate) fn wipe_stopped(&self) {
        let _ = std::fs::remove_file(self.snapshot()); // it may be killed before it has written one
    }

    pub(crate) fn snapshot(&self) -> PathBuf {
        self.folder.path().join("registry.json")
    }

    /// A request; the status and the body of the answer.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: r\r\ncontent-length: {}\r\n", body.len());
        self.send(&format!("{head}connection: close\r\n\r\n{body}")).await
    }

    /// Sends these bytes, and reads an answer to its end.
    pub(crate) async fn send(&self, request: &str) -> (u16, Value) {
        let (status, _, body) = self.exchange(request).await;
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    /// The same, with the head and the body as they are.
    pub(crate) async fn exchange(&self, request: &str) -> (u16, String, String) {
        let exchanged = timeout(PATIENCE, async {
            let mut stream = TcpStream::connect(&self.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer).await;
            answer
        });
        let answer = exchanged.await.expect("the server answers");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_ascii_lowercase(), body.to_owned())
    }

    /// Registers by hand; the lease.
    pub(crate) async fn put(&self, id: &str, weight: u32) -> String {
        let body = format!(
            r#"{{ "instance": {{ "id": "{id}", "service": "stock", "addresses": {{ "grpc": "10.0.0.5:1" }}, "weight": {weight} }} }}"#
        );
        let (status, answer) = self.ask("POST", "/v1/services", &body).await;
        assert_eq!(status, 201, "{answer}");
        answer["lease"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn delete(&self, lease: &str) {
        let (status, answer) = self.ask("DELETE", &format!("/v1/services/{lease}"), "").await;
        assert_eq!(status, 200, "{answer}");
    }

    /// The ids that it lists.
    pub(crate) async fn ids(&self) -> Vec<String> {
        let (status, answer) = self.ask("GET", "/v1/services?service=stock", "").await;
        assert_eq!(status, 200, "{answer}");
        let all = answer["instances"].as_array().unwrap();
        all.iter().map(|instance| instance["id"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.kill();
        }
    }
}
