//! Registries that block their thread: calls continue, the block is reported by name, and a stop does not
//! wait.
//!
//! They use the machine's clock: under a paused clock a plugin is polled in place.
use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use chassis_core::{
    Event, Events,
    config::{ConfigSource, ConfigWatcher, Format, SourceError, Text},
    contain,
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
    testing::{Answer, ScriptedRegistry, Upstream},
};
use tokio::{sync::broadcast::Receiver, time::timeout};

use crate::support::*;

/// Blocks a thread until it is opened, or a test has failed.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>, Arc<AtomicUsize>);

/// The method in which a registry blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum In {
    Watch,
    First,
    Second,
    Services,
    Register,
    Deregister,
    Drop,
    Nothing,
}

/// Blocks in one method; its watcher answers `a`, and then `b`.
struct Blocking(In, Gate);

struct Part(In, Gate, usize);

/// Longer than any step of these tests takes.
const BOUND: Duration = Duration::from_secs(30);
/// The longest poll that is not reported.
const AFTER: Duration = Duration::from_millis(20);

impl Gate {
    fn pass(&self) {
        let (open, opened) = &*self.0;
        self.1.fetch_add(1, SeqCst);
        let bound = opened.wait_timeout_while(open.lock().unwrap(), BOUND, |open| !*open).unwrap();
        assert!(!bound.1.timed_out(), "the threads of calls were held up");
    }

    /// The number of threads that are blocked or were.
    fn reached(&self) -> usize {
        self.1.load(SeqCst)
    }

    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.0 == In::Drop {
            self.1.pass();
        }
    }
}

#[async_trait::async_trait]
impl Registry for Blocking {
    fn name(&self) -> &str {
        "etcd"
    }
    async fn register(&self, _: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        if self.0 == In::Register {
            self.1.pass();
        }
        Ok(Box::new(Part(self.0, self.1.clone(), 0)))
    }
    async fn watch(&self, _: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        if self.0 == In::Watch {
            self.1.pass();
        }
        Ok(Box::new(Part(self.0, self.1.clone(), 0)))
    }
    async fn services(&self) -> Vec<String> {
        if self.0 == In::Services {
            self.1.pass();
        }
        Vec::new()
    }
}

#[async_trait::async_trait]
impl Registration for Part {
    async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
        if self.0 == In::Deregister {
            self.1.pass();
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl Watcher for Part {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        self.2 += 1;
        if (self.0, self.2) == (In::First, 1) || (self.0, self.2) == (In::Second, 2) {
            self.1.pass();
        }
        match self.2 {
            1 if self.0 == In::Services => Ok(Membership::Unknown),
            1 => Ok(Membership::known([ScriptedRegistry::instance("stock", "a")])),
            2 if self.0 != In::Services => Ok(Membership::known([ScriptedRegistry::instance("stock", "b")])),
            _ => std::future::pending().await,
        }
    }
}

fn bench(place: In) -> (Bench, Gate, Receiver<Arc<Event>>) {
    let (gate, events) = (Gate::default(), Events::new());
    let received = events.subscribe();
    let registry = contain::registry(Arc::new(Blocking(place, gate.clone())), &events, AFTER);
    let upstream = Upstream::new(|_| Answer::ok(""));
    (Bench::build(upstream, |builder| builder.registry(registry).events(events)), gate, received)
}

async fn wait_for(received: &mut Receiver<Arc<Event>>, which: impl Fn(&Event) -> bool) -> Arc<Event> {
    let found = async {
        loop {
            match received.recv().await {
                Ok(event) if which(&event) => return event,
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    timeout(BOUND, found).await.expect("no such event")
}

/// Waits for the report of a block, by name.
async fn report(received: &mut Receiver<Arc<Event>>, function: &str) {
    // On a busy machine a call that does not block may take this long too.
    let is_it = |event: &Event| matches!(event, Event::PluginBlocked { call, .. } if call == function);
    let event = wait_for(received, is_it).await;
    let Event::PluginBlocked { plugin, call, lasts } = &*event else { unreachable!() };
    assert_eq!((&**plugin, &**call), ("registry `etcd`", function));
    assert!((AFTER..BOUND).contains(lasts), "{lasts:?}");
    let said = event.to_string();
    assert!(
        said.starts_with(&format!("registry `etcd` has blocked its thread in `{function}` for ")),
        "{said}"
    );
}

async fn reaches_the_gate(gate: &Gate, threads: usize) {
    let reached = async {
        while gate.reached() < threads {
            tokio::task::yield_now().await;
        }
    };
    timeout(BOUND, reached).await.expect("it never blocks");
}

/// Calls continue while a blocked thread waits for news, and the news arrive once it is unblocked.
async fn while_it_waits_for_news() {
    let (bench, gate, mut received) = bench(In::Second);
    assert_eq!(bench.get().await.unwrap().address.unwrap(), "memory:a");
    report(&mut received, "next").await;
    for _ in 0..100 {
        bench.get().await.unwrap();
    }
    gate.open();
    wait_for(
        &mut received,
        |event| matches!(event, Event::InstanceJoined { instance, .. } if instance == "b"),
    )
    .await;
    assert!(timeout(BOUND, bench.runtime.shutdown(S)).await.unwrap());
}

/// A stop waits neither for blocked threads nor for dropped futures.
async fn at_a_stop(place: In) {
    let (bench, gate, mut received) = bench(place);
    match place {
        In::Second | In::Drop => drop(bench.get().await.unwrap()),
        _ => drop(bench.spawn(get())),
    }
    // A call that waits for a thread is reported too, and a stop would end it before it blocks.
    if place != In::Drop {
        reaches_the_gate(&gate, 1).await;
    }
    match place {
        In::Watch => report(&mut received, "watch").await,
        In::First | In::Second => report(&mut received, "next").await,
        In::Services => report(&mut received, "services").await,
        _ => {}
    }
    let ended = timeout(BOUND / 2, bench.runtime.shutdown(S)).await.expect("the stop is bounded");
    assert!(ended, "{place:?}: no task is left");
    drop(bench);
    reaches_the_gate(&gate, 1).await;
    gate.open();
}

async fn registering(place: In) {
    let (bench, gate, mut received) = bench(place);
    let registry = bench.runtime.registry().clone();
    let entry = ScriptedRegistry::instance("orders", "o");
    let life = async {
        let registered = registry.register(entry).await.unwrap();
        registered.deregister().await.unwrap();
    };
    let calls = async {
        report(&mut received, if place == In::Register { "register" } else { "deregister" }).await;
        for _ in 0..100 {
            bench.get().await.unwrap();
        }
        gate.open();
    };
    timeout(BOUND, async { tokio::join!(life, calls) }).await.expect("calls go on");
}

async fn everything() {
    while_it_waits_for_news().await;
    for place in [In::Watch, In::First, In::Second, In::Services, In::Drop] {
        at_a_stop(place).await;
    }
    for place in [In::Register, In::Deregister] {
        registering(place).await;
    }
}

/// Regression: it stopped the whole process.
#[tokio::test]
async fn a_registry_that_blocks_holds_up_no_call_on_one_thread() {
    everything().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_registry_that_blocks_holds_up_no_call_on_several() {
    everything().await;
}

/// Forty blocked watchers use the registry's threads, of which there are 32, and no others.
#[tokio::test]
async fn threads_that_are_blocked_are_bounded() {
    let (bench, gate, mut received) = bench(In::Second);
    let registry = bench.runtime.registry().clone();
    let mut watchers = Vec::new();
    for n in 0..40 {
        let mut watcher = registry.watch(&format!("service-{n}")).await.unwrap();
        let first = timeout(BOUND, watcher.next());
        match first.await {
            Ok(said) => drop(said.unwrap()),
            Err(_) => panic!("watcher {n} is not asked"),
        }
        watchers.push(watcher);
    }
    let waiting: Vec<_> =
        watchers.into_iter().map(|mut watcher| tokio::spawn(async move { watcher.next().await })).collect();
    for _ in 0..40 {
        wait_for(&mut received, |event| matches!(event, Event::PluginBlocked { .. })).await;
    }
    // A block is reported by the clock: on a busy machine its thread may not run yet.
    reaches_the_gate(&gate, 32).await;
    assert_eq!(gate.reached(), 32);
    gate.open();
    for watcher in waiting {
        assert!(matches!(timeout(BOUND, watcher).await, Ok(Ok(Ok(Membership::Known(_))))));
    }
}

/// The caller of a watcher may drop the future of `next` and call it again.
#[tokio::test]
async fn a_question_that_is_dropped_goes_on() {
    let gate = Gate::default();
    let registry = contain::registry(Arc::new(Blocking(In::Second, gate.clone())), &Events::new(), AFTER);
    let mut watcher = registry.watch("stock").await.unwrap();
    let first_id = |membership: Membership| match membership {
        Membership::Known(all) => all[0].id.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(first_id(watcher.next().await.unwrap()), "a");
    for _ in 0..3 {
        assert!(timeout(AFTER, watcher.next()).await.is_err());
    }
    gate.open();
    assert_eq!(first_id(timeout(BOUND, watcher.next()).await.unwrap().unwrap()), "b");
    assert_eq!(gate.reached(), 1, "asked once");
}

/// A panic surfaces where the answer is awaited, and timers work there.
#[tokio::test]
async fn what_happens_there_is_as_it_was() {
    struct Odd;
    #[async_trait::async_trait]
    impl Registry for Odd {
        fn name(&self) -> &str {
            "odd"
        }
        async fn register(&self, _: Instance) -> Result<Box<dyn Registration>, RegistryError> {
            panic!("out of cheese")
        }
        async fn watch(&self, _: &str) -> Result<Box<dyn Watcher>, RegistryError> {
            tokio::time::sleep(MS).await;
            let thread = tokio::spawn(async { std::thread::current().name().map(str::to_owned) });
            let spawned = thread.await.unwrap();
            let own = std::thread::current().name().map(str::to_owned);
            Err(RegistryError::new(format!("{own:?}, {}", spawned != own)))
        }
    }
    let registry = contain::registry(Arc::new(Odd), &Events::new(), AFTER);
    let entry = ScriptedRegistry::instance("orders", "o");
    let panicked = chassis_core::tasks::caught(async { registry.register(entry).await }).await.err().unwrap();
    assert_eq!(panicked.to_string(), "it panicked: out of cheese");
    let said = registry.watch("stock").await.err().unwrap().to_string();
    assert_eq!(said, r#"Some("chassis-plugin"), true"#);
}

#[tokio::test]
async fn one_that_never_blocks_is_polled_in_place() {
    let scripted: Arc<dyn Registry> = Arc::new(ScriptedRegistry::new());
    let same = contain::registry(scripted.clone(), &Events::new(), AFTER);
    assert!(Arc::ptr_eq(&scripted, &same));
    let other = contain::registry(Arc::new(Blocking(In::Nothing, Gate::default())), &Events::new(), AFTER);
    assert!(Arc::ptr_eq(&other, &contain::registry(other.clone(), &Events::new(), AFTER)), "once is enough");
}

#[async_trait::async_trait]
impl ConfigSource for Blocking {
    fn name(&self) -> String {
        "center".to_owned()
    }
    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
        if self.0 == In::Watch {
            self.1.pass();
        }
        Ok(Box::new(Part(self.0, self.1.clone(), 0)))
    }
}

#[async_trait::async_trait]
impl ConfigWatcher for Part {
    async fn next(&mut self) -> Result<Text, SourceError> {
        self.2 += 1;
        if (self.0, self.2) == (In::First, 1) {
            self.1.pass();
        }
        Ok(Text { content: "a: 1".into(), format: Format::Yaml, origin: "center".into(), revision: None })
    }
}

#[tokio::test]
async fn so_is_a_source_of_settings() {
    for (place, function) in [(In::Watch, "watch"), (In::First, "next")] {
        let (gate, events) = (Gate::default(), Events::new());
        let mut received = events.subscribe();
        let source = contain::config_source(Arc::new(Blocking(place, gate.clone())), &events, AFTER);
        let said = tokio::spawn(async move { source.watch().await?.next().await });
        let is_it = |event: &Event| matches!(event, Event::PluginBlocked { call, .. } if call == function);
        let event = wait_for(&mut received, is_it).await.to_string();
        assert!(
            event.starts_with(&format!("config source `center` has blocked its thread in `{function}`")),
            "{event}"
        );
        gate.open();
        assert_eq!(timeout(BOUND, said).await.unwrap().unwrap().unwrap().content, "a: 1");
    }
}
