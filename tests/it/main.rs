//! Whole behaviour: services and those who call them, in one process; each scenario over gRPC and REST.
mod mesh;

mod breaker;
mod joining;
mod limits;
mod routes;
