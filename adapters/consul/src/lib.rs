//! Consul as a registry and a config center of chassis, from Consul 1.11 on.
//!
//! - [`ConsulRegistry`]: `registry: { kind: consul }`;
//! - [`ConsulSource`]: `config: { centers: [ { kind: consul, key: orders/chassis.yaml } ] }`.
//!
//! It calls the HTTP API of the agent of its machine, over chassis' own HTTP client, and follows changes by blocking
//! queries.
//!
//! # An instance in Consul
//!
//! | in Consul | of the instance |
//! | --- | --- |
//! | `Name` | the service. ASCII letters, digits, `-`, `_`, `.` and `~` stand as they are, every other byte as `%` and two hexadecimal digits |
//! | `ID` | `<service>:<id>`, both written so |
//! | `Address`, `Port` | the address of the listener `http`, of `grpc` if there is none, or of another one |
//! | `TaggedAddresses` | the TCP address of each listener by its name |
//! | `Meta`, `Tags` | each label: `track: stable` and `track=stable` |
//! | `Meta` `version`, `zone` and so on | the fields of these names |
//! | `Meta` `chassis-id` | the id. An entry without it was written by another program |
//! | `Meta` `chassis-owner` | which registration it is of |
//! | `Meta` `chassis-more`, `chassis-more-1` … | JSON of what has no other place: sockets, odd labels, a weight of 0 |
//! | `Weights.Passing` | the weight, from 1 to 65535 |
//!
//! Of an entry of another program, metadata and tags are labels, a tag without `=` with the value `true`; the id is
//! `<node>/<ID>`, and the address is that of the protocols that the settings name.
#![cfg_attr(docsrs, feature(doc_cfg))]
mod client;
mod entry;
mod follow;
mod owner;
mod registry;
mod settings;
mod source;

pub use chassis_http::connector::TlsConfig;

pub use self::{
    registry::ConsulRegistry,
    settings::{Check, ConsulConfig, ConsulSourceConfig, GrpcCheck, HttpCheck, Warning},
    source::ConsulSource,
};
