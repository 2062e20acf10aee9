//! Streamed answers of known length: their readers stop at the last byte, and the answers count as complete.
use std::{convert::Infallible, sync::Arc};

use async_trait::async_trait;
use axum::{
    Router,
    body::Body as AxumBody,
    extract::Request,
    response::{IntoResponse, Response},
    routing::any,
};
use bytes::Bytes;
use chassis_core::{
    Runtime, pipeline,
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
};
use chassis_http::{
    ClientConfig, HttpClient, HttpTransport, HttpVersion, RestLayer, ServerConfig,
    server::{Mux, Server},
};
use http::{HeaderValue, Method, StatusCode, header::CONTENT_LENGTH};
use http_body_util::channel::Channel;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::Service;

use crate::support::World;

/// Each service is at `memory:` and its name.
struct ByName;
struct Once(Option<Instance>);

#[async_trait]
impl Registry for ByName {
    fn name(&self) -> &str {
        "by name"
    }
    async fn register(&self, _: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        Err(RegistryError::unsupported("instances are fixed"))
    }
    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let instance = Instance::new(service, "one").with_address("http", format!("memory:{service}"));
        Ok(Box::new(Once(Some(instance))))
    }
}

#[async_trait]
impl Watcher for Once {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        match self.0.take() {
            Some(instance) => Ok(Membership::known([instance])),
            None => std::future::pending().await,
        }
    }
}

/// A service: its server, and its client for other services.
pub(crate) struct Party {
    runtime: Runtime,
    transport: Arc<HttpTransport>,
    _server: Option<Server>,
}

impl Party {
    pub(crate) fn new(world: &World, name: &str, http_version: HttpVersion) -> Self {
        let runtime = Runtime::builder(name).registry(Arc::new(ByName)).build().unwrap();
        let config = ClientConfig { http_version, ..ClientConfig::default() };
        let transport = Arc::new(HttpTransport::new(Arc::new(world.network.clone()), config));
        Party { runtime, transport, _server: None }
    }

    pub(crate) fn serve(mut self, world: &World, routes: Router) -> Self {
        let server = Server::new(ServerConfig::default(), &world.tasks, world.random.clone());
        let listener = Box::new(world.memory.listen(self.runtime.service()).unwrap());
        let http: Arc<dyn chassis_http::server::HttpService> =
            Arc::new(RestLayer::new(&self.runtime).serve(routes));
        server.serve("http", listener, Mux { http: Some(http), grpc: None }, None);
        self._server = Some(server);
        self
    }

    pub(crate) fn client(&self, service: &str) -> HttpClient {
        HttpClient::new(service, pipeline::client(&self.runtime, service, &self.transport))
    }

    /// The number of its calls so far, by their status in the metric `family`.
    fn counted(&self, family: &str) -> Vec<(String, u64)> {
        let mut counts = Vec::new();
        for family in self.runtime.metrics().registry().gather().iter().filter(|f| f.name() == family) {
            for series in family.get_metric() {
                let labels = series.get_label();
                let status = labels.iter().find(|label| label.name() == "http_response_status_code").unwrap();
                counts.push((status.value().to_owned(), series.get_histogram().get_sample_count()));
            }
        }
        counts.sort();
        counts
    }
}

const CLIENT: &str = "http_client_request_duration_seconds";
const SERVER: &str = "http_server_request_duration_seconds";
const FILE: &str = "one two three ";

/// A file, as file servers send it: the length in the head, the bytes as they are read, and then a pause before
/// the end.
async fn file(request: Request) -> Response {
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(1);
    tokio::spawn(async move {
        for part in ["one ", "two ", "three "] {
            tokio::task::yield_now().await;
            if sender.send_data(Bytes::from_static(part.as_bytes())).await.is_err() {
                return;
            }
        }
        std::future::pending::<()>().await;
        drop(sender);
    });
    let mut response = AxumBody::new(body).into_response();
    match request.uri().path() {
        "/not-modified" => *response.status_mut() = StatusCode::NOT_MODIFIED,
        "/no-content" => *response.status_mut() = StatusCode::NO_CONTENT,
        "/unknown" => return response,
        _ => {
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(FILE.len()));
        }
    }
    response
}

pub(crate) fn relay(to: HttpClient) -> Router {
    let relay = move |request: Request| {
        let mut to = to.clone();
        async move { to.call(request).await.map_or_else(|e| panic!("{e}"), |r| r.map(AxumBody::new)) }
    };
    Router::new().fallback(any(relay))
}

/// The bytes that `memory:middle` sends on one connection, for requests of HTTP/1.1 that ask it to close.
async fn ask(world: &World, method: &str, path: &str) -> String {
    let mut stream =
        chassis_http::connector::Connector::connect(&world.network, "memory:middle").await.unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: middle\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    said
}

/// hyper drops a body after the last byte of its `content-length`, without polling its end: each download
/// counted as cancelled, and a service in the middle opened its circuits.
#[tokio::test(start_paused = true)]
async fn downloads_through_a_service_in_the_middle_count_as_what_they_are() {
    for version in [HttpVersion::One, HttpVersion::Two] {
        let world = World::new();
        let files = Party::new(&world, "files", version).serve(&world, Router::new().fallback(any(file)));
        let middle = Party::new(&world, "middle", version);
        let routes = relay(middle.client("files"));
        let middle = middle.serve(&world, routes);
        let outer = Party::new(&world, "outer", version);
        let client = outer.client("middle");
        for _ in 0..40 {
            let answer = client.get("/file").send().await.unwrap();
            assert_eq!(answer.headers()[CONTENT_LENGTH], FILE.len().to_string());
            // The reader stops at the declared length, as it may.
            let mut body = answer.into_body();
            let mut got = String::new();
            while got.len() < FILE.len() {
                let frame = http_body_util::BodyExt::frame(&mut body).await.unwrap().unwrap();
                got.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
            }
            assert_eq!(got, FILE);
        }
        let all = |n| vec![("200".to_owned(), n)];
        assert_eq!(outer.counted(CLIENT), all(40), "{version:?}");
        assert_eq!(middle.counted(SERVER), all(40), "{version:?}");
        assert_eq!(middle.counted(CLIENT), all(40), "{version:?}");
        assert_eq!(files.counted(SERVER), all(40), "{version:?}");
        for service in [&outer, &middle] {
            let inspection = service.runtime.inspect();
            assert!(inspection.circuits.iter().all(|circuit| format!("{:?}", circuit.state) == "Closed"));
            let node = &inspection.services[0].nodes[0];
            assert_eq!((node.successes, node.in_flight), (40, 0));
        }
    }
}

/// The head declares the length that the body would have, and hyper drops the body unread.
#[tokio::test(start_paused = true)]
async fn answers_without_a_body_are_whole_with_their_head() {
    let world = World::new();
    let middle = Party::new(&world, "middle", HttpVersion::One);
    let middle = middle.serve(&world, Router::new().fallback(any(file)));
    let outer = Party::new(&world, "outer", HttpVersion::Two);
    let client = outer.client("middle");
    for (method, path, status, length) in [
        ("HEAD", "/file", "200", Some("14")),
        ("GET", "/not-modified", "304", None),
        ("GET", "/no-content", "204", None),
    ] {
        let before = middle.counted(SERVER).iter().find(|(s, _)| s == status).map_or(0, |(_, n)| *n);
        let said = ask(&world, method, path).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status}")) && said.ends_with("\r\n\r\n"), "{said}");
        if let Some(length) = length {
            assert!(said.contains(&format!("content-length: {length}\r\n")), "{said}");
        }
        let answer =
            client.request(Method::from_bytes(method.as_bytes()).unwrap(), path).send().await.unwrap();
        assert_eq!((answer.status().as_str(), answer.bytes().await.unwrap().len()), (status, 0));
        let after = middle.counted(SERVER);
        assert!(after.contains(&(status.to_owned(), before + 2)), "{method} {path}: {after:?}");
    }
    assert_eq!(middle.counted(SERVER).len(), 3, "{:?}", middle.counted(SERVER));
}

/// Without a known length, only the end shows that the body is complete: a reader that stops before has not
/// read it all.
#[tokio::test(start_paused = true)]
async fn without_a_length_the_end_counts() {
    let world = World::new();
    let _files =
        Party::new(&world, "files", HttpVersion::One).serve(&world, Router::new().fallback(any(file)));
    let outer = Party::new(&world, "outer", HttpVersion::One);
    let mut body = outer.client("files").get("/unknown").send().await.unwrap().into_body();
    let mut got = 0;
    while got < FILE.len() {
        let frame = http_body_util::BodyExt::frame(&mut body).await.unwrap().unwrap();
        got += frame.data_ref().unwrap().len();
    }
    drop(body);
    assert_eq!(outer.runtime.inspect().services[0].nodes[0].successes, 0);
}
