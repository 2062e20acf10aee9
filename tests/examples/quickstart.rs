//! The quickstart holds what it asks of itself, what it prints works, and nothing is left of it.
use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{
    net::TcpStream,
    process::Command,
    time::{Instant, timeout},
};

use crate::process::{PATIENCE, Process, example, finish, succeed, until};

/// What it does, in this order.
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

/// A shop that was opened by `--serve`.
struct Shop {
    process: Process,
    /// What it says to type.
    commands: Vec<String>,
    dir: PathBuf,
    /// Where `orders` listens.
    orders: String,
}

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
async fn serve_prints_lines_that_work() {
    let mut shop = Shop::open().await;
    let (mut curls, mut grpcurls) = (0, 0);
    for command in &shop.commands {
        let Some(runnable) = runnable(command) else { continue };
        let answer = succeed(Command::new("sh").args(["-c", &runnable])).await;
        match command.split_whitespace().next() {
            Some("curl") => curls += 1,
            _ => grpcurls += 1,
        }
        let expected = match command {
            _ if command.contains("x-canary") => r#""track":"canary""#,
            _ if command.ends_with("/inspect") => r#""id":"stock-flaky""#,
            _ if command.starts_with("curl") => r#""sku":"apple","left":105"#,
            _ if command.ends_with(" list") => "shop.v1.Stock\n",
            _ => r#""instance": "stock-1""#,
        };
        assert!(answer.contains(expected), "{command}\n{answer}");
    }
    let peers = [("CURL", curls, 3), ("PYTHON", grpcurls, 2)];
    for (peer, ran, lines) in peers {
        let is_here = std::env::var_os(format!("CHASSIS_PEER_{peer}")).is_some_and(|path| !path.is_empty());
        assert!(ran == lines || (ran == 0 && !is_here), "{ran} of {lines} lines ran: {:?}", shop.commands);
    }

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

impl Shop {
    async fn open() -> Self {
        let mut process = Process::start(example("quickstart").await.arg("--serve").stderr(Stdio::inherit()));
        let lines = process.lines_to("Ctrl-C ends it").await;
        let commands = lines.iter().map(|line| line.trim()).filter(|line| line.contains("curl "));
        let commands: Vec<String> = commands.map(str::to_owned).collect();
        let rest = commands.iter().find_map(|command| command.strip_prefix("curl http://")).unwrap();
        let orders = rest.split('/').next().unwrap().to_owned();
        Shop { process, dir: dir(&lines.join("\n")), commands, orders }
    }
}

/// `command` by a curl and a grpcurl that are here; the latter is a Python, which reflects as it does.
fn runnable(command: &str) -> Option<String> {
    let peer = |name| std::env::var(format!("CHASSIS_PEER_{name}")).ok().filter(|path| !path.is_empty());
    let (program, rest) = command.split_once(' ')?;
    match program {
        "curl" => Some(format!("{} --silent --show-error --noproxy '*' --fail {rest}", peer("CURL")?)),
        _ => {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/examples/grpcurl.py");
            Some(format!("{} -B {} {rest}", peer("PYTHON")?, script.display()))
        }
    }
}

/// The directory that it says it works in.
fn dir(printed: &str) -> PathBuf {
    let line = printed.lines().find(|line| line.starts_with("starting orders")).unwrap();
    line.rsplit_once(" in ").unwrap().1.into()
}

fn is_gone(dir: &Path) -> bool {
    !dir.try_exists().unwrap()
}
