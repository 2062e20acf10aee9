//! Hears what stirs in a directory, so that it need not be looked at all the time.
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

/// Listens to one directory, or to where it will be made, as far as the system lets it.
pub(super) struct Stir {
    bell: Arc<Notify>,
    watch: Option<RecommendedWatcher>,
    /// The directory that is listened to, and its inode.
    followed: Option<(PathBuf, u64)>,
}

// === impl Stir ===

impl Stir {
    pub(super) fn new() -> Self {
        let bell = Arc::new(Notify::new());
        let ring = bell.clone();
        let heard = move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| is_news(event.kind)) {
                ring.notify_one();
            }
        };
        let watch = notify::recommended_watcher(heard)
            .inspect_err(|e| tracing::debug!("no file events, looking more often instead: {e}"))
            .ok();
        Stir { bell, watch, followed: None }
    }

    /// Listens to `path`, whichever directory that is by now. `false` where nothing would be heard.
    pub(super) fn follow(&mut self, path: &Path) -> bool {
        let Some(watch) = &mut self.watch else { return false };
        let inode = |path: &Path| Some((path.to_path_buf(), fs::metadata(path).ok()?.ino()));
        let there = inode(path).or_else(|| inode(path.parent()?));
        if self.followed != there {
            if let Some((old, _)) = self.followed.take() {
                watch.unwatch(&old).ok(); // it may have gone by itself
            }
            let listens = |(path, _): &(PathBuf, u64)| watch.watch(path, RecursiveMode::NonRecursive).is_ok();
            self.followed = there.filter(listens);
        }
        self.followed.is_some()
    }

    /// Resolves when something has stirred since this was awaited last.
    pub(super) async fn heard(&self) {
        self.bell.notified().await;
    }
}

/// Reading makes events too, ours among them, and so does every renewal of a lease. The end of a process
/// closes the file of its lease.
fn is_news(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        EventKind::Modify(kind) => !matches!(kind, ModifyKind::Metadata(_)),
        _ => true,
    }
}
