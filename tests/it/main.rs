//! Whole behaviour: services and those who call them, in one process; each scenario over gRPC and REST.
mod mesh;

mod breaker;
mod fallbacks;
mod faults;
mod figures;
mod joining;
mod life;
mod limits;
mod options;
mod panics;
mod routes;
mod swaps;
mod traces;
