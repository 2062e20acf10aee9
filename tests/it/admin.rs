//! The admin surface: who reaches what, during the whole life of a service, and under attack.
use std::{io::Read, time::Duration};

use axum::Router;
use chassis::{
    Chassis, ChassisBuilder, Running, StartError,
    health::{CheckConfig, CheckStatus},
    http::connector::{Connector, Network},
    registry::{Membership, Registry},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};

use crate::mesh::{Act, Ask, Mesh, Wire, all_well, until};

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
