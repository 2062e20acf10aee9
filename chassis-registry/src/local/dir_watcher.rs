//! File events of one directory, so that it need not be scanned all the time.
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::sync::Notify;

/// Watches one directory, or its parent until it exists, as far as the system allows.
pub(super) struct DirWatcher {
    change: Arc<Notify>,
    watch: Option<RecommendedWatcher>,
    /// The watched directory, and its inode.
    followed: Option<(PathBuf, u64)>,
}

// === impl DirWatcher ===

impl DirWatcher {
    pub(super) fn new() -> Self {
        let change = Arc::new(Notify::new());
        let notify = change.clone();
        let on_event = move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| is_change(event.kind)) {
                notify.notify_one();
            }
        };
        let watch = notify::recommended_watcher(on_event)
            .inspect_err(|e| tracing::debug!("no file events, looking more often instead: {e}"))
            .ok();
        DirWatcher { change, watch, followed: None }
    }

    /// Watches the directory that `path` names now. Returns `false` where the system reports no events.
    pub(super) fn follow(&mut self, path: &Path) -> bool {
        let Some(watch) = &mut self.watch else { return false };
        let inode = |path: &Path| Some((path.to_path_buf(), fs::metadata(path).ok()?.ino()));
        let there = inode(path).or_else(|| inode(path.parent()?));
        if self.followed != there {
            if let Some((old, _)) = self.followed.take() {
                watch.unwatch(&old).ok(); // the system may have ended the watch already
            }
            let listens = |(path, _): &(PathBuf, u64)| watch.watch(path, RecursiveMode::NonRecursive).is_ok();
            self.followed = there.filter(listens);
        }
        self.followed.is_some()
    }

    /// Resolves when something has changed since this was awaited last.
    pub(super) async fn changed(&self) {
        self.change.notified().await;
    }
}

/// Is it more than a read, ours among them, or the renewal of a lease? The end of a process closes the file of its
/// lease, which is an event of its own.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        EventKind::Modify(kind) => !matches!(kind, ModifyKind::Metadata(_)),
        _ => true,
    }
}
