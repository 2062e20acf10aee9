//! The HTTP transport of chassis: client pools and accept loop over hyper and h2, the REST adapter, axum
//! routers.
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

pub use self::{
    client::{HttpClient, RequestBuilder, Response},
    h1::H1Leaf,
    h2::H2Leaf,
    problem::{Problem, error},
    protocol::{HTTP, Http, REFUSED},
    rest::{RestEdge, RestFuture, RestLayer, RestService},
    settings::{ClientConfig, ClientPatch, Header, HttpVersion, ServerConfig, ServerPatch},
    transport::{H2Transport, HttpLeaf, HttpTransport},
};
