//! Tasks that end with their owner; a panic in one of them is reported.
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::*},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::random::Random;

/// Spawns tasks that end with their owner; clones share the owner.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    over: CancellationToken,
    handle: Handle,
}

/// A future that is seldom ready, beside one that is polled for every call: it is only polled after it was
/// woken. Most such futures take a lock when polled, and a call polls several of them.
pub struct WakeGated<F> {
    future: Pin<Box<F>>,
    gate: Arc<Gate>,
    /// Sets the flag and wakes the task.
    waker: Waker,
    /// The task to wake.
    task: Option<Waker>,
}

pin_project! {
    /// The future of [`caught`].
    pub struct Caught<F> {
        #[pin]
        inner: Option<F>,
    }
}

/// A panic of a piece of code; `Display` shows its message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it panicked: {0}")]
pub struct Panicked(String);

struct Gate {
    is_woken: AtomicBool,
    task: Mutex<Option<Waker>>,
}

// === impl Tasks ===

impl Tasks {
    /// Tasks on the current tokio runtime; panics outside one, as tokio does.
    pub fn new() -> Self {
        Tasks { tracker: TaskTracker::new(), over: CancellationToken::new(), handle: Handle::current() }
    }

    /// Runs `task` until it is done or the owner ends. A panic ends the task and is logged.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let over = self.over.clone();
        let task = logged(task);
        let bounded = async move {
            let over = WakeGated::new(over.cancelled_owned());
            tokio::select! { biased; () = over => {}, () = task => {} }
        };
        self.handle.spawn(self.tracker.track_future(bounded));
    }

    /// Runs `task`, which must end by itself soon after another task of this owner: for example, a task that
    /// sends on a connection ends with the connection. It is not cancelled, which makes it cheaper than
    /// [`spawn`](Self::spawn); it is counted and awaited like all others.
    pub fn spawn_dependent(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(self.tracker.track_future(logged(task)));
    }

    /// Resolves when the owner ends.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }

    /// A child owner: its tasks end with this one's, or earlier.
    pub fn child(&self) -> Self {
        Tasks { tracker: TaskTracker::new(), over: self.over.child_token(), handle: self.handle.clone() }
    }

    /// Cancels all tasks.
    pub fn cancel(&self) {
        self.over.cancel();
    }

    /// Cancels all tasks and waits until they have ended, at most `bound`. `false` if some have not.
    pub async fn end(&self, bound: Duration) -> bool {
        self.over.cancel();
        self.tracker.close();
        tokio::time::timeout(bound, self.tracker.wait()).await.is_ok()
    }

    /// The number of running tasks.
    pub fn running(&self) -> usize {
        self.tracker.len()
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Caught ===

/// Runs `future`; a panic becomes an error for the caller instead of the end of the caller's task. For code of
/// other crates: registries, config sources, hooks, connectors.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use chassis_core::tasks::caught;
///
/// let panicked = caught(async { panic!("out of cheese") }).await.unwrap_err();
/// assert_eq!(panicked.to_string(), "it panicked: out of cheese");
/// # }
/// ```
pub fn caught<F: Future>(future: F) -> Caught<F> {
    Caught { inner: Some(future) }
}

/// Runs `work`; a panic becomes an error.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(Panicked::of)
}

impl<F: Future> Future for Caught<F> {
    type Output = Result<F::Output, Panicked>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else { return Poll::Pending };
        let polled = match catch(|| inner.poll(cx)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(panicked) => Err(panicked),
        };
        // Dropped here, because the drop may panic too.
        let dropped = catch(|| this.inner.set(None));
        Poll::Ready(polled.and_then(|output| dropped.map(|()| output)))
    }
}

async fn logged(task: impl Future<Output = ()>) {
    if let Err(panicked) = caught(task).await {
        tracing::error!(target: "chassis", "a task in the background ended: {panicked}");
    }
}

// === impl Panicked ===

impl Panicked {
    fn of(panic: Box<dyn Any + Send>) -> Self {
        let said = match panic.downcast::<String>() {
            Ok(said) => *said,
            Err(panic) => panic.downcast::<&'static str>().map_or_else(|_| "no message", |said| *said).into(),
        };
        Panicked(said)
    }
}

/// The time to wait before the next try after this many failures in a row: half to all of 100 ms, doubled with
/// each failure, and at most `most`.
pub fn backoff(failures: u32, most: Duration, random: &Random) -> Duration {
    let pause = Duration::from_millis(100 << failures.saturating_sub(1).min(16)).min(most);
    random.between(pause / 2, pause)
}

// === impl WakeGated ===

impl<F: Future> WakeGated<F> {
    /// `future`, to be polled beside another one.
    pub fn new(future: F) -> Self {
        let gate = Arc::new(Gate { is_woken: AtomicBool::new(true), task: Mutex::new(None) });
        WakeGated { future: Box::pin(future), waker: Waker::from(gate.clone()), gate, task: None }
    }

    /// Polls the future if it was woken. Before that it stores the task to wake, if that has changed.
    ///
    /// Not inlined: keeps the path without news, which every call takes several times, to two comparisons.
    #[cold]
    fn look(&mut self, cx: &mut Context<'_>) -> Poll<F::Output> {
        if self.task.as_ref().is_none_or(|task| !task.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
            self.gate.task().clone_from(&self.task);
        }
        match self.gate.is_woken.swap(false, AcqRel) {
            true => self.future.as_mut().poll(&mut Context::from_waker(&self.waker)),
            false => Poll::Pending,
        }
    }
}

impl<F: Future> Future for WakeGated<F> {
    type Output = F::Output;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let is_known = self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker()));
        // A wake-up from here on wakes the task, which polls again. Only reading does not write to the cache
        // line.
        match is_known && !self.gate.is_woken.load(Acquire) {
            true => Poll::Pending,
            false => self.look(cx),
        }
    }
}

// === impl Gate ===

impl Gate {
    /// No code panics while it holds the lock; a poisoned one would still be valid.
    fn task(&self) -> MutexGuard<'_, Option<Waker>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.is_woken.store(true, Release);
        if let Some(task) = &*self.task() {
            task.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_even_of_what_is_dropped() {
        struct Sore;
        impl Drop for Sore {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        let said = |panicked: Panicked| panicked.to_string();
        assert_eq!(caught(async { 7 }).await.map_err(said), Ok(7));
        assert_eq!(
            caught(async { panic!("{} times", 3) }).await.map_err(said),
            Err::<(), _>("it panicked: 3 times".into())
        );
        let sore = Sore;
        let ends_badly = poll_fn(move |_| {
            let _held = &sore;
            Poll::Ready(())
        });
        assert_eq!(caught(ends_badly).await.map_err(said), Err("it panicked: dropped".into()));
    }

    #[tokio::test]
    async fn a_task_that_panics_is_over() {
        let tasks = Tasks::new();
        tasks.spawn(async { panic!("on purpose") });
        tasks.spawn_dependent(async { panic!("on purpose") });
        assert!(tasks.end(Duration::from_secs(60)).await);
        assert_eq!(tasks.running(), 0);
    }

    #[test]
    fn waits_grow_and_are_bounded() {
        let (random, most) = (Random::seeded(1), Duration::from_secs(15));
        let waits =
            |failures| (0..100).map(|_| backoff(failures, most, &random).as_millis()).collect::<Vec<_>>();
        for (failures, least, most) in
            [(0, 50, 100), (1, 50, 100), (2, 100, 200), (5, 800, 1_600), (99, 7_500, 15_000)]
        {
            let waits = waits(failures);
            assert!(waits.iter().all(|wait| (least..=most).contains(wait)), "{failures}: {waits:?}");
            assert!(waits.iter().any(|wait| *wait != waits[0]), "jittered");
        }
    }

    #[tokio::test]
    async fn a_gated_future_is_polled_only_when_it_was_woken() {
        let (polls, news) = (Arc::new(Mutex::new(0)), Arc::new(Notify::new()));
        let (counted, waits) = (polls.clone(), news.clone());
        let mut inner = Box::pin(async move { waits.notified().await });
        let mut gated = WakeGated::new(poll_fn(move |cx| {
            *counted.lock().unwrap() += 1;
            inner.as_mut().poll(cx)
        }));
        for _ in 0..3 {
            assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut gated).poll(cx))).await.is_pending());
        }
        assert_eq!(*polls.lock().unwrap(), 1);
        // Also after another task polls it.
        let waiting = tokio::spawn(gated);
        tokio::task::yield_now().await;
        news.notify_one();
        waiting.await.unwrap();
        assert_eq!(*polls.lock().unwrap(), 2);
    }
}
