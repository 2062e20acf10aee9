//! This program, started again for each service of the shop, in a directory of their own.
//!
//! Each child reads its standard input, a pipe that nobody writes to: its end is the parent's, however that
//! came about. So nothing is left behind, neither processes nor files.
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::process::{Child, ChildStdin, Command};

use crate::{BoxError, shop::Manner};

/// The processes of the shop, by name.
pub(crate) struct Processes {
    dir: TempDir,
    running: Vec<Process>,
}

struct Process {
    name: String,
    child: Child,
    /// Held apart: waiting for the child would close it, and the child would not live to end in order.
    _alive: ChildStdin,
}

/// What the directory's name starts with.
const PREFIX: &str = "chassis-quickstart-";
/// So many lines of each log are shown when something went wrong.
const LOG_LINES: usize = 12;
/// A child that was told to end is waited for no longer.
const END: Duration = Duration::from_secs(5);

// === impl Processes ===

impl Processes {
    /// None yet.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Processes { dir: tempfile::Builder::new().prefix(PREFIX).tempdir()?, running: Vec::new() })
    }

    /// Starts `orders`.
    pub(crate) fn orders(&mut self) -> io::Result<()> {
        self.start("orders", &["orders"])
    }

    /// Starts an instance of `stock`.
    pub(crate) fn stock(&mut self, id: &str, manner: Manner) -> io::Result<()> {
        self.start(id, &["stock", id, manner.word()])
    }

    /// Ends one at once, as `kill -9` does.
    pub(crate) async fn kill(&mut self, name: &str) -> io::Result<()> {
        let at = self.position(name)?;
        self.running.remove(at).child.kill().await
    }

    /// Asks one to stop, by SIGTERM.
    pub(crate) async fn terminate(&mut self, name: &str) -> Result<(), BoxError> {
        let at = self.position(name)?;
        let id = self.running[at].child.id().ok_or_else(|| format!("{name} has ended already"))?;
        let done = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &id.to_string()]).status().await?;
        done.success().then_some(()).ok_or_else(|| format!("{name} could not be sent SIGTERM").into())
    }

    /// How one ended that was asked to stop, if it has.
    pub(crate) fn ended(&mut self, name: &str) -> io::Result<Option<ExitStatus>> {
        let at = self.position(name)?;
        self.running[at].child.try_wait()
    }

    /// Fails if one has ended that should not have.
    pub(crate) fn check(&mut self) -> Result<(), BoxError> {
        for process in &mut self.running {
            if let Some(status) = process.child.try_wait()? {
                return Err(format!("{} ended early, {status}", process.name).into());
            }
        }
        Ok(())
    }

    /// Where their files are: settings, registry, logs.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The last lines of each log.
    pub(crate) fn print_logs(&self) {
        let mut logs: Vec<PathBuf> = std::fs::read_dir(self.dir())
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.sort();
        for path in logs {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {}", path.file_name().unwrap_or_default().to_string_lossy());
            lines[lines.len().saturating_sub(LOG_LINES)..].iter().for_each(|line| eprintln!("{line}"));
        }
    }

    /// Ends them all, and removes their files.
    pub(crate) async fn end(self) {
        for Process { mut child, _alive, .. } in self.running {
            drop(_alive);
            if tokio::time::timeout(END, child.wait()).await.is_err() {
                let _ = child.kill().await; // it may just have ended by itself
            }
        }
    }

    fn start(&mut self, name: &str, arguments: &[&str]) -> io::Result<()> {
        let log = File::create(self.dir().join(format!("{name}.log")))?;
        let mut command = Command::new(std::env::current_exe()?);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("CHASSIS_") {
                command.env_remove(variable); // settings of somebody else's
            }
        }
        let mut child = command
            .args(arguments)
            .current_dir(self.dir()) // where `chassis.yaml` is
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let alive = child.stdin.take().ok_or_else(|| io::Error::other("no pipe to the child"))?;
        self.running.push(Process { name: name.to_owned(), child, _alive: alive });
        Ok(())
    }

    fn position(&self, name: &str) -> io::Result<usize> {
        let found = self.running.iter().position(|process| process.name == name);
        found.ok_or_else(|| io::Error::other(format!("no process is called {name}")))
    }
}

/// Ends this process with its parent, and takes the directory along: whoever is last leaves none.
pub(crate) fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink()); // an error ends it as well
        let dir = std::env::current_dir().unwrap_or_default();
        if dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX)) {
            let _ = std::fs::remove_dir_all(dir); // another one may be quicker
        }
        std::process::exit(0);
    });
}
