//! Tests in a network of their own, in which the addresses of 192.0.2.0/24 are local ones.
//!
//! Such a test begins with [`is_inside`]: in a usual process that runs the test again, in a process whose network it is.
use std::{process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

use crate::{peer::program, trials::NotRun};

/// Set in the process that has a network of its own.
const INSIDE: &str = "CHASSIS_TEST_IN_NAMESPACE";
/// A limit for a test.
const PATIENCE: Duration = Duration::from_secs(500);

/// Whether this process has a network of its own. If it does not, runs the test `name` in one that does, prints what it
/// measured, and returns `false`.
pub(crate) async fn is_inside(name: &str) -> Result<bool, NotRun> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(true);
    }
    let mut command = Command::new(program("NAMESPACE")?);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", name]).env(INSIDE, "1");
    command.stdin(Stdio::null()).kill_on_drop(true);
    let ended = timeout(PATIENCE, command.output()).await.unwrap_or_else(|_| panic!("{name} does not end"));
    let ended = ended.unwrap();
    let [output, errors] =
        [&ended.stdout, &ended.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    let result = format!("test {name} ... ");
    match output.lines().find_map(|line| line.strip_prefix(&result)) {
        Some("ok") => {}
        Some(ignored) if ignored.starts_with("ignored, ") => {
            return Err(NotRun(ignored["ignored, ".len()..].to_owned()));
        }
        _ => panic!("{name} has failed in a network of its own:\n{output}{errors}"),
    }
    for line in output.lines().filter(|line| line.starts_with("kubernetes: ")) {
        println!("{line}");
    }
    Ok(false)
}
