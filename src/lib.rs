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
//! - [`layer`], [`Invocation`] and [`Stage`] are for layers of one's own, [`registry`] and [`config`] for
//!   registries and config centers of one's own, [`protocol`] for protocols of one's own.
#![cfg_attr(docsrs, feature(doc_cfg))]
mod app;
mod builder;
mod built_in;
mod container;
pub mod document;
mod error;
mod follow;
mod identity;
mod kinds;
mod life;
#[cfg_attr(not(feature = "http"), path = "rest/off.rs")]
mod rest;
#[cfg_attr(not(feature = "grpc"), path = "rpc/off.rs")]
mod rpc;
#[cfg(feature = "testing")]
pub mod testing;

// Ports, settings and what there is to see; each page of them says what it is for.
pub use chassis_core::{
    clock, config, inspect, kind, layer, matching, pipeline, protocol, registry, settings, units, wire,
};
// A call, its answer, and how it ended.
pub use chassis_core::{
    Abort, Aborted, Body, Call, CallError, CallOptions, Code, Context, Details, Error, Failed, Failure, Hop,
    Invocation, LabelSet, Listener, Operation, Origin, Outcome, Reason, Replay, Reply, ReplyBody, Target,
    TraceContext, Verdict,
};
// Layers of one's own, and settings for them.
pub use chassis_core::{Kind, LiveSection, Next, Placement, Section, Sections, Stage, from_fn};
// The rules that calls live under, where calls go, and what all of them share.
pub use chassis_core::{BoxError, BoxFuture};
pub use chassis_core::{
    Connection, Event, Events, Known, Link, Live, Load, MOST_OPERATIONS, MOST_SERVICES, Members, Metrics,
    Node, Policies, Policy, Random, Runtime, Side,
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

pub use self::{app::Chassis, builder::ChassisBuilder, document::Document, error::StartError, life::Running};

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

/// The snippets of the README and of a page, as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[doc = include_str!("../docs/extending.md")]
struct Pages;
