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
    files,
};
use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::{sync::Notify, task::spawn_blocking, time::Instant};

use crate::{parse::MAX_BYTES, problem::nearest};

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

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use chassis_core::testing::contract::config_source::{Place, config_source};

    /// Long enough that no test waits for a poll: every change must arrive by an event.
    const NEVER: Duration = Duration::from_secs(3600);
    const CAP: Duration = Duration::from_secs(30);

    /// The way a file is replaced.
    enum How {
        InPlace,
        ByRename,
        /// As Kubernetes does it: `chassis.yaml` → `..data/chassis.yaml`, and `..data` → a new directory each
        /// time.
        BySwap(u32),
    }

    struct File(TempDir, How, Duration);

    impl File {
        fn new(how: How, poll: Duration) -> Self {
            File(tempfile::tempdir().expect("a directory can be made"), how, poll)
        }
        fn path(&self) -> PathBuf {
            self.0.path().join("chassis.yaml")
        }
    }

    #[async_trait]
    impl Place for File {
        fn source(&self) -> Arc<dyn ConfigSource> {
            Arc::new(FileSource::new(self.path()).poll_every(self.2))
        }
        async fn write(&mut self, content: &str) {
            let (path, dir) = (self.path(), self.0.path().to_path_buf());
            match &mut self.1 {
                How::InPlace => std::fs::write(path, content).unwrap(),
                How::ByRename => {
                    std::fs::write(dir.join(".new"), content).unwrap();
                    std::fs::rename(dir.join(".new"), path).unwrap();
                }
                How::BySwap(n) => {
                    *n += 1;
                    let old = std::fs::read_link(dir.join("..data")).ok();
                    std::fs::create_dir(dir.join(format!("..{n}"))).unwrap();
                    std::fs::write(dir.join(format!("..{n}/chassis.yaml")), content).unwrap();
                    std::os::unix::fs::symlink(format!("..{n}"), dir.join("..data_tmp")).unwrap();
                    std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
                    if path.symlink_metadata().is_err() {
                        std::os::unix::fs::symlink("..data/chassis.yaml", path).unwrap();
                    }
                    if let Some(old) = old {
                        std::fs::remove_dir_all(dir.join(old)).unwrap();
                    }
                }
            }
        }
        async fn spoil(&mut self) -> bool {
            std::fs::remove_file(self.path()).unwrap();
            true
        }
    }

    #[tokio::test]
    async fn a_file_written_in_place_keeps_the_contract() {
        config_source(File::new(How::InPlace, NEVER)).await;
    }

    #[tokio::test]
    async fn a_file_replaced_by_rename_keeps_the_contract() {
        config_source(File::new(How::ByRename, NEVER)).await;
    }

    #[tokio::test]
    async fn a_file_behind_swapped_links_keeps_the_contract() {
        config_source(File::new(How::BySwap(0), NEVER)).await;
    }

    async fn next(watcher: &mut Box<dyn ConfigWatcher>) -> Result<String, String> {
        let said = tokio::time::timeout(CAP, watcher.next()).await.expect("it answers");
        said.map(|text| text.content).map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn what_makes_no_event_is_found_by_polling() {
        // The link and its target's directory are watched; the middle of the chain is not.
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (c, d) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(c.path().join("x.yaml"), "a: 1").unwrap();
        std::fs::write(d.path().join("x.yaml"), "a: 2").unwrap();
        std::os::unix::fs::symlink(c.path(), b.path().join("now")).unwrap();
        std::os::unix::fs::symlink(b.path().join("now/x.yaml"), a.path().join("x.yaml")).unwrap();
        let source = FileSource::new(a.path().join("x.yaml")).poll_every(Duration::from_millis(10));
        let mut watcher = source.watch().await.unwrap();
        assert_eq!(next(&mut watcher).await, Ok("a: 1".into()));
        std::fs::remove_file(b.path().join("now")).unwrap();
        std::os::unix::fs::symlink(d.path(), b.path().join("now")).unwrap();
        let mut said = next(&mut watcher).await;
        if said.is_err() {
            said = next(&mut watcher).await; // polled between the two lines above
        }
        assert_eq!(said, Ok("a: 2".into()));
    }

    #[tokio::test]
    async fn what_is_no_text_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chassis.yaml");
        let shown = path.display();
        let mut watcher = FileSource::new(&path).poll_every(NEVER).watch().await.unwrap();
        std::fs::write(dir.path().join("chassis.yml"), "a: 1").unwrap();
        let meant = dir.path().join("chassis.yml");
        let missing = format!("{shown}: there is no such file; did you mean `{}`?", meant.display());
        assert_eq!(next(&mut watcher).await, Err(missing));
        for (bytes, why) in [
            (&b"a: \xff"[..], "it is not UTF-8"),
            (&[b' '; MAX_BYTES + 1], "4194305 bytes are too many; the limit is 4194304"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(next(&mut watcher).await, Err(format!("{shown}: {why}")));
        }
        std::fs::write(&path, "a: 1").unwrap();
        assert_eq!(next(&mut watcher).await, Ok("a: 1".into()));
    }

    #[tokio::test]
    async fn a_directory_that_comes_late_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/chassis.toml");
        let mut watcher = FileSource::new(&path).poll_every(Duration::from_millis(10)).watch().await.unwrap();
        assert!(next(&mut watcher).await.is_err());
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(&path, "a = 1").unwrap();
        let mut said = next(&mut watcher).await;
        while said.as_ref().is_ok_and(String::is_empty) || said.is_err() {
            said = next(&mut watcher).await; // polled while it was empty
        }
        assert_eq!(said, Ok("a = 1".into()));
    }

    /// A file that is empty or holds only comments is accepted at the start, and half-written once there were
    /// settings.
    #[tokio::test]
    async fn a_file_without_settings_is_believed_at_the_start_only() {
        for (name, some, empty) in [
            ("chassis.yaml", "a: 1", "write `{}` if that is meant"),
            ("chassis.toml", "a = 1", "write an empty table, as in `[outbound]` if that is meant"),
        ] {
            for blank in ["", " \n\n", "# one day\n", "\u{feff}# one day\n  # or another"] {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join(name);
                let put = |content: &str| {
                    std::fs::write(dir.path().join("new"), content).unwrap();
                    std::fs::rename(dir.path().join("new"), &path).unwrap();
                };
                put(blank);
                let mut watcher = FileSource::new(&path).poll_every(NEVER).watch().await.unwrap();
                assert_eq!(next(&mut watcher).await, Ok(blank.into()));
                put(some);
                assert_eq!(next(&mut watcher).await, Ok(some.into()));
                put(blank);
                let why = format!("{}: no setting is left, perhaps half-written; {empty}", path.display());
                assert_eq!(next(&mut watcher).await, Err(why));
                put(some);
                assert_eq!(next(&mut watcher).await, Ok(some.into()));
            }
        }
    }

    /// Opening a pipe blocks until its other end is opened, and a runtime waits for its blocked threads when it
    /// is dropped.
    #[test]
    fn what_is_no_regular_file_is_refused_and_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chassis.yaml");
        let shown = path.display();
        let pipe = || {
            let made = std::process::Command::new("mkfifo").arg(&path).status();
            assert!(made.is_ok_and(|status| status.success()), "mkfifo is there");
        };
        let device = || std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let directory = || std::fs::create_dir(&path).unwrap();
        let kinds: [(&dyn Fn(), &str); 3] =
            [(&pipe, "a pipe"), (&device, "a device"), (&directory, "a directory")];
        for from_the_start in [true, false] {
            for (put, kind) in kinds {
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
                let source = FileSource::new(&path).poll_every(NEVER);
                runtime.block_on(async {
                    let mut watcher = source.watch().await.unwrap();
                    if !from_the_start {
                        std::fs::write(&path, "a: 0").unwrap();
                        assert_eq!(next(&mut watcher).await, Ok("a: 0".into()));
                        std::fs::remove_file(&path).unwrap();
                    }
                    put();
                    let why = format!("{shown}: {kind} is no regular file");
                    let mut said = next(&mut watcher).await;
                    if said != Err(why.clone()) {
                        said = next(&mut watcher).await; // it read in between
                    }
                    assert_eq!(said, Err(why));
                    if path.is_dir() {
                        std::fs::remove_dir(&path).unwrap();
                    } else {
                        std::fs::remove_file(&path).unwrap();
                    }
                    std::fs::write(dir.path().join("new"), "a: 1").unwrap();
                    std::fs::rename(dir.path().join("new"), &path).unwrap();
                    let mut said = next(&mut watcher).await;
                    if said.is_err() {
                        said = next(&mut watcher).await; // it read in between
                    }
                    assert_eq!(said, Ok("a: 1".into()));
                });
                let (over, ended) = std::sync::mpsc::channel();
                std::thread::spawn(move || {
                    drop(runtime); // waits for blocked reads
                    over.send(())
                });
                ended.recv_timeout(CAP).expect("the process can end");
                std::fs::remove_file(&path).unwrap();
            }
        }
    }

    #[tokio::test]
    async fn the_language_is_in_the_name() {
        let error = FileSource::new("chassis.conf").watch().await.err().map(|e| e.to_string());
        assert_eq!(error.as_deref(), Some("chassis.conf: name it .yaml, .toml or .json to say what it is"));
    }
}
