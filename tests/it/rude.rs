//! User code that fails: registries, configuration sources and hooks that panic, hang, or never wait.
use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use async_trait::async_trait;
use chassis::{
    Event, StartError,
    config::{ConfigSource, ConfigWatcher, Format, SourceError, Text},
    registries::MemoryRegistry,
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
};
use tokio::time::{Instant, sleep, timeout};

use crate::mesh::{Ask, Mesh, Plan, Pushed, Server, Wire, all_well, metric, until};

/// The way of failing.
#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    Panics,
    Hangs,
    Fails,
}

impl How {
    async fn happens(self) -> Result<(), RegistryError> {
        match self {
            How::Panics => panic!("the key is lost"),
            How::Hangs => pending().await,
            How::Fails => Err(RegistryError::new("the key is lost")),
        }
    }
}

/// An in-memory registry that fails at the first registrations, and at deregistration.
struct Clumsy {
    inner: MemoryRegistry,
    registers: (How, Arc<AtomicUsize>),
    leaves: Option<How>,
    tries: Arc<AtomicUsize>,
}

struct Lease(Box<dyn Registration>, Option<How>);

#[async_trait]
impl Registry for Clumsy {
    fn name(&self) -> &str {
        "clumsy"
    }
    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        self.tries.fetch_add(1, SeqCst);
        let (how, times) = &self.registers;
        if times.fetch_update(SeqCst, SeqCst, |times| times.checked_sub(1)).is_ok() {
            how.happens().await?;
        }
        Ok(Box::new(Lease(self.inner.register(instance).await?, self.leaves)))
    }
    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        self.inner.watch(service).await
    }
}

#[async_trait]
impl Registration for Lease {
    async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
        if let Some(how) = self.1 {
            how.happens().await?;
        }
        self.0.deregister().await
    }
}

async fn is_there(registry: &MemoryRegistry) -> bool {
    let mut watcher = registry.watch("stock").await.unwrap();
    matches!(watcher.next().await.unwrap(), Membership::Known(all) if !all.is_empty())
}

/// `stock`, with a failing registry in front of that of `mesh`; and its number of attempts to register.
async fn stock(mesh: &Mesh, registers: (How, usize), leaves: Option<How>) -> (Server, Arc<AtomicUsize>) {
    let tries = Arc::new(AtomicUsize::new(0));
    let clumsy = Clumsy {
        inner: mesh.registry.clone(),
        registers: (registers.0, Arc::new(AtomicUsize::new(registers.1))),
        leaves,
        tries: tries.clone(),
    };
    (mesh.server("stock", "stock-1").with(|builder| builder.registry(clumsy)).start().await, tries)
}

fn events(server: &Server, which: impl Fn(&Event) -> bool) -> usize {
    server.runtime().events().past().iter().filter(|(_, event)| which(event)).count()
}

/// Regression: a panic ended the task that registers; the service was never found, and no event reported it.
#[tokio::test(start_paused = true)]
async fn a_service_registers_in_the_end_whatever_its_registry_does() {
    for how in [How::Panics, How::Hangs, How::Fails] {
        let mesh = Mesh::new();
        let began = Instant::now();
        let (stock, tries) = stock(&mesh, (how, 3), None).await;
        assert!(began.elapsed() <= Duration::from_secs(6), "{how:?}: the start waits {:?}", began.elapsed());
        sleep(Duration::from_secs(60)).await;
        assert_eq!((is_there(&mesh.registry).await, tries.load(SeqCst)), (true, 4), "{how:?}");
        let said = match how {
            How::Panics => "it panicked: the key is lost",
            How::Hangs => "it did not register within 10s",
            How::Fails => "the key is lost",
        };
        let is_report = |e: &Event| matches!(e, Event::RegistryUnreachable { error, .. } if error == said);
        assert_eq!(events(&stock, is_report), 1, "{how:?}: reported once");
        assert_eq!(metric(stock.runtime(), "chassis_registry_errors_total"), 3.0);
        stock.stop().await;
        assert!(!is_there(&mesh.registry).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_a_registry() {
    for how in [How::Panics, How::Hangs, How::Fails] {
        for registers in [true, false] {
            let mesh = Mesh::new();
            let times = if registers { usize::MAX } else { 0 };
            let (stock, _) = stock(&mesh, (how, times), (!registers).then_some(how)).await;
            let (runtime, began) = (stock.runtime().clone(), Instant::now());
            stock.stop().await;
            assert!(began.elapsed() <= Duration::from_secs(4), "{how:?}: {:?}", began.elapsed());
            assert!(!is_there(&mesh.registry).await, "{how:?}");
            let panicked = metric(&runtime, r#"chassis_task_panics_total{task="registration"}"#);
            assert_eq!(panicked == 1.0, how == How::Panics && !registers);
            assert_eq!(runtime.tasks().running(), 0, "{how:?}");
        }
    }
}

/// Regression: it stayed registered until its lease expired.
#[tokio::test(start_paused = true)]
async fn an_entry_that_comes_while_the_service_stops_is_taken_down() {
    struct Slow(MemoryRegistry);
    #[async_trait]
    impl Registry for Slow {
        fn name(&self) -> &str {
            "slow"
        }
        async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
            sleep(Duration::from_millis(5_500)).await;
            // Without a lease: an entry stays until it is removed.
            self.0.put(instance.clone());
            Ok(Box::new(Put(self.0.clone(), instance)))
        }
        async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
            self.0.watch(service).await
        }
    }
    struct Put(MemoryRegistry, Instance);
    #[async_trait]
    impl Registration for Put {
        async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
            self.0.remove(&self.1.service, &self.1.id);
            Ok(())
        }
    }
    let mesh = Mesh::new();
    let slow = Slow(mesh.registry.clone());
    let stock = mesh.server("stock", "stock-1").with(|builder| builder.registry(slow)).start().await;
    stock.stop().await;
    sleep(Duration::from_secs(60)).await;
    assert!(!is_there(&mesh.registry).await);
}

/// Regression: the stop went on without it, and the entry stayed.
#[tokio::test(start_paused = true)]
async fn an_entry_whose_update_hangs_while_the_service_stops_is_taken_down() {
    struct Stuck(MemoryRegistry);
    #[async_trait]
    impl Registry for Stuck {
        fn name(&self) -> &str {
            "stuck"
        }
        async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
            self.0.put(instance.clone());
            Ok(Box::new(Put(self.0.clone(), instance)))
        }
        async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
            self.0.watch(service).await
        }
    }
    struct Put(MemoryRegistry, Instance);
    #[async_trait]
    impl Registration for Put {
        async fn update(&mut self, _: Instance) -> Result<(), RegistryError> {
            std::future::pending().await
        }
        async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
            self.0.remove(&self.1.service, &self.1.id);
            Ok(())
        }
    }
    let mesh = Mesh::new();
    let stuck = Stuck(mesh.registry.clone());
    let stock = mesh.server("stock", "stock-1").with(|builder| builder.registry(stuck)).start().await;
    stock.running.take_out_of_service().await.unwrap_err(); // after 5 s
    assert!(is_there(&mesh.registry).await);
    let began = Instant::now();
    stock.stop().await;
    assert!(began.elapsed() <= Duration::from_secs(4), "{:?}", began.elapsed());
    assert!(!is_there(&mesh.registry).await);
}

#[tokio::test(start_paused = true)]
async fn hooks_that_panic_are_reported() {
    let mesh = Mesh::new();
    let mut plan =
        mesh.server("stock", "stock-1").with(|b| b.before_start(|| async { panic!("no database") }));
    let (app, _, _) = plan.serving().await;
    let runtime = app.runtime().clone();
    let error = app.start().await.err().unwrap();
    assert!(matches!(error, StartError::Hook("before-start", _)), "{error:?}");
    assert_eq!(format!("{error:?}"), "the before-start hook failed: it panicked: no database");
    assert_eq!(
        (metric(&runtime, r#"chassis_task_panics_total{task="hook"}"#), runtime.tasks().running()),
        (1.0, 0)
    );

    // The parts that started stop in order; panics of the stop hooks change nothing.
    let ran = Arc::new(AtomicUsize::new(0));
    let last = ran.clone();
    let mut plan = mesh.server("stock", "stock-1").with(move |builder| {
        builder
            .after_start(|| async { panic!("no warm-up") })
            .before_stop(|| -> std::future::Ready<_> { panic!("before it has begun") })
            .before_stop(|| async { panic!("in the midst") })
            .after_stop(move || async move {
                last.fetch_add(1, SeqCst);
                Ok(())
            })
    });
    let (app, _, _) = plan.serving().await;
    let runtime = app.runtime().clone();
    let error = app.start().await.err().unwrap();
    assert_eq!(format!("{error:?}"), "the after-start hook failed: it panicked: no warm-up");
    assert_eq!((metric(&runtime, r#"chassis_task_panics_total{task="hook"}"#), ran.load(SeqCst)), (3.0, 1));
    assert!(!is_there(&mesh.registry).await);
}

/// Only its own thread waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_blocks_its_thread_does_not_hold_the_stop() {
    let mesh = Mesh::new();
    let (free, blocked) = std::sync::mpsc::channel::<()>();
    let plan = mesh.server("stock", "stock-1").with(move |builder| {
        builder.before_stop(move || async move {
            let _ = blocked.recv();
            Ok(())
        })
    });
    let stock = plan.start().await;
    timeout(Duration::from_secs(30), stock.stop()).await.expect("it stops");
    drop(free);
}

/// A source with `timeout: 2s` that fails at one read or at all, or is ready at each poll.
#[derive(Clone)]
struct Source {
    wrong: Option<(How, Option<usize>)>,
    opened: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
    never_silent: bool,
}

struct SourceWatcher(Source, bool);

impl Source {
    fn new(wrong: Option<(How, Option<usize>)>, never_silent: bool) -> Self {
        Source { wrong, opened: Arc::default(), asked: Arc::default(), never_silent }
    }
}

#[async_trait]
impl ConfigSource for Source {
    fn name(&self) -> String {
        "center".into()
    }
    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
        self.opened.fetch_add(1, SeqCst);
        Ok(Box::new(SourceWatcher(self.clone(), false)))
    }
}

#[async_trait]
impl ConfigWatcher for SourceWatcher {
    async fn next(&mut self) -> Result<Text, SourceError> {
        let Source { wrong, asked, never_silent, .. } = &self.0;
        let n = asked.fetch_add(1, SeqCst);
        if let Some((how, at)) = wrong
            && at.is_none_or(|at| at == n)
        {
            how.happens().await.map_err(|e| SourceError::new(e.to_string()))?;
        }
        if std::mem::replace(&mut self.1, true) && !never_silent {
            pending::<()>().await;
        }
        assert!(n < 100_000, "no other task gets a turn"); // fails rather than hangs
        let seconds = if *never_silent { 2 + n % 50 } else { 2 };
        let content = format!("outbound: {{ defaults: {{ timeout: {seconds}s }} }}");
        Ok(Text { content, format: Format::Yaml, origin: "center".into(), revision: None })
    }
}

/// Regression: it ended the task that follows the settings; later settings had no effect, without an error.
#[tokio::test(start_paused = true)]
async fn a_source_of_settings_that_panics_is_opened_anew() {
    let mesh = Mesh::new();
    let source = Source::new(Some((How::Panics, Some(1))), false);
    let opened = source.opened.clone();
    let caller = mesh.server("tests", "tests").with(|b| b.config(source)).caller().await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(opened.load(SeqCst), 2);
    let past = caller.runtime().events().past();
    let said: Vec<_> =
        past.iter().map(|(_, event)| event.to_string()).filter(|e| e.starts_with("config")).collect();
    assert_eq!(said.len(), 3, "{said:?}");
    let panicked = "config can't be read, still running version 1: C014 center: it panicked: the key is lost";
    assert_eq!((&*said[1], &*said[2]), (panicked, "config version 1 applied: readable again, and unchanged"));
    assert!(matches!(caller.push("inbound: { timeout: 3s }").await, Pushed::Applied { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_source_of_settings_that_goes_wrong_at_the_start_is_named() {
    for (how, why, after) in
        [(How::Panics, "it panicked: the key is lost", 0), (How::Hangs, "it has not answered within 30s", 30)]
    {
        let source = Source::new(Some((how, None)), false);
        let began = Instant::now();
        let error = chassis::Chassis::builder("tests").without_file().config(source).build().await;
        let error = error.err().unwrap().to_string();
        assert!(error.ends_with(&format!("center: {why}")), "{error}");
        assert_eq!(began.elapsed().as_secs(), after);
    }
}

/// Regression: it starved a single-threaded runtime, and the stop never ended.
#[tokio::test(start_paused = true)]
async fn a_source_of_settings_that_is_never_silent_leaves_others_their_turn() {
    let mesh = Mesh::new();
    let source = Source::new(None, true);
    let asked = source.asked.clone();
    let stock = mesh.server("stock", "stock-1").with(|b| b.config(source)).start().await;
    let caller = mesh.caller("").await;
    for _ in 0..50 {
        all_well(&caller.calls(Wire::Rest, 1, || Ask::to("stock")).await);
        sleep(Duration::from_millis(200)).await;
    }
    let applied = events(&stock, |event| matches!(event, Event::ConfigApplied { .. }));
    assert!((10..=25).contains(&applied), "{applied} versions in ten seconds");
    assert!((100..=600).contains(&asked.load(SeqCst)), "{}", asked.load(SeqCst));
    let began = Instant::now();
    stock.stop().await;
    assert!(began.elapsed() < Duration::from_secs(3));
    let before = asked.load(SeqCst);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(asked.load(SeqCst), before);
    until("all is over", || true).await;
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_reached_is_not_advertised() {
    for (advertise, why) in [
        ("h h", "http `h h:1`: the host is no name: it has letters, digits, `-`, `_` and single dots"),
        ("0.0.0.0", "http `0.0.0.0:1`: it means every interface, which can't be connected to"),
    ] {
        let mesh = Mesh::new();
        let plan =
            mesh.server("stock", "stock-1").config(&format!("service: {{ advertise: '{advertise}' }}"));
        let mut plan = plan.listen(serde_json::json!({ "grpc": "127.0.0.1:0", "http": "127.0.0.1:0" }));
        let (app, _, _) = plan.serving().await;
        let runtime = app.runtime().clone();
        let error = app.start().await.err().expect("it can't be reached").to_string();
        let digits = |c: char| c.is_ascii_digit();
        let port = error.rsplit_once("`: ").and_then(|(head, _)| head.rsplit_once(':')).map(|(_, port)| port);
        let port = port.filter(|port| port.chars().all(digits)).unwrap_or_default().to_owned();
        let shown = error.replace(&format!(":{port}`"), ":1`");
        assert!(shown.contains(why) || shown.contains(&why.replace("http", "grpc")), "{error}");
        assert_eq!(runtime.tasks().running(), 0);
        assert!(!is_there(&mesh.registry).await);
    }
}

/// A registry and configuration source that blocks its thread from its second answer on, until it is
/// released.
struct Blocking(MemoryRegistry, Arc<Mutex<Receiver<()>>>);

struct BlockingWatcher<W>(W, Arc<Mutex<Receiver<()>>>, bool);

impl<W> BlockingWatcher<W> {
    fn block(&mut self) {
        if std::mem::replace(&mut self.2, true) {
            let freed = self.1.lock().unwrap().recv_timeout(Duration::from_secs(60));
            assert_ne!(freed, Err(RecvTimeoutError::Timeout), "the threads of calls were held up");
        }
    }
}

#[async_trait]
impl Registry for Blocking {
    fn name(&self) -> &str {
        "blocking"
    }
    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        self.0.register(instance).await
    }
    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        Ok(Box::new(BlockingWatcher(self.0.watch(service).await?, self.1.clone(), false)))
    }
}

#[async_trait]
impl Watcher for BlockingWatcher<Box<dyn Watcher>> {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        self.block();
        self.0.next().await
    }
}

#[async_trait]
impl ConfigSource for Blocking {
    fn name(&self) -> String {
        "blocking".into()
    }
    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
        Ok(Box::new(BlockingWatcher((), self.1.clone(), false)))
    }
}

#[async_trait]
impl ConfigWatcher for BlockingWatcher<()> {
    async fn next(&mut self) -> Result<Text, SourceError> {
        self.block();
        let content = "outbound: { defaults: { timeout: 2s } }".to_owned();
        Ok(Text { content, format: Format::Yaml, origin: "blocking".into(), revision: None })
    }
}

/// `plan` with a registry and a configuration source that block.
fn blocking<'a>(freed: &Arc<Mutex<Receiver<()>>>, mesh: &Mesh, plan: Plan<'a>) -> Plan<'a> {
    let [registry, source] = [(); 2].map(|()| Blocking(mesh.registry.clone(), freed.clone()));
    plan.with(move |builder| builder.registry(registry).config(source))
}

/// A registry and a source that block their threads: calls continue over both protocols, and the stop is
/// bounded.
async fn blocked_plugins() {
    let mesh = Mesh::new();
    let (free, freed) = std::sync::mpsc::channel::<()>();
    let freed = Arc::new(Mutex::new(freed));
    let scenario = async {
        let stock = blocking(&freed, &mesh, mesh.server("stock", "stock-1")).start().await;
        let caller = blocking(&freed, &mesh, mesh.server("tests", "tests")).caller().await;
        for wire in [Wire::Grpc, Wire::Rest] {
            all_well(&caller.calls(wire, 50, || Ask::to("stock")).await);
        }
        assert!(caller.runtime().shutdown(Duration::from_secs(1)).await, "no task is left");
        stock.stop().await;
        assert!(!is_there(&mesh.registry).await, "taken down in order");
    };
    timeout(Duration::from_secs(30), scenario).await.expect("calls go on, and the stop is bounded");
    drop(free);
}

/// Regression: they stopped the whole process.
#[tokio::test]
async fn plugins_that_block_hold_up_no_call_on_one_thread() {
    blocked_plugins().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn plugins_that_block_hold_up_no_call_on_several() {
    blocked_plugins().await;
}
