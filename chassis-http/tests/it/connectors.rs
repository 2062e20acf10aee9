//! Connectors that misbehave, and the owners of the tasks of a connection.
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
};

use bytes::Bytes;
use chassis_core::{Body, Connection, Reason, protocol::Leaf};
use chassis_http::{
    ClientConfig, H1Leaf, H2Leaf, ServerConfig,
    connector::{Connector, Network, Stream},
};
use http::Method;
use http_body::Frame;
use tokio::time::timeout;

use crate::support::{Client, SECOND, World, call, hello, silent};

/// Panics for the first attempts, then connects.
struct Panics(Network, AtomicUsize);

#[async_trait::async_trait]
impl Connector for Panics {
    async fn connect(&self, address: &str) -> io::Result<Stream> {
        let left = self.1.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        assert!(left.is_err(), "no key to be found");
        self.0.connect(address).await
    }
}

/// The panic once ended the connecting task: the endpoint stayed `Connecting` for ever, and calls waited.
async fn a_panic_is_a_connection_that_failed<L: Leaf>(
    make: impl FnOnce(chassis_core::Link, Arc<dyn Connector>, ClientConfig) -> L,
) {
    let world = World::new();
    let _server = world.serve(ServerConfig::default(), hello());
    let panics = |network: Network| Arc::new(Panics(network, AtomicUsize::new(2)));
    let client: Client<L> = world
        .leaf(|link, _, config| make(link, panics(world.network.clone()), config), ClientConfig::default());
    client.leaf.wake();
    client.until(Connection::TransientFailure).await;
    timeout(60 * SECOND, client.until(Connection::Ready)).await.expect("it is tried again");
    assert_eq!(client.get("/x").await.unwrap(), "200 x");
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_panics_is_asked_again_by_http1() {
    a_panic_is_a_connection_that_failed(H1Leaf::new).await;
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_panics_is_asked_again_by_http2() {
    a_panic_is_a_connection_that_failed(|link, connector, config| H2Leaf::new(link, connector, config, true))
        .await;
}

/// A call that opens its own connection fails as a call that was not sent.
#[tokio::test(start_paused = true)]
async fn a_call_survives_its_connector() {
    let world = World::new();
    let panics = Arc::new(Panics(world.network.clone(), AtomicUsize::new(1)));
    let client = world.leaf(|link, _, config| H1Leaf::new(link, panics, config), ClientConfig::default());
    let error = client.get("/x").await.unwrap_err();
    assert_eq!((error.reason(), error.maybe_executed()), (Reason::ConnectFailed, false));
    let source = std::error::Error::source(&error).map(ToString::to_string);
    assert_eq!(source.as_deref(), Some("it panicked: no key to be found"));
}

/// A task sends the rest of a request's body; it ends with the connection, and the runtime waits for it.
#[tokio::test(start_paused = true)]
async fn what_sends_a_body_belongs_to_the_runtime() {
    let world = World::new();
    let _server = world.serve(ServerConfig::default(), silent());
    let client = world
        .leaf(|link, connector, config| H2Leaf::new(link, connector, config, true), ClientConfig::default());
    let client = client.ready().await;
    let before = world.tasks.running();
    let body = Body::stream(Never, |never| match never {});
    let mut sending = Box::pin(client.leaf.call(call(Method::POST, "/upload", body)));
    assert!(timeout(SECOND, &mut sending).await.is_err());
    assert_eq!(world.tasks.running(), before + 1);
    assert!(world.tasks.end(SECOND).await, "{} tasks are left", world.tasks.running());
}

/// A body that never yields a frame.
struct Never;

impl http_body::Body for Never {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Pending
    }
}
