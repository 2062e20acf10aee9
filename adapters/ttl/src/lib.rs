//! A small server of chassis' own for instances and settings, and the registry and the config center that use it.
//!
//! - [`TtlServer`]: an axum router to mount; it keeps instances for as long as their processes renew them, and a snapshot
//!   on disk. It also keeps documents of settings, and contracts;
//! - [`TtlRegistry`]: `registry: { kind: ttl, servers: ["10.0.0.5:8500", "10.0.0.6:8500"] }`;
//! - [`TtlContracts`]: descriptors and OpenAPI texts of services, by `registry: { kind: ttl, contracts: true, … }`;
//! - [`TtlSource`]: `config: { centers: [ { kind: ttl, servers: ["10.0.0.5:8500"], key: orders/chassis.yaml } ] }`.
//!
//! Servers do not know each other. A process registers with all of them, and uses the union of what they list; so one of
//! them may fail at any time. That is enough for a few hundred instances. For more, or where several writers
//! have to agree on an order, use etcd or Consul.
//!
//! # The API
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/services` with `{ "instance": { "id": "stock-1", "service": "stock", "addresses": { … } }, "ttl": "10s" }` | 201 `{ "lease": "8f3a…", "revision": "…" }`; an instance of the same id is replaced |
//! | `PUT /v1/services/{lease}/heartbeat` | 204; 404: the lease is not known; 409: another process has replaced the instance |
//! | `DELETE /v1/services/{lease}` | 200 `{ "revision": "…" }`, also if it is not there |
//! | `GET /v1/services/{lease}` | 200 the instance, or 404 |
//! | `GET /v1/services`, `GET /v1/services?service=stock` | 200 `{ "revision": "…", "instances": [ … ] }` |
//! | `GET /v1/names` | 200 `[ "orders", "stock" ]` |
//! | `GET /v1/watch?service=stock` | 200, server-sent events, without end |
//! | `PUT /v1/settings/orders/chassis.yaml` with a document | 200 `{ "revision": "1764416405123" }`, once it is on disk; with `if-match: "…"` or `if-none-match: *`, 412 if it has another revision |
//! | `DELETE /v1/settings/orders/chassis.yaml` | 200 `{ "revision": "…" }`, also if it is not there |
//! | `GET /v1/settings/orders/chassis.yaml` | 200 the document with its revision as `etag`, or 404; 304 by `if-none-match`, after the time of `prefer: wait=60`; with `accept: text/event-stream` an event for each version, without end |
//! | `PUT /v1/contracts/{name}?service=stock&version=1.4.0&environment=` with a contract, its media type as `content-type` | 200 `{ "etag": "9f86…" }`, once it is on disk; with `if-none-match: *`, 412 if there is one |
//! | `GET /v1/contracts/{name}?service=…`, the same with `DELETE` | 200 the contract with its SHA-256 as `etag`, or 404; 304 by `if-none-match`. 204 |
//! | `GET /v1/contracts?service=stock`; `version` and `environment` too | 200 `[ { "service": "stock", "version": "1.4.0", "environment": "", "name": "api", "media_type": "…", "etag": "…", "bytes": 812 } ]` |
//! | `GET /v1/settings` | 200 `[ { "key": "…", "revision": "…", "bytes": 812 } ]` |
//!
//! A watch begins with the events `reset`, a `put` for each instance, and `ready`; then follows a `put` or a `delete` for
//! each change. The `id` of an event is the revision, and an event that has nothing else says that nothing happened. A
//! watch goes on at a revision by `?from=` or the header `last-event-id`; 410 says that its changes are no longer kept, and
//! that the list has to be read anew. With a token, each request has `authorization: Bearer …`; else it is answered 401.
#![cfg_attr(docsrs, feature(doc_cfg))]
mod client;
mod contracts;
mod follow;
mod lease;
mod registry;
mod server;
mod settings;
mod source;
mod wire;

pub use chassis_http::connector::TlsConfig;

pub use self::{
    contracts::TtlContracts,
    registry::TtlRegistry,
    server::{TtlServer, TtlServerConfig},
    settings::{TtlConfig, TtlSourceConfig},
    source::TtlSource,
};
