//! Transports to endpoints: HTTP/2 for gRPC, HTTP/1.1 or HTTP/2 for REST.
use std::sync::Arc;

use chassis_core::{
    Invocation, Link,
    protocol::{Leaf, LeafFuture, Protocol, Transport},
};

use crate::{ClientConfig, HTTP, HttpVersion, h1::H1Leaf, h2::H2Leaf, net::Connector};

/// Reaches REST endpoints, by the version of HTTP in the settings.
#[derive(Clone)]
pub struct HttpTransport {
    connector: Arc<dyn Connector>,
    config: Arc<ClientConfig>,
}

/// Reaches endpoints of any protocol over HTTP/2, such as gRPC.
#[derive(Clone)]
pub struct H2Transport {
    protocol: &'static dyn Protocol,
    connector: Arc<dyn Connector>,
    config: Arc<ClientConfig>,
}

/// Sends calls to one REST endpoint.
pub enum HttpLeaf {
    /// Over HTTP/1.1.
    H1(H1Leaf),
    /// Over HTTP/2.
    H2(H2Leaf),
}

// === impl HttpTransport ===

impl HttpTransport {
    /// Creates a transport that connects by `connector`.
    pub fn new(connector: Arc<dyn Connector>, config: ClientConfig) -> Self {
        HttpTransport { connector, config: config.into() }
    }
}

impl Transport for HttpTransport {
    type Leaf = HttpLeaf;

    fn protocol(&self) -> &'static dyn Protocol {
        &HTTP
    }

    fn leaf(&self, link: Link) -> HttpLeaf {
        let (connector, config) = (self.connector.clone(), self.config.clone());
        match self.config.http_version {
            HttpVersion::One => HttpLeaf::H1(H1Leaf::new(link, connector, config)),
            HttpVersion::Two => HttpLeaf::H2(H2Leaf::new(link, connector, config, true)),
        }
    }
}

// === impl H2Transport ===

impl H2Transport {
    /// Creates a transport that connects by `connector`. Requests never declare their length.
    pub fn new(protocol: &'static dyn Protocol, connector: Arc<dyn Connector>, config: ClientConfig) -> Self {
        H2Transport { protocol, connector, config: config.into() }
    }
}

impl Transport for H2Transport {
    type Leaf = H2Leaf;

    fn protocol(&self) -> &'static dyn Protocol {
        self.protocol
    }

    fn leaf(&self, link: Link) -> H2Leaf {
        H2Leaf::new(link, self.connector.clone(), self.config.clone(), false)
    }
}

// === impl HttpLeaf ===

impl Leaf for HttpLeaf {
    type Future = LeafFuture;

    fn call(&self, call: Invocation) -> LeafFuture {
        match self {
            HttpLeaf::H1(leaf) => leaf.call(call),
            HttpLeaf::H2(leaf) => leaf.call(call),
        }
    }

    fn wake(&self) {
        match self {
            HttpLeaf::H1(leaf) => leaf.wake(),
            HttpLeaf::H2(leaf) => leaf.wake(),
        }
    }

    fn close(&self) {
        match self {
            HttpLeaf::H1(leaf) => leaf.close(),
            HttpLeaf::H2(leaf) => leaf.close(),
        }
    }
}
