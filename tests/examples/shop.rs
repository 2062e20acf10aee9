//! The quickstart's shop, started with `--serve`.
use std::{path::PathBuf, process::Stdio};

use crate::process::{Process, example};

/// A shop that was started with `--serve`.
pub(crate) struct Shop {
    pub(crate) process: Process,
    /// The commands that it prints, which `tests/interop` runs.
    pub(crate) commands: Vec<String>,
    pub(crate) dir: PathBuf,
    /// The address of `orders`.
    pub(crate) orders: String,
}

impl Shop {
    pub(crate) async fn open() -> Self {
        let mut process = Process::start(example("quickstart").await.arg("--serve").stderr(Stdio::inherit()));
        let lines = process.lines_to("Ctrl-C ends it").await;
        let commands = lines.iter().map(|line| line.trim()).filter(|line| line.contains("curl "));
        let commands: Vec<String> = commands.map(str::to_owned).collect();
        let rest = commands.iter().find_map(|command| command.strip_prefix("curl http://")).unwrap();
        let orders = rest.split('/').next().unwrap().to_owned();
        Shop { process, dir: dir(&lines.join("\n")), commands, orders }
    }
}

/// The directory that it prints as its own.
pub(crate) fn dir(printed: &str) -> PathBuf {
    let line = printed.lines().find(|line| line.starts_with("starting orders")).unwrap();
    line.rsplit_once(" in ").unwrap().1.into()
}
