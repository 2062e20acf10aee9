//! A real API server of Kubernetes on a real etcd, shared by the tests of a binary; and servers for a test alone.
#![allow(dead_code)] // the tests of the façade use a part of it
use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use chassis_http::{
    HttpVersion,
    connector::{Network, Stream, TlsConfig},
};
use chassis_kubernetes::KubernetesConfig;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::{certificates::Authority, etcd::Etcd, trials::NotRun};

/// How a test reaches an API server.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) address: String,
    pub(crate) folder: PathBuf,
}

/// An API server and its etcd, as processes that end with this value.
pub(crate) struct Server {
    pub(crate) etcd: Etcd,
    pub(crate) api: Api,
    program: PathBuf,
    arguments: Vec<String>,
    process: Option<Child>,
    authority: Authority,
    _folder: TempDir,
}

/// Another API server on the same etcd.
pub(crate) struct Beside {
    pub(crate) api: Api,
    _process: Child,
}

/// The server of all tests, on a thread of its own.
struct Shared {
    api: Api,
    over: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

static SHARED: OnceLock<Mutex<Option<Shared>>> = OnceLock::new();
static NAMES: AtomicUsize = AtomicUsize::new(0);

/// A limit for each wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// The token of the test, which may do everything.
const ADMIN: &str = "admin-token";
/// The token of the service account `default` of the namespace `guarded`.
pub(crate) const GUARDED: &str = "guarded-token";

/// The token of the service account `default` of the namespace `labelled`.
pub(crate) const LABELLED: &str = "labelled-token";

/// The server of all tests of this binary; the first one starts it.
pub(crate) async fn shared() -> Result<Api, NotRun> {
    Server::program()?;
    // Each test has a thread of its own, and waits for the server there.
    let mut shared =
        SHARED.get_or_init(Mutex::default).lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(shared) = &*shared {
        return Ok(shared.api.clone());
    }
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (over, is_over) = oneshot::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut server = Server::start(&[]).await.unwrap_or_else(|NotRun(why)| panic!("{why}"));
            ready.send(server.api.clone()).unwrap();
            let _ = is_over.await;
            server.kill().await;
            server.etcd.kill().await;
        });
    });
    let api = is_ready.recv().expect("the server starts");
    *shared = Some(Shared { api: api.clone(), over, thread });
    Ok(api)
}

/// Ends the server of all tests.
pub(crate) fn stop() {
    let shared =
        SHARED.get().and_then(|shared| shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take());
    if let Some(Shared { over, thread, .. }) = shared {
        let _ = over.send(());
        let _ = thread.join();
    }
}

// === impl Api ===

impl Api {
    /// The settings of the registry in this namespace, with a token that may do everything.
    pub(crate) fn config(&self, namespace: &str) -> KubernetesConfig {
        self.config_at(&self.address, namespace)
    }

    /// The same, at another address of the server.
    pub(crate) fn config_at(&self, address: &str, namespace: &str) -> KubernetesConfig {
        KubernetesConfig {
            server: Some(format!("https://{address}")),
            tls: Some(TlsConfig::new(self.folder.join("authority.pem"))),
            token_file: Some(self.token_file(ADMIN)),
            namespace: Some(namespace.to_owned()),
            ..KubernetesConfig::default()
        }
    }

    /// A file with this token.
    pub(crate) fn token_file(&self, token: &str) -> PathBuf {
        let path = self.folder.join(format!("{token}.token"));
        std::fs::write(&path, format!("{token}\n")).unwrap();
        path
    }

    /// Makes a namespace of its own.
    pub(crate) async fn namespace(&self) -> String {
        let name = format!("t{}", NAMES.fetch_add(1, Relaxed));
        self.make_namespace(&name).await;
        name
    }

    pub(crate) async fn make_namespace(&self, name: &str) {
        let body = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        self.ok("POST", "/api/v1/namespaces", &body).await;
    }

    /// The status and the body of an answer.
    pub(crate) async fn request(&self, method: &str, path: &str, body: &str, kind: &str) -> (u16, String) {
        let answer = timeout(PATIENCE, self.try_request(method, path, body, kind)).await.expect("an answer");
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// A connection for HTTP/1.
    pub(crate) async fn connect(&self) -> std::io::Result<Stream> {
        let tls = TlsConfig::new(self.folder.join("authority.pem"));
        let connector = tls.connector(HttpVersion::One, std::sync::Arc::new(Network::default())).unwrap();
        connector.connect(&self.address).await
    }

    async fn try_request(
        &self,
        method: &str,
        path: &str,
        body: &str,
        kind: &str,
    ) -> std::io::Result<(u16, String)> {
        let mut stream = self.connect().await?;
        // Of HTTP/1.0, so that the answer is not cut into chunks.
        let request = format!(
            "{method} {path} HTTP/1.0\r\nhost: k\r\nauthorization: Bearer {ADMIN}\r\naccept: application/json\r\n\
             content-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer);
        let malformed = || std::io::Error::other(format!("an answer that is none: {answer}"));
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(malformed)?;
        Ok((status, body.to_owned()))
    }

    /// An answer that succeeds, as JSON.
    pub(crate) async fn ok(&self, method: &str, path: &str, body: &Value) -> Value {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let (status, answer) = self.request(method, path, &text, kind).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        serde_json::from_str(&answer).unwrap_or(Value::Null)
    }

    /// Puts up a slice of the Service `stock`, with these endpoints; replaces one of its name.
    pub(crate) async fn put_slice(&self, namespace: &str, name: &str, endpoints: Value) {
        self.write_slice(namespace, name, &slice(name, endpoints)).await;
    }

    /// The same with other contents.
    pub(crate) async fn write_slice(&self, namespace: &str, name: &str, slice: &Value) {
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
        let (status, answer) = self.request("POST", &path, &slice.to_string(), "application/json").await;
        match status {
            201 => {}
            409 => drop(self.ok("PUT", &format!("{path}/{name}"), slice).await),
            _ => panic!("{status} {answer}"),
        }
    }

    /// Puts up the ConfigMap `orders` with these keys; replaces another one.
    pub(crate) async fn put_config_map(&self, namespace: &str, data: Value) {
        let path = format!("/api/v1/namespaces/{namespace}/configmaps");
        let body = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "orders" }, "data": data });
        let (status, answer) = self.request("POST", &path, &body.to_string(), "application/json").await;
        match status {
            201 => {}
            409 => drop(self.ok("PUT", &format!("{path}/orders"), &body).await),
            _ => panic!("{status} {answer}"),
        }
    }

    pub(crate) async fn delete_slice(&self, namespace: &str, name: &str) {
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/{name}");
        self.ok("DELETE", &path, &Value::Null).await;
    }

    /// Makes a pod with these labels, which no node runs; returns its uid.
    pub(crate) async fn put_pod(&self, namespace: &str, name: &str, labels: Value) -> String {
        // A namespace has this account by a controller, of which there is none here.
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        let account = json!({ "metadata": { "name": "default" } }).to_string();
        let (status, answer) = self.request("POST", &path, &account, "application/json").await;
        assert!([201, 409].contains(&status), "{status} {answer}");
        let spec =
            json!({ "automountServiceAccountToken": false, "containers": [{ "name": "a", "image": "a" }] });
        let pod = json!({ "metadata": { "name": name, "labels": labels }, "spec": spec });
        let made = self.ok("POST", &format!("/api/v1/namespaces/{namespace}/pods"), &pod).await;
        made["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// Changes labels of a pod.
    pub(crate) async fn label_pod(&self, namespace: &str, name: &str, labels: Value) {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        self.ok("PATCH", &path, &json!({ "metadata": { "labels": labels } })).await;
    }

    pub(crate) async fn delete_pod(&self, namespace: &str, name: &str) {
        self.ok("DELETE", &format!("/api/v1/namespaces/{namespace}/pods/{name}"), &Value::Null).await;
    }

    /// Ready endpoints with these addresses below 192.0.2.
    pub(crate) async fn put(&self, namespace: &str, name: &str, hosts: &[u8]) {
        let endpoints: Vec<_> = hosts
            .iter()
            .map(|host| json!({ "addresses": [format!("192.0.2.{host}")], "conditions": { "ready": true } }))
            .collect();
        self.put_slice(namespace, name, endpoints.into()).await;
    }
}

/// A slice of the Service `stock`.
pub(crate) fn slice(name: &str, endpoints: Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": "stock" } },
        "endpoints": endpoints, "ports": [{ "name": "grpc", "port": 50051, "protocol": "TCP" }],
    })
}

// === impl Server ===

impl Server {
    fn program() -> Result<PathBuf, NotRun> {
        let variable = "CHASSIS_PEER_KUBE_APISERVER";
        let program = std::env::var_os(variable).filter(|path| !path.is_empty());
        program.map(PathBuf::from).ok_or_else(|| NotRun(format!("{variable} is not set, see scripts/setup")))
    }

    /// Starts an etcd, and an API server on it with more arguments.
    pub(crate) async fn start(more: &[&str]) -> Result<Server, NotRun> {
        let program = Self::program()?;
        let etcd = Etcd::start().await?;
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "authority");
        let identity = authority.server("apiserver");
        let file = |name: &str| folder.path().join(name);
        std::fs::copy(&identity.key, file("account.key")).unwrap();
        let tokens = format!(
            "{ADMIN},admin,1,\"system:masters\"\n\
             {GUARDED},system:serviceaccount:guarded:default,2,\"system:serviceaccounts\"\n\
             {LABELLED},system:serviceaccount:labelled:default,3,\"system:serviceaccounts\"\n"
        );
        std::fs::write(file("tokens.csv"), tokens).unwrap();
        let port = free_port();
        let mut arguments = vec![
            format!("--etcd-servers=http://{}", etcd.address),
            "--bind-address=127.0.0.1".to_owned(),
            // Else it looks for a default route, which not every network has.
            "--advertise-address=192.0.2.254".to_owned(),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", file("certs").display()),
            format!("--tls-cert-file={}", identity.cert.display()),
            format!("--tls-private-key-file={}", identity.key.display()),
            format!("--client-ca-file={}", authority.ca.display()),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-signing-key-file={}", file("account.key").display()),
            format!("--service-account-key-file={}", identity.cert.display()),
            format!("--token-auth-file={}", file("tokens.csv").display()),
            "--authorization-mode=RBAC".to_owned(),
            "--shutdown-delay-duration=0s".to_owned(),
        ];
        arguments.extend(more.iter().map(|more| (*more).to_owned()));
        let api = Api { address: format!("127.0.0.1:{port}"), folder: folder.path().to_owned() };
        let mut server = Server { etcd, api, program, arguments, process: None, authority, _folder: folder };
        server.run().await;
        Ok(server)
    }

    /// The files of a client's certificate.
    pub(crate) fn client(&self, name: &str, organizations: &[&str]) -> crate::certificates::Identity {
        self.authority.client(name, organizations)
    }

    /// Starts it, again with its data, and waits until it serves.
    pub(crate) async fn run(&mut self) {
        self.process = Some(spawn(&self.program, &self.arguments, &self.api).await);
    }

    /// Starts another API server on the same etcd.
    pub(crate) async fn beside(&self) -> Beside {
        let port = free_port();
        let mut arguments = self.arguments.clone();
        arguments.push(format!("--secure-port={port}")); // the last one counts
        let api = Api { address: format!("127.0.0.1:{port}"), ..self.api.clone() };
        let process = spawn(&self.program, &arguments, &api).await;
        Beside { api, _process: process }
    }

    /// Ends it at once.
    pub(crate) async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().await.unwrap();
        }
    }

    /// Sends a signal to the process: `STOP`, `CONT`.
    pub(crate) async fn signal(&self, signal: &str) {
        let id = self.process.as_ref().unwrap().id().unwrap();
        let status = Command::new("sh").arg("-c").arg(format!("kill -{signal} {id}")).status().await.unwrap();
        assert!(status.success());
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts an API server, and waits until it serves.
async fn spawn(program: &Path, arguments: &[String], api: &Api) -> Child {
    let path = api.folder.join(format!("{}.log", api.address));
    let log = std::fs::File::create(&path).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut process = command.kill_on_drop(true).spawn().unwrap();
    let ready = async {
        loop {
            let answer = api.try_request("GET", "/readyz", "", "application/json").await;
            if answer.is_ok_and(|(status, _)| status == 200) {
                return;
            }
            if let Some(status) = process.try_wait().unwrap() {
                let errors = std::fs::read_to_string(&path).unwrap_or_default();
                panic!("kube-apiserver has ended: {status}: {errors}");
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, ready).await.expect("kube-apiserver is ready soon");
    process
}
