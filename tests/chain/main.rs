//! What holds along a chain of services, and what users put into it: each scenario over gRPC and REST.
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
