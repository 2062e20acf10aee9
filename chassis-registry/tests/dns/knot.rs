//! A real DNS server, Knot, as a process that ends with its handle.
use std::{
    fmt::Write as _,
    fs,
    path::PathBuf,
    process::Stdio,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr, Command},
    time::timeout,
};

use crate::trials::NotRun;

/// A limit for each wait.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server of the zone `test`.
pub(crate) struct Knot {
    program: PathBuf,
    folder: TempDir,
    process: Option<(Child, Lines<BufReader<ChildStderr>>)>,
    serial: u32,
    /// Where it is asked, also after a restart.
    pub(crate) address: String,
}

// === impl Knot ===

impl Knot {
    /// Serves these records, lines of a zone file: `stock 1 A 127.0.0.1`. Names without a final dot are below `test.`.
    pub(crate) async fn start(records: &[&str]) -> Result<Knot, NotRun> {
        let variable = "CHASSIS_PEER_DNS";
        let program = std::env::var_os(variable).filter(|path| !path.is_empty());
        let program = program.ok_or_else(|| NotRun(format!("{variable} is not set, see scripts/setup")))?;
        let folder = tempfile::tempdir().unwrap();
        let (at, port) = (folder.path().display(), free_port());
        let config = format!(
            "server:\n  rundir: \"{at}\"\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  tcp-workers: 2\n  \
             background-workers: 1\ndatabase:\n  storage: \"{at}/db\"\nlog:\n  - target: stderr\n    any: info\n\
             zone:\n  - domain: test\n    file: \"{at}/test.zone\"\n    zonefile-load: whole\n    \
             zonefile-sync: -1\n    journal-content: none\n"
        );
        fs::create_dir(folder.path().join("db")).unwrap();
        fs::write(folder.path().join("knot.conf"), config).unwrap();
        let address = format!("127.0.0.1:{port}");
        let mut knot = Knot { program: program.into(), folder, process: None, serial: 0, address };
        knot.write_zone(records);
        knot.run().await;
        knot.said("loaded, serial").await;
        Ok(knot)
    }

    /// Starts the process, again with the same address.
    pub(crate) async fn run(&mut self) {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(self.folder.path().join("knot.conf"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.kill_on_drop(true).spawn().unwrap();
        let errors = process.stderr.take().unwrap();
        self.process = Some((process, BufReader::new(errors).lines()));
        self.said("starting server").await;
    }

    /// Ends it at once.
    pub(crate) async fn kill(&mut self) {
        if let Some((mut process, _)) = self.process.take() {
            process.kill().await.unwrap();
        }
    }

    /// Replaces all records; returns when it serves them.
    pub(crate) async fn write(&mut self, records: &[&str]) {
        self.write_zone(records);
        self.signal("HUP").await;
        let served = format!("-> {},", self.serial);
        self.said(&served).await;
    }

    /// The same while it does not run.
    #[allow(dead_code)] // not every binary of tests has such a test
    pub(crate) fn write_zone(&mut self, records: &[&str]) {
        self.serial += 1;
        let mut zone = format!(
            "$ORIGIN test.\n$TTL 1\n@ SOA ns hostmaster {} 1 1 1 1\n@ NS ns\nns A 127.0.0.1\n",
            self.serial
        );
        records.iter().for_each(|record| writeln!(zone, "{record}").unwrap());
        let new = self.folder.path().join("new");
        fs::write(&new, zone).unwrap();
        // It is not loaded unless it is newer, and two files of one moment are equally old.
        let written = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + u64::from(self.serial));
        fs::File::options().write(true).open(&new).unwrap().set_modified(written).unwrap();
        fs::rename(new, self.zone()).unwrap();
    }

    /// Starts it anew without its zone: it answers each question about it with SERVFAIL.
    pub(crate) async fn lose_zone(&mut self) {
        self.kill().await;
        fs::remove_file(self.zone()).unwrap();
        self.run().await;
    }

    /// Sends a signal to the process: `STOP`, `CONT`.
    pub(crate) async fn signal(&self, signal: &str) {
        let id = self.process.as_ref().unwrap().0.id().unwrap();
        let status = Command::new("sh").arg("-c").arg(format!("kill -{signal} {id}")).status().await.unwrap();
        assert!(status.success());
    }

    /// Reads what it says up to a line that has these words.
    async fn said(&mut self, words: &str) {
        let (_, lines) = self.process.as_mut().unwrap();
        let said = async {
            let mut all = Vec::new();
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains(words) {
                    return;
                }
                all.push(line);
            }
            panic!("Knot has ended: {all:#?}");
        };
        timeout(PATIENCE, said).await.unwrap_or_else(|_| panic!("Knot does not say `{words}`"));
    }

    fn zone(&self) -> PathBuf {
        self.folder.path().join("test.zone")
    }
}

/// A port at which nothing listens now, over UDP and TCP.
fn free_port() -> u16 {
    loop {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = udp.local_addr().unwrap().port();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
