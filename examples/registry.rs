//! A registry server. Services find each other with `registry: { kind: ttl, servers: ["127.0.0.1:8500"] }`.
//!
//! `cargo run --example registry --features ttl -- /var/lib/registry.json`; the token, if there is to be one, is in the
//! environment variable `REGISTRY_TOKEN`.
use chassis::{
    Chassis,
    ttl::{TtlServer, TtlServerConfig},
};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let config = TtlServerConfig {
        snapshot: std::env::args_os().nth(1).map(Into::into),
        token: std::env::var("REGISTRY_TOKEN").ok(),
        ..TtlServerConfig::default()
    };
    let server = TtlServer::open(config).await?;
    let settings = json!({
        "listen": { "http": "127.0.0.1:8500" },
        "registry": { "kind": "memory" },
        // A watch has no end. A client that reads nothing is given up by the server itself.
        "inbound": { "operations": { "GET /v1/watch": { "timeout": "off" } } },
    });
    let router = server.router();
    let app = Chassis::builder("registry")
        .settings(settings)
        .before_stop(async move || {
            server.close().await; // ends the watches, which the stop would wait for
            Ok(())
        })
        .build()
        .await?;
    app.serve_http(router).run().await?;
    Ok(())
}
