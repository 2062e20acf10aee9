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
//! | read server-sent events | [`sse`] |
//! | build a protocol on HTTP/2, as `chassis-grpc` is | [`H2Transport`], [`server::HttpService`] |
#![cfg_attr(docsrs, feature(doc_cfg))]
pub mod server;
pub mod sse;

mod failure;
mod h1;
mod h2;
mod hop;
mod net;
mod outgoing;
mod rest;
mod settings;
mod transport;
pub mod wire;

/// Byte streams, by address: the base of connections for clients and servers, below HTTP.
///
/// TLS is added here: as a [`Connector`](connector::Connector) around another one on the client, as
/// [`TlsConfig`](connector::TlsConfig) makes it; as an [`Acceptor`](connector::Acceptor) on the server.
pub mod connector {
    #[cfg(feature = "testing")]
    pub use crate::net::contract;
    pub use crate::net::{
        Acceptor, Connector, Fate, Io, Listener, MemoryListener, MemoryNetwork, Network, Peer, Pem, Plain,
        Stream, TlsConfig,
    };
}

/// Sets the options of a call on a [`RequestBuilder`].
pub use chassis_core::RequestExt;

// REST: the types for callers and handlers.
pub use self::rest::{
    HTTP, Http, HttpClient, Problem, RequestBuilder, Response, RestEdge, RestFuture, RestLayer, RestService,
    error,
};
// Transports: how a pipeline reaches an endpoint.
pub use self::wire::REFUSED;
pub use self::{
    h1::{EndsWithConnection, H1Leaf},
    h2::H2Leaf,
    transport::{H2Transport, HttpLeaf, HttpTransport},
};
// Settings, in the form of the document.
pub use self::settings::{ClientConfig, ClientPatch, Header, HttpVersion, ServerConfig, ServerPatch};
