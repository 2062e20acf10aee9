//! The files that values of the settings are read from: `${file:…}`.
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
};

use crate::{
    interpolate::read_value,
    source::events::{DirEvents, POLL, directory},
};

/// Follows files, and says which has changed.
#[derive(Default)]
pub(super) struct Files {
    /// The contents that were used; `None` if a file could not be read.
    used: BTreeMap<PathBuf, Option<String>>,
    /// Files that have changed, to be reported.
    changed: Vec<PathBuf>,
    /// Files that could not be read the last time: they are missing for a moment while they are replaced.
    doubted: BTreeSet<PathBuf>,
    /// `None` without files.
    due: Option<Due>,
}

/// Waits until the files are to be read.
type Due = Pin<Box<dyn Future<Output = DirEvents> + Send>>;

// === impl Files ===

impl Files {
    /// Follows these files. With `also` those from before as well, which the version in force may have.
    pub(super) fn follow(&mut self, files: BTreeMap<PathBuf, Option<String>>, also: bool) {
        let names = |files: &BTreeMap<PathBuf, _>| files.keys().cloned().collect::<Vec<_>>();
        let before = names(&self.used);
        if !also {
            self.used.clear();
        }
        self.used.extend(files);
        if names(&self.used) != before {
            self.due = (!self.used.is_empty()).then(|| wait(DirEvents::new(POLL), names(&self.used)));
        }
    }

    /// The name of a file whose content has changed.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        loop {
            if let Some(changed) = self.changed.pop() {
                return Poll::Ready(changed.display().to_string());
            }
            let Some(due) = &mut self.due else { return Poll::Pending };
            let Poll::Ready(mut events) = due.as_mut().poll(cx) else { return Poll::Pending };
            events.read();
            if self.look() {
                events.soon();
            }
            self.due = Some(wait(events, self.used.keys().cloned().collect()));
        }
    }

    /// Reads all files. Returns whether one is to be read again soon.
    fn look(&mut self) -> bool {
        let mut again = false;
        for (path, used) in &mut self.used {
            let read = read_value(path).ok();
            if read == *used {
                self.doubted.remove(path);
            } else if read.is_none() && self.doubted.insert(path.clone()) {
                again = true;
            } else {
                self.doubted.remove(path);
                *used = read;
                self.changed.push(path.clone());
            }
        }
        again
    }
}

/// Waits until the files may have changed.
fn wait(mut events: DirEvents, files: Vec<PathBuf>) -> Due {
    Box::pin(async move {
        let mut wanted = Vec::new();
        for file in &files {
            let target = std::fs::canonicalize(file).ok();
            for directory in [Some(directory(file)), target.as_deref().map(directory)].into_iter().flatten() {
                if !wanted.contains(&directory) {
                    wanted.push(directory);
                }
            }
        }
        events.follow(wanted);
        events.due().await;
        events
    })
}
