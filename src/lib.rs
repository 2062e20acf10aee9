//! chassis: one pipeline under gRPC and REST — routing, balancing, breaking, limits, retries, faults —
//! with every setting swappable while calls are in flight.
//!
//! Clients stay tonic's stubs, services tonic's, routers axum's. Between them and the wire stands one
//! protocol-neutral pipeline, steered by `chassis.yaml`:
//!
//! ```no_run
//! use axum::{Router, routing::get};
//!
//! #[tokio::main]
//! async fn main() -> chassis::Result {
//!     let app = chassis::Chassis::builder("hello").build().await?;
//!     app.serve_http(Router::new().route("/", get(|| async { "hello" }))).run().await
//! }
//! ```
//!
//! - [`Chassis`] is the running service: clients by name, servers, life.
//! - [`layer`], [`call`] and [`Stage`] are for layers of one's own, [`registry`] and [`config`] for
//!   registries and config centers of one's own, [`protocol`] for protocols of one's own.
#![cfg_attr(docsrs, feature(doc_cfg))]
mod app;
mod builder;
mod container;
mod error;
mod follow;
mod identity;
mod life;
mod sections;
#[cfg(feature = "testing")]
pub mod testing;

pub use chassis_config as document;
pub use chassis_core::{
    BoxError, BoxFuture, Code, Error, Live, Origin, Reason, Runtime, call, clock, cluster, config, context,
    event, inspect, labels, layer, load, matching, metrics, pipeline, policy, protocol, random, registry,
    stage::{Next, Placement, Stage, from_fn},
    units,
};
#[cfg(feature = "grpc")]
pub use chassis_grpc as grpc;
#[cfg(feature = "grpc")]
pub use chassis_grpc::Channel;
#[cfg(feature = "http")]
pub use chassis_http as http;
#[cfg(feature = "http")]
pub use chassis_http::{HttpClient, Problem};
pub use chassis_registry as registries;

pub use self::{
    app::Chassis,
    builder::ChassisBuilder,
    error::StartError,
    life::Running,
    sections::{Document, RegistrySection},
};

/// The crates whose types are in the interface, as chassis was built with them: for code that has to match.
pub mod reexports {
    #[cfg(feature = "http")]
    pub use axum;
    pub use chassis_core::reexports::*;
    pub use serde_json;
    #[cfg(feature = "grpc")]
    pub use tonic;
}

/// What a `main` of a service returns.
pub type Result<T = (), E = StartError> = std::result::Result<T, E>;

/// The README's snippets, as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
