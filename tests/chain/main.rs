//! What holds along a chain of services, and what users put into it: each scenario over gRPC and REST.
#![allow(clippy::unwrap_used)] // clippy takes helpers of integration tests for library code
#[path = "../it/mesh.rs"]
mod mesh;

mod contexts;
mod contracts;
mod cuts;
mod deadlines;
mod executed;
mod life;
mod line;
mod link;
mod own;
mod restarts;
mod retries;
mod streams;
