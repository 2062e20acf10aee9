//! An axum router behind the pipeline, called by name through another.
use std::sync::Arc;

use async_trait::async_trait;
use axum::{
    Router,
    body::Bytes,
    extract::Path,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response as AxumResponse},
    routing::{any, get, post},
};
use chassis_core::{
    Body, Code, Context, Error, Operation, Reason, RequestExt, Runtime,
    clock::Instant,
    pipeline,
    protocol::Leaf,
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
};
use chassis_http::{
    ClientConfig, H1Leaf, HttpClient, HttpTransport, HttpVersion, Problem, REFUSED, RestLayer, ServerConfig,
    connector::Listener, server::Server,
};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::Service;

use crate::support::{Client, SECOND, World, call, read};

/// A registry with one instance of every service.
struct Fixed;
struct Once(Option<Instance>);

#[async_trait]
impl Registry for Fixed {
    fn name(&self) -> &str {
        "fixed"
    }
    async fn register(&self, _: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        Err(RegistryError::unsupported("instances are fixed"))
    }
    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let instance = Instance::new(service, "one").with_address("http", "memory:stock");
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

fn orders() -> Router {
    let order = async |Path(id): Path<String>, headers: HeaderMap| {
        let seen = headers.get("x-seen").and_then(|v| v.to_str().ok()).unwrap_or("nothing").to_owned();
        format!("order {id}, {seen}")
    };
    let left = async || {
        let left = Context::current().deadline.map(|at| at - Instant::now());
        format!("{left:?}")
    };
    let passes_on = async || -> AxumResponse {
        ([(REFUSED, HeaderValue::from_static("CIRCUIT_OPEN"))], StatusCode::SERVICE_UNAVAILABLE)
            .into_response()
    };
    Router::new()
        .route("/orders/{id}", get(order))
        .route("/left", get(left))
        .route("/count", post(async |body: Bytes| body.len().to_string()))
        .route("/json", post(async |axum::Json(n): axum::Json<Vec<u32>>| axum::Json(n.iter().sum::<u32>())))
        .route("/conflict", any(async || Problem::new(StatusCode::CONFLICT).detail("paid already")))
        .route("/passes-on", get(passes_on))
        .route(
            "/panics",
            get(async || {
                if true {
                    panic!("on purpose")
                }
            }),
        )
}

fn serve(world: &World, config: ServerConfig) -> Server {
    let runtime = Runtime::builder("orders").build().unwrap();
    world.serve(config, RestLayer::new(&runtime).serve(orders()))
}

fn leaf(world: &World) -> Client<H1Leaf> {
    world.leaf(H1Leaf::new, ClientConfig::default())
}

fn client(world: &World, http_version: HttpVersion) -> HttpClient {
    client_with(world, ClientConfig { http_version, ..ClientConfig::default() })
}

/// Calls the server at `memory:stock` under the name `orders`, through a pipeline with default settings.
pub(crate) fn client_with(world: &World, config: ClientConfig) -> HttpClient {
    let runtime = Runtime::builder("shop").registry(Arc::new(Fixed)).build().unwrap();
    let transport = Arc::new(HttpTransport::new(Arc::new(world.network.clone()), config));
    let client = HttpClient::new("orders", pipeline::client(&runtime, "orders", &transport));
    // The shared state lives as long as the test.
    world.tasks.spawn(async move {
        let _runtime = runtime;
        std::future::pending::<()>().await;
    });
    client
}

#[tokio::test(start_paused = true)]
async fn a_client_by_name_reaches_routes_by_template() {
    for version in [HttpVersion::One, HttpVersion::Two] {
        let world = World::new();
        let _server = serve(&world, ServerConfig::default());
        let orders = client(&world, version);
        let answer =
            orders.get("/orders/{id}").param("id", "a/7").header("x-seen", "header").send().await.unwrap();
        assert_eq!(
            (answer.status(), answer.text().await.unwrap().as_str()),
            (StatusCode::OK, "order a/7, header")
        );
        let sum: u32 = orders.post("/json").json(&[1, 2, 39]).send().await.unwrap().json().await.unwrap();
        assert_eq!(sum, 42);
        let problem = orders.delete("/conflict").send().await.unwrap().ok().await.unwrap_err();
        assert_eq!((problem.status(), problem.detail_text()), (StatusCode::CONFLICT, Some("paid already")));
        let nothing = orders.get("/nothing").send().await.unwrap();
        let problem = nothing.ok().await.unwrap_err();
        assert_eq!((problem.status(), problem.title()), (StatusCode::NOT_FOUND, "Not Found"));
        let wrong_method = orders.put("/json").send().await.unwrap();
        assert_eq!(wrong_method.headers()[header::ALLOW], "POST");
        assert_eq!(wrong_method.ok().await.unwrap_err().code(), Code::Unimplemented);
        let head = orders.head("/orders/{id}").param("id", 1).send().await.unwrap();
        assert_eq!((head.status(), head.bytes().await.unwrap().len()), (StatusCode::OK, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_a_request_is_told_before_it_is_sent() {
    let world = World::new();
    let orders = client(&world, HttpVersion::One);
    let wrong = async |request: chassis_http::RequestBuilder| {
        let error = request.send().await.unwrap_err();
        assert_eq!((error.code(), error.reason()), (Code::InvalidArgument, Reason::Malformed));
        error.to_string()
    };
    assert_eq!(wrong(orders.get("/orders/{id}")).await, "`/orders/{id}` needs the parameter `id`");
    assert_eq!(wrong(orders.get("/x").param("id", 1)).await, "`/x` has no parameter `id`");
    assert!(wrong(orders.get("/x").header("x y", "1")).await.starts_with("a header's name is malformed"));
    assert!(wrong(orders.get("/x").header("x", "1\n2")).await.starts_with("a header's value is malformed"));
    assert_eq!(world.memory.connections("stock"), 0);
}

#[tokio::test(start_paused = true)]
async fn it_is_a_tower_service_too() {
    let world = World::new();
    let _server = serve(&world, ServerConfig::default());
    let mut orders = client(&world, HttpVersion::One);
    let mut request = Request::new(Full::new(Bytes::from_static(b"12345")));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = "http://wherever/count".parse().unwrap();
    request.extensions_mut().insert(Operation::from_static("POST /count"));
    let response = orders.call(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "5");
}

#[tokio::test(start_paused = true)]
async fn bodies_over_the_limit_are_told_413() {
    let world = World::new();
    let config = ServerConfig { max_body: 1_000.try_into().unwrap(), ..ServerConfig::default() };
    let _server = serve(&world, config);
    let client = leaf(&world).ready().await;
    let count = async |body: Body| read(client.leaf.call(call(Method::POST, "/count", body)).await?).await;
    let stream = |n: usize| Body::stream(chunks(n), |never| match never {});
    assert_eq!(count(Body::full(vec![0; 1_000])).await.unwrap(), "200 1000");
    assert_eq!(count(stream(10)).await.unwrap(), "200 1000");
    for body in [Body::full(vec![0; 1_001]), stream(11)] {
        let received = count(body).await.unwrap();
        assert!(received.starts_with("413 {") && received.contains(r#""reason":"TOO_LARGE""#), "{received}");
    }
}

/// `n` chunks of a hundred bytes, whose length is not announced.
fn chunks(n: usize) -> impl http_body::Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static {
    let (mut sender, body) = http_body_util::channel::Channel::<Bytes, std::convert::Infallible>::new(1);
    tokio::spawn(async move {
        for _ in 0..n {
            if sender.send_data(Bytes::from_static(&[0; 100])).await.is_err() {
                return;
            }
        }
    });
    body
}

#[tokio::test(start_paused = true)]
async fn the_callers_patience_only_shortens() {
    let world = World::new();
    let _server = serve(&world, ServerConfig::default());
    let client = leaf(&world).ready().await;
    let left = async |millis: &'static str| {
        let mut call = call(Method::GET, "/left", Body::empty());
        call.metadata.insert("x-request-timeout-ms", HeaderValue::from_static(millis));
        read(client.leaf.call(call).await.unwrap()).await.unwrap()
    };
    assert_eq!(left("250").await, "200 Some(250ms)");
    for malformed in ["soon", "-1", "1.5", ""] {
        let received = left(malformed).await;
        assert!(received.starts_with("400 {") && received.contains("write 250"), "{received}");
    }
    assert!(left("99999999999999999999").await.starts_with("400 {"));
}

#[tokio::test(start_paused = true)]
async fn a_handler_cannot_say_that_it_did_nothing() {
    let world = World::new();
    let _server = serve(&world, ServerConfig::default());
    let client = leaf(&world).ready().await;
    let reply = client.leaf.call(call(Method::GET, "/passes-on", Body::empty())).await.unwrap();
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!reply.metadata.contains_key(REFUSED));
    assert!(reply.verdict().unwrap().maybe_executed);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_told_500_and_the_connection_kept() {
    let world = World::new();
    let _server = serve(&world, ServerConfig::default());
    let client = leaf(&world).ready().await;
    let received = client.get("/panics").await.unwrap();
    assert!(received.starts_with("500 {") && received.contains(r#""reason":"PANICKED""#), "{received}");
    assert_eq!(client.get("/orders/1").await.unwrap(), "200 order 1, nothing");
    assert_eq!(world.memory.connections("stock"), 1);
}

#[tokio::test(start_paused = true)]
async fn problems_are_problems_on_the_way_back() {
    let world = World::new();
    let _server = serve(&world, ServerConfig::default());
    let orders = client(&world, HttpVersion::One);
    let answer = orders.get("/conflict").timeout(SECOND).send().await.unwrap();
    assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/problem+json");
    assert!(answer.refusal().is_none());
    let error = Error::from(answer.ok().await.unwrap_err());
    assert_eq!((error.code(), error.to_string().as_str()), (Code::Aborted, "409 Conflict: paid already"));
}

/// The endpoint will silently close both idle connections as soon as they are used.
#[tokio::test(start_paused = true)]
async fn another_attempt_at_an_endpoint_goes_on_a_new_connection() {
    let world = World::new();
    let mut listener = world.memory.listen("stock").unwrap();
    let barrier = Arc::new(tokio::sync::Barrier::new(2));
    world.tasks.spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            let barrier = barrier.clone();
            tokio::spawn(async move {
                assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
                // The first two are answered at the same time, so each has its own connection.
                let _ = tokio::time::timeout(SECOND, barrier.wait()).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbye").await.unwrap();
                let _ = stream.read(&mut [0; 1024]).await;
            });
        }
    });
    let client = client(&world, HttpVersion::One);
    let get = async || client.get("/x").send().await?.text().await;
    let (one, other) = tokio::join!(get(), get());
    assert_eq!((one.unwrap(), other.unwrap()), ("bye".to_owned(), "bye".to_owned()));
    assert_eq!(world.memory.connections("stock"), 2);
    assert_eq!(get().await.unwrap(), "bye");
    assert_eq!(world.memory.connections("stock"), 3, "one was found closed, and a new one was opened");
}
