//! An example, or a command that it prints, as a process that ends with its handle.
use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{interval, timeout},
};

/// A limit for each wait. The quickstart takes a third of it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A process whose output is read line by line.
pub(crate) struct Process {
    lines: Lines<BufReader<ChildStdout>>,
    pub(crate) child: Child,
}

/// The command of the example `name`, without the settings in this process's environment.
pub(crate) async fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("examples").join(name);
    if !is_fresh(&path, name) {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--example", name]).current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(build.status().await.unwrap().success(), "{name} can't be built");
    }
    let mut command = Command::new(path);
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("CHASSIS_") {
            command.env_remove(variable);
        }
    }
    command
}

/// Runs `command` to its end, and returns its output and its exit status.
pub(crate) async fn finish(command: &mut Command) -> (String, Output) {
    let ended = timeout(PATIENCE, command.stdin(Stdio::null()).kill_on_drop(true).output()).await;
    let output = ended.unwrap_or_else(|_| panic!("{command:?} did not end")).unwrap();
    let all = [&output.stdout[..], &output.stderr].concat();
    (String::from_utf8_lossy(&all).into_owned(), output)
}

/// Runs `command` to its end and requires success. Returns its output.
pub(crate) async fn succeed(command: &mut Command) -> String {
    let (printed, output) = finish(command).await;
    assert!(output.status.success(), "{command:?}: {}\n{printed}", output.status);
    printed
}

/// Repeats the check until it holds.
pub(crate) async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let asked = async {
        let mut tick = interval(Duration::from_millis(20));
        while !is_so().await {
            tick.tick().await;
        }
    };
    timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("not so: {what}"));
}

/// `cargo test` builds the examples; `cargo test --test examples` does not rebuild them.
fn is_fresh(path: &Path, name: &str) -> bool {
    let changed = |path: &Path| path.metadata().and_then(|about| about.modified()).ok();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let folder = std::fs::read_dir(examples.join(name)).into_iter().flatten();
    let sources = folder.map(|entry| entry.unwrap().path()).chain([examples.join(name).with_extension("rs")]);
    let newest: Option<SystemTime> = sources.filter_map(|source: PathBuf| changed(&source)).max();
    changed(path).is_some_and(|built| Some(built) >= newest)
}

// === impl Process ===

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Process { lines, child }
    }

    /// The lines up to one that starts with `last`.
    pub(crate) async fn lines_to(&mut self, last: &str) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        while !all.last().is_some_and(|line| line.trim_start().starts_with(last)) {
            let line = timeout(PATIENCE, self.lines.next_line()).await.expect("no output").unwrap();
            all.push(line.unwrap_or_else(|| panic!("it ended after {all:?}")));
        }
        all
    }
}
