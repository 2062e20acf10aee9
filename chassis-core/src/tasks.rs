//! Tasks that belong to somebody: they end when their owner does.
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Spawns tasks that end with their owner; clones share the owner.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    over: CancellationToken,
    handle: Handle,
}

// === impl Tasks ===

impl Tasks {
    /// Tasks on the tokio runtime this is called in; panics outside one, as tokio itself does.
    pub fn new() -> Self {
        Tasks { tracker: TaskTracker::new(), over: CancellationToken::new(), handle: Handle::current() }
    }

    /// Runs `task` until it is done or the owner ends.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let over = self.over.clone();
        let bounded = async move {
            tokio::select! { biased; () = over.cancelled() => {}, () = task => {} }
        };
        self.handle.spawn(self.tracker.track_future(bounded));
    }

    /// Resolves when the owner ends.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }

    /// A part whose tasks end with this one's, or on their own.
    pub fn child(&self) -> Self {
        Tasks { tracker: TaskTracker::new(), over: self.over.child_token(), handle: self.handle.clone() }
    }

    /// Tells all tasks to end.
    pub fn cancel(&self) {
        self.over.cancel();
    }

    /// Tells all tasks to end and waits until they have, at most `bound`. `false`: some have not.
    pub async fn end(&self, bound: Duration) -> bool {
        self.over.cancel();
        self.tracker.close();
        tokio::time::timeout(bound, self.tracker.wait()).await.is_ok()
    }

    /// How many are running.
    pub fn running(&self) -> usize {
        self.tracker.len()
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}
