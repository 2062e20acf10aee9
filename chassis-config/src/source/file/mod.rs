//! Settings from a file, read again whenever the file changes.
use std::{
    future::pending,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use chassis_core::{
    config::{ConfigSource, ConfigWatcher, Format, SourceError, Text},
    files, nearest,
};
use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::{sync::Notify, task::spawn_blocking, time::Instant};

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
    poll: Duration,
    /// Notified by every event in a watched directory.
    event: Arc<Notify>,
    watch: Option<RecommendedWatcher>,
    watched: Vec<PathBuf>,
    /// The time of the next read: soon after an event, or at the next poll.
    look_at: Instant,
    /// The latest time of the next read while events keep coming.
    settle_by: Option<Instant>,
    /// The last answer: the content, or the error.
    said: Option<Result<String, String>>,
    /// The last content had settings: without any, the file is half-written.
    is_settled: bool,
    /// The last read failed; the error is reported once a second read fails too.
    doubted: bool,
}

/// A write causes several events; the file is read when no event came for this long.
const QUIET: Duration = Duration::from_millis(75);
/// A directory with constant events is read this often.
const UNQUIET: Duration = Duration::from_secs(1);
/// The time between reads without an event.
const POLL: Duration = Duration::from_secs(5);
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

    fn format(&self) -> Result<Format, SourceError> {
        let extension =
            self.path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        match extension.as_str() {
            "yaml" | "yml" => Ok(Format::Yaml),
            "toml" => Ok(Format::Toml),
            "json" => Ok(Format::Json),
            _ => {
                let message =
                    format!("{}: name it .yaml, .toml or .json to say what it is", self.path.display());
                Err(SourceError::new(message))
            }
        }
    }
}

#[async_trait]
impl ConfigSource for FileSource {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
        let event = Arc::new(Notify::new());
        let notify = event.clone();
        let on_event = move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| changes(event.kind)) {
                notify.notify_one();
            }
        };
        let watch = notify::recommended_watcher(on_event)
            .inspect_err(|e| tracing::warn!("no file events, polling instead: {e}"))
            .ok();
        Ok(Box::new(FileWatcher {
            path: self.path.clone(),
            format: self.format()?,
            poll: self.poll,
            event,
            watch,
            watched: Vec::new(),
            look_at: Instant::now(),
            settle_by: None,
            said: None,
            is_settled: false,
            doubted: false,
        }))
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

/// Reading causes events too, also our own reads.
fn changes(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

// === impl FileWatcher ===

#[async_trait]
impl ConfigWatcher for FileWatcher {
    async fn next(&mut self) -> Result<Text, SourceError> {
        loop {
            tokio::select! {
                biased;
                () = self.event.notified() => {
                    let now = Instant::now();
                    let by = *self.settle_by.get_or_insert(now + UNQUIET);
                    self.look_at = (now + QUIET).min(by);
                    continue;
                }
                () = tokio::time::sleep_until(self.look_at) => {}
            }
            let read = self.look().await;
            (self.look_at, self.settle_by) = (Instant::now() + self.poll, None);
            if self.said.as_ref() == Some(&read) {
                self.doubted = false;
                continue;
            }
            // The file is missing for a moment while an editor or a link swap replaces it.
            self.doubted = read.is_err() && !self.doubted;
            if self.doubted {
                self.look_at = Instant::now() + QUIET;
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
        if self.said.is_some() && self.settle_by.is_none() {
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
        let Some(watch) = &mut self.watch else { return };
        let mut wanted = vec![directory(&self.path)];
        if let Ok(target) = tokio::fs::canonicalize(&self.path).await {
            wanted.push(directory(&target));
        }
        for gone in self.watched.extract_if(.., |d| !wanted.contains(d)) {
            watch.unwatch(&gone).ok(); // the directory may be gone
        }
        for directory in wanted {
            if !self.watched.contains(&directory)
                && watch.watch(&directory, RecursiveMode::NonRecursive).is_ok()
            {
                self.watched.push(directory);
            }
        }
    }

    async fn read(&self) -> Result<String, String> {
        let said = |why: &str| format!("{}: {why}", self.path.display());
        let failed = |e: std::io::Error| match e.kind() {
            ErrorKind::NotFound => self.missing(),
            _ => said(&e.to_string()),
        };
        let path = self.path.clone();
        let read = match spawn_blocking(move || files::read(&path, MAX_BYTES as u64)).await {
            // The runtime shuts down; that says nothing about the file.
            Err(e) if e.is_cancelled() => pending().await,
            Err(e) => Err(e.into()),
            Ok(read) => read,
        };
        match String::from_utf8(read.map_err(failed)?) {
            Ok(text) if self.is_settled && is_blank(&text, self.format) => {
                let empty = match self.format {
                    Format::Yaml | Format::Json => "`{}`",
                    Format::Toml => "an empty table, as in `[outbound]`",
                };
                Err(said(&format!(
                    "no setting is left, perhaps half-written; write {empty} if that is meant"
                )))
            }
            Ok(text) => Ok(text),
            Err(_) => Err(said("it is not UTF-8")),
        }
    }

    fn missing(&self) -> String {
        let here = |name: &str| directory(&self.path).join(name).display().to_string();
        let name = self.path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let entries = std::fs::read_dir(directory(&self.path)).into_iter().flatten().take(NEIGHBOURS);
        let names: Vec<_> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
        let meant = nearest(name, names.iter().map(String::as_str).filter(|n| *n != name));
        let meant = meant.map(|n| format!("; did you mean `{}`?", here(n).trim_start_matches("./")));
        format!("{}: there is no such file{}", self.path.display(), meant.unwrap_or_default())
    }
}

/// Whether the text holds only comments. An empty JSON text is left to the parser, which refuses it.
fn is_blank(text: &str, format: Format) -> bool {
    let mark = |line: &str| match format {
        Format::Yaml => line.starts_with('#') || line == "---" || line == "...",
        Format::Toml => line.starts_with('#'),
        Format::Json => false,
    };
    text.trim_start_matches('\u{feff}').lines().map(str::trim).all(|line| line.is_empty() || mark(line))
}

fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}
