//! The snapshot on disk: all instances with their leases, written whole.
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::Arc,
    time::Duration,
};

use chassis_core::{files, registry::Instance, units::PositiveSpan};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::store::Entry;

/// One instance in a snapshot.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept<I = Instance> {
    pub(super) instance: I,
    pub(super) ttl: PositiveSpan,
    pub(super) lease: String,
}

#[derive(Serialize, Deserialize)]
struct Snapshot<K> {
    version: u32,
    instances: Vec<K>,
}

const VERSION: u32 = 1;
/// A larger file is no snapshot.
const MOST: u64 = 1 << 30;

/// Writes all of `entries` to `path`: into another file first, which takes the place of the old one once it is on disk.
pub(super) fn write(path: &Path, entries: &[Entry]) -> io::Result<()> {
    let kept = |entry: &Entry| Kept::<Arc<Instance>> {
        instance: entry.instance.clone(),
        ttl: PositiveSpan::new(entry.ttl).unwrap_or(PositiveSpan::from_millis(1)),
        lease: entry.lease.clone(),
    };
    let snapshot = Snapshot { version: VERSION, instances: entries.iter().map(kept).collect() };
    let bytes = serde_json::to_vec(&snapshot)?;
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
    file.write_all(&bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&name, path)
}

/// The instances of a snapshot. One that makes no sense is left out; a file that is none is an error. No file: none.
pub(super) fn read(path: &Path) -> io::Result<Vec<(Instance, Duration, String)>> {
    let bytes = match files::read(path, MOST) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
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
    Ok(all.filter_map(Result::ok).collect())
}
