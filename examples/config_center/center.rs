//! The center: chassis' own server in this process, or an etcd.
use base64::{Engine, prelude::BASE64_STANDARD};
use chassis::{
    Chassis, HttpClient, Running,
    document::Environment,
    ttl::{TtlServer, TtlServerConfig},
};
use serde_json::{Value, json};

use crate::BoxError;

/// Where the settings stand, and a client to push them.
pub(crate) struct Center {
    is_etcd: bool,
    address: String,
    client: HttpClient,
    /// Chassis' own server, if it is that.
    server: Option<(TtlServer, Running)>,
    _operator: Chassis,
}

/// The key of the document.
const KEY: &str = "example/chassis.yaml";

// === impl Center ===

impl Center {
    /// Starts chassis' own server, on a free port.
    pub(crate) async fn ttl() -> Result<Self, BoxError> {
        let server = TtlServer::open(TtlServerConfig::default()).await?;
        let settings = json!({
            "listen": { "http": "127.0.0.1:0" },
            "registry": { "kind": "memory" },
            "inbound": { "timeout": "off" }, // a watch has no end
        });
        let app = operator("registry", settings).await?;
        let running = app.serve_http(server.router()).start().await?;
        let address = running.address("http").ok_or("the server has no address")?.to_owned();
        Self::at(false, &address, Some((server, running))).await
    }

    /// Uses the etcd at `address`, where the document is replaced.
    pub(crate) async fn etcd(address: &str) -> Result<Self, BoxError> {
        Self::at(true, address, None).await
    }

    async fn at(
        is_etcd: bool,
        address: &str,
        server: Option<(TtlServer, Running)>,
    ) -> Result<Self, BoxError> {
        let services = json!({ "center": [{ "addresses": { "http": address } }] });
        let operator =
            operator("operator", json!({ "registry": { "kind": "static", "services": services } })).await?;
        let (address, client) = (address.to_owned(), operator.http("center"));
        Ok(Center { is_etcd, address, client, server, _operator: operator })
    }

    /// The settings that a process starts with: the registry, and the center.
    pub(crate) fn settings(&self) -> Value {
        let address = &self.address;
        let (registry, center) = match self.is_etcd {
            true => (
                json!({ "kind": "etcd", "endpoints": [address] }),
                json!({ "kind": "etcd", "endpoints": [address], "key": format!("/{KEY}") }),
            ),
            false => (
                json!({ "kind": "ttl", "servers": [address] }),
                json!({ "kind": "ttl", "servers": [address], "key": KEY }),
            ),
        };
        json!({
            "registry": registry,
            "config": { "centers": [center], "last_good": "off" },
            "service": { "advertise": "127.0.0.1" },
            "listen": { "http": "127.0.0.1:0" },
        })
    }

    /// Replaces the document.
    pub(crate) async fn push(&self, document: &str) -> Result<(), BoxError> {
        let request = match self.is_etcd {
            true => {
                let encode = |text: &str| BASE64_STANDARD.encode(text);
                let pair = json!({ "key": encode(&format!("/{KEY}")), "value": encode(document) });
                self.client.post("/v3/kv/put").json(&pair) // etcd's gateway for HTTP
            }
            false => self.client.put("/v1/settings/{*key}").param("key", KEY).body(document.to_owned()),
        };
        request.send().await?.ok().await?;
        Ok(())
    }

    /// For the summary.
    pub(crate) fn name(&self) -> String {
        let kind = if self.is_etcd { "etcd" } else { "chassis' own server" };
        format!("{kind} at {}", self.address)
    }

    /// Ends the server, if it was started here.
    pub(crate) async fn end(self) {
        if let Some((server, running)) = self.server {
            server.close().await; // ends the watches, which the stop would wait for
            running.stop().await;
        }
    }
}

/// A chassis without settings from outside.
async fn operator(name: &str, settings: Value) -> Result<Chassis, BoxError> {
    let builder = Chassis::builder(name).without_file().environment(Environment::default());
    Ok(builder.settings(settings).build().await?)
}
