//! One scan of a service's lease files: which instances run, which hang, which files to remove.
use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, DirEntry, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use chassis_core::{
    files,
    registry::{Instance, RegistryError},
};
use tokio::{
    net::{TcpStream, UnixStream},
    task::JoinSet,
    time::timeout,
};

use super::{
    dir::{TEMP_PREFIX, file_name},
    lease::{Entry, is_alive, remove_dead},
};

/// The known lease files of one service. A scan reads only the files that changed since the last one.
pub(super) struct Scan {
    service: String,
    dir: PathBuf,
    files: HashMap<OsString, Seen>,
}

/// A file's content, valid until its stamp changes.
struct Seen {
    stamp: Stamp,
    /// `None` if the file is no entry of this service.
    entry: Option<Entry>,
    /// Time since the last renewal, as of the last scan.
    age: Duration,
    /// Whether its address accepts connections; checked once, and only if the lease was not renewed in time.
    answers: Option<bool>,
}

/// A renewal changes the time, a new entry changes the inode.
#[derive(PartialEq, Eq)]
struct Stamp {
    inode: u64,
    modified: SystemTime,
}

/// An entry takes less than 1 KB; labels may add some.
const MAX_LENGTH: u64 = 64 << 10;
/// Age after which an incomplete file counts as a dead process's. Writing one takes milliseconds.
const UNFINISHED: Duration = Duration::from_secs(60);
/// A connection within one machine takes microseconds; a timeout means a full backlog, so the address has a
/// listener.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);

// === impl Scan ===

impl Scan {
    pub(super) fn new(service: impl Into<String>, dir: PathBuf) -> Self {
        Scan { service: service.into(), dir, files: HashMap::new() }
    }

    /// Reads the files and removes those of processes that have ended. Blocks.
    pub(super) fn look(&mut self) -> Result<(), RegistryError> {
        let failed = |e| RegistryError::new(format!("{} can't be read", self.dir.display())).with_source(e);
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries.collect::<io::Result<Vec<_>>>().map_err(failed)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(failed(e)),
        };
        let mut before = std::mem::take(&mut self.files);
        for entry in entries {
            let (name, path) = (entry.file_name(), entry.path());
            let seen = match self.look_at(&entry, before.remove(&name)) {
                Ok(Some(seen)) => seen,
                Ok(None) => continue,
                // The file was removed meanwhile, or is not readable for this user. Any other error (such as
                // too many open files) may affect all files, so it says nothing about this one.
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
                    continue;
                }
                Err(e) => {
                    return Err(
                        RegistryError::new(format!("{} can't be read", path.display())).with_source(e)
                    );
                }
            };
            self.files.insert(name, seen);
        }
        Ok(())
    }

    fn look_at(&self, entry: &DirEntry, before: Option<Seen>) -> io::Result<Option<Seen>> {
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_string_lossy();
        if !entry.file_type()?.is_file() || !(name.ends_with(".json") || name.starts_with(TEMP_PREFIX)) {
            return Ok(None);
        }
        let file = files::open(&path)?;
        let metadata = file.metadata()?;
        let stamp = Stamp { inode: metadata.ino(), modified: metadata.modified()? };
        // A time in the future, because the clock was set back, counts as now.
        let age = SystemTime::now().duration_since(stamp.modified).unwrap_or_default();
        if name.starts_with(TEMP_PREFIX) {
            if age > UNFINISHED {
                remove_dead(&path)?;
            }
            return Ok(None);
        }
        let mut seen = match before.filter(|before| before.stamp == stamp) {
            Some(seen) => seen,
            None => Seen { stamp, entry: self.read(&file, &path), age, answers: None },
        };
        seen.age = age;
        if seen.entry.is_some() && !is_alive(&file)? {
            remove_dead(&path)?;
            return Ok(None);
        }
        Ok(Some(seen))
    }

    /// The entry, if it is one of this service; otherwise `None` and one warning per file.
    fn read(&self, file: &File, path: &Path) -> Option<Entry> {
        let refused = |why: String| tracing::warn!(path = %path.display(), %why, "not an instance; ignored");
        let result = files::read_open(file, MAX_LENGTH).map_err(|e| e.to_string());
        let result =
            result.and_then(|text| serde_json::from_slice::<Entry>(&text).map_err(|e| e.to_string()));
        let checked = result.and_then(|entry| self.check(&entry.instance, path).map(|()| entry));
        checked.map_err(refused).ok()
    }

    fn check(&self, instance: &Instance, path: &Path) -> Result<(), String> {
        instance.check().map_err(|e| e.to_string())?;
        let id = file_name(&instance.id).map_err(|e| e.to_string())?;
        match path.file_stem() {
            _ if instance.service != self.service => Err(format!("it belongs to `{}`", instance.service)),
            Some(stem) if stem == id.as_str() => Ok(()),
            _ => Err(format!("its id `{}` is another file's", instance.id)),
        }
    }

    /// Checks the addresses of instances that did not renew their lease in time.
    pub(super) async fn probe(&mut self) {
        let mut probes = JoinSet::new();
        for (name, seen) in &self.files {
            let Some(entry) = seen.entry.as_ref().filter(|entry| seen.is_late(entry)) else { continue };
            let (name, addresses) = (name.clone(), entry.instance.addresses.clone());
            probes.spawn(async move {
                for address in addresses.values() {
                    if answers(address).await {
                        return (name, true);
                    }
                }
                (name, false)
            });
        }
        while let Some(probed) = probes.join_next().await {
            let Ok((name, answers)) = probed else { continue };
            if let Some(seen) = self.files.get_mut(&name) {
                seen.answers = Some(answers);
            }
        }
    }

    /// The running instances, sorted by id.
    pub(super) fn instances(&self) -> Vec<Arc<Instance>> {
        let lives =
            |seen: &Seen| seen.entry.as_ref().filter(|entry| seen.lives(entry)).map(|e| e.instance.clone());
        let mut instances: Vec<_> = self.files.values().filter_map(lives).collect();
        instances.sort_by(|a, b| a.id.cmp(&b.id));
        instances
    }
}

// === impl Seen ===

impl Seen {
    fn lives(&self, entry: &Entry) -> bool {
        self.age <= entry.lease() && self.answers != Some(false)
    }

    /// True if the lease missed its renewal (due after a third of its time, late after half) and the address has
    /// not been checked since.
    fn is_late(&self, entry: &Entry) -> bool {
        self.lives(entry) && self.age > entry.lease() / 2 && self.answers.is_none()
    }
}

/// Only a refused connection proves that nothing listens; other errors prove nothing about the other side.
async fn answers(address: &str) -> bool {
    let connected = timeout(CONNECT_TIMEOUT, async {
        if let Some(path) = address.strip_prefix("unix:") {
            UnixStream::connect(path).await.map(drop)
        } else if address.starts_with("memory:") {
            Ok(())
        } else {
            TcpStream::connect(address).await.map(drop)
        }
    });
    match connected.await {
        Ok(Err(e)) => !matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound),
        Ok(Ok(())) | Err(_) => true,
    }
}
