//! A registry server. Services find each other with `registry: { kind: ttl, servers: ["127.0.0.1:8500"] }`, and read
//! settings with `config: { centers: [ { kind: ttl, servers: ["127.0.0.1:8500"], key: orders/chassis.yaml } ] }`.
//!
//! `cargo run --example registry --features ttl -- /var/lib/registry.json`; the tokens, if there are to be any, are in the
//! environment variables `REGISTRY_TOKEN` and, for changes of settings, `REGISTRY_SETTINGS_TOKEN`. A variable that is empty
//! is an error.
use std::env::{VarError, args_os, var};

use chassis::{
    Chassis,
    ttl::{TtlServer, TtlServerConfig},
};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let config = TtlServerConfig {
        snapshot: args_os().nth(1).map(Into::into),
        token: token("REGISTRY_TOKEN")?,
        settings_token: token("REGISTRY_SETTINGS_TOKEN")?,
        ..TtlServerConfig::default()
    };
    let server = TtlServer::open(config).await?;
    let settings = json!({
        "listen": { "http": "127.0.0.1:8500" },
        "registry": { "kind": "memory" },
        // A watch has no end. A client that reads nothing is given up by the server itself.
        "inbound": { "operations": {
            "GET /v1/watch": { "timeout": "off" },
            "GET /v1/settings/{*key}": { "timeout": "off" },
        } },
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

/// The token in this variable; without the variable there is none.
fn token(variable: &str) -> Result<Option<String>, String> {
    match var(variable) {
        Ok(token) if token.is_empty() => Err(format!("{variable} is empty")),
        Ok(token) => Ok(Some(token)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(format!("{variable} is not UTF-8")),
    }
}
