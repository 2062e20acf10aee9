//! Calls the functions that listen to changes of settings: in the order of the versions, and away from the task that follows
//! the settings. One that blocks delays no version, no call, and the others for a short time only.
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use chassis_config::tree::{Node, Path};
use chassis_core::{
    Runtime,
    contain::{BLOCKED_AFTER, FunctionThreads},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
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

/// The versions that the functions have still to be called for: a bounded number. Beyond it the newest one takes up those
/// that follow, so that no function misses a setting's last value.
#[derive(Clone)]
pub(super) struct Swaps {
    waiting: Arc<Mutex<VecDeque<Swap>>>,
    news: mpsc::Sender<()>,
}

/// Changes that wait for a function that blocks.
const WAITING: usize = 1_024;
/// Versions that wait for the functions.
const VERSIONS: usize = 64;

/// Calls the listeners for each version. One that takes long delays the others by its share of the time for each version.
async fn call_for(waiting: Arc<Mutex<VecDeque<Swap>>>, mut news: mpsc::Receiver<()>) {
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    while news.recv().await.is_some() {
        while let Some(Swap { version, before, after, listeners }) = next() {
            let mut listeners: Vec<_> = listeners.iter().map(|listener| (listener, BLOCKED_AFTER)).collect();
            for (path, change) in SettingChange::between(&before, &after, version) {
                for (listener, left) in listeners.iter_mut().filter(|(listener, _)| listener.is_for(&path)) {
                    *left = listener.call(&change, *left).await;
                }
            }
        }
    }
}

// === impl Swaps ===

impl Swaps {
    /// None yet; a task calls the functions for those that come, and ends with the last clone.
    pub(super) fn new(runtime: &Runtime) -> Self {
        let (swaps, called) = Swaps::followed();
        runtime.tasks().spawn(called);
        swaps
    }

    fn followed() -> (Self, impl Future<Output = ()> + Send) {
        let (news, noticed) = mpsc::channel(1);
        let waiting = Arc::new(Mutex::new(VecDeque::new()));
        (Swaps { waiting: waiting.clone(), news }, call_for(waiting, noticed))
    }

    pub(super) fn add(&self, swap: Swap) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = waiting.len() >= VERSIONS;
        match waiting.back_mut() {
            Some(newest) if is_full => {
                let Swap { version, after, listeners, .. } = swap;
                (newest.version, newest.after, newest.listeners) = (version, after, listeners);
            }
            _ => waiting.push_back(swap),
        }
        drop(waiting);
        self.news.try_send(()).ok(); // it is full if one is there already; it is closed when the process stops
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

    /// Calls the function, and waits for it no longer than `left`. Returns the rest of that.
    async fn call(&self, change: &SettingChange, left: Duration) -> Duration {
        let (returned, has_returned) = oneshot::channel();
        if self.queue.try_send((change.clone(), returned)).is_err() {
            let (name, path, version) = (&self.name, &change.path, change.version);
            tracing::error!(target: "chassis", "{name} blocks, and misses {path} of version {version}");
        } else if !left.is_zero() && !self.is_late.load(SeqCst) {
            let begun = Instant::now();
            if timeout(left, has_returned).await.is_err() {
                self.is_late.store(true, SeqCst);
                return Duration::ZERO;
            }
            return left.saturating_sub(begun.elapsed());
        }
        left
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

    /// The calls of a function: the time of each, and the version it was for.
    type Calls = Arc<Mutex<Vec<(Duration, u64)>>>;

    /// A function whose every call takes this long, and its calls since `begun`.
    fn listener(takes: Duration, begun: Instant) -> (Arc<Listener>, Calls) {
        let (queue, mut due) = mpsc::channel::<Due>(WAITING);
        let (seen, is_late) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (record, late) = (seen.clone(), is_late.clone());
        tokio::spawn(async move {
            while let Some((change, returned)) = due.recv().await {
                record.lock().unwrap().push((begun.elapsed(), change.version));
                tokio::time::sleep(takes).await;
                if due.is_empty() {
                    late.store(false, SeqCst);
                }
                returned.send(()).ok();
            }
        });
        (Arc::new(Listener { name: "f".into(), pattern: Vec::new(), queue, is_late }), seen)
    }

    /// The settings `a.k0`, `a.k1`, …, all of this value.
    fn tree(keys: usize, value: u64) -> Arc<Node> {
        let all: serde_json::Map<_, _> = (0..keys).map(|key| (format!("k{key}"), value.into())).collect();
        let origin = chassis_config::tree::Origin::new("test", chassis_config::tree::Layer::Builder, "");
        Arc::new(Node::from_json(&origin, &serde_json::json!({ "a": all })))
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_function_has_one_bound_for_a_version() {
        let begun = Instant::now();
        let (slow, slow_seen) = listener(Duration::from_secs(2), begun);
        let (fast, fast_seen) = listener(Duration::ZERO, begun);
        let (swaps, called) = Swaps::followed();
        tokio::spawn(called);
        let listeners = vec![slow, fast];
        swaps.add(Swap { version: 2, before: tree(10, 1), after: tree(10, 2), listeners });
        tokio::time::sleep(Duration::from_secs(60)).await;
        let (slow, fast) = (slow_seen.lock().unwrap().clone(), fast_seen.lock().unwrap().clone());
        assert_eq!((slow.len(), fast.len()), (10, 10), "none is lost");
        let last = fast.last().map(|(at, _)| *at).unwrap_or_default();
        assert!(last <= BLOCKED_AFTER + Duration::from_millis(50), "{last:?}");
        assert!(slow.last().is_some_and(|(at, _)| *at >= Duration::from_secs(18)), "{slow:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn versions_that_wait_are_bounded_and_the_last_values_are_not_lost() {
        let begun = Instant::now();
        let (slow, seen) = listener(Duration::from_secs(1), begun);
        let (swaps, called) = Swaps::followed();
        for version in 2..=1_000 {
            let listeners = vec![slow.clone()];
            let (before, after) = (tree(1, version - 1), tree(1, version));
            swaps.add(Swap { version, before, after, listeners });
        }
        assert_eq!(swaps.waiting.lock().unwrap().len(), VERSIONS);
        tokio::spawn(called);
        tokio::time::sleep(Duration::from_secs(600)).await;
        let versions: Vec<u64> = seen.lock().unwrap().iter().map(|(_, version)| *version).collect();
        let expected: Vec<u64> = (2..65).chain([1_000]).collect();
        assert_eq!(versions, expected);
    }
}
