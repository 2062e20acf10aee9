//! Settings from a file, read again whenever the file changes.
use std::{
    future::pending,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use chassis_core::{
    config::{ConfigSource, ConfigWatcher, Format, SourceError, Text},
    files, nearest,
};
use tokio::task::spawn_blocking;

use super::events::{DirEvents, POLL, directory};
use crate::parse::MAX_BYTES;

#[cfg(test)]
mod tests;

/// A file in the format of its extension: `.yaml`, `.yml`, `.toml` or `.json`.
///
/// The source watches the directory, not the file, because editors and deployments replace files, and
/// Kubernetes swaps a link two steps away (`..data`). After any event there, it reads the file once the
/// directory has been quiet for a moment; only another content is a change.
///
/// It also reads the file every five seconds, because some changes cause no event: on network file systems, on
/// some container mounts, behind links to other directories, and when the machine has no watches left.
///
/// A file that is missing, unreadable, not a regular file (a pipe, a device, a directory), longer than 4 MiB or
/// not UTF-8 is an error; it is read again once that is corrected. A file without any setting (empty, or only
/// comments) that had settings before is an error too, because a file looks like that while it is being
/// written. To avoid half-written files, write to another file beside it and rename. A file that never had a
/// setting may be empty.
#[derive(Clone, Debug)]
pub struct FileSource {
    path: PathBuf,
    poll: Duration,
}

struct FileWatcher {
    path: PathBuf,
    format: Format,
    events: DirEvents,
    /// The last answer: the content, or the error.
    said: Option<Result<String, String>>,
    /// The last content had settings: without any, the file is half-written.
    is_settled: bool,
    /// The last read failed; the error is reported once a second read fails too.
    doubted: bool,
}

/// This many names of the directory are searched for a similar one.
const NEIGHBOURS: usize = 1_000;

// === impl FileSource ===

impl FileSource {
    /// The file at `path`; it need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        FileSource { path: path.into(), poll: POLL }
    }

    /// Reads the file this often even without an event. Default 5 s; at least 10 ms.
    pub fn poll_every(mut self, poll: Duration) -> Self {
        self.poll = poll.max(Duration::from_millis(10));
        self
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[async_trait]
impl ConfigSource for FileSource {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
        Ok(Box::new(FileWatcher {
            path: self.path.clone(),
            format: format_of(&self.path).map_err(SourceError::new)?,
            events: DirEvents::new(self.poll),
            said: None,
            is_settled: false,
            doubted: false,
        }))
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

/// The format that the extension names.
pub(super) fn format_of(path: &Path) -> Result<Format, String> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match extension.as_str() {
        "yaml" | "yml" => Ok(Format::Yaml),
        "toml" => Ok(Format::Toml),
        "json" => Ok(Format::Json),
        _ => Err(format!("{}: name it .yaml, .toml or .json to say what it is", path.display())),
    }
}

// === impl FileWatcher ===

#[async_trait]
impl ConfigWatcher for FileWatcher {
    async fn next(&mut self) -> Result<Text, SourceError> {
        loop {
            self.events.due().await;
            let read = self.look().await;
            self.events.read();
            if self.said.as_ref() == Some(&read) {
                self.doubted = false;
                continue;
            }
            // The file is missing for a moment while an editor or a link swap replaces it.
            self.doubted = read.is_err() && !self.doubted;
            if self.doubted {
                self.events.soon();
                continue;
            }
            self.is_settled |= read.as_ref().is_ok_and(|text| !is_blank(text, self.format));
            self.said = Some(read.clone());
            let origin = self.path.display().to_string();
            return match read {
                Ok(content) => Ok(Text { content, format: self.format, origin, revision: None }),
                Err(reason) => Err(SourceError::new(reason)),
            };
        }
    }
}

impl FileWatcher {
    /// Reads the file. Without an event the content is most likely the same, so the directories are not looked
    /// up again.
    async fn look(&mut self) -> Result<String, String> {
        if self.said.is_some() && !self.events.has_event() {
            let read = self.read().await;
            if self.said.as_ref() == Some(&read) {
                return read;
            }
        }
        self.follow().await; // before reading, so that a change in between causes an event
        self.read().await
    }

    /// Watches the directories of the file and of its link target, which may have changed.
    async fn follow(&mut self) {
        let mut wanted = vec![directory(&self.path)];
        if let Ok(target) = tokio::fs::canonicalize(&self.path).await {
            wanted.push(directory(&target));
        }
        self.events.follow(wanted);
    }

    async fn read(&self) -> Result<String, String> {
        let (path, format, is_settled) = (self.path.clone(), self.format, self.is_settled);
        let read = spawn_blocking(move || {
            read(&path, format, is_settled).map_err(|error| match error.kind() {
                ErrorKind::NotFound => missing(&path),
                _ => format!("{}: {error}", path.display()),
            })
        });
        match read.await {
            // The runtime shuts down; that says nothing about the file.
            Err(e) if e.is_cancelled() => pending().await,
            Err(e) => Err(format!("{}: {e}", self.path.display())),
            Ok(read) => read,
        }
    }
}

/// The text of a file, which blocks. A text without settings is an error if the file had some before.
pub(super) fn read(path: &Path, format: Format, had_settings: bool) -> std::io::Result<String> {
    let text = String::from_utf8(files::read(path, MAX_BYTES as u64)?)
        .map_err(|_| std::io::Error::other("it is not UTF-8"))?;
    if had_settings && is_blank(&text, format) {
        let empty = match format {
            Format::Yaml | Format::Json => "`{}`",
            Format::Toml => "an empty table, as in `[outbound]`",
        };
        return Err(std::io::Error::other(format!(
            "no setting is left, perhaps half-written; write {empty} if that is meant"
        )));
    }
    Ok(text)
}

/// The message of a file that is not there, with the most similar name of its directory.
fn missing(path: &Path) -> String {
    let here = |name: &str| directory(path).join(name).display().to_string();
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let entries = std::fs::read_dir(directory(path)).into_iter().flatten().take(NEIGHBOURS);
    let names: Vec<_> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    let meant = nearest(name, names.iter().map(String::as_str).filter(|n| *n != name));
    let meant = meant.map(|n| format!("; did you mean `{}`?", here(n).trim_start_matches("./")));
    format!("{}: there is no such file{}", path.display(), meant.unwrap_or_default())
}

/// Whether a text is empty, or has only comments: it sets nothing, and is more often half-written or cut off than meant so.
/// `{}` is not blank.
pub fn is_blank(text: &str, format: Format) -> bool {
    let mark = |line: &str| match format {
        Format::Yaml => line.starts_with('#') || line == "---" || line == "...",
        Format::Toml => line.starts_with('#'),
        Format::Json => false,
    };
    text.trim_start_matches('\u{feff}').lines().map(str::trim).all(|line| line.is_empty() || mark(line))
}
