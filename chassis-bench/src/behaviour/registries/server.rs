//! The server of a registry: a real one, as a process on loopback, with its faults.
use std::{fmt, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use chassis::{
    consul::{ConsulConfig, ConsulRegistry},
    etcd::{EtcdConfig, EtcdRegistry},
    registry::Registry,
    ttl::{TtlConfig, TtlRegistry},
};
use http::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use self::{consul::Consul, etcd::Etcd, knot::Knot};
use super::super::fleet::{Addresses, ask, signal};
use crate::{Result, trials::NotRun};

#[path = "../../../../adapters/consul/tests/it/server.rs"]
#[allow(clippy::unwrap_used, dead_code, reason = "of the tests, which end with the first surprise")]
mod consul;
#[path = "../../../../adapters/etcd/tests/it/server.rs"]
#[allow(clippy::unwrap_used, dead_code, reason = "likewise")]
mod etcd;
#[path = "../../../../chassis-registry/tests/dns/knot.rs"]
#[allow(clippy::unwrap_used, dead_code, reason = "likewise")]
mod knot;

/// A registry whose server can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::behaviour) enum Kind {
    Etcd,
    Consul,
    Ttl,
    Dns,
}

/// How a server is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// By SIGKILL: connections are refused.
    Killed,
    /// By SIGSTOP: connections are accepted by the kernel, and nothing is answered.
    Frozen,
}

/// The server of a registry. It ends with this value.
pub(super) enum Server {
    Etcd(Etcd),
    Consul(Consul),
    Ttl(Ttl),
    Dns(Knot),
}

/// `chassis-bench registry`.
pub(super) struct Ttl {
    address: String,
    folder: TempDir,
    process: Option<Child>,
}

/// The key of the settings in a center.
pub(super) const KEY: &str = "bench/chassis.yaml";
/// A limit for each wait.
const PATIENCE: Duration = Duration::from_secs(60);

// === impl Kind ===

impl Kind {
    pub(super) const ALL: [Kind; 4] = [Kind::Etcd, Kind::Consul, Kind::Ttl, Kind::Dns];

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Etcd => "etcd",
            Kind::Consul => "consul",
            Kind::Ttl => "ttl",
            Kind::Dns => "dns",
        }
    }

    /// Starts its server; `Err` if that is not installed.
    pub(super) async fn start(self) -> Result<Result<Server, NotRun>> {
        Ok(match self {
            Kind::Etcd => Etcd::start().await.map(Server::Etcd),
            // Many callers of one machine: an agent allows 200 connections by default.
            Kind::Consul => {
                let consul = Consul::start_with("limits { http_max_conns_per_client = 4096 }", None).await;
                consul.map(Server::Consul)
            }
            Kind::Ttl => Ok(Server::Ttl(Ttl::start().await?)),
            Kind::Dns => Knot::start(&[]).await.map(Server::Dns),
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Killed => "killed",
            Fault::Frozen => "frozen",
        })
    }
}

// === impl Server ===

impl Server {
    /// The table `registry` of services.
    pub(super) fn settings(&self) -> Value {
        match self {
            Server::Etcd(etcd) => json!({ "kind": "etcd", "endpoints": [etcd.address] }),
            Server::Consul(consul) => json!({ "kind": "consul", "address": consul.address }),
            Server::Ttl(ttl) => json!({ "kind": "ttl", "servers": [ttl.address] }),
            Server::Dns(knot) => {
                let srv = json!({ "grpc": "_grpc._tcp.{service}.test", "http": "_http._tcp.{service}.test" });
                json!({ "kind": "dns", "servers": [knot.address], "srv": srv })
            }
        }
    }

    /// The entry of `config.centers` for [`KEY`], if it is a center too.
    pub(super) fn center(&self) -> Option<Value> {
        match self {
            Server::Etcd(etcd) => {
                Some(json!({ "kind": "etcd", "endpoints": [etcd.address], "key": format!("/{KEY}") }))
            }
            Server::Consul(consul) => {
                Some(json!({ "kind": "consul", "address": consul.address, "key": KEY }))
            }
            Server::Ttl(ttl) => Some(json!({ "kind": "ttl", "servers": [ttl.address], "key": KEY })),
            Server::Dns(_) => None,
        }
    }

    /// The URL of the settings of [`KEY`], if they are at one.
    pub(super) fn url(&self) -> Option<String> {
        match self {
            Server::Ttl(ttl) => Some(format!("http://{}/v1/settings/{KEY}", ttl.address)),
            Server::Etcd(_) | Server::Consul(_) | Server::Dns(_) => None,
        }
    }

    /// Puts the settings of [`KEY`], if it is a center.
    pub(super) async fn put(&self, text: &str) -> Result {
        match self {
            Server::Etcd(etcd) => drop(etcd.put(&format!("/{KEY}"), text).await),
            Server::Consul(consul) => drop(consul.put(KEY, text).await),
            Server::Ttl(ttl) => {
                let path = format!("/v1/settings/{KEY}");
                drop(ask(&ttl.address, Method::PUT, &path, text.to_owned()).await?);
            }
            Server::Dns(_) => {}
        }
        Ok(())
    }

    /// A registry of its own at the server, as each process has one. DNS registers nothing.
    pub(super) fn registry(&self) -> Result<Arc<dyn Registry>> {
        Ok(match self {
            Server::Etcd(etcd) => Arc::new(EtcdRegistry::new(EtcdConfig::at([etcd.address.as_str()]))?),
            Server::Consul(consul) => Arc::new(ConsulRegistry::new(ConsulConfig::at(&consul.address))?),
            Server::Ttl(ttl) => Arc::new(TtlRegistry::new(TtlConfig::at([ttl.address.as_str()]))?),
            Server::Dns(_) => return Err("DNS registers nothing".into()),
        })
    }

    /// Lists these instances of `stock`, where instances do not register themselves.
    pub(super) async fn list(&mut self, all: &[&Addresses]) -> Result {
        let Server::Dns(knot) = self else { return Ok(()) };
        let mut records = vec!["host 1 A 127.0.0.1".to_owned()];
        for at in all {
            for (listener, address) in [("grpc", &at.grpc), ("http", &at.http)] {
                let (_, port) = address.rsplit_once(':').ok_or("an address without a port")?;
                records.push(format!("_{listener}._tcp.stock 1 SRV 0 1 {port} host"));
            }
        }
        knot.write(&records.iter().map(String::as_str).collect::<Vec<_>>()).await;
        Ok(())
    }

    /// Makes it go away.
    pub(super) async fn fail(&mut self, fault: Fault) -> Result {
        match (self, fault) {
            (Server::Etcd(etcd), Fault::Killed) => etcd.kill().await,
            (Server::Etcd(etcd), Fault::Frozen) => etcd.signal("STOP").await,
            (Server::Consul(consul), Fault::Killed) => consul.kill().await,
            (Server::Consul(consul), Fault::Frozen) => consul.signal("STOP").await,
            (Server::Ttl(ttl), Fault::Killed) => ttl.kill().await?,
            (Server::Ttl(ttl), Fault::Frozen) => ttl.signal(Signal::STOP)?,
            (Server::Dns(knot), Fault::Killed) => knot.kill().await,
            (Server::Dns(knot), Fault::Frozen) => knot.signal("STOP").await,
        }
        Ok(())
    }

    /// Ends it, and takes what it knows: it has to get everything again.
    pub(super) async fn wipe(&mut self) -> Result {
        self.fail(Fault::Killed).await?;
        match self {
            Server::Etcd(etcd) => etcd.wipe().await,
            Server::Ttl(ttl) => std::fs::remove_file(ttl.snapshot())?,
            Server::Consul(_) | Server::Dns(_) => {} // held in memory alone, or by others
        }
        Ok(())
    }

    /// Makes it come back; it serves when this returns.
    pub(super) async fn heal(&mut self, fault: Fault) -> Result {
        match (self, fault) {
            (Server::Etcd(etcd), Fault::Killed) => etcd.run().await,
            (Server::Etcd(etcd), Fault::Frozen) => etcd.signal("CONT").await,
            (Server::Consul(consul), Fault::Killed) => consul.run().await,
            (Server::Consul(consul), Fault::Frozen) => consul.signal("CONT").await,
            (Server::Ttl(ttl), Fault::Killed) => ttl.run().await?,
            (Server::Ttl(ttl), Fault::Frozen) => ttl.signal(Signal::CONT)?,
            (Server::Dns(knot), Fault::Killed) => knot.run().await,
            (Server::Dns(knot), Fault::Frozen) => knot.signal("CONT").await,
        }
        Ok(())
    }
}

// === impl Ttl ===

impl Ttl {
    async fn start() -> Result<Ttl> {
        let folder = tempfile::tempdir()?;
        let mut ttl = Ttl { address: "127.0.0.1:0".to_owned(), folder, process: None };
        ttl.run().await?;
        Ok(ttl)
    }

    /// Starts it, again with the same address and snapshot.
    async fn run(&mut self) -> Result {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["registry", "--listen", &self.address, "--snapshot"])
            .arg(self.snapshot())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = process.stdout.take().ok_or("a process without an output")?;
        let ready = timeout(PATIENCE, BufReader::new(output).lines().next_line()).await??;
        let ready = ready.ok_or("the registry server has not started")?;
        let address = ready.strip_prefix("ready http=");
        self.address =
            address.ok_or_else(|| format!("not the line that reports readiness: {ready}"))?.to_owned();
        self.process = Some(process);
        Ok(())
    }

    fn snapshot(&self) -> PathBuf {
        self.folder.path().join("registry.json")
    }

    async fn kill(&mut self) -> Result {
        match self.process.take() {
            Some(mut process) => Ok(process.kill().await?),
            None => Ok(()),
        }
    }

    fn signal(&self, which: Signal) -> Result {
        signal(self.process.as_ref().ok_or("the registry server does not run")?, which)
    }
}
