//! The quickstart passes its own checks, the commands that it prints work, and it leaves no files or
//! processes.
use std::path::Path;

use tokio::{
    net::TcpStream,
    process::Command,
    time::{Instant, timeout},
};

use crate::{
    process::{PATIENCE, example, finish, succeed, until},
    shop::{Shop, dir},
};

/// Its actions, in this order.
const HAPPENED: [&str; 8] = [
    "the shop is open",
    "the circuit of stock-flaky opened",
    "chassis.yaml rewritten: split 95/5 → 50/50",
    "stock-flaky killed with -9",
    "orders knows that stock-flaky is gone",
    "stock-3 started",
    "SIGTERM to orders",
    "orders is gone: exit status: 0",
];

#[tokio::test]
async fn holds_under_load() {
    let began = Instant::now();
    let (printed, output) = finish(&mut example("quickstart").await).await;
    assert!(output.status.success(), "{}\n{printed}", output.status);
    let mut rest = &printed[printed.find("what happened").unwrap()..];
    for line in HAPPENED {
        let at =
            rest.find(line).unwrap_or_else(|| panic!("`{line}` is not there, or not in order:\n{printed}"));
        rest = &rest[at..];
    }
    let held = rest.lines().filter(|line| line.starts_with("  yes  ")).count();
    assert!(held == 5 && !printed.contains("  NO   "), "{printed}");
    let tables = printed.matches("rule hits: beta").count();
    assert!(tables >= 4, "the table was shown {tables} times in {:?}:\n{printed}", began.elapsed());
    assert!(!printed.contains('\x1b'), "nothing is drawn in place where there is no terminal:\n{printed}");
    assert!(is_gone(&dir(&printed)), "files are left behind");
}

#[tokio::test]
async fn serve_ends_when_interrupted() {
    let mut shop = Shop::open().await;
    assert_eq!(shop.commands.len(), 5, "{:?}", shop.commands);
    let pid = shop.process.child.id().unwrap().to_string();
    succeed(Command::new("sh").args(["-c", "kill -INT \"$0\"", &pid])).await;
    let ended = timeout(PATIENCE, shop.process.child.wait()).await.expect("it does not end").unwrap();
    assert!(ended.success(), "{ended}");
    assert!(is_gone(&shop.dir) && TcpStream::connect(&shop.orders).await.is_err());
}

#[tokio::test]
async fn nothing_is_left_when_it_is_killed() {
    let mut shop = Shop::open().await;
    assert!(TcpStream::connect(&shop.orders).await.is_ok());
    shop.process.child.kill().await.unwrap();
    until("orders has ended", async || TcpStream::connect(&shop.orders).await.is_err()).await;
    until("the directory is gone", async || is_gone(&shop.dir)).await;
}

fn is_gone(dir: &Path) -> bool {
    !dir.try_exists().unwrap()
}
