//! etcd as a registry and a config center of chassis, from etcd 3.4 on.
//!
//! - [`EtcdRegistry`]: `registry: { kind: etcd, endpoints: [etcd-0:2379] }`;
//! - [`EtcdSource`]: `config: { centers: [ { kind: etcd, endpoints: [etcd-0:2379], key: /orders/chassis.yaml } ] }`.
//!
//! It calls etcd's v3 API over chassis' own gRPC channel: connections to all members are maintained in the
//! background, and a call goes to a connected member.
//!
//! # The keys of the registry
//!
//! `<prefix>/services/<service>/<id>`, with the prefix `/chassis` by default. `<service>` and `<id>` contain
//! ASCII letters, digits, `-`, `_`, `.` and `~` unchanged, and every other byte of their UTF-8 as `%` and two
//! hexadecimal digits. The value is a JSON object:
//!
//! ```json
//! { "id": "stock-1", "service": "stock", "addresses": { "grpc": "10.0.0.5:50051", "http": "10.0.0.5:8080" },
//!   "version": "1.4.0", "zone": "eu-1a", "weight": 2, "labels": { "track": "stable" } }
//! ```
//!
//! `id`, the same as in the key, and `addresses` are required; `weight` is 1 by default. Readers ignore keys
//! that they do not know, so newer writers may add some. A program in another language registers by a lease, a
//! put with this lease, and renewals of it; it finds others by the prefix of their service.
#![cfg_attr(docsrs, feature(doc_cfg))]
mod client;
mod entry;
mod follow;
mod lease;
mod proto;
mod registry;
mod settings;
mod source;

pub use chassis_http::connector::TlsConfig;

pub use self::{
    registry::EtcdRegistry,
    settings::{EtcdConfig, EtcdSourceConfig},
    source::EtcdSource,
};

/// The reason why etcd could not be reached, for messages: never contains a password or a token.
fn why(client: &client::Client, status: &tonic::Status) -> String {
    format!("{}: {}", client.name(), status.message())
}
