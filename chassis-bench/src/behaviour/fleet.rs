//! Services in processes of their own and a caller in this one, with a registry on this machine.
use std::{fs, path::PathBuf, process::Stdio};

use bytes::Bytes;
use chassis::Chassis;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

use crate::{Result, echo, serve::Status};

/// Server processes; dropping this ends them.
pub(super) struct Fleet {
    dir: TempDir,
    instances: Vec<Instance>,
}

struct Instance {
    process: Child,
    id: String,
    http: String,
}

// === impl Fleet ===

impl Fleet {
    pub(super) fn new() -> Result<Self> {
        Ok(Fleet { dir: tempfile::tempdir()?, instances: Vec::new() })
    }

    /// Starts an instance of `service`, with further settings and arguments, and waits until it takes calls.
    pub(super) async fn start(&mut self, service: &str, settings: &str, args: &[&str]) -> Result<usize> {
        let index = self.instances.len();
        let config = self.write(
            &format!("{service}-{index}.yaml"),
            &format!("listen: {{ grpc: 127.0.0.1:0, http: 127.0.0.1:0 }}\n{settings}"),
        )?;
        let mut process = Command::new(std::env::current_exe()?)
            .args(["serve", "--print-ready", "--name", service, "--config"])
            .arg(config)
            .args(args)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = process.stdout.take().ok_or("a process without an output")?;
        let mut lines = BufReader::new(output).lines();
        let ready = lines.next_line().await?.ok_or_else(|| format!("{service} has not started"))?;
        let word = |name: &str| {
            let found = ready.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            found.map(str::to_owned).ok_or_else(|| format!("not the line that reports readiness: {ready}"))
        };
        self.instances.push(Instance { process, id: word("instance")?, http: word("http")? });
        Ok(index)
    }

    /// A caller in this process.
    pub(super) async fn caller(&self, settings: &str) -> Result<Chassis> {
        let config = self.write("caller.yaml", settings)?;
        let builder = Chassis::builder("caller").config_file(config).descriptors(echo::FILE_DESCRIPTOR_SET);
        Ok(builder.build().await?)
    }

    /// The id of an instance in the registry.
    pub(super) fn id(&self, index: usize) -> &str {
        &self.instances[index].id
    }

    /// Kills an instance by SIGKILL, without a deregistration.
    pub(super) async fn kill(&mut self, index: usize) -> Result {
        Ok(self.instances[index].process.kill().await?)
    }

    /// Changes the behaviour of an instance.
    pub(super) async fn behave(&self, index: usize, changes: serde_json::Value) -> Result {
        self.ask(index, Method::PUT, changes.to_string()).await.map(drop)
    }

    /// The behaviour of an instance, and its counts.
    pub(super) async fn status(&self, index: usize) -> Result<Status> {
        Ok(serde_json::from_slice(&self.ask(index, Method::GET, String::new()).await?)?)
    }

    async fn ask(&self, index: usize, method: Method, body: String) -> Result<Bytes> {
        let stream = TcpStream::connect(&self.instances[index].http).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri("/behaviour").header("host", "instance");
        let request =
            request.header("content-type", "application/json").body(Full::new(Bytes::from(body)))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        match status.is_success() {
            true => Ok(body),
            false => Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into()),
        }
    }

    fn write(&self, name: &str, settings: &str) -> Result<PathBuf> {
        let registry = self.dir.path().join("registry");
        let registry = format!("registry: {{ kind: local, dir: '{}' }}\n", registry.display());
        let path = self.dir.path().join(name);
        fs::write(&path, registry + settings)?;
        Ok(path)
    }
}
