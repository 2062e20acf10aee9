//! The snapshot on disk: all instances with their leases, and all documents, written whole.
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chassis_core::{files, registry::Instance, units::PositiveSpan};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    documents::Document,
    store::{Entry, Store},
};
use crate::wire::check_key;

/// One instance in a snapshot.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept<I = Instance> {
    pub(super) instance: I,
    pub(super) ttl: PositiveSpan,
    pub(super) lease: String,
}

/// One document in a snapshot.
#[derive(Serialize, Deserialize)]
struct KeptDocument {
    key: String,
    revision: u64,
    /// `None`: it was deleted.
    content: Option<Arc<str>>,
}

#[derive(Serialize, Deserialize)]
struct Snapshot<K> {
    version: u32,
    instances: Vec<K>,
    #[serde(default)]
    settings: Vec<KeptDocument>,
}

/// The file of the snapshots, for one writer at a time.
pub(super) struct Disk {
    path: PathBuf,
    /// The version that was written last.
    last: Mutex<Option<u64>>,
}

/// The content of a snapshot that is to be written.
pub(super) struct Content {
    /// The version of the store.
    pub(super) version: u64,
    entries: Vec<Entry>,
    documents: Vec<(String, Document)>,
}

/// The content of a snapshot that was read.
#[derive(Default)]
pub(super) struct Read {
    pub(super) instances: Vec<(Instance, Duration, String)>,
    pub(super) documents: Vec<(String, Document)>,
}

const VERSION: u32 = 1;
/// A larger file is no snapshot.
const MOST: u64 = 1 << 30;

// === impl Disk ===

impl Disk {
    pub(super) fn new(path: PathBuf) -> Self {
        Disk { path, last: Mutex::new(None) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `content`, once a write that is under way is over; does nothing if this version, or a later one, was written.
    /// Blocks.
    pub(super) fn write(&self, content: &Content) -> io::Result<()> {
        // A poisoned lock holds the version of a whole write.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last >= content.version) {
            return Ok(());
        }
        write(&self.path, content)?;
        *last = Some(content.version);
        Ok(())
    }
}

// === impl Content ===

impl Content {
    pub(super) fn of(store: &Store) -> Self {
        let documents = store.documents().iter().map(|(key, document)| (key.clone(), document.clone()));
        Content {
            version: store.version(),
            entries: store.entries().cloned().collect(),
            documents: documents.collect(),
        }
    }
}

/// Writes all of `content` to `path`.
fn write(path: &Path, content: &Content) -> io::Result<()> {
    let kept = |entry: &Entry| Kept::<Arc<Instance>> {
        instance: entry.instance.clone(),
        ttl: PositiveSpan::new(entry.ttl).unwrap_or(PositiveSpan::from_millis(1)),
        lease: entry.lease.clone(),
    };
    let document = |(key, Document { revision, content }): &(String, Document)| KeptDocument {
        key: key.clone(),
        revision: *revision,
        content: content.clone(),
    };
    let snapshot = Snapshot {
        version: VERSION,
        instances: content.entries.iter().map(kept).collect(),
        settings: content.documents.iter().map(document).collect(),
    };
    write_whole(path, &serde_json::to_vec(&snapshot)?)
}

/// Writes a file: into another one first, which takes the place of the old one once it is on disk.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let mut file = options.open(&name)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&name, path)?;
    // The name is on disk only once its directory is.
    #[cfg(unix)]
    {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

/// The content of a snapshot. A part that makes no sense is left out; a file that is none is an error. No file: nothing.
pub(super) fn read(path: &Path) -> io::Result<Read> {
    let bytes = match files::read(path, MOST) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Read::default()),
        read => read?,
    };
    let snapshot: Snapshot<Value> = serde_json::from_slice(&bytes)?;
    if snapshot.version != VERSION {
        return Err(io::Error::other(format!("its version is {}, not {VERSION}", snapshot.version)));
    }
    let sound = |kept: Value| {
        let kept: Kept = serde_json::from_value(kept).map_err(|error| error.to_string())?;
        kept.instance.check().map_err(|error| error.to_string())?;
        Ok::<_, String>((kept.instance, kept.ttl.get(), kept.lease))
    };
    let all = snapshot.instances.into_iter().map(sound);
    let all = all.inspect(|kept| {
        if let Err(why) = kept {
            tracing::warn!(target: "chassis", path = %path.display(), why, "an instance of the snapshot is left out");
        }
    });
    let documents = snapshot.settings.into_iter().filter(|kept| check_key(&kept.key).is_ok());
    let document = |KeptDocument { key, revision, content }| (key, Document { revision, content });
    Ok(Read { instances: all.filter_map(Result::ok).collect(), documents: documents.map(document).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_version_does_not_replace_a_newer_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry.json");
        let disk = Disk::new(path.clone());
        let content = |version, key: &str| Content {
            version,
            entries: Vec::new(),
            documents: vec![(key.to_owned(), Document { revision: 1, content: Some("a: 1".into()) })],
        };
        let key = || read(&path).unwrap().documents.remove(0).0;
        for (version, written, kept) in [
            (0, "a.yaml", "a.yaml"),
            (2, "b.yaml", "b.yaml"),
            (1, "c.yaml", "b.yaml"),
            (2, "d.yaml", "b.yaml"),
        ] {
            disk.write(&content(version, written)).unwrap();
            assert_eq!(key(), kept, "{version}");
        }
        // A version that could not be written is not taken for one that was.
        fs::remove_dir_all(folder.path()).unwrap();
        assert!(disk.write(&content(3, "e.yaml")).is_err());
        fs::create_dir(folder.path()).unwrap();
        disk.write(&content(3, "e.yaml")).unwrap();
        assert_eq!(key(), "e.yaml");
    }
}
