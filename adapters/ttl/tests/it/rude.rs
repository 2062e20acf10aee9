//! Clients and servers that break the rules.
use std::time::Duration;

use chassis_core::registry::Registry;
use chassis_core::testing::server::until;
use chassis_core::units::Size;
use chassis_ttl::{TtlConfig, TtlRegistry, TtlServer, TtlServerConfig};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};

use crate::{
    process::{PATIENCE, Process},
    registry::registry,
};

#[tokio::test]
async fn bodies_have_bounds() {
    let config = TtlServerConfig { max_body: Size::from_kib(1), ..TtlServerConfig::default() };
    let server = Process::start_with(config).await;
    let post = async |body: &str| server.ask("POST", "/v1/services", body).await;
    let good = r#"{ "instance": { "id": "a", "service": "stock", "addresses": { "grpc": "h:1" } } }"#;
    for (body, expected) in [
        ("", 400),
        ("{", 400),
        ("[]", 400),
        (&*"[".repeat(1_000), 400),
        (r#"{ "instance": { "id": "a", "addresses": { "grpc": "h:1" } } }"#, 400),
        (r#"{ "instance": { "id": "a", "service": "stock", "addresses": { "grpc": "h:0" } } }"#, 400),
        (r#"{ "instance": { "id": "a", "service": "stock", "addresses": {} } }"#, 400),
        (
            r#"{ "instance": { "id": "a", "service": "stock", "addresses": { "grpc": "h:1" } }, "ttl": "0s" }"#,
            400,
        ),
        (&*format!("{good}{}", " ".repeat(1_000)), 413),
        (good, 201),
    ] {
        let (status, answer) = post(body).await;
        assert_eq!(status, expected, "{body}: {answer}");
        assert!(status == 201 || answer["error"].is_string(), "{body}: {answer}");
    }
    for (method, path, expected) in [
        ("GET", "/v1/watch", 400),
        ("GET", "/v1/watch?service=stock&from=x", 400),
        ("GET", "/v1/watch?service=stock&from=00.99", 410),
        ("GET", "/v1/nothing", 404),
        ("PATCH", "/v1/services", 405),
        ("PUT", "/v1/services/x/heartbeat", 404),
    ] {
        assert_eq!(server.ask(method, path, "").await.0, expected, "{path}");
    }
    assert_eq!(server.ids().await, ["a"]);
}

#[tokio::test]
async fn a_body_that_never_comes_is_given_up() {
    let server = Process::start().await;
    let begun = Instant::now();
    let (status, _) =
        server.send("POST /v1/services HTTP/1.1\r\nhost: r\r\ncontent-length: 9\r\n\r\n{").await;
    assert_eq!(status, 408);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn instances_and_watches_have_bounds() {
    let config = TtlServerConfig { max_instances: 2, max_watches: 3, ..TtlServerConfig::default() };
    let server = Process::start_with(config).await;
    let leases = [server.put("a", 1).await, server.put("b", 1).await];
    let body = r#"{ "instance": { "id": "c", "service": "stock", "addresses": { "grpc": "h:1" } } }"#;
    assert_eq!(server.ask("POST", "/v1/services", body).await.0, 507);
    server.put("a", 2).await; // one that is there is replaced
    server.delete(&leases[1]).await;
    assert_eq!(server.ask("POST", "/v1/services", body).await.0, 201);

    // Watches that read nothing hold up no other request, and their places are free when they go.
    let mut watches = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        stream.write_all(b"GET /v1/watch?service=stock HTTP/1.1\r\nhost: r\r\n\r\n").await.unwrap();
        let mut first = [0; 16];
        timeout(PATIENCE, stream.read_exact(&mut first)).await.unwrap().unwrap();
        assert_eq!(&first, b"HTTP/1.1 200 OK\r");
        watches.push(stream);
    }
    assert_eq!(server.ask("GET", "/v1/watch?service=stock", "").await.0, 503);
    for weight in 0..200 {
        server.put("a", weight).await;
    }
    drop(watches);
    let freed = Instant::now();
    let mut watcher = registry(&[&server]).watch("stock").await.unwrap();
    until(&mut watcher, &["a", "c"]).await;
    assert!(freed.elapsed() < Duration::from_secs(8), "{:?}", freed.elapsed());
}

#[tokio::test]
async fn a_snapshot_that_is_none_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry.json");
    for bad in ["", "{", "[]", r#"{ "version": 2, "instances": [] }"#] {
        std::fs::write(&path, bad).unwrap();
        let config = TtlServerConfig { snapshot: Some(path.clone()), ..TtlServerConfig::default() };
        let error = TtlServer::open(config).await.map(drop).unwrap_err().to_string();
        assert!(error.contains("registry.json"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), bad);
    }
}

/// A server that answers each connection with these bytes.
async fn answers(bytes: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(bytes).await;
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_server_that_is_none_is_an_error_and_the_others_count() {
    let server = Process::start().await;
    server.put("a", 1).await;
    for bytes in [&b""[..], b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n\r\n", &[0; 65_536]] {
        let other = answers(bytes).await;
        let alone = TtlRegistry::new(TtlConfig::at([&*other])).unwrap();
        let error = timeout(PATIENCE, alone.watch("stock").await.unwrap().next()).await.unwrap();
        assert!(error.unwrap_err().to_string().contains(&other));
        let both = TtlRegistry::new(TtlConfig::at([&*other, &server.address])).unwrap();
        until(&mut both.watch("stock").await.unwrap(), &["a"]).await;
    }
}
