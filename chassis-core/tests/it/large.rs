//! Changes of large sets of instances are compared and applied on threads that serve no calls, in order; those of small
//! sets in place.
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
        mpsc,
    },
    thread::ThreadId,
};

use chassis_core::{
    Error, Event, Invocation, LabelSet, Link, Random, Reason, Runtime,
    layer::balance::{Candidates, Picker, PickerFactory, Subset},
    pipeline::{self, Pipeline},
    protocol::{Leaf, LeafFuture, Protocol, Transport},
    registry::Membership,
    testing::{Answer, Answered, ScriptedRegistry, Upstream, UpstreamLeaf},
};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::support::*;

/// The threads on which pickers and leaves were built and dropped. Clones share it.
#[derive(Clone, Default)]
struct Seen(Arc<Record>);

#[derive(Default)]
struct Record {
    built: Mutex<Vec<(ThreadId, u32)>>,
    made: Mutex<Vec<ThreadId>>,
    dropped: Mutex<Vec<ThreadId>>,
    /// A picker is built only after the test sends something.
    gate: Mutex<Option<mpsc::Receiver<()>>>,
    panics: AtomicBool,
}

struct First;

/// A transport whose leaves record their threads.
struct Recording {
    upstream: Upstream,
    seen: Seen,
}

struct RecordingLeaf {
    leaf: UpstreamLeaf,
    seen: Seen,
}

fn here() -> ThreadId {
    std::thread::current().id()
}

// === impl Seen ===

impl PickerFactory for Seen {
    fn build(&self, subset: &Subset) -> Arc<dyn Picker> {
        self.0.built.lock().unwrap().push((here(), subset.nodes()[0].instance().weight));
        if let Some(gate) = &*self.0.gate.lock().unwrap() {
            gate.recv_timeout(30 * S).unwrap(); // fails rather than hangs
        }
        Arc::new(First)
    }
}

impl Picker for First {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        candidates.turn()
    }
}

impl Seen {
    fn built(&self) -> Vec<(ThreadId, u32)> {
        std::mem::take(&mut *self.0.built.lock().unwrap())
    }

    fn made(&self) -> Vec<ThreadId> {
        std::mem::take(&mut *self.0.made.lock().unwrap())
    }

    fn dropped(&self) -> Vec<ThreadId> {
        std::mem::take(&mut *self.0.dropped.lock().unwrap())
    }
}

impl Transport for Recording {
    type Leaf = RecordingLeaf;

    fn protocol(&self) -> &'static dyn Protocol {
        self.upstream.protocol()
    }

    fn leaf(&self, link: Link) -> RecordingLeaf {
        assert!(!self.seen.0.panics.load(SeqCst), "on purpose");
        self.seen.0.made.lock().unwrap().push(here());
        RecordingLeaf { leaf: self.upstream.leaf(link), seen: self.seen.clone() }
    }
}

impl Leaf for RecordingLeaf {
    type Future = LeafFuture;

    fn call(&self, call: Invocation) -> LeafFuture {
        self.leaf.call(call)
    }
}

impl Drop for RecordingLeaf {
    fn drop(&mut self) {
        self.seen.0.dropped.lock().unwrap().push(here());
    }
}

struct Large {
    seen: Seen,
    runtime: Runtime,
    registry: ScriptedRegistry,
    pipeline: Pipeline,
    weight: AtomicU32,
}

// === impl Large ===

impl Large {
    fn new() -> Self {
        let (seen, registry) = (Seen::default(), ScriptedRegistry::new());
        let runtime = Runtime::builder("orders")
            .registry(Arc::new(registry.clone()))
            .random(Random::seeded(7))
            .picker("first", Arc::new(seen.clone()))
            .build()
            .unwrap();
        let upstream = Upstream::new(|_| Answer::ok(""));
        let transport = Arc::new(Recording { upstream, seen: seen.clone() });
        let pipeline = pipeline::client(&runtime, "stock", &transport);
        let document = json!({ "outbound": { "services": { "stock": { "balance": "first" } } } });
        runtime.apply(&settings(document), 1, "hash").unwrap();
        Large { seen, runtime, registry, pipeline, weight: AtomicU32::new(0) }
    }

    /// The registry lists this many instances of another weight; returns the weight.
    fn put(&self, count: usize) -> u32 {
        let weight = self.weight.fetch_add(1, SeqCst) + 1;
        let of = |n: usize| {
            let instance = ScriptedRegistry::instance("stock", &format!("{n:05}")).with_weight(weight);
            let track = if n.is_multiple_of(2) { "stable" } else { "canary" };
            instance.with_label("track", track).with_label("number", format!("{n:05}"))
        };
        self.registry.set("stock", Membership::known((0..count).map(of)));
        weight
    }

    async fn call(&self) {
        run(&self.pipeline, get().build()).await.unwrap();
    }

    /// A call to the instances with this label, in a task of its own.
    fn call_with(&self, name: &str, value: &str) -> JoinHandle<Result<Answered, Error>> {
        let (pipeline, mut call) = (self.pipeline.clone(), get().build());
        call.options.labels = Some(Arc::new(LabelSet::from_iter([(name, value)])));
        tokio::spawn(async move { run(&pipeline, call).await })
    }

    fn nodes(&self) -> usize {
        self.runtime.inspect().services.iter().map(|service| service.nodes.len()).sum()
    }

    /// Waits until a node has this weight. The paused clock waits for work on other threads.
    async fn until(&self, weight: u32) {
        let has = |instance: u32| instance == weight;
        let nodes = || self.runtime.inspect().services.into_iter().flat_map(|service| service.nodes);
        within("the change", async {
            while !nodes().any(|node| has(node.weight)) {
                tokio::time::sleep(MS).await;
            }
        })
        .await;
    }
}

const MANY: usize = 1_000;

#[tokio::test(start_paused = true)]
async fn a_large_set_is_built_and_dropped_off_the_threads_of_calls() {
    let large = Large::new();
    large.put(MANY);
    large.call().await;
    let made = large.seen.made();
    assert!(made.len() == MANY && !made.contains(&here()), "leaves of {} nodes", made.len());
    let built = large.seen.built();
    assert!(!built.is_empty() && built.iter().all(|(thread, _)| *thread != here()), "{built:?}");
    let weight = large.put(MANY);
    large.until(weight).await;
    let built = large.seen.built();
    assert!(!built.is_empty() && built.iter().all(|(thread, _)| *thread != here()), "{built:?}");
    // Less than half of them leave, so that none is held.
    let weight = large.put(MANY - 400);
    large.until(weight).await;
    large.call().await;
    tokio::time::sleep(S).await;
    tokio::time::sleep(MS).await;
    let dropped = large.seen.dropped();
    assert!(dropped.len() == 400 && !dropped.contains(&here()), "{} leaves", dropped.len());
    large.seen.built();
    // A deletion, too.
    large.registry.set("stock", Membership::Deleted);
    tokio::time::sleep(S).await;
    tokio::time::sleep(MS).await;
    let dropped = large.seen.dropped();
    assert!(dropped.len() == MANY - 400 && !dropped.contains(&here()), "{} leaves", dropped.len());
}

#[tokio::test(start_paused = true)]
async fn a_small_set_is_handled_in_place_at_once() {
    let large = Large::new();
    large.put(3);
    large.call().await;
    assert_eq!(large.seen.made(), [here(); 3]);
    for _ in 0..10 {
        large.seen.built();
        let weight = large.put(3);
        settle().await; // no time passes
        assert_eq!(large.seen.built(), [(here(), weight)]);
        large.call().await;
    }
}

#[tokio::test(start_paused = true)]
async fn snapshots_keep_their_order_and_the_last_one_wins() {
    let large = Large::new();
    large.put(MANY);
    large.call().await;
    for round in 0..40 {
        let mut last = 0;
        for change in 0..=round % 5 {
            last = large.put(if change % 2 == 0 { MANY } else { 10 + MANY / 2 });
            if change % 2 == 1 {
                settle().await;
            }
        }
        large.call().await;
        large.until(last).await;
        large.call().await;
    }
    let weights: Vec<_> = large.seen.built().into_iter().map(|(_, weight)| weight).collect();
    assert!(weights.len() > 20 && weights.is_sorted(), "{weights:?}");
}

/// The number of the instance that answered.
fn number(answered: &Answered) -> usize {
    answered.address.as_ref().unwrap().strip_prefix("memory:").unwrap().parse().unwrap()
}

/// Many calls that need the same nodes wait for one thread, and calls that need others go on.
#[tokio::test]
async fn labels_of_a_large_set_are_collected_off_the_threads_of_calls() {
    let large = Large::new();
    large.put(MANY);
    large.call().await;
    large.seen.built();
    let (open, gate) = mpsc::channel();
    *large.seen.0.gate.lock().unwrap() = Some(gate);
    let calls: Vec<_> = (0..100).map(|_| large.call_with("track", "canary")).collect();
    within("the factory", async {
        while large.seen.0.built.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..100 {
        large.call().await;
    }
    assert!(calls.iter().all(|call| !call.is_finished()));
    open.send(()).unwrap();
    for call in calls {
        assert!(number(&call.await.unwrap().unwrap()) % 2 == 1);
    }
    let built = large.seen.built();
    assert!(built.len() == 1 && built[0].0 != here(), "{built:?}");
    // Later calls do not wait.
    assert!(number(&large.call_with("track", "canary").await.unwrap().unwrap()) % 2 == 1);
    assert!(large.seen.built().is_empty());
}

/// More label sets than are kept, some of which no instance has, while the registry changes.
#[tokio::test(start_paused = true)]
async fn each_call_gets_the_instances_that_it_wants_while_they_change() {
    let large = Large::new();
    large.put(MANY);
    for round in 0..5 {
        let of = |n: usize| (n, large.call_with("number", &format!("{:05}", n * 9)));
        let calls: Vec<_> = (0..120).map(of).collect();
        for _ in 0..=round {
            settle().await;
            large.put(MANY);
        }
        for (n, call) in calls {
            match call.await.unwrap() {
                Ok(answered) => assert_eq!(number(&answered), n * 9),
                Err(error) => {
                    assert!(n * 9 >= MANY && error.reason() == Reason::NoRoute, "{n}: {error:?}");
                }
            }
        }
    }
    assert!(large.seen.built().iter().all(|(thread, _)| *thread != here()));
}

/// Calls use the former members while the new ones are built, and a stop does not wait for them.
#[tokio::test]
async fn a_change_that_takes_long_holds_neither_calls_nor_a_stop() {
    let large = Large::new();
    large.put(MANY);
    large.call().await;
    let (open, gate) = mpsc::channel();
    *large.seen.0.gate.lock().unwrap() = Some(gate);
    let (first, _) = (large.put(MANY), large.put(2 * MANY));
    // The factory is asked on another thread, and waits there.
    within("the factory", async {
        while large.seen.0.built.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..100 {
        large.call().await;
    }
    assert_eq!(large.nodes(), MANY);
    assert!(first > 0 && large.runtime.shutdown(S).await, "a stop waits for no change");
    drop(open); // ends the factory by a panic, which is contained
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_a_large_set_is_applied_is_an_error_of_its_registry() {
    let large = Large::new();
    large.put(MANY);
    large.call().await;
    large.seen.0.panics.store(true, SeqCst);
    large.put(MANY + 1);
    tokio::time::sleep(S).await;
    large.call().await;
    assert_eq!(large.nodes(), MANY, "the last good set");
    let is_panic = |event: &Event| matches!(event, Event::RegistryUnreachable { error, .. } if error.contains("on purpose"));
    assert!(large.runtime.events().past().iter().any(|(_, event)| is_panic(event)));
    large.seen.0.panics.store(false, SeqCst);
    let weight = large.put(MANY + 1);
    large.until(weight).await;
    large.call().await;
    assert_eq!(large.nodes(), MANY + 1);
}
