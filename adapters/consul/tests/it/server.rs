//! A real agent of Consul on loopback, which is its own server and holds everything in memory.
use std::{path::PathBuf, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::trials::NotRun;

/// An agent; it ends with this value.
pub(crate) struct Consul {
    program: PathBuf,
    arguments: Vec<String>,
    process: Option<Child>,
    /// The token of the test's own requests.
    token: Option<String>,
    pub(crate) address: String,
}

/// The token that may do everything, where ACLs are on.
pub(crate) const MASTER: &str = "11111111-1111-1111-1111-111111111111";
/// A limit for each wait.
const PATIENCE: Duration = Duration::from_secs(60);

impl Consul {
    /// Starts an agent without ACLs.
    pub(crate) async fn start() -> Result<Consul, NotRun> {
        Self::start_with("", None).await
    }

    /// Starts an agent with ACLs that refuse who has no rule.
    #[allow(dead_code)] // the tests of the façade use the other half
    pub(crate) async fn guarded() -> Result<Consul, NotRun> {
        let acl = format!(
            "acl {{ enabled = true, default_policy = \"deny\", tokens {{ initial_management = \"{MASTER}\" }} }}"
        );
        Self::start_with(&acl, Some(MASTER)).await
    }

    /// Starts an agent that also listens for TLS, with these settings in its table `defaults`; and its address for TLS.
    #[allow(dead_code)] // likewise
    pub(crate) async fn secure(tls: &str) -> Result<(Consul, String), NotRun> {
        let [port] = free_ports();
        let more = format!("ports {{ https = {port} }}\ntls {{ defaults {{ {tls} }} }}");
        Ok((Self::start_with(&more, None).await?, format!("127.0.0.1:{port}")))
    }

    /// Starts an agent with these settings beside its own, and the token of the test's own requests.
    pub(crate) async fn start_with(more: &str, token: Option<&str>) -> Result<Consul, NotRun> {
        let variable = "CHASSIS_PEER_CONSUL";
        let program = std::env::var(variable).map_err(|_| NotRun(format!("{variable} is not set")))?;
        let [http, lan, server] = free_ports();
        let mut arguments: Vec<_> = ["agent", "-dev", "-node=n1", "-bind=127.0.0.1", "-client=127.0.0.1"]
            .into_iter()
            .map(str::to_owned)
            .collect();
        arguments.extend([
            format!("-http-port={http}"),
            format!("-serf-lan-port={lan}"),
            format!("-server-port={server}"),
            "-serf-wan-port=-1".to_owned(),
            "-dns-port=-1".to_owned(),
            "-grpc-port=-1".to_owned(),
            "-grpc-tls-port=-1".to_owned(),
            "-log-level=err".to_owned(),
            format!("-hcl=disable_update_check = true\n{more}"),
        ]);
        let (address, token) = (format!("127.0.0.1:{http}"), token.map(str::to_owned));
        let mut consul = Consul { program: program.into(), arguments, process: None, token, address };
        consul.run().await;
        Ok(consul)
    }

    /// Starts it again, without any memory, and waits until it serves.
    pub(crate) async fn run(&mut self) {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env("CHECKPOINT_DISABLE", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(command.kill_on_drop(true).spawn().unwrap());
        let ready = async {
            // It has a leader, and its node stands in the catalog: entries are listed from here on.
            while !self.is_ready().await {
                if let Some(status) = self.process.as_mut().unwrap().try_wait().unwrap() {
                    panic!("Consul has ended: {status}");
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, ready).await.expect("Consul is ready soon");
    }

    async fn is_ready(&self) -> bool {
        let answer = self.try_request("GET", "/v1/health/node/n1", &Value::Null).await;
        answer.is_ok_and(|(status, body)| status == 200 && body.contains("serfHealth"))
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

    /// The status and the body of an answer. A body that is a text is sent as it is, another one as JSON.
    pub(crate) async fn request(&self, method: &str, path: &str, body: &Value) -> (u16, String) {
        let answer = timeout(PATIENCE, self.try_request(method, path, body)).await.expect("Consul answers");
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    async fn try_request(&self, method: &str, path: &str, body: &Value) -> std::io::Result<(u16, String)> {
        let body = match body {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            body => body.to_string(),
        };
        // Of HTTP/1.0, so that the answer is not cut into chunks.
        let mut head =
            format!("{method} {path} HTTP/1.0\r\nhost: consul\r\ncontent-length: {}\r\n", body.len());
        if let Some(token) = &self.token {
            head.push_str(&format!("x-consul-token: {token}\r\n"));
        }
        let mut stream = TcpStream::connect(&self.address).await?;
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer);
        let malformed = || std::io::Error::other(format!("an answer that is none: {answer}"));
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(malformed)?;
        Ok((status, body.to_owned()))
    }

    /// An answer that succeeds, as JSON.
    pub(crate) async fn ok(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.request(method, path, &body).await;
        assert_eq!(status, 200, "{method} {path}: {answer}");
        serde_json::from_str(&answer).unwrap_or(Value::Null)
    }

    /// Puts the value of a key; the index of the change.
    pub(crate) async fn put(&self, key: &str, value: &str) -> u64 {
        let answer = self.ok("PUT", &format!("/v1/kv/{key}"), value.into()).await;
        assert_eq!(answer, true, "{key}");
        self.index_of(key).await
    }

    async fn index_of(&self, key: &str) -> u64 {
        let all = self.ok("GET", &format!("/v1/kv/{key}"), Value::Null).await;
        all[0]["ModifyIndex"].as_u64().unwrap()
    }

    pub(crate) async fn delete(&self, key: &str) {
        self.ok("DELETE", &format!("/v1/kv/{key}"), Value::Null).await;
    }

    /// The entry of an instance of chassis on the agent.
    #[allow(dead_code)] // likewise
    pub(crate) async fn entry(&self, id: &str) -> Option<Value> {
        let all = self.ok("GET", "/v1/agent/services", Value::Null).await;
        all.get(id).cloned()
    }

    /// Takes an entry off the agent.
    #[allow(dead_code)] // likewise
    pub(crate) async fn deregister(&self, id: &str) {
        self.ok("PUT", &format!("/v1/agent/service/deregister/{id}"), Value::Null).await;
    }

    /// A token with these rules.
    #[allow(dead_code)] // likewise
    pub(crate) async fn new_token(&self, rules: &str) -> (String, String) {
        let name = format!("p{}", rules.len());
        let policy = json!({ "Name": name, "Rules": rules });
        let (status, _) = self.request("PUT", "/v1/acl/policy", &policy).await;
        assert!(matches!(status, 200 | 500), "{status}"); // 500: it is there
        let token = self.ok("PUT", "/v1/acl/token", json!({ "Policies": [{ "Name": name }] })).await;
        let text = |key: &str| token[key].as_str().unwrap().to_owned();
        (text("SecretID"), text("AccessorID"))
    }

    /// Takes a token away.
    #[allow(dead_code)] // likewise
    pub(crate) async fn revoke(&self, accessor: &str) {
        self.ok("DELETE", &format!("/v1/acl/token/{accessor}"), Value::Null).await;
    }
}

/// Ports that nothing listens at now, each another one.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [_; N] = std::array::from_fn(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
