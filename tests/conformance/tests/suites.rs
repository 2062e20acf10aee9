//! The suites, run against chassis servers. Each prints how many of its cases passed, and which failed.
//!
//! `scripts/setup` builds them and sets their paths in the variables `CHASSIS_PEER_*`.
#![allow(clippy::unwrap_used)]
#[macro_use]
#[path = "../../interop/trials.rs"]
mod trials;

use std::{
    ffi::OsString,
    process::{ExitCode, Stdio},
    time::Duration,
};

use axum::{Router, routing::any};
use chassis::{Chassis, document::Environment};
use serde_json::json;
use tokio::{process::Command, time::timeout};
use trials::{NotRun, Ran};

trials! {
    grpc_servers
    http2_servers
}

/// Of 374 cases. Two of the others require that a server counts the messages of a unary call, which tonic's
/// services do not.
const GRPC_LEAST: u32 = 370;
/// Of 146 cases, including those of its strict mode.
const HTTP2_LEAST: u32 = 145;
/// The length of an answer. It is longer than the window of a stream, so a stream stays open until the suite enlarges
/// its window. After a shorter one it depends on the scheduler whether a case finds its stream open, and a server
/// ignores frames of a closed stream.
const LONGER_THAN_A_WINDOW: usize = 70_000;
/// More than ten times the duration of the slower one.
const PATIENCE: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    trials::run([trials()])
}

/// `connectconformance` calls the service of `src/service.rs` with two clients, connect-go's and grpc-go's.
async fn grpc_servers() -> Ran {
    let suite = program("CONNECTCONFORMANCE")?;
    if option_env!("CHASSIS_PEER_CONFORMANCE_PROTOS").is_none_or(str::is_empty) {
        return Err(NotRun("built without CHASSIS_PEER_CONFORMANCE_PROTOS, see scripts/setup".to_owned()));
    }
    let mut command = Command::new(suite);
    command.args(["--mode", "server", "--conf", concat!(env!("CARGO_MANIFEST_DIR"), "/grpc.yaml"), "--"]);
    let printed = printed_by(command.arg(env!("CARGO_BIN_EXE_conformance-server"))).await;
    for line in printed.lines().filter(|line| line.starts_with("FAILED: ")) {
        println!("connectconformance: {line}");
    }
    // "Total cases: 374", then "370 passed, 4 failed".
    let total = number(&printed, |words| words.strip_prefix("Total cases: "));
    let passed = number(&printed, |words| words.split_once(" passed, ").map(|(passed, _)| passed));
    println!("connectconformance: {passed} of {total} cases passed");
    assert_eq!(total, 374, "another suite than the one that `scripts/setup` builds\n{printed}");
    assert!(passed >= GRPC_LEAST, "{passed} passed; at least {GRPC_LEAST} have to\n{printed}");
    Ok(())
}

/// `h2spec` sends every kind of frame, valid and invalid, to a REST server.
async fn http2_servers() -> Ran {
    let suite = program("H2SPEC")?;
    let settings = json!({ "registry": { "kind": "memory" }, "listen": { "http": "127.0.0.1:0" } });
    let builder = Chassis::builder("conformance").environment(Environment::default()).without_file();
    let app = builder.settings(settings).build().await.unwrap();
    let server = app
        .serve_http(Router::new().route("/", any(async || "x".repeat(LONGER_THAN_A_WINDOW))))
        .start()
        .await
        .unwrap();
    let (host, port) = server.address("http").and_then(|at| at.rsplit_once(':')).unwrap();
    let mut command = Command::new(suite);
    let printed = printed_by(command.args(["--strict", "--host", host, "--port", port])).await;
    // Each is printed twice: where it ran, and at the end.
    let failures = printed.split_once("Failures:").map_or("", |(_, failures)| failures);
    for line in failures.lines().filter(|line| line.contains('×')) {
        println!("h2spec: FAILED: {}", line.trim());
    }
    // "146 tests, 145 passed, 0 skipped, 1 failed"
    let total = number(&printed, |words| words.split_once(" tests, ").map(|(total, _)| total));
    let passed =
        number(&printed, |words| words.split_once(" tests, ")?.1.split_once(" passed").map(|it| it.0));
    println!("h2spec: {passed} of {total} cases passed");
    assert_eq!(total, 146, "another suite than the one that `scripts/setup` builds\n{printed}");
    assert!(passed >= HTTP2_LEAST, "{passed} passed; at least {HTTP2_LEAST} have to\n{printed}");
    server.stop().await;
    Ok(())
}

fn program(name: &str) -> Result<OsString, NotRun> {
    let variable = format!("CHASSIS_PEER_{name}");
    let found = std::env::var_os(&variable).filter(|path| !path.is_empty());
    found.ok_or_else(|| NotRun(format!("{variable} is not set, see scripts/setup")))
}

/// The output of `command`, with any exit status: suites fail when one of their cases does.
async fn printed_by(command: &mut Command) -> String {
    let ended = timeout(PATIENCE, command.stdin(Stdio::null()).kill_on_drop(true).output()).await;
    let output = ended.unwrap_or_else(|_| panic!("{command:?} did not end")).unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// The number that `find` finds in a line.
fn number(printed: &str, find: impl Fn(&str) -> Option<&str>) -> u32 {
    let found = printed.lines().rev().find_map(|line| find(line.trim())?.parse().ok());
    found.unwrap_or_else(|| panic!("it printed no such number:\n{printed}"))
}
