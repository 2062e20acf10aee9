//! Whole behaviour: services and those who call them, in one process; each scenario over gRPC and REST.
mod mesh;

mod breaker;
mod faults;
mod joining;
mod limits;
mod routes;
mod swaps;
