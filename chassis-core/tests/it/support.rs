//! A service called `stock`, its upstream, and its settings.
use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use chassis_core::{
    Body, BoxFuture, Code, Error, Event, Invocation, Listener, Outcome, Random, Reason, Reply, ReplyBody,
    Runtime, RuntimeBuilder, Verdict,
    pipeline::{self, Pipeline},
    settings::{Problem, Settings},
    testing::{self, Answer, Answered, Arrival, CallBuilder, ScriptedRegistry, Upstream},
};
use http::HeaderMap;
use http_body::Body as _;
use serde_json::{Value, json};
use tower_service::Service;

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const S: Duration = Duration::from_secs(1);

/// Calls from `orders` to `stock`, whose nodes are `a`, `b` and so on, at `memory:a`, `memory:b` …
pub(crate) struct Bench {
    pub(crate) runtime: Runtime,
    pub(crate) registry: ScriptedRegistry,
    pub(crate) upstream: Upstream,
    pub(crate) pipeline: Pipeline,
    version: AtomicU64,
}

/// Records the outcomes of calls.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) judged: Mutex<Vec<(u64, Verdict)>>,
    pub(crate) ended: Mutex<Vec<u64>>,
}

impl Bench {
    /// A bench with one node, `a`.
    pub(crate) fn new(script: impl Fn(&Arrival) -> Answer + Send + Sync + 'static) -> Self {
        Self::with(["a"], script)
    }

    /// A bench with these nodes.
    pub(crate) fn with<const N: usize>(
        nodes: [&str; N],
        script: impl Fn(&Arrival) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let bench = Self::build(Upstream::new(script), |builder| builder);
        bench.registry.put("stock", nodes);
        bench
    }

    pub(crate) fn build(upstream: Upstream, change: impl FnOnce(RuntimeBuilder) -> RuntimeBuilder) -> Self {
        let registry = ScriptedRegistry::new();
        let builder =
            Runtime::builder("orders").registry(Arc::new(registry.clone())).random(Random::seeded(7));
        let runtime = change(builder).build().unwrap();
        let pipeline = pipeline::client(&runtime, "stock", &Arc::new(upstream.clone()));
        Bench { runtime, registry, upstream, pipeline, version: AtomicU64::new(0) }
    }

    /// Applies `settings`, in the form of the document.
    #[track_caller]
    pub(crate) fn apply(&self, document: Value) {
        self.try_apply(document).unwrap();
    }

    pub(crate) fn try_apply(&self, document: Value) -> Result<(), Vec<Problem>> {
        let version = self.version.fetch_add(1, SeqCst) + 1;
        self.runtime.apply(&settings(document), version, "hash")
    }

    /// Applies settings for calls to `stock`.
    #[track_caller]
    pub(crate) fn stock(&self, stock: Value) {
        self.apply(json!({ "outbound": { "services": { "stock": stock } } }));
    }

    pub(crate) async fn run(&self, call: CallBuilder) -> Result<Answered, Error> {
        run(&self.pipeline, call.build()).await
    }

    pub(crate) async fn get(&self) -> Result<Answered, Error> {
        self.run(get()).await
    }

    pub(crate) async fn post(&self) -> Result<Answered, Error> {
        self.run(post()).await
    }

    /// Sends `call` and returns the answer unread.
    pub(crate) async fn send(&self, call: CallBuilder) -> Result<Reply, Error> {
        within("the head of an answer", self.pipeline.clone().call(call.build())).await
    }

    /// Sends `call` in a task of its own.
    pub(crate) fn spawn(&self, call: CallBuilder) -> tokio::task::JoinHandle<Result<Answered, Error>> {
        let (pipeline, call) = (self.pipeline.clone(), call.build());
        tokio::spawn(async move { run(&pipeline, call).await })
    }

    /// Waits until the registry's answer has arrived.
    pub(crate) async fn settle(&self) {
        settle().await;
    }

    pub(crate) fn node(&self, id: &str) -> chassis_core::inspect::NodeView {
        let inspection = self.runtime.inspect();
        let node = inspection.services.into_iter().flat_map(|s| s.nodes).find(|node| node.id == id);
        node.unwrap_or_else(|| panic!("no node {id}"))
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.runtime.events().past().into_iter().map(|(_, event)| (*event).clone()).collect()
    }

    pub(crate) fn count_events(&self, which: impl Fn(&Event) -> bool) -> usize {
        self.events().iter().filter(|event| which(event)).count()
    }

    /// The value of a counter or gauge, or a histogram's count, summed over all series with `labels`.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        metric(&self.runtime, name, labels)
    }
}

pub(crate) fn metric(runtime: &Runtime, name: &str, labels: &[(&str, &str)]) -> f64 {
    let families = runtime.metrics().registry().gather();
    let Some(family) = families.iter().find(|family| family.name() == name) else { return 0.0 };
    let has = |m: &prometheus::proto::Metric| {
        labels.iter().all(|(k, v)| m.get_label().iter().any(|l| l.name() == *k && l.value() == *v))
    };
    let value = |m: &prometheus::proto::Metric| {
        m.get_counter().get_value() + m.get_gauge().get_value() + m.get_histogram().get_sample_count() as f64
    };
    family.get_metric().iter().filter(|m| has(m)).map(value).sum()
}

/// Parses settings in the form of the document.
#[track_caller]
pub(crate) fn settings(document: Value) -> Settings {
    fn part<T: serde::de::DeserializeOwned + Default>(document: &Value, key: &str) -> T {
        let part = document.get(key).cloned();
        part.map_or_else(T::default, |part| serde_json::from_value(part).unwrap())
    }
    for key in document.as_object().unwrap().keys() {
        assert!(["matches", "inbound", "outbound", "faults"].contains(&key.as_str()), "{key}");
    }
    Settings {
        matches: part(&document, "matches"),
        inbound: part(&document, "inbound"),
        outbound: part(&document, "outbound"),
        faults: part(&document, "faults"),
        ..Settings::default()
    }
}

pub(crate) fn get() -> CallBuilder {
    CallBuilder::get("stock", "Get")
}

pub(crate) fn post() -> CallBuilder {
    CallBuilder::post("stock", "Post")
}

/// Sends `call` and reads the answer to its end.
pub(crate) async fn run(pipeline: &Pipeline, call: Invocation) -> Result<Answered, Error> {
    within("an answer and its end", testing::run(pipeline, call)).await
}

/// Reads an answer to its end.
pub(crate) async fn read(reply: Reply) -> Result<Answered, Error> {
    within("the end of an answer", testing::read(reply)).await
}

/// Waits for `future` with a limit: when no other task can run, the paused clock advances to the limit, which
/// is longer than any test needs, and the test fails with the name of what it waited for.
pub(crate) async fn within<T>(what: &'static str, future: impl Future<Output = T>) -> T {
    const BOUND: Duration = Duration::from_secs(2 * 24 * 60 * 60);
    match tokio::time::timeout(BOUND, future).await {
        Ok(value) => value,
        Err(_) => panic!("timed out waiting for {what}"),
    }
}

/// Runs all tasks until they wait for time.
pub(crate) async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Bytes, and a weak reference that shows whether they are still held.
pub(crate) fn watched(text: &str) -> (Bytes, std::sync::Weak<str>) {
    struct Owner(Arc<str>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }
    let text = Arc::<str>::from(text);
    let weak = Arc::downgrade(&text);
    (Bytes::from_owner(Owner(text)), weak)
}

/// The next frame of an answer: a chunk, the trailers, or the end.
pub(crate) async fn frame(body: &mut ReplyBody) -> Option<Result<Result<Bytes, HeaderMap>, Error>> {
    let next = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
    let frame = within("the next frame of an answer, or its end", next).await?;
    Some(frame.map(|frame| frame.into_data().map_err(|frame| frame.into_trailers().unwrap_or_default())))
}

/// The rest of a body, and its trailers.
pub(crate) async fn drain(mut body: Body) -> Result<(Vec<u8>, Option<HeaderMap>), Error> {
    let (mut bytes, mut trailers) = (Vec::new(), None);
    loop {
        let next = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
        let Some(frame) = within("the end of a body", next).await else { break };
        match frame?.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((bytes, trailers))
}

/// A server's pipeline around a handler.
pub(crate) fn server<F, Fut>(runtime: &Runtime, handler: F) -> Pipeline
where
    F: Fn(Invocation) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Reply, Error>> + Send + 'static,
{
    pipeline::server(runtime, Handler(handler))
}

#[derive(Clone)]
struct Handler<F>(F);

impl<F, Fut> Service<Invocation> for Handler<F>
where
    F: Fn(Invocation) -> Fut,
    Fut: Future<Output = Result<Reply, Error>> + Send + 'static,
{
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply, Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Invocation) -> Self::Future {
        Box::pin((self.0)(call))
    }
}

#[track_caller]
pub(crate) fn check(result: &Result<Answered, Error>, code: Code, reason: Reason) {
    match result {
        Ok(answered) => panic!("answered with {answered:?}"),
        Err(error) => assert_eq!((error.code(), error.reason()), (code, reason), "{error:?}"),
    }
}

// === impl Recorder ===

impl Recorder {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Asserts the recorded codes and reasons, and the number of recorded ends.
    #[track_caller]
    pub(crate) fn assert_recorded(&self, judged: &[(Code, Option<Reason>)], ended: usize) {
        let recorded: Vec<_> = self.judged.lock().unwrap().iter().map(|(_, v)| (v.code, v.reason)).collect();
        assert_eq!((recorded.as_slice(), self.ended.lock().unwrap().len()), (judged, ended));
    }
}

impl Listener for Recorder {
    fn judged(&self, token: u64, outcome: &Outcome<'_>) {
        self.judged.lock().unwrap().push((token, outcome.verdict));
    }

    fn ended(&self, token: u64) {
        self.ended.lock().unwrap().push(token);
    }
}

/// A flag that a test turns on and off.
#[derive(Clone, Default)]
pub(crate) struct Toggle(Arc<std::sync::atomic::AtomicBool>);

impl Toggle {
    pub(crate) fn set(&self, on: bool) {
        self.0.store(on, SeqCst);
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.load(SeqCst)
    }
}
