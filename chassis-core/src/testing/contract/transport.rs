//! The contract of [`Transport`] and its [`Leaf`].
use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use crate::{
    call::{Failed, Invocation, Listener, Outcome, Reply},
    clock::Instant,
    cluster::{Connection, Link},
    plugin::transport::{Leaf, Transport},
    random::Random,
    tasks::Tasks,
    testing::read,
};

/// The time limit of every step: far more than any transport needs.
const CAP: Duration = Duration::from_secs(60);
/// The request of each call.
const REQUEST: &str = "seven left?";
/// The answer to each call.
const ANSWER: &str = "three left";

/// The other side of a transport: a server at one address, which the suite starts and stops.
#[async_trait]
pub trait Endpoint: Send {
    /// Its address, also before it starts.
    fn address(&self) -> String;

    /// A call of the transport's protocol with `text` in its body.
    fn call(&self, text: &'static str) -> Invocation;

    /// Accepts connections from now on. Each call is passed to [`Handler::handle`], whose output becomes a
    /// successful answer; the future is dropped when the caller is gone.
    async fn start(&mut self, handler: Handler);

    /// Breaks all connections and refuses new ones until the next start.
    async fn stop(&mut self);

    /// Whether leaves keep connections open, so that their links show whether the endpoint is reachable.
    /// Default: yes.
    fn is_watched(&self) -> bool {
        true
    }
}

/// Answers the calls that reach an [`Endpoint`], and counts them. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct Handler(Arc<watch::Sender<Seen>>);

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    answers: bool,
    arrived: usize,
    /// Calls of which the whole request arrived.
    whole: usize,
    /// Calls that were neither answered nor cancelled.
    open: usize,
}

struct Open<'a>(&'a Handler);

/// Counts how often an attempt reports its end.
#[derive(Default)]
struct EndCounter {
    judged: AtomicUsize,
    ended: AtomicUsize,
}

/// Checks what [`Transport`] and [`Leaf`] promise.
///
/// A call that can't be sent is returned unchanged, and can be sent again; one that is sent arrives once and is
/// answered; one that is lost on the way may have been executed, and is reported so; one that its caller drops
/// is cancelled at the other side too. Each attempt reports its end exactly once. The link shows whether the
/// endpoint can be reached. A leaf that is closed lets its calls finish; one that is dropped leaves no task,
/// and its tasks end with their owner.
///
/// Use tokio's paused clock, and an endpoint in memory.
///
/// # Panics
/// If a promise is broken, with its name.
pub async fn transport(transport: impl Transport, mut endpoint: impl Endpoint) {
    let tasks = Tasks::new();
    let link = Link::detached("contract", &endpoint.address(), tasks.clone(), Random::seeded(7));
    let leaf = transport.leaf(link.clone());
    let handler = Handler::default();
    handler.answers(true);

    // The endpoint does not exist yet.
    leaf.wake();
    if endpoint.is_watched() {
        state(&link, "says that an endpoint is not there", |c| c == Connection::TransientFailure).await;
    }
    let call = endpoint.call(REQUEST);
    let (method, uri, metadata) = (call.method.clone(), call.uri.clone(), call.metadata.clone());
    let (result, ends) = send(&leaf, call).await;
    let mut error = result.expect_err("a call to an endpoint that is not there fails");
    assert!(!error.maybe_executed(), "a call that was not sent was not executed: {error:?}");
    let back = error.take_unsent().expect("a call that was not sent is given back");
    ends.ended_once("that was not sent");
    assert_eq!((&back.method, &back.uri), (&method, &uri), "what is given back is untouched");
    assert_eq!(back.metadata, metadata, "the metadata of what is given back is untouched");

    // The endpoint starts.
    endpoint.start(handler.clone()).await;
    leaf.wake();
    state(&link, "says that an endpoint is back", |c| c == Connection::Ready).await;
    let (result, ends) = send(&leaf, back).await;
    answered(result, "a call that was given back").await;
    ends.ended_once("that was answered");
    assert_eq!(handler.seen().arrived, 1, "a call arrives once");
    assert_eq!(handler.seen().whole, 1, "a call that was given back arrives with its body");

    // Many calls at once, of which one is cancelled.
    handler.answers(false);
    let mut calls: Vec<_> = (0..4).map(|_| begin(&leaf, endpoint.call(REQUEST))).collect();
    handler.until("calls arrive at the same time", |seen| seen.open == 4).await;
    let (dropped, ends) = calls.swap_remove(1);
    dropped.abort();
    handler.until("a call that its caller dropped is given up at the endpoint", |seen| seen.open == 3).await;
    assert!(dropped.await.is_err_and(|why| why.is_cancelled()));
    ends.ended_once("that was dropped");
    handler.answers(true);
    for (call, ends) in calls {
        answered(bounded("an answer", call).await.expect("no panic"), "a call beside one that was dropped")
            .await;
        ends.ended_once("beside others");
    }
    assert_eq!(handler.seen().arrived, 5, "each call arrives once");
    assert_eq!(handler.seen().whole, 5, "each call arrives with its body");

    // The connection breaks with a call on it.
    handler.answers(false);
    let (call, ends) = begin(&leaf, endpoint.call(REQUEST));
    handler.until("a call arrives", |seen| seen.open == 1).await;
    endpoint.stop().await;
    let result = bounded("the end of a call whose connection broke", call).await.expect("no panic");
    let mut error = result.expect_err("a call whose connection broke fails");
    assert!(error.maybe_executed(), "a call that arrived may have been executed: {error:?}");
    assert!(error.take_unsent().is_none(), "a call that was sent is not given back as unsent");
    ends.ended_once("whose connection broke");
    assert_eq!(handler.seen().arrived, 6, "the leaf itself sends a call that arrived no second time");

    // The endpoint is gone, which the next call detects at the latest.
    let (result, ends) = send(&leaf, endpoint.call(REQUEST)).await;
    let mut error = result.expect_err("a call to an endpoint that is gone fails");
    assert!(error.take_unsent().is_some(), "a call to an endpoint that is gone is given back: {error:?}");
    ends.ended_once("to an endpoint that is gone");
    if endpoint.is_watched() {
        state(&link, "says that an endpoint is gone", |c| c != Connection::Ready).await;
    }

    // The endpoint starts again, and the leaf is closed under a call.
    endpoint.start(handler.clone()).await;
    leaf.wake();
    state(&link, "says that an endpoint is back", |c| c == Connection::Ready).await;
    let (call, ends) = begin(&leaf, endpoint.call(REQUEST));
    handler.until("a call arrives over a new connection", |seen| seen.open == 1).await;
    leaf.close();
    handler.answers(true);
    let result = bounded("an answer", call).await.expect("no panic");
    answered(result, "a call under which the leaf is closed").await;
    ends.ended_once("under which the leaf is closed");
    drop(leaf);
    let idle = async {
        while tasks.running() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await; // no event reports that a task has ended
        }
    };
    let idle = timeout(CAP, idle).await;
    assert!(idle.is_ok(), "a leaf that was dropped has {} tasks left", tasks.running());

    // The owner ends while a leaf is connected.
    let link = Link::detached("contract", &endpoint.address(), tasks.clone(), Random::seeded(8));
    let leaf = transport.leaf(link.clone());
    leaf.wake();
    state(&link, "says that an endpoint is there", |c| c == Connection::Ready).await;
    assert!(tasks.end(CAP).await, "{} tasks of a leaf outlive their owner", tasks.running());
    drop(leaf);
    endpoint.stop().await;
}

/// Sends `call` and counts the reports of its end.
fn begin(leaf: &impl Leaf, mut call: Invocation) -> (JoinHandle<Result<Reply, Failed>>, Arc<EndCounter>) {
    let ends = Arc::<EndCounter>::default();
    call.begin_attempt(Instant::now());
    call.listen_attempt(ends.clone(), 0);
    (tokio::spawn(leaf.call(call)), ends)
}

async fn send(leaf: &impl Leaf, call: Invocation) -> (Result<Reply, Failed>, Arc<EndCounter>) {
    let (call, ends) = begin(leaf, call);
    (bounded("the end of a call", call).await.expect("a leaf does not panic"), ends)
}

/// Reads the answer to its end.
async fn answered(result: Result<Reply, Failed>, what: &str) {
    let reply = result.unwrap_or_else(|error| panic!("{what} is answered: {error:?}"));
    assert!(reply.as_error().is_none(), "{what} is answered with a success: {reply:?}");
    let read = bounded("the rest of an answer", read(reply)).await;
    let read = read.unwrap_or_else(|error| panic!("the answer to {what} is read to its end: {error:?}"));
    assert!(read.text().contains(ANSWER), "the answer to {what} is the endpoint's: {:?}", read.text());
}

/// Waits until the link's state satisfies `is`.
async fn state(link: &Link, what: &str, is: impl Fn(Connection) -> bool) {
    let waited = timeout(CAP, async {
        loop {
            let changed = link.changed();
            let mut changed = pin!(changed);
            // Registered before the check, so that no change is missed.
            poll_fn(|cx| std::task::Poll::Ready(changed.as_mut().poll(cx).is_ready())).await;
            if is(link.connection()) {
                return;
            }
            changed.await;
        }
    });
    assert!(waited.await.is_ok(), "the link of a woken leaf {what}: it is {}", link.connection());
}

async fn bounded<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(CAP, future).await.unwrap_or_else(|_| panic!("{what} did not come within {CAP:?}"))
}

// === impl Handler ===

impl Handler {
    /// Handles one call with the whole `request`, and returns the answer.
    pub async fn handle(&self, request: &[u8]) -> &'static str {
        let whole = request.windows(REQUEST.len()).any(|part| part == REQUEST.as_bytes());
        self.0.send_modify(|seen| {
            seen.arrived += 1;
            seen.whole += usize::from(whole);
            seen.open += 1;
        });
        let _open = Open(self);
        // This handler holds the sender.
        let _ = self.0.subscribe().wait_for(|seen| seen.answers).await;
        ANSWER
    }

    fn answers(&self, answers: bool) {
        self.0.send_modify(|seen| seen.answers = answers);
    }

    fn seen(&self) -> Seen {
        *self.0.borrow()
    }

    async fn until(&self, what: &str, is: impl FnMut(&Seen) -> bool) {
        let mut seen = self.0.subscribe();
        let waited = timeout(CAP, seen.wait_for(is)).await.is_ok();
        assert!(waited, "{what}: {:?}", self.seen());
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|seen| seen.open -= 1);
    }
}

// === impl EndCounter ===

impl EndCounter {
    fn ended_once(&self, call: &str) {
        let counts = (self.judged.load(SeqCst), self.ended.load(SeqCst));
        assert_eq!(counts, (1, 1), "an attempt {call} reports its verdict and its end once");
    }
}

impl Listener for EndCounter {
    fn judged(&self, _: u64, _: &Outcome<'_>) {
        self.judged.fetch_add(1, SeqCst);
    }

    fn ended(&self, _: u64) {
        self.ended.fetch_add(1, SeqCst);
    }
}
