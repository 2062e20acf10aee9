//! chassis: one pipeline under gRPC and REST — routing, balancing, breaking, limits, retries, faults —
//! with every setting swappable while calls are in flight.
//!
//! Clients stay tonic stubs, services stay tonic services, routers stay axum routers. Between them and the wire
//! runs one protocol-neutral pipeline, configured by `chassis.yaml`:
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
//! - [`Chassis`] is the running service: clients by name, servers, start and stop.
//! - [`layer`], [`Invocation`] and [`Stage`] are for layers of your own, [`registry`] and [`config`] for
//!   registries and config centers of your own, [`protocol`] for protocols of your own.
#![cfg_attr(docsrs, feature(doc_cfg))]
mod app;
mod base;
mod builder;
mod built_in;
mod centers;
#[cfg_attr(not(feature = "cli"), path = "cli/off.rs")]
mod cli;
mod config_handle;
mod container;
pub mod document;
mod error;
mod follow;
mod identity;
mod kinds;
mod last_good;
mod life;
mod presence;
#[cfg_attr(not(feature = "http"), path = "rest/off.rs")]
mod rest;
#[cfg_attr(not(feature = "grpc"), path = "rpc/off.rs")]
mod rpc;
#[cfg(feature = "testing")]
pub mod testing;

// Ports, settings and inspection; each module's page says what it is for.
pub use chassis_core::{
    clock, config, inspect, kind, layer, matching, pipeline, protocol, registry, settings, units, wire,
};
// A call, its reply, and its end.
pub use chassis_core::{
    Abort, Aborted, Body, Call, CallError, CallOptions, Code, Context, Details, Error, Failed, Failure,
    HashKey, Hop, Invocation, LabelSet, Listener, Operation, Origin, Outcome, Reason, Replay, Reply,
    ReplyBody, RequestExt, Target, TraceContext, Verdict,
};
// Layers of your own, and settings for them.
pub use chassis_core::{Kind, LiveSection, Next, Placement, Section, Sections, Stage, from_fn};
// Policies, pipelines, clusters, and the state that they share.
pub use chassis_core::{BoxError, BoxFuture};
pub use chassis_core::{
    Connection, Event, Events, Known, Link, Live, Load, MOST_OPERATIONS, MOST_SERVICES, Members, Metrics,
    Node, Policies, Policy, Random, Runtime, Side,
};
#[cfg(feature = "etcd")]
pub use chassis_etcd as etcd;
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
    config_handle::{ConfigHandle, DryRun, EffectiveSetting, SettingChange},
    document::Document,
    error::StartError,
    life::Running,
    presence::Presence,
};

/// The crates whose types appear in the interface, in the versions that chassis was built with.
pub mod reexports {
    #[cfg(feature = "http")]
    pub use axum;
    pub use chassis_core::reexports::*;
    pub use serde_json;
    #[cfg(feature = "grpc")]
    pub use tonic;
}

/// The return type of a service's `main`.
pub type Result<T = (), E = StartError> = std::result::Result<T, E>;

/// The snippets of the README and of one page of `docs/`, as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[doc = include_str!("../docs/extending.md")]
struct Pages;
