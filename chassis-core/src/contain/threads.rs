//! Threads that poll the futures of plugins: one that blocks delays no other.
//!
//! They start when there is work and end when there is none. A thread that blocks forever is abandoned: neither
//! a stop nor the end of the process waits for it.
use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, Sleep, sleep_until},
};

use crate::{BoxFuture, tasks::catch};

/// The threads of one plugin; clones share them.
#[derive(Clone)]
pub(super) struct Threads(Arc<Pool>);

/// A future that these threads poll. Its output or its panic is returned here.
///
/// Dropping it never waits: a poll under way continues until it returns, and its thread drops the future then.
pub(super) struct Offloaded<T: Send + 'static> {
    task: Arc<Task<T>>,
    watch: Watch,
    /// The timer of the poll that began at this time.
    timer: Option<(Instant, Pin<Box<Sleep>>)>,
}

/// Reports polls that take too long, with the time they have taken so far.
pub(super) struct Watch {
    /// The longest poll that is not reported.
    pub(super) after: Duration,
    pub(super) report: Box<dyn Fn(Duration) + Send + Sync>,
}

#[derive(Default)]
struct Pool {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Arc<dyn Job>>,
    idle: usize,
    threads: usize,
}

/// The work of a thread.
trait Job: Send + Sync {
    fn run(self: Arc<Self>);
}

struct Task<T> {
    progress: Mutex<Progress<T>>,
    threads: Threads,
    /// The runtime whose timers and sockets the future uses, and whose tasks it spawns.
    runtime: Handle,
}

struct Progress<T> {
    stage: Stage,
    future: Option<BoxFuture<'static, T>>,
    output: Option<Result<T, Box<dyn Any + Send>>>,
    /// The waker of the receiver.
    waiting: Option<Waker>,
    /// When it was queued, or its poll began.
    since: Instant,
    begun: bool,
    abandoned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Not polled yet.
    Fresh,
    Idle,
    Queued,
    Polled,
    /// Woken while it was polled.
    PolledAgain,
    Done,
}

struct Drops<T>(Mutex<Option<T>>);

/// The most threads of one plugin, and so the most of its polls that may block at once.
const MOST_THREADS: usize = 32;
/// A thread without work ends after this.
const IDLE: Duration = Duration::from_secs(10);
/// A poll that still blocks is reported again after this.
const REMINDER: Duration = Duration::from_secs(60);

// === impl Threads ===

impl Threads {
    /// A pool without threads.
    pub(super) fn new() -> Self {
        Threads(Arc::default())
    }

    /// Has the threads poll `future`; the first poll of the returned future starts it. Call it within a tokio
    /// runtime.
    pub(super) fn offload<T: Send + 'static>(
        &self,
        watch: Watch,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Offloaded<T> {
        let progress = Progress {
            stage: Stage::Fresh,
            future: Some(Box::pin(future)),
            output: None,
            waiting: None,
            since: Instant::now(),
            begun: false,
            abandoned: false,
        };
        let (threads, runtime) = (self.clone(), Handle::current());
        Offloaded {
            task: Arc::new(Task { progress: Mutex::new(progress), threads, runtime }),
            watch,
            timer: None,
        }
    }

    /// Drops `value` on these threads.
    pub(super) fn drop_later(&self, value: impl Send + 'static) {
        self.submit(Arc::new(Drops(Mutex::new(Some(value)))));
    }

    fn submit(&self, job: Arc<dyn Job>) {
        let mut state = self.0.state();
        state.queue.push_back(job);
        if state.queue.len() <= state.idle {
            return self.0.work.notify_one();
        }
        if state.threads < MOST_THREADS {
            let pool = self.0.clone();
            match std::thread::Builder::new().name("chassis-plugin".to_owned()).spawn(move || pool.work()) {
                Ok(_) => state.threads += 1,
                // The next job tries again; queued jobs wait only until their time limit.
                Err(error) => tracing::warn!(target: "chassis", %error, "no thread for a plugin"),
            }
        }
    }

    fn forget<T: Send + 'static>(&self, task: &Arc<Task<T>>) {
        let is_it = |job: &Arc<dyn Job>| std::ptr::addr_eq(Arc::as_ptr(job), Arc::as_ptr(task));
        self.0.state().queue.retain(|job| !is_it(job));
    }
}

// === impl Pool ===

impl Pool {
    /// No code panics while it holds the lock; a poisoned one would still be valid.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(self: Arc<Self>) {
        while let Some(job) = self.next() {
            job.run();
        }
    }

    /// The next job; `None` if none came for a while, and this thread ends.
    fn next(&self) -> Option<Arc<dyn Job>> {
        let mut state = self.state();
        loop {
            if let Some(job) = state.queue.pop_front() {
                return Some(job);
            }
            state.idle += 1;
            let (woken, waited) = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() {
                state.threads -= 1;
                return None;
            }
        }
    }
}

// === impl Task ===

impl<T> Task<T> {
    fn progress(&self) -> MutexGuard<'_, Progress<T>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send + 'static> Task<T> {
    fn queue(self: &Arc<Self>, progress: &mut Progress<T>) {
        (progress.stage, progress.since) = (Stage::Queued, Instant::now());
        self.threads.submit(self.clone());
    }

    fn poll(self: &Arc<Self>, future: &mut BoxFuture<'static, T>) -> Result<Poll<T>, Box<dyn Any + Send>> {
        let waker = Waker::from(self.clone());
        catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker))))
    }

    /// Stores `output` once `future` is dropped, because the drop may panic or block.
    fn finish(&self, output: Result<T, Box<dyn Any + Send>>, future: BoxFuture<'static, T>) {
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(future)));
        let mut progress = self.progress();
        progress.stage = Stage::Done;
        progress.output = Some(output.and_then(|output| dropped.map(|()| output)));
        // The receiver is gone: drop it on this thread, where a drop that blocks delays no call.
        let unwanted = if progress.abandoned { progress.output.take() } else { None };
        let waiting = progress.waiting.take();
        drop(progress);
        let _ = catch(|| drop(unwanted));
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }
}

impl<T: Send + 'static> Job for Task<T> {
    fn run(self: Arc<Self>) {
        let _within = self.runtime.enter();
        let mut progress = self.progress();
        let Some(mut future) = progress.future.take() else { return };
        if progress.abandoned {
            drop(progress);
            let _ = catch(|| drop(future));
            return;
        }
        (progress.stage, progress.since, progress.begun) = (Stage::Polled, Instant::now(), true);
        drop(progress);
        match self.poll(&mut future) {
            Ok(Poll::Ready(output)) => self.finish(Ok(output), future),
            Err(panic) => self.finish(Err(panic), future),
            Ok(Poll::Pending) => {
                let mut progress = self.progress();
                if progress.abandoned {
                    drop(progress);
                    let _ = catch(|| drop(future));
                    return;
                }
                progress.future = Some(future);
                match progress.stage {
                    Stage::PolledAgain => self.queue(&mut progress),
                    _ => progress.stage = Stage::Idle,
                }
            }
        }
    }
}

impl<T: Send + 'static> Wake for Task<T> {
    fn wake(self: Arc<Self>) {
        let mut progress = self.progress();
        match progress.stage {
            Stage::Idle => self.queue(&mut progress),
            Stage::Polled => progress.stage = Stage::PolledAgain,
            Stage::Fresh | Stage::Queued | Stage::PolledAgain | Stage::Done => return,
        }
        // From now on the poll may take too long.
        let waiting = progress.waiting.clone();
        drop(progress);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }
}

impl<T: Send> Job for Drops<T> {
    fn run(self: Arc<Self>) {
        let value = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let _ = catch(|| drop(value));
    }
}

// === impl Offloaded ===

impl<T: Send + 'static> Future for Offloaded<T> {
    type Output = Result<T, Box<dyn Any + Send>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Offloaded { task, watch, timer } = &mut *self;
        loop {
            let mut progress = task.progress();
            if let Some(output) = progress.output.take() {
                return Poll::Ready(output);
            }
            progress.waiting = Some(cx.waker().clone());
            if progress.stage == Stage::Fresh {
                task.queue(&mut progress);
            }
            let (stage, since) = (progress.stage, progress.since);
            drop(progress);
            if stage == Stage::Idle {
                *timer = None;
                return Poll::Pending;
            }
            if timer.as_ref().is_none_or(|(of, _)| *of != since) {
                *timer = Some((since, Box::pin(sleep_until(since + watch.after))));
            }
            if let Some((_, wait)) = timer {
                std::task::ready!(wait.as_mut().poll(cx));
            }
            (watch.report)(since.elapsed());
            *timer = Some((since, Box::pin(sleep_until(Instant::now() + REMINDER))));
        }
    }
}

impl<T: Send + 'static> Drop for Offloaded<T> {
    fn drop(&mut self) {
        let mut progress = self.task.progress();
        progress.abandoned = true;
        progress.waiting = None;
        let (unwanted, unbegun) = match progress.stage {
            Stage::Fresh => (None, progress.future.take()),
            Stage::Idle => {
                self.task.queue(&mut progress);
                (None, None)
            }
            Stage::Queued if !progress.begun => (None, progress.future.take()),
            Stage::Queued | Stage::Polled | Stage::PolledAgain => (None, None),
            Stage::Done => (progress.output.take(), None),
        };
        drop(progress);
        if unbegun.is_some() {
            self.task.threads.forget(&self.task);
        }
        // It may hold a watcher, whose drop may block.
        if let Some(unbegun) = unbegun {
            self.task.threads.drop_later(unbegun);
        }
        if let Some(unwanted) = unwanted {
            self.task.threads.drop_later(unwanted);
        }
    }
}
