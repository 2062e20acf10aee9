//! Tasks that belong to somebody: they end when their owner does, and a panic in one of them is reported.
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

/// A future that hardly ever has news, beside one that is polled for every call: it is polled only when it
/// asked to be. Most are behind locks, and several are asked for each call otherwise.
pub struct Aside<F> {
    future: Pin<Box<F>>,
    bell: Arc<Bell>,
    /// Rings the bell.
    rope: Waker,
    /// Whom the bell wakes.
    task: Option<Waker>,
}

pin_project! {
    /// The future of [`caught`].
    pub struct Caught<F> {
        #[pin]
        inner: Option<F>,
    }
}

/// A piece of code panicked; `Display` says what the panic said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it panicked: {0}")]
pub struct Panicked(String);

struct Bell {
    rung: AtomicBool,
    task: Mutex<Option<Waker>>,
}

// === impl Tasks ===

impl Tasks {
    /// Tasks on the tokio runtime this is called in; panics outside one, as tokio itself does.
    pub fn new() -> Self {
        Tasks { tracker: TaskTracker::new(), over: CancellationToken::new(), handle: Handle::current() }
    }

    /// Runs `task` until it is done or the owner ends. A panic ends the task and is logged.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let over = self.over.clone();
        let task = logged(task);
        let bounded = async move {
            let over = Aside::new(over.cancelled_owned());
            tokio::select! { biased; () = over => {}, () = task => {} }
        };
        self.handle.spawn(self.tracker.track_future(bounded));
    }

    /// Runs `task`, which has to end by itself soon after another task of this owner has: one that sends on
    /// a connection ends with it. Nothing cancels it, which makes it cheaper than [`spawn`](Self::spawn); it
    /// is counted and waited for like all others.
    pub fn spawn_dependent(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(self.tracker.track_future(logged(task)));
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

// === impl Caught ===

/// Runs `future`; its panic is an error of its caller rather than the end of the caller's task. For code
/// that somebody else wrote: registries, sources of settings, hooks, connectors.
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

/// Runs `work`; its panic is an error.
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
        // Here rather than by whoever drops this: what it holds may panic too.
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

/// How long to wait before something is tried again that has failed so many times in a row: half to all of
/// 100 ms, doubled with each failure, and at most `most`.
pub fn backoff(failures: u32, most: Duration, random: &Random) -> Duration {
    let pause = Duration::from_millis(100 << failures.saturating_sub(1).min(16)).min(most);
    random.between(pause / 2, pause)
}

// === impl Aside ===

impl<F: Future> Aside<F> {
    /// `future`, to be polled beside another one.
    pub fn new(future: F) -> Self {
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), task: Mutex::new(None) });
        Aside { future: Box::pin(future), rope: Waker::from(bell.clone()), bell, task: None }
    }

    /// Polls the future if it asked to be. Tells the bell first which task to wake, where that is another one.
    ///
    /// Not inlined: keeps the path without news, which every call takes several times, to two comparisons.
    #[cold]
    fn look(&mut self, cx: &mut Context<'_>) -> Poll<F::Output> {
        if self.task.as_ref().is_none_or(|task| !task.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
            self.bell.task().clone_from(&self.task);
        }
        match self.bell.rung.swap(false, AcqRel) {
            true => self.future.as_mut().poll(&mut Context::from_waker(&self.rope)),
            false => Poll::Pending,
        }
    }
}

impl<F: Future> Future for Aside<F> {
    type Output = F::Output;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let is_known = self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker()));
        // Who rings from here on wakes the task, which looks again. A look alone leaves the cache line be.
        match is_known && !self.bell.rung.load(Acquire) {
            true => Poll::Pending,
            false => self.look(cx),
        }
    }
}

// === impl Bell ===

impl Bell {
    /// Nothing panics while it is held; a poisoned lock would be as good as new.
    fn task(&self) -> MutexGuard<'_, Option<Waker>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rung.store(true, Release);
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
    async fn what_is_aside_is_polled_only_when_it_asked_to_be() {
        let (polls, news) = (Arc::new(Mutex::new(0)), Arc::new(Notify::new()));
        let (counted, heard) = (polls.clone(), news.clone());
        let mut inner = Box::pin(async move { heard.notified().await });
        let mut aside = Aside::new(poll_fn(move |cx| {
            *counted.lock().unwrap() += 1;
            inner.as_mut().poll(cx)
        }));
        for _ in 0..3 {
            assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut aside).poll(cx))).await.is_pending());
        }
        assert_eq!(*polls.lock().unwrap(), 1);
        // Also where another task polls it from now on.
        let waiting = tokio::spawn(aside);
        tokio::task::yield_now().await;
        news.notify_one();
        waiting.await.unwrap();
        assert_eq!(*polls.lock().unwrap(), 2);
    }
}
