//! Tasks that belong to somebody: they end when their owner does.
use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::*},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

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

    /// Runs `task` until it is done or the owner ends.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let over = self.over.clone();
        let bounded = async move {
            let over = Aside::new(over.cancelled_owned());
            tokio::select! { biased; () = over => {}, () = task => {} }
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

// === impl Aside ===

impl<F: Future> Aside<F> {
    /// `future`, to be polled beside another one.
    pub fn new(future: F) -> Self {
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), task: Mutex::new(None) });
        Aside { future: Box::pin(future), rope: Waker::from(bell.clone()), bell, task: None }
    }
}

impl<F: Future> Future for Aside<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if this.task.as_ref().is_none_or(|task| !task.will_wake(cx.waker())) {
            this.task = Some(cx.waker().clone());
            this.bell.task().clone_from(&this.task);
        }
        // Who rings from here on wakes the task, which looks again. A look alone leaves the cache line be.
        match this.bell.rung.load(Acquire) && this.bell.rung.swap(false, AcqRel) {
            true => this.future.as_mut().poll(&mut Context::from_waker(&this.rope)),
            false => Poll::Pending,
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
