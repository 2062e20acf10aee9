//! The admin surface: who reaches what, during the whole life of a service, and under attack.
use std::{io::Read, time::Duration};

use axum::Router;
use chassis::{
    Chassis, ChassisBuilder, Event, Running, Section, StartError,
    health::{CheckConfig, CheckStatus},
    http::connector::{Connector, Network},
    registry::{Membership, Registry},
    units::Secret,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};

use crate::mesh::{Act, Ask, Mesh, Server, Wire, all_well, until};

const TOKEN: &str = "0123456789abcdef0123";
const SECOND: Duration = Duration::from_secs(1);

/// An answer of the surface.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// Sends `GET path` with these lines of a head; `Host` is the address unless they have one.
async fn ask(network: &Network, address: &str, path: &str, lines: &[&str]) -> Answer {
    let (method, path) = path.split_once(' ').unwrap_or(("GET", path));
    let mut lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    if !lines.iter().any(|line| line.to_ascii_lowercase().starts_with("host:")) {
        let host =
            if address.starts_with("memory:") || address.starts_with("unix:") { "admin" } else { address };
        lines.push(format!("host: {host}"));
    }
    let request = format!("{method} {path} HTTP/1.1\r\n{}\r\nconnection: close\r\n\r\n", lines.join("\r\n"));
    let received = exchange(network, address, request.as_bytes()).await;
    let end = received.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(received[..end].to_vec()).unwrap().to_ascii_lowercase();
    let mut body = received[end + 4..].to_vec();
    if head.contains("transfer-encoding: chunked") {
        body = unchunked(&body);
    }
    Answer { status: head[9..12].parse().unwrap(), head, body }
}

/// Everything that is answered to `bytes`.
async fn exchange(network: &Network, address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = network.connect(address).await.unwrap();
    let mut received = Vec::new();
    // The other side may close while this is sent.
    if stream.write_all(bytes).await.is_ok() {
        let _ = timeout(30 * SECOND, stream.read_to_end(&mut received)).await.expect("the connection ends");
    }
    received
}

fn unchunked(mut from: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = from.windows(2).position(|two| two == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&from[..at]).unwrap(), 16).unwrap();
        body.extend_from_slice(&from[at + 2..at + 2 + length]);
        from = &from[(at + 4 + length).min(from.len())..];
    }
    body
}

/// A service on the network of the machine, with this `listen` and the settings `more`.
async fn start(listen: Value, more: Value) -> Result<Running, StartError> {
    builder(listen, more).build().await?.start().await
}

fn builder(listen: Value, more: Value) -> ChassisBuilder {
    Chassis::builder("stock")
        .without_file()
        .environment(Default::default())
        .settings(json!({ "registry": { "kind": "memory" }, "listen": listen }))
        .settings(more)
}

async fn statuses(address: &str, lines: &[&str]) -> [u16; 4] {
    let mut all = [0; 4];
    for (status, path) in all.iter_mut().zip(["/livez", "/metrics", "/version", "/admin/v1/status"]) {
        *status = ask(&Network::default(), address, path, lines).await.status;
    }
    all
}

#[tokio::test(start_paused = true)]
async fn probes_during_the_whole_life() {
    let mesh = Mesh::new();
    let (network, at) = (mesh.network.clone(), "memory:stock-1-admin");
    let probes = async |network: &Network| {
        let mut all = [0; 4];
        for (status, path) in all.iter_mut().zip(["/livez", "/startupz", "/readyz", "/healthz"]) {
            *status = ask(network, at, path, &[]).await.status;
        }
        all
    };
    let during = network.clone();
    let listen = json!({ "grpc": "memory:stock-1", "http": "memory:stock-1", "admin": at });
    let plan = mesh.server("stock", "stock-1").listen(listen).with(move |builder| {
        builder.before_start(move || async move {
            assert_eq!(probes(&during).await, [200, 503, 503, 503], "before the service listens");
            Ok(())
        })
    });
    let stock = plan.start().await;
    assert_eq!(probes(&network).await, [200; 4]);
    let running = &stock.running;
    running.take_out_of_service().await.unwrap();
    assert_eq!(probes(&network).await, [200, 200, 503, 503]);
    running.put_back_in_service().await.unwrap();
    running.health().set("db", CheckStatus::Failing("no route to 10.0.0.9".to_owned()));
    sleep(SECOND).await;
    assert_eq!(probes(&network).await, [200, 200, 503, 503]);
    let verbose = ask(&network, at, "/readyz?verbose", &[]).await;
    assert_eq!(verbose.text(), "[+]serving ok\n[-]db failing: no route to 10.0.0.9\nreadyz down\n");
    running.health().remove("db");
    let cache = running.health().check("cache", CheckConfig::informative(), || async { Err("gone".into()) });
    sleep(60 * SECOND).await;
    let health = ask(&network, at, "/healthz", &["accept: application/json"]).await;
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("degraded")));
    drop(cache);

    // A call that goes on delays the stop; probes are answered meanwhile.
    let caller = mesh.caller("").await;
    stock.does(Act::Delay(3 * SECOND));
    let under_way = caller.spawn(Wire::Rest, Ask::to("stock").timeout(30 * SECOND));
    until("it is there", || stock.running() == 1).await;
    let stopping = tokio::spawn(stock.stop());
    sleep(SECOND).await;
    assert_eq!(probes(&network).await, [200, 200, 503, 503], "during the drain");
    assert_eq!(under_way.await.unwrap().by(), "stock-1");
    stopping.await.unwrap();
    assert!(network.connect(at).await.is_err(), "the surface ends with the service");
}

#[tokio::test]
async fn metrics_in_the_forms_that_scrapers_ask_for() {
    let running = start(json!({ "http": "127.0.0.1:0", "admin": "127.0.0.1:0" }), json!({})).await.unwrap();
    let (network, at) = (Network::default(), running.address("admin").unwrap());
    let text = ask(&network, at, "/metrics", &[]).await;
    assert!(
        text.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"),
        "{}",
        text.head
    );
    assert!(text.text().contains("\n# TYPE chassis_config_info gauge\n"), "{}", text.text());
    let accept =
        "accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let open = ask(&network, at, "/metrics", &[accept]).await;
    assert!(
        open.head.contains("application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{}",
        open.head
    );
    assert!(open.text().ends_with("\n# EOF\n") && !open.text().contains("\n\n"), "{}", open.text());
    assert!(open.text().contains("# TYPE chassis_config_reloads counter\n"), "{}", open.text());
    let zipped = ask(&network, at, "/metrics", &["accept-encoding: gzip"]).await;
    assert!(zipped.head.contains("content-encoding: gzip"), "{}", zipped.head);
    let mut plain = String::new();
    flate2::read::GzDecoder::new(&*zipped.body).read_to_string(&mut plain).unwrap();
    assert!(plain.contains("chassis_config_info") && zipped.body.len() < plain.len() / 2);
    let head = ask(&network, at, "HEAD /metrics", &[]).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    running.stop().await;
}

#[tokio::test]
async fn who_may_read() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let with_token = json!({ "admin": { "token_file": file } });
    let (right, wrong) = (format!("authorization: Bearer {TOKEN}"), "authorization: Bearer 0123456789abcdef");
    let mut loopback = vec!["127.0.0.1:0"];
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        loopback.push("[::1]:0");
    }
    for address in loopback {
        let running = start(json!({ "admin": address }), json!({})).await.unwrap();
        let at = running.address("admin").unwrap();
        assert_eq!(statuses(at, &[]).await, [200; 4], "{address}");
        assert_eq!(statuses(at, &["host: localhost"]).await, [200; 4], "{address}");
        running.stop().await;
        let running = start(json!({ "admin": address }), with_token.clone()).await.unwrap();
        let at = running.address("admin").unwrap();
        assert_eq!(statuses(at, &[]).await, [200, 200, 200, 401], "{address}");
        assert_eq!(statuses(at, &[&right]).await, [200; 4], "{address}");
        running.stop().await;
    }
    // Bound wider, also peers on this machine need the token: a proxy in front would look like one.
    let running = start(json!({ "admin": "0.0.0.0:0" }), json!({})).await.unwrap();
    let at = running.address("admin").unwrap().replace("0.0.0.0", "127.0.0.1");
    assert_eq!(statuses(&at, &[]).await, [200, 200, 200, 403]);
    assert_eq!(statuses(&at, &[&right]).await, [200, 200, 200, 403]);
    running.stop().await;
    let running = start(json!({ "admin": "0.0.0.0:0" }), with_token.clone()).await.unwrap();
    let at = running.address("admin").unwrap().replace("0.0.0.0", "127.0.0.1");
    assert_eq!(statuses(&at, &[]).await, [200, 200, 200, 401]);
    assert_eq!(statuses(&at, &[wrong]).await, [200, 200, 200, 401]);
    assert_eq!(statuses(&at, &[&right]).await, [200; 4]);
    std::fs::write(&file, "another-token-of-20-c").unwrap();
    sleep(SECOND + SECOND / 10).await;
    assert_eq!(statuses(&at, &[&right]).await, [200, 200, 200, 401], "a replaced token");
    assert_eq!(statuses(&at, &["authorization: Bearer another-token-of-20-c"]).await, [200; 4]);
    running.stop().await;
    std::fs::remove_file(&file).unwrap();
    let error = start(json!({ "admin": "127.0.0.1:0" }), with_token).await.err().unwrap().to_string();
    assert!(error.contains("admin.token_file") && error.contains("No such file"), "{error}");
}

#[tokio::test]
async fn probes_have_a_listener_of_their_own_and_sockets_permissions() {
    let temp = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", temp.path().join("admin.sock").display());
    let listen = json!({ "admin": socket, "probes": "0.0.0.0:0" });
    let running = start(listen, json!({ "service": { "version": "1.4.0" } })).await.unwrap();
    let probes = running.address("probes").unwrap().replace("0.0.0.0", "127.0.0.1");
    assert_eq!(statuses(&probes, &[]).await, [200, 200, 200, 404]);
    assert_eq!(statuses(&socket, &[]).await, [200; 4]);
    let version = ask(&Network::default(), &probes, "/version", &[]).await.json();
    assert_eq!((&version["service"], &version["version"]), (&json!("stock"), &json!("1.4.0")));
    let status = ask(&Network::default(), &socket, "/admin/v1/status", &[]).await.json();
    assert_eq!(status["listeners"][0]["address"], json!(socket));
    assert_eq!(status["phase"], json!("serving"));
    // Others may know that a check fails, and not why.
    running.health().set("db", CheckStatus::Failing("no route to 10.0.0.9".to_owned()));
    let verbose = ask(&Network::default(), &probes, "/readyz?verbose", &[]).await;
    assert!(verbose.text().contains("[-]db failing: reason withheld\n"), "{}", verbose.text());
    running.stop().await;
}

#[tokio::test]
async fn a_taken_default_port_is_passed_over_and_a_taken_port_of_the_settings_is_an_error() {
    let one = start(json!({}), json!({})).await.unwrap();
    let two = start(json!({}), json!({})).await.unwrap();
    let (first, second) = (one.address("admin").unwrap(), two.address("admin").unwrap());
    assert!(first.starts_with("127.0.0.1:") && second.starts_with("127.0.0.1:") && first != second);
    assert_eq!(statuses(second, &[]).await, [200; 4]);
    let error = start(json!({ "admin": first }), json!({})).await.err().unwrap();
    assert!(matches!(&error, StartError::Listen { name, .. } if name == "admin"), "{error:?}");
    let off = start(json!({ "admin": "off" }), json!({})).await.unwrap();
    assert_eq!(off.addresses(), []);
    for running in [one, two, off] {
        running.stop().await;
    }
    let app = builder(json!({}), json!({})).build().await.unwrap();
    let error = app.serve_http_at("admin", Router::new()).start().await.err().unwrap().to_string();
    assert!(error.contains("this is the admin surface"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn it_is_not_registered() {
    let mesh = Mesh::new();
    let listen = json!({ "http": "memory:a", "grpc": "memory:a", "admin": "memory:b", "probes": "memory:c" });
    let stock = mesh.server("stock", "stock-1").listen(listen).start().await;
    assert_eq!(stock.running.addresses().len(), 4);
    let Membership::Known(all) = mesh.registry.watch("stock").await.unwrap().next().await.unwrap() else {
        panic!("it is registered");
    };
    let names: Vec<_> = all[0].addresses.keys().map(str::to_owned).collect();
    assert_eq!(names, ["grpc", "http"]);
    stock.stop().await;
}

#[tokio::test]
async fn browsers_of_other_sites_and_other_methods_are_refused() {
    let more = json!({ "admin": { "hosts": ["*.shop.svc"] }, "service": { "advertise": "orders.example" } });
    let running = start(json!({ "admin": "127.0.0.1:0" }), more).await.unwrap();
    let at = running.address("admin").unwrap();
    let status = async |path: &str, lines: &[&str]| ask(&Network::default(), at, path, lines).await.status;
    for path in ["/livez", "/metrics", "/admin/v1/status", "/", "/nothing"] {
        assert_eq!(status(path, &["host: evil.example"]).await, 421, "{path}");
        assert_eq!(status(path, &["origin: http://evil.example"]).await, 403, "{path}");
        assert_eq!(status(path, &["sec-fetch-site: cross-site"]).await, 403, "{path}");
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"] {
            assert_eq!(
                status(&format!("{method} {path}"), &["content-length: 0"]).await,
                405,
                "{method} {path}"
            );
        }
    }
    assert_eq!(status("/livez", &["host: a.shop.svc:9900"]).await, 200);
    assert_eq!(status("/livez", &["host: orders.example:9900"]).await, 200);
    assert_eq!(status("http://evil.example/livez", &[]).await, 421);
    assert_eq!(status("/nothing", &[]).await, 404);
    let refused = ask(&Network::default(), at, "/nothing", &[]).await;
    for header in [
        "cache-control: no-store",
        "x-content-type-options: nosniff",
        "content-security-policy: default-src 'none'; frame-ancestors 'none'",
    ] {
        assert!(refused.head.contains(header), "{}", refused.head);
    }
    running.stop().await;
}

#[tokio::test]
async fn garbage_is_refused_and_the_next_request_answered() {
    let running = start(json!({ "admin": "127.0.0.1:0" }), json!({})).await.unwrap();
    let at = running.address("admin").unwrap();
    let network = Network::default();
    let long = format!("GET /livez HTTP/1.1\r\nhost: {at}\r\nx: {}\r\n\r\n", "x".repeat(64 * 1024));
    let body = format!("POST /livez HTTP/1.1\r\nhost: {at}\r\ncontent-length: 999999999\r\n\r\n");
    for bytes in [
        &b"\x00\x01\x02\xff\xfe\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        long.as_bytes(),
        body.as_bytes(),
    ] {
        let received = exchange(&network, at, bytes).await;
        let received = String::from_utf8_lossy(&received);
        assert!(received.is_empty() || received.starts_with("HTTP/1.1 4"), "{received}");
        assert_eq!(statuses(at, &[]).await, [200; 4]);
    }
    running.stop().await;
}

/// Each of them sends a byte a second, and connects again when it is closed.
#[tokio::test(start_paused = true)]
async fn a_thousand_slow_peers_delay_neither_calls_nor_probes() {
    let mesh = Mesh::new();
    let at = "memory:stock-1-admin";
    let listen = json!({ "grpc": "memory:stock-1", "http": "memory:stock-1", "admin": at });
    let stock = mesh.server("stock", "stock-1").listen(listen).start().await;
    let mut slow = Vec::new();
    for _ in 0..1_000 {
        let network = mesh.network.clone();
        slow.push(tokio::spawn(async move {
            loop {
                let Ok(mut stream) = network.connect(at).await else { return };
                for byte in b"GET /livez HTTP/1.1\r\nhost: admin\r\nx-slow: yes".chunks(1) {
                    if stream.write_all(byte).await.is_err() {
                        break;
                    }
                    sleep(SECOND).await;
                }
            }
        }));
    }
    let caller = mesh.caller("").await;
    for _ in 0..60 {
        sleep(SECOND).await;
        let asked = tokio::time::Instant::now();
        assert_eq!(ask(&mesh.network, at, "/livez", &[]).await.status, 200);
        assert!(asked.elapsed() < SECOND / 10, "{:?}", asked.elapsed());
        for wire in [Wire::Grpc, Wire::Rest] {
            all_well(&caller.calls(wire, 2, || Ask::to("stock")).await);
        }
    }
    slow.iter().for_each(tokio::task::JoinHandle::abort);
    stock.stop().await;
}

const PAGES: [&str; 22] = [
    "/",
    "/livez?verbose",
    "/readyz?verbose",
    "/startupz?verbose",
    "/healthz?verbose",
    "/metrics",
    "/version",
    "/admin/v1/status",
    "/admin/v1/inbound",
    "/admin/v1/outbound",
    "/admin/v1/outbound/stock",
    "/admin/v1/breakers",
    "/admin/v1/limits",
    "/admin/v1/budgets",
    "/admin/v1/routes",
    "/admin/v1/faults",
    "/admin/v1/registry",
    "/admin/v1/config",
    "/admin/v1/config/versions",
    "/admin/v1/config/diff?from=1&to=2",
    "/admin/v1/config/schema",
    "/nothing",
];

/// A service at `memory:orders` that calls `stock`, with an admin surface in memory.
async fn orders(mesh: &Mesh, config: &str) -> Server {
    let at = "memory:orders";
    let listen = json!({ "grpc": at, "http": at, "admin": "memory:admin" });
    mesh.server("orders", "orders-1").listen(listen).config(config).calls(&["stock"]).start().await
}

#[tokio::test(start_paused = true)]
async fn the_state_of_a_process() {
    let mesh = Mesh::new();
    let _stock = mesh.server("stock", "stock-1").label("track", "stable").start().await;
    let settings = "
inbound: { rate_limits: [ { name: all, rate: 100/s, burst: 7 } ] }
outbound:
  services:
    stock:
      timeout: 300ms
      concurrency: 9
      routes: [ { name: steady, to: { track: stable } } ]
faults: [ { name: slow, to: stock, delay: 10ms, until: 1h } ]
";
    let orders = orders(&mesh, settings).await;
    let caller = mesh.caller("").await;
    for wire in [Wire::Grpc, Wire::Rest] {
        all_well(&caller.calls(wire, 2, || Ask::to("orders").via(&[(wire, "stock")])).await);
    }
    let read = async |path: &str| {
        let answer = ask(&mesh.network, "memory:admin", &format!("/admin/v1/{path}"), &[]).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert!(answer.head.contains("content-type: application/json\r\n"), "{}", answer.head);
        answer.json()
    };
    let inbound = read("inbound").await;
    assert_eq!((&inbound["limits"][0]["rule"], &inbound["limits"][0]["burst"]), (&json!("all"), &json!(7)));
    let operations = inbound["operations"].as_array().unwrap();
    let counted = |metric: &str| {
        let of = operations.iter().filter(|it| it["metric"] == metric);
        of.map(|it| it["count"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(counted("rpc_server_call_duration_seconds"), 2, "{inbound}");
    assert_eq!(counted("http_server_request_duration_seconds"), 2, "{inbound}");
    let outbound = read("outbound").await;
    let services = outbound["services"].as_array().unwrap();
    assert!(services.iter().all(|it| it["service"] == "stock" && it["ready"] == 1), "{outbound}");
    assert_eq!(services.len(), 2, "one for each protocol: {outbound}");
    let stock = read("outbound/stock").await;
    assert_eq!(stock["protocols"][0]["nodes"][0]["id"], "stock-1");
    assert!(stock["protocols"][0]["nodes"][0]["p50"].as_f64().is_some_and(|it| it < 1.0), "{stock}");
    assert_eq!(stock["concurrency"][0]["limit"], 9);
    let attempts = stock["attempts"].as_array().unwrap();
    assert_eq!(attempts.iter().map(|it| it["value"].as_f64().unwrap()).sum::<f64>(), 4.0);
    assert_eq!(read("breakers").await["circuits"][0]["state"], "closed");
    assert_eq!(read("limits").await["concurrency"][0]["in_use"], 0);
    let budgets = read("budgets").await;
    let budget = budgets["budgets"].as_array().unwrap().iter().find(|it| it["service"] == "stock").unwrap();
    assert_eq!((&budget["calls"], &budget["retries"]), (&json!(4), &json!(0)));
    assert!(budget["available"].as_u64().unwrap() >= 100, "ten a second, for ten seconds: {budget}");
    let routes = read("routes").await;
    assert_eq!(routes["services"][0]["rules"][0], json!({ "name": "steady", "hits": 4 }));
    let fault = read("faults").await["faults"][0].clone();
    assert_eq!(
        (&fault["name"], &fault["delayed"], &fault["is_over"]),
        (&json!("slow"), &json!(4), &json!(false))
    );
    assert!(fault["remaining"].as_f64().is_some_and(|it| (3500.0..=3600.0).contains(&it)), "{fault}");
    let registry = read("registry").await;
    assert_eq!((&registry["status"], &registry["instance"]), (&json!("up"), &json!("orders-1")));
    orders.running.take_out_of_service().await.unwrap();
    assert_eq!(read("registry").await["status"], "out_of_service");

    let of = |config: &Value, path: &str| {
        let settings = config["settings"].as_array().unwrap().clone();
        settings.into_iter().find(|it| it["path"] == path)
    };
    let config = read("config").await;
    let timeout = of(&config, "outbound.services.stock.timeout").unwrap();
    assert_eq!(
        timeout,
        json!({ "path": "outbound.services.stock.timeout", "value": "300ms", "origin": "pushed:6:16" })
    );
    let version = config["version"].as_u64().unwrap();
    orders.push(&settings.replace("300ms", "250ms")).await;
    orders.push(&settings.replace("300ms", "250")).await;
    let versions = read("config/versions").await["versions"].as_array().unwrap().clone();
    let outcomes: Vec<_> = versions.iter().map(|it| it["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["applied", "applied", "refused"]);
    assert!(versions[2]["why"][0].as_str().unwrap().contains("`250` has no unit"), "{}", versions[2]);
    let diff = read(&format!("config/diff?from={version}&to={}", version + 1)).await;
    let change = &diff["changes"][0];
    assert_eq!((&change["old"], &change["new"]), (&json!("300ms"), &json!("250ms")), "{diff}");
    for (query, status) in [("", 400), ("?from=1", 400), ("?from=x&to=1", 400), ("?from=1&to=99", 404)] {
        let path = format!("/admin/v1/config/diff{query}");
        assert_eq!(ask(&mesh.network, "memory:admin", &path, &[]).await.status, status, "{query}");
    }
    assert_eq!(ask(&mesh.network, "memory:admin", "/admin/v1/outbound/nothing", &[]).await.status, 404);
    if cfg!(feature = "cli") {
        let schema = read("config/schema").await;
        assert!(schema["properties"]["admin"]["properties"]["token_file"].is_object(), "{schema}");
    }
    // Each page that `/` lists is there.
    let list = ask(&mesh.network, "memory:admin", "/", &[]).await;
    for path in list.text().lines().map(|line| line.split(' ').next().unwrap()) {
        if path != "/admin/v1/events" {
            let status = ask(&mesh.network, "memory:admin", path, &[]).await.status;
            assert!(
                status == 200 || status == 400 || path == "/readyz" || path == "/healthz",
                "{path}: {status}"
            );
        }
    }
    orders.stop().await;
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "nothing reads what was planted")]
struct Shop {
    licence: Secret,
    password: String,
    note: String,
}

#[tokio::test]
async fn no_page_shows_a_secret() {
    let mesh = Mesh::new();
    let temp = tempfile::tempdir().unwrap();
    let canary = |number: usize| format!("canary{number:02}");
    let file = |number: usize| {
        let path = temp.path().join(format!("file{number}"));
        std::fs::write(&path, canary(number)).unwrap();
        format!("${{file:{}}}", path.display())
    };
    let settings = |timeout: &str| {
        format!(
            "
shop: {{ licence: '{}', password: {}, note: '{}' }}
matches: {{ beta: {{ header: {{ authorization: {}, x-tenant: '{}' }} }} }}
outbound:
  services:
    stock:
      timeout: {timeout}
      fallback: {{ status: 200, body: '{}' }}
faults: [ {{ name: teapot, match: beta, abort: {{ status: 418, message: '{}' }} }} ]
x-notes: {{ api_key: {}, client-secret: [ {}, {} ], tokens: {{ a: {} }} }}
",
            file(1),
            canary(2),
            file(3),
            canary(4),
            file(5),
            file(6),
            file(7),
            canary(8),
            canary(9),
            canary(10),
            canary(11),
        )
    };
    let token = temp.path().join("token");
    std::fs::write(&token, "canary12-canary12").unwrap();
    let admin = json!({ "admin": { "token_file": token } });
    let at = "memory:orders";
    let listen = json!({ "grpc": at, "http": at, "admin": "memory:admin" });
    let plan = mesh.server("orders", "orders-1").listen(listen).config(&settings("300ms"));
    let plan = plan.with(move |builder| builder.settings(admin).section(Section::<Shop>::new("shop")));
    let orders = plan.start().await;
    orders.push(&settings("250ms")).await;
    // Refused: the problems quote what is wrong.
    for wrong in ["250", "${file:/nowhere/canary-none}"] {
        orders.push(&settings(wrong)).await;
    }
    orders.push(&settings("300ms").replace("password: ", "pasword: ")).await;
    orders.push(&settings("300ms").replace("password: canary02", "password: [canary13]")).await;
    let mut shown = String::new();
    for path in PAGES {
        for accept in ["accept: application/json", "accept: application/openmetrics-text"] {
            let answer = ask(&mesh.network, "memory:admin", path, &[accept]).await;
            shown.push_str(&format!("{path} {}\n{}\n", answer.head, answer.text()));
        }
    }
    shown.push_str(&first_events(&mesh.network, "memory:admin", &[]).await);
    assert!(
        shown.contains("outbound.services.stock.fallback.body") && shown.contains("config_refused"),
        "{shown}"
    );
    let found: Vec<_> = (1..=13).map(canary).filter(|canary| shown.contains(canary)).collect();
    assert_eq!(found, Vec::<String>::new(), "{shown}");
    orders.stop().await;
}

/// The first bytes of the stream of events.
async fn first_events(network: &Network, address: &str, lines: &[&str]) -> String {
    let mut stream = network.connect(address).await.unwrap();
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!("GET /admin/v1/events HTTP/1.1\r\nhost: admin\r\n{lines}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut received = Vec::new();
    while timeout(SECOND / 2, stream.read_buf(&mut received)).await.is_ok_and(|read| read.unwrap_or(0) > 0) {}
    String::from_utf8(received).unwrap()
}

#[tokio::test(start_paused = true)]
async fn events_go_on_where_a_reader_was() {
    let mesh = Mesh::new();
    let stock = orders(&mesh, "").await;
    let events = stock.runtime().events().clone();
    let emit = |number: usize| events.emit(Event::FaultInjected { rule: format!("rule-{number}") });
    (1..=3).for_each(emit);
    let first = first_events(&mesh.network, "memory:admin", &[]).await;
    assert!(
        first.contains("content-type: text/event-stream\r\n") && first.contains("retry: 1000\n"),
        "{first}"
    );
    assert!(first.contains("event: fault_injected\ndata: {\"at\":\""), "{first}");
    assert!(first.contains("\"level\":\"debug\",\"message\":\"fault `rule-3` injected\""), "{first}");
    let last = first.lines().filter_map(|line| line.strip_prefix("id: ")).next_back().unwrap();
    (4..=5).for_each(emit);
    let id = format!("last-event-id: {last}");
    let next = first_events(&mesh.network, "memory:admin", &[&id]).await;
    let rules = |text: &str| (1..=5).filter(|n| text.contains(&format!("rule-{n}`"))).collect::<Vec<_>>();
    assert_eq!((rules(&first), rules(&next)), (vec![1, 2, 3], vec![4, 5]));
    // An id of another process says nothing here.
    for other in ["0-4", "nonsense", "-", "18446744073709551616-1"] {
        let id = format!("last-event-id: {other}");
        assert_eq!(
            rules(&first_events(&mesh.network, "memory:admin", &[&id]).await),
            [1, 2, 3, 4, 5],
            "{other}"
        );
    }
    // A reader that was away for too long learns how many it has missed.
    (0..600).for_each(emit);
    let late = first_events(&mesh.network, "memory:admin", &[&format!("last-event-id: {last}")]).await;
    assert!(late.contains("event: missed\ndata: {\"count\":102}"), "{}", &late[..late.len().min(500)]);

    // Readers are bounded, and end with the process.
    let mut readers = Vec::new();
    for _ in 0..16 {
        let network = mesh.network.clone();
        readers.push(tokio::spawn(async move {
            let request = "GET /admin/v1/events HTTP/1.1\r\nhost: admin\r\n\r\n";
            exchange(&network, "memory:admin", request.as_bytes()).await
        }));
    }
    sleep(SECOND).await;
    let one_more = ask(&mesh.network, "memory:admin", "/admin/v1/events", &[]).await;
    assert_eq!(one_more.status, 503, "{}", one_more.text());
    assert_eq!(ask(&mesh.network, "memory:admin", "/livez", &[]).await.status, 200);
    let began = tokio::time::Instant::now();
    stock.stop().await;
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    for reader in readers {
        assert!(reader.await.unwrap().ends_with(b"0\r\n\r\n"), "the stream ends in good order");
    }
}
