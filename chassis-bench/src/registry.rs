//! `chassis-bench registry`: a registry server of chassis' own as a process, which experiments kill and freeze.
use std::{io::Write, path::PathBuf};

use chassis::{
    Chassis,
    ttl::{TtlServer, TtlServerConfig},
};
use lexopt::prelude::*;
use serde_json::json;

use crate::Result;

const USAGE: &str = "\
chassis-bench registry [options]

  --listen ADDRESS    default 127.0.0.1:0
  --snapshot FILE     what it knows is kept there; default: nowhere

Prints `ready http=ADDRESS` once it serves, and runs until SIGTERM or SIGINT.
";

/// Runs the subcommand.
pub fn run(mut args: lexopt::Parser) -> Result {
    let (mut listen, mut snapshot) = ("127.0.0.1:0".to_owned(), None);
    while let Some(arg) = args.next()? {
        match arg {
            Long("listen") => listen = args.value()?.string()?,
            Long("snapshot") => snapshot = Some(PathBuf::from(args.value()?)),
            Long("help") | Short('h') => {
                print!("{USAGE}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(listen, snapshot))
}

async fn serve(listen: String, snapshot: Option<PathBuf>) -> Result {
    let server = TtlServer::open(TtlServerConfig { snapshot, ..TtlServerConfig::default() }).await?;
    let router = server.router();
    let settings = json!({
        "listen": { "http": listen },
        "registry": { "kind": "memory" },
        "inbound": { "operations": {
            "GET /v1/watch": { "timeout": "off" },
            "GET /v1/settings/{*key}": { "timeout": "off" },
        } },
    });
    let app = Chassis::builder("registry").without_file().settings(settings).build().await?;
    let mut end = crate::serve::Ends::new()?;
    let running = app.serve_http(router).start().await?;
    println!("ready http={}", running.address("http").unwrap_or("-"));
    std::io::stdout().flush()?;
    end.next().await;
    server.close().await;
    running.stop().await;
    Ok(())
}
