//! The lease file of one instance, which is valid only while the process that wrote it runs.
//!
//! The owner holds a lock (`flock`) on the file while it runs, and the kernel releases the lock when the
//! process ends for any reason. Every process can therefore check at once whether the owner of an entry runs.
//! Process ids could not show this: they are reused and mean nothing in another container. The file's
//! modification time is the start of the lease; it detects processes that run but hang.
//!
//! A process that removes a dead process's file first takes its lock and then checks that the path still
//! names that file. An entry gets its path by a hard link, which fails if the path exists. So of two
//! processes with one id the second gets an error, and no process removes the file of a running one.
use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use chassis_core::{files, registry::Instance};
use serde::{Deserialize, Serialize};

use super::dir::temp_path;

/// The content of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) instance: Arc<Instance>,
    /// Duration of the lease after the file's modification time, in milliseconds.
    lease_ms: u64,
    /// For people who read the file; no code uses it.
    pid: u32,
}

/// The lease file of an instance of this process. Dropping it removes the file.
pub(super) struct Lease {
    path: PathBuf,
    held: Mutex<Held>,
}

struct Held {
    /// The content of the file.
    text: Vec<u8>,
    /// Open and locked; `None` after the end of the lease.
    file: Option<File>,
}

/// The reason why a lease was not granted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("a running process has this id already")]
    Taken,
    #[error("its file can't be written")]
    Io(#[from] io::Error),
}

/// Removes a temporary file that was not completed.
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
    /// Creates the entry at `path`. Replaces an entry whose process no longer runs.
    pub(super) fn take(path: PathBuf, entry: &Entry) -> Result<Lease, Refused> {
        let text = text(entry)?;
        let file = publish(&path, &text)?;
        Ok(Lease { path, held: Mutex::new(Held { text, file: Some(file) }) })
    }

    /// Replaces the content. The path names a complete and locked file at every moment.
    pub(super) fn update(&self, entry: &Entry) -> Result<(), Refused> {
        let text = text(entry)?;
        let mut held = self.held();
        let Some(file) = &held.file else { return Err(io::Error::other("the lease has ended").into()) };
        let new = match is_at(file, &self.path)? {
            // No other process removes or replaces the file meanwhile: it is locked.
            true => {
                let (temp, file) = write_locked(&self.path, &text)?;
                fs::rename(&temp.0, &self.path)?;
                file
            }
            false => publish(&self.path, &text)?,
        };
        *held = Held { text, file: Some(new) };
        Ok(())
    }

    /// Renews the lease. If the file was removed, creates it again.
    pub(super) fn renew(&self) -> Result<(), Refused> {
        let mut held = self.held();
        match held.file.as_ref() {
            None => {}
            Some(file) if is_at(file, &self.path)? => file.set_modified(SystemTime::now())?,
            Some(_) => {
                held.file = Some(publish(&self.path, &held.text)?);
                tracing::warn!(path = %self.path.display(), "the lease file had been removed; it is written again");
            }
        }
        Ok(())
    }

    /// Ends the lease; for callers that cannot return an error.
    pub(super) fn end_or_warn(&self) {
        if let Err(error) = self.end() {
            tracing::warn!(path = %self.path.display(), %error, "an entry was not removed");
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file, unless the path now names another one.
    pub(super) fn end(&self) -> io::Result<()> {
        match self.held().file.take() {
            // No other process changes the file between these two calls: it is locked until the end of this
            // arm.
            Some(file) if is_at(&file, &self.path)? => fs::remove_file(&self.path),
            _ => Ok(()),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no code panics while it holds this lock")
    }
}

fn text(entry: &Entry) -> io::Result<Vec<u8>> {
    serde_json::to_vec_pretty(entry).map_err(io::Error::other)
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.end_or_warn();
    }
}

/// Creates the file at `path` in one step, complete and locked.
fn publish(path: &Path, text: &[u8]) -> Result<File, Refused> {
    let (temp, file) = write_locked(path, text)?;
    let link = || match fs::hard_link(&temp.0, path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        other => other.map(|()| true),
    };
    let linked = link()? || (remove_dead(path)? && link()?);
    if linked { Ok(file) } else { Err(Refused::Taken) }
}

/// A complete and locked file beside `path`.
fn write_locked(path: &Path, text: &[u8]) -> Result<(Unfinished, File), Refused> {
    let dir = path.parent().ok_or_else(|| io::Error::other("a path without a directory"))?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let temp = Unfinished(temp_path(dir));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp.0)?;
    file.try_lock().map_err(io::Error::from)?;
    file.write_all(text)?;
    Ok((temp, file))
}

/// Removes the file at `path` if its process no longer runs. Returns whether the path is now free.
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
        Ok(()) => Ok(false), // another process created a new file meanwhile
    }
}

/// Returns whether the file's process runs. Several processes may check at the same time.
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
        // If this fails, a later scan of the directory removes the file after a minute.
        let _ = fs::remove_file(&self.0);
    }
}
