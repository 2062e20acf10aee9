//! The HTTP transport of chassis: client pools and accept loop over hyper, the REST adapter, axum routers.
pub mod connector;
pub mod server;

mod backoff;
mod failure;
mod frames;
mod h1;
mod h2;
mod outgoing;
mod problem;
mod protocol;
mod settings;
mod transport;

pub use self::{
    h1::H1Leaf,
    h2::H2Leaf,
    problem::{Problem, error},
    protocol::{HTTP, Http, REFUSED},
    settings::{ClientConfig, ClientPatch, HttpVersion, ServerConfig, ServerPatch},
    transport::{H2Transport, HttpLeaf, HttpTransport},
};
