//! Registries that fail: they panic, never answer, answer without end, or report impossible data.
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use chassis_core::{
    BoxFuture, Code, Connection, Event, Grace, LastGoodConfig, Reason,
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
    testing::{Answer, ScriptedRegistry, Upstream},
};

use crate::support::*;

/// The action of a watcher when it is polled.
type Act = Box<dyn Fn() -> BoxFuture<'static, Result<Membership, RegistryError>> + Send + Sync>;

/// A registry whose watchers follow a script, the first one the first list.
#[derive(Default)]
struct Rude {
    watchers: Mutex<VecDeque<VecDeque<Act>>>,
    watched: AtomicUsize,
    /// The actions of `watch` itself, before it returns a watcher.
    opens: Mutex<VecDeque<Act>>,
    panics_in_drop: bool,
    panics_in_services: bool,
}

struct RudeWatcher {
    acts: VecDeque<Act>,
    panics_in_drop: bool,
}

fn says(membership: Membership) -> Act {
    Box::new(move || {
        let membership = membership.clone();
        Box::pin(async { Ok(membership) })
    })
}

fn has<const N: usize>(ids: [&str; N]) -> Act {
    says(Membership::known(ids.map(|id| ScriptedRegistry::instance("stock", id))))
}

fn panics() -> Act {
    Box::new(|| Box::pin(async { panic!("out of cheese") }))
}

fn fails() -> Act {
    Box::new(|| Box::pin(async { Err(RegistryError::new("out of order")) }))
}

fn hangs() -> Act {
    Box::new(|| Box::pin(std::future::pending()))
}

impl Rude {
    fn new(watchers: impl IntoIterator<Item = Vec<Act>>) -> Self {
        let watchers = watchers.into_iter().map(VecDeque::from).collect();
        Rude { watchers: Mutex::new(watchers), ..Rude::default() }
    }
}

#[async_trait::async_trait]
impl Registry for Rude {
    fn name(&self) -> &str {
        "rude"
    }
    async fn register(&self, _: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        Err(RegistryError::unsupported("never"))
    }
    async fn watch(&self, _: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        self.watched.fetch_add(1, SeqCst);
        let opens = self.opens.lock().unwrap().pop_front().map(|act| act());
        if let Some(opens) = opens {
            opens.await?;
        }
        let acts = self.watchers.lock().unwrap().pop_front().unwrap_or_else(|| VecDeque::from([hangs()]));
        Ok(Box::new(RudeWatcher { acts, panics_in_drop: self.panics_in_drop }))
    }
    async fn services(&self) -> Vec<String> {
        assert!(!self.panics_in_services, "nor can it say which there are");
        Vec::new()
    }
}

#[async_trait::async_trait]
impl Watcher for RudeWatcher {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        match self.acts.pop_front() {
            Some(act) => act().await,
            None => std::future::pending().await,
        }
    }
}

impl Drop for RudeWatcher {
    fn drop(&mut self) {
        assert!(!self.panics_in_drop || std::thread::panicking(), "not gone quietly");
    }
}

fn bench(registry: Rude) -> (Bench, Arc<Rude>) {
    let registry = Arc::new(registry);
    let upstream = Upstream::new(|_| Answer::ok(""));
    (Bench::build(upstream, |builder| builder.registry(registry.clone())), registry)
}

async fn address(bench: &Bench) -> String {
    bench.get().await.unwrap().address.unwrap()
}

fn unreachable(bench: &Bench, why: &str) -> usize {
    bench.count_events(|e| matches!(e, Event::RegistryUnreachable { error, .. } if error == why))
}

const PANICKED: &str = "it panicked: out of cheese";

/// Regression: the task that followed it ended, and the membership stayed the same for ever, without a
/// message.
#[tokio::test(start_paused = true)]
async fn a_registry_that_panics_is_asked_anew() {
    let (bench, registry) = bench(Rude::new([vec![has(["a"]), panics()], vec![panics()], vec![has(["b"])]]));
    assert_eq!(address(&bench).await, "memory:a");
    bench.settle().await;
    assert_eq!(address(&bench).await, "memory:a", "the last good set is kept");
    assert_eq!(unreachable(&bench, PANICKED), 1);
    tokio::time::sleep(5 * S).await;
    assert_eq!(address(&bench).await, "memory:b");
    assert_eq!((registry.watched.load(SeqCst), unreachable(&bench, PANICKED)), (3, 1), "said once");
    assert_eq!(bench.metric("chassis_registry_errors_total", &[]), 2.0);
    assert!(bench.runtime.shutdown(S).await);
}

#[tokio::test(start_paused = true)]
async fn it_may_panic_anywhere() {
    // When the watch begins, when a watcher is dropped, and when `services` is called.
    let registry = Rude {
        opens: Mutex::new([panics()].into()),
        panics_in_drop: true,
        panics_in_services: true,
        ..Rude::new([vec![says(Membership::Unknown), panics()], vec![has(["a"])]])
    };
    let (bench, registry) = bench(registry);
    bench.runtime.set_grace(Grace::NONE);
    check(&bench.get().await, Code::Unavailable, Reason::UnknownService);
    tokio::time::sleep(5 * S).await;
    assert_eq!(address(&bench).await, "memory:a");
    assert_eq!(registry.watched.load(SeqCst), 3);
}

/// Also in the code that handles the answer: a transport may panic on an address.
#[tokio::test(start_paused = true)]
async fn a_pause_grows_while_it_panics_and_is_bounded() {
    let panicking = (0..10_000).map(|_| vec![panics()]);
    let (bench, registry) = bench(Rude::new([vec![has(["a"]), panics()]].into_iter().chain(panicking)));
    bench.settle().await;
    tokio::time::sleep(3600 * S).await;
    let watched = registry.watched.load(SeqCst);
    assert!((240..600).contains(&watched), "{watched} times in an hour, 7.5 to 15 s apart");
    let events = unreachable(&bench, PANICKED);
    assert!((50..=61).contains(&events), "reported once a minute: {events}");
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_never_answers_is_given_up() {
    let registry = Rude {
        opens: Mutex::new([hangs()].into()),
        ..Rude::new([vec![hangs()], vec![has(["a"]), hangs(), has(["b"])]])
    };
    let (bench, registry) = bench(registry);
    let call = bench.spawn(get());
    tokio::time::sleep(S).await;
    bench.stock(serde_json::json!({ "timeout": "off" }));
    call.await.unwrap().unwrap_err();
    tokio::time::sleep(60 * S).await;
    assert_eq!(address(&bench).await, "memory:a");
    assert_eq!(registry.watched.load(SeqCst), 3);
    assert_eq!(unreachable(&bench, "it did not watch within 30s"), 1);
    assert_eq!(unreachable(&bench, "it did not return the instances within 30s"), 1);
    // After the first answer it may be silent for as long as nothing changes.
    tokio::time::sleep(3600 * S).await;
    assert_eq!(registry.watched.load(SeqCst), 3);
}

/// Always has news, and is ready at each poll.
struct Eager {
    asked: Arc<AtomicUsize>,
    /// The number of polls in a row without another task's turn in between.
    in_a_row: Arc<AtomicUsize>,
    changes: bool,
}

#[async_trait::async_trait]
impl Registry for Eager {
    fn name(&self) -> &str {
        "eager"
    }
    async fn register(&self, _: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        Err(RegistryError::unsupported("never"))
    }
    async fn watch(&self, _: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let Eager { asked, in_a_row, changes } = self;
        Ok(Box::new(Eager { asked: asked.clone(), in_a_row: in_a_row.clone(), changes: *changes }))
    }
}

#[async_trait::async_trait]
impl Watcher for Eager {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        let asked = self.asked.fetch_add(1, SeqCst) as u32;
        // A failure rather than a test that hangs.
        assert!(self.in_a_row.fetch_add(1, SeqCst) < 100_000, "no other task gets a turn");
        let weight = if self.changes { asked } else { 1 };
        Ok(Membership::known([ScriptedRegistry::instance("stock", "a").with_weight(weight + 1)]))
    }
}

/// Regression: it starved a single-threaded runtime, and a stop never ended.
#[tokio::test(start_paused = true)]
async fn a_registry_that_always_has_news_leaves_others_their_turn() {
    for changes in [true, false] {
        let (asked, in_a_row) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let eager = Eager { asked: asked.clone(), in_a_row: in_a_row.clone(), changes };
        let upstream = Upstream::new(|_| Answer::ok(""));
        let bench = Bench::build(upstream, |builder| builder.registry(Arc::new(eager)));
        for _ in 0..100 {
            assert_eq!(address(&bench).await, "memory:a");
            tokio::time::sleep(100 * MS).await;
            in_a_row.store(0, SeqCst);
        }
        let asked_in_10_s = asked.load(SeqCst);
        assert!((400..50_000).contains(&asked_in_10_s), "{asked_in_10_s}");
        // The newest answer counts: the membership is at most one step behind.
        tokio::time::sleep(21 * MS).await;
        let behind = asked.load(SeqCst) as u32 + 1 - bench.node("a").weight;
        assert!(!changes || behind <= 200, "{behind}");
        assert!(bench.runtime.shutdown(S).await);
        let asked_before = asked.load(SeqCst);
        tokio::time::sleep(S).await;
        assert_eq!(asked.load(SeqCst), asked_before, "it is asked no more");
    }
}

/// Regression: each of them began a new grace period, and the set was kept for ever.
#[tokio::test(start_paused = true)]
async fn empty_and_unreachable_by_turns_is_believed_in_the_end() {
    let bench = Bench::new(|_| Answer::ok(""));
    bench.get().await.unwrap();
    let began = tokio::time::Instant::now();
    while began.elapsed() < Duration::from_secs(120) {
        bench.registry.put("stock", []);
        tokio::time::sleep(2 * S).await;
        bench.registry.fail("stock", "no route to host");
        tokio::time::sleep(3 * S).await;
        if began.elapsed() < Duration::from_secs(59) {
            bench.get().await.unwrap();
        }
    }
    check(&bench.get().await, Code::Unavailable, Reason::NoEndpoint);
    assert_eq!(bench.count_events(|e| matches!(e, Event::EmptySetHeld { .. })), 1);
    // A registry that is unreachable when the grace period ends has reported nothing new: the set is kept
    // until it is back.
    let bench = Bench::new(|_| Answer::ok(""));
    bench.get().await.unwrap();
    bench.registry.put("stock", []);
    tokio::time::sleep(2 * S).await;
    bench.registry.fail("stock", "no route to host");
    tokio::time::sleep(600 * S).await;
    bench.get().await.unwrap();
    bench.registry.put("stock", []);
    tokio::time::sleep(16 * S).await;
    check(&bench.get().await, Code::Unavailable, Reason::NoEndpoint);
}

/// Regression: they were called, and an order went to the wrong service.
#[tokio::test(start_paused = true)]
async fn instances_of_another_service_are_refused() {
    let bench = Bench::build(Upstream::new(|_| Answer::ok("")), |builder| builder);
    let a = ScriptedRegistry::instance("stock", "a");
    let mut nobodys = ScriptedRegistry::instance("stock", "b");
    nobodys.service.clear();
    let other = ScriptedRegistry::instance("billing", "c");
    let all = || Membership::known([a.clone(), nobodys.clone(), other.clone()]);
    for _ in 0..3 {
        bench.registry.set("stock", all());
        bench.settle().await;
    }
    for _ in 0..50 {
        bench.get().await.unwrap();
    }
    let calls = ["memory:a", "memory:b", "memory:c"].map(|address| bench.upstream.calls(address));
    assert!(calls[0] > 0 && calls[1] > 0 && calls[2] == 0, "{calls:?}");
    let why = "instance `c` belongs to `billing`";
    let refused = |e: &Event| matches!(e, Event::InstanceRefused { instance, why: said, .. } if instance == "c" && said == why);
    assert_eq!(bench.count_events(refused), 1, "said once");
    assert_eq!(bench.metric("chassis_instances_refused_total", &[]), 1.0);
}

#[tokio::test(start_paused = true)]
async fn addresses_that_make_no_sense_are_refused_one_by_one() {
    let bench = Bench::build(Upstream::new(|_| Answer::ok("")), |builder| builder);
    let at = |id: &str, address: &str| Instance::new("stock", id).with_address("test", address);
    let bad = ["h h:80", "user@h:80", "[]:80", "a\nb:80", "h:0", "fe80::1%eth0:80", "[fe80::1%eth0]:80"];
    let mut all = vec![at("a", "memory:a")];
    all.extend(bad.iter().enumerate().map(|(n, address)| at(&format!("bad-{n}"), address)));
    all.extend((0..100).map(|n| at(&format!("worse-{n}"), "nonsense")));
    bench.registry.set("stock", Membership::known(all));
    for _ in 0..50 {
        assert_eq!(address(&bench).await, "memory:a");
    }
    assert_eq!(bench.metric("chassis_instances_refused_total", &[]), 107.0);
    let refused = bench.events().into_iter().filter_map(|event| match event {
        Event::InstanceRefused { why, .. } => Some(why),
        _ => None,
    });
    let refused: Vec<_> = refused.collect();
    assert_eq!(refused.len(), 10, "not one for each of a hundred thousand");
    assert!(
        refused.contains(&r"instance `bad-3`, test `a\nb:80`: a control character is in it".into()),
        "{refused:?}"
    );
}

fn held(bench: &Bench) -> f64 {
    bench.metric("chassis_endpoints_held", &[("service", "stock"), ("protocol", "test")])
}

#[tokio::test(start_paused = true)]
async fn most_of_a_set_that_goes_at_once_is_held() {
    let bench = Bench::with(["a", "b", "c", "d", "e"], |_| Answer::ok(""));
    bench.get().await.unwrap();
    bench.registry.put("stock", ["a"]);
    tokio::time::sleep(50 * S).await;
    for _ in 0..200 {
        bench.get().await.unwrap();
    }
    let all = ["memory:a", "memory:b", "memory:c", "memory:d", "memory:e"];
    assert!(all.iter().all(|address| bench.upstream.calls(address) > 10), "all of them are called");
    assert_eq!(bench.count_events(|e| matches!(e, Event::RemovalsHeld { held: 4, left: 1, .. })), 1);
    assert_eq!((held(&bench), bench.upstream.closes("memory:b")), (4.0, 0));
    tokio::time::sleep(11 * S).await;
    assert_eq!((held(&bench), bench.upstream.closes("memory:b")), (0.0, 1));
    for _ in 0..50 {
        assert_eq!(address(&bench).await, "memory:a");
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_held_and_can_not_be_reached_is_gone() {
    let upstream = Upstream::new(|_| Answer::ok("")).begin_as(Connection::Idle);
    let bench = Bench::build(upstream, |builder| builder);
    bench.registry.put("stock", ["a", "b", "c", "d", "e"]);
    bench.settle().await;
    bench.registry.put("stock", ["a"]);
    bench.settle().await;
    // They had no call yet: connecting to them shows whether they run.
    for id in ["b", "c", "d", "e"] {
        assert_eq!(bench.upstream.wakes(&format!("memory:{id}")), 1, "{id}");
    }
    assert_eq!(bench.upstream.wakes("memory:a"), 0);
    bench.upstream.connect("memory:b", Connection::Ready);
    bench.upstream.connect("memory:c", Connection::TransientFailure);
    bench.upstream.connect("memory:a", Connection::TransientFailure);
    bench.settle().await;
    assert_eq!(
        (held(&bench), bench.upstream.closes("memory:c"), bench.upstream.closes("memory:a")),
        (3.0, 1, 0)
    );
    bench.upstream.connect("memory:d", Connection::TransientFailure);
    bench.upstream.connect("memory:e", Connection::TransientFailure);
    bench.settle().await;
    assert_eq!(held(&bench), 1.0);
    // Back in the registry, the set is no longer kept by the grace period.
    bench.registry.put("stock", ["a", "b"]);
    bench.settle().await;
    assert_eq!((held(&bench), bench.upstream.closes("memory:b")), (0.0, 0));
    bench.registry.set("stock", Membership::Deleted);
    bench.settle().await;
    check(&bench.get().await, Code::Unavailable, Reason::NoEndpoint);
}

fn bench_on_disk(registry: Rude, dir: &std::path::Path) -> Bench {
    let (upstream, config) = (Upstream::new(|_| Answer::ok("")), LastGoodConfig::new(dir));
    Bench::build(upstream, |builder| builder.registry(Arc::new(registry)).last_good(config))
}

/// The number of complete files, once it is `expected`; fails after a minute.
async fn until_files(dir: &std::path::Path, expected: usize) {
    for _ in 0..60_000 {
        let files = std::fs::read_dir(dir).map(Iterator::flatten).into_iter().flatten();
        let files = files.filter(|file| file.path().extension().is_some_and(|end| end == "instances"));
        if files.count() == expected {
            return;
        }
        tokio::time::sleep(MS).await;
    }
    panic!("not {expected} files");
}

#[tokio::test(start_paused = true)]
async fn a_cold_start_without_the_registry_uses_the_last_good_instances() {
    let dir = tempfile::tempdir().unwrap();
    let before = bench_on_disk(Rude::new([vec![has(["a", "b"]), has(["a"])]]), dir.path());
    address(&before).await;
    until_files(dir.path(), 1).await;
    tokio::time::sleep(10 * S).await; // the second answer is written, too
    assert!(before.runtime.shutdown(S).await);

    // A registry that fails, and one that does not answer: in both functions.
    let opens = |act: Act| Rude { opens: Mutex::new([act].into()), ..Rude::new([vec![has(["c"])]]) };
    for registry in [
        Rude::new([vec![fails()], vec![has(["c"])]]),
        Rude::new([vec![hangs()], vec![has(["c"])]]),
        opens(fails()),
        opens(hangs()),
    ] {
        let began = tokio::time::Instant::now();
        let bench = bench_on_disk(registry, dir.path());
        assert_eq!(address(&bench).await, "memory:a");
        // A start may have waited 1 s for its config center.
        assert!(began.elapsed() <= 1_510 * MS, "{:?}", began.elapsed());
        let used = |e: &Event| matches!(e, Event::LastGoodUsed { instances: 1, .. });
        assert_eq!(bench.count_events(used), 1);
        // Once the registry answers, its word counts. The file is left as it was for the next round.
        let kept: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().map(|file| file.path()).collect();
        let text = std::fs::read(&kept[0]).unwrap();
        tokio::time::sleep(40 * S).await;
        assert_eq!(address(&bench).await, "memory:c");
        assert_eq!(bench.count_events(used), 1);
        assert!(bench.runtime.shutdown(S).await);
        assert_ne!(std::fs::read(&kept[0]).unwrap(), text, "the newer instances were written");
        std::fs::write(&kept[0], text).unwrap();
    }
}

/// A registry that has lost its memory must not take the file along; a deletion does.
#[tokio::test(start_paused = true)]
async fn the_last_good_instances_go_with_a_deletion_only() {
    let dir = tempfile::tempdir().unwrap();
    let silent = || {
        Box::new(|| -> BoxFuture<'static, _> {
            Box::pin(async {
                tokio::time::sleep(10 * S).await;
                Ok(Membership::Unknown)
            })
        }) as Act
    };
    let first = bench_on_disk(Rude::new([vec![has(["a"]), silent()]]), dir.path());
    address(&first).await;
    until_files(dir.path(), 1).await;
    tokio::time::sleep(20 * S).await;
    assert!(first.runtime.shutdown(S).await);
    let empty = bench_on_disk(Rude::new([vec![says(Membership::Unknown)]]), dir.path());
    check(&empty.get().await, Code::Unavailable, Reason::UnknownService);
    tokio::time::sleep(20 * S).await;
    until_files(dir.path(), 1).await;
    assert!(empty.runtime.shutdown(S).await);
    let deleted = bench_on_disk(Rude::new([vec![has(["a"]), says(Membership::Deleted)]]), dir.path());
    deleted.get().await.ok();
    until_files(dir.path(), 0).await;
}

/// A file is checked like an answer, and one that makes no sense is no worse than none.
#[tokio::test(start_paused = true)]
async fn a_file_that_makes_no_sense_is_no_worse_than_none() {
    let dir = tempfile::tempdir().unwrap();
    let first = bench_on_disk(Rude::new([vec![has(["a"])]]), dir.path());
    address(&first).await;
    until_files(dir.path(), 1).await;
    assert!(first.runtime.shutdown(S).await);
    let path = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    for text in [&b""[..], b"\n", b"{}", &[0xff; 10_000]] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(path.file_name().unwrap()), text).unwrap();
        let bench = bench_on_disk(Rude::new([vec![fails()], vec![has(["b"])]]), dir.path());
        assert_eq!(address(&bench).await, "memory:b");
        assert_eq!(bench.count_events(|e| matches!(e, Event::LastGoodUsed { .. })), 0);
        assert!(bench.runtime.shutdown(S).await);
    }
}
