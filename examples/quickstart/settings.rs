//! Writes the settings of the shop's processes to files, as a person would.
use std::{
    io,
    path::{Path, PathBuf},
};

/// The shares of stable and canary at the start, and after the change.
pub(crate) const BEFORE: [u32; 2] = [95, 5];
pub(crate) const AFTER: [u32; 2] = [50, 50];

/// Writes `chassis.yaml`. It is written under another name and renamed, so that no process reads an
/// incomplete file.
pub(crate) fn write(dir: &Path, [stable, canary]: [u32; 2]) -> io::Result<()> {
    let registry = dir.join("registry");
    let content = format!(
        r#"# The settings of every process of the shop. Routes, limits, timeouts … take effect as soon as this is saved.
listen: {{ grpc: 127.0.0.1:0, http: 127.0.0.1:0 }} # any free ports
registry: {{ kind: local, dir: {registry:?} }}
propagate: [x-canary] # goes on from the callers of orders to stock
matches:
  beta: {{ header: {{ x-canary: "true" }} }}
outbound:
  services:
    stock:
      timeout: 2s
      breaker: {{ scope: endpoint, failure_ratio: 20% }}
      routes:
        - {{ name: beta, match: beta, to: {{ track: canary }} }}
        - {{ name: split, split: {{ stable: {stable}, canary: {canary} }}, by: track }}
shutdown: {{ delay: 500ms, deadline: 10s }}
"#
    );
    let path = dir.join("chassis.yaml");
    std::fs::write(path.with_extension("new"), content)?;
    std::fs::rename(path.with_extension("new"), path)
}

/// Writes the settings of the driver. It finds `orders` through the registry like any client, but without
/// retries, so that every lost call is visible. It uses HTTP/2, where a stopping server states which calls it
/// will not answer; an idle HTTP/1.1 connection may be closed just when a call is sent on it.
pub(crate) fn write_driver(dir: &Path) -> io::Result<PathBuf> {
    let registry = dir.join("registry");
    let content = format!(
        r#"registry: {{ kind: local, dir: {registry:?} }}
outbound:
  services:
    orders: {{ timeout: 10s, retry: off, breaker: off }}
client: {{ http_version: "2" }}
"#
    );
    let path = dir.join("driver.yaml");
    std::fs::write(&path, content)?;
    Ok(path)
}
