//! Keeps the last good instances of each service on disk, for a start while the registry can't be reached.
//!
//! A file holds the believed instances of one service and listener, as of one registry and environment. Its first line
//! has the length and a checksum of the rest, so that a file which was cut off or changed is ignored. Files are written
//! under another name and renamed, with mode 0600.
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::timeout};

use crate::{files, plugin::registry::Instance, random::Random, units::PositiveSpan};

/// The last good instances on disk: the table `discovery.last_good`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LastGoodConfig {
    /// The directory of the files; it is created with mode 0700. Processes may share it.
    pub dir: PathBuf,
    /// Older files are ignored. Default `24h`.
    #[serde(default = "max_age")]
    pub max_age: PositiveSpan,
}

/// The file of one service and listener.
#[derive(Clone)]
pub(super) struct LastGood {
    path: PathBuf,
    max_age: Duration,
    of: Of,
    random: Random,
}

/// The subject of a file: only a reader with the same subject uses it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Of {
    pub(super) registry: String,
    pub(super) environment: String,
    pub(super) service: String,
    pub(super) listener: String,
}

/// What to write.
#[derive(Default)]
pub(super) struct Snapshot {
    /// `None` before the registry's first answer; none at all removes the file.
    pub(super) instances: Option<Arc<Vec<Arc<Instance>>>>,
    /// False while the registry fails: then the file keeps its age.
    pub(super) is_current: bool,
}

/// The instances of a file, and its age.
type Saved = (Vec<Arc<Instance>>, Duration);

/// The part of a file that the checksum covers.
#[derive(Deserialize, Serialize)]
struct Content {
    of: Of,
    /// Seconds since 1970.
    saved_at: u64,
    instances: Arc<Vec<Arc<Instance>>>,
}

/// The first word of a file; its number changes with the format.
const FORMAT: &str = "chassis-last-good-1";
/// A larger file is not read.
const MAX_FILE: u64 = 256 << 20;
/// The pause between two writes of one file. The first one is immediate.
const PAUSE: Duration = Duration::from_secs(5);
/// A set that does not change is written again after this time, so that the age of its file is that of the registry's
/// last word.
const REFRESH: Duration = Duration::from_secs(600);
/// The time limit of a read: a file system that hangs must not delay the first calls further.
const READ: Duration = Duration::from_secs(1);
/// The most bytes of the service's name in a file's name.
const MAX_NAME: usize = 100;

fn max_age() -> PositiveSpan {
    PositiveSpan::from_millis(24 * 60 * 60 * 1_000)
}

// === impl LastGoodConfig ===

impl LastGoodConfig {
    /// Files in `dir`, with the default age.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        LastGoodConfig { dir: dir.into(), max_age: max_age() }
    }
}

// === impl LastGood ===

impl LastGood {
    pub(super) fn new(config: &LastGoodConfig, of: Of, random: Random) -> Self {
        let Of { registry, environment, service, listener } = &of;
        // A hash of the whole subject keeps files apart whose readable part is equal or was cut.
        let subject = [registry, environment, service, listener].map(|part| format!("{part}\0")).concat();
        let readable: String = service
            .bytes()
            .take(MAX_NAME)
            .map(|byte| if is_plain(byte) { char::from(byte) } else { '_' })
            .collect();
        let path = config.dir.join(format!("{readable}-{:016x}.instances", checksum(subject.as_bytes())));
        LastGood { path, max_age: config.max_age.get(), of, random }
    }

    /// The instances of the file and their age; `None` if there is no valid one.
    pub(super) async fn load(&self) -> Option<Saved> {
        let file = self.clone();
        let reading = tokio::task::spawn_blocking(move || file.read());
        let read = match timeout(READ, reading).await {
            Ok(Ok(read)) => read,
            Ok(Err(failed)) => Err(failed.to_string()),
            Err(_) => Err(format!("it was not read within {READ:?}")),
        };
        let path = self.path.display();
        read.unwrap_or_else(|why| {
            tracing::warn!(target: "chassis", %path, why, "the last good instances on disk are ignored");
            None
        })
    }

    /// Writes each snapshot, the newest if several come at once, and again after [`REFRESH`]. Never ends.
    pub(super) async fn keep(self, mut snapshots: watch::Receiver<Snapshot>) {
        let mut is_failing = false;
        while !matches!(timeout(REFRESH, snapshots.changed()).await, Ok(Err(_))) {
            let instances = {
                let snapshot = snapshots.borrow_and_update();
                if snapshot.is_current { snapshot.instances.clone() } else { None }
            };
            let Some(instances) = instances else { continue };
            let file = self.clone();
            let writing = tokio::task::spawn_blocking(move || file.write(instances));
            let written = writing.await.unwrap_or_else(|failed| Err(io::Error::other(failed)));
            if let Err(error) = &written
                && !is_failing
            {
                let path = self.path.display();
                tracing::warn!(target: "chassis", %path, %error, "the last good instances can't be written");
            }
            is_failing = written.is_err();
            tokio::time::sleep(PAUSE).await;
        }
        std::future::pending().await
    }

    fn read(&self) -> Result<Option<Saved>, String> {
        let bytes = match files::read(&self.path, MAX_FILE) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("it has no first line")?;
        let (first, content) = (&bytes[..end], &bytes[end + 1..]);
        if first != first_line(content).as_bytes() {
            return Err("its length or checksum is wrong".to_owned());
        }
        let content: Content = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        if content.of != self.of {
            return Err("it is of another registry, environment or service".to_owned());
        }
        let saved_at = Duration::from_secs(content.saved_at);
        // A clock that went back makes a file newer, not invalid.
        let age = since_1970().saturating_sub(saved_at);
        if age > self.max_age {
            return Err(format!("it is {age:?} old; max_age is {:?}", self.max_age));
        }
        Ok(Some((Arc::unwrap_or_clone(content.instances), age)))
    }

    /// Replaces the file; without instances, removes it.
    fn write(&self, instances: Arc<Vec<Arc<Instance>>>) -> io::Result<()> {
        if instances.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let content = Content { of: self.of.clone(), saved_at: since_1970().as_secs(), instances };
        let content = serde_json::to_vec(&content).map_err(io::Error::other)?;
        let text = [first_line(&content).as_bytes(), b"\n", &content].concat();
        create_dir(self.path.parent().unwrap_or(Path::new(".")))?;
        let temp = self.path.with_extension(format!("{:016x}.tmp", self.random.next_u64()));
        let written = write_new(&temp, &text).and_then(|()| fs::rename(&temp, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&temp);
        }
        written
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

fn first_line(content: &[u8]) -> String {
    format!("{FORMAT} {} {:016x}", content.len(), checksum(content))
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// FNV-1a of 64 bits: finds a file that was cut off or damaged. It is no protection against a person who may write the
/// file; what is read is checked like an answer of a registry.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn create_dir(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

fn write_new(path: &Path, text: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stock(dir: &Path, registry: &str) -> LastGood {
        let of = Of {
            registry: registry.into(),
            environment: String::new(),
            service: "../stock v1".into(),
            listener: "grpc".into(),
        };
        LastGood::new(&LastGoodConfig::new(dir), of, Random::seeded(1))
    }

    fn two() -> Vec<Arc<Instance>> {
        let two = ["a", "b"].map(|id| Instance::new("stock", id).with_address("grpc", "10.0.0.5:1"));
        two.map(Arc::new).into()
    }

    #[test]
    fn instances_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = stock(&dir.path().join("new"), "etcd");
        assert!(file.read().unwrap().is_none());
        file.write(two().into()).unwrap();
        assert_eq!(file.read().unwrap().unwrap().0, two());
        assert!(stock(&dir.path().join("new"), "consul").read().unwrap().is_none(), "of another registry");
        let names = fs::read_dir(dir.path().join("new")).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.count(), 1, "no other file is left");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&file.path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        file.write(Arc::default()).unwrap();
        assert!(file.read().unwrap().is_none());
        file.write(Arc::default()).unwrap();
    }

    /// Each prefix of a file, and each file with one changed byte, is refused.
    #[test]
    fn a_damaged_file_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let file = stock(dir.path(), "etcd");
        file.write(two().into()).unwrap();
        let good = fs::read(&file.path).unwrap();
        for length in 0..good.len() {
            fs::write(&file.path, &good[..length]).unwrap();
            assert!(file.read().is_err(), "cut to {length}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&file.path, &bad).unwrap();
            assert!(file.read().is_err(), "changed at {at}");
        }
    }

    #[test]
    fn a_file_that_is_too_old_or_of_another_service_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let file = stock(dir.path(), "etcd");
        let write = |of: &Of, saved_at: u64| {
            let content = Content { of: of.clone(), saved_at, instances: two().into() };
            let content = serde_json::to_vec(&content).unwrap();
            fs::write(&file.path, [first_line(&content).as_bytes(), b"\n", &content].concat()).unwrap();
        };
        let now = since_1970().as_secs();
        write(&file.of, now - 24 * 3600 + 60);
        assert!(file.read().unwrap().is_some());
        write(&file.of, now + 1_000_000);
        assert_eq!(file.read().unwrap().unwrap().1, Duration::ZERO);
        write(&file.of, now - 24 * 3600 - 60);
        assert!(file.read().unwrap_err().contains("old"));
        write(&Of { service: "billing".into(), ..file.of.clone() }, now);
        assert!(file.read().unwrap_err().contains("another"));
    }
}
