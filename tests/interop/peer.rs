//! Foreign programs, as processes that end with their handle.
use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader, Lines},
    process::{Child, Command},
    time::timeout,
};

use crate::trials::{NotRun, Ran};

/// A limit for each wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A running server. It is killed when this is dropped.
pub(crate) struct Peer {
    /// Its output, line by line.
    lines: Lines<BufReader<Box<dyn AsyncRead + Send + Unpin>>>,
    _process: Child,
    /// Its temporary files.
    _folder: TempDir,
}

/// The output on which a server prints the information for the test.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pipe {
    Out,
    Err,
}

// === the programs; `NotRun` where they are not installed ===

/// `grpc_server.py`, and the port of its Echo service.
pub(crate) async fn grpcio_server() -> Result<(Peer, String), NotRun> {
    let mut server = Peer::start(python("grpc_server.py")?, Pipe::Out);
    let port = server.line().await;
    Ok((server, format!("127.0.0.1:{port}")))
}

/// `http_server.py`, and its port.
pub(crate) async fn http_server() -> Result<(Peer, String), NotRun> {
    let mut server = Peer::start(python("http_server.py")?, Pipe::Out);
    let port = server.line().await;
    Ok((server, format!("127.0.0.1:{port}")))
}

/// nginx, with its ports for HTTP/1.1 and for HTTP/2; requests without an answer of its own go to `upstream`.
pub(crate) async fn nginx(upstream: Option<&str>) -> Result<(Peer, String, String), NotRun> {
    let (mut command, nginx) = (python("nginx_server.py")?, program("NGINX")?);
    command.arg(nginx).args(upstream);
    let mut server = Peer::start(command, Pipe::Out);
    let ports = server.line().await;
    let (http1, http2) = ports.split_once(' ').unwrap();
    Ok((server, format!("127.0.0.1:{http1}"), format!("127.0.0.1:{http2}")))
}

#[cfg(feature = "http-center")]
/// nginx, with its port for HTTP/1.1, and the folder whose files it serves below `/files/`.
pub(crate) async fn nginx_with_files() -> Result<(Peer, String, PathBuf), NotRun> {
    let (mut command, nginx) = (python("nginx_server.py")?, program("NGINX")?);
    command.arg(nginx).arg("--files");
    let mut server = Peer::start(command, Pipe::Out);
    let ports = server.line().await;
    let (http1, _) = ports.split_once(' ').unwrap();
    let folder = server.line().await.into();
    Ok((server, format!("127.0.0.1:{http1}"), folder))
}

/// grpc-go's interop server, and its port.
pub(crate) async fn go_server() -> Result<(Peer, String), NotRun> {
    let mut command = Command::new(program("GO_INTEROP_SERVER")?);
    command.arg("-port=0").env("GRPC_GO_LOG_SEVERITY_LEVEL", "info");
    let mut server = Peer::start(command, Pipe::Err);
    let line = server.line_with("listening on").await;
    let (_, port) = line.rsplit_once(':').unwrap();
    Ok((server, format!("127.0.0.1:{port}")))
}

/// Runs a case of `grpc_client.py`, or `all`.
pub(crate) async fn grpcio_client(address: &str, case: &[&str]) -> Ran {
    let mut command = python("grpc_client.py")?;
    succeed(command.arg(address).args(case)).await;
    Ok(())
}

/// Runs a case of grpc-go's interop client.
pub(crate) async fn go_client(address: &str, case: &str) -> Ran {
    let (host, port) = address.split_once(':').unwrap();
    let mut command = Command::new(program("GO_INTEROP_CLIENT")?);
    command.args([format!("-server_host={host}"), format!("-server_port={port}")]);
    succeed(command.arg(format!("-test_case={case}"))).await;
    Ok(())
}

/// curl, silent except for errors, and without a proxy.
pub(crate) fn curl() -> Result<Command, NotRun> {
    let mut command = Command::new(program("CURL")?);
    command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "25"]);
    Ok(command)
}

fn python(script: &str) -> Result<Command, NotRun> {
    let mut command = Command::new(program("PYTHON")?);
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/foreign");
    command.arg("-B").arg(folder.join(script));
    Ok(command)
}

pub(crate) fn program(name: &str) -> Result<OsString, NotRun> {
    let variable = format!("CHASSIS_PEER_{name}");
    let found = std::env::var_os(&variable).filter(|path| !path.is_empty());
    found.ok_or_else(|| NotRun(format!("{variable} is not set, see scripts/setup")))
}

// === running them ===

/// Runs `command` to its end and requires success. Returns its output.
pub(crate) async fn succeed(command: &mut Command) -> String {
    let output = finish(command).await;
    let [out, err] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out
}

/// Runs `command` to its end, with any exit status.
pub(crate) async fn finish(command: &mut Command) -> Output {
    let ended = timeout(PATIENCE, command.stdin(Stdio::null()).kill_on_drop(true).output()).await;
    ended.unwrap_or_else(|_| panic!("{command:?} did not end")).unwrap()
}

// === impl Peer ===

impl Peer {
    fn start(mut command: Command, pipe: Pipe) -> Self {
        let folder = tempfile::tempdir().unwrap();
        command.env("TMPDIR", folder.path()).stdin(Stdio::null()).kill_on_drop(true);
        let output = |this| if this == pipe { Stdio::piped() } else { Stdio::inherit() };
        command.stdout(output(Pipe::Out)).stderr(output(Pipe::Err));
        let mut process = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output: Box<dyn AsyncRead + Send + Unpin> = match pipe {
            Pipe::Out => Box::new(process.stdout.take().unwrap()),
            Pipe::Err => Box::new(process.stderr.take().unwrap()),
        };
        Peer { lines: BufReader::new(output).lines(), _process: process, _folder: folder }
    }

    /// The next line of its output.
    pub(crate) async fn line(&mut self) -> String {
        let line = timeout(PATIENCE, self.lines.next_line()).await.expect("no output of the peer");
        line.unwrap().expect("the peer has ended")
    }

    /// The next line of its output that contains `words`.
    pub(crate) async fn line_with(&mut self, words: &str) -> String {
        loop {
            let line = self.line().await;
            if line.contains(words) {
                return line;
            }
        }
    }
}
