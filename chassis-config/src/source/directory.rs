//! Settings from all files of a directory, read again whenever one of them changes.
use std::{
    collections::BTreeSet,
    future::pending,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use chassis_core::config::{SourceError, Text};
use tokio::task::spawn_blocking;

use super::{
    events::{DirEvents, POLL, directory},
    file::{format_of, is_blank, read},
};

/// The files of a directory, in the order of their names: `10-limits.yaml` before `20-routes.yaml`. Later files
/// override earlier ones.
///
/// Files whose names end in `.yaml`, `.yml`, `.toml` or `.json` are read, except those that begin with a dot. A
/// file that is added or removed is a change of the settings. A directory that does not exist contains no
/// settings; if it is removed with all its files, or a file cannot be read, that is an error, and the last good
/// version stays. Files are watched and read as by a [`FileSource`](super::FileSource).
#[derive(Clone, Debug)]
pub struct DirectorySource {
    path: PathBuf,
    poll: Duration,
}

/// Watches one directory.
pub(crate) struct DirectoryWatcher {
    path: PathBuf,
    events: DirEvents,
    /// The last answer.
    said: Option<Result<Vec<Text>, String>>,
    /// Files that had settings.
    settled: BTreeSet<PathBuf>,
    /// The last read failed; the error is reported once a second read fails too.
    doubted: bool,
}

/// The most files of a directory that are read; more are an error.
const MOST: usize = 256;

// === impl DirectorySource ===

impl DirectorySource {
    /// The directory at `path`; it need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        DirectorySource { path: path.into(), poll: POLL }
    }

    /// Reads the directory this often even without an event. Default 5 s; at least 10 ms.
    pub fn poll_every(mut self, poll: Duration) -> Self {
        self.poll = poll.max(Duration::from_millis(10));
        self
    }

    /// The path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn watch(&self) -> DirectoryWatcher {
        let (said, settled) = (None, BTreeSet::new());
        let events = DirEvents::new(self.poll);
        DirectoryWatcher { path: self.path.clone(), events, said, settled, doubted: false }
    }
}

// === impl DirectoryWatcher ===

impl DirectoryWatcher {
    /// The texts of the files, first as they are, then whenever one of them has changed. Dropping the future loses
    /// nothing.
    pub(crate) async fn next(&mut self) -> Result<Vec<Text>, SourceError> {
        loop {
            self.events.due().await;
            self.follow().await;
            let read = self.read().await;
            self.events.read();
            if self.said.as_ref() == Some(&read) {
                self.doubted = false;
                continue;
            }
            // A file is missing for a moment while an editor or a link swap replaces it.
            let fewer = match (&self.said, &read) {
                (Some(Ok(before)), Ok(now)) => now.len() < before.len(),
                _ => read.is_err(),
            };
            self.doubted = fewer && !self.doubted;
            if self.doubted {
                self.events.soon();
                continue;
            }
            if let Ok(texts) = &read {
                let with_settings = texts.iter().filter(|text| !is_blank(&text.content, text.format));
                self.settled = with_settings.map(|text| PathBuf::from(&text.origin)).collect();
            }
            self.said = Some(read.clone());
            return read.map_err(SourceError::new);
        }
    }

    /// Watches the directory, or the one above while it does not exist, and the one that a link leads to.
    async fn follow(&mut self) {
        let mut wanted = vec![directory(&self.path)];
        if tokio::fs::metadata(&self.path).await.is_ok_and(|found| found.is_dir()) {
            wanted.push(self.path.clone());
        }
        if let Ok(target) = tokio::fs::canonicalize(self.path.join("..data")).await {
            wanted.push(target); // a mounted ConfigMap
        }
        self.events.follow(wanted);
    }

    async fn read(&self) -> Result<Vec<Text>, String> {
        let (path, settled) = (self.path.clone(), self.settled.clone());
        match spawn_blocking(move || read_all(&path, &settled)).await {
            // The runtime shuts down; that says nothing about the files.
            Err(e) if e.is_cancelled() => pending().await,
            Err(e) => Err(format!("{}: {e}", self.path.display())),
            Ok(read) => read,
        }
    }
}

/// The texts of all files of a directory, which blocks. `settled` are those that had settings.
fn read_all(path: &Path, settled: &BTreeSet<PathBuf>) -> Result<Vec<Text>, String> {
    let failed = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound && settled.is_empty() => return Ok(Vec::new()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(failed(path, &"there is no such directory any more"));
        }
        Err(error) => return Err(failed(path, &error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(|error| failed(path, &error))?.path();
        let is_hidden = file.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if !is_hidden && !file.is_dir() && format_of(&file).is_ok() {
            files.push(file);
        }
    }
    if files.len() > MOST {
        return Err(failed(path, &format!("{} files are too many; the limit is {MOST}", files.len())));
    }
    files.sort();
    let texts = files.into_iter().map(|file| {
        let format = format_of(&file)?;
        let content = read(&file, format, settled.contains(&file)).map_err(|error| failed(&file, &error))?;
        Ok(Text { content, format, origin: file.display().to_string(), revision: None })
    });
    texts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long enough that no test waits for a poll: every change must arrive by an event.
    const NEVER: Duration = Duration::from_secs(3600);
    const CAP: Duration = Duration::from_secs(30);

    async fn next(watcher: &mut DirectoryWatcher) -> String {
        let answer = tokio::time::timeout(CAP, watcher.next()).await.expect("a change is noticed");
        let shown = watcher.path.display().to_string();
        let said = match answer {
            Ok(texts) => {
                let name = |text: &Text| text.origin.strip_prefix(&shown).unwrap_or_default().to_owned();
                texts
                    .iter()
                    .map(|text| format!("{} {}", name(text), text.content))
                    .collect::<Vec<_>>()
                    .join(", ")
            }
            Err(error) => error.to_string(),
        };
        said.replace(&shown, "")
    }

    #[tokio::test]
    async fn files_are_read_in_the_order_of_their_names() {
        let above = tempfile::tempdir().unwrap();
        let at = above.path().join("chassis.d");
        let mut watcher = DirectorySource::new(&at).poll_every(NEVER).watch();
        assert_eq!(next(&mut watcher).await, "", "it need not exist");
        // A directory is moved into place, so that it is never seen without its files.
        let made = above.path().join("made");
        std::fs::create_dir(&made).unwrap();
        for (name, text) in [
            ("20-b.yaml", "b: 2"),
            ("10-a.toml", "a = 1"),
            (".c.yaml", "c: 3"),
            ("d.txt", "d"),
            ("e.yaml~", "e"),
        ] {
            std::fs::write(made.join(name), text).unwrap();
        }
        std::fs::rename(&made, &at).unwrap();
        assert_eq!(next(&mut watcher).await, "/10-a.toml a = 1, /20-b.yaml b: 2");
        std::fs::write(at.join(".new"), "{\"c\": 3}").unwrap();
        std::fs::rename(at.join(".new"), at.join("15-c.json")).unwrap();
        assert_eq!(next(&mut watcher).await, "/10-a.toml a = 1, /15-c.json {\"c\": 3}, /20-b.yaml b: 2");
        std::fs::remove_file(at.join("10-a.toml")).unwrap();
        assert_eq!(next(&mut watcher).await, "/15-c.json {\"c\": 3}, /20-b.yaml b: 2");
        std::fs::write(at.join("20-b.yaml"), "# half").unwrap();
        let half = "/20-b.yaml: no setting is left, perhaps half-written; write `{}` if that is meant";
        assert_eq!(next(&mut watcher).await, half);
        std::fs::write(at.join("20-b.yaml"), "{}").unwrap();
        assert_eq!(next(&mut watcher).await, "/15-c.json {\"c\": 3}, /20-b.yaml {}");
        std::fs::rename(&at, &made).unwrap();
        assert_eq!(next(&mut watcher).await, ": there is no such directory any more");
        std::fs::rename(&made, &at).unwrap();
        assert_eq!(next(&mut watcher).await, "/15-c.json {\"c\": 3}, /20-b.yaml {}");
    }
}
