//! The transport to gRPC endpoints: HTTP/2, on connections that are maintained in the background.
use std::sync::Arc;

use chassis_core::{
    Link,
    protocol::{Protocol, Transport},
};
use chassis_http::{ClientConfig, H2Leaf, H2Transport, connector::Connector};

use crate::protocol::GRPC;

/// Reaches instances at their gRPC addresses.
#[derive(Clone)]
pub struct GrpcTransport(H2Transport);

// === impl GrpcTransport ===

impl GrpcTransport {
    /// Creates a transport that connects through `connector`.
    pub fn new(connector: Arc<dyn Connector>, config: ClientConfig) -> Self {
        GrpcTransport(H2Transport::new(&GRPC, connector, config))
    }
}

impl Transport for GrpcTransport {
    type Leaf = H2Leaf;

    fn protocol(&self) -> &'static dyn Protocol {
        &GRPC
    }

    fn leaf(&self, link: Link) -> H2Leaf {
        self.0.leaf(link)
    }
}
