//! The commands that the quickstart prints work: with curl, and with a grpcurl.
use std::path::Path;

use tokio::process::Command;

use crate::{peer::program, process::succeed, shop::Shop, trials::Ran};

trials! {
    lines_for_curl
    lines_for_grpcurl
}

async fn lines_for_curl() -> Ran {
    let curl = program("CURL")?.into_string().unwrap();
    let program = format!("{curl} --silent --show-error --noproxy '*' --fail");
    check("curl", 3, &program, |command| match command {
        _ if command.contains("x-canary") => r#""track":"canary""#,
        _ if command.ends_with("/inspect") => r#""id":"stock-flaky""#,
        _ => r#""sku":"apple","left":105"#,
    })
    .await;
    Ok(())
}

/// A Python script that uses reflection as grpcurl does.
async fn lines_for_grpcurl() -> Ran {
    let python = program("PYTHON")?.into_string().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/examples/grpcurl.py");
    let program = format!("{python} -B {}", script.display());
    check("grpcurl", 2, &program, |command| match command {
        _ if command.ends_with(" list") => "shop.v1.Stock\n",
        _ => r#""instance": "stock-1""#,
    })
    .await;
    Ok(())
}

/// Runs by `program` the `count` lines that begin with `name`; each must print the expected output.
async fn check(name: &str, count: usize, program: &str, expected: impl Fn(&str) -> &'static str) {
    let shop = Shop::open().await;
    let mut ran = 0;
    for command in &shop.commands {
        let Some((first, rest)) = command.split_once(' ').filter(|(first, _)| *first == name) else {
            continue;
        };
        let answer = succeed(Command::new("sh").args(["-c", &format!("{program} {rest}")])).await;
        assert!(answer.contains(expected(command)), "{first}: {command}\n{answer}");
        ran += 1;
    }
    assert_eq!(ran, count, "lines for {name} in {:?}", shop.commands);
}
