//! Services that no registry has announced yet: calls wait in the first moments of the process, and then fail with an error
//! that names the cause.
use std::{
    error::Error as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use chassis_core::{
    Code, Error, Event, Grace, KnownServices, Reason,
    clock::Instant,
    pipeline,
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
    testing::{Answer, CallBuilder, ScriptedRegistry, Upstream},
};
use serde_json::json;
use tokio::sync::watch;

use crate::support::*;

fn bench() -> Bench {
    Bench::build(Upstream::new(|_| Answer::ok("")), |builder| builder)
}

fn grace(text: &str) -> Grace {
    text.parse().unwrap()
}

/// The answers of a registry that has no instance of `stock` for these callers.
fn nothing() -> [Membership; 4] {
    [
        Membership::Unknown,
        Membership::Known(Vec::new()),
        Membership::known([Instance::new("stock", "a").with_address("other", "10.0.0.1:80")]),
        Membership::known([ScriptedRegistry::instance("stock", "a").with_environment("staging")]),
    ]
}

/// The source of the error: the registry's services.
#[track_caller]
fn known(error: &Error) -> String {
    let source = error.source().expect("it says which services are known");
    source.downcast_ref::<Arc<KnownServices>>().expect("of this type").to_string()
}

#[tokio::test(start_paused = true)]
async fn calls_wait_for_a_service_that_is_announced_late() {
    for said in nothing() {
        let (bench, began) = (bench(), Instant::now());
        bench.registry.set("stock", said.clone());
        let calls: Vec<_> = (0..1_000).map(|_| bench.spawn(get())).collect();
        tokio::time::sleep(S).await;
        bench.registry.set("stock", said); // again
        // New settings apply to later calls; those that wait keep theirs.
        bench.stock(json!({ "timeout": "1s" }));
        tokio::time::sleep(S).await;
        assert!(calls.iter().all(|call| !call.is_finished()));
        bench.registry.put("stock", ["a"]);
        settle().await;
        assert!(calls.iter().all(|call| call.is_finished()), "they go on at once, without a poll");
        for call in calls {
            call.await.unwrap().unwrap();
        }
        assert_eq!((began.elapsed(), bench.upstream.calls("memory:a")), (2 * S, 1_000));
    }
}

#[tokio::test(start_paused = true)]
async fn after_the_grace_calls_fail_at_once() {
    for (said, reason) in nothing().into_iter().zip([
        Reason::UnknownService,
        Reason::NoEndpoint,
        Reason::NoEndpoint,
        Reason::NoEndpoint,
    ]) {
        let (bench, began) = (bench(), Instant::now());
        bench.registry.set("stock", said);
        let calls: Vec<_> = (0..100).map(|_| bench.spawn(get())).collect();
        for call in calls {
            check(&call.await.unwrap(), Code::Unavailable, reason);
        }
        assert!((3 * S..3 * S + 2 * MS).contains(&began.elapsed()), "{:?}", began.elapsed());
        let late = Instant::now();
        check(&bench.get().await, Code::Unavailable, reason);
        assert!(late.elapsed().is_zero());
        // It may still appear.
        bench.registry.put("stock", ["a"]);
        settle().await;
        bench.get().await.unwrap();
    }
}

/// The deadline of a call bounds its wait, and the error names the cause all the same.
#[tokio::test(start_paused = true)]
async fn a_call_waits_no_longer_than_its_deadline() {
    let (bench, began) = (bench(), Instant::now());
    bench.stock(json!({ "timeout": "1s" }));
    bench.registry.set("stock", Membership::Unknown);
    bench.registry.put("stocks", ["x"]);
    let refused = bench.get().await;
    check(&refused, Code::DeadlineExceeded, Reason::UnknownService);
    let error = refused.unwrap_err();
    assert_eq!(
        (error.message(), error.maybe_executed()),
        ("no service `stock` is registered with `scripted`", false)
    );
    assert_eq!(began.elapsed(), S);
}

#[tokio::test(start_paused = true)]
async fn the_grace_is_a_setting_that_may_change() {
    let (bench, began) = (bench(), Instant::now());
    bench.registry.set("stock", Membership::Unknown);
    let call = bench.spawn(get());
    tokio::time::sleep(S).await;
    assert!(!call.is_finished());
    bench.runtime.set_grace(Grace::NONE);
    check(&call.await.unwrap(), Code::Unavailable, Reason::UnknownService);
    assert_eq!(began.elapsed(), S, "also for calls that wait");
    check(&bench.get().await, Code::Unavailable, Reason::UnknownService);
    assert_eq!(began.elapsed(), S);
    // It counts from the start.
    bench.runtime.set_grace(grace("4s"));
    check(&bench.get().await, Code::Unavailable, Reason::UnknownService);
    assert_eq!(began.elapsed().as_secs(), 4);
    bench.runtime.set_grace(grace("3s"));
    check(&bench.get().await, Code::Unavailable, Reason::UnknownService);
    assert_eq!(began.elapsed().as_secs(), 4);
}

/// Only services that never had an instance may be late; the others are missing.
#[tokio::test(start_paused = true)]
async fn a_service_that_lost_its_instances_is_not_waited_for() {
    for said in nothing() {
        let bench = Bench::new(|_| Answer::ok(""));
        bench.runtime.set_hold(None);
        bench.get().await.unwrap();
        bench.registry.set("stock", said);
        settle().await;
        let began = Instant::now();
        bench.get().await.unwrap_err();
        assert!(began.elapsed().is_zero());
    }
    let bench = bench();
    bench.registry.set("stock", Membership::Deleted);
    let began = Instant::now();
    check(&bench.get().await, Code::Unavailable, Reason::NoEndpoint);
    assert!(began.elapsed().is_zero(), "it was deleted on purpose");
}

/// Names may come from input, and each of these calls holds a task that follows the registry.
#[tokio::test(start_paused = true)]
async fn the_services_that_calls_wait_for_are_bounded() {
    let bench = bench();
    let transport = Arc::new(bench.upstream.clone());
    let begin = |n: usize| {
        let name = format!("name-{n}");
        bench.registry.set(&name, Membership::Unknown);
        let pipeline = pipeline::client(&bench.runtime, &name, &transport);
        let call = CallBuilder::get(&name, "Get").build();
        tokio::spawn(async move { run(&pipeline, call).await })
    };
    let calls: Vec<_> = (0..1_024).map(begin).collect();
    tokio::time::sleep(100 * MS).await;
    let (one_more, another) = (begin(1_024), begin(7));
    tokio::time::sleep(100 * MS).await;
    check(&one_more.await.unwrap(), Code::Unavailable, Reason::UnknownService);
    assert!(!another.is_finished() && calls.iter().all(|call| !call.is_finished()));
    bench.registry.put("name-3", ["a"]);
    settle().await;
    let next = begin(1_025);
    tokio::time::sleep(100 * MS).await;
    assert!(!next.is_finished(), "there is room again");
    bench.registry.put("name-1025", ["a"]);
    next.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_error_names_the_registry_its_services_and_the_nearest() {
    let bench = bench();
    bench.registry.set("stock", Membership::Unknown);
    let error = bench.get().await.unwrap_err();
    assert_eq!(error.message(), "no service `stock` is registered with `scripted`");
    assert_eq!(known(&error), "the registry `scripted` lists no services");
    let renewed = async || {
        bench.get().await.unwrap_err();
        tokio::time::sleep(10 * S).await;
        bench.get().await.unwrap_err()
    };
    bench.registry.put("billing", ["b"]);
    assert_eq!(known(&renewed().await), "the registry `scripted` lists 1 service: billing");
    bench.registry.put(&format!("a\n{}", "x".repeat(1_000)), ["b"]);
    for n in 0..10 {
        bench.registry.put(&format!("stock{n}"), ["b"]);
    }
    let error = renewed().await;
    let long = "x".repeat(62);
    assert_eq!(
        known(&error),
        format!(
            "the registry `scripted` lists 12 services, among them a\\n{long}…, billing, stock0, stock1, stock2, \
             stock3, stock4, stock5; did you mean `stock0`?"
        )
    );
    // The message, which may be sent to another process, names none of them.
    let message = "no service `stock` is registered with `scripted`";
    assert_eq!((error.message(), error.to_string().as_str()), (message, message));
}

/// Answers that it does not know any service, after a while.
#[derive(Clone)]
struct Dead {
    is_up: watch::Sender<bool>,
    /// Refuses while it is down, and does not answer otherwise.
    refuses: bool,
    watched: Arc<AtomicUsize>,
    listed: Arc<AtomicUsize>,
    known: Arc<Mutex<Membership>>,
}

struct Once(Option<Membership>);

impl Dead {
    fn new(refuses: bool, known: Membership) -> Self {
        let (is_up, known) = (watch::Sender::new(false), Arc::new(Mutex::new(known)));
        Dead { is_up, refuses, watched: Arc::default(), listed: Arc::default(), known }
    }

    fn bench(&self) -> Bench {
        let registry = Arc::new(self.clone());
        Bench::build(Upstream::new(|_| Answer::ok("")), |builder| builder.registry(registry))
    }
}

#[async_trait::async_trait]
impl Registry for Dead {
    fn name(&self) -> &str {
        "far"
    }
    async fn register(&self, _: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        Err(RegistryError::unsupported("never"))
    }
    async fn watch(&self, _: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        self.watched.fetch_add(1, SeqCst);
        if self.refuses && !*self.is_up.borrow() {
            return Err(RegistryError::new("no route to host"));
        }
        self.is_up.subscribe().wait_for(|is_up| *is_up).await.unwrap();
        Ok(Box::new(Once(Some(self.known.lock().unwrap().clone()))))
    }
    async fn services(&self) -> Vec<String> {
        self.listed.fetch_add(1, SeqCst);
        vec!["stack".to_owned()]
    }
    fn lists_services(&self) -> bool {
        false
    }
    fn looked_up_in(&self, service: &str) -> &str {
        if service == "stock" { "far" } else { "near" }
    }
}

#[async_trait::async_trait]
impl Watcher for Once {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        match self.0.take() {
            Some(known) => Ok(known),
            None => std::future::pending().await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn many_failing_calls_ask_the_registry_once_in_a_while() {
    let registry = Dead::new(true, Membership::Unknown);
    registry.is_up.send_replace(true);
    let bench = registry.bench();
    let error = bench.get().await.unwrap_err();
    assert_eq!(error.message(), "no service `stock` is registered with `far`");
    assert_eq!(known(&error), "the registry `far` can't list its services; did you mean `stack`?");
    let other = pipeline::client(&bench.runtime, "stick", &Arc::new(bench.upstream.clone()));
    let began = Instant::now();
    while began.elapsed() < 60 * S {
        for _ in 0..100 {
            bench.get().await.unwrap_err();
        }
        let error = run(&other, CallBuilder::get("stick", "Get").build()).await.unwrap_err();
        assert_eq!(error.message(), "no service `stick` is registered with `near`");
        tokio::time::sleep(100 * MS).await;
    }
    let listed = registry.listed.load(SeqCst);
    assert!((6..20).contains(&listed), "{listed} times for 60,000 calls in a minute");
    let events = bench.count_events(|event| matches!(event, Event::UnknownService { .. }));
    assert!((55..70).contains(&events), "{events} reports, of both services");
    // Without calls it is not asked.
    tokio::time::sleep(20 * S).await;
    let listed = registry.listed.load(SeqCst);
    tokio::time::sleep(100 * S).await;
    assert_eq!(registry.listed.load(SeqCst), listed);
}

/// There is no file of the last good set, and the registry can't be reached.
#[tokio::test(start_paused = true)]
async fn a_cold_start_without_a_registry_fails_calls_in_time_and_heals() {
    for (refuses, timeout, outage) in [
        (true, "off", 30),
        (true, "30s", 9),
        (true, "1s", 600),
        (false, "off", 9),
        (false, "off", 100),
        (false, "1s", 29),
    ] {
        let registry = Dead::new(refuses, Membership::known([ScriptedRegistry::instance("stock", "a")]));
        let (bench, began) = (registry.bench(), Instant::now());
        bench.stock(json!({ "timeout": timeout }));
        let calls: Vec<_> = (0..100).map(|_| bench.spawn(get())).collect();
        let code = if timeout == "1s" { Code::DeadlineExceeded } else { Code::Unavailable };
        for call in calls {
            let refused = call.await.unwrap();
            check(&refused, code, Reason::NoEndpoint);
            let error = refused.unwrap_err();
            let message =
                error.message().strip_prefix("stock (test): its registry `far` has not answered yet");
            assert!(message.is_some() && !error.maybe_executed(), "{error:?}");
            let why = error.source().map(ToString::to_string);
            assert_eq!(why.as_deref(), refuses.then_some("no route to host"));
        }
        assert!(began.elapsed() <= 10 * S, "{:?}", began.elapsed());
        // Later calls fail at once.
        tokio::time::sleep((5 * S).saturating_sub(began.elapsed())).await;
        let late = Instant::now();
        check(&bench.get().await, Code::Unavailable, Reason::NoEndpoint);
        assert!(late.elapsed().is_zero());
        tokio::time::sleep(Duration::from_secs(outage).saturating_sub(began.elapsed())).await;
        registry.is_up.send_replace(true);
        let back = Instant::now();
        while bench.get().await.is_err() {
            tokio::time::sleep(10 * MS).await;
        }
        assert!(back.elapsed() <= 2 * S, "{:?} after the return", back.elapsed());
        let watched = registry.watched.load(SeqCst) as u64;
        assert!(watched <= 10 + 2 * outage, "asked {watched} times in {outage} s");
    }
}
