//! What every [`Transport`] and its [`Leaf`] keep to.
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

/// How long anything may take before the suite gives up: far above what any transport needs.
const CAP: Duration = Duration::from_secs(60);
/// What each call asks.
const REQUEST: &str = "seven left?";
/// What each call is answered.
const ANSWER: &str = "three left";

/// The other side of a transport: a server at one address, which the suite starts and stops.
#[async_trait]
pub trait Endpoint: Send {
    /// Where it is, or will be.
    fn address(&self) -> String;

    /// A call of the transport's protocol, whose request has `text` in its body.
    fn call(&self, text: &'static str) -> Invocation;

    /// Accepts connections from now on. Each call is given to [`Handler::handle`], and is answered as a success
    /// with what that returns; the future is dropped once the caller is gone.
    async fn start(&mut self, handler: Handler);

    /// Breaks all connections and refuses new ones, until it is started again.
    async fn stop(&mut self);

    /// Do leaves keep connections up, so that their links say whether the endpoint is there? Default: yes.
    fn is_watched(&self) -> bool {
        true
    }
}

/// Answers the calls that reach an [`Endpoint`], and counts them. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Handler(Arc<watch::Sender<Seen>>);

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    answers: bool,
    arrived: usize,
    /// Of these, with the whole request.
    whole: usize,
    /// Of these, not yet answered nor given up.
    open: usize,
}

struct Open<'a>(&'a Handler);

/// Counts how often an attempt is told its end.
#[derive(Default)]
struct Ears {
    judged: AtomicUsize,
    ended: AtomicUsize,
}

/// Holds a transport to what [`Transport`] and [`Leaf`] promise.
///
/// A call that can't be sent is given back untouched, and can be sent again; one that is sent arrives once, and
/// is answered; one that is lost on the way may have been executed, and says so; one that its caller drops is
/// given up over there too. Each attempt is told its end exactly once. The link says whether the endpoint can be
/// reached. A leaf that is closed lets its calls finish; one that is dropped leaves no task, and its tasks end
/// with their owner.
///
/// Use tokio's paused clock, and an endpoint in memory.
///
/// # Panics
/// Where a promise is broken, naming it.
pub async fn transport(transport: impl Transport, mut endpoint: impl Endpoint) {
    let tasks = Tasks::new();
    let link = Link::detached("contract", &endpoint.address(), tasks.clone(), Random::seeded(7));
    let leaf = transport.leaf(link.clone());
    let handler = Handler::default();
    handler.answers(true);

    // Nobody is there.
    leaf.wake();
    if endpoint.is_watched() {
        state(&link, "says that an endpoint is not there", |c| c == Connection::TransientFailure).await;
    }
    let call = endpoint.call(REQUEST);
    let (method, uri, metadata) = (call.method.clone(), call.uri.clone(), call.metadata.clone());
    let (result, ears) = send(&leaf, call).await;
    let mut error = result.expect_err("a call to an endpoint that is not there fails");
    assert!(!error.maybe_executed(), "a call that was not sent was not executed: {error:?}");
    let back = error.take_unsent().expect("a call that was not sent is given back");
    ears.heard_once("that was not sent");
    assert_eq!((&back.method, &back.uri), (&method, &uri), "what is given back is untouched");
    assert_eq!(back.metadata, metadata, "the metadata of what is given back is untouched");

    // It comes up.
    endpoint.start(handler.clone()).await;
    leaf.wake();
    state(&link, "says that an endpoint is back", |c| c == Connection::Ready).await;
    let (result, ears) = send(&leaf, back).await;
    answered(result, "a call that was given back").await;
    ears.heard_once("that was answered");
    assert_eq!(handler.seen().arrived, 1, "a call arrives once");
    assert_eq!(handler.seen().whole, 1, "a call that was given back arrives with its body");

    // Many at once, of which one is given up.
    handler.answers(false);
    let mut calls: Vec<_> = (0..4).map(|_| begin(&leaf, endpoint.call(REQUEST))).collect();
    handler.until("calls arrive at the same time", |seen| seen.open == 4).await;
    let (dropped, ears) = calls.swap_remove(1);
    dropped.abort();
    handler.until("a call that its caller dropped is given up at the endpoint", |seen| seen.open == 3).await;
    assert!(dropped.await.is_err_and(|why| why.is_cancelled()));
    ears.heard_once("that was dropped");
    handler.answers(true);
    for (call, ears) in calls {
        answered(bounded("an answer", call).await.expect("no panic"), "a call beside one that was dropped")
            .await;
        ears.heard_once("beside others");
    }
    assert_eq!(handler.seen().arrived, 5, "each call arrives once");
    assert_eq!(handler.seen().whole, 5, "each call arrives with its body");

    // The connection breaks with a call on it.
    handler.answers(false);
    let (call, ears) = begin(&leaf, endpoint.call(REQUEST));
    handler.until("a call arrives", |seen| seen.open == 1).await;
    endpoint.stop().await;
    let result = bounded("the end of a call whose connection broke", call).await.expect("no panic");
    let mut error = result.expect_err("a call whose connection broke fails");
    assert!(error.maybe_executed(), "a call that arrived may have been executed: {error:?}");
    assert!(error.take_unsent().is_none(), "a call that was sent is not given back as unsent");
    ears.heard_once("whose connection broke");
    assert_eq!(handler.seen().arrived, 6, "the leaf itself sends a call that arrived no second time");

    // It is gone: at the latest the next call finds out.
    let (result, ears) = send(&leaf, endpoint.call(REQUEST)).await;
    let mut error = result.expect_err("a call to an endpoint that is gone fails");
    assert!(error.take_unsent().is_some(), "a call to an endpoint that is gone is given back: {error:?}");
    ears.heard_once("to an endpoint that is gone");
    if endpoint.is_watched() {
        state(&link, "says that an endpoint is gone", |c| c != Connection::Ready).await;
    }

    // It comes up again, and the leaf is closed under a call.
    endpoint.start(handler.clone()).await;
    leaf.wake();
    state(&link, "says that an endpoint is back", |c| c == Connection::Ready).await;
    let (call, ears) = begin(&leaf, endpoint.call(REQUEST));
    handler.until("a call arrives over a new connection", |seen| seen.open == 1).await;
    leaf.close();
    handler.answers(true);
    let result = bounded("an answer", call).await.expect("no panic");
    answered(result, "a call under which the leaf is closed").await;
    ears.heard_once("under which the leaf is closed");
    drop(leaf);
    let idle = async {
        while tasks.running() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await; // no event says that a task has ended
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

/// Sends `call`, and has somebody listen to how the attempt ends.
fn begin(leaf: &impl Leaf, mut call: Invocation) -> (JoinHandle<Result<Reply, Failed>>, Arc<Ears>) {
    let ears = Arc::<Ears>::default();
    call.begin_attempt(Instant::now());
    call.listen_attempt(ears.clone(), 0);
    (tokio::spawn(leaf.call(call)), ears)
}

async fn send(leaf: &impl Leaf, call: Invocation) -> (Result<Reply, Failed>, Arc<Ears>) {
    let (call, ears) = begin(leaf, call);
    (bounded("the end of a call", call).await.expect("a leaf does not panic"), ears)
}

/// Reads the answer to its end.
async fn answered(result: Result<Reply, Failed>, what: &str) {
    let reply = result.unwrap_or_else(|error| panic!("{what} is answered: {error:?}"));
    assert!(reply.as_error().is_none(), "{what} is answered with a success: {reply:?}");
    let read = bounded("the rest of an answer", read(reply)).await;
    let read = read.unwrap_or_else(|error| panic!("the answer to {what} is read to its end: {error:?}"));
    assert!(read.text().contains(ANSWER), "the answer to {what} is the endpoint's: {:?}", read.text());
}

/// Waits until the link is as `is` wants it.
async fn state(link: &Link, what: &str, is: impl Fn(Connection) -> bool) {
    let waited = timeout(CAP, async {
        loop {
            let changed = link.changed();
            let mut changed = pin!(changed);
            // Registered before the look, so that no change is missed.
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
    /// Handles one call, whose whole request is `request`, and returns what to answer.
    pub async fn handle(&self, request: &[u8]) -> &'static str {
        let whole = request.windows(REQUEST.len()).any(|part| part == REQUEST.as_bytes());
        self.0.send_modify(|seen| {
            seen.arrived += 1;
            seen.whole += usize::from(whole);
            seen.open += 1;
        });
        let _open = Open(self);
        // The sender is this handler's own.
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

// === impl Ears ===

impl Ears {
    fn heard_once(&self, call: &str) {
        let heard = (self.judged.load(SeqCst), self.ended.load(SeqCst));
        assert_eq!(heard, (1, 1), "an attempt {call} is told its verdict and its end once");
    }
}

impl Listener for Ears {
    fn judged(&self, _: u64, _: &Outcome<'_>) {
        self.judged.fetch_add(1, SeqCst);
    }

    fn ended(&self, _: u64) {
        self.ended.fetch_add(1, SeqCst);
    }
}
