//! Names of services that come from input: the state that they leave behind.
use std::{sync::Arc, time::Duration};

use chassis_core::{
    Code, Grace, MOST_SERVICES, MOST_UNKNOWN, Reason,
    pipeline::{self, Pipeline},
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
    testing::{Answer, CallBuilder, ScriptedRegistry, Upstream, share_state},
};
use serde_json::json;

use crate::support::*;

/// A registry that knows no service.
struct Empty;
struct Never(bool);

#[async_trait::async_trait]
impl Registry for Empty {
    fn name(&self) -> &str {
        "empty"
    }
    async fn register(&self, _: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        Err(RegistryError::unsupported("never"))
    }
    async fn watch(&self, _: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        Ok(Box::new(Never(false)))
    }
}

#[async_trait::async_trait]
impl Watcher for Never {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        if std::mem::replace(&mut self.0, true) {
            std::future::pending::<()>().await;
        }
        Ok(Membership::Unknown)
    }
}

const LONG: Duration = Duration::from_secs(600);

fn client(bench: &Bench, service: &str) -> Pipeline {
    pipeline::client(&bench.runtime, service, &Arc::new(bench.upstream.clone()))
}

fn bench(registry: impl Registry) -> Bench {
    let registry = Arc::new(registry);
    Bench::build(Upstream::new(|_| Answer::ok("")), |builder| builder.registry(registry))
}

/// The number of series of services whose names begin with `prefix`.
fn series(bench: &Bench, prefix: &str) -> usize {
    let families = bench.runtime.metrics().registry().gather();
    let metrics = families.iter().flat_map(|family| family.get_metric());
    metrics.filter(|m| m.get_label().iter().any(|label| label.value().starts_with(prefix))).count()
}

/// Regression: they kept 2,000 tasks and 10,000 metric cells for ever.
#[tokio::test(start_paused = true)]
async fn unknown_names_leave_no_state() {
    let bench = bench(Empty);
    check(&bench.get().await, Code::Unavailable, Reason::UnknownService);
    let cells = bench.runtime.inspect().cells;
    for n in 0..2_000 {
        let service = format!("name-{n}");
        let refused = run(&client(&bench, &service), CallBuilder::get(&service, "Get").build()).await;
        check(&refused, Code::Unavailable, Reason::UnknownService);
    }
    bench.settle().await;
    let most = MOST_UNKNOWN + 10;
    assert!(bench.runtime.tasks().running() <= most, "{} tasks", bench.runtime.tasks().running());
    assert!(bench.runtime.clusters().len() <= most);
    tokio::time::sleep(2 * S).await;
    let kept = bench.runtime.inspect().cells;
    assert!(kept <= cells + 6 * most, "{kept} cells");
    assert!(series(&bench, "name-") > 0, "what was called just now is seen");
    // A swap of settings keeps state that is in use, and no more.
    bench.apply(json!({ "outbound": { "defaults": { "timeout": "1s" } } }));
    assert!(bench.runtime.inspect().cells <= kept);

    tokio::time::sleep(LONG).await;
    assert_eq!(bench.runtime.tasks().running(), 0);
    assert_eq!(series(&bench, "name-"), 0);
    assert_eq!(series(&bench, "stock"), 0);
    assert!(bench.runtime.inspect().cells < cells, "{} of {cells}", bench.runtime.inspect().cells);
    // Only services with a client remain; it works as before.
    assert_eq!(bench.runtime.clusters().len(), 1);
    check(&bench.get().await, Code::Unavailable, Reason::UnknownService);
    assert_eq!(bench.runtime.tasks().running(), 1);
}

#[tokio::test(start_paused = true)]
async fn names_that_calls_wait_for_are_kept() {
    let bench = Bench::build(Upstream::new(|_| Answer::ok("")), |builder| builder);
    let names: Vec<_> = (0..MOST_UNKNOWN + 300).map(|n| format!("name-{n}")).collect();
    bench.apply(json!({ "outbound": { "defaults": { "timeout": "off" } } }));
    let calls: Vec<_> = names
        .iter()
        .map(|name| {
            let (pipeline, call) = (client(&bench, name), CallBuilder::get(name, "Get").build());
            tokio::spawn(async move { run(&pipeline, call).await })
        })
        .collect();
    tokio::time::sleep(4 * S).await;
    for name in &names {
        bench.registry.put(name, ["a"]);
    }
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_was_not_used_for_long_follows_again() {
    let bench = Bench::build(Upstream::new(|_| Answer::ok("")), |builder| builder);
    bench.registry.set("stock", Membership::Unknown);
    check(&bench.get().await, Code::Unavailable, Reason::UnknownService);
    tokio::time::sleep(LONG).await;
    assert_eq!(bench.runtime.tasks().running(), 0);
    bench.registry.put("stock", ["a"]);
    bench.get().await.unwrap();
    // Neither is a service with nodes removed, nor one that was called a moment ago.
    tokio::time::sleep(10 * LONG).await;
    assert_eq!((bench.runtime.tasks().running(), series(&bench, "stock") > 0), (1, true));
    bench.registry.set("stock", Membership::Deleted);
    for _ in 0..20 {
        tokio::time::sleep(LONG / 3).await;
        check(&bench.get().await, Code::Unavailable, Reason::NoEndpoint);
        assert_eq!((bench.runtime.tasks().running(), series(&bench, "stock") > 0), (1, true));
    }
}

#[tokio::test(start_paused = true)]
async fn names_in_the_settings_are_followed_for_good() {
    let bench = bench(Empty);
    bench.runtime.set_grace(Grace::NONE);
    bench.stock(json!({ "timeout": "1s" }));
    check(&bench.get().await, Code::Unavailable, Reason::UnknownService);
    tokio::time::sleep(10 * LONG).await;
    assert_eq!((bench.runtime.tasks().running(), series(&bench, "stock") > 0), (1, true));
    bench.apply(json!({}));
    tokio::time::sleep(LONG).await;
    assert_eq!((bench.runtime.tasks().running(), series(&bench, "stock")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_call_still_holds_is_kept_until_it_ends() {
    let bench = Bench::new(|_| Answer::ok("a body that is read late"));
    bench.apply(json!({ "outbound": { "defaults": { "concurrency": { "limit": 5 } } } }));
    let reply = bench.send(get()).await.unwrap();
    bench.registry.set("stock", Membership::Deleted);
    tokio::time::sleep(LONG).await;
    let in_flight = || bench.metric("chassis_in_flight", &[("side", "client"), ("service", "stock")]);
    assert_eq!(in_flight(), 1.0);
    // A call that arrives meanwhile finds the count that this one holds.
    let refused = bench.get().await;
    check(&refused, Code::Unavailable, Reason::NoEndpoint);
    assert_eq!(bench.runtime.inspect().concurrency[0].in_use, 1);
    drop(reply);
    assert_eq!(in_flight(), 0.0);
    tokio::time::sleep(LONG).await;
    assert_eq!((series(&bench, "stock"), bench.runtime.tasks().running()), (0, 0));
}

/// Beyond it they share the state of `_OTHER`, also where many threads create them at once.
#[test]
fn policies_of_invented_names_are_bounded() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let _entered = runtime.enter();
    let chassis = chassis_core::Runtime::builder("orders").build().unwrap();
    let named = |n: usize| Arc::<str>::from(format!("name-{n}"));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let policies = chassis.policies().get();
            scope.spawn(move || {
                for n in 0..MOST_SERVICES {
                    let name = named(n * 2 + thread % 2);
                    let policy = policies.outbound(&name, "Get");
                    assert!(policy.service() == &*name || policy.service() == "_OTHER");
                }
            });
        }
    });
    let own = (0..2 * MOST_SERVICES).filter(|n| {
        let name = named(*n);
        chassis.policies().get().outbound(&name, "Get").service() == &*name
    });
    assert_eq!(own.count(), MOST_SERVICES);
    let cells = chassis.inspect().cells;
    assert!(cells <= 10 * (MOST_SERVICES + 1), "{cells}");
    // A swap keeps them, and the one of `_OTHER`; the names beyond the limit leave nothing.
    let other =
        |runtime: &chassis_core::Runtime| runtime.policies().get().outbound(&"too late".into(), "Get");
    let before = other(&chassis);
    chassis.apply(&Default::default(), 1, "hash").unwrap();
    assert!(chassis.inspect().cells <= cells);
    assert!(share_state(&before, &other(&chassis)), "the same state");
}

#[tokio::test(start_paused = true)]
async fn invented_names_are_separate_from_known_ones() {
    let registry = ScriptedRegistry::new();
    let bench = bench(registry.clone());
    registry.put("stock", ["a"]);
    bench.get().await.unwrap();
    for n in 0..2 * MOST_UNKNOWN {
        let service = format!("name-{n}");
        registry.set(&service, Membership::Unknown);
        let refused = run(&client(&bench, &service), CallBuilder::get(&service, "Get").build()).await;
        check(&refused, Code::Unavailable, Reason::UnknownService);
        bench.get().await.unwrap();
    }
    assert_eq!(bench.upstream.closes("memory:a"), 0, "known services are never removed");
}

#[tokio::test(start_paused = true)]
async fn transports_of_one_type_share_no_node_and_no_connection() {
    let bench = Bench::new(|_| Answer::ok("as one"));
    let other = Upstream::new(|_| Answer::ok("as the other"));
    let pipeline = pipeline::client(&bench.runtime, "stock", &Arc::new(other.clone()));
    assert_eq!(bench.get().await.unwrap().body, "as one");
    assert_eq!(run(&pipeline, get().build()).await.unwrap().body, "as the other");
    assert_eq!((bench.upstream.total(), other.total()), (1, 1));
    // Clients of the same transport share them.
    let transport = Arc::new(other.clone());
    let one = bench.runtime.cluster("stock", &transport);
    assert!(Arc::ptr_eq(&one, &bench.runtime.cluster("stock", &transport)));
}
