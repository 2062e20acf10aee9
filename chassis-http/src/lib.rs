//! The HTTP transport of chassis: client pools and accept loop over hyper and h2, the REST adapter, axum
//! routers.
//!
//! | to | use |
//! | --- | --- |
//! | call a REST service by its name | [`HttpClient`] |
//! | serve an axum router through the pipeline | [`RestLayer`] |
//! | answer with a problem document, or convert an error to one | [`Problem`], [`error`] |
//! | accept connections | [`server`] |
//! | open connections another way, or accept TLS | [`connector`] |
//! | build a protocol on HTTP/2, as `chassis-grpc` is | [`H2Transport`], [`server::HttpService`] |
#![cfg_attr(docsrs, feature(doc_cfg))]
pub mod connector;
pub mod server;

mod backoff;
mod client;
mod failure;
mod flood;
mod frames;
mod h1;
mod h2;
mod hop;
mod limited;
mod outgoing;
mod problem;
mod protocol;
mod rest;
mod settings;
mod silence;
#[cfg(feature = "tonic")]
mod status;
mod transport;
mod turns;
mod unsent;
mod write_rate;

// REST: what callers and handlers use.
pub use self::{
    client::{HttpClient, RequestBuilder, Response},
    problem::{Problem, error},
    protocol::{HTTP, Http, REFUSED},
    rest::{RestEdge, RestFuture, RestLayer, RestService},
};
// Transports: how a pipeline reaches an endpoint.
pub use self::{
    h1::H1Leaf,
    h2::H2Leaf,
    transport::{H2Transport, HttpLeaf, HttpTransport},
};
// Settings, as the document has them.
pub use self::settings::{ClientConfig, ClientPatch, Header, HttpVersion, ServerConfig, ServerPatch};
