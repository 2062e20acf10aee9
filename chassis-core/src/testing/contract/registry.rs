//! The contract of [`Registry`].
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, timeout};

use crate::registry::{Instance, Membership, Registration, Registry, Status, Watcher};

/// Instances by id: a registry may list them in any order.
type Set = BTreeMap<String, Instance>;

/// A watcher, its service, and its last answer.
struct Watch {
    service: String,
    watcher: Box<dyn Watcher>,
    last: Option<Set>,
}

/// Long enough for any registry on any machine; only a failing test waits for it.
const CAP: Duration = Duration::from_secs(30);

/// Checks all that the traits promise; panics if a promise is broken.
///
/// `make` returns a working, empty registry that only the test writes to; it is called once for each promise.
/// Time is real: the sooner the registry notifies its watchers, the sooner this ends.
///
/// ```
/// use std::sync::Arc;
///
/// use chassis_core::{registry::Registry, testing::contract};
///
/// /// To be called by a test, with something like `async || Arc::new(MyRegistry::new()) as _`.
/// async fn keeps_the_contract(make: impl AsyncFn() -> Arc<dyn Registry>) {
///     contract::registry::registry(make).await;
/// }
/// ```
pub async fn registry<F>(make: F)
where
    F: AsyncFn() -> Arc<dyn Registry>,
{
    written_registry(&make).await;
    what_a_process_states_comes_back(make().await).await;
}

/// The same for a registry whose instances people write, such as that of the settings: there an unknown key is an
/// error, and no start time is stated.
pub async fn written_registry<F>(make: F)
where
    F: AsyncFn() -> Arc<dyn Registry>,
{
    the_first_answer_comes_at_once(make().await).await;
    an_instance_is_seen_while_it_is_registered(make().await).await;
    an_instance_comes_back_as_it_was_put_up(make().await).await;
    an_instance_can_be_updated(make().await).await;
    every_watcher_sees_every_change(make().await).await;
    services_do_not_mix_whatever_they_are_called(make().await).await;
    a_dropped_future_loses_nothing(make().await).await;
    snapshots_follow_a_model(make().await, 100).await;
}

async fn the_first_answer_comes_at_once(registry: Arc<dyn Registry>) {
    assert!(!registry.name().is_empty());
    for round in 0..2 {
        let mut watch = Watch::start(&registry, "unknown").await;
        let first = watch.first().await;
        assert!(first.is_empty(), "watch {round} of an unknown service: {first:#?}");
    }
    let a = instance("stock", "a");
    let _up = register(&registry, &a).await;
    Watch::start(&registry, "stock").await.until(&[&a]).await;
    let mut late = Watch::start(&registry, "stock").await;
    assert_eq!(*late.first().await, set(&[&a]), "the first answer, once others have seen it");
}

async fn an_instance_is_seen_while_it_is_registered(registry: Arc<dyn Registry>) {
    let mut watch = Watch::start(&registry, "stock").await;
    watch.until(&[]).await;
    let (a, b) = (instance("stock", "a"), instance("stock", "b"));
    let up_a = register(&registry, &a).await;
    watch.until(&[&a]).await;
    let up_b = register(&registry, &b).await;
    watch.until(&[&a, &b]).await;
    up_a.deregister().await.expect("deregister");
    watch.until(&[&b]).await;
    drop(up_b);
    watch.until(&[]).await;
    let again = register(&registry, &a).await;
    watch.until(&[&a]).await;
    again.deregister().await.expect("deregister");
    let mut late = Watch::start(&registry, "stock").await;
    assert!(late.first().await.is_empty(), "the registry no longer lists it once `deregister` has returned");
    watch.until(&[]).await;
}

async fn an_instance_comes_back_as_it_was_put_up(registry: Arc<dyn Registry>) {
    let mut full = Instance::new("stock", "full")
        .with_address("test", "10.0.0.5:50051")
        .with_address("http", "[::1]:8080")
        .with_address("line", "unix:/run/stock line.sock")
        .with_label("track", "canary")
        .with_label("π \"quoted\"", "")
        .with_weight(0);
    full.version = "1.4.0-rc.1+build".into();
    full.zone = "eu-1a".into();
    full = full.with_region("eu").with_hostname("node-7").with_app("shop").with_environment("staging");
    full = full.with_priority(3).with_status(Status::OutOfService);
    let mut watch = Watch::start(&registry, "stock").await;
    let _full = register(&registry, &full).await;
    watch.until(&[&full]).await;
    let heavy = instance("stock", "heavy").with_weight(u32::MAX);
    let _heavy = register(&registry, &heavy).await;
    watch.until(&[&full, &heavy]).await;
}

/// This includes values that only newer versions know.
async fn what_a_process_states_comes_back(registry: Arc<dyn Registry>) {
    let full = instance("stock", "full")
        .with_started_at(SystemTime::UNIX_EPOCH + Duration::from_millis(1_772_366_400_250))
        .with_status("warming_up".to_owned().into())
        .with_other("gpu", serde_json::json!({ "count": 2, "kinds": ["a", null] }));
    let mut watch = Watch::start(&registry, "stock").await;
    let _full = register(&registry, &full).await;
    watch.until(&[&full]).await;
}

/// A registry that does not support updates returns an error, and leaves the instance as it was.
async fn an_instance_can_be_updated(registry: Arc<dyn Registry>) {
    let mut watch = Watch::start(&registry, "stock").await;
    let a = instance("stock", "a");
    let mut up = register(&registry, &a).await;
    watch.until(&[&a]).await;
    for changed in [
        a.clone().with_status(Status::OutOfService),
        a.clone().with_weight(7).with_address("admin", "127.0.0.1:50052"),
    ] {
        if up.update(changed.clone()).await.is_err() {
            Watch::start(&registry, "stock").await.until(&[&a]).await;
            break;
        }
        watch.until_without_a_gap(&[&changed]).await;
    }
    up.deregister().await.expect("deregister");
    watch.until(&[]).await;
}

async fn every_watcher_sees_every_change(registry: Arc<dyn Registry>) {
    let mut watches = Vec::new();
    for _ in 0..3 {
        watches.push(Watch::start(&registry, "stock").await);
    }
    let (a, b) = (instance("stock", "a"), instance("stock", "b"));
    let up_a = register(&registry, &a).await;
    for watch in &mut watches {
        watch.until(&[&a]).await;
    }
    let _up_b = register(&registry, &b).await;
    let mut late = Watch::start(&registry, "stock").await;
    drop(up_a);
    for watch in watches.iter_mut().chain([&mut late]) {
        watch.until(&[&b]).await;
    }
    watches.truncate(1); // dropping a watcher must not affect others
    let _up_a = register(&registry, &a).await;
    watches[0].until(&[&a, &b]).await;
}

async fn services_do_not_mix_whatever_they_are_called(registry: Arc<dyn Registry>) {
    let long = "x".repeat(64);
    let plain = ["stock", "stock2", "stock.v1.Stock", &long];
    let paths = ["../stock", "..", ".", "/stock", "stock/a"];
    let odd = ["a b", "%2e", "*", "naïve 名", "\"'\\", "new\nline"];
    let names: Vec<&str> = plain.into_iter().chain(paths).chain(odd).collect();
    let mut registrations = Vec::new();
    for &service in &names {
        for id in ["a", service] {
            registrations.push(register(&registry, &instance(service, id)).await);
        }
    }
    let mut watches = Vec::new();
    for &service in &names {
        let mut watch = Watch::start(&registry, service).await;
        watch.until(&[&instance(service, "a"), &instance(service, service)]).await;
        watches.push(watch);
    }
    let services = registry.services().await;
    if !services.is_empty() {
        let missing: Vec<_> = names.iter().filter(|name| !services.iter().any(|s| s == *name)).collect();
        assert!(missing.is_empty(), "services() doesn't list {missing:?}: {services:?}");
        assert_eq!(services.len(), names.len(), "services() lists what was never registered: {services:?}");
    }
    for up in registrations {
        up.deregister().await.expect("deregister");
    }
    for watch in &mut watches {
        watch.until(&[]).await;
    }
}

async fn a_dropped_future_loses_nothing(registry: Arc<dyn Registry>) {
    let mut watch = Watch::start(&registry, "stock").await;
    for round in 0..5 {
        let a = instance("stock", "a").with_weight(round);
        let up = register(&registry, &a).await;
        watch.until_by_dropping(&[&a]).await;
        drop(up);
        watch.until_by_dropping(&[]).await;
    }
}

/// Registers or removes an instance `steps` times, at random; each answer must contain only instances that were
/// registered, and the last one must equal the model.
async fn snapshots_follow_a_model(registry: Arc<dyn Registry>, steps: u32) {
    let mut random = StdRng::seed_from_u64(0x5eed);
    let mut model: BTreeMap<(String, String), (Instance, Box<dyn Registration>)> = BTreeMap::new();
    let services = ["stock", "orders"];
    let mut watches =
        [Watch::start(&registry, services[0]).await, Watch::start(&registry, services[1]).await];
    for step in 0..steps {
        let key =
            (services[random.random_range(0..2)].to_string(), format!("i{}", random.random_range(0..6)));
        match model.remove(&key) {
            Some((_, up)) if random.random() => up.deregister().await.expect("deregister"),
            Some((_, up)) => drop(up),
            None => {
                let new = instance(&key.0, &key.1).with_weight(step);
                let up = register(&registry, &new).await;
                model.insert(key, (new, up));
            }
        }
        // Often several steps happen between two answers: only the newest state counts.
        if random.random_range(0..4) == 0 || step + 1 == steps {
            for watch in &mut watches {
                let ours =
                    model.values().map(|(instance, _)| instance).filter(|i| i.service == watch.service);
                watch.until(&ours.collect::<Vec<_>>()).await;
            }
        }
    }
}

// === impl Watch ===

impl Watch {
    async fn start(registry: &Arc<dyn Registry>, service: &str) -> Watch {
        let watcher = registry.watch(service).await.unwrap_or_else(|e| panic!("watch `{service}`: {e}"));
        Watch { service: service.into(), watcher, last: None }
    }

    /// The first answer.
    async fn first(&mut self) -> &Set {
        if timeout(CAP, self.advance()).await.is_err() {
            panic!("no first answer about `{}` in {CAP:?}", self.service);
        }
        self.last.as_ref().expect("an answer came")
    }

    /// Waits until the registry has returned exactly `expected`.
    async fn until(&mut self, expected: &[&Instance]) {
        let expected = set(expected);
        let waited = timeout(CAP, async {
            while self.last.as_ref() != Some(&expected) {
                self.advance().await;
            }
        });
        if waited.await.is_err() {
            panic!("`{}`: expected {expected:#?}, last answer: {:#?}", self.service, self.last);
        }
    }

    /// The same, and no answer on the way is empty.
    async fn until_without_a_gap(&mut self, expected: &[&Instance]) {
        let expected = set(expected);
        let waited = timeout(CAP, async {
            while self.last.as_ref() != Some(&expected) {
                self.advance().await;
                let is_empty = self.last.as_ref().is_some_and(Set::is_empty);
                assert!(!is_empty, "`{}`: no instance was listed during an update", self.service);
            }
        });
        if waited.await.is_err() {
            panic!("`{}`: expected {expected:#?}, last answer: {:#?}", self.service, self.last);
        }
    }

    /// The same with short timeouts: most of the futures are dropped before they answer.
    async fn until_by_dropping(&mut self, expected: &[&Instance]) {
        let expected = set(expected);
        let began = Instant::now();
        let mut patience = (0..8).map(|n| Duration::from_micros(1 << n)).cycle();
        while self.last.as_ref() != Some(&expected) {
            let last = &self.last;
            if began.elapsed() > CAP {
                panic!(
                    "`{}`, with little patience: expected {expected:#?}, last answer: {last:#?}",
                    self.service
                );
            }
            if timeout(patience.next().unwrap_or_default(), self.advance()).await.is_err() {
                tokio::task::yield_now().await;
            }
        }
    }

    /// The next answer; an empty set may be returned in any form.
    async fn advance(&mut self) {
        let answer = self.watcher.next().await;
        let answer = answer.unwrap_or_else(|e| panic!("following `{}`: {e}", self.service));
        self.last = Some(whole(&self.service, answer));
    }
}

/// The instances of a snapshot, each of which must belong to the service and be unique.
fn whole(service: &str, answer: Membership) -> Set {
    let Membership::Known(all) = answer else { return Set::new() };
    let mut set = Set::new();
    for instance in all {
        assert_eq!(instance.service, service, "another service's instance: {instance:?}");
        instance.check().unwrap_or_else(|e| panic!("an instance that can't be called: {e}"));
        if let Some(twice) = set.insert(instance.id.clone(), (*instance).clone()) {
            panic!("`{service}` has `{}` twice", twice.id);
        }
    }
    set
}

fn set(instances: &[&Instance]) -> Set {
    instances.iter().map(|instance| (instance.id.clone(), (*instance).clone())).collect()
}

fn instance(service: &str, id: &str) -> Instance {
    Instance::new(service, id).with_address("test", "127.0.0.1:50051")
}

async fn register(registry: &Arc<dyn Registry>, instance: &Instance) -> Box<dyn Registration> {
    let registered = timeout(CAP, registry.register(instance.clone())).await;
    let registered = registered.unwrap_or_else(|_| panic!("not registered in {CAP:?}: {instance:?}"));
    registered.unwrap_or_else(|e| panic!("not registered: {instance:?}: {e}"))
}
