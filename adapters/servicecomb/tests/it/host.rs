//! A server of a test on a thread of its own, which can be ended or blocked at once.
use std::{sync::mpsc, thread::JoinHandle, time::Duration};

use axum::Router;
use tokio::{net::TcpListener, sync::oneshot, time::sleep};

/// Serves a router at an address on loopback, which a restart keeps.
pub(crate) struct Host {
    pub(crate) address: String,
    running: Option<Running>,
}

struct Running {
    over: oneshot::Sender<()>,
    freeze: mpsc::Sender<mpsc::Receiver<()>>,
    thread: JoinHandle<()>,
}

// === impl Host ===

impl Host {
    /// Not started yet.
    pub(crate) fn new() -> Host {
        Host { address: "127.0.0.1:0".to_owned(), running: None }
    }

    /// Serves `router`, again at the same address. `tick` is called each millisecond.
    pub(crate) async fn run(&mut self, router: Router, tick: impl Fn() + Send + 'static) {
        let address = self.address.clone();
        let (bound, is_bound) = oneshot::channel();
        let (over, is_over) = oneshot::channel();
        let (freeze, frozen) = mpsc::channel::<mpsc::Receiver<()>>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind(&address).await.unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                let blocked = async {
                    loop {
                        if let Ok(until) = frozen.try_recv() {
                            let _ = until.recv();
                        }
                        tick();
                        sleep(Duration::from_millis(1)).await;
                    }
                };
                tokio::select! {
                    _ = is_over => {}
                    () = blocked => {}
                    served = axum::serve(listener, router) => served.unwrap(),
                }
            });
            runtime.shutdown_background();
        });
        self.address = is_bound.await.unwrap().to_string();
        self.running = Some(Running { over, freeze, thread });
    }

    /// Ends it at once, with all its connections.
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
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.kill();
        }
    }
}

/// A request by hand that blocks the thread; the status and the body of the answer.
pub(crate) fn ask_now(address: &str, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(request(method, path, body).as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    let (status, body) = parts(&answer);
    (status, serde_json::from_str(&body).unwrap_or_default())
}

/// A request by hand; the status and the body of the answer.
pub(crate) async fn ask(address: &str, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
    let (status, body) = text(address, method, path, body).await;
    (status, serde_json::from_str(&body).unwrap_or_default())
}

/// The same, with the body as it is.
pub(crate) async fn text(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let exchanged = tokio::time::timeout(Duration::from_secs(30), async {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(request(method, path, body).as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    });
    parts(&exchanged.await.expect("the server answers"))
}

fn request(method: &str, path: &str, body: &str) -> String {
    let head = format!(
        "{method} {path} HTTP/1.0\r\nhost: c\r\nx-domain-name: default\r\ncontent-type: application/json\r\n"
    );
    format!("{head}content-length: {}\r\n\r\n{body}", body.len())
}

/// The status and the body of an answer.
fn parts(answer: &str) -> (u16, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}
