//! A crate in an empty directory outside the workspace.
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use tempfile::TempDir;

/// The source of chassis in the README and the pages.
const PUBLIC_SOURCE: &str = r#"git = "https://github.com/chassis-rs/chassis""#;

/// Maximum duration of one run of cargo: it may have to build all dependencies, on two cores.
const BOUND: Duration = Duration::from_secs(15 * 60);

/// A crate that is removed when this is dropped.
pub(crate) struct Made(TempDir);

// === impl Made ===

impl Made {
    /// A crate with the workspace's locked versions of dependencies, so that no network is needed.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let above = dir.path().ancestors().any(|above| above.join("Cargo.toml").exists());
        assert!(!above, "{} is inside of a crate", dir.path().display());
        fs::copy(workspace().join("Cargo.lock"), dir.path().join("Cargo.lock")).unwrap();
        Made(dir)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file as shown, except for the source of chassis.
    pub(crate) fn write(&self, path: &str, text: &str) {
        let text = match path {
            "Cargo.toml" => {
                assert!(text.contains(PUBLIC_SOURCE), "{path} does not say where chassis is:\n{text}");
                text.replace(PUBLIC_SOURCE, &format!("path = {:?}", workspace()))
            }
            _ => text.to_owned(),
        };
        let path = self.dir().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Appends to an existing file.
    pub(crate) fn append(&self, path: &str, text: &str) {
        let there = fs::read_to_string(self.dir().join(path)).unwrap();
        let text = text.replace(PUBLIC_SOURCE, &format!("path = {:?}", workspace()));
        fs::write(self.dir().join(path), format!("{there}\n{text}")).unwrap();
    }

    /// Runs cargo in it and requires success without a warning from the crate itself. Returns the output.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> String {
        let mut cargo = cargo();
        cargo
            .env("CARGO_TARGET_DIR", target())
            .env("CARGO_INCREMENTAL", "0")
            .env("CARGO_PROFILE_DEV_DEBUG", "0");
        cargo.current_dir(self.dir()).args(arguments).args(["--offline", "--color", "never"]);
        let output = output(cargo);
        let printed = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
        assert!(output.status.success() && !printed.contains("warning:"), "cargo {arguments:?}\n{printed}");
        printed
    }

    /// The program of this name, after a build.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        target().join("debug").join(name)
    }
}

/// The last run's artefacts of the crate itself cannot be reused: the next crate's directory is another.
impl Drop for Made {
    fn drop(&mut self) {
        let mut clean = cargo();
        clean.env("CARGO_TARGET_DIR", target()).current_dir(self.dir()).args([
            "clean",
            "--offline",
            "--quiet",
            "--package",
            "stock",
        ]);
        let _ = clean.status();
    }
}

/// Cargo as a user runs it, without the environment of the cargo that runs this test.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        let is_of_package = name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_BIN_");
        if is_of_package || name.starts_with("CARGO_MANIFEST") || name == "CARGO_TARGET_TMPDIR" {
            cargo.env_remove(variable);
        }
    }
    cargo.stdin(Stdio::null());
    cargo
}

/// Runs `cargo` to its end, which must come within [`BOUND`].
pub(crate) fn output(cargo: Command) -> Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut cargo = tokio::process::Command::from(cargo);
        let ended = tokio::time::timeout(BOUND, cargo.kill_on_drop(true).output()).await;
        ended.unwrap_or_else(|_| panic!("{cargo:?} did not end within {BOUND:?}")).unwrap()
    })
}

/// The target directory of the crate. Built dependencies stay for the next run.
fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("standalone")
}

pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
