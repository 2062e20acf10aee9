//! The README's first service, made in an empty directory, built and run.
use std::{collections::BTreeSet, process::Stdio, sync::Mutex};

use chassis::{
    registries::{LocalConfig, LocalRegistry},
    registry::{Membership, Registry},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::timeout,
};

use crate::{
    made::Made,
    page::files,
    process::{PATIENCE, until},
};

pub(crate) const README: &str = include_str!("../../README.md");

/// Both crates of these tests are called `stock` and share their target: one at a time.
pub(crate) static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The crate that the README shows.
pub(crate) fn made() -> Made {
    let made = Made::new();
    let mut written = BTreeSet::new();
    for (path, text) in files(README) {
        made.write(path, &text);
        assert!(written.insert(path), "the README shows {path} twice");
    }
    assert_eq!(written, ["Cargo.toml", "build.rs", "proto/shop.proto", "src/main.rs"].into());
    made
}

#[test]
fn a_crate_of_ones_own_builds_and_runs() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let made = made();
    made.cargo(&["build"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(runs(&made));
}

async fn runs(made: &Made) {
    let dir = made.dir().join("registry");
    let mut service = Command::new(made.program("stock"));
    for (variable, _) in
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CHASSIS_"))
    {
        service.env_remove(variable);
    }
    service.env("CHASSIS_REGISTRY__KIND", "local").env("CHASSIS_REGISTRY__DIR", &dir);
    service.env("CHASSIS_LISTEN__HTTP", "127.0.0.1:0").env("CHASSIS_LISTEN__GRPC", "127.0.0.1:0");
    service.env("container", "this-test");
    service.current_dir(made.dir()).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut service = service.spawn().unwrap();
    let mut stdout = service.stdout.take().unwrap();

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
    until("it finds itself", async || get(&address).await.starts_with("HTTP/1.1 200")).await;
    let shown = README.lines().skip_while(|line| !line.starts_with("$ curl http")).nth(1).unwrap();
    let answer = get(&address).await;
    assert!(answer.ends_with(&format!("\r\n\r\n{shown}\n")), "{answer}");

    let pid = service.id().unwrap().to_string();
    assert!(Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid]).status().await.unwrap().success());
    assert!(timeout(PATIENCE, service.wait()).await.expect("it does not stop").unwrap().success());

    let mut printed = String::new();
    stdout.read_to_string(&mut printed).await.unwrap();
    assert!(printed.contains(&format!("http at {address}")), "where it is reached is not said:\n{printed}");
    let warning = printed.lines().find(|line| line.contains("in a container")).unwrap_or_default();
    for part in
        ["WARN", &format!("`listen.http` is bound to {address}"), "registry `local` sees the services of"]
    {
        assert!(warning.contains(part), "{part}:\n{printed}");
    }
}

/// The whole answer, unparsed.
async fn get(address: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = "GET /stock/apple HTTP/1.1\r\nhost: stock\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
