//! The smaller examples.
use std::process::Stdio;

use chassis::registries::{LocalConfig, LocalRegistry};
use chassis::registry::{Membership, Registry};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::timeout,
};

use crate::process::{PATIENCE, example, succeed, until};

#[tokio::test]
async fn a_third_protocol_is_under_the_same_rules() {
    let printed = succeed(&mut example("line_protocol").await).await;
    assert_eq!(
        printed,
        "routes:  [\"quiet: hello\", \"loud: hello\"]\n\
         limit:   4 of 8 refused, RATE_LIMITED\n\
         breaker: 15 of 20 refused by the open circuit, 5 reached a handler\n"
    );
}

#[tokio::test]
async fn the_first_service_finds_itself_answers_and_stops_on_a_signal() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("registry");
    let mut service = example("first_service").await;
    service.env("CHASSIS_REGISTRY__KIND", "local").env("CHASSIS_REGISTRY__DIR", &dir);
    service.env("CHASSIS_LISTEN__HTTP", "127.0.0.1:0").env("CHASSIS_LISTEN__GRPC", "127.0.0.1:0");
    service.current_dir(temp.path()).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    let mut service = service.spawn().unwrap();

    let registry = LocalRegistry::new(LocalConfig { dir: Some(dir), ..LocalConfig::default() });
    let mut stock = registry.watch("stock").await.unwrap();
    let up = async {
        loop {
            if let Membership::Known(instances) = stock.next().await.unwrap()
                && let [instance] = &instances[..]
            {
                return instance.addresses["http"].to_owned();
            }
        }
    };
    let address = timeout(PATIENCE, up).await.expect("it does not register");
    // It reads its registry five times a second, and may have started between two reads.
    until("it finds itself", async || get(&address, "/stock/apple").await.starts_with("HTTP/1.1 200")).await;
    let answer = get(&address, "/stock/apple").await;
    assert!(answer.ends_with("\r\n\r\n7 of apple left\n"), "{answer}");

    let pid = service.id().unwrap().to_string();
    succeed(Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid])).await;
    assert!(timeout(PATIENCE, service.wait()).await.expect("it does not stop").unwrap().success());
    assert_eq!(timeout(PATIENCE, stock.next()).await.unwrap().unwrap(), Membership::Known(vec![]));
}

/// The whole answer, unparsed.
async fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: stock\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
