//! chassis: one pipeline under gRPC and REST — routing, balancing, breaking, limits, retries, faults —
//! with every setting swappable while calls are in flight.
//!
//! Clients remain tonic stubs, services remain tonic services, routers remain axum routers. Between them and the network
//! is one protocol-neutral pipeline, which `chassis.yaml` configures.
//!
//! # A first service
//!
//! ```no_run
//! use axum::{Router, extract::Path, routing::get};
//! use chassis::Chassis;
//!
//! #[tokio::main]
//! async fn main() -> chassis::Result {
//!     let app = Chassis::builder("stock").build().await?;
//!     let routes = Router::new().route("/stock/{id}", get(|id: Path<String>| async move { format!("7 of {}", *id) }));
//!     app.serve_http(routes).run().await // until SIGTERM or SIGINT, then an ordered stop
//! }
//! ```
//!
//! Without a file the defaults apply: the service listens at `127.0.0.1:8080`, and is registered in the registry
//! `local`, where other processes of this machine find it by its name. `serve_grpc` adds a tonic service at
//! `127.0.0.1:50051`.
//!
//! # A first client
//!
//! A client knows the name of a service; the pipeline finds its instances. Each call may have options of its own
//! ([`RequestExt`]). A [`Problem`] is an HTTP answer (RFC 9457), and `?` converts refusals to one.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use axum::{Router, extract::{Path, State}, routing::get};
//! use chassis::{Chassis, HttpClient, Problem, RequestExt};
//!
//! async fn order(State(stock): State<HttpClient>, Path(id): Path<String>) -> Result<String, Problem> {
//!     let request = stock.get("/stock/{id}").param("id", id).timeout(Duration::from_millis(300));
//!     let answer = request.send().await?.ok().await?; // a failing answer is a `Problem` too
//!     Ok(answer.text().await?)
//! }
//!
//! #[tokio::main]
//! async fn main() -> chassis::Result {
//!     let app = Chassis::builder("orders").build().await?;
//!     let routes = Router::new().route("/orders/{id}", get(order)).with_state(app.http("stock"));
//!     app.serve_http(routes).run().await
//! }
//! ```
//!
//! For gRPC, `StockClient::new(app.grpc("stock"))` is a stub on a [`Channel`] of chassis; the README has a whole
//! service with it.
//!
//! # Next steps
//!
//! | to | see |
//! | --- | --- |
//! | change a setting: timeouts, retries, breakers, limits | [`document`], [`ChassisBuilder::config_file`]; the README shows each key with its default |
//! | look at a running service | `http://127.0.0.1:9900`, the admin surface; [`Chassis::runtime`], [`inspect`], [`Events`], [`Metrics`] |
//! | add a layer of your own | [`Stage`], [`from_fn`], [`Invocation`]; its settings are a [`Section`] |
//! | choose a registry, or write one | [`registries`], [`registry`] |
//! | publish descriptors and OpenAPI texts, and fetch those of others | [`contracts`], [`ChassisBuilder::contracts`] |
//! | read settings from elsewhere | [`config`] |
//! | choose nodes by an algorithm of your own | [`layer::balance`] |
//! | add a protocol | [`protocol`] |
//! | test a service in memory | `chassis::testing`, with the feature `testing` |
//!
//! # Features
//!
//! | feature | default | adds |
//! | --- | --- | --- |
//! | `admin` | yes | the admin surface: probes, metrics, the state of the process; includes `http` |
//! | `grpc` | yes | channels for tonic stubs, tonic services, health, reflection; includes `http` |
//! | `http` | yes | clients of REST services, axum routers |
//! | `local` | yes | the registry `local`: processes of one user on one machine |
//! | `dns` | no | the registry `dns` |
//! | `etcd` | no | the registry and the config center `etcd` |
//! | `testing` | no | services in memory, scripted upstreams, contract suites |
//!
//! The registries `static`, `file` and `memory` are always there.
#![cfg_attr(docsrs, feature(doc_cfg))]
#[cfg_attr(not(feature = "admin"), path = "admin/off.rs")]
mod admin;
mod app;
mod base;
mod builder;
mod built_in;
mod centers;
#[cfg_attr(not(feature = "cli"), path = "cli/off.rs")]
mod cli;
mod config_handle;
mod container;
mod crash_guard;
pub mod document;
mod error;
mod follow;
mod identity;
mod kinds;
mod last_good;
mod life;
mod presence;
mod published;
#[cfg_attr(not(feature = "http"), path = "rest/off.rs")]
mod rest;
mod rollout;
#[cfg_attr(not(feature = "grpc"), path = "rpc/off.rs")]
mod rpc;
#[cfg(feature = "testing")]
pub mod testing;

// Ports, settings and inspection; each module's page says what it is for.
#[cfg(feature = "cli")]
pub use chassis_core::schema;
pub use chassis_core::{
    clock, config, contracts, health, inspect, kind, layer, matching, pipeline, protocol, quota, registry,
    settings, units, wire,
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
#[cfg(feature = "consul")]
pub use chassis_consul as consul;
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
#[cfg(feature = "http-center")]
pub use chassis_http_center as http_center;
#[cfg(feature = "kubernetes")]
pub use chassis_kubernetes as kubernetes;
pub use chassis_registry as registries;
#[cfg(feature = "servicecomb")]
pub use chassis_servicecomb as servicecomb;
#[cfg(feature = "ttl")]
pub use chassis_ttl as ttl;

pub use self::{
    app::Chassis,
    builder::ChassisBuilder,
    config_handle::{ConfigHandle, DryRun, EffectiveSetting, SettingChange, UnreadableSetting},
    document::Document,
    error::StartError,
    life::Running,
    presence::Presence,
    published::ContractsHandle,
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
#[doc = include_str!("../docs/admin.md")]
#[doc = include_str!("../docs/extending.md")]
#[doc = include_str!("../docs/health.md")]
struct Pages;
