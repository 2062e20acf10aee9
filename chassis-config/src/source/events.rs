//! Changes in directories, and when to read again because of them.
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::{sync::Notify, time::Instant};

/// Watches directories, and says when to read: soon after an event, and once in `poll` without one.
pub(crate) struct DirEvents {
    poll: Duration,
    /// Notified by every event in a watched directory.
    event: Arc<Notify>,
    /// `None`: the machine has no watches left.
    watch: Option<RecommendedWatcher>,
    watched: Vec<PathBuf>,
    /// The time of the next read.
    look_at: Instant,
    /// The latest time of the next read while events keep coming.
    settle_by: Option<Instant>,
}

/// A write causes several events; files are read when no event came for this long.
pub(crate) const QUIET: Duration = Duration::from_millis(75);
/// A directory with constant events is read this often.
const UNQUIET: Duration = Duration::from_secs(1);
/// The time between reads without an event.
pub(crate) const POLL: Duration = Duration::from_secs(5);

// === impl DirEvents ===

impl DirEvents {
    /// The first read is due at once.
    pub(crate) fn new(poll: Duration) -> Self {
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
        DirEvents { poll, event, watch, watched: Vec::new(), look_at: Instant::now(), settle_by: None }
    }

    /// Waits until the next read is due. Dropping the future loses nothing.
    pub(crate) async fn due(&mut self) {
        loop {
            tokio::select! {
                biased;
                () = self.event.notified() => {
                    let now = Instant::now();
                    let by = *self.settle_by.get_or_insert(now + UNQUIET);
                    self.look_at = (now + QUIET).min(by);
                }
                () = tokio::time::sleep_until(self.look_at) => return,
            }
        }
    }

    /// Whether an event led to this read.
    pub(crate) fn has_event(&self) -> bool {
        self.settle_by.is_some()
    }

    /// A read is over: the next one is due after `poll`, or an event.
    pub(crate) fn read(&mut self) {
        (self.look_at, self.settle_by) = (Instant::now() + self.poll, None);
    }

    /// The next read is due in a moment, also without an event.
    pub(crate) fn soon(&mut self) {
        self.look_at = Instant::now() + QUIET;
    }

    /// Watches these directories, and no others. Call it before reading, so that a change in between causes an
    /// event.
    pub(crate) fn follow(&mut self, wanted: Vec<PathBuf>) {
        let Some(watch) = &mut self.watch else { return };
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
}

/// Reading causes events too, also our own reads.
fn changes(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// The directory of a file.
pub(crate) fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}
