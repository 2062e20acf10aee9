//! Reports of failed calls: to callers, to HTTP layers, and in logs.
use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, Request},
    http::{HeaderValue, Method, StatusCode},
    middleware::{self, from_fn},
    response::Response,
    routing::{get, post},
};
use chassis::{
    Chassis, ChassisBuilder, Code, Event, Problem, Reason, Running, document::Environment,
    http::connector::Network, registries::MemoryRegistry, registry::Instance,
};
use chassis_protos::echo::EchoRequest;
use serde_json::{Value, json};

use crate::mesh::{Act, Ask, Mesh, Op, Wire, both, until};

/// A service that calls itself, in memory.
async fn stock(
    settings: Value,
    build: impl FnOnce(ChassisBuilder) -> ChassisBuilder,
    routes: Router,
) -> Running {
    let builder = Chassis::builder("stock")
        .without_file()
        .environment(Environment::default())
        .registry(MemoryRegistry::new())
        .network(Network::default())
        .settings(
            json!({ "listen": { "http": "memory:stock" }, "outbound": { "defaults": { "retry": "off" } } }),
        )
        .settings(settings);
    build(builder).build().await.unwrap().serve_http(routes).start().await.unwrap()
}

/// The reported refusals: reason, rule and message.
fn refusals(running: &Running) -> Vec<(Reason, Option<String>, String)> {
    let past = running.runtime().events().past();
    let refused = past.iter().filter_map(|(_, event)| match &**event {
        Event::Refused { reason, rule, message, .. } => Some((*reason, rule.clone(), message.clone())),
        _ => None,
    });
    refused.collect()
}

async fn problem(running: &Running, path: &str) -> Problem {
    running.http("stock").get(path).send().await.unwrap().ok().await.err().unwrap()
}

/// In the style of a CORS layer: it answers preflights itself, and marks every answer.
async fn cors(request: Request, next: middleware::Next) -> Response {
    let mut answer = match *request.method() == Method::OPTIONS {
        true => Response::new(Body::empty()),
        false => next.run(request).await,
    };
    answer.headers_mut().insert("access-control-allow-origin", HeaderValue::from_static("*"));
    answer
}

#[tokio::test(start_paused = true)]
async fn layers_of_http_see_what_the_pipeline_refuses() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = seen.clone();
    let access_log = from_fn(move |request: Request, next: middleware::Next| {
        let (log, path) = (log.clone(), request.uri().path().to_owned());
        async move {
            let answer = next.run(request).await;
            let is_marked = answer.headers().contains_key("access-control-allow-origin");
            log.lock().unwrap().push((path, answer.status().as_u16(), is_marked));
            answer
        }
    });
    let limits =
        json!([{ "name": "none", "rate": "0/s", "burst": 0, "match": { "operation": "GET /limited" } }]);
    let settings = json!({ "inbound": { "rate_limits": limits, "timeout": "50ms" } });
    let routes = Router::new()
        .route("/limited", get(|| async { "never" }))
        .route("/slow", get(std::future::pending::<()>))
        .route("/well", get(|| async { "well" }));
    let layers = |builder: ChassisBuilder| builder.http_layer(access_log).http_layer(from_fn(cors));
    let stock = stock(settings, layers, routes).await;
    for path in ["/well", "/limited", "/slow", "/nowhere"] {
        let answer = stock.http("stock").get(path).send().await.unwrap();
        assert_eq!(answer.headers()["access-control-allow-origin"], "*", "{path}");
    }
    let preflight = stock.http("stock").request(Method::OPTIONS, "/limited").send().await.unwrap();
    assert_eq!(preflight.status(), StatusCode::OK);
    let seen: Vec<_> = seen
        .lock()
        .unwrap()
        .iter()
        .map(|(path, status, marked)| format!("{path} {status} {marked}"))
        .collect();
    // The log was added first: it is outermost, and sees the work of the other layer.
    assert_eq!(
        seen,
        ["/well 200 true", "/limited 429 true", "/slow 504 true", "/nowhere 404 true", "/limited 200 true"]
    );
}

#[tokio::test(start_paused = true)]
async fn extractors_refuse_in_problem_documents() {
    #[derive(serde::Deserialize)]
    struct Page {
        #[allow(dead_code)]
        page: u32,
    }
    let routes = Router::new()
        .route("/path/{id}", get(|Path(_): Path<u32>| async {}))
        .route("/query", get(|Query(_): Query<Page>| async {}))
        .route("/json", post(|Json(_): Json<Page>| async {}))
        .route("/own", get(|| async { (StatusCode::CONFLICT, "Invalid, but in my own words") }));
    let stock = stock(json!({}), |builder| builder, routes).await;
    let bad_path = problem(&stock, "/path/x").await;
    assert_eq!((bad_path.status(), bad_path.title()), (StatusCode::BAD_REQUEST, "Bad Request"));
    assert!(bad_path.detail_text().unwrap().starts_with("Invalid URL: Cannot parse"), "{bad_path}");
    let bad_query = problem(&stock, "/query").await;
    assert!(bad_query.detail_text().unwrap().contains("missing field `page`"), "{bad_query}");
    let post = |value: Value| {
        let request = stock.http("stock").post("/json").json(&value);
        async { request.send().await.unwrap().ok().await.err().unwrap() }
    };
    let bad_body = post(json!({ "page": "one" })).await;
    assert_eq!(bad_body.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert!(bad_body.detail_text().unwrap().contains("page: invalid type"), "{bad_body}");
    // A handler's own answers stay unchanged.
    let own = stock.http("stock").get("/own").send().await.unwrap();
    assert_eq!(
        (own.status(), &own.headers()["content-type"]),
        (StatusCode::CONFLICT, &"text/plain; charset=utf-8".parse::<HeaderValue>().unwrap())
    );
    assert_eq!(own.text().await.unwrap(), "Invalid, but in my own words");
}

#[tokio::test(start_paused = true)]
async fn a_body_over_the_limit_names_limit_and_setting_and_is_reported_once_a_second() {
    let routes = Router::new().route("/", post(|body: String| async move { body }));
    let stock = stock(json!({ "server": { "max_body": 10 } }), |builder| builder, routes).await;
    let send = async |body: &'static str| {
        let answer = stock.http("stock").post("/").body(body).send().await.unwrap();
        answer.ok().await.err().unwrap()
    };
    for _ in 0..3 {
        let refused = send("more than ten bytes").await;
        assert_eq!((refused.status().as_u16(), refused.rule()), (413, Some("server.max_body")));
        assert_eq!(
            refused.detail_text(),
            Some("the request's body is over `server.max_body`, which is 10 bytes")
        );
    }
    assert_eq!(refusals(&stock).len(), 1, "{:?}", refusals(&stock));
    let (reason, rule, _) = &refusals(&stock)[0];
    assert_eq!((*reason, rule.as_deref()), (Reason::TooLarge, Some("server.max_body")));
    tokio::time::sleep(Duration::from_secs(1)).await;
    send("more than ten bytes").await;
    assert_eq!(refusals(&stock).len(), 2);
    let late =
        stock.http("stock").post("/").header("x-request-timeout-ms", "soon").body("a").send().await.unwrap();
    assert_eq!(late.status(), StatusCode::BAD_REQUEST);
    assert_eq!(refusals(&stock).last().unwrap().0, Reason::Malformed);
}

#[tokio::test(start_paused = true)]
async fn a_problem_names_the_trace_at_every_refusal() {
    let limits =
        json!([{ "name": "none", "rate": "0/s", "burst": 0, "match": { "operation": "GET /limited" } }]);
    let own = || async { Problem::new(StatusCode::CONFLICT).detail("it was paid already") };
    let routes = Router::new().route("/limited", get(|| async {})).route("/own", get(own));
    let stock = stock(json!({ "inbound": { "rate_limits": limits } }), |builder| builder, routes).await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for path in ["/limited", "/own", "/nowhere"] {
        let answer = stock.http("stock").get(path).header("traceparent", parent).send().await.unwrap();
        let problem = answer.ok().await.err().unwrap();
        assert_eq!(problem.trace(), Some("4bf92f3577b34da6a3ce929d0e0e4736"), "{path}: {problem}");
        assert_eq!(self::problem(&stock, path).await.trace(), None, "{path}: it is part of no trace");
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_of_another_protocol_is_reported_as_that() {
    let mesh = Mesh::new();
    mesh.registry.put(Instance::new("stock", "stock-1").with_address("grpc", "memory:stock-1"));
    let caller = mesh.caller("").await;
    let outcome = caller.call(Wire::Rest, Ask::to("stock")).await;
    outcome.refused(Reason::NoEndpoint);
    assert_eq!(outcome.message, "stock (http): its instances do not offer http, only grpc");
}

both! {
    /// A timeout in the server's own handler is logged, once a second.
    async fn a_time_out_leaves_a_line(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.server("stock", "stock-1").config("inbound: { timeout: 50ms }").start().await;
        let caller = mesh.caller("outbound: { defaults: { retry: off, breaker: off } }").await;
        stock.does(Act::Hang);
        for _ in 0..3 {
            let outcome = caller.call(wire, Ask::to("stock")).await;
            assert_eq!(outcome.code, chassis::Code::DeadlineExceeded);
        }
        let lines = || refusals(&stock.running);
        until("it is logged", || lines().len() == 1).await;
        assert_eq!(lines()[0].0, Reason::DeadlineExceeded);
    }
}

both! {
    /// A failure that a handler forwards does not count as its own: it names the service that was called.
    async fn a_problem_names_the_service_that_failed(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.server("stock", "stock-1").config(
            "inbound: { operations: { 'chassis.test.v1.Echo/Safe': { rate_limits: [ { name: none, rate: 0/s, burst: 0 } ] },
                                      'GET /safe/{message}': { rate_limits: [ { name: none, rate: 0/s, burst: 0 } ] } } }",
        ).start().await;
        stock.does(Act::Fail(Code::NotFound));
        let caller = mesh.caller("outbound: { defaults: { retry: off } }").await;
        let passed_on = async |service: &str, ask: Ask| {
            let clients = caller.clients(service);
            match wire {
                Wire::Grpc => {
                    let request = ask.grpc(EchoRequest::default());
                    let mut stub = clients.grpc.clone();
                    let answer = if ask.op == Op::Safe { stub.safe(request).await } else { stub.call(request).await };
                    chassis::grpc::problem(&answer.unwrap_err())
                }
                Wire::Rest => {
                    let request = match ask.op {
                        Op::Safe => clients.rest.get("/safe/{message}").param("message", "a"),
                        _ => clients.rest.post("/echo").json(&json!({ "message": "a" })),
                    };
                    match ask.rest(request).send().await {
                        Ok(answer) => answer.ok().await.err().unwrap(),
                        Err(error) => Problem::from(error),
                    }
                }
            }
        };
        let its_own = passed_on("stock", Ask::to("stock")).await;
        assert_eq!((its_own.upstream(), its_own.status().as_u16(), its_own.reason()), (Some("stock"), 404, None));
        let refused = passed_on("stock", Ask::to("stock").safe()).await;
        assert_eq!((refused.upstream(), refused.reason()), (Some("stock"), Some(Reason::RateLimited)));
        let never_sent = passed_on("unknown", Ask::to("unknown")).await;
        assert_eq!((never_sent.upstream(), never_sent.reason()), (Some("unknown"), Some(Reason::UnknownService)));
        let document = String::from_utf8(refused.into_http().into_body().to_vec()).unwrap();
        assert!(document.contains(r#""upstream":"stock""#), "{document}");

        // Also in the middle of a stream.
        stock.does(Act::Delay(Duration::from_secs(1)));
        caller.push("outbound: { defaults: { retry: off, total_timeout: 300ms } }").await.applied();
        if wire == Wire::Grpc {
            let request = EchoRequest { repeat: 3, ..EchoRequest::default() };
            let mut parts = caller.clients("stock").grpc.clone().download(request).await.unwrap().into_inner();
            let cut = loop {
                match parts.message().await {
                    Ok(part) => assert!(part.is_some(), "it is cut"),
                    Err(status) => break chassis::grpc::problem(&status),
                }
            };
            assert_eq!((cut.upstream(), cut.reason()), (Some("stock"), Some(Reason::DeadlineExceeded)));
        }
    }
}
