//! One entry: a file that lives no longer than the process that wrote it.
//!
//! The file's owner holds a lock on it (`flock`) as long as it runs, and the kernel lets go of the lock when
//! the process ends, whatever ended it. So everybody can tell the entries of the living from those of the
//! dead at once, without process ids, which are used again and mean nothing in another container. The
//! file's time is the lease: it speaks for processes that are alive and hang.
//!
//! Whoever removes a dead process's file holds its lock, and made sure that the file is still the one at
//! that path; an entry gets its path by a hard link, which fails where there is one. So of two processes
//! with one id one is told, and nobody removes the file of a living one.
use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use chassis_core::{files, registry::Instance};
use serde::{Deserialize, Serialize};

use super::dir::temp_path;

/// What is written in the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) instance: Arc<Instance>,
    /// How long the entry holds after the file's time, in milliseconds.
    lease_ms: u64,
    /// For people to look up; nothing is decided by it.
    pid: u32,
}

/// The file of an entry of ours. Dropping it removes the file.
pub(super) struct Lease {
    path: PathBuf,
    text: Vec<u8>,
    /// Open and locked; `None` once ended.
    file: Mutex<Option<File>>,
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("a running process has this id already")]
    Taken,
    #[error("its file can't be written")]
    Io(#[from] io::Error),
}

/// Removes a file that was not finished.
struct Unfinished(PathBuf);

// === impl Entry ===

impl Entry {
    pub(super) fn new(instance: Instance, lease: Duration) -> Self {
        Entry {
            instance: instance.into(),
            lease_ms: lease.as_millis().try_into().unwrap_or(u64::MAX),
            pid: process::id(),
        }
    }

    pub(super) fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }
}

// === impl Lease ===

impl Lease {
    /// Puts `entry` up at `path`, in the place of one whose process is gone.
    pub(super) fn take(path: PathBuf, entry: &Entry) -> Result<Lease, Refused> {
        let text = serde_json::to_vec_pretty(entry).map_err(io::Error::other)?;
        let file = publish(&path, &text)?;
        Ok(Lease { path, text, file: Mutex::new(Some(file)) })
    }

    /// Begins the lease anew; puts an entry that somebody removed up again.
    pub(super) fn renew(&self) -> Result<(), Refused> {
        let mut held = self.file.lock().expect("nobody panics while holding it");
        match held.as_ref() {
            None => {}
            Some(file) if is_at(file, &self.path)? => file.set_modified(SystemTime::now())?,
            Some(_) => {
                *held = Some(publish(&self.path, &self.text)?);
                tracing::warn!(path = %self.path.display(), "somebody had removed the entry; it is up again");
            }
        }
        Ok(())
    }

    /// The same, for those who can't tell anybody.
    pub(super) fn end_or_warn(&self) {
        if let Err(error) = self.end() {
            tracing::warn!(path = %self.path.display(), %error, "an entry was not removed");
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file, unless another one is in its place.
    pub(super) fn end(&self) -> io::Result<()> {
        let mut held = self.file.lock().expect("nobody panics while holding it");
        match held.take() {
            // Nobody else touches it between these two: it is locked until the end of this arm.
            Some(file) if is_at(&file, &self.path)? => fs::remove_file(&self.path),
            _ => Ok(()),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.end_or_warn();
    }
}

/// The file appears at `path` whole and locked, or not at all.
fn publish(path: &Path, text: &[u8]) -> Result<File, Refused> {
    let dir = path.parent().ok_or_else(|| io::Error::other("a path without a directory"))?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let temp = Unfinished(temp_path(dir));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp.0)?;
    file.try_lock().map_err(io::Error::from)?;
    file.write_all(text)?;
    let link = || match fs::hard_link(&temp.0, path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        other => other.map(|()| true),
    };
    let linked = link()? || (remove_dead(path)? && link()?);
    if linked { Ok(file) } else { Err(Refused::Taken) }
}

/// Removes the file at `path` if its process is gone. Is there none any more?
pub(super) fn remove_dead(path: &Path) -> io::Result<bool> {
    let file = match files::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(e),
    };
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e),
        Ok(()) if is_at(&file, path)? => fs::remove_file(path).map(|()| true),
        Ok(()) => Ok(false), // another one came in between
    }
}

/// Does its process run? Whoever asks doesn't disturb others who ask.
pub(super) fn is_alive(file: &File) -> io::Result<bool> {
    match file.try_lock_shared() {
        Ok(()) => file.unlock().map(|()| false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

// === impl Unfinished ===

impl Drop for Unfinished {
    fn drop(&mut self) {
        // If it stays, whoever looks into the directory a minute later removes it.
        let _ = fs::remove_file(&self.0);
    }
}
