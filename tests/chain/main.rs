//! Behaviour along a chain of services, and of users' own parts in it: each scenario over gRPC and REST.
#![allow(clippy::unwrap_used)] // clippy treats helpers of integration tests as library code
#[path = "../it/mesh/mod.rs"]
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
