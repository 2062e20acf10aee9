//! Services in processes of their own and a caller in this one, with a registry on this machine.
use std::{fs, path::PathBuf, process::Stdio, time::Duration};

use bytes::Bytes;
use chassis::{Chassis, inspect::NodeView};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
#[cfg(feature = "registries")]
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, interval},
};

use crate::{Result, echo, serve::Status};

/// Server processes; dropping this ends them.
pub(super) struct Fleet {
    dir: TempDir,
    /// The table `registry` of all settings.
    registry: serde_json::Value,
    instances: Vec<Instance>,
}

struct Instance {
    process: Child,
    id: String,
    at: Addresses,
}

/// The addresses of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) grpc: String,
    pub(super) http: String,
}

/// The time of the last check before the end of an observation.
const LAST_LOOK: Duration = Duration::from_secs(1);

// === impl Fleet ===

impl Fleet {
    /// Services in the registry `local`.
    pub(super) fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let registry = json!({ "kind": "local", "dir": dir.path().join("registry") });
        Ok(Fleet { dir, registry, instances: Vec::new() })
    }

    /// Services in the registry of these settings.
    #[cfg(feature = "registries")]
    pub(super) fn over(registry: serde_json::Value) -> Result<Self> {
        Ok(Fleet { dir: tempfile::tempdir()?, registry, instances: Vec::new() })
    }

    /// Starts an instance of `service`, with further settings and arguments, and waits until it takes calls.
    pub(super) async fn start(&mut self, service: &str, settings: &str, args: &[&str]) -> Result<usize> {
        let any = Addresses { grpc: "127.0.0.1:0".to_owned(), http: "127.0.0.1:0".to_owned() };
        self.start_at(&any, service, settings, args).await
    }

    /// The same at these addresses.
    pub(super) async fn start_at(
        &mut self,
        at: &Addresses,
        service: &str,
        settings: &str,
        args: &[&str],
    ) -> Result<usize> {
        let index = self.instances.len();
        let listen = format!("listen: {{ grpc: '{}', http: '{}' }}\n", at.grpc, at.http);
        let advertise = "service: { advertise: 127.0.0.1 }\n";
        let config =
            self.write(&format!("{service}-{index}.yaml"), &format!("{listen}{advertise}{settings}"))?;
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
        let at = Addresses { grpc: word("grpc")?, http: word("http")? };
        self.instances.push(Instance { process, id: word("instance")?, at });
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

    /// Where an instance listens.
    #[cfg(feature = "registries")]
    pub(super) fn at(&self, index: usize) -> &Addresses {
        &self.instances[index].at
    }

    /// Kills an instance by SIGKILL, without a deregistration.
    pub(super) async fn kill(&mut self, index: usize) -> Result {
        Ok(self.instances[index].process.kill().await?)
    }

    /// Stops an instance by SIGTERM, and waits for its end.
    #[cfg(feature = "registries")]
    pub(super) async fn stop(&mut self, index: usize) -> Result {
        let process = &mut self.instances[index].process;
        signal(process, Signal::TERM)?;
        Ok(process.wait().await.map(drop)?)
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
        ask(&self.instances[index].at.http, method, "/behaviour", body).await
    }

    fn write(&self, name: &str, settings: &str) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        fs::write(&path, format!("registry: {}\n{settings}", self.registry))?; // JSON is YAML
        Ok(path)
    }
}

/// Sends a request to a server at `address`; the body of an answer that succeeds.
pub(super) async fn ask(address: &str, method: Method, path: &str, body: String) -> Result<Bytes> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "instance");
    let request = request.header("content-type", "application/json").body(Full::new(Bytes::from(body)))?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    match status.is_success() {
        true => Ok(body),
        false => Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into()),
    }
}

/// Sends a signal to a process that has not ended.
#[cfg(feature = "registries")]
pub(super) fn signal(process: &Child, signal: Signal) -> Result {
    let id = process.id().ok_or("the process has ended")?;
    let id = Pid::from_raw(i32::try_from(id)?).ok_or("a process without an id")?;
    Ok(kill_process(id, signal)?)
}

/// The number of calls that `caller` counts to those nodes that `is_one` selects; `None` if there are none.
pub(super) fn calls_to(caller: &Chassis, is_one: impl Fn(&NodeView) -> bool) -> Option<u64> {
    let services = caller.runtime().inspect().services;
    let nodes = services.iter().flat_map(|service| &service.nodes).filter(|node| is_one(node));
    nodes.map(|node| node.calls + u64::from(node.in_flight)).reduce(|sum, calls| sum + calls)
}

/// How long `caller` still counts calls to those nodes that `is_one` selects; observes for up to `time`.
pub(super) async fn share_of(
    caller: &Chassis,
    is_one: impl Fn(&NodeView) -> bool,
    time: Duration,
) -> Duration {
    let calls = || calls_to(caller, &is_one);
    let (begun, mut ticks) = (Instant::now(), interval(Duration::from_millis(10)));
    let (mut before, mut last) = (calls(), Duration::ZERO);
    while begun.elapsed() + LAST_LOOK < time {
        ticks.tick().await;
        let now = calls();
        // Stops when the instance is no longer in the view.
        let Some(count) = now else { break };
        if before.is_some_and(|before| count > before) {
            last = begun.elapsed();
        }
        before = now;
    }
    last
}
