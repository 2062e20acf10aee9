//! Calls the functions that listen to changes of settings: in the order of the versions, and away from the task that follows
//! the settings. One that blocks delays no version, no call, and the others for a short time only.
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use chassis_config::tree::{Node, Path};
use chassis_core::{
    Runtime,
    contain::{BLOCKED_AFTER, FunctionThreads},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::SettingChange;

/// A version that was put in force, and the functions that were registered by then.
pub(super) struct Swap {
    pub(super) version: u64,
    pub(super) before: Arc<Node>,
    pub(super) after: Arc<Node>,
    pub(super) listeners: Vec<Arc<Listener>>,
}

/// A function that is called for settings whose paths match.
pub(super) struct Listener {
    name: String,
    pattern: Vec<String>,
    queue: mpsc::Sender<Due>,
    /// A call has taken too long: the others do not wait for this function until it has caught up.
    is_late: Arc<AtomicBool>,
}

/// A change that a function is to be called for, and the signal that it has returned.
type Due = (SettingChange, oneshot::Sender<()>);

/// Changes that wait for a function that blocks.
const WAITING: usize = 1_024;

/// Calls the listeners for each version.
pub(super) async fn call_for(mut swaps: mpsc::UnboundedReceiver<Swap>) {
    while let Some(Swap { version, before, after, listeners }) = swaps.recv().await {
        for (path, change) in SettingChange::between(&before, &after, version) {
            for listener in listeners.iter().filter(|listener| listener.is_for(&path)) {
                listener.call(&change).await;
            }
        }
    }
}

// === impl Listener ===

impl Listener {
    pub(super) fn new(
        written: &str,
        pattern: Vec<String>,
        call: impl Fn(&SettingChange) + Send + Sync + 'static,
        runtime: &Runtime,
    ) -> Self {
        let (queue, mut due) = mpsc::channel::<Due>(WAITING);
        let (name, is_late) = (format!("on_change of `{written}`"), Arc::new(AtomicBool::new(false)));
        let threads = FunctionThreads::new(&name, runtime.events(), BLOCKED_AFTER);
        let (call, late, called) = (Arc::new(call), is_late.clone(), name.clone());
        runtime.tasks().spawn(async move {
            while let Some((change, returned)) = due.recv().await {
                let (path, call) = (change.path.clone(), call.clone());
                if let Err(panicked) = threads.run(&path, move || call(&change)).await {
                    tracing::error!(target: "chassis", "{called}, {path}: {panicked}");
                }
                if due.is_empty() {
                    late.store(false, SeqCst);
                }
                returned.send(()).ok(); // it may have taken too long
            }
        });
        Listener { name, pattern, queue, is_late }
    }

    /// Calls the function, and waits a limited time for it.
    async fn call(&self, change: &SettingChange) {
        let (returned, has_returned) = oneshot::channel();
        if self.queue.try_send((change.clone(), returned)).is_err() {
            let (name, path, version) = (&self.name, &change.path, change.version);
            tracing::error!(target: "chassis", "{name} blocks, and misses {path} of version {version}");
        } else if !self.is_late.load(SeqCst) && timeout(BLOCKED_AFTER, has_returned).await.is_err() {
            self.is_late.store(true, SeqCst);
        }
    }

    fn is_for(&self, path: &Path) -> bool {
        let keys: Vec<String> = path.0.iter().map(|segment| Path(vec![segment.clone()]).key()).collect();
        matches(&self.pattern, &keys)
    }
}

/// Whether `pattern` matches the keys, or the first ones of them.
fn matches(pattern: &[String], keys: &[String]) -> bool {
    match (pattern.split_first(), keys.split_first()) {
        (None, _) => true,
        (Some((first, rest)), _) if first == "**" => {
            matches(rest, keys) || keys.split_first().is_some_and(|(_, below)| matches(pattern, below))
        }
        (Some((first, rest)), Some((key, below))) => (first == "*" || first == key) && matches(rest, below),
        (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, path: &str, expected: bool) {
        let keys = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(matches(&keys(pattern), &keys(path)), expected, "{pattern} {path}");
    }

    #[test]
    fn patterns_match_paths_and_all_below() {
        check("a.b", "a.b", true);
        check("a.b", "a.b.c", true);
        check("a.b", "a.bc", false);
        check("a.b.c", "a.b", false);
        check("a.*.c", "a.b.c", true);
        check("a.*.c", "a.b.d.c", false);
        check("a.**.c", "a.b.d.c", true);
        check("a.**.c", "a.c", true);
        check("**.c", "a.b.d", false);
        check("**", "a", true);
    }
}
