//! The contract suites for gRPC's protocol and transport.
use std::{future::poll_fn, pin::Pin, sync::Arc};

use chassis_core::{
    Body, Invocation, Operation, Random, Target,
    tasks::Tasks,
    testing::contract::{
        self,
        transport::{Endpoint, Handler},
    },
};
use chassis_grpc::{GRPC, GrpcTransport};
use chassis_http::{
    ClientConfig, ServerConfig,
    connector::Network,
    server::{Answer, Mux, Received, Server, ServerBody},
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header::CONTENT_TYPE};
use http_body::Body as _;

const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// A server at `memory:stock`.
struct Stock(Network, Tasks);

#[test]
fn grpc_is_a_protocol() {
    contract::protocol::protocol(&GRPC);
}

#[tokio::test(start_paused = true)]
async fn grpc_has_a_transport() {
    let network = Network::default();
    let transport = GrpcTransport::new(Arc::new(network.clone()), ClientConfig::default());
    contract::transport::transport(transport, Stock(network, Tasks::new())).await;
}

#[async_trait::async_trait]
impl Endpoint for Stock {
    fn address(&self) -> String {
        "memory:stock".to_owned()
    }

    fn call(&self, text: &'static str) -> Invocation {
        let mut call =
            Invocation::new(&GRPC, Target::new("stock", Operation::from_static("/stock.Stock/Left")));
        call.method = Method::POST;
        call.uri = http::Uri::from_static("/stock.Stock/Left");
        call.metadata.insert(CONTENT_TYPE, MEDIA_TYPE);
        call.body = Body::full(frame(text));
        call
    }

    async fn start(&mut self, handler: Handler) {
        self.1 = Tasks::new();
        let service = move |request: Request<Received>| -> Answer {
            let handler = handler.clone();
            Box::pin(async move {
                let said = handler.handle(&whole(request.into_body()).await).await;
                let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
                let body = Body::with_trailers(Some(frame(said).into()), trailers);
                let mut response = Response::new(ServerBody::new(body));
                response.headers_mut().insert(CONTENT_TYPE, MEDIA_TYPE);
                response
            })
        };
        let server = Server::new(ServerConfig::default(), &self.1, Random::seeded(1));
        let listener = self.0.bind("memory:stock").await.unwrap();
        server.serve("grpc", listener, Mux { grpc: Some(Arc::new(service)), http: None }, None);
    }

    async fn stop(&mut self) {
        self.1.end(std::time::Duration::from_secs(1)).await;
    }
}

/// Reads the body to its end.
async fn whole(mut body: Received) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        whole.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
    }
    whole
}

/// A message in its frame, as it is transmitted.
fn frame(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
    [&[0], &length[..], text.as_bytes()].concat()
}
