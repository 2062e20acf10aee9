//! Starts this program again for each service.
//!
//! Each child reads its standard input, a pipe to which the parent writes nothing. The pipe closes when the parent ends for
//! any reason, and the child then ends too.
use std::{
    io,
    process::{ExitCode, Stdio},
    time::Duration,
};

use tokio::process::{Child, ChildStdin, Command};

use crate::BoxError;

/// The running processes, by name.
pub(crate) struct Processes(Vec<(String, Child, ChildStdin)>);

/// How long to wait for a child that was asked to end.
const END: Duration = Duration::from_secs(5);

// === impl Processes ===

impl Processes {
    /// No process runs yet.
    pub(crate) fn new() -> Self {
        Processes(Vec::new())
    }

    pub(crate) fn start(&mut self, arguments: &[&str]) -> io::Result<()> {
        let mut command = Command::new(std::env::current_exe()?);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("CHASSIS_") {
                command.env_remove(variable); // it may belong to other settings
            }
        }
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn()?;
        // Kept apart from the child: waiting for a child closes its standard input.
        let alive = child.stdin.take().ok_or_else(|| io::Error::other("no pipe to the child"))?;
        self.0.push((arguments[0].to_owned(), child, alive));
        Ok(())
    }

    /// Fails if a process has ended.
    pub(crate) fn check(&mut self) -> Result<(), BoxError> {
        for (name, child, _) in &mut self.0 {
            if let Some(status) = child.try_wait()? {
                return Err(format!("{name} ended early, {status}").into());
            }
        }
        Ok(())
    }

    /// Ends all of them.
    pub(crate) async fn end(self) {
        for (_, mut child, alive) in self.0 {
            drop(alive);
            if tokio::time::timeout(END, child.wait()).await.is_err() {
                let _ = child.kill().await; // it may just have ended
            }
        }
    }
}

/// Runs a service until its parent ends.
pub(crate) async fn as_child(
    service: impl Future<Output = Result<(), BoxError>>,
) -> Result<ExitCode, BoxError> {
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink()); // an error ends it too
        std::process::exit(0);
    });
    service.await?;
    Ok(ExitCode::SUCCESS)
}
