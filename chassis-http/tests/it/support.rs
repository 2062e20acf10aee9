//! A server in memory, hand-written peers, and a leaf whose state a test reads.
use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chassis_core::{
    Body, Connection, Error, Failed, Invocation, Link, Operation, Random, Reply, Target, protocol::Leaf,
    tasks::Tasks,
};
use chassis_http::{
    ClientConfig, HTTP, ServerConfig,
    connector::{Connector, MemoryNetwork, Network, Stream},
    server::{Answer, HttpService, Mux, Received, Server, ServerBody},
};
use http::{Method, Request, Response};
use http_body_util::BodyExt;

/// An endpoint at `memory:stock`, and the parts of a client that reaches it.
pub(crate) struct World {
    pub(crate) memory: MemoryNetwork,
    pub(crate) network: Network,
    pub(crate) tasks: Tasks,
    pub(crate) random: Random,
}

impl World {
    pub(crate) fn new() -> Self {
        let memory = MemoryNetwork::default();
        let network = Network::with_memory(memory.clone());
        World { memory, network, tasks: Tasks::new(), random: Random::seeded(1) }
    }

    /// Serves `service` at `memory:stock`.
    pub(crate) fn serve(&self, config: ServerConfig, service: impl HttpService) -> Server {
        let server = Server::new(config, &self.tasks, self.random.clone());
        let listener = Box::new(self.memory.listen("stock").unwrap());
        server.serve("http", listener, Mux { http: Some(Arc::new(service)), grpc: None }, None);
        server
    }

    /// A leaf for `memory:stock`, created by `make`.
    pub(crate) fn leaf<L: Leaf>(
        &self,
        make: impl FnOnce(Link, Arc<dyn Connector>, ClientConfig) -> L,
        config: ClientConfig,
    ) -> Client<L> {
        let link = Link::detached("stock", "memory:stock", self.tasks.clone(), self.random.clone());
        let leaf = make(link.clone(), Arc::new(self.network.clone()), config);
        Client { leaf, link }
    }

    pub(crate) async fn raw(&self) -> Stream {
        self.network.connect("memory:stock").await.unwrap()
    }
}

pub(crate) struct Client<L> {
    pub(crate) leaf: L,
    pub(crate) link: Link,
}

impl<L: Leaf> Client<L> {
    /// Wakes the leaf and waits until it is ready.
    pub(crate) async fn ready(self) -> Self {
        self.leaf.wake();
        self.until(Connection::Ready).await;
        self
    }

    pub(crate) async fn until(&self, state: Connection) {
        while self.link.connection() != state {
            self.link.changed().await;
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<String, Failed> {
        Ok(read(self.leaf.call(call(Method::GET, path, Body::empty())).await?).await?)
    }

    pub(crate) async fn post(&self, path: &str, body: &'static str) -> Result<String, Failed> {
        Ok(read(self.leaf.call(call(Method::POST, path, Body::full(body))).await?).await?)
    }
}

pub(crate) fn call(method: Method, path: &str, body: Body) -> Invocation {
    let mut call = Invocation::new(&HTTP, Target::new("stock", Operation::OTHER));
    call.method = method;
    call.uri = path.parse().unwrap();
    call.body = body;
    call
}

/// Status and body.
pub(crate) async fn read(reply: Reply) -> Result<String, Error> {
    let status = reply.status;
    let body = reply.into_body().collect().await?.to_bytes();
    Ok(format!("{} {}", status.as_u16(), String::from_utf8_lossy(&body)))
}

/// Answers with the result of `answer` for the path and the body.
pub(crate) fn echo(
    answer: impl Fn(&str, Bytes) -> String + Clone + Send + Sync + 'static,
) -> impl HttpService {
    move |request: Request<Received>| -> Answer {
        let answer = answer.clone();
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            match request.into_body().collect().await {
                Ok(body) => Response::new(ServerBody::from(answer(&path, body.to_bytes()))),
                Err(_) => Response::new(ServerBody::empty()),
            }
        })
    }
}

/// Answers `GET /x` with `x`.
pub(crate) fn hello() -> impl HttpService {
    echo(|path, _| path.trim_start_matches('/').to_owned())
}

/// Never answers.
pub(crate) fn silent() -> impl HttpService {
    |_: Request<Received>| -> Answer { Box::pin(std::future::pending()) }
}

pub(crate) const SECOND: Duration = Duration::from_secs(1);
