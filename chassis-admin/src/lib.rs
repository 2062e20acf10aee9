//! The admin surface of a chassis process: probes, metrics, and its state as JSON.
//!
//! It listens nowhere: [`Admin::answer`] makes the answer to one request. The façade `chassis-rs` binds its listeners
//! and describes the [`Process`].
//!
//! Requests have one of two classes. *Open* ones (probes, metrics, the version) are answered for every peer. *Read* ones
//! show the state of the process: for peers on this machine, or with a token. Nothing can be changed here.
mod admin;
mod body;
mod config;
mod events;
mod guard;
mod metrics;
mod negotiation;
mod page;
mod probes;
mod problem;
mod process;
mod read;
mod token;

pub use self::{
    admin::Admin,
    body::AdminBody,
    config::{AdminConfig, HostPattern},
    guard::Reach,
    process::{Change, Listening, Phase, Process, Setting, Version},
};
