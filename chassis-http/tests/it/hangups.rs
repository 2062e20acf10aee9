//! Clients that disconnect while their bytes are not read: their calls end.
use std::{sync::Arc, time::Duration};

use chassis_core::{Random, tasks::Tasks, units::Span};
use chassis_http::{
    ServerConfig,
    connector::{Acceptor, Listener, Network, Peer, Stream},
    server::{Answer, Mux, Received, Server, ServerBody},
};
use http::{Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};

use crate::support::World;

/// The events of a handler.
#[derive(Debug, PartialEq)]
enum Seen {
    Called(String),
    Dropped,
}

struct Handling(mpsc::UnboundedSender<Seen>);

impl Drop for Handling {
    fn drop(&mut self) {
        let _ = self.0.send(Seen::Dropped);
    }
}

/// Holds the request's body, unread, and answers only `/at-once`.
fn holds(received: mpsc::UnboundedSender<Seen>) -> impl chassis_http::server::HttpService {
    move |request: Request<Received>| -> Answer {
        let path = request.uri().path().to_owned();
        if path == "/at-once" {
            return Box::pin(std::future::ready(Response::new(ServerBody::from("well"))));
        }
        let _ = received.send(Seen::Called(path));
        let handling = Handling(received.clone());
        Box::pin(async move {
            let (_request, _handling) = (request, handling);
            std::future::pending().await
        })
    }
}

/// A server over TCP, and the events of its handlers.
struct Tcp {
    server: Server,
    address: String,
    received: mpsc::UnboundedReceiver<Seen>,
}

const UNREAD: &[u8] = b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\nsome of it";
const BEHIND: &[u8] = b"GET /first HTTP/1.1\r\nhost: x\r\n\r\nGET /second HTTP/1.1\r\nhost: x\r\n\r\n";
const ALONE: &[u8] = b"GET /alone HTTP/1.1\r\nhost: x\r\n\r\n";

impl Tcp {
    async fn new(config: ServerConfig) -> Self {
        let (sender, received) = mpsc::unbounded_channel();
        let server = Server::new(config, &Tasks::new(), Random::seeded(1));
        let listener = Network::default().bind("127.0.0.1:0").await.unwrap();
        let address = listener.address();
        server.serve("http", listener, Mux { http: Some(Arc::new(holds(sender))), grpc: None }, None);
        Tcp { server, address, received }
    }

    async fn ask(&mut self, request: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        assert!(matches!(self.received().await, Seen::Called(_)));
        stream
    }

    async fn received(&mut self) -> Seen {
        timeout(Duration::from_secs(10), self.received.recv()).await.expect("it is noticed").unwrap()
    }

    /// The call has ended, and the request behind it was not handled.
    async fn ends(mut self) {
        assert_eq!(self.received().await, Seen::Dropped);
        assert_eq!(self.server.drain(Duration::from_secs(5)).await, 0);
        assert!(self.received.try_recv().is_err());
    }
}

/// hyper reads no further than the handler requires, and does not see the bytes after that.
#[tokio::test]
async fn a_client_that_closes_has_left() {
    for request in [UNREAD, BEHIND, ALONE] {
        let mut tcp = Tcp::new(ServerConfig::default()).await;
        let stream = tcp.ask(request).await;
        drop(stream);
        tcp.ends().await;
        // Closing one direction is enough.
        let mut tcp = Tcp::new(ServerConfig::default()).await;
        let mut stream = tcp.ask(request).await;
        stream.shutdown().await.unwrap();
        tcp.ends().await;
    }
}

#[tokio::test]
async fn a_reset_is_noticed_behind_more_than_the_window_holds() {
    for half_close in [false, true] {
        let mut tcp = Tcp::new(ServerConfig { half_close, ..ServerConfig::default() }).await;
        let stream = tcp.ask(UNREAD).await;
        // As much as the buffers hold.
        let chunk = vec![b'x'; 64 * 1024];
        while stream.try_write(&chunk).is_ok() {}
        stream.set_zero_linger().unwrap();
        drop(stream);
        tcp.ends().await;
    }
}

/// For some clients a FIN means only that the request is complete.
#[tokio::test]
async fn with_half_close_a_client_may_wait_for_its_answer() {
    let mut tcp = Tcp::new(ServerConfig { half_close: true, ..ServerConfig::default() }).await;
    let mut stream = tcp.ask(ALONE).await;
    stream.shutdown().await.unwrap();
    // The server has received the FIN once it has answered a request that was sent after it.
    let mut other = TcpStream::connect(&tcp.address).await.unwrap();
    other.write_all(b"GET /at-once HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut said = String::new();
    other.read_to_string(&mut said).await.unwrap();
    assert!(said.ends_with("well"));
    assert!(tcp.received.try_recv().is_err(), "the call goes on");
    stream.set_zero_linger().unwrap();
    drop(stream);
    tcp.ends().await;
}

/// Scripts close their side right after the request: calls that need no wait are answered.
#[tokio::test]
async fn what_can_be_answered_at_once_is_answered() {
    let (sender, _told) = mpsc::unbounded_channel();
    let world = World::new();
    let _server = world.serve(ServerConfig::default(), holds(sender));
    let mut stream: Stream = world.raw().await;
    let request = "GET /at-once HTTP/1.1\r\nhost: x\r\n\r\n".repeat(3);
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    assert_eq!(said.matches("well").count(), 3, "{said}");
}

/// Also in memory, on the paused clock, and over Unix sockets.
#[tokio::test(start_paused = true)]
async fn within_the_process_too() {
    for request in [UNREAD, BEHIND] {
        let (sender, mut received) = mpsc::unbounded_channel();
        let world = World::new();
        let config = ServerConfig { max_age: Span(Duration::ZERO), ..ServerConfig::default() };
        let _server = world.serve(config, holds(sender));
        let mut stream = world.raw().await;
        stream.write_all(request).await.unwrap();
        assert!(matches!(received.recv().await, Some(Seen::Called(_))));
        drop(stream);
        let dropped = timeout(Duration::from_millis(1), received.recv()).await.expect("it is noticed");
        assert_eq!(dropped, Some(Seen::Dropped));
    }
}

#[tokio::test]
async fn over_unix_sockets_too() {
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", folder.path().join("socket").display());
    let (sender, mut received) = mpsc::unbounded_channel();
    let network = Network::default();
    let server = Server::new(ServerConfig::default(), &Tasks::new(), Random::seeded(1));
    let listener = network.bind(&address).await.unwrap();
    server.serve("http", listener, Mux { http: Some(Arc::new(holds(sender))), grpc: None }, None);
    let mut stream = chassis_http::connector::Connector::connect(&network, &address).await.unwrap();
    stream.write_all(UNREAD).await.unwrap();
    assert!(matches!(received.recv().await, Some(Seen::Called(_))));
    drop(stream);
    let dropped = timeout(Duration::from_secs(10), received.recv()).await.expect("it is noticed");
    assert_eq!(dropped, Some(Seen::Dropped));
}

/// A user's own listener, such as a socket that was passed to the process.
struct Own(tokio::net::TcpListener);

#[async_trait::async_trait]
impl Listener for Own {
    async fn accept(&mut self) -> std::io::Result<Stream> {
        let (stream, peer) = self.0.accept().await?;
        Ok(Stream::new(stream, Peer::Tcp(peer)))
    }

    fn address(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }
}

/// Wraps the stream in another one, as TLS does.
struct Wraps;

#[async_trait::async_trait]
impl Acceptor for Wraps {
    async fn accept(&self, stream: Stream) -> std::io::Result<Stream> {
        let peer = stream.peer().clone();
        Ok(Stream::new(tokio::io::BufStream::new(stream), peer))
    }
}

#[tokio::test]
async fn with_listeners_and_acceptors_of_ones_own_too() {
    let acceptors: [Option<Arc<dyn Acceptor>>; 2] = [None, Some(Arc::new(Wraps))];
    for acceptor in acceptors {
        let (sender, received) = mpsc::unbounded_channel();
        let server = Server::new(ServerConfig::default(), &Tasks::new(), Random::seeded(1));
        let listener = Box::new(Own(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap()));
        let address = listener.address();
        server.serve("http", listener, Mux { http: Some(Arc::new(holds(sender))), grpc: None }, acceptor);
        let mut tcp = Tcp { server, address, received };
        drop(tcp.ask(UNREAD).await);
        tcp.ends().await;
    }
}
