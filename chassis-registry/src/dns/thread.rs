//! One thread for all that a registry does in the background.
use std::{io, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// A thread with a runtime of its own. It ends when this is dropped, with all its tasks; nothing waits for it.
pub(super) struct OwnThread {
    handle: Handle,
    _over: oneshot::Sender<()>,
}

// === impl OwnThread ===

impl OwnThread {
    pub(super) fn start(name: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let handle = runtime.handle().clone();
        let (over, is_over) = oneshot::channel::<()>();
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _ = runtime.block_on(is_over);
            runtime.shutdown_background(); // else it would wait for blocking work
        })?;
        Ok(OwnThread { handle, _over: over })
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(task);
    }
}
