//! Whole behaviour: services and their callers in one process; each scenario over gRPC and REST.
#![allow(clippy::unwrap_used)] // clippy treats helpers of integration tests as library code
mod mesh;

mod admin;
mod bad_settings;
mod breaker;
mod callers;
mod cancels;
mod composite;
mod config_handle;
mod contracts;
mod fallbacks;
mod faults;
mod figures;
mod health;
mod hops;
mod joining;
mod kinds;
mod layers;
mod life;
mod limits;
mod message_limits;
mod options;
mod own_kinds;
mod own_settings;
mod panics;
mod quick_failures;
mod quota;
mod reports;
mod rollout;
mod routes;
mod rude;
mod settings;
mod sources;
mod streams;
mod swaps;
mod traces;
