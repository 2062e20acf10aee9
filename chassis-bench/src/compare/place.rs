//! Threads pinned to cores, and their CPU time.
use std::{
    sync::mpsc::{Receiver, channel},
    thread::JoinHandle,
    time::Duration,
};

use rustix::{
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
};
use tokio::{runtime::Handle, sync::oneshot};

use crate::Result;

/// One thread on one core, with a runtime of its own, for a client or a server.
pub(super) struct Place {
    handle: Handle,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The cores that this process may use.
pub(super) fn cores() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
}

// === impl Place ===

impl Place {
    pub(super) fn new(name: &str, core: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        let (pinned, is_pinned) = channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut set = CpuSet::new();
            set.set(core);
            // The receiver is gone if the start was given up.
            let _ = pinned.send(sched_setaffinity(None, &set));
            let _ = runtime.block_on(ended);
            runtime.shutdown_background();
        })?;
        is_pinned.recv()??;
        Ok(Place { handle, end: Some(end), thread: Some(thread) })
    }

    /// Runs `work` on the thread and waits for the result.
    pub(super) fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T> {
        Ok(self.begin(work).recv()?)
    }

    /// Starts `work` on the thread; the result arrives in the channel.
    pub(super) fn begin<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Receiver<T> {
        let (done, result) = channel();
        self.handle.spawn(async move { done.send(work.await) });
        result
    }

    /// The CPU time of the thread so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        self.run(async {
            let time = clock_gettime(ClockId::ThreadCPUTime);
            Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has printed its message already.
            let _ = thread.join();
        }
    }
}
