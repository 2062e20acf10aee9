//! One thread for all that a registry does in the background.
use std::{io, thread};

use chassis_core::tasks::Tasks;
use tokio::{runtime::Builder, sync::oneshot};

/// A thread with a runtime of its own. It ends when this is dropped, with all its tasks; nothing waits for it.
pub(super) struct OwnThread {
    tasks: Tasks,
    _over: oneshot::Sender<()>,
}

// === impl OwnThread ===

impl OwnThread {
    pub(super) fn start(name: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let tasks = {
            let _guard = runtime.enter();
            Tasks::new()
        };
        let (over, is_over) = oneshot::channel::<()>();
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _ = runtime.block_on(is_over);
            runtime.shutdown_background(); // else it would wait for blocking work
        })?;
        Ok(OwnThread { tasks, _over: over })
    }

    /// An owner of tasks that run on it.
    pub(super) fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}
