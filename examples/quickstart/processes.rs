//! Starts this program again for each service of the shop, in a directory of their own.
//!
//! Each child reads its standard input, a pipe to which the parent writes nothing. The pipe closes when the
//! parent ends for any reason, and the child then ends too. So neither processes nor files remain.
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
    /// Kept apart from the child: waiting for a child closes its standard input, and the child would end
    /// before it has stopped in order.
    _alive: ChildStdin,
}

/// Prefix of the directory's name.
const PREFIX: &str = "chassis-quickstart-";
/// Number of lines of each log to show after a failure.
const LOG_LINES: usize = 12;
/// How long to wait for a child that was asked to end.
const END: Duration = Duration::from_secs(5);

// === impl Processes ===

impl Processes {
    /// Creates the directory; no process runs yet.
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

    /// Kills a process at once, as `kill -9` does.
    pub(crate) async fn kill(&mut self, name: &str) -> io::Result<()> {
        let at = self.position(name)?;
        self.running.remove(at).child.kill().await
    }

    /// Asks a process to stop, by SIGTERM.
    pub(crate) async fn terminate(&mut self, name: &str) -> Result<(), BoxError> {
        let at = self.position(name)?;
        let id = self.running[at].child.id().ok_or_else(|| format!("{name} has ended already"))?;
        let done = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &id.to_string()]).status().await?;
        done.success().then_some(()).ok_or_else(|| format!("{name} could not be sent SIGTERM").into())
    }

    /// The exit status of a process that was asked to stop, or `None` while it runs.
    pub(crate) fn ended(&mut self, name: &str) -> io::Result<Option<ExitStatus>> {
        let at = self.position(name)?;
        self.running[at].child.try_wait()
    }

    /// Fails if a process has ended unexpectedly.
    pub(crate) fn check(&mut self) -> Result<(), BoxError> {
        for process in &mut self.running {
            if let Some(status) = process.child.try_wait()? {
                return Err(format!("{} ended early, {status}", process.name).into());
            }
        }
        Ok(())
    }

    /// The directory of settings, registry and logs.
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

    /// Ends all processes and removes their files.
    pub(crate) async fn end(self) {
        for Process { mut child, _alive, .. } in self.running {
            drop(_alive);
            if tokio::time::timeout(END, child.wait()).await.is_err() {
                let _ = child.kill().await; // it may just have ended
            }
        }
    }

    fn start(&mut self, name: &str, arguments: &[&str]) -> io::Result<()> {
        let log = File::create(self.dir().join(format!("{name}.log")))?;
        let mut command = Command::new(std::env::current_exe()?);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("CHASSIS_") {
                command.env_remove(variable); // it may belong to other settings
            }
        }
        let mut child = command
            .args(arguments)
            .current_dir(self.dir()) // the directory with `chassis.yaml`
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

/// Ends this process when its parent ends, and removes the directory: the last process leaves no files.
pub(crate) fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink()); // an error ends it too
        let dir = std::env::current_dir().unwrap_or_default();
        if dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX)) {
            let _ = std::fs::remove_dir_all(dir); // another process may have removed it
        }
        std::process::exit(0);
    });
}
