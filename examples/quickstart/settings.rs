//! The settings that the shop's processes live by, written to files as anybody would.
use std::{
    io,
    path::{Path, PathBuf},
};

/// The split that the shop opens with, and the one that it is moved to: shares of stable and canary.
pub(crate) const BEFORE: [u32; 2] = [95, 5];
pub(crate) const AFTER: [u32; 2] = [50, 50];

/// Writes `chassis.yaml`: beside it and renamed, so that nobody ever reads a half.
pub(crate) fn write(dir: &Path, [stable, canary]: [u32; 2]) -> io::Result<()> {
    let registry = dir.join("registry");
    let content = format!(
        r#"# What every process of the shop lives by. Routes, limits, timeouts … take effect as soon as this is saved.
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

/// Writes what the driver lives by: it looks `orders` up as everybody does, and helps with nothing, so that
/// each call it loses is seen. By HTTP/2, where a server that stops says which calls it will not answer: a
/// connection of HTTP/1.1 may be closed for lack of use just when a call is on its way.
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
