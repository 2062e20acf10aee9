//! Contracts on registry servers: the port, several servers, and requests by hand.
use std::sync::{Arc, Mutex};

use chassis_core::{
    contracts::{Contract, ContractOwner, Contracts, ContractsErrorKind, Existing, FILE_DESCRIPTOR_SET},
    registry::Registry,
    testing::contract::contracts::contracts,
    units::Size,
};
use chassis_ttl::{TtlConfig, TtlContracts, TtlRegistry, TtlServerConfig};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::process::{PATIENCE, Process};

const API: &str = "/v1/contracts/api?service=stock&version=1.4.0";

fn port<'a>(servers: impl IntoIterator<Item = &'a Process>) -> TtlContracts {
    let servers = servers.into_iter().map(|server| &server.address);
    TtlContracts::new(TtlConfig::at(servers)).unwrap()
}

fn stock() -> ContractOwner {
    ContractOwner::new("stock", "1.4.0")
}

fn text(name: &str, content: &str) -> Contract {
    Contract::new(name, "text/plain", content.to_owned())
}

async fn publish(port: &TtlContracts, contracts: &[Contract]) {
    timeout(PATIENCE, port.publish(&stock(), contracts, Existing::Replace)).await.unwrap().unwrap();
}

async fn names(port: &TtlContracts) -> Vec<String> {
    let listed = timeout(PATIENCE, port.list(&stock())).await.unwrap().unwrap();
    listed.into_iter().map(|entry| entry.name).collect()
}

#[tokio::test]
async fn one_server_keeps_the_contract() {
    let processes = Mutex::new(Vec::new());
    contracts(async || {
        let server = Process::start().await;
        let port = Arc::new(port([&server]));
        processes.lock().unwrap().push(server);
        port as _
    })
    .await;
}

#[tokio::test]
async fn two_servers_keep_the_contract() {
    let processes = Mutex::new(Vec::new());
    contracts(async || {
        let servers = [Process::start().await, Process::start().await];
        let port = Arc::new(port(&servers));
        processes.lock().unwrap().push(servers);
        port as _
    })
    .await;
}

/// The registry has the port only where its settings say so.
#[tokio::test]
async fn the_settings_switch_them_on() {
    let server = Process::start().await;
    let config = TtlConfig::at([&server.address]);
    assert!(TtlRegistry::new(config.clone()).unwrap().contracts().is_none());
    let on = TtlRegistry::new(TtlConfig { contracts: true, ..config }).unwrap().contracts().unwrap();
    on.publish(&stock(), &[text("api", "x")], Existing::Replace).await.unwrap();
    assert_eq!(on.versions("stock", "").await.unwrap(), ["1.4.0"]);
}

#[tokio::test]
async fn contracts_survive_a_restart_and_come_back_after_a_loss() {
    let mut server = Process::start().await;
    let port = port([&server]);
    let binary = Contract::new("descriptors", FILE_DESCRIPTOR_SET, (0..=255).collect::<Vec<u8>>());
    publish(&port, &[binary.clone(), text("api", "x")]).await;
    server.kill();
    let error = timeout(PATIENCE, port.fetch(&stock(), "api")).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ContractsErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains(&server.address), "{error}");
    server.run().await;
    let fetched = timeout(PATIENCE, async {
        loop {
            if let Ok(contract) = port.fetch(&stock(), "descriptors").await {
                return contract;
            }
        }
    });
    assert_eq!(fetched.await.unwrap(), binary);
    assert_eq!(names(&port).await, ["api", "descriptors"]);
    server.kill();
    let folder = server.snapshot().with_extension("json.contracts");
    std::fs::remove_dir_all(folder).unwrap();
    server.run().await;
    let again = timeout(PATIENCE, async {
        while port.publish(&stock(), &[text("api", "x")], Existing::Keep).await.is_err() {}
    });
    again.await.unwrap();
    assert_eq!(names(&port).await, ["api"]);
}

#[tokio::test]
async fn one_of_several_servers_is_enough() {
    let mut servers = [Process::start().await, Process::start().await];
    let port = port(&servers);
    publish(&port, &[text("api", "1")]).await;
    servers[0].kill();
    publish(&port, &[text("api", "2"), text("more", "2")]).await;
    assert_eq!(names(&port).await, ["api", "more"]);
    assert_eq!(port.fetch(&stock(), "api").await.unwrap().content, "2");
    let missing = port.fetch(&stock(), "other").await.unwrap_err();
    assert_eq!(missing.kind(), ContractsErrorKind::Unavailable, "the other server may have it: {missing}");
    servers[0].run().await;
    // Contracts that it lacks come with the next look for missing ones; those that it has stay.
    let both = [text("api", "2"), text("more", "2")];
    let healed = timeout(PATIENCE, async {
        loop {
            port.publish(&stock(), &both, Existing::Keep).await.unwrap();
            if names(&self::port([&servers[0]])).await.len() == 2 {
                return;
            }
        }
    });
    healed.await.unwrap();
    assert_eq!(self::port([&servers[0]]).fetch(&stock(), "api").await.unwrap().content, "1");
    publish(&port, &both).await;
    assert_eq!(self::port([&servers[0]]).fetch(&stock(), "api").await.unwrap().content, "2");
    servers[0].kill();
    servers[1].kill();
    for error in [
        port.list(&stock()).await.unwrap_err(),
        port.versions("stock", "").await.unwrap_err(),
        port.publish(&stock(), &both, Existing::Keep).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ContractsErrorKind::Unavailable, "{error}");
    }
}

/// An equal contract is found by its hash.
#[tokio::test]
async fn an_equal_contract_is_not_sent_again() {
    let server = Process::start().await;
    let file = |server: &Process| {
        let folder = server.snapshot().with_extension("json.contracts");
        let mut files = std::fs::read_dir(folder).unwrap();
        let file = files.next().unwrap().unwrap();
        assert!(files.next().is_none());
        std::fs::read_to_string(file.path()).unwrap()
    };
    let port = port([&server]);
    publish(&port, &[text("api", "x")]).await;
    let first = file(&server);
    for _ in 0..3 {
        publish(&port, &[text("api", "x")]).await;
    }
    assert_eq!(file(&server), first, "it was not written again");
    publish(&port, &[text("api", "y")]).await;
    assert_ne!(file(&server), first);
}

/// Passes bytes on to `server`, and keeps those of its callers.
async fn passing(server: &str) -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (server, sent) = (server.to_owned(), Arc::new(Mutex::new(Vec::new())));
    let seen = sent.clone();
    tokio::spawn(async move {
        while let Ok((from, _)) = listener.accept().await {
            let to = TcpStream::connect(&server).await.unwrap();
            let ((mut requests, mut answers), (mut answered, mut up)) = (from.into_split(), to.into_split());
            let seen = seen.clone();
            tokio::spawn(async move {
                let _ = tokio::io::copy(&mut answered, &mut answers).await;
            });
            tokio::spawn(async move {
                let mut part = vec![0; 4_096];
                while let Ok(length @ 1..) = requests.read(&mut part).await {
                    seen.lock().unwrap().extend_from_slice(&part[..length]);
                    if up.write_all(&part[..length]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, sent)
}

#[tokio::test]
async fn an_equal_contract_is_not_on_the_wire_again() {
    let server = Process::start().await;
    let (address, sent) = passing(&server.address).await;
    let port = TtlContracts::new(TtlConfig::at([&*address])).unwrap();
    let (first, second) = ("openapi: the first text", "openapi: the second text");
    let count = |content: &str| {
        let sent = sent.lock().unwrap();
        sent.windows(content.len()).filter(|part| *part == content.as_bytes()).count()
    };
    for _ in 0..3 {
        publish(&port, &[text("api", first)]).await;
        port.publish(&stock(), &[text("api", first)], Existing::Keep).await.unwrap();
        port.publish(&stock(), &[text("api", second)], Existing::Keep).await.unwrap();
    }
    assert_eq!((count(first), count(second)), (1, 0));
    publish(&port, &[text("api", second)]).await;
    assert_eq!((count(first), count(second)), (1, 1));
}

/// A proxy before the server may answer so for a moment.
#[tokio::test]
async fn a_request_that_a_server_finds_malformed_is_sent_again_later() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let proxy = axum::Router::new().fallback(async || axum::http::StatusCode::BAD_REQUEST);
    tokio::spawn(async move { axum::serve(listener, proxy).await });
    let port = TtlContracts::new(TtlConfig::at([&*address])).unwrap();
    let (of, api) = (stock(), [text("api", "x")]);
    let sent = timeout(PATIENCE, port.publish(&of, &api, Existing::Replace)).await;
    let error = sent.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.is_permanent()), (ContractsErrorKind::Refused, false), "{error}");
    assert!(error.to_string().contains("400"), "{error}");
    let invalid = port.publish(&stock(), &[text("a/b", "x")], Existing::Replace).await.unwrap_err();
    assert_eq!(invalid.kind(), ContractsErrorKind::Invalid, "{invalid}");
}

#[tokio::test]
async fn requests_by_hand_follow_the_rules_of_http() {
    let server = Process::start().await;
    let raw = async |method: &str, path: &str, headers: &str, body: &str| {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: r\r\nconnection: close\r\n{headers}");
        server.exchange(&format!("{head}content-length: {}\r\n\r\n{body}", body.len())).await
    };
    assert_eq!(raw("GET", API, "", "").await.0, 404);
    let (status, head, answer) = raw("PUT", API, "content-type: text/x; a=b\r\n", "one").await;
    let hash = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"; // sha256sum of `one`
    assert_eq!((status, answer), (200, json!({ "etag": hash }).to_string()));
    assert!(head.contains(&format!("etag: \"{hash}\"")), "{head}");
    let (status, head, body) = raw("GET", API, "", "").await;
    assert_eq!((status, body.as_str()), (200, "one"));
    assert!(head.contains("content-type: text/x; a=b\r\n") && head.contains("nosniff"), "{head}");
    for known in [format!("\"{hash}\""), format!("W/\"{hash}\"")] {
        assert_eq!(raw("GET", API, &format!("if-none-match: {known}\r\n"), "").await.0, 304);
    }
    assert_eq!(raw("PUT", API, "if-none-match: *\r\n", "two").await.0, 412);
    let other = "/v1/contracts/api?service=stock&version=1.4.0&environment=staging";
    assert_eq!(raw("PUT", other, "", "two").await.0, 200);
    let (_, all) = server.ask("GET", "/v1/contracts?service=stock", "").await;
    assert_eq!(
        all[0],
        json!({ "service": "stock", "version": "1.4.0", "environment": "", "name": "api",
                "media_type": "text/x; a=b", "etag": hash, "bytes": 3 })
    );
    assert_eq!(all[1]["environment"], "staging");
    assert_eq!(all[1]["media_type"], "application/octet-stream");
    for (query, count) in [("", 2), ("?environment=staging", 1), ("?version=2", 0), ("?service=x", 0)] {
        let (_, listed) = server.ask("GET", &format!("/v1/contracts{query}"), "").await;
        assert_eq!(listed.as_array().map(Vec::len), Some(count), "{query}");
    }
    assert_eq!(raw("DELETE", API, "", "").await.0, 204);
    assert_eq!(raw("DELETE", API, "", "").await.0, 204);
    assert_eq!(raw("GET", API, "", "").await.0, 404);
}

#[tokio::test]
async fn contracts_have_bounds() {
    let config = TtlServerConfig {
        max_contracts: 3,
        max_contract: Size::from_kib(1),
        max_contract_versions: 2,
        ..TtlServerConfig::default()
    };
    let server = Process::start_with(config).await;
    let put = async |path: &str, body: &str| server.ask("PUT", &format!("/v1/contracts/{path}"), body).await;
    for (path, body, expected) in [
        ("api?service=stock", "", 400),
        ("a%2Fb?service=stock", "x", 400),
        ("..?service=stock", "x", 400),
        ("api", "x", 400),
        ("api?service=", "x", 400),
        (&*format!("api?service={}", "x".repeat(257)), "x", 400),
        ("api?service=stock", &*"x".repeat(1_025), 413),
        ("a?service=stock&version=1", "x", 200),
        ("a?service=stock&version=2", "x", 200),
        ("b?service=stock&version=2", "x", 200),
        ("a?service=billing", "x", 507),
        ("a?service=stock&version=3", "x", 200), // takes the place of the oldest version
    ] {
        let (status, answer) = put(path, body).await;
        assert_eq!(status, expected, "{path}: {answer}");
    }
    let port = port([&server]);
    assert_eq!(port.versions("stock", "").await.unwrap(), ["2", "3"]);
    let large = text("large", &"x".repeat(1_025));
    let error = port.publish(&stock(), &[large], Existing::Replace).await.unwrap_err();
    assert_eq!(error.kind(), ContractsErrorKind::TooLarge, "{error}");
    let full = ContractOwner::new("billing", "");
    let error = port.publish(&full, &[text("a", "x")], Existing::Replace).await.unwrap_err();
    assert_eq!(error.kind(), ContractsErrorKind::Refused, "{error}");
    let unfinished =
        server.send("PUT /v1/contracts/a?service=x HTTP/1.1\r\nhost: r\r\ncontent-length: 9\r\n\r\n{").await;
    assert_eq!(unfinished.0, 408);
}

#[tokio::test]
async fn a_token_is_needed_to_publish_and_to_fetch() {
    let config = TtlServerConfig { token: Some("secret".to_owned()), ..TtlServerConfig::default() };
    let server = Process::start_with(config).await;
    assert_eq!(server.ask("PUT", API, "x").await.0, 401);
    assert_eq!(server.ask("GET", "/v1/contracts", "").await.0, 401);
    let without = port([&server]);
    let error = without.publish(&stock(), &[text("api", "x")], Existing::Replace).await.unwrap_err();
    assert_eq!(error.kind(), ContractsErrorKind::Refused, "{error}");
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, "secret\n").unwrap();
    let with = TtlConfig { token_file: Some(token_file), ..TtlConfig::at([&server.address]) };
    let with = TtlContracts::new(with).unwrap();
    publish(&with, &[text("api", "x")]).await;
    assert_eq!(with.fetch(&stock(), "api").await.unwrap().content, "x");
}

/// A server that answers each connection with these bytes.
async fn answers(bytes: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(&bytes).await;
        }
    });
    address
}

#[tokio::test]
async fn servers_that_break_the_rules_are_errors_and_the_others_count() {
    let server = Process::start().await;
    publish(&port([&server]), &[text("api", "x")]).await;
    for bytes in [&b""[..], b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", &[0; 65_536]]
    {
        let rude = answers(bytes.to_vec()).await;
        let alone = TtlContracts::new(TtlConfig::at([&*rude])).unwrap();
        let error = timeout(PATIENCE, alone.fetch(&stock(), "api")).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ContractsErrorKind::Unavailable, "{error}");
        let both = TtlContracts::new(TtlConfig::at([&*rude, &server.address])).unwrap();
        assert_eq!(timeout(PATIENCE, both.fetch(&stock(), "api")).await.unwrap().unwrap().content, "x");
        assert_eq!(names(&both).await, ["api"]);
        publish(&both, &[text("api", "x")]).await;
    }
    let frozen = Process::start().await;
    let held = frozen.freeze();
    let both = TtlContracts::new(TtlConfig::at([&frozen.address, &server.address])).unwrap();
    assert_eq!(timeout(PATIENCE, both.fetch(&stock(), "api")).await.unwrap().unwrap().content, "x");
    drop(held);
    let _: Value = server.ask("GET", "/v1/contracts", "").await.1;
}
