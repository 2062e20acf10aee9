//! A real etcd, as a process that ends with its handle.
use std::{path::PathBuf, process::Stdio, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

use crate::trials::NotRun;

/// A limit for each wait.
const PATIENCE: Duration = Duration::from_secs(30);

/// A member of a cluster, in most tests the only one.
pub(crate) struct Etcd {
    program: PathBuf,
    arguments: Vec<String>,
    process: Option<Child>,
    folder: TempDir,
    /// The address for clients, also after a restart.
    pub(crate) address: String,
}

// === impl Etcd ===

impl Etcd {
    /// A cluster of one.
    pub(crate) async fn start() -> Result<Etcd, NotRun> {
        Self::start_with(&[]).await
    }

    /// The same, with more arguments.
    pub(crate) async fn start_with(more: &[&str]) -> Result<Etcd, NotRun> {
        let mut etcd = Self::prepared(1, more)?.remove(0);
        etcd.run().await;
        Ok(etcd)
    }

    /// A cluster of one that also listens for TLS, with these arguments; and its address for TLS.
    #[allow(dead_code)] // likewise
    pub(crate) async fn start_secure(more: Vec<String>) -> Result<(Etcd, String), NotRun> {
        let mut etcd = Self::prepared(1, &[])?.remove(0);
        let secure = format!("127.0.0.1:{}", free_ports(1)[0]);
        etcd.arguments.push(format!("--listen-client-urls=http://{},https://{secure}", etcd.address));
        etcd.arguments.extend(more);
        etcd.run().await;
        Ok((etcd, secure))
    }

    /// A cluster of several members, which soon elect another leader.
    #[allow(dead_code)] // not every binary of tests has such a test
    pub(crate) async fn cluster(members: usize) -> Result<Vec<Etcd>, NotRun> {
        let mut all = Self::prepared(members, &["--heartbeat-interval=50", "--election-timeout=500"])?;
        for etcd in &mut all {
            etcd.spawn(); // none is ready before most of them run
        }
        for etcd in &mut all {
            etcd.ready().await;
        }
        Ok(all)
    }

    fn prepared(members: usize, more: &[&str]) -> Result<Vec<Etcd>, NotRun> {
        let variable = "CHASSIS_PEER_ETCD";
        let program = std::env::var_os(variable).filter(|path| !path.is_empty());
        let program = program.ok_or_else(|| NotRun(format!("{variable} is not set, see scripts/setup")))?;
        let ports: Vec<(u16, u16)> =
            free_ports(2 * members).chunks(2).map(|pair| (pair[0], pair[1])).collect();
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let cluster: Vec<_> =
            ports.iter().enumerate().map(|(n, (_, peer))| format!("n{n}={}", url(*peer))).collect();
        let members = ports.iter().enumerate().map(|(n, (client, peer))| {
            let folder = tempfile::tempdir().unwrap();
            let mut arguments = vec![
                format!("--name=n{n}"),
                format!("--data-dir={}", folder.path().join("data").display()),
                format!("--listen-client-urls={}", url(*client)),
                format!("--advertise-client-urls={}", url(*client)),
                format!("--listen-peer-urls={}", url(*peer)),
                format!("--initial-advertise-peer-urls={}", url(*peer)),
                format!("--initial-cluster={}", cluster.join(",")),
                "--unsafe-no-fsync".to_owned(),
                "--log-outputs=stderr".to_owned(),
            ];
            arguments.extend(more.iter().map(|more| (*more).to_owned()));
            let address = format!("127.0.0.1:{client}");
            Etcd { program: program.clone().into(), arguments, process: None, folder, address }
        });
        Ok(members.collect())
    }

    /// Starts it again with its data, and waits until it serves.
    pub(crate) async fn run(&mut self) {
        self.spawn();
        self.ready().await;
    }

    fn spawn(&mut self) {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        self.process = Some(command.kill_on_drop(true).spawn().unwrap());
    }

    async fn ready(&mut self) {
        let errors = self.process.as_mut().unwrap().stderr.take().unwrap();
        let mut lines = BufReader::new(errors).lines();
        let ready = async {
            let mut said = Vec::new();
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains("ready to serve client requests") {
                    return;
                }
                said.push(line);
            }
            panic!("etcd has ended: {said:#?}");
        };
        timeout(PATIENCE, ready).await.expect("etcd is ready soon");
        // The process would block if its output were not read.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        // Of several members, the last may not know the leader yet. A refusal for lack of a user is an answer
        // too.
        loop {
            let answer = self.post("/v3/kv/range", json!({ "key": b64("x") })).await;
            let is_refusal =
                answer["message"].as_str().is_some_and(|words| words.contains("user name is empty"));
            if answer.get("header").is_some() || is_refusal {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Ends it at once.
    pub(crate) async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().await.unwrap();
        }
    }

    /// Deletes all of its data. It must be started again.
    #[allow(dead_code)] // likewise
    pub(crate) async fn wipe(&mut self) {
        self.kill().await;
        std::fs::remove_dir_all(self.folder.path().join("data")).unwrap();
    }

    /// Sends a signal to the process: `STOP`, `CONT`.
    #[allow(dead_code)] // likewise
    pub(crate) async fn signal(&self, signal: &str) {
        let id = self.process.as_ref().unwrap().id().unwrap();
        let status = Command::new("sh").arg("-c").arg(format!("kill -{signal} {id}")).status().await.unwrap();
        assert!(status.success());
    }

    /// The answer of its gateway for JSON.
    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        self.post_as(None, path, body).await
    }

    /// The same, with a token.
    pub(crate) async fn post_as(&self, token: Option<&str>, path: &str, body: Value) -> Value {
        let body = body.to_string();
        let mut head = format!("POST {path} HTTP/1.1\r\nhost: etcd\r\ncontent-length: {}\r\n", body.len());
        if let Some(token) = token {
            head.push_str(&format!("authorization: {token}\r\n"));
        }
        let request = format!("{head}connection: close\r\n\r\n{body}");
        let exchanged = timeout(PATIENCE, async {
            let mut stream = TcpStream::connect(&self.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        });
        let answer = exchanged.await.expect("etcd answers");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        // In one chunk, or with a known length.
        let body = match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            true => unchunked(body),
            false => body.to_owned(),
        };
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {answer}"))
    }

    /// Puts a value; returns the revision.
    #[allow(dead_code)] // likewise
    pub(crate) async fn put(&self, key: &str, value: &str) -> i64 {
        let answer = self.post("/v3/kv/put", json!({ "key": b64(key), "value": b64(value) })).await;
        revision(&answer)
    }

    /// Puts several values in one transaction.
    #[allow(dead_code)] // likewise
    pub(crate) async fn put_all(&self, all: impl IntoIterator<Item = (String, String)>) {
        let put = |(key, value): (String, String)| json!({ "request_put": { "key": b64(&key), "value": b64(&value) } });
        let all: Vec<_> = all.into_iter().map(put).collect();
        let answer = self.post("/v3/kv/txn", json!({ "success": all })).await;
        assert_eq!(answer["succeeded"], true, "{answer}");
    }

    #[allow(dead_code)] // likewise
    pub(crate) async fn delete(&self, key: &str) {
        revision(&self.post("/v3/kv/deleterange", json!({ "key": b64(key) })).await);
    }

    /// The value and the lease of a key.
    #[allow(dead_code)] // likewise
    pub(crate) async fn get(&self, key: &str) -> Option<(String, i64)> {
        let answer = self.post("/v3/kv/range", json!({ "key": b64(key) })).await;
        let found = answer["kvs"].get(0)?;
        let value = BASE64_STANDARD.decode(found["value"].as_str().unwrap()).unwrap();
        let lease = found["lease"].as_str().map_or(0, |lease| lease.parse().unwrap());
        Some((String::from_utf8(value).unwrap(), lease))
    }

    #[allow(dead_code)] // likewise
    pub(crate) async fn revoke(&self, lease: i64) {
        revision(&self.post("/v3/lease/revoke", json!({ "ID": lease.to_string() })).await);
    }

    /// Drops every revision but the newest one.
    #[allow(dead_code)] // likewise
    pub(crate) async fn compact(&self) {
        let newest = revision(&self.post("/v3/kv/range", json!({ "key": b64("x") })).await);
        revision(&self.post("/v3/kv/compaction", json!({ "revision": newest.to_string() })).await);
    }
}

fn revision(answer: &Value) -> i64 {
    let revision = answer["header"]["revision"].as_str().map(str::parse);
    revision.unwrap_or_else(|| panic!("etcd refuses: {answer}")).unwrap()
}

pub(crate) fn b64(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap();
        whole.push_str(&rest[..length]);
        body = rest.get(length + 2..).unwrap_or_default();
        if length == 0 {
            break;
        }
    }
    whole
}

/// Ports without a listener, all different.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}
